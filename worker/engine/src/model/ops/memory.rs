//! What a block's activations take.

use candle_core::DType;

use super::{composed, rows};

/// The sizes of one call: activations are made of buffers of `image x width`, `text x width`, and four times these.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallSizes {
    pub(crate) batch: usize,
    /// Tokens of a batch item.
    pub(crate) image: usize,
    pub(crate) text: usize,
    pub(crate) width: usize,
    pub(crate) heads: usize,
    /// Whether the image stream has a second attention of its own in some block.
    pub(crate) dual: bool,
    /// Whether blocks follow that take both streams as one.
    pub(crate) single: bool,
}

/// Bytes of a state between two blocks: both streams, the conditioning, and rotary tables, which take less than the streams.
pub(crate) fn state_bytes(sizes: CallSizes, dtype: DType) -> u64 {
    let tokens = sizes.image + sizes.text;
    let streams = (sizes.batch * (tokens + 1) * sizes.width * dtype.size_in_bytes()) as u64;
    let tables = (2 * tokens * sizes.width / sizes.heads.max(1) * DType::F32.size_in_bytes()) as u64;
    streams + tables
}

/// Numbers in a buffer, and how many such buffers there are in each phase: around the attention and around the feed-forward networks
/// of a joint block; around the attention of a single-stream block, and where its attention and its hidden layer are joined.
type Buffers = (u64, [u64; 4]);

/// The buffers of the kernels: those that are kept to be used again, and those that are not.
fn buffers(sizes: CallSizes) -> (Vec<Buffers>, Vec<Buffers>) {
    let [image, text] = [sizes.image, sizes.text].map(|tokens| (sizes.batch * tokens * sizes.width) as u64);
    let own = if sizes.dual { 4 } else { 0 };
    let mut all = vec![
        (image, [5 + own, 2, 0, 0]),
        (text, [5, 2, 0, 0]),
        (4 * image, [0, 1, 0, 0]),
        (4 * text, [0, 1, 0, 0]),
    ];
    if sizes.single {
        let both = image + text;
        all.extend([(both, [0, 0, 5, 2]), (4 * both, [0, 0, 1, 1]), (5 * both, [0, 0, 0, 1])]);
    }
    all.into_iter().partition(|(numbers, ..)| *numbers <= rows::KEPT_NUMBERS as u64)
}

/// Numbers in the buffers that are kept: as many of each as some phase takes.
fn kept_numbers(kept: &[Buffers]) -> u64 {
    kept.iter().map(|(numbers, counts)| numbers * counts.iter().max().unwrap_or(&0)).sum()
}

/// Bytes that a call leaves behind, for another call of the same sizes alone.
pub(crate) fn kept_bytes(sizes: CallSizes, dtype: DType) -> u64 {
    if dtype != DType::F32 {
        return 0;
    }
    (4 * kept_numbers(&buffers(sizes).0)).min(rows::MOST_KEPT_BYTES)
}

/// Buffers of `tokens x width` that a single-stream block has at most where none is used again: the tokens, their normed form, queries,
/// keys and values, what is attended to, the hidden layer (4), and the last two joined (5).
const SINGLE_BUFFERS: u64 = 15;

/// Peak bytes of the activations in a joint block, or in a single-stream block.
///
/// In f32 they are those of the kernels. Around the attention: the streams, its normed inputs, queries, keys and values; around the
/// feed-forward networks: the streams, their normed inputs, and the hidden layers. Buffers small enough to be used again stay
/// all the while. In other types the compositions' scores and temporaries in f32 come on top.
pub(crate) fn peak_bytes(sizes: CallSizes, dtype: DType) -> u64 {
    let [image, text] = [sizes.image, sizes.text].map(|tokens| (sizes.batch * tokens * sizes.width) as u64);
    let own = if sizes.dual { 4 } else { 0 };
    if dtype == DType::F32 {
        let (kept, passing) = buffers(sizes);
        let used = |buffers: &[Buffers], phase: usize| -> u64 {
            buffers.iter().map(|(numbers, counts)| numbers * counts[phase]).sum()
        };
        // What other phases use is kept meanwhile, as far as it may be.
        let phase = |phase: usize| {
            let used_again = used(&kept, phase);
            let idle = (kept_numbers(&kept) - used_again).min(rows::KEPT_IN_ALL as u64);
            used_again + used(&passing, phase) + idle
        };
        return 4 * (0..4).map(phase).max().unwrap_or(0);
    }
    let bytes = dtype.size_in_bytes() as u64;
    let keys = (sizes.image + sizes.text) as u64;
    let scores = sizes.heads as u64 * sizes.image.min(composed::QUERIES) as u64 * keys * (8 + bytes);
    // The streams, queries, keys, values and what is attended to, twice where they are gathered.
    let attention = bytes * ((7 + own) * image + 7 * text) + scores;
    // Product, product with bias, and what GELU makes of it, all in the hidden width.
    let feed_forward = bytes * (1 + 2 + 4 + 4) * image.max(text) + bytes * (image + text);
    // Products of bf16 are formed in f32: of the hidden layer, the features out of it and the weight between them.
    let width = sizes.width as u64;
    let widened = if dtype == DType::BF16 { 4 * ((4 + 1) * image.max(text) + 4 * width * width) } else { 0 };
    let feed_forward = feed_forward + widened;
    // The buffers of a single-stream block, and a copy in f32 of what a product reads.
    let both = image + text;
    let queries = (sizes.image + sizes.text).min(composed::QUERIES);
    let scores = (sizes.heads * queries) as u64 * keys * (8 + bytes);
    let single = if sizes.single { 2 * bytes * SINGLE_BUFFERS * both + scores } else { 0 };
    attention.max(feed_forward).max(single)
}
