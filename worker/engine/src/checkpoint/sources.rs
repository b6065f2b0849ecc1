//! The files that decide what a pipeline computes, and whether they are still what they were when a job began.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use obsdiff_files::open_regular;
use obsdiff_proto::InputDigest;
use rayon::prelude::*;

use super::digest::digest;
use crate::{Error, Result};

/// The files that decide what a pipeline computes, each as it was when the pipeline was opened.
///
/// A job reads them at several times, for hours: for their digests, to load the model, for the output. What it computes belongs to the
/// digests only while nobody writes to a file or puts another one in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFiles(BTreeMap<PathBuf, Stamp>);

/// By what a file is known to be the same as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    modified: SystemTime,
}

impl Stamp {
    /// That of the file that is at `path` now. It is opened, because a network disk asks its server then, and may answer from its memory
    /// otherwise.
    fn of(path: &Path) -> Result<Self> {
        let metadata = open_regular(path).and_then(|file| file.metadata());
        let stamp = metadata.and_then(|found| Ok(Self { bytes: found.len(), modified: found.modified()? }));
        stamp.map_err(|e| Error::file(path, e))
    }
}

impl SourceFiles {
    /// Notes files as they are now.
    ///
    /// # Errors
    /// When one is not a regular file, or is missing.
    pub fn open(paths: impl IntoIterator<Item = PathBuf>) -> Result<Self> {
        let stamped = |path: PathBuf| Stamp::of(&path).map(|stamp| (path, stamp));
        Ok(Self(paths.into_iter().map(stamped).collect::<Result<_>>()?))
    }

    /// Where they are, in order.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.keys().map(PathBuf::as_path)
    }

    /// Their sizes in bytes, in the order of [`Self::paths`].
    pub fn sizes(&self) -> impl Iterator<Item = u64> {
        self.0.values().map(|stamp| stamp.bytes)
    }

    /// Their digests by their paths below `root`, in the order of these. Each is read once, several at a time; `on_read` is called as the
    /// reading goes on.
    ///
    /// # Errors
    /// When one cannot be read, or is no longer what it was.
    pub fn digests(&self, root: &Path, on_read: &(dyn Fn() + Sync)) -> Result<Vec<InputDigest>> {
        let named = |file: &&Path| {
            let path = file.strip_prefix(root).unwrap_or(file).display().to_string();
            Ok(InputDigest { path, sha256: digest(file, on_read)? })
        };
        let files: Vec<&Path> = self.paths().collect();
        // One by one: a large file does not wait for a thread that has others still to read.
        let digests = files.par_iter().with_max_len(1).map(named).collect::<Result<_>>()?;
        self.check_unchanged()?;
        Ok(digests)
    }

    /// Checks that every file is still what it was: as many bytes, written last when it was then. Whoever passes on what was computed
    /// from them asks first.
    ///
    /// # Errors
    /// [`Error::Changed`] for the first that is not; when one cannot be opened.
    pub fn check_unchanged(&self) -> Result<()> {
        for (path, stamp) in &self.0 {
            if Stamp::of(path)? != *stamp {
                return Err(Error::Changed { path: path.clone() });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::checkpoint::sha256;

    #[test]
    fn a_digest_of_large_files_says_that_it_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["a", "b"].map(|name| folder.path().join(name));
        paths.iter().for_each(|path| fs::write(path, vec![7; 3 << 20]).unwrap());
        let reads = AtomicU64::new(0);
        let count = || {
            reads.fetch_add(1, Ordering::SeqCst);
        };
        let files = SourceFiles::open(paths.clone()).unwrap();
        let found = files.digests(folder.path(), &count).unwrap();
        assert!(reads.into_inner() >= 6);
        let alone = paths.each_ref().map(|path| sha256(path).unwrap());
        assert_eq!(found.iter().map(|input| input.sha256.clone()).collect::<Vec<_>>(), alone);
        assert_eq!(found.iter().map(|input| &*input.path).collect::<Vec<_>>(), ["a", "b"]);
        assert!(files.paths().eq(&paths) && files.sizes().eq([3 << 20; 2]));
    }

    #[test]
    fn a_file_that_is_written_to_or_replaced_or_removed_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        let write = |content: &str, seconds: u64| {
            fs::write(&path, content).unwrap();
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        };
        write("dense", 1000);
        let files = SourceFiles::open([path.clone()]).unwrap();
        let found = || files.check_unchanged().map_err(|error| error.to_string());
        found().unwrap();
        let changed = format!("{}: was changed", path.display());
        for (content, seconds) in [("DENSE", 1001), ("dense", 999), ("dense and more", 1000)] {
            write(content, seconds);
            assert!(found().unwrap_err().starts_with(&changed), "{content} at {seconds}");
            let digests = files.digests(folder.path(), &|| ()).unwrap_err();
            assert!(matches!(digests, Error::Changed { .. }), "{digests}");
        }
        // Put back as it was.
        write("dense", 1000);
        found().unwrap();
        fs::remove_file(&path).unwrap();
        assert!(found().unwrap_err().starts_with(&format!("{}: No such file", path.display())));
    }
}
