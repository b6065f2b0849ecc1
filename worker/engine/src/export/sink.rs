//! What takes the files of a pipeline as they are written.

use std::io::Write;
use std::path::Path;

use crate::Result;

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
