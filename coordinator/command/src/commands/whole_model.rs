//! The number and size of the Grams of all sites of a model, including those that a job leaves dense.

use std::fmt;

use obsdiff_core::cost::GramTotals;
use obsdiff_core::{Tokens, packages_within};
use obsdiff_proto::{ByteSize, Inventory};
use serde::Serialize;

use crate::Result;
use crate::job::JobFile;
use crate::text;

/// Memories of common GPUs, in bytes.
const MEMORIES: [u64; 3] = [24_000_000_000, 48_000_000_000, 80_000_000_000];

/// The Grams of all sites, and what a step of a prompt takes.
#[derive(Serialize)]
pub(super) struct WholeModel {
    grams: usize,
    /// As they are kept: upper triangles of sums.
    gram_bytes: u64,
    /// As whole squares of f32.
    gram_square_bytes: u64,
    /// Of the forward calls of one step of a prompt.
    step_forward_flops: f64,
    /// Of the Grams of one step of a prompt.
    step_gram_flops: f64,
    fewest_packages: Vec<FewestPackages>,
}

/// The fewest packages whose Grams fit in a memory.
#[derive(Serialize)]
struct FewestPackages {
    memory_bytes: u64,
    /// None where no number of packages is enough.
    packages: Option<u32>,
}

impl WholeModel {
    /// Of a model whose forward call takes `forward_flops`.
    ///
    /// # Errors
    /// When the job cannot be planned.
    pub(super) fn new(
        job: &JobFile,
        inventory: &Inventory,
        tokens: Tokens,
        forward_flops: f64,
    ) -> Result<Self> {
        let spec = &job.spec;
        let totals = GramTotals::new(inventory, spec.hessian.accumulate, tokens);
        let fewest = |memory_bytes| {
            let packages = packages_within(spec, inventory, tokens, ByteSize(memory_bytes));
            Ok(FewestPackages { memory_bytes, packages: packages.map_err(|e| job.unplanned(e))? })
        };
        let branches = tokens.branches as f64;
        Ok(Self {
            grams: totals.count,
            gram_bytes: totals.packed_bytes,
            gram_square_bytes: totals.square_bytes,
            step_forward_flops: branches * forward_flops,
            step_gram_flops: branches * totals.flops,
            fewest_packages: MEMORIES.into_iter().map(fewest).collect::<Result<_>>()?,
        })
    }
}

impl fmt::Display for WholeModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fewest = |fewest: &FewestPackages| {
            let packages = fewest.packages.map_or("none".to_owned(), |packages| packages.to_string());
            format!("{packages} for {} GB", fewest.memory_bytes / 1_000_000_000)
        };
        write!(
            f,
            "Grams of all sites: {}, {} as they are kept, {} ({:.2} GB) as squares of f32\n\
             A step of a prompt: {} of forward calls, {} of Grams\n\
             Fewest packages by the memory of their Grams: {}",
            self.grams,
            ByteSize(self.gram_bytes),
            ByteSize(self.gram_square_bytes),
            self.gram_square_bytes as f64 / 1e9,
            text::flops(self.step_forward_flops),
            text::flops(self.step_gram_flops),
            self.fewest_packages.iter().map(fewest).collect::<Vec<_>>().join(", "),
        )
    }
}
