//! The memory of a GPU that solving a package and probing take, in bytes, from shapes alone: upper bounds.

use candle_core::DType;
use obsdiff_proto::{Inventory, LinearId, Method, Package, SiteId, SparsitySpec};

use super::Pruner;
use crate::architecture::TransformerConfig;
use crate::device::memory::{site_bytes, structure_bytes};

/// Forward calls of a transformer on batches of one size.
#[derive(Clone, Copy, Debug)]
pub struct ForwardCall<'a> {
    /// The transformer.
    pub config: &'a dyn TransformerConfig,
    /// Pictures of a batch, those of all branches of the guidance.
    pub pictures: usize,
    /// Tokens of a picture.
    pub image: usize,
    /// Tokens of a prompt.
    pub text: usize,
    /// The type that it computes in.
    pub dtype: DType,
}

impl ForwardCall<'_> {
    /// One call, with the conditioning that stays from step to step.
    pub fn gpu_bytes(&self) -> u64 {
        let Self { config, pictures, image, text, dtype } = *self;
        let widths = config.conditioning();
        let inputs = pictures * (text * widths.text + widths.pooled) * dtype.size_in_bytes();
        config.gpu_activation_bytes(pictures, image, text, dtype) + inputs as u64
    }

    /// What a survey holds besides to probe at so many `points`: of each the state of a call, and of one a second; the largest linear as it is
    /// put in. Nothing where no picture is probed.
    pub fn probe_bytes(&self, points: usize, inventory: &Inventory) -> u64 {
        let Self { config, pictures, image, text, dtype } = *self;
        if pictures == 0 {
            return 0;
        }
        let states = (points as u64 + 1) * config.state_bytes(pictures, image, text, dtype);
        let most = inventory.linear_ids().map(|id| shape(inventory, id)).map(|(rows, n)| rows * n).max();
        states + (most.unwrap_or(0) * dtype.size_in_bytes()) as u64
    }
}

/// What the largest site of a package takes to be solved or surveyed on a GPU, or the largest group of structures; 0 where the method solves on
/// the processor.
pub fn solving_gpu_bytes(sparsity: &SparsitySpec, inventory: &Inventory, package: &Package) -> u64 {
    let factors = match sparsity.method() {
        Method::Admm => sparsity.effort.penalties().len(),
        Method::Obs => 1,
        _ => return 0,
    };
    if package.is_structured() {
        let groups = inventory.structure_groups(package).into_iter().map(|group| {
            let outputs = inventory.outputs_of(&group);
            let outputs: Vec<_> = outputs.into_iter().map(|id| shape(inventory, id)).collect();
            let copied = package.survey && (group.len() > 1 || sparsity.probes());
            structure_bytes(&outputs, copied)
        });
        return groups.max().unwrap_or(0);
    }
    let bytes = |site: &SiteId| {
        let rows = package.linears.iter().map(|target| inventory.linear(target.linear));
        let rows = rows.filter(|linear| linear.site == *site).map(|linear| linear.rows).max();
        site_bytes(inventory.site(*site).width, rows.unwrap_or(0), factors)
    };
    package.sites.iter().map(bytes).max().unwrap_or(0)
}

/// Rows and columns of a linear.
fn shape(inventory: &Inventory, linear: LinearId) -> (usize, usize) {
    let linear = inventory.linear(linear);
    (linear.rows, inventory.site(linear.site).width)
}

impl Pruner {
    /// The same pruner, whose forward calls take so many bytes of the device's memory where a survey probes.
    #[must_use]
    pub fn probing_in(mut self, bytes: u64) -> Self {
        self.probing = bytes;
        self
    }

    /// Bytes of the device's own memory that are needed beside the Grams of a package while it is solved, or while a survey probes; none where
    /// it is solved on the processor.
    pub fn solves_in_place(&self, package: &Package) -> Option<u64> {
        let solving = solving_gpu_bytes(&self.sparsity, self.model.inventory(), package);
        let probing = if package.survey { self.probing } else { 0 };
        (!self.device.is_host() && solving > 0).then(|| solving.max(probing))
    }
}
