//! Whether processes use something on the disk, which nobody may remove meanwhile. The system ends a use with its process, even if that is
//! killed.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

use rustix::fs::{Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

use crate::lock::{is_at, open, uninterrupted};

/// This process uses what a file stands for, until this is dropped. Others may use it at the same time. The file's time of modification
/// says when it was used last.
#[derive(Debug)]
pub struct InUse {
    /// None on a file system that nobody can write: nobody can remove anything there either.
    file: Option<File>,
}

/// No process uses what a file stands for, and none begins to, until this is dropped.
#[derive(Debug)]
pub struct Unused {
    /// Keeps the lock.
    _file: File,
}

impl InUse {
    /// Begins to use what this file stands for, which is made where there is none, unless its file system is read-only. Waits while another
    /// process has it as [`Unused`].
    ///
    /// # Errors
    /// When the file cannot be made: not found where that process has removed its folder, too.
    pub fn begin(path: &Path) -> io::Result<Self> {
        loop {
            let file = match open_to_use(path) {
                Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                    return Ok(Self { file: None });
                }
                opened => opened?,
            };
            if let Err(error) = uninterrupted(|| file.lock_shared()) {
                tracing::warn!(path = %path.display(), %error,
                    "this file system has no locks: nothing keeps others from removing what this process uses");
            }
            // Whoever had it as unused may have removed it.
            if is_at(&file, path)? {
                match touch(&file) {
                    Err(error) if !is_read_only(&error) => return Err(error),
                    _ => return Ok(Self { file: Some(file) }),
                }
            }
        }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        // It was used until now. Otherwise it counts as used last when that began.
        if let Some(file) = &self.file {
            let _ = touch(file);
        }
    }
}

impl Unused {
    /// Keeps processes from using what this file stands for; none where one does. The file is made where there is none.
    ///
    /// # Errors
    /// When the file cannot be made, or its file system has no locks.
    pub fn take(path: &Path) -> io::Result<Option<Self>> {
        loop {
            let file = open(path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            if is_at(&file, path)? {
                return Ok(Some(Self { _file: file }));
            }
        }
    }
}

/// Opens the file; only to read it where this process may write nothing there.
fn open_to_use(path: &Path) -> io::Result<File> {
    match open(path) {
        Err(error) if is_read_only(&error) => File::open(path).map_err(|_| error),
        opened => opened,
    }
}

fn is_read_only(error: &io::Error) -> bool {
    // A file that is open to be read cannot be touched by others than its owner.
    matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied)
}

fn touch(file: &File) -> io::Result<()> {
    let [now, as_it_is] = [UTIME_NOW, UTIME_OMIT].map(|tv_nsec| Timespec { tv_sec: 0, tv_nsec });
    let times = Timestamps { last_access: as_it_is, last_modification: now };
    Ok(rustix::fs::futimens(file, &times)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn many_use_what_nobody_may_remove_meanwhile() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        let uses = [(); 2].map(|()| InUse::begin(&path).unwrap());
        for one in uses {
            assert!(Unused::take(&path).unwrap().is_none());
            drop(one);
        }
        let unused = Unused::take(&path).unwrap().unwrap();
        assert!(Unused::take(&path).unwrap().is_none());
        drop(unused);
        InUse::begin(&path).unwrap();
    }

    #[test]
    fn a_job_that_begins_while_it_is_removed_waits_and_finds_nothing_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        let unused = Unused::take(&path).unwrap().unwrap();
        let (begins, begun) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                begins.send(()).unwrap();
                let used = InUse::begin(&path).unwrap();
                assert!(path.exists(), "the removed file is used");
                used
            });
            begun.recv().unwrap();
            fs::remove_file(&path).unwrap();
            drop(unused);
            let used = waiting.join().unwrap();
            assert!(Unused::take(&path).unwrap().is_none());
            drop(used);
        });
    }

    #[test]
    fn the_time_of_the_last_use_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        let used = InUse::begin(&path).unwrap();
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let set = |file: &File| file.set_modified(long_ago).unwrap();
        let modified = || path.metadata().unwrap().modified().unwrap();
        set(used.file.as_ref().unwrap());
        drop(used);
        assert!(modified() > long_ago);
        set(&open(&path).unwrap());
        Unused::take(&path).unwrap().unwrap();
        assert_eq!(modified(), long_ago, "to look is to use");
        InUse::begin(&path).unwrap();
        assert!(modified() > long_ago);
    }
}
