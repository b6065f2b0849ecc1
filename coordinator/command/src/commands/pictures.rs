//! What `sample` and `compare` share.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use obsdiff_engine::device::ComputeDevice;
use obsdiff_engine::pipeline::{Picture, PipelineFolder};
use obsdiff_files::{Overlap, ResolvedPath};

use crate::writing::try_writing;
use crate::{Error, Result, picture};

/// White pixels between the pictures of a grid.
const GAP: u32 = 4;
/// Pictures in a row of a grid.
pub(super) const COLUMNS: usize = 8;

/// The engine names the key of a job that an argument comes from; here it came from a flag.
pub(super) fn argument_of_flag(error: Error) -> Error {
    match error {
        Error::Engine(obsdiff_engine::Error::Argument(problem)) => {
            let problem =
                problem.replace("`calibration.", "`--").replace("max_sequence_length", "max-sequence-length");
            let problem = problem.replace("true_guidance", "true-guidance");
            obsdiff_engine::Error::Argument(problem).into()
        }
        other => other,
    }
}

/// Refuses a place that could not be written to, that lies in one of the `inputs`, or where one of the `files` that will be written is
/// there and is not obsdiff's; all of this before any work. Returns the folder that the place is in.
pub(super) fn check_out<'a>(path: &'a Path, files: &[PathBuf], inputs: &[&Path]) -> Result<&'a Path> {
    let folder = check_place(path, "--out", inputs)?;
    files.iter().try_for_each(|file| picture::check_replaceable(file))?;
    Ok(folder)
}

/// Refuses the place that a `flag` gives, where it could not be written to or lies in one of the `inputs`. Returns the folder that it is
/// in.
pub(super) fn check_place<'a>(path: &'a Path, flag: &str, inputs: &[&Path]) -> Result<&'a Path> {
    let folder = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    match folder.metadata() {
        Ok(found) if found.is_dir() => {}
        Ok(_) => {
            return Err(Error::content(
                folder,
                "is not a folder, so nothing can be written there: choose another place",
            ));
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return Err(Error::content(folder, "no such folder: make it first, or choose another place"));
        }
        Err(e) => return Err(Error::file(folder, e)),
    }
    let place = |path: &Path| ResolvedPath::of(path).map_err(|e| Error::file(path, e));
    for input in inputs {
        if matches!(place(path)?.overlap(&place(input)?), Some(Overlap::Same | Overlap::Inside)) {
            let problem = format!("lies in {}, which is only read: choose another {flag}", input.display());
            return Err(Error::content(path, problem));
        }
    }
    try_writing(path).map_err(|e| Error::file(path, e))?;
    Ok(folder)
}

/// Formats that other programs write pictures in, by the extensions of their files.
const OTHER_FORMATS: [&str; 13] =
    ["apng", "avif", "bmp", "gif", "heic", "jpeg", "jpg", "jxl", "ppm", "svg", "tif", "tiff", "webp"];

/// Refuses a place for one picture or a folder of them that names a file which is not written.
pub(super) fn check_format(path: &Path) -> Result<()> {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
    let other = extension.is_some_and(|extension| OTHER_FORMATS.contains(&extension.as_str()));
    if other {
        Err(Error::content(
            path,
            "is not a .png file: give one for a grid of all pictures, or a folder for a file a prompt",
        ))
    } else {
        Ok(())
    }
}

pub(super) fn is_png(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png"))
}

/// Decodes final latents into pictures on a device, which has room for that once transformers are gone.
pub(super) fn decode(
    pipeline: &PipelineFolder,
    latents: &Tensor,
    device: &ComputeDevice,
) -> Result<Vec<Picture>> {
    device.release_unused()?;
    let decoded = pipeline.vae(device)?.decode(latents)?;
    Ok(Picture::of_batch(&decoded)?)
}

pub(super) fn write_grid(rows: &[Vec<Picture>], path: &Path) -> Result<()> {
    picture::write_png(&picture::grid(rows, GAP), path)
}
