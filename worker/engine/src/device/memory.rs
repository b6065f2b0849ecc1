//! What a GPU's memory holds at most, in bytes, from shapes alone. The sizes that decide it are those that `cuda/` works with.

use crate::model::ops::CallSizes;
use crate::solve::structured::{DELAY, MOST_OF_CHUNK};

const F32: u64 = 4;
const F64: u64 = 8;

/// Bytes of cuBLAS's workspace: what it advises for Hopper. Of a fixed size, because the choice of algorithms depends on it.
pub(crate) const WORKSPACE: usize = 32 << 20;

/// Streams on which panels of a Gram's product, or inverses, are formed side by side: each has workspaces of its own.
pub(crate) const LANES: usize = 3;

/// What a process takes of a GPU before it asks for anything: its context with the kernels and the libraries' own. Drivers of this time take
/// 0.3 to 0.5 GiB, and cuSOLVER may take a workspace for each handle; obsdiff has not been measured on a GPU. Where opening a GPU takes more,
/// a command warns.
const CONTEXT: u64 = 640 << 20;

/// Scores of an attention that are in memory at a time (256 MiB in f32): queries are taken in parts, so that memory does not grow with the
/// square of the tokens.
pub(crate) const SCORES: usize = 1 << 26;

/// Whether an attention has its scores in memory, with heads of so many features and numbers of so many bytes. It has not where one kernel,
/// `cuda/kernels/attention.cu`, does it all.
pub(crate) fn has_scores(head: usize, bytes: usize) -> bool {
    !matches!(head, 64 | 128) || bytes != 2
}

/// Rows of scores, and rows of products that are copied anyway, begin at multiples of so many numbers, so that products read them aligned.
pub(crate) const ALIGNED: usize = 8;

/// Numbers in which pixels are laid out for a convolution at a time (256 MiB in f32): memory for that does not grow with the picture.
pub(crate) const PATCHES: usize = 1 << 26;

/// Pixels that one thread sums of a channel, as `cuda/kernels/picture.cu` has it.
pub(crate) const PIXELS_OF_PART: usize = 1024;

/// Tokens that one thread squares, as `cuda/kernels/gram.cu` has it.
pub(crate) const TOKENS_OF_PART: usize = 64;

/// Rows that are refined together, at most. Fixed, so that bits repeat.
pub(crate) const ROWS_TOGETHER: usize = 8192;

/// Rows of X^T X that are formed at once, from the diagonal to the right: as many as products of a few side by side need to be fast, and few, so
/// that little is formed below the diagonal. Fixed, so that bits repeat.
pub(crate) const PANEL: usize = 512;

/// Panels that are in memory at a time, of as many as a Gram has: two for each lane, one that is formed and one that waits to be added. A single
/// one is small.
pub(crate) fn panels_held(panels: usize) -> usize {
    if panels < 2 { 1 } else { (2 * panels).min(2 * LANES) }
}

/// Values from the start of one row to the next in a panel's product that is so many columns wide. Of an odd width, as a feature of
/// constant 1 makes it, rows would not be aligned.
pub(crate) const fn panel_stride(columns: usize) -> usize {
    columns.next_multiple_of(ALIGNED)
}

/// What a process takes of a GPU before it has weights: the context, and cuBLAS's workspaces.
pub const fn opened_bytes() -> u64 {
    CONTEXT + (1 + LANES as u64) * WORKSPACE as u64
}

/// Peak of a forward call's activations in numbers of `bytes` each: the largest of what is there around the attentions and around the
/// feed-forward networks of a joint block, and around the attention of a single-stream block and where its parts are joined. Nothing is kept
/// to be used again. Beside it an attention takes the keys and values of one item, and, where one kernel does not do it all, scores with their
/// shares.
pub(crate) fn call_bytes(sizes: CallSizes, bytes: usize) -> u64 {
    let CallSizes { batch, image, text, width, heads, dual, single } = sizes;
    let in_parts = has_scores(width / heads.max(1), bytes);
    let bytes = bytes as u64;
    let tokens = image + text;
    let [of_image, of_text] = [image, text].map(|tokens| (batch * tokens * width) as u64);
    let both = of_image + of_text;
    let (queries, stride) = (image.max(text), tokens.next_multiple_of(ALIGNED));
    let queries = if single { tokens } else { queries };
    let part = (SCORES / (heads * stride).max(1)).clamp(1, queries.max(1));
    let scores = if in_parts { (heads * part * stride) as u64 * (F32 + bytes) } else { 0 };
    let attention = 2 * bytes * (tokens * width) as u64 + scores;
    // The streams, their queries, keys and values, and what they attend to; of a second attention of the image its own three.
    let around_attention = bytes * ((if dual { 8 } else { 5 }) * of_image + 5 * of_text) + attention;
    // The streams, the hidden layers, and the inputs of one of them or the product that leaves it.
    let around_feed_forward = bytes * 6 * both;
    // The tokens, the hidden layer, and queries, keys, values and what is attended to; or the last and the hidden layer joined.
    let single_stream = if single { bytes * 9 * both + attention } else { 0 };
    let joined = if single { bytes * 11 * both } else { 0 };
    // Of two streams nine parts each and their conditioning; cosines and sines of every place.
    let modulation = bytes * (batch * width * (2 * 9 + 2)) as u64;
    let tables = F32 * (tokens * width / heads.max(1)) as u64;
    let most = around_attention.max(around_feed_forward).max(single_stream).max(joined);
    most + modulation + tables
}

