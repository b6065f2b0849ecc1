//! The memory of a GPU that a job takes, predicted from configurations alone: an upper bound, by which jobs are admitted.

use obsdiff_core::Tokens;
use obsdiff_engine::architecture::TransformerConfig;
use obsdiff_engine::device::memory;
use obsdiff_engine::pruner::{ForwardCall, solving_gpu_bytes};
use obsdiff_proto::{Inventory, JobSpec, Package, Plan, Site};
use obsdiff_worker::preparation::compute_type;

use crate::needs::{batches, probed};

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
            activations: job.call(job.pictures()).gpu_bytes() + job.probe() + job.observation(),
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

    /// Calls on so many pictures.
    fn call(&self, pictures: usize) -> ForwardCall<'_> {
        let (image, text) = (self.tokens.image as usize, self.tokens.text as usize);
        let dtype = compute_type(self.spec.model.dtype);
        ForwardCall { config: self.config, pictures, image, text, dtype }
    }

    /// What a survey holds to probe.
    fn probe(&self) -> u64 {
        let pictures = (probed(self.spec) * self.tokens.branches) as usize;
        let points = self.spec.probe.steps(self.spec.calibration.steps).len();
        self.call(pictures).probe_bytes(points, self.inventory)
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
        let bytes = |package| solving_gpu_bytes(&self.spec.sparsity, self.inventory, package);
        self.plan.packages.iter().map(bytes).max().unwrap_or(0)
    }
}
