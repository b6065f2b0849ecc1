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
    let mut file = open_regular(path).map_err(|e| Error::file(path, e))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(|e| Error::file(path, e))? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The digests of files below `root`, by their paths from there on, in the order of these. Each is read once, several at a time.
///
/// # Errors
/// As [`sha256`].
pub fn digests(root: &Path, files: &[PathBuf]) -> Result<Vec<InputDigest>> {
    let mut files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    files.sort();
    files.dedup();
    let digest = |file: &&Path| {
        let path = file.strip_prefix(root).unwrap_or(file).display().to_string();
        Ok(InputDigest { path, sha256: sha256(file)? })
    };
    // One by one: a large file does not wait for a thread that has others still to read.
    files.par_iter().with_max_len(1).map(digest).collect()
}