/// What decides how much memory a text encoder takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EncoderSizes {
    /// Prompts whose tokens are kept while a layer is there.
    pub(crate) prompts: usize,
    pub(crate) tokens: usize,
    pub(crate) width: usize,
    /// Features of all heads.
    pub(crate) attended: usize,
    pub(crate) heads: usize,
    /// Whether each head has a bias of its own.
    pub(crate) own_biases: bool,
    /// Of a feed-forward network.
    pub(crate) hidden: usize,
    pub(crate) gated: bool,
}

/// Peak of a text encoder whose products take numbers of `bytes` each: the stream of tokens of all prompts, the bias of its attentions, the
/// weights of one layer, and what one prompt takes in it, or a weight beside its copy in another type.
pub(crate) fn encoder_bytes(sizes: EncoderSizes, bytes: usize) -> u64 {
    let EncoderSizes { prompts, tokens, width, attended, heads, own_biases, hidden, gated } = sizes;
    let bytes = bytes as u64;
    let numbers = |rows: usize, columns: usize| (rows * columns) as u64;
    let streams = F32 * prompts as u64 * numbers(tokens, width);
    let bias = F32 * numbers(if own_biases { heads * tokens } else { tokens }, tokens);
    let ups = if gated { 2 } else { 1 };
    let layer = encoder_layer_bytes(sizes, bytes);
    let scores = (F32 + bytes) * numbers(heads * tokens, tokens.next_multiple_of(ALIGNED));
    let attention =
        bytes * numbers(tokens, width + 4 * attended) + scores.max(F32 * numbers(tokens, attended));
    let network = bytes * numbers(tokens, width + hidden) + F32 * ups * numbers(tokens, hidden);
    let stored = F32 * numbers(width, attended.max(hidden));
    streams + bias + layer + attention.max(network).max(stored)
}

/// The weights of a text encoder's layer, whose products take numbers of `bytes` each.
pub(crate) fn encoder_layer_bytes(sizes: EncoderSizes, bytes: u64) -> u64 {
    let EncoderSizes { width, attended, hidden, gated, .. } = sizes;
    let networks = if gated { 3 } else { 2 };
    let linears = bytes * (4 * width * attended + networks * width * hidden) as u64;
    linears + F32 * (9 * width + hidden) as u64
}

/// Pixels that are laid out at a time in `patches` numbers, where each is made of `inner` numbers.
pub(crate) fn laid_out_pixels(pixels: usize, inner: usize, patches: usize) -> usize {
    (patches / inner.max(1)).clamp(1, pixels.max(1))
}

/// A convolution of three by three of a picture with so many pixels: numbers that are laid out for it.
fn laid_out(pixels: usize, inputs: usize) -> usize {
    laid_out_pixels(pixels, 9 * inputs, PATCHES) * 9 * inputs
}

/// A convolution of a picture with so many pixels: what goes in and comes out, and what is laid out.
pub(crate) fn convolved_bytes(pixels: usize, inputs: usize, outputs: usize) -> u64 {
    F32 * (pixels * (inputs + outputs) + laid_out(pixels, inputs)) as u64
}

/// The convolution that follows where each pixel becomes four.
pub(crate) fn enlarged_bytes(pixels: usize, channels: usize) -> u64 {
    F32 * (5 * pixels * channels + laid_out(4 * pixels, channels)) as u64
}

/// A residual block of so many channels that come in and go out: three pictures at a time, or two and what is laid out; and the sums of a
/// norm's channels.
pub(crate) fn residual_bytes(pixels: usize, inputs: usize, outputs: usize) -> u64 {
    let first = pixels * (2 * inputs + outputs) + laid_out(pixels, inputs);
    let between = pixels * (inputs + 2 * outputs);
    let second = 2 * pixels * outputs + laid_out(pixels, outputs);
    let sums = 2 * pixels.div_ceil(PIXELS_OF_PART) * inputs.max(outputs);
    F32 * first.max(between).max(second) as u64 + F64 * sums as u64
}

