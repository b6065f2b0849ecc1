//! The one place that maps a file into memory.
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use memmap2::{Mmap, UncheckedAdvice};
use obsdiff_files::{in_hole, open_regular};

use crate::{Error, Result};

/// Bytes around one that is read which Linux maps with it (`fault_around_bytes`).
const MAPPED_AROUND: usize = 64 << 10;

/// A read-only file mapped into memory.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    file: File,
    map: Mmap,
}

impl MappedFile {
    /// Maps `path`.
    ///
    /// # Errors
    /// When it cannot be opened or mapped, or is not a regular file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = open_regular(path).map_err(|e| Error::file(path, e))?;
        // SAFETY: the mapping is private and read-only, and every value in it is a plain number for which any bit pattern is valid.
        // What remains undefined is that another process shortens the file meanwhile; like every reader that maps checkpoints,
        // we ask of our user not to change a model while it is being pruned.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::file(path, e))?;
        Ok(Self { path: path.to_owned(), file, map })
    }

    /// Gives the memory of bytes that were read back to the system, so that reading a checkpoint once does not count it twice in the
    /// process's memory. They are read from the file again when looked at again.
    pub(super) fn release(&self, bytes: Range<usize>) {
        // The kernel has mapped what lies around them, too.
        let start = bytes.start.saturating_sub(MAPPED_AROUND);
        let bytes = start..self.map.len().min(bytes.end.saturating_add(MAPPED_AROUND));
        // SAFETY: the pages of a read-only file mapping are clean; dropping them changes no byte that a borrow can see.
        let released =
            unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, bytes.start, bytes.len()) };
        if let Err(error) = released {
            tracing::debug!(path = %self.path.display(), %error, "the system kept the pages of a mapped file");
        }
    }

    /// Whether these bytes lie in a hole of the file, and are therefore zeros that need not be read.
    ///
    /// # Errors
    /// When the file system does not answer.
    pub(super) fn in_hole(&self, bytes: &Range<usize>) -> Result<bool> {
        in_hole(&self.file, bytes.start as u64..bytes.end as u64).map_err(|e| Error::file(&self.path, e))
    }

    /// The file that is mapped.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}
