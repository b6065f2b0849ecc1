//! The memory that a job takes, predicted from configurations alone: an upper bound, by which jobs are admitted.

use std::collections::BTreeSet;

use candle_core::DType;
use obsdiff_core::MemoryNeeds;
use obsdiff_engine::architecture::MOST_KEPT_BYTES;
use obsdiff_engine::calibrate::Encoded;
use obsdiff_engine::gram::Gram;
use obsdiff_engine::model::THREAD_BYTES;
use obsdiff_engine::solve::memory;
use obsdiff_proto::{Inventory, JobSpec, LinearId, Method, Package, Pattern, Plan, Site, SiteId};
use obsdiff_worker::preparation::compute_type;

use crate::described::Described;

/// The program itself with its tokenizers, what its threads pack for products of matrices, and what they and the allocator keep: 1 to 3 MiB
/// more in some runs of a job than in others, and 3 MiB more once the pruned model is read back to be compared.
const BASE_BYTES: u64 = 38 << 20;

/// Rows of an observation that are laid out for a product together.
const ROWS_TOGETHER: u64 = 1024;

impl Described {
    /// Bytes of the conditioning of all prompts of a job, which lies in its store, and of one.
    pub fn conditioning_bytes(&self, spec: &JobSpec) -> (u64, u64) {
        let prompts = u64::from(spec.calibration.prompt_count()) + u64::from(spec.evaluation.count) + 1;
        let widths = self.config.conditioning();
        let sizes = [self.tokens.text, widths.text as u64, widths.pooled as u64];
        let number = compute_type(spec.model.dtype).size_in_bytes() as u64;
        (Encoded::bytes(prompts, sizes, number), Encoded::bytes(1, sizes, number))
    }

    /// Whether each worker keeps the conditioning of all prompts in memory.
    pub fn is_kept(&self, spec: &JobSpec) -> bool {
        self.conditioning_bytes(spec).0 <= Encoded::IN_MEMORY as u64
    }

    /// What the job holds besides its Grams: the transformer in its compute type; the conditionings that memory holds, and those of
    /// one batch, as they are read, as they lie by themselves and put together; the activations of the largest batch, what smaller ones leave behind, and an observation on its way into
    /// a Gram; and what solving takes.
    pub fn memory(&self, spec: &JobSpec, plan: &Plan) -> MemoryNeeds {
        let dtype = compute_type(spec.model.dtype);
        let branches = self.tokens.branches;
        let (all, one) = self.conditioning_bytes(spec);
        let batches = batches(spec);
        let prompts = batches.last().copied().unwrap_or(0);
        let kept = if self.is_kept(spec) { all } else { one };
        // More than the parameters: a table of positions is in the checkpoint, but not trained.
        let numbers: usize =
            self.config.shapes().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        MemoryNeeds {
            model: numbers as u64 * dtype.size_in_bytes() as u64,
            text: kept + (3 * prompts + prompts * branches) * one,
            activations: self.activations(&batches, branches, dtype)
                + self.probe(spec, dtype)
                + self.observation(plan, prompts * branches, dtype),
            // Sums are saved and restored while nothing is solved: a Gram at a time, beside its file.
            solver: self.solver(spec, plan).max(2 * self.largest_gram(spec, plan))
                + self.kept_gram(spec, plan),
            base: BASE_BYTES + rayon::current_num_threads() as u64 * THREAD_BYTES,
        }
    }

    /// Activations of forward calls on batches of so many prompts.
    fn activations(&self, batches: &BTreeSet<u64>, branches: u64, dtype: DType) -> u64 {
        let (image, text) = (self.tokens.image as usize, self.tokens.text as usize);
        let mut pictures = batches.iter().rev().map(|prompts| (prompts * branches) as usize);
        let largest = pictures.next().unwrap_or(0);
        let left = pictures.map(|batch| self.config.kept_bytes(batch, image, text, dtype));
        self.config.activation_bytes(largest, image, text, dtype) + left.sum::<u64>().min(MOST_KEPT_BYTES)
    }

    /// What a survey holds to probe: of each point the state of a forward call, and of one a second; of the largest linear the pruned
    /// weight, as it was solved and as the model takes it.
    fn probe(&self, spec: &JobSpec, dtype: DType) -> u64 {
        let pictures = probed(spec) * self.tokens.branches;
        if pictures == 0 {
            return 0;
        }
        let points = spec.probe.steps(spec.calibration.steps).len() as u64;
        let (image, text) = (self.tokens.image as usize, self.tokens.text as usize);
        let states = (points + 1) * self.config.state_bytes(pictures as usize, image, text, dtype);
        let weights = self.inventory.linear_ids().map(|id| {
            let (rows, columns) = shape(&self.inventory, id);
            rows * columns
        });
        states + weights.max().unwrap_or(0) as u64 * (4 + dtype.size_in_bytes() as u64)
    }

