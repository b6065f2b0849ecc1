//! What a plan costs: bytes held and sent, forward calls, and floating-point operations (a multiplication and its addition count
//! two).

mod grams;
mod probes;
mod times;

use std::iter::Sum;
use std::ops::Add;

use obsdiff_proto::{Accumulate, ComputeType, ForwardFlops, Inventory, JobSpec, Package, Plan, Site};

use crate::assignment::SolveCost;
use crate::{Part, split};

pub use grams::GramTotals;
use probes::ProbeCost;
pub use times::{Cluster, PackageTimes, PredictionInputs, Rates, rates, times};

/// Tokens of one forward call on one picture; a [`obsdiff_proto::Stream`] says which of them are in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Latent patches.
    pub image: u64,
    /// Text tokens, of all encoders.
    pub text: u64,
    /// Pictures denoised per prompt: 2 under classifier-free guidance, else 1.
    pub branches: u64,
}

impl Tokens {
    /// Those that one forward call on one picture brings to a site.
    pub fn at(self, site: &Site, inventory: &Inventory) -> u64 {
        inventory.stream(site.stream).tokens(self.image, self.text)
    }
}

/// The forward calls of one package's calibration.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Trajectories.
    pub prompts: u64,
    /// Denoising steps of each.
    pub steps: u64,
    /// Trajectories that share a forward call: those of a shard.
    pub together: u64,
    /// Tokens of each picture.
    pub tokens: Tokens,
    /// What one forward call on one picture takes.
    pub forward: ForwardFlops,
    /// What a survey does with each linear, or structure.
    pub survey: SurveyWork,
}

/// What a survey does with each linear, where it decides over linears; or with each structure, where a budget goes by the velocity.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SurveyWork {
    /// Targets to which a linear is pruned.
    pub trials: u64,
    /// Forward passes, counted per picture, by which it is probed: from its block on, since those before it are kept.
    pub passes: f64,
    /// Forward passes of the dense model, counted per picture, on the way to the last point at which velocities are compared.
    pub trajectory: f64,
    /// Forward calls of a probe at each point, from the linear's block on: a second one where what rounding moves is taken off.
    pub calls: f64,
}

impl SurveyWork {
    fn new(spec: &JobSpec, tokens: Tokens) -> Self {
        if !spec.sparsity.probes() {
            return Self::default();
        }
        let points = spec.probe.steps(spec.calibration.steps);
        let prompts = f64::from(spec.probe.prompts.min(spec.calibration.count));
        let step = prompts * tokens.branches as f64;
        let steps = points.last().map_or(0.0, |last| f64::from(*last) + 1.0);
        let trials = spec.sparsity.trials() as u64;
        let calls = if spec.model.dtype == ComputeType::F32 { 1.0 } else { 2.0 };
        Self { trials, passes: points.len() as f64 * step, trajectory: steps * step, calls }
    }
}

impl Workload {
    /// The workload that a specification asks for; no calibration where the method needs none, or goes by kept Grams. `forward` is what
    /// one forward call on one picture takes.
    pub fn new(spec: &JobSpec, tokens: Tokens, forward: ForwardFlops) -> Self {
        let c = &spec.calibration;
        let gathers = spec.sparsity.calibrates() && c.grams.is_none();
        let prompts = if gathers { u64::from(c.count) } else { 0 };
        Self {
            prompts,
            steps: u64::from(c.steps),
            together: u64::from(c.shard_size),
            tokens,
            forward,
            survey: SurveyWork::new(spec, tokens),
        }
    }

    /// Forward passes of one package, counted per picture.
    pub fn passes(&self) -> u64 {
        self.prompts.saturating_mul(self.steps).saturating_mul(self.tokens.branches)
    }

    /// Forward calls of one package, each of which brings one observation to a site.
    fn observations(&self) -> u64 {
        self.prompts.div_ceil(self.together.max(1)).saturating_mul(self.steps)
    }

    /// Rows that one package's calibration brings to a site.
    fn rows(&self, site: &Site, inventory: &Inventory) -> f64 {
        self.passes() as f64 * self.tokens.at(site, inventory) as f64
    }
}

/// What one package costs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PackageCost {
    /// Linears pruned.
    pub linears: usize,
    /// Sites whose Grams are gathered.
    pub sites: usize,
    /// Bytes of the Grams that are open together. Each worker past the first sends as many when they are reduced.
    pub gram_bytes: u64,
    /// Forward passes, counted per picture.
    pub passes: u64,
    /// Operations of the forward passes.
    pub forward_flops: f64,
    /// Operations of the Grams: n (n + 1) for each row, as only the upper triangle is formed. For heads and neurons n is one more than
    /// the site's width: a Gram then holds a constant feature, too ([`Package::gram_width`]).
    pub gram_flops: f64,
    /// Bytes of sums that are read and written while Grams are gathered: all of them, once in each forward call.
    pub gram_traffic: f64,
    /// Operations of factorising, solving and refining: see [`SolveCost`].
    pub solve_flops: f64,
    /// Those of them that are products of matrices: refinement, rounds of alternating directions, and measuring what pruning changed.
    pub product_flops: f64,
    /// Bytes that solving and refining read and write beside these products.
    pub solve_bytes: f64,
    /// Weights pruned over; each worker takes as many when they are applied.
    pub weights: u64,
}

