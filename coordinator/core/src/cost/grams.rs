//! What all Grams of a model come to, whatever a job prunes of it.

use obsdiff_proto::{Accumulate, Inventory};

use super::{Tokens, gram_bytes};

/// The Grams of all sites of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GramTotals {
    /// How many there are: one a site, whatever number of linears reads it.
    pub count: usize,
    /// Bytes of them as whole squares of f32.
    pub square_bytes: u64,
    /// Bytes of them as they are kept: upper triangles of sums.
    pub packed_bytes: u64,
    /// Operations that one forward call on one picture adds: n (n + 1) for each row.
    pub flops: f64,
}

impl GramTotals {
    /// Those of `inventory`, whose sums are kept as `accumulate` says, for pictures of so many tokens.
    pub fn new(inventory: &Inventory, accumulate: Accumulate, tokens: Tokens) -> Self {
        let sum = |bytes: &dyn Fn(u64) -> u64| {
            let bytes = inventory.sites.iter().map(|site| bytes(site.width as u64));
            bytes.fold(0, u64::saturating_add)
        };
        let flops = inventory.sites.iter().map(|site| {
            let n = site.width as f64;
            tokens.at(site, inventory) as f64 * n * (n + 1.0)
        });
        Self {
            count: inventory.sites.len(),
            square_bytes: sum(&|n| n.saturating_mul(n).saturating_mul(4)),
            packed_bytes: sum(&|n| gram_bytes(n as usize, accumulate)),
            flops: flops.fold(0.0, |sum, flops| sum + flops),
        }
    }
}