    /// The largest observation of a batch of so many pictures on its way into a Gram: laid out for a product; as f32, where it is
    /// none; with a feature of constant 1, where structures are pruned.
    fn observation(&self, plan: &Plan, pictures: u64, dtype: DType) -> u64 {
        let structured = plan.packages.iter().any(Package::is_structured);
        let copies = u64::from(dtype != DType::F32) + u64::from(structured);
        let bytes = |site: &Site| {
            let rows = pictures * self.tokens.at(site, &self.inventory);
            4 * (site.width as u64 + 1) * (rows.min(ROWS_TOGETHER) + copies * rows)
        };
        let sites = plan.packages.iter().flat_map(|package| &package.sites);
        sites.map(|id| bytes(self.inventory.site(*id))).max().unwrap_or(0)
    }

    /// The largest Gram as it is written where Grams are kept, or read where the job goes by kept ones; where those over fewer prompts
    /// are kept, too, the sum of the groups so far besides.
    fn kept_gram(&self, spec: &JobSpec, plan: &Plan) -> u64 {
        if spec.output.grams.is_none() && spec.calibration.grams.is_none() {
            return 0;
        }
        let copies = if spec.output.gram_prompts.is_empty() { 1 } else { 2 };
        copies * self.largest_gram(spec, plan)
    }

    fn largest_gram(&self, spec: &JobSpec, plan: &Plan) -> u64 {
        let of_package = |package: &Package| {
            let width = |id: &SiteId| package.gram_width(self.inventory.site(*id));
            let width = package.sites.iter().map(width).max();
            width.map_or(0, |width| Gram::bytes(width, spec.hessian.accumulate))
        };
        plan.packages.iter().map(of_package).max().unwrap_or(0)
    }

    /// What solving the largest part of the plan takes.
    fn solver(&self, spec: &JobSpec, plan: &Plan) -> u64 {
        let inventory = &self.inventory;
        let alternates = spec.sparsity.method() == Method::Admm;
        let of_package = |package: &Package| {
            if package.is_structured() {
                let bytes = inventory.structure_groups(package).into_iter().map(|group| {
                    let outputs = inventory.outputs_of(&group);
                    let inputs = group.iter().flat_map(|id| &inventory.structure(*id).inputs);
                    let changed: BTreeSet<_> =
                        inputs.map(|input| input.linear).chain(outputs.iter().copied()).collect();
                    let numbers = changed.into_iter().map(|id| shape(inventory, id));
                    let numbers = numbers.map(|(rows, n)| rows * (n + 1)).sum();
                    let outputs: Vec<_> = outputs.into_iter().map(|id| shape(inventory, id)).collect();
                    let copied = package.survey && (group.len() > 1 || spec.sparsity.probes());
                    memory::structure_bytes(&outputs, numbers, copied, rayon::current_num_threads())
                });
                return bytes.max().unwrap_or(0);
            }
            let shapes: Vec<_> = package.linears.iter().map(|t| shape(inventory, t.linear)).collect();
            let sites: BTreeSet<_> =
                package.linears.iter().map(|t| inventory.linear(t.linear).site).collect();
            let refinement = spec.sparsity.refinement();
            // A job fits or does not before its surveys are planned, which prune the same linears.
            let several = spec.sparsity.surveys_linears() && spec.sparsity.pattern == Pattern::Unstructured;
            let targets = if several { spec.sparsity.tried_ratios().len() } else { 1 };
            let bytes = sites.into_iter().map(|id| {
                let here = package.linears.iter().filter(|t| inventory.linear(t.linear).site == id);
                let rows: Vec<_> = here.map(|t| inventory.linear(t.linear).rows).collect();
                let n = inventory.site(id).width;
                if package.sites.is_empty() {
                    memory::scored_bytes(n, &rows)
                } else if alternates {
                    memory::alternating_bytes(n, &rows, refinement, targets, rayon::current_num_threads())
                } else {
                    memory::site_bytes(n, &rows, refinement)
                }
            });
            let kept = if package.sites.is_empty() {
                0
            } else if alternates {
                memory::alternating_kept_bytes(&shapes, spec.sparsity.effort.penalties().len())
            } else {
                memory::kept_bytes(&shapes)
            };
            kept + bytes.max().unwrap_or(0)
        };
        plan.packages.iter().map(of_package).max().unwrap_or(0)
    }
}

/// The numbers of prompts that run as one batch, in calibration and evaluation: whole shards, and what is left over.
pub(crate) fn batches(spec: &JobSpec) -> BTreeSet<u64> {
    let shard = u64::from(spec.calibration.shard_size).max(1);
    let gathers = spec.sparsity.calibrates() && spec.calibration.grams.is_none();
    let calibrating = if gathers { spec.calibration.prompt_count() } else { 0 };
    let counts = [calibrating, spec.evaluation.count].map(u64::from);
    let of = |count: u64| [shard.min(count), count % shard];
    counts.into_iter().flat_map(of).chain([probed(spec)]).filter(|prompts| *prompts > 0).collect()
}

/// Prompts on whose trajectories parts of the model are probed, as one batch.
pub(crate) fn probed(spec: &JobSpec) -> u64 {
    let prompts = spec.probe.prompts.min(spec.calibration.prompt_count());
    if spec.sparsity.probes() { u64::from(prompts) } else { 0 }
}

/// Rows and columns of a linear.
pub(crate) fn shape(inventory: &Inventory, linear: LinearId) -> (usize, usize) {
    let linear = inventory.linear(linear);
    (linear.rows, inventory.site(linear.site).width)
}
