//! Finds the parts of a block by diffusers' names: sites and linears in the inventory, the other tensors in the checkpoint.

use obsdiff_proto::{Inventory, LinearId, SiteId};

use super::loading::Loader;
use super::ops::LinearTensors;
use super::stream::{Attention, Projection};
use crate::{Error, Result};

/// Names of an attention's parts: the first of its three projections, the norms of its queries and keys, its output.
pub(crate) type AttentionNames = [&'static str; 4];

/// Of the stream that the attention is named for.
pub(crate) const OWN: AttentionNames = ["to_q", "norm_q", "norm_k", "to_out.0"];

/// Of the stream that is added to a joint attention.
pub(crate) const ADDED: AttentionNames = ["add_q_proj", "norm_added_q", "norm_added_k", "to_add_out"];

/// One block.
pub(crate) struct Parts<'a> {
    /// The block's module path.
    pub(crate) prefix: String,
    /// Features of a token and of the conditioning vector.
    pub(crate) width: usize,
    /// Features of a head, where queries and keys are normed.
    pub(crate) normed_head: Option<usize>,
    pub(crate) inventory: &'a Inventory,
    pub(crate) loader: &'a Loader<'a>,
}

impl Parts<'_> {
    fn name(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    /// A linear that is never pruned and reads the conditioning vector.
    pub(crate) fn linear(&self, name: &str, rows: usize) -> Result<LinearTensors> {
        self.loader.linear(&self.name(name), rows, self.width)
    }

    /// The site of this name with its linears, if the block has it.
    pub(crate) fn site(&self, name: &str) -> Option<(SiteId, &[LinearId])> {
        let name = self.name(name);
        let id = self.inventory.site_ids().find(|id| self.inventory.site(*id).name == name)?;
        Some((id, &self.inventory.site(id).linears))
    }

    /// A linear that reads a site alone.
    pub(crate) fn projection(&self, name: &str) -> Option<Projection> {
        let (site, linears) = self.site(name)?;
        Some(Projection { site, linear: *linears.first()? })
    }

    /// An attention of one stream. Its site may be read by further linears after queries, keys and values.
    pub(crate) fn attention(&self, module: &str, names: AttentionNames) -> Result<Attention> {
        let [first, norm_q, norm_k, output] = names;
        let first = format!("{module}.{first}");
        let Some((inputs, &[q, k, v, ..])) = self.site(&first) else {
            return Err(Error::Argument(format!("{} has no {first}", self.prefix)));
        };
        let norms = match self.normed_head {
            Some(head) => {
                let norm =
                    |name: &str| self.loader.tensor(&self.name(&format!("{module}.{name}.weight")), &[head]);
                Some([norm(norm_q)?.into(), norm(norm_k)?.into()])
            }
            None => None,
        };
        let output = self.projection(&format!("{module}.{output}"));
        Ok(Attention { inputs, projections: [q, k, v], norms, output })
    }

    /// A feed-forward network's two linears.
    pub(crate) fn feed_forward(&self, module: &str) -> Option<[Projection; 2]> {
        let up = self.projection(&format!("{module}.net.0.proj"));
        let down = self.projection(&format!("{module}.net.2"));
        up.zip(down).map(|(up, down)| [up, down])
    }
}
