//! What takes the files of a pipeline as they are written.

use std::io::Write;
use std::path::Path;

use super::file_name;
use super::source::entries;
use crate::{Error, Result};

/// Deeper trees than this are not pipelines.
const MAX_DEPTH: usize = 8;

/// Writes a file, whose path messages name, as a stream of bytes.
pub(super) type Fill<'a> = dyn FnMut(&Path, &mut dyn Write) -> Result<()> + 'a;

/// Takes the files of a pipeline, by their paths in it.
pub(super) trait Sink {
    /// Makes a folder.
    fn create_folder(&mut self, name: &str) -> Result<()>;

    /// Takes a copy of a file; `link` allows to give it a second name instead.
    fn copy_file(&mut self, from: &Path, name: &str, link: bool) -> Result<()>;

    /// Writes a small file.
    fn write(&mut self, name: &str, content: &[u8]) -> Result<()>;

    /// Writes a file of about so many bytes, whose content `fill` makes.
    fn stream(&mut self, name: &str, bytes: u64, fill: &mut Fill<'_>) -> Result<()>;
}

/// Copies those files of a folder, and of the folders in it, whose names `keep` approves.
pub(super) fn copy_folder(
    sink: &mut dyn Sink,
    from: &Path,
    name: &str,
    link: bool,
    keep: &dyn Fn(&str) -> bool,
) -> Result<()> {
    if Path::new(name).components().count() > MAX_DEPTH {
        return Err(Error::content(from, format!("lies more than {MAX_DEPTH} folders deep")));
    }
    sink.create_folder(name)?;
    for path in entries(from)? {
        let file = file_name(&path);
        let name = format!("{name}/{file}");
        if path.is_dir() {
            copy_folder(sink, &path, &name, link, keep)?;
        } else if keep(&file) {
            sink.copy_file(&path, &name, link)?;
        }
    }
    Ok(())
}
