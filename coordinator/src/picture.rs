//! Pictures as files: PNG, grids, and the noise between two pictures.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use obsdiff_engine::pipeline::Picture;

use crate::{Error, Result};

/// A white picture.
pub fn blank(width: u32, height: u32) -> Picture {
    Picture { width, height, rgb: vec![255; width as usize * height as usize * 3] }
}

/// Rows of pictures on white, `gap` pixels between them. A column is as wide as its widest picture, a row as high as its highest.
pub fn grid(rows: &[Vec<Picture>], gap: u32) -> Picture {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let column_width =
        |c: usize| rows.iter().filter_map(|row| row.get(c)).map(|p| p.width).max().unwrap_or(0);
    let row_height = |row: &Vec<Picture>| row.iter().map(|p| p.height).max().unwrap_or(0);
    let gaps = |count: usize| gap * count.saturating_sub(1) as u32;
    let mut grid = blank(
        (0..columns).map(column_width).sum::<u32>() + gaps(columns),
        rows.iter().map(row_height).sum::<u32>() + gaps(rows.len()),
    );
    let mut top = 0;
    for row in rows {
        let mut left = 0;
        for (column, picture) in row.iter().enumerate() {
            paste(&mut grid, picture, left, top);
            left += column_width(column) + gap;
        }
        top += row_height(row) + gap;
    }
    grid
}

fn paste(onto: &mut Picture, picture: &Picture, left: u32, top: u32) {
    let width = picture.width as usize * 3;
    for (y, row) in picture.rgb.chunks_exact(width.max(1)).enumerate() {
        let at = ((top as usize + y) * onto.width as usize + left as usize) * 3;
        onto.rgb[at..at + width].copy_from_slice(row);
    }
}

/// Writes a picture as a PNG file, over one that is there.
///
/// # Errors
/// When the file cannot be written.
pub fn write_png(picture: &Picture, path: &Path) -> Result<()> {
    let file = File::create(path).map_err(|e| Error::file(path, e))?;
    let mut encoder = png::Encoder::new(BufWriter::new(file), picture.width, picture.height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let written = encoder.write_header().and_then(|mut writer| {
        writer.write_image_data(&picture.rgb)?;
        writer.finish()
    });
    written.map_err(|e| match e {
        png::EncodingError::IoError(e) => Error::file(path, e),
        other => Error::content(path, other.to_string()),
    })
}

/// Peak signal-to-noise ratio of two pictures of the same size, in decibels: 10 log10(255^2 / mean squared error); infinite where they
/// are equal. None where their sizes differ, or they are empty.
pub fn psnr(a: &Picture, b: &Picture) -> Option<f64> {
    if (a.width, a.height) != (b.width, b.height) || a.rgb.is_empty() {
        return None;
    }
    let square = |(a, b): (&u8, &u8)| (f64::from(*a) - f64::from(*b)).powi(2);
    let mean = a.rgb.iter().zip(&b.rgb).map(square).sum::<f64>() / a.rgb.len() as f64;
    Some(10.0 * (255.0f64.powi(2) / mean).log10())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(width: u32, height: u32, colour: [u8; 3]) -> Picture {
        Picture { width, height, rgb: colour.repeat((width * height) as usize) }
    }

    #[test]
    fn a_png_reads_back_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.png");
        let picture = Picture { width: 7, height: 5, rgb: (0..105).collect() };
        write_png(&picture, &path).unwrap();
        let mut reader =
            png::Decoder::new(std::io::BufReader::new(File::open(&path).unwrap())).read_info().unwrap();
        let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut rgb).unwrap();
        assert_eq!((info.width, info.height, info.color_type), (7, 5, png::ColorType::Rgb));
        assert_eq!(rgb, picture.rgb);
        let error = write_png(&picture, &dir.path().join("absent/p.png")).unwrap_err().line();
        assert!(error.contains("absent/p.png: No such file"), "{error}");
    }

    #[test]
    fn a_grid_sets_rows_below_each_other() {
        let (red, blue) = (filled(2, 2, [255, 0, 0]), filled(3, 1, [0, 0, 255]));
        let grid = grid(&[vec![red.clone(), blue.clone()], vec![blue]], 1);
        assert_eq!((grid.width, grid.height), (3 + 1 + 3, 2 + 1 + 1));
        let is = |x: usize, y: usize, colour: [u8; 3]| {
            assert_eq!(grid.rgb[(y * 7 + x) * 3..][..3], colour, "{x},{y}")
        };
        is(1, 1, [255, 0, 0]);
        is(2, 0, [255; 3]);
        is(4, 0, [0, 0, 255]);
        is(4, 1, [255; 3]);
        is(0, 2, [255; 3]);
        is(2, 3, [0, 0, 255]);
    }

    #[test]
    fn psnr_follows_its_formula() {
        let (a, b) = (filled(4, 4, [10; 3]), filled(4, 4, [20; 3]));
        let found = psnr(&a, &b).unwrap();
        assert!((found - 10.0 * (65025.0f64 / 100.0).log10()).abs() < 1e-9, "{found}");
        assert_eq!(psnr(&a, &a), Some(f64::INFINITY));
        assert_eq!(psnr(&a, &filled(4, 3, [10; 3])), None);
    }
}
