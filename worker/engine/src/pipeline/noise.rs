//! PyTorch's CPU noise: the Mersenne twister and the two ways in which `torch.randn` turns it into normal numbers.

use candle_core::Tensor;
use rand_mt::Mt;

use crate::{Error, HOST, Result};

/// Draws `torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)` on the CPU.
///
/// As in PyTorch only the low 32 bits of `seed` count, and a tensor of 16 or more numbers is not a longer version of a smaller
/// one: the two are drawn in different ways.
///
/// # Errors
/// When the shape has more numbers than fit in memory.
pub fn noise(seed: u64, shape: &[usize]) -> Result<Tensor> {
    let count = shape.iter().try_fold(1_usize, |product, &dim| product.checked_mul(dim));
    let count = count
        .filter(|&count| count <= isize::MAX as usize / size_of::<f32>())
        .ok_or_else(|| Error::Argument(format!("noise of shape {shape:?} does not fit in memory")))?;
    let mut twister = Twister(Mt::new(seed as u32));
    let values = match count {
        0..16 => few_normals(&mut twister, count),
        _ => many_normals(&mut twister, count),
    };
    Ok(Tensor::from_vec(values, shape, &HOST)?)
}

/// Fewer than 16 numbers: pairs by Box and Muller in f64, from 53-bit uniforms.
fn few_normals(twister: &mut Twister, count: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        let turn = std::f64::consts::TAU * twister.uniform_f64();
        let radius = (-2.0 * (-twister.uniform_f64()).ln_1p()).sqrt();
        values.push((radius * turn.cos()) as f32);
        values.push((radius * turn.sin()) as f32);
    }
    values.truncate(count);
    values
}

/// 16 numbers or more: 24-bit uniforms for all of them, then Box and Muller in blocks of 16, number j with number j + 8. Where
/// the last block is not whole, the last 16 numbers are drawn again.
fn many_normals(twister: &mut Twister, count: usize) -> Vec<f32> {
    let mut values: Vec<f32> = (0..count).map(|_| twister.uniform_f32()).collect();
    for block in values.as_chunks_mut::<16>().0 {
        normalise(block);
    }
    if !count.is_multiple_of(16)
        && let Some(last) = values.last_chunk_mut::<16>()
    {
        *last = std::array::from_fn(|_| twister.uniform_f32());
        normalise(last);
    }
    values
}

fn normalise(block: &mut [f32; 16]) {
    for j in 0..8 {
        // 1 - u lies above 0, where the logarithm is finite.
        let radius = (-2.0 * (1.0 - block[j]).ln()).sqrt();
        let turn = std::f32::consts::TAU * block[j + 8];
        block[j] = radius * turn.cos();
        block[j + 8] = radius * turn.sin();
    }
}

/// MT19937, and the two ways in which PyTorch makes uniform numbers of its words.
struct Twister(Mt);

impl Twister {
    /// The low 24 bits of a word, as a number in [0, 1).
    fn uniform_f32(&mut self) -> f32 {
        (self.0.next_u32() & 0x00ff_ffff) as f32 / (1 << 24) as f32
    }

    /// The low 53 bits of two words, the first one high, as a number in [0, 1).
    fn uniform_f64(&mut self) -> f64 {
        (self.0.next_u64() & ((1 << 53) - 1)) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values printed by PyTorch 2.9.1.
    fn assert_noise(seed: u64, shape: &[usize], skip: usize, expected: &[f32]) {
        let drawn = noise(seed, shape).unwrap();
        assert_eq!(drawn.dims(), shape);
        let drawn: Vec<f32> = drawn.flatten_all().unwrap().to_vec1().unwrap();
        for (drawn, expected) in drawn[skip..].iter().zip(expected) {
            assert!((drawn - expected).abs() < 1e-6, "seed {seed}, shape {shape:?}: {drawn} for {expected}");
        }
    }

    #[test]
    fn few_numbers_come_from_the_scalar_path() {
        assert_noise(0, &[1], 0, &[1.540_996_1]);
        assert_noise(7, &[3], 0, &[-0.146_795_1, 0.786_141_3, 0.946_821_63]);
        assert_noise(42, &[3, 5], 11, &[0.809_357_2, 1.110_290_3, -1.689_799, -0.988_959_9]);
    }

    #[test]
    fn many_numbers_come_in_blocks_of_sixteen() {
        assert_noise(42, &[16], 0, &[1.926_915_3, 1.487_284_1, 0.900_717_2, -2.105_521]);
        assert_noise(42, &[16], 12, &[-0.727_881_3, -0.559_430_2, -0.768_838_9, 0.762_445_4]);
        assert_noise(
            0,
            &[5, 700],
            3495,
            &[-0.041_851_6, 0.252_348_04, 1.601_101_3, 0.657_812_5, -0.300_074_76],
        );
    }

    #[test]
    fn the_last_sixteen_are_drawn_again_where_blocks_do_not_fit() {
        assert_noise(42, &[17], 0, &[1.926_915_3, -0.159_597_47, -0.497_397_54, 0.439_589_26]);
        assert_noise(5, &[37], 17, &[1.222_025_3, -0.336_449_35, -0.965_060_2, -0.129_662_68, 0.287_949_8]);
        assert_noise(9, &[3, 1, 5, 50], 747, &[-0.046_175_197, -0.707_265_9, -0.664_564_85]);
    }

    #[test]
    fn the_low_32_bits_of_the_seed_count() {
        assert_noise((1 << 40) + 3, &[16], 0, &[-0.076_644_294, 0.359_881_52, -0.782_016_8, 0.071_527_734]);
    }

    #[test]
    fn odd_shapes_are_no_panic() {
        assert_eq!(noise(1, &[0, 4]).unwrap().elem_count(), 0);
        assert_eq!(noise(1, &[]).unwrap().elem_count(), 1);
        let error = noise(1, &[usize::MAX, 2]).unwrap_err().to_string();
        assert!(error.contains("does not fit in memory"), "{error}");
    }
}
