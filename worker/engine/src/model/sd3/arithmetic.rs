//! What a forward call takes.

use obsdiff_proto::Stream;

use super::Sd3Config;

impl Sd3Config {
    /// Floating-point operations of one forward call on one picture of `image` tokens with `text` tokens: 2 rows n for each token
    /// and linear, and 4 tokens^2 width for each attention. Norms and activations are left out: they are well below a hundredth.
    pub fn forward_flops(&self, image: u64, text: u64) -> f64 {
        let (image, text, width) = (image as f64, text as f64, self.width() as f64);
        let inventory = self.inventory();
        let linears = inventory.linears.iter().map(|linear| {
            let site = inventory.site(linear.site);
            let tokens = match site.stream {
                Stream::Image => image,
                Stream::Text => text,
            };
            2.0 * tokens * linear.rows as f64 * site.width as f64
        });
        let patch = (self.patch_size * self.patch_size) as f64;
        let ends = 2.0 * image * width * patch * (self.in_channels + self.output_channels()) as f64
            + 2.0 * text * width * self.joint_attention_dim as f64;
        let modulation = 2.0 * 12.0 * width * width * self.num_layers as f64;
        let attention = 4.0 * width * (image + text).powi(2) * self.num_layers as f64
            + 4.0 * width * image.powi(2) * self.dual_attention_layers.len() as f64;
        linears.sum::<f64>() + ends + modulation + attention
    }
}
