//! The memory of a GPU that a job takes, predicted from configurations alone: an upper bound, by which jobs are admitted.

use obsdiff_core::Tokens;
use obsdiff_engine::architecture::TransformerConfig;
use obsdiff_engine::device::memory;
use obsdiff_proto::{Inventory, JobSpec, LinearId, Method, Package, Plan, Site, SiteId};
use obsdiff_worker::preparation::compute_type;

use crate::needs::{batches, probed, shape};

/// What one worker holds in its GPU's memory besides the open Grams, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceNeeds {
    /// Weights of the transformer.
    pub model: u64,
    /// Activations of one forward call, what a survey probes by, and an observation on its way into a Gram.
    pub activations: u64,
    /// What solving one site, or one group of structures, takes.
    pub solver: u64,
    /// What encoding the prompts takes, which is over before weights come; 0 where they come encoded.
    pub encoding: u64,
    /// What decoding a picture of a held-out prompt takes, once all weights of transformers are gone; 0 where none is decoded. A job does without
    /// pictures where there is no room for it.
    pub decoding: u64,
    /// What the process takes before it has weights.
    pub base: u64,
}

impl DeviceNeeds {
    /// Of a job on a transformer, whose plan is `plan` and whose prompts come encoded.
    pub fn new(
        spec: &JobSpec,
        plan: &Plan,
        config: &dyn TransformerConfig,
        inventory: &Inventory,
        tokens: Tokens,
    ) -> Self {
        let job = GpuJob { spec, plan, config, inventory, tokens };
        Self {
            model: job.weights(),
            activations: job.forward_call() + job.probe() + job.observation(),
            solver: job.solver(),
            encoding: 0,
            decoding: 0,
            base: memory::opened_bytes(),
        }
    }

    /// The same for a GPU that is open: what that took is not free any more.
    #[must_use]
    pub fn once_open(self) -> Self {
        Self { base: 0, ..self }
    }

    /// The predicted peak of so many workers on one GPU, each with `grams` bytes of Grams.
    pub fn peak(&self, grams: u64, workers: u64) -> u64 {
        let pruning = self.besides_grams(workers).saturating_add(grams.saturating_mul(workers.max(1)));
        pruning.max(self.while_encoding())
    }

    /// The predicted peak while one worker encodes prompts.
    pub fn while_encoding(&self) -> u64 {
        self.base.saturating_add(self.encoding)
    }

    /// The bytes that the Grams of a package may take so that so many workers on one GPU keep within `memory`.
    pub fn room_for_grams(&self, memory: u64, workers: u64) -> u64 {
        memory.saturating_sub(self.besides_grams(workers)) / workers.max(1)
    }

    /// The predicted peak of all but the Grams, once the prompts are encoded. No forward call runs while a site is solved, and what is given
    /// back is used for either.
    pub fn besides_grams(&self, workers: u64) -> u64 {
        let own = self.model.saturating_add(self.activations.max(self.solver));
        self.base.saturating_add(own.saturating_mul(workers.max(1)))
    }
}

/// A job, as far as it decides what a GPU holds.
struct GpuJob<'a> {
    spec: &'a JobSpec,
    plan: &'a Plan,
    config: &'a dyn TransformerConfig,
    inventory: &'a Inventory,
    tokens: Tokens,
}

impl GpuJob<'_> {
    /// Bytes of a number in forward calls.
    fn number(&self) -> usize {
        compute_type(self.spec.model.dtype).size_in_bytes()
    }

    fn weights(&self) -> u64 {
        let numbers: usize =
            self.config.shapes().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        (numbers * self.number()) as u64
    }

    /// Pictures of the largest batch.
    fn pictures(&self) -> usize {
        let prompts = batches(self.spec).last().copied().unwrap_or(0);
        (prompts * self.tokens.branches) as usize
    }

    /// One call, with the conditioning that stays from step to step.
    fn forward_call(&self) -> u64 {
        let (image, text) = (self.tokens.image as usize, self.tokens.text as usize);
        let dtype = compute_type(self.spec.model.dtype);
        let widths = self.config.conditioning();
        let inputs = self.pictures() * (text * widths.text + widths.pooled) * self.number();
        self.config.gpu_activation_bytes(self.pictures(), image, text, dtype) + inputs as u64
    }

    /// Of each point that a survey probes at the state of a forward call, and of one a second; the largest linear as it is put in.
    fn probe(&self) -> u64 {
        let pictures = (probed(self.spec) * self.tokens.branches) as usize;
        if pictures == 0 {
            return 0;
        }
        let points = self.spec.probe.steps(self.spec.calibration.steps).len() as u64;
        let (image, text) = (self.tokens.image as usize, self.tokens.text as usize);
        let dtype = compute_type(self.spec.model.dtype);
        let states = (points + 1) * self.config.state_bytes(pictures, image, text, dtype);
        let weights = |id: LinearId| {
            let (rows, columns) = shape(self.inventory, id);
            rows * columns
        };
        let most = self.inventory.linear_ids().map(weights).max().unwrap_or(0);
        states + (most * self.number()) as u64
    }

    /// The largest observation of the largest batch on its way into a Gram.
    fn observation(&self) -> u64 {
        let padded = self.plan.packages.iter().any(Package::is_structured);
        let bytes = |site: &Site| {
            let tokens = self.pictures() * self.tokens.at(site, self.inventory) as usize;
            let width = site.width + usize::from(padded);
            memory::observation_bytes(width, tokens, padded, self.number())
        };
        let sites = self.plan.packages.iter().flat_map(|package| &package.sites);
        sites.map(|id| bytes(self.inventory.site(*id))).max().unwrap_or(0)
    }

    /// The largest site, or group of structures, that is solved on the GPU.
    fn solver(&self) -> u64 {
        let sparsity = &self.spec.sparsity;
        let factors = match sparsity.method() {
            Method::Admm => sparsity.effort.penalties().len(),
            Method::Obs => 1,
            _ => return 0,
        };
        let structured = self.plan.packages.iter().filter(|package| package.is_structured());
        let groups = structured.flat_map(|package| {
            self.inventory.structure_groups(package).into_iter().map(move |group| (package, group))
        });
        let groups = groups.map(|(package, group)| {
            let outputs = self.inventory.outputs_of(&group);
            let outputs: Vec<_> = outputs.into_iter().map(|id| shape(self.inventory, id)).collect();
            let copied = package.survey && (group.len() > 1 || sparsity.probes());
            memory::structure_bytes(&outputs, copied)
        });
        let bytes = |package: &Package, site: SiteId| {
            let rows = package.linears.iter().map(|target| self.inventory.linear(target.linear));
            let rows = rows.filter(|linear| linear.site == site).map(|linear| linear.rows).max();
            memory::site_bytes(self.inventory.site(site).width, rows.unwrap_or(0), factors)
        };
        let packages = self.plan.packages.iter().filter(|package| !package.is_structured());
        let sites = packages.flat_map(|package| package.sites.iter().map(move |site| bytes(package, *site)));
        sites.chain(groups).max().unwrap_or(0)
    }
}
