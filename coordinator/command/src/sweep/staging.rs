//! The folder that a sweep works in, which is removed at its end; and those that killed ones have left.

use std::fs::{self, DirEntry};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use obsdiff_files::{Disk, Lock, LockError};
use obsdiff_proto::lock;

/// Every such folder has a name that begins so.
const PREFIX: &str = ".obsdiff-sweep-";

/// The file in it that marks it, and by whose lock it is known whether its sweep is still at work.
const MARKER: &str = "obsdiff-sweep.lock";

/// The folder of results in it.
pub(super) const RESULTS: &str = "results";

/// A point's pruned pipeline in it begins so.
pub(super) const POINT: &str = "point-";

/// How often a sweep that is stopped removes its folder while it still writes there.
const TRIES: usize = 100;

/// The folder of a sweep at work. It is removed with this value.
pub(super) struct Staging(StagingRemoval);

/// What removes it, whoever does so first.
#[derive(Clone)]
pub struct StagingRemoval {
    path: PathBuf,
    /// None once the folder is removed.
    lock: Arc<Mutex<Option<Lock>>>,
}

impl StagingRemoval {
    /// Removes it. What cannot be removed is found by the next sweep.
    pub fn remove(&self) {
        let mut lock = lock(&self.lock);
        let mut tries = 0..TRIES;
        while lock.is_some() && tries.next().is_some() && remove(&self.path, &mut lock).is_err() {}
    }
}

impl Staging {
    /// Makes one in a folder.
    pub(super) fn new(parent: &Path) -> io::Result<Self> {
        loop {
            let path = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?.keep();
            match Lock::take(&path.join(MARKER)) {
                Ok(lock) => {
                    return Ok(Self(StagingRemoval { path, lock: Arc::new(Mutex::new(Some(lock))) }));
                }
                // Another sweep took it for one that was left, and removes it.
                Err(LockError::Held(_)) => {}
                Err(LockError::File(error)) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    drop(fs::remove_dir_all(&path));
                    return Err(io::Error::other(error));
                }
            }
        }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.0.path
    }

    /// What removes it before this value goes.
    pub(super) fn removal(&self) -> StagingRemoval {
        self.0.clone()
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.0.remove();
    }
}

/// Removes what a sweep has written into its folder, and the folder. The marker goes last, so that another sweep can go on, and with it the
/// lock that is held on it.
fn remove(staging: &Path, lock: &mut Option<Lock>) -> io::Result<()> {
    for entry in entries(staging)? {
        if is_ours(&entry) && entry.file_name() != MARKER {
            fs::remove_dir_all(entry.path())?;
        }
    }
    if let Some(other) = entries(staging)?.iter().find(|entry| entry.file_name() != MARKER) {
        return Err(io::Error::other(format!("holds {}", other.file_name().display())));
    }
    lock.take().map_or(Ok(()), |lock| lock.remove(&Disk::default()))?;
    fs::remove_dir(staging)
}

/// Removes from a folder what sweeps have left there that were killed: folders with the marker, whose lock nobody holds, and with nothing
/// in them that a sweep does not write. Gives those that are gone.
pub(super) fn remove_left(parent: &Path) -> Vec<PathBuf> {
    let left = |entry: &DirEntry| {
        let named = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        named && entry.file_type().is_ok_and(|kind| kind.is_dir())
    };
    let mut removed = Vec::new();
    for entry in entries(parent).unwrap_or_default().iter().filter(|entry| left(entry)) {
        let path = entry.path();
        let marked = path.join(MARKER).symlink_metadata().is_ok_and(|found| found.is_file());
        if !marked || !entries(&path).is_ok_and(|inside| inside.iter().all(is_ours)) {
            continue;
        }
        // Without locks nobody knows whether its sweep is still at work.
        let Ok(lock) = Lock::take(&path.join(MARKER)) else { continue };
        if lock.is_exclusive() && remove(&path, &mut Some(lock)).is_ok() {
            removed.push(path);
        }
    }
    removed
}

fn entries(folder: &Path) -> io::Result<Vec<DirEntry>> {
    fs::read_dir(folder)?.collect()
}

/// Whether a sweep writes something of this name and kind into its folder: the marker, the results, a point's pipeline with its state, or
/// either on its way.
fn is_ours(entry: &DirEntry) -> bool {
    let name = entry.file_name();
    let (Some(name), Ok(kind)) = (name.to_str(), entry.file_type()) else { return false };
    if name == MARKER {
        return kind.is_file();
    }
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let of_point = name.strip_prefix('.').unwrap_or(name).strip_prefix(POINT).is_some_and(|rest| {
        let (point, what) = rest.split_once('.').unwrap_or((rest, ""));
        number(point)
            && (what.is_empty() || what == "state" || what.strip_prefix("obsdiff-").is_some_and(number))
    });
    kind.is_dir() && (name == RESULTS || of_point)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder as a killed sweep leaves it: nobody holds its lock.
    fn killed(parent: &Path, name: &str) -> PathBuf {
        let path = parent.join(name);
        for folder in ["results", "point-0/transformer", "point-12.state", ".point-1.obsdiff-1"] {
            fs::create_dir_all(path.join(folder)).unwrap();
        }
        fs::write(path.join("point-0/transformer/config.json"), "{}").unwrap();
        fs::write(path.join(MARKER), "").unwrap();
        path
    }

    #[test]
    fn what_a_killed_sweep_left_is_removed_and_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        let left = killed(parent.path(), ".obsdiff-sweep-left");
        let others = killed(parent.path(), ".obsdiff-sweep-others");
        fs::write(others.join("notes.txt"), "mine").unwrap();
        let unmarked = killed(parent.path(), ".obsdiff-sweep-unmarked");
        fs::remove_file(unmarked.join(MARKER)).unwrap();
        let named = killed(parent.path(), "obsdiff-sweep-named");
        let at_work = Staging::new(parent.path()).unwrap();
        fs::create_dir(at_work.path().join("point-0")).unwrap();
        assert_eq!(remove_left(parent.path()), std::slice::from_ref(&left));
        assert!(!left.exists() && others.join("notes.txt").is_file() && others.join("point-0").is_dir());
        assert!(unmarked.join("results").is_dir() && named.join("results").is_dir());
        assert!(at_work.path().join("point-0").is_dir());
        let path = at_work.path().to_owned();
        drop(at_work);
        assert!(!path.exists());
    }
}
