//! Pictures as files: PNG, grids, and the noise between two pictures.

use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::Path;

use obsdiff_engine::pipeline::Picture;

use crate::writing::{put_in_place, unfinished_beside};
use crate::{Error, Result};

/// The text chunk by which a picture of obsdiff's is known, as the PNG standard names it.
const SOFTWARE: (&str, &str) = ("Software", "obsdiff");

/// A white picture.
pub fn blank(width: u32, height: u32) -> Picture {
    Picture { width, height, rgb: vec![255; width as usize * height as usize * 3] }
}

/// Rows of pictures on white, `gap` pixels between them. A column is as wide as its widest picture, a row as high as its highest. Copying
/// rows of pixels needs no crate for images beside `png`.
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

/// Writes a picture as a PNG file that says it is obsdiff's. The file appears whole or not at all, and replaces a picture of obsdiff's.
///
/// # Errors
/// When another file is there, or the file cannot be written.
pub fn write_png(picture: &Picture, path: &Path) -> Result<()> {
    check_replaceable(path)?;
    let failed = |e| Error::file(path, e);
    // A link stays: what it leads to is replaced.
    let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut file = unfinished_beside(&target, ".png").map_err(failed)?;
    let mut encoder = png::Encoder::new(BufWriter::new(file.as_file_mut()), picture.width, picture.height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let written = encoder.add_text_chunk(SOFTWARE.0.to_owned(), SOFTWARE.1.to_owned());
    let written = written.and_then(|()| encoder.write_header()).and_then(|mut writer| {
        writer.write_image_data(&picture.rgb)?;
        writer.finish()
    });
    written.map_err(|e| match e {
        png::EncodingError::IoError(e) => failed(e),
        other => Error::content(path, other.to_string()),
    })?;
    put_in_place(file, (path, &target), || check_replaceable(path))
}

/// Refuses a path where something is that obsdiff did not write.
///
/// # Errors
/// When something else than a picture of obsdiff's is there.
pub fn check_replaceable(path: &Path) -> Result<()> {
    let Ok(found) = path.symlink_metadata() else { return Ok(()) };
    // Only a plain file is opened: anything else may wait for ever, or not be a file at all.
    let is_file = found.is_file() || (found.is_symlink() && path.is_file());
    if is_file && is_ours(path) {
        Ok(())
    } else {
        let problem = "exists and is no picture that obsdiff wrote: choose another --out, or move it away";
        Err(Error::content(path, problem))
    }
}

/// Whether a file is a picture that says it is obsdiff's.
fn is_ours(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    let Ok(reader) = png::Decoder::new(BufReader::new(file)).read_info() else { return false };
    let texts = &reader.info().uncompressed_latin1_text;
    texts.iter().any(|text| (text.keyword.as_str(), text.text.as_str()) == SOFTWARE)
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
        write_png(&blank(2, 2), &path).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file is left");
        let error = write_png(&picture, &dir.path().join("absent/p.png")).unwrap_err().line();
        assert!(error.contains("absent/p.png: No such file"), "{error}");
    }

    #[test]
    fn only_a_picture_of_obsdiffs_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let refused = |name: &str| write_png(&blank(1, 1), &path(name)).unwrap_err().line();
        std::fs::write(path("notes.png"), "mine").unwrap();
        let theirs = png::Encoder::new(File::create(path("photo.png")).unwrap(), 1, 1);
        theirs.write_header().unwrap().write_image_data(&[0]).unwrap();
        std::fs::create_dir(path("folder.png")).unwrap();
        std::os::unix::fs::symlink("notes.png", path("link.png")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", path("device.png")).unwrap();
        for name in ["notes.png", "photo.png", "folder.png", "link.png", "device.png"] {
            assert!(refused(name).contains(&format!("{name}: exists and is no picture that obsdiff wrote")));
        }
        assert_eq!(std::fs::read_to_string(path("notes.png")).unwrap(), "mine");
        // A link to a picture of obsdiff's stays a link.
        write_png(&blank(1, 1), &path("ours.png")).unwrap();
        std::os::unix::fs::symlink("ours.png", path("to-ours.png")).unwrap();
        write_png(&blank(2, 2), &path("to-ours.png")).unwrap();
        assert!(path("to-ours.png").is_symlink() && is_ours(&path("ours.png")));
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
