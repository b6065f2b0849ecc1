//! What a block's activations take.

use candle_core::DType;

use super::{composed, rows};

/// The sizes of one call: activations are made of buffers of `image x width`, `text x width`, and four times these.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) batch: usize,
    /// Tokens of a batch item.
    pub(crate) image: usize,
    pub(crate) text: usize,
    pub(crate) width: usize,
    pub(crate) heads: usize,
    /// Whether the image stream has a second attention of its own in some block.
    pub(crate) dual: bool,
}

/// Numbers in a buffer, how many of them there are around the attention, and how many around the feed-forward networks.
type Buffers = (u64, u64, u64);

/// The buffers of the kernels: those that are kept to be used again, and those that are not.
fn buffers(sizes: Sizes) -> (Vec<Buffers>, Vec<Buffers>) {
    let [image, text] = [sizes.image, sizes.text].map(|tokens| (sizes.batch * tokens * sizes.width) as u64);
    let own = if sizes.dual { 4 } else { 0 };
    let all = [(image, 5 + own, 2), (text, 5, 2), (4 * image, 0, 1), (4 * text, 0, 1)];
    all.into_iter().partition(|(numbers, ..)| *numbers <= rows::KEPT_NUMBERS as u64)
}

/// Bytes that a call leaves behind, for another call of the same sizes alone.
pub(crate) fn kept_bytes(sizes: Sizes, dtype: DType) -> u64 {
    if dtype != DType::F32 {
        return 0;
    }
    let kept: u64 = buffers(sizes).0.iter().map(|(numbers, a, b)| numbers * a.max(b)).sum();
    4 * kept.min(rows::KEPT_IN_ALL as u64)
}

/// Peak bytes of the activations in a joint block.
///
/// In f32 they are those of the kernels. Around the attention: the streams, its normed inputs, queries, keys and values; around the
/// feed-forward networks: the streams, their normed inputs, and the hidden layers. Buffers small enough to be used again stay
/// all the while. In other types the compositions' scores and temporaries in f32 come on top.
pub(crate) fn peak_bytes(sizes: Sizes, dtype: DType) -> u64 {
    let [image, text] = [sizes.image, sizes.text].map(|tokens| (sizes.batch * tokens * sizes.width) as u64);
    let own = if sizes.dual { 4 } else { 0 };
    if dtype == DType::F32 {
        let (kept, passing) = buffers(sizes);
        let kept: u64 = kept.iter().map(|(numbers, a, b)| numbers * a.max(b)).sum();
        let attention: u64 = passing.iter().map(|(numbers, count, _)| numbers * count).sum();
        let feed_forward: u64 = passing.iter().map(|(numbers, _, count)| numbers * count).sum();
        return 4 * (kept + attention.max(feed_forward));
    }
    let bytes = dtype.size_in_bytes() as u64;
    let keys = (sizes.image + sizes.text) as u64;
    let scores = sizes.heads as u64 * sizes.image.min(composed::QUERIES) as u64 * keys * (8 + bytes);
    // The streams, queries, keys, values and what is attended to, twice where they are gathered.
    let attention = bytes * ((7 + own) * image + 7 * text) + scores;
    // Product, product with bias, and what GELU makes of it, all in the hidden width.
    let feed_forward = bytes * (1 + 2 + 4 + 4) * image.max(text) + bytes * (image + text);
    attention.max(feed_forward)
}
