//! Reads blocks of both kinds.

use obsdiff_proto::Inventory;

use super::FluxConfig;
use super::single::SingleBlock;
use crate::model::joint::JointBlock;
use crate::model::loading::Loader;
use crate::model::parts::{ADDED, OWN, Parts};
use crate::model::stream::StreamBlock;
use crate::{Error, Result};

/// The blocks of a checkpoint; their sites and linears are found in `inventory` by name.
pub(super) struct Blocks<'a> {
    pub(super) config: &'a FluxConfig,
    pub(super) inventory: &'a Inventory,
    pub(super) loader: &'a Loader<'a>,
}

impl Blocks<'_> {
    fn parts(&self, prefix: String) -> Parts<'_> {
        Parts {
            prefix,
            width: self.config.width(),
            normed_head: Some(self.config.attention_head_dim),
            inventory: self.inventory,
            loader: self.loader,
        }
    }

    pub(super) fn double(&self, index: usize) -> Result<JointBlock> {
        let parts = self.parts(format!("transformer_blocks.{index}"));
        let stream = |modulation: &str, names, feed_forward: &str| -> Result<StreamBlock> {
            Ok(StreamBlock {
                modulation: parts.linear(modulation, 6 * self.config.width())?,
                attention: parts.attention("attn", names)?,
                own_attention: None,
                feed_forward: parts.feed_forward(feed_forward),
            })
        };
        Ok(JointBlock {
            image: stream("norm1.linear", OWN, "ff")?,
            text: stream("norm1_context.linear", ADDED, "ff_context")?,
            heads: self.config.heads(index),
            own_heads: 0,
        })
    }

    pub(super) fn single(&self, index: usize) -> Result<SingleBlock> {
        let parts = self.parts(format!("single_transformer_blocks.{index}"));
        let lacks = |name: &str| Error::Argument(format!("{} has no {name}", parts.prefix));
        let output = parts.projection("proj_out").ok_or_else(|| lacks("proj_out"))?;
        let up = parts.site("attn.to_q").and_then(|(_, linears)| linears.get(3).copied());
        let mut attention = parts.attention("attn", OWN)?;
        attention.output = Some(output);
        Ok(SingleBlock {
            modulation: parts.linear("norm.linear", 3 * self.config.width())?,
            attention,
            up: up.ok_or_else(|| lacks("proj_mlp"))?,
            output,
            heads: self.config.single_heads(index),
        })
    }
}
