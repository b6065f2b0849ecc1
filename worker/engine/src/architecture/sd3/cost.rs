//! What a forward call costs, from the configuration alone.

use super::Sd3Config;
use obsdiff_proto::ForwardFlops;

use crate::architecture::shared::cost::linear_flops;
use crate::model::conditioning::TIMESTEP_WIDTH;
use crate::model::ops;

impl Sd3Config {
    /// The sizes that decide what a forward call's activations take.
    pub(super) fn sizes(&self, batch: usize, image: usize, text: usize) -> ops::CallSizes {
        let (width, heads) = (self.width(), self.num_attention_heads);
        let dual = !self.dual_attention_layers.is_empty();
        ops::CallSizes { batch, image, text, width, heads, dual, single: false }
    }

    /// What one forward call costs on `batch` pictures of so many image and text tokens.
    pub fn flops(&self, batch: usize, image: usize, text: usize) -> ForwardFlops {
        let width = self.width();
        let product = |rows: usize, n: usize, out: usize| 2.0 * rows as f64 * n as f64 * out as f64;
        let last_queries =
            format!("transformer_blocks.{}.attn.add_q_proj", self.num_layers.saturating_sub(1));
        let linears = linear_flops(&self.inventory(), [batch, image, text], |name| name != last_queries);
        let blocks = linears.into_iter().zip(0..self.num_layers).map(|(linears, block)| {
            let (dual, last) = (self.is_dual(block), self.is_last(block));
            let queries = if last { image } else { image + text };
            let [joint, own] =
                [self.heads(block), self.own_heads(block)].map(|n| n * self.attention_head_dim);
            let joint = 2.0 * product(batch * queries, joint, image + text);
            let own = 2.0 * product(batch * image, own, image);
            let parts = if dual { 9 } else { 6 } + if last { 2 } else { 6 };
            linears + joint + own + product(batch, width, parts * width)
        });
        let patch = self.patch_size * self.patch_size;
        let conditioning = TIMESTEP_WIDTH + self.pooled_projection_dim + 2 * width;
        ForwardFlops {
            start: product(batch, width, conditioning)
                + product(batch * text, self.joint_attention_dim, width)
                + product(batch * image, patch * self.in_channels, width),
            blocks: blocks.collect(),
            finish: product(batch, width, 2 * width)
                + product(batch * image, patch * self.output_channels(), width),
        }
    }
}
