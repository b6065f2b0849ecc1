//! Pictures inside a page, as data URIs that fit a budget of bytes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jpeg_encoder::{ColorType, Encoder};
use obsdiff_engine::pipeline::Picture;

use super::Sample;

/// Bytes of all pictures of a page, as text: what is left of 2 MB beside a page's words and tables.
const BUDGET: usize = 1_300_000;

/// By how much differences are multiplied, so that an eye sees them.
pub(super) const DIFFERENCE_GAIN: u16 = 4;

/// JPEG's quality: at 90 an eye sees no difference to the picture.
const QUALITY: u8 = 90;

/// The largest sides that pictures are reduced to, in this order, until all of them fit.
const SIDES: [u32; 6] = [1024, 512, 384, 256, 128, 64];

/// The pictures of a sample as data URIs.
pub(super) struct PictureUris {
    pub(super) dense: String,
    pub(super) pruned: String,
    /// What their difference looks like.
    pub(super) difference: String,
}

/// All pictures as PNG as they are where that fits the budget, else as JPEG, reduced no further than needed.
pub(super) fn shown(samples: &[Sample]) -> Vec<PictureUris> {
    let differences: Vec<Picture> = samples.iter().map(|s| difference(&s.dense, &s.pruned)).collect();
    let encode = |encoded: &dyn Fn(&Picture) -> Option<String>| -> Option<Vec<PictureUris>> {
        let mut bytes = 0;
        let mut uri = |picture: &Picture| {
            let uri = encoded(picture)?;
            bytes += uri.len();
            (bytes <= BUDGET).then_some(uri)
        };
        let shown = samples.iter().zip(&differences).map(|(sample, difference)| {
            Some(PictureUris {
                dense: uri(&sample.dense)?,
                pruned: uri(&sample.pruned)?,
                difference: uri(difference)?,
            })
        });
        shown.collect()
    };
    // The raw bytes of larger pictures show that their PNG files would not fit: no time is lost on trying.
    let raw: usize = samples.iter().map(|sample| 3 * sample.dense.rgb.len()).sum();
    let whole = if raw <= 4 * BUDGET { encode(&png) } else { None };
    let reduced = || SIDES.iter().find_map(|side| encode(&|picture| jpeg(&reduced(picture, *side))));
    whole.or_else(reduced).unwrap_or_default()
}

/// The differences of colours, times [`DIFFERENCE_GAIN`]: black where pictures are equal.
fn difference(dense: &Picture, pruned: &Picture) -> Picture {
    let colour = |(a, b): (&u8, &u8)| (u16::from(a.abs_diff(*b)) * DIFFERENCE_GAIN).min(255) as u8;
    let rgb = dense.rgb.iter().zip(&pruned.rgb).map(colour).collect();
    Picture { width: dense.width, height: dense.height, rgb }
}

/// The mean of squares of pixels, as many on a side as bring the longer side to at most `side`.
fn reduced(picture: &Picture, side: u32) -> Picture {
    let by = picture.width.max(picture.height).div_ceil(side.max(1)).max(1);
    let (width, height) = (picture.width / by, picture.height / by);
    if by == 1 || width == 0 || height == 0 {
        return picture.clone();
    }
    let row = picture.width as usize * 3;
    let mut rgb = Vec::with_capacity((width * height * 3) as usize);
    for y in 0..height {
        for x in 0..width {
            for colour in 0..3 {
                let at = |i: u32, j: u32| (y * by + i) as usize * row + (x * by + j) as usize * 3 + colour;
                let pixels = (0..by).flat_map(|i| (0..by).map(move |j| (i, j)));
                let sum: u32 =
                    pixels.filter_map(|(i, j)| picture.rgb.get(at(i, j))).map(|c| u32::from(*c)).sum();
                rgb.push((sum / (by * by)) as u8);
            }
        }
    }
    Picture { width, height, rgb }
}

fn png(picture: &Picture) -> Option<String> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, picture.width, picture.height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().ok()?;
    writer.write_image_data(&picture.rgb).ok()?;
    writer.finish().ok()?;
    Some(uri("image/png", &file))
}

fn jpeg(picture: &Picture) -> Option<String> {
    let mut file = Vec::new();
    let (width, height) = (u16::try_from(picture.width).ok()?, u16::try_from(picture.height).ok()?);
    Encoder::new(&mut file, QUALITY).encode(&picture.rgb, width, height, ColorType::Rgb).ok()?;
    Some(uri("image/jpeg", &file))
}

fn uri(kind: &str, file: &[u8]) -> String {
    format!("data:{kind};base64,{}", STANDARD.encode(file))
}

#[cfg(test)]
mod tests {
    use obsdiff_tests::Prng;

    use super::*;

    /// A picture of noise, which no format makes small.
    fn noise(side: u32, seed: u32) -> Picture {
        let mut random = Prng::new(u64::from(seed));
        Picture {
            width: side,
            height: side,
            rgb: (0..side * side * 3).map(|_| random.next() as u8).collect(),
        }
    }

    fn sample(side: u32, seed: u32) -> Sample {
        let (dense, pruned) = (noise(side, seed), noise(side, seed + 1));
        Sample { prompt: None, seed: 0, dense, pruned, relative_error: 0.0 }
    }

    fn bytes(shown: &[PictureUris]) -> usize {
        shown.iter().map(|s| s.dense.len() + s.pruned.len() + s.difference.len()).sum()
    }

    #[test]
    fn small_pictures_stay_as_they_are_and_large_ones_fit_the_budget() {
        let small = shown(&[sample(16, 1)]);
        assert!(small[0].dense.starts_with("data:image/png;base64,"));
        let file = STANDARD.decode(&small[0].dense["data:image/png;base64,".len()..]).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().unwrap();
        let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut rgb).unwrap();
        assert_eq!(rgb, noise(16, 1).rgb);
        let large = shown(&(0..4).map(|i| sample(512, i)).collect::<Vec<_>>());
        assert!(large.len() == 4 && large[0].dense.starts_with("data:image/jpeg;base64,"));
        assert!(bytes(&large) <= BUDGET && bytes(&large) > BUDGET / 8, "{} bytes", bytes(&large));
    }

    #[test]
    fn differences_are_enlarged_and_reduction_takes_means() {
        let picture = |rgb: [u8; 12]| Picture { width: 2, height: 2, rgb: rgb.to_vec() };
        let (a, b) = (picture([10; 12]), picture([12, 10, 0, 255, 10, 10, 10, 10, 10, 10, 10, 10]));
        assert_eq!(difference(&a, &b).rgb, [8, 0, 40, 255, 0, 0, 0, 0, 0, 0, 0, 0]);
        let mean = reduced(&picture([0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14]), 1);
        assert_eq!((mean.width, mean.height, mean.rgb), (1, 1, vec![6, 7, 8]));
    }
}
