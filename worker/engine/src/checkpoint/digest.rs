//! SHA-256 of files, in hexadecimal.

use std::io::Read;
use std::path::{Path, PathBuf};

use obsdiff_files::open_regular;
use obsdiff_proto::InputDigest;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// The SHA-256 of a file's content as 64 hexadecimal digits.
///
/// # Errors
/// When the file is not a regular one, or cannot be read.
pub fn sha256(path: &Path) -> Result<String> {
    digest(path, &|| ())
}

/// The same, and calls `on_read` after every MiB.
fn digest(path: &Path, on_read: &(dyn Fn() + Sync)) -> Result<String> {
    let mut file = open_regular(path).map_err(|e| Error::file(path, e))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(|e| Error::file(path, e))? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
        on_read();
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The digests of files below `root`, by their paths from there on, in the order of these. Each is read once, several at a time;
/// `on_read` is called as the reading goes on.
///
/// # Errors
/// As [`sha256`].
pub fn digests(root: &Path, files: &[PathBuf], on_read: &(dyn Fn() + Sync)) -> Result<Vec<InputDigest>> {
    let mut files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    files.sort();
    files.dedup();
    let named = |file: &&Path| {
        let path = file.strip_prefix(root).unwrap_or(file).display().to_string();
        Ok(InputDigest { path, sha256: digest(file, on_read)? })
    };
    // One by one: a large file does not wait for a thread that has others still to read.
    files.par_iter().with_max_len(1).map(named).collect()
}