impl PackageCost {
    /// Counts the forward passes of the package's calibration and of one worker's probes of these parts, in their order.
    fn count_forward(
        &mut self,
        package: &Package,
        inventory: &Inventory,
        workload: &Workload,
        parts: &[Part],
    ) {
        let calibrating = if package.sites.is_empty() { 0 } else { workload.passes() };
        let probes = ProbeCost::new(inventory, workload);
        let probing = probes.flops(parts.iter().flat_map(|part| probes.of_part(package, part)));
        let call = workload.forward.total();
        // Probes make parts of calls.
        let probed = if call > 0.0 { (probing / call).ceil() as u64 } else { 0 };
        self.passes = calibrating.saturating_add(probed);
        self.forward_flops = calibrating as f64 * call + probing;
    }

    /// The same for a package whose sums are those of the survey before it.
    fn on_kept_sums(self) -> Self {
        Self { passes: 0, forward_flops: 0.0, gram_flops: 0.0, gram_traffic: 0.0, ..self }
    }
}

impl Add for PackageCost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            linears: self.linears + other.linears,
            sites: self.sites + other.sites,
            gram_bytes: self.gram_bytes.saturating_add(other.gram_bytes),
            passes: self.passes.saturating_add(other.passes),
            forward_flops: self.forward_flops + other.forward_flops,
            gram_flops: self.gram_flops + other.gram_flops,
            gram_traffic: self.gram_traffic + other.gram_traffic,
            solve_flops: self.solve_flops + other.solve_flops,
            product_flops: self.product_flops + other.product_flops,
            solve_bytes: self.solve_bytes + other.solve_bytes,
            weights: self.weights.saturating_add(other.weights),
        }
    }
}

impl Sum for PackageCost {
    fn sum<I: Iterator<Item = Self>>(costs: I) -> Self {
        costs.fold(Self::default(), Self::add)
    }
}

/// What a plan costs, package by package.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanCost {
    /// In the order of the plan.
    pub packages: Vec<PackageCost>,
}

impl PlanCost {
    /// The cost of every package of `plan`, whose ids must be of `inventory`, each of whose linears takes `solving`.
    pub fn new(
        plan: &Plan,
        inventory: &Inventory,
        accumulate: Accumulate,
        solving: SolveCost,
        workload: &Workload,
    ) -> Self {
        let cost = |p: &Package| {
            let cost = package(p, inventory, accumulate, solving, workload);
            if plan.keeps_sums(p.id) { cost.on_kept_sums() } else { cost }
        };
        Self { packages: plan.packages.iter().map(cost).collect() }
    }

    /// The same where a site whose solving costs more than `above` is solved in parts, each of which factorises its Gram again.
    pub fn in_parts(
        mut self,
        plan: &Plan,
        inventory: &Inventory,
        above: Option<u64>,
        solving: SolveCost,
        workload: &Workload,
    ) -> Self {
        for (cost, package) in self.packages.iter_mut().zip(&plan.packages) {
            if package.is_structured() || package.sites.is_empty() {
                continue;
            }
            let parts = split::parts(inventory, package, above, solving);
            if package.survey {
                cost.count_forward(package, inventory, workload, &parts);
            }
            // The first part of each site is counted already.
            let further = parts.iter().map(|part| part.id).filter(|id| id.index > 0);
            cost.solve_flops += total(further.map(|id| solving.site_flops(inventory.site(id.site).width)));
        }
        self
    }

    /// The same where so many groups of prompts, this share of all, have Grams of their own in addition.
    #[must_use]
    pub fn with_groups(mut self, groups: usize, share: f64) -> Self {
        for package in &mut self.packages {
            package.gram_bytes = package.gram_bytes.saturating_mul(1 + groups as u64);
            package.gram_flops *= 1.0 + share;
            package.gram_traffic *= 1.0 + share;
        }
        self
    }

    /// The sum over packages.
    pub fn total(&self) -> PackageCost {
        self.packages.iter().copied().sum()
    }

    /// Bytes of the largest package's Grams: they are held one package at a time.
    pub fn largest_grams(&self) -> u64 {
        self.packages.iter().map(|p| p.gram_bytes).max().unwrap_or(0)
    }
}