/// Attention of one head among so many pixels: the picture, its normed form, queries, keys, values and what one of these is made of; or what
/// is attended to in place of two, with a part of the scores and of their shares.
pub(crate) fn attended_pixels_bytes(pixels: usize, channels: usize) -> u64 {
    let stride = pixels.next_multiple_of(ALIGNED);
    let scores = 2 * (SCORES / stride.max(1)).clamp(1, pixels.max(1)) * stride;
    let sums = 2 * pixels.div_ceil(PIXELS_OF_PART) * channels;
    F32 * (6 * pixels * channels).max(5 * pixels * channels + scores) as u64 + F64 * sums as u64
}

/// An observation of so many tokens on its way into a Gram of width n: the sums of its squares, the panels of its product that are in memory at
/// a time, and its rows, which stay until they are read, or a copy of them where it is `padded` with a feature of constant 1.
pub fn observation_bytes(n: usize, tokens: usize, padded: bool, bytes: usize) -> u64 {
    let parts = F64 * (tokens.div_ceil(TOKENS_OF_PART) * n) as u64;
    let height = PANEL.clamp(1, n.max(1));
    let product = F32 * (panels_held(n.div_ceil(height)) * height * panel_stride(n)) as u64;
    let rows = (tokens * if padded { n.next_multiple_of(ALIGNED) } else { n } * bytes) as u64;
    parts + product + rows + F64 * n as u64
}

/// What a factorisation or an inverse of an n x n matrix is planned to work in, of numbers of `bytes`: as much as the matrix takes. Where
/// cuSOLVER asks for more, a warning says so.
pub(crate) const fn factorisation_bytes(n: usize, bytes: usize) -> u64 {
    (bytes * n * n) as u64
}

/// A site of width n whose largest linear has so many `rows`, pruned by alternating directions with so many inverses or by OBS with one
/// factor: A and those `factors`; while one is formed in f64, its square and as much for cuSOLVER, which is more than cuSOLVER takes for those
/// that are formed side by side in f32; while a linear is solved, its weights before
/// and now, dense and change in scaled coordinates with a mask, or five bands of the rows that are refined.
pub fn site_bytes(n: usize, rows: usize, factors: usize) -> u64 {
    let (square, weights) = ((n * n) as u64, (rows * n) as u64);
    let kept = F32 * (1 + factors as u64) * square;
    let forming = F64 * square + factorisation_bytes(n, F64 as usize);
    let band = (rows.min(ROWS_TOGETHER) * n) as u64;
    let solving = ((4 * F32 + 1) * weights).max(F32 * (2 * weights + 5 * band));
    kept + forming.max(solving)
}

/// Structures that are solved together, whose outputs have these rows and columns, in f64: of each output H^-1 and the weight, once more where
/// they are `copied`, as each structure is surveyed on its own; beside them what one output takes while its energy is computed (S, with the
/// means it is about), while H^-1 is made (three squares), or while its columns go (W^T W and the removals that are applied together, or a
/// chunk of them).
pub fn structure_bytes(outputs: &[(usize, usize)], copied: bool) -> u64 {
    let sizes = || outputs.iter().map(|(rows, n)| (*rows as u64, *n as u64));
    let held: u64 = sizes().map(|(rows, n)| n * (n + rows)).sum::<u64>() * (1 + u64::from(copied));
    let passing = |(rows, n): (u64, u64)| {
        let telling = n * (n + 2 * rows + 2) + rows * rows;
        let going = n * n + 4 * DELAY as u64 * n + 2 * DELAY as u64 * rows;
        let chunk = (MOST_OF_CHUNK as u64).min(n);
        let at_once = 2 * chunk * (n + rows + chunk);
        telling.max(3 * n * n).max(going).max(at_once)
    };
    F64 * (held + sizes().map(passing).max().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of features of f32 with a constant 1 behind them: squares of each part, two panels of each lane, the rows, and energies.
    #[test]
    fn panels_of_an_odd_width_have_rows_that_are_aligned() {
        let tokens = TOKENS_OF_PART + 1;
        assert_eq!([1, 8, 9, 1537].map(panel_stride), [8, 8, 16, 1544]);
        let (squares, copy) = (8 * 2 * 1537, 4 * tokens * 1544);
        let panels = 4 * 6 * 512 * 1544;
        assert_eq!(observation_bytes(1537, tokens, true, 4), (squares + panels + copy + 8 * 1537) as u64);
        // Rows of an even width stay as long as they are, and a narrow Gram has one panel.
        let wide = 8 * 1536 + 4 * 6 * 512 * 1536 + 4 * 1536 + 8 * 1536;
        assert_eq!(observation_bytes(1536, 1, false, 4), wide as u64);
        assert_eq!(observation_bytes(9, 1, false, 4), 8 * 9 + 4 * 9 * 16 + 4 * 9 + 8 * 9);
    }
}
