//! Reads a joint block.

use obsdiff_proto::Inventory;

use super::Sd3Config;
use crate::Result;
use crate::model::joint::JointBlock;
use crate::model::loading::Loader;
use crate::model::parts::{ADDED, OWN, Parts};
use crate::model::stream::StreamBlock;

/// Reads block `index`; its sites and linears are found in `inventory` by name.
pub(super) fn load(
    config: &Sd3Config,
    inventory: &Inventory,
    index: usize,
    loader: &Loader<'_>,
) -> Result<JointBlock> {
    let parts = Parts {
        prefix: format!("transformer_blocks.{index}"),
        width: config.width(),
        normed_head: config.norms_queries().then_some(config.attention_head_dim),
        inventory,
        loader,
    };
    let (dual, last, width) = (config.is_dual(index), config.is_last(index), config.width());
    let image = StreamBlock {
        modulation: parts.linear("norm1.linear", if dual { 9 * width } else { 6 * width })?,
        attention: parts.attention("attn", OWN)?,
        own_attention: if dual { Some(parts.attention("attn2", OWN)?) } else { None },
        feed_forward: parts.feed_forward("ff"),
    };
    let text = StreamBlock {
        modulation: parts.linear("norm1_context.linear", if last { 2 * width } else { 6 * width })?,
        attention: parts.attention("attn", ADDED)?,
        own_attention: None,
        feed_forward: parts.feed_forward("ff_context"),
    };
    Ok(JointBlock { image, text, heads: config.heads(index), own_heads: config.own_heads(index) })
}
