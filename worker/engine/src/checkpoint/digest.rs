//! SHA-256 of files, in hexadecimal.

use std::io::Read;
use std::path::{Path, PathBuf};

use obsdiff_files::open_regular;
use obsdiff_proto::{Hasher, InputDigest};
use rayon::prelude::*;

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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn a_digest_of_large_files_says_that_it_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let files = ["a", "b"].map(|name| folder.path().join(name));
        files.iter().for_each(|file| fs::write(file, vec![7; 3 << 20]).unwrap());
        let reads = AtomicU64::new(0);
        let count = || {
            reads.fetch_add(1, Ordering::SeqCst);
        };
        let found = digests(folder.path(), &files, &count).unwrap();
        assert!(reads.into_inner() >= 6);
        let alone = files.each_ref().map(|file| sha256(file).unwrap());
        assert_eq!(found.iter().map(|input| input.sha256.clone()).collect::<Vec<_>>(), alone);
    }
}