fn package(
    package: &Package,
    inventory: &Inventory,
    accumulate: Accumulate,
    solving: SolveCost,
    workload: &Workload,
) -> PackageCost {
    let sites = || package.sites.iter().map(|id| inventory.site(*id));
    let weights = |t: &obsdiff_proto::LinearTarget| {
        let linear = inventory.linear(t.linear);
        (linear.rows, inventory.site(linear.site).width)
    };
    let solved = || package.linears.iter().map(weights).filter(|_| !package.sites.is_empty());
    let surveys = package.survey && !package.is_structured();
    let trials = if surveys { workload.survey.trials as f64 } else { 1.0 };
    let [swept, products] =
        [0, 1].map(|kind: usize| trials * total(solved().map(|(rows, n)| solving.row_flops(n, rows)[kind])));
    let gram_bytes =
        sites().map(|s| gram_bytes(package.gram_width(s), accumulate)).fold(0, u64::saturating_add);
    let mut cost = PackageCost {
        linears: package.linears.len(),
        sites: package.sites.len(),
        gram_bytes,
        gram_flops: package_gram_flops(package, inventory, workload),
        gram_traffic: 2.0 * gram_bytes as f64 * workload.observations() as f64,
        solve_flops: total(sites().map(|s| solving.site_flops(s.width))) + swept + products,
        product_flops: products,
        solve_bytes: trials * total(solved().map(|(rows, n)| solving.row_bytes(n, rows))),
        weights: package
            .linears
            .iter()
            .map(weights)
            .map(|(rows, n)| (rows as u64).saturating_mul(n as u64))
            .sum(),
        ..PackageCost::default()
    };
    cost.count_forward(package, inventory, workload, &split::parts(inventory, package, None, solving));
    cost
}

/// A sum that is 0 for nothing; the standard library's is -0.
fn total(flops: impl Iterator<Item = f64>) -> f64 {
    flops.fold(0.0, f64::add)
}

/// Bytes of a packed Gram of a site of width n: n (n + 1) / 2 sums of 8 bytes, or of 4 in `f32`.
pub fn gram_bytes(width: usize, accumulate: Accumulate) -> u64 {
    let n = width as u64;
    let sums = n.saturating_mul(n.saturating_add(1)) / 2;
    sums.saturating_mul(match accumulate {
        Accumulate::Exact => 8,
        Accumulate::F32 => 4,
    })
}

/// Operations of gathering a site's Gram, `width` features wide, over one package's calibration: n (n + 1) for each row.
pub(crate) fn gram_flops(site: &Site, width: usize, inventory: &Inventory, workload: &Workload) -> f64 {
    let n = width as f64;
    workload.rows(site, inventory) * n * (n + 1.0)
}

/// Operations of gathering all Grams of a package over its calibration.
pub(crate) fn package_gram_flops(package: &Package, inventory: &Inventory, workload: &Workload) -> f64 {
    let sites = package.sites.iter().map(|id| inventory.site(*id));
    total(sites.map(|site| gram_flops(site, package.gram_width(site), inventory, workload)))
}

/// What a process holds besides the open Grams, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryNeeds {
    /// Weights of the transformer.
    pub model: u64,
    /// Encoded prompts: those that memory holds, and those of the batch being run.
    pub text: u64,
    /// Activations and buffers of one forward call.
    pub activations: u64,
    /// Buffers of solving one site.
    pub solver: u64,
    /// What the process holds before it reads anything.
    pub base: u64,
}

impl MemoryNeeds {
    /// The predicted peak.
    pub fn peak(&self, cost: &PlanCost) -> u64 {
        self.peak_of(cost, 1)
    }

    /// The predicted peak of a process with so many workers: each comes to weights, Grams and buffers of its own, and receives its
    /// share of the reduced Grams. They share encoded prompts.
    pub fn peak_of(&self, cost: &PlanCost, workers: u64) -> u64 {
        let grams = cost.largest_grams().saturating_mul(copies(workers));
        self.besides_grams(workers).saturating_add(grams)
    }

    /// The predicted peak of all but the Grams.
    pub fn besides_grams(&self, workers: u64) -> u64 {
        // No forward call runs while a site is being solved, but the allocator keeps what calls gave back.
        let own = [self.model, self.activations, self.solver]
            .into_iter()
            .fold(0, u64::saturating_add)
            .saturating_mul(workers);
        [self.base, self.text, own].into_iter().fold(0, u64::saturating_add)
    }

    /// The bytes that the Grams of a package may take so that so many workers of one process keep within `memory`.
    pub fn room_for_grams(&self, memory: u64, workers: u64) -> u64 {
        memory.saturating_sub(self.besides_grams(workers)) / copies(workers)
    }
}

/// How often a package's Grams are held by so many workers of one process: their own sums, and what is received of the reduced ones.
fn copies(workers: u64) -> u64 {
    let workers = workers.max(1);
    if workers > 1 { workers.saturating_add(1) } else { 1 }
}

#[cfg(test)]
mod tests;
