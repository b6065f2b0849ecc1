//! What a forward call costs, from the configuration alone.

use candle_core::DType;
use obsdiff_proto::Stream;

use super::FluxConfig;
use crate::model::conditioning::TIMESTEP_WIDTH;
use crate::model::ops;

/// Buffers of `tokens x width` that a single-stream block has at most: the tokens, their normed form, queries, keys and values, what is
/// attended to, the hidden layer (4), and the last two joined (5).
const SINGLE_BUFFERS: u64 = 16;

impl FluxConfig {
    /// Peak bytes of one forward call's activations, its inputs and what a tap keeps not counted: `image` and `text` tokens for
    /// each of `batch` items, computed in `dtype`.
    pub fn activation_bytes(&self, batch: usize, image: usize, text: usize, dtype: DType) -> u64 {
        let tokens = (batch * (image + text)) as u64;
        // Types other than f32 are computed by compositions, with a copy of what they read.
        let (copies, scores) = if dtype == DType::F32 {
            (1, 0)
        } else {
            (2, (self.num_attention_heads * (image + text) * (image + text)) as u64 * 12)
        };
        let number = dtype.size_in_bytes() as u64;
        let single = copies * SINGLE_BUFFERS * number * tokens * self.width() as u64 + scores;
        single.max(ops::peak_bytes(self.sizes(batch, image, text), dtype))
    }

    /// Bytes that a forward call leaves behind, for another call of as many pictures alone.
    pub fn kept_bytes(&self, batch: usize, image: usize, text: usize, dtype: DType) -> u64 {
        let joined = ops::Sizes { text: 0, ..self.sizes(batch, image + text, 0) };
        ops::kept_bytes(self.sizes(batch, image, text), dtype) + ops::kept_bytes(joined, dtype)
    }

    fn sizes(&self, batch: usize, image: usize, text: usize) -> ops::Sizes {
        let (width, heads) = (self.width(), self.num_attention_heads);
        ops::Sizes { batch, image, text, width, heads, dual: false }
    }

    /// Floating-point operations of one forward call's matrix products, a multiplication and an addition counted as two.
    pub fn flops(&self, batch: usize, image: usize, text: usize) -> f64 {
        let width = self.width();
        let product = |rows: usize, n: usize, out: usize| 2.0 * rows as f64 * n as f64 * out as f64;
        let inventory = self.inventory();
        let linears = inventory.linears.iter().map(|linear| {
            let site = inventory.site(linear.site);
            let tokens = match site.stream {
                Stream::Image => image,
                Stream::Text => text,
                Stream::Joint => image + text,
            };
            product(batch * tokens, site.width, linear.rows)
        });
        let all = image + text;
        let attention = 2.0 * product(batch * all, width, all);
        let blocks = (self.num_layers + self.num_single_layers) as f64 * attention;
        // A double-stream block has six shifts, scales and gates for each stream, a single-stream block three, the last norm two.
        let modulation = (12 * self.num_layers + 3 * self.num_single_layers + 2) * width;
        let guidance = if self.guidance_embeds { TIMESTEP_WIDTH + width } else { 0 };
        let conditioning = TIMESTEP_WIDTH + width + guidance + self.pooled_projection_dim + width;
        linears.sum::<f64>()
            + blocks
            + product(batch, width, modulation + conditioning)
            + product(batch * text, self.joint_attention_dim, width)
            + product(batch * image, self.in_channels + self.output_features(), width)
    }
}
