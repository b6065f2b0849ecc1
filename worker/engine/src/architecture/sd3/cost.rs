//! What a forward call costs, from the configuration alone.

use super::Sd3Config;
use crate::model::conditioning::TIMESTEP_WIDTH;
use crate::model::ops;

impl Sd3Config {
    /// The sizes that decide what a forward call's activations take.
    pub(super) fn sizes(&self, batch: usize, image: usize, text: usize) -> ops::CallSizes {
        let (width, heads) = (self.width(), self.num_attention_heads);
        let dual = !self.dual_attention_layers.is_empty();
        ops::CallSizes { batch, image, text, width, heads, dual, single: false }
    }

    /// Floating-point operations of one forward call's matrix products, a multiplication and an addition counted as two.
    pub fn flops(&self, batch: usize, image: usize, text: usize) -> f64 {
        let width = self.width();
        let product = |rows: usize, n: usize, out: usize| 2.0 * rows as f64 * n as f64 * out as f64;
        let inventory = self.inventory();
        let last_queries =
            format!("transformer_blocks.{}.attn.add_q_proj", self.num_layers.saturating_sub(1));
        let linears = inventory.linears.iter().filter(|linear| linear.name != last_queries).map(|linear| {
            let site = inventory.site(linear.site);
            let tokens = inventory.stream(site.stream).tokens(image as u64, text as u64);
            product(batch * tokens as usize, site.width, linear.rows)
        });
        let blocks = (0..self.num_layers).map(|block| {
            let (dual, last) = (self.is_dual(block), self.is_last(block));
            let queries = if last { image } else { image + text };
            let [joint, own] =
                [self.heads(block), self.own_heads(block)].map(|n| n * self.attention_head_dim);
            let joint = 2.0 * product(batch * queries, joint, image + text);
            let own = 2.0 * product(batch * image, own, image);
            let parts = if dual { 9 } else { 6 } + if last { 2 } else { 6 };
            joint + own + product(batch, width, parts * width)
        });
        let patch = self.patch_size * self.patch_size;
        let conditioning = TIMESTEP_WIDTH + self.pooled_projection_dim + 2 * width + 2 * width;
        linears.sum::<f64>()
            + blocks.sum::<f64>()
            + product(batch, width, conditioning)
            + product(batch * text, self.joint_attention_dim, width)
            + product(batch * image, patch * (self.in_channels + self.output_channels()), width)
    }
}
