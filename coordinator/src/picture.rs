//! Pictures: from a decoder's numbers to PNG files, grids, and the noise between two of them.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use crate::{Error, Result};

/// An RGB picture of 8 bits a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    height: usize,
    /// Row-major, three bytes a pixel.
    rgb: Vec<u8>,
}

impl Picture {
    /// A picture of one colour.
    pub fn filled(width: usize, height: usize, colour: [u8; 3]) -> Self {
        Self { width, height, rgb: colour.repeat(width * height) }
    }

    /// From a decoder's output: `3 x height x width` numbers in -1..1, rounded and cut as diffusers does. None where there are not
    /// as many numbers, or where one is not finite.
    pub fn from_planes(planes: &[f32], height: usize, width: usize) -> Option<Self> {
        let size = height.checked_mul(width)?;
        if planes.len() != size.checked_mul(3)? || planes.iter().any(|x| !x.is_finite()) {
            return None;
        }
        let byte = |x: f32| ((x / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
        let rgb = (0..size).flat_map(|i| [0, 1, 2].map(|plane| byte(planes[plane * size + i]))).collect();
        Some(Self { width, height, rgb })
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The colour of a pixel; black outside the picture.
    pub fn pixel(&self, x: usize, y: usize) -> [u8; 3] {
        let at = (y * self.width + x) * 3;
        match self.rgb.get(at..at + 3) {
            Some(&[r, g, b]) if x < self.width => [r, g, b],
            _ => [0; 3],
        }
    }

    /// Rows of pictures on white, `gap` pixels between them. Pictures of a column stand below each other at the column's widest.
    pub fn grid(rows: &[Vec<Picture>], gap: usize) -> Self {
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let column_width =
            |c: usize| rows.iter().filter_map(|row| row.get(c)).map(|p| p.width).max().unwrap_or(0);
        let row_height = |row: &Vec<Picture>| row.iter().map(|p| p.height).max().unwrap_or(0);
        let gaps = |count: usize| gap * count.saturating_sub(1);
        let width = (0..columns).map(column_width).sum::<usize>() + gaps(columns);
        let height = rows.iter().map(row_height).sum::<usize>() + gaps(rows.len());
        let mut grid = Self::filled(width, height, [255; 3]);
        let mut top = 0;
        for row in rows {
            let mut left = 0;
            for (column, picture) in row.iter().enumerate() {
                grid.paste(picture, left, top);
                left += column_width(column) + gap;
            }
            top += row_height(row) + gap;
        }
        grid
    }

    fn paste(&mut self, picture: &Picture, left: usize, top: usize) {
        if picture.width == 0 {
            return;
        }
        for (y, row) in picture.rgb.chunks_exact(picture.width * 3).enumerate() {
            let at = ((top + y) * self.width + left) * 3;
            self.rgb[at..at + row.len()].copy_from_slice(row);
        }
    }

    /// Writes the picture as a PNG file, over one that is there.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_png(&self, path: &Path) -> Result<()> {
        let size = |n: usize| {
            u32::try_from(n).map_err(|_| Error::content(path, "would be wider or higher than a PNG can be"))
        };
        let file = File::create(path).map_err(|e| Error::file(path, e))?;
        let mut encoder = png::Encoder::new(BufWriter::new(file), size(self.width)?, size(self.height)?);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let written = encoder.write_header().and_then(|mut writer| {
            writer.write_image_data(&self.rgb)?;
            writer.finish()
        });
        written.map_err(|e| match e {
            png::EncodingError::IoError(e) => Error::file(path, e),
            other => Error::content(path, other.to_string()),
        })
    }

    /// Peak signal-to-noise ratio against a picture of the same size, in decibels: 10 log10(255^2 / mean squared error); infinite
    /// where they are equal. None where their sizes differ.
    pub fn psnr(&self, other: &Self) -> Option<f64> {
        if (self.width, self.height) != (other.width, other.height) || self.rgb.is_empty() {
            return None;
        }
        let square = |(a, b): (&u8, &u8)| (f64::from(*a) - f64::from(*b)).powi(2);
        let mean = self.rgb.iter().zip(&other.rgb).map(square).sum::<f64>() / self.rgb.len() as f64;
        Some(10.0 * (255.0f64.powi(2) / mean).log10())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decoders_range_becomes_bytes_as_in_diffusers() {
        let planes = [-1.0, 1.0, 0.0, -3.0, 0.5, 7.0];
        let picture = Picture::from_planes(&planes, 1, 2).unwrap();
        assert_eq!(picture.rgb, [0, 128, 191, 255, 0, 255]);
        assert_eq!((picture.pixel(1, 0), picture.pixel(2, 0)), ([255, 0, 255], [0; 3]));
        assert_eq!(Picture::from_planes(&planes, 2, 2), None);
        assert_eq!(Picture::from_planes(&[f32::NAN; 3], 1, 1), None);
    }

    #[test]
    fn a_png_reads_back_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.png");
        let planes: Vec<f32> = (0..3 * 5 * 7).map(|i| (i as f32).sin()).collect();
        let picture = Picture::from_planes(&planes, 5, 7).unwrap();
        picture.write_png(&path).unwrap();
        let mut reader =
            png::Decoder::new(std::io::BufReader::new(File::open(&path).unwrap())).read_info().unwrap();
        let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut rgb).unwrap();
        assert_eq!((info.width, info.height, info.color_type), (7, 5, png::ColorType::Rgb));
        assert_eq!(rgb, picture.rgb);
        let error = picture.write_png(&dir.path().join("absent/p.png")).unwrap_err().line();
        assert!(error.contains("absent/p.png: No such file"), "{error}");
    }

    #[test]
    fn a_grid_sets_rows_below_each_other() {
        let (red, blue) = (Picture::filled(2, 2, [255, 0, 0]), Picture::filled(3, 1, [0, 0, 255]));
        let grid = Picture::grid(&[vec![red.clone(), blue.clone()], vec![blue]], 1);
        assert_eq!((grid.width(), grid.height()), (3 + 1 + 3, 2 + 1 + 1));
        let is = |x, y, colour| assert_eq!(grid.pixel(x, y), colour, "{x},{y}");
        is(1, 1, [255, 0, 0]);
        is(2, 0, [255; 3]);
        is(4, 0, [0, 0, 255]);
        is(4, 1, [255; 3]);
        is(0, 2, [255; 3]);
        is(2, 3, [0, 0, 255]);
    }

    #[test]
    fn psnr_follows_its_formula() {
        let (a, b) = (Picture::filled(4, 4, [10; 3]), Picture::filled(4, 4, [20; 3]));
        let psnr = a.psnr(&b).unwrap();
        assert!((psnr - 10.0 * (65025.0f64 / 100.0).log10()).abs() < 1e-9, "{psnr}");
        assert_eq!(a.psnr(&a), Some(f64::INFINITY));
        assert_eq!(a.psnr(&Picture::filled(4, 3, [10; 3])), None);
    }
}
