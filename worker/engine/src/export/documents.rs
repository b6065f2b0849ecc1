//! Files of a pipeline that say in words how it was pruned. Other crates write their text, from the record.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use obsdiff_files::{Disk, open_regular};

use super::staging::replace_file;
use crate::{Error, Result};

/// A comment, in HTML and in Markdown, by which a document of obsdiff's is known.
pub const DOCUMENT_MARK: &str = "<!-- written by obsdiff -->";

/// Bytes in which the mark is looked for.
const MARK_WITHIN: u64 = 64 << 10;

/// A file at the top of a pipeline that describes it in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// The file's name.
    pub name: &'static str,
    /// Its text, which holds [`DOCUMENT_MARK`] near its start.
    pub text: String,
}

impl Document {
    /// Whether a file may be replaced by a document: there is none, or obsdiff has written it.
    ///
    /// # Errors
    /// When it is not a regular file, or cannot be read.
    pub fn may_replace(path: &Path) -> io::Result<bool> {
        if path.symlink_metadata().is_err() {
            return Ok(true);
        }
        let mut start = Vec::new();
        let file: File = open_regular(path)?;
        file.take(MARK_WITHIN).read_to_end(&mut start)?;
        Ok(Self::is_marked(&start))
    }

    /// Whether the start of a file shows that obsdiff has written it.
    pub fn is_marked(start: &[u8]) -> bool {
        let start = &start[..start.len().min(MARK_WITHIN as usize)];
        String::from_utf8_lossy(start).contains(DOCUMENT_MARK)
    }

    /// Writes it into a pipeline, in place of an earlier one. Whenever that is interrupted, one of the two is there, whole.
    pub(super) fn replace(&self, pipeline: &Path, disk: &Disk) -> Result<()> {
        let path = pipeline.join(self.name);
        if !Self::may_replace(&path).map_err(|e| Error::file(&path, e))? {
            let problem = "was not written by obsdiff and is in the way: move it away";
            return Err(Error::content(path, problem));
        }
        replace_file(&path, self.text.as_bytes(), disk)
    }
}
