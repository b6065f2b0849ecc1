//! SHA-256 of files, in hexadecimal.

use std::io::Read;
use std::path::Path;

use obsdiff_files::open_regular;
use obsdiff_proto::Hasher;

use crate::{Error, Result};

/// The SHA-256 of a file's content as 64 hexadecimal digits.
///
/// # Errors
/// When the file is not a regular one, or cannot be read.
pub fn sha256(path: &Path) -> Result<String> {
    digest(path, &|| ())
}

/// The same, and calls `on_read` after every MiB.
pub(super) fn digest(path: &Path, on_read: &(dyn Fn() + Sync)) -> Result<String> {
    let mut file = open_regular(path).map_err(|e| Error::file(path, e))?;
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(|e| Error::file(path, e))? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
        on_read();
    }
    Ok(hasher.finish().to_string())
}
