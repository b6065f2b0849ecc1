//! Where an image token lies, as rotary angles.

use super::FluxConfig;
use crate::Result;
use crate::model::ops::Rotary;

/// Base of the wavelengths.
const THETA: f64 = 10_000.0;

/// The angles of a picture's tokens, row by row. A token's three places are 0, its row and its column; place p turns pair i of an
/// axis of d features by p / theta^(2 i / d). Text tokens lie at (0, 0, 0), where nothing is turned.
pub(super) fn rotary(config: &FluxConfig, rows: usize, columns: usize) -> Result<Rotary> {
    let pairs = config.attention_head_dim / 2;
    let mut angles = Vec::with_capacity(rows * columns * pairs);
    for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))) {
        for (axis, place) in config.axes_dims_rope.iter().zip([0, row, column]) {
            let frequency = |i: usize| THETA.powf(-((2 * i) as f64) / *axis as f64);
            angles.extend((0..axis / 2).map(|i| place as f64 * frequency(i)));
        }
    }
    Ok(Rotary::new(&angles, pairs)?)
}
