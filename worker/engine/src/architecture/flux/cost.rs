//! What a forward call costs, from the configuration alone.

use super::FluxConfig;
use obsdiff_proto::ForwardFlops;

use crate::architecture::shared::cost::linear_flops;
use crate::model::conditioning::TIMESTEP_WIDTH;
use crate::model::ops;

impl FluxConfig {
    /// The sizes that decide what a forward call's activations take.
    pub(super) fn sizes(&self, batch: usize, image: usize, text: usize) -> ops::CallSizes {
        let (width, heads) = (self.width(), self.num_attention_heads);
        ops::CallSizes { batch, image, text, width, heads, dual: false, single: true }
    }

    /// What one forward call costs on `batch` pictures of so many image and text tokens.
    pub fn flops(&self, batch: usize, image: usize, text: usize) -> ForwardFlops {
        let width = self.width();
        let product = |rows: usize, n: usize, out: usize| 2.0 * rows as f64 * n as f64 * out as f64;
        let tokens = image + text;
        let block = |heads: usize, modulations: usize| {
            // Queries by keys, and what they weigh by values.
            2.0 * product(batch * tokens, heads * self.attention_head_dim, tokens)
                + product(batch, width, modulations * width)
        };
        let double = (0..self.num_layers).map(|index| block(self.heads(index), 12));
        let single = (0..self.num_single_layers).map(|index| block(self.single_heads(index), 3));
        let linears = linear_flops(&self.inventory(), [batch, image, text], |_| true);
        let embedders = if self.guidance_embeds { 2 } else { 1 };
        let conditioning = embedders * (TIMESTEP_WIDTH + width) + self.pooled_projection_dim + width;
        ForwardFlops {
            start: product(batch, width, conditioning)
                + product(batch * text, self.joint_attention_dim, width)
                + product(batch * image, self.in_channels, width),
            blocks: linears
                .into_iter()
                .zip(double.chain(single))
                .map(|(linears, own)| linears + own)
                .collect(),
            finish: product(batch, width, 2 * width) + product(batch * image, self.output_features(), width),
        }
    }
}
