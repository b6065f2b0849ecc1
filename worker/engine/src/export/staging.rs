//! A directory or a file that is written beside its destination, and moved into place when it is complete.
//!
//! For a destination `NAME` it is in the directory `.NAME.obsdiff-NUMBER`, which holds a lock, a marker that says what it is, and the
//! directory `pipeline` that is written, or that the file is written in. Each writer has a number of its own: one that was cut off may still
//! be writing while another one takes its place. The lock distinguishes it from those that have ended, whose directories are removed.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufWriter, ErrorKind};
use std::path::{Path, PathBuf};

use obsdiff_files::{Disk, Lock, LockError, open_regular, parent_of, read_regular};
use serde::{Deserialize, Serialize};

use super::file_name;
use super::sink::{Fill, Sink};
use crate::{Error, Result};

/// What stands between the destination's name and the writer's number.
const INFIX: &str = ".obsdiff-";
/// Digits of a writer's number: more writers than that do not meet at one destination.
const MAX_DIGITS: usize = 4;

const LOCK: &str = "obsdiff.lock";
const MARKER: &str = "obsdiff.json";
const MAX_MARKER_BYTES: u64 = 64 << 10;
const PIPELINE: &str = "pipeline";

/// The content of a marker.
#[derive(Serialize, Deserialize)]
struct StagingMarker {
    /// An explanation for people who find it.
    holds: String,
    /// The name of the destination.
    destination: String,
}

/// The directory being written; removed when dropped before [`ExportFolder::commit`].
pub(super) struct ExportFolder<'a> {
    disk: &'a Disk,
    /// What holds the lock, the marker and the pipeline.
    folder: PathBuf,
    /// None once the directory is removed: another writer may have made it again.
    lock: Option<Lock>,
    /// Every folder of the pipeline, the outermost first.
    folders: Vec<PathBuf>,
    /// Folders that were made to hold the destination.
    made: Vec<PathBuf>,
}

impl<'a> ExportFolder<'a> {
    /// Creates a directory beside the destination, and removes those that writers have left which have ended.
    pub(super) fn create(destination: &Path, disk: &'a Disk) -> Result<Self> {
        refuse_existing(destination)?;
        Self::beside(destination, disk)
    }

    /// The same for a destination that may exist.
    fn beside(destination: &Path, disk: &'a Disk) -> Result<Self> {
        let parent = parent_of(destination);
        let made = disk.create_folders(parent).map_err(|e| Error::write(parent, e))?;
        let staged = Self::numbered(destination, disk).and_then(|(folder, lock)| {
            let (lock, made) = (Some(lock), made.clone());
            let staging = Self { disk, folder, lock, folders: Vec::new(), made };
            staging.begin(destination)
        });
        if staged.is_err() {
            disk.remove_folders(&made);
        }
        staged
    }

    /// Makes the directory of the first number that no other writer has.
    fn numbered(destination: &Path, disk: &Disk) -> Result<(PathBuf, Lock)> {
        let parent = parent_of(destination);
        remove_left(destination, disk).map_err(|e| Error::write(parent, e))?;
        for number in 1..10_u32.pow(MAX_DIGITS as u32) {
            let folder = parent.join(format!(".{}{INFIX}{number}", file_name(destination)));
            match disk.create_folder(&folder) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                created => created.map_err(|e| Error::write(&folder, e))?,
            }
            match Lock::take(&folder.join(LOCK)) {
                Ok(lock) => return Ok((folder, lock)),
                // Another writer took it for one that was left, and removes it.
                Err(LockError::Held(_)) => continue,
                Err(LockError::File(error)) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => {
                    // The error names the obstacle; an empty folder may stay.
                    let _ = disk.remove_folder(&folder);
                    return Err(Error::write(&folder, io::Error::other(error.to_string())));
                }
            }
        }
        let problem = "more writers than can be counted are at work beside it";
        Err(Error::write(destination, io::Error::other(problem)))
    }

    fn begin(mut self, destination: &Path) -> Result<Self> {
        let marker = StagingMarker {
            holds: "what obsdiff has not finished writing, and removes or moves into place".to_owned(),
            destination: file_name(destination),
        };
        let path = self.folder.join(MARKER);
        let words = serde_json::to_vec_pretty(&marker).map_err(|e| Error::write(&path, e.into()))?;
        self.disk.write(&path, &words).map_err(|e| Error::write(&path, e))?;
        self.create_folder("")?;
        Ok(self)
    }

    /// The path of a file of the pipeline.
    fn path(&self, name: &str) -> PathBuf {
        let pipeline = self.folder.join(PIPELINE);
        if name.is_empty() { pipeline } else { pipeline.join(name) }
    }

    /// Brings all of it to the disk and moves the directory to its destination.
    pub(super) fn commit(self, destination: &Path) -> Result<()> {
        for folder in self.folders.iter().rev() {
            self.disk.sync_folder(folder).map_err(|e| Error::write(folder, e))?;
        }
        self.commit_new(&self.path(""), destination)
    }

    /// Moves a file that was synced to its destination, where nothing may be.
    pub(super) fn commit_file(self, name: &str, destination: &Path) -> Result<()> {
        self.commit_new(&self.path(name), destination)
    }

    /// Removes it, once.
    fn remove(&mut self) -> io::Result<()> {
        match self.lock.take() {
            Some(lock) => remove(&self.folder, lock, self.disk),
            None => Ok(()),
        }
    }

    fn commit_new(&self, written: &Path, destination: &Path) -> Result<()> {
        let parent = parent_of(destination);
        self.disk.rename_new(written, destination).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => exists(destination),
            _ => Error::write(destination, error),
        })?;
        self.disk.sync_folder(parent).map_err(|e| Error::write(parent, e))
    }
}

impl Sink for ExportFolder<'_> {
    fn create_folder(&mut self, name: &str) -> Result<()> {
        let path = self.path(name);
        self.disk.create_folder(&path).map_err(|e| Error::write(&path, e))?;
        self.folders.push(path);
        Ok(())
    }

    /// Copies a file, or hard-links it where asked and possible.
    fn copy_file(&mut self, from: &Path, name: &str, link: bool) -> Result<()> {
        let to = self.path(name);
        // A symbolic link into a download cache is read through: a hard link to it would be a link to a link.
        if link && !from.is_symlink() && self.disk.link(from, &to).is_ok() {
            return Ok(());
        }
        let source = open_regular(from).map_err(|e| Error::file(from, e))?;
        self.disk.copy(&source, &to).map_err(|e| Error::write(&to, e))
    }

    fn write(&mut self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.path(name);
        self.disk.write(&path, content).map_err(|e| Error::write(&path, e))
    }

    fn stream(&mut self, name: &str, _: u64, fill: &mut Fill<'_>) -> Result<()> {
        let path = self.path(name);
        let failed = |e| Error::write(&path, e);
        let mut out = BufWriter::with_capacity(1 << 20, self.disk.create_file(&path).map_err(failed)?);
        fill(&path, &mut out)?;
        let file = out.into_inner().map_err(|e| failed(e.into_error()))?;
        self.disk.sync_file(&file, &path).map_err(failed)
    }
}

impl Drop for ExportFolder<'_> {
    fn drop(&mut self) {
        // After a commit only the marker and the lock are left; after a failure that failure is what is reported.
        if let Err(error) = self.remove()
            && self.folder.exists()
        {
            tracing::warn!(path = %self.folder.display(), %error, "a half-written directory could not be removed");
        }
        // They hold the destination now, or were made in vain.
        self.disk.remove_folders(&self.made);
    }
}

/// Begins what an export to this destination begins, and removes it, so that a right that is missing is found before any work. Folders
/// that the export is to make are not made: the same is tried in the one that is there.
///
/// # Errors
/// When a folder or a file cannot be made or removed there.
pub fn try_writing(destination: &Path, disk: &Disk) -> Result<()> {
    let mut place = destination;
    while !parent_of(place).exists()
        && let Some(parent) = place.parent()
    {
        place = parent;
    }
    let mut staging = ExportFolder::beside(place, disk)?;
    staging.remove().map_err(|e| Error::write(&staging.folder, e))
}

/// Writes a file of this content, in place of the one that may be there. Whenever that is interrupted, one of the two is there, whole.
pub(super) fn replace_file(destination: &Path, content: &[u8], disk: &Disk) -> Result<()> {
    let mut staging = ExportFolder::beside(destination, disk)?;
    let name = file_name(destination);
    staging.write(&name, content)?;
    disk.replace(&staging.path(&name), destination).map_err(|e| Error::write(destination, e))?;
    let parent = parent_of(destination);
    disk.sync_folder(parent).map_err(|e| Error::write(parent, e))
}

/// Removes a writer's directory, whose lock is held: the marker last, so that what is left of it is known to be obsdiff's.
fn remove(folder: &Path, lock: Lock, disk: &Disk) -> io::Result<()> {
    let (pipeline, marker) = (folder.join(PIPELINE), folder.join(MARKER));
    if pipeline.symlink_metadata().is_ok() {
        disk.remove_tree(&pipeline)?;
    }
    if marker.symlink_metadata().is_ok() {
        disk.remove_file(&marker)?;
    }
    lock.remove(disk)?;
    match disk.remove_folder(folder) {
        // Without its lock another writer takes it for one that was left, and removes it, and its number may be a new writer's by now.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty && !holds_others(folder) => Ok(()),
        removed => removed,
    }
}

/// Whether there is something in a folder that no writer puts there.
fn holds_others(folder: &Path) -> bool {
    let is_other = |name: &OsStr| ![LOCK, MARKER, PIPELINE].map(OsStr::new).contains(&name);
    match std::fs::read_dir(folder) {
        Ok(mut files) => files.any(|file| file.is_ok_and(|file| is_other(&file.file_name()))),
        Err(error) => error.kind() != ErrorKind::NotFound,
    }
}

/// Makes sure that a destination which another writer has moved into place outlives a power cut, and removes what writers that have
/// ended have left beside it.
pub(super) fn settle(destination: &Path, disk: &Disk) -> Result<()> {
    let parent = parent_of(destination);
    let settled = disk.sync_folder(parent).and_then(|()| remove_left(destination, disk));
    settled.map_err(|e| Error::write(parent, e))
}

/// Removes the directories of writers of this destination that have ended.
fn remove_left(destination: &Path, disk: &Disk) -> io::Result<()> {
    let parent = parent_of(destination);
    let name = file_name(destination);
    for entry in std::fs::read_dir(parent)? {
        let entry = entry?;
        if !is_staging(&entry.file_name().to_string_lossy(), &name) || !entry.file_type()?.is_dir() {
            continue;
        }
        let folder = entry.path();
        // It may be gone by now: its writer has ended, or another one has removed it.
        if let Err(error) = remove_ended(&folder, &name, disk)
            && folder.exists()
        {
            tracing::warn!(path = %folder.display(), %error, "a half-written directory could not be removed");
        }
    }
    Ok(())
}

/// Whether a name is that of a directory in which a destination called `name` is written.
fn is_staging(file: &str, name: &str) -> bool {
    let number = file.strip_prefix('.').and_then(|file| file.strip_prefix(name)?.strip_prefix(INFIX));
    number.is_some_and(|number| {
        (1..=MAX_DIGITS).contains(&number.len()) && number.bytes().all(|c| c.is_ascii_digit())
    })
}

/// Removes a directory that its writer has left, if it is a writer's and that one has ended.
fn remove_ended(folder: &Path, name: &str, disk: &Disk) -> io::Result<()> {
    let files = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name()));
    let files = files.collect::<io::Result<Vec<_>>>()?;
    if files.is_empty() {
        return match disk.remove_folder(folder) {
            // Its writer is at work by now.
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => Ok(()),
            removed => removed,
        };
    }
    let marker = read_regular(&folder.join(MARKER), MAX_MARKER_BYTES).ok();
    let marker = marker.map(|words| serde_json::from_slice::<StagingMarker>(&words));
    let ours = match marker {
        Some(Ok(marker)) => marker.destination == name,
        // A process that was killed before the marker was whole has made nothing else.
        Some(Err(_)) | None => files.iter().all(|file| file == LOCK || file == MARKER),
    };
    // A link would lead out of it.
    let is_kind = |name: &OsStr| {
        match folder.join(name).symlink_metadata() {
            Ok(found) if name == PIPELINE => found.is_dir(),
            Ok(found) => found.is_file(),
            // Its writer has just ended.
            Err(error) => error.kind() == ErrorKind::NotFound,
        }
    };
    let known = |file: &OsString| (file == LOCK || file == MARKER || file == PIPELINE) && is_kind(file);
    if !ours || !files.iter().all(known) {
        return Err(io::Error::other("it holds files that obsdiff did not write"));
    }
    match Lock::take(&folder.join(LOCK)) {
        // Its writer is at work.
        Err(LockError::Held(_)) => Ok(()),
        Err(LockError::File(error)) => Err(error),
        Ok(lock) if !lock.is_exclusive() => {
            Err(io::Error::other("it is unknown whether its writer has ended"))
        }
        Ok(lock) => remove(folder, lock, disk),
    }
}

/// The most bytes that the name of a destination may have where names may have `most`: the directory that it is written in has a
/// longer one.
pub fn longest_name(most: u64) -> u64 {
    most.saturating_sub((1 + INFIX.len() + MAX_DIGITS) as u64)
}

fn refuse_existing(destination: &Path) -> Result<()> {
    match destination.symlink_metadata() {
        Ok(_) => Err(exists(destination)),
        Err(_) => Ok(()),
    }
}

fn exists(destination: &Path) -> Error {
    let problem = "exists already, though the job has not written it: move it away";
    Error::write(destination, io::Error::new(ErrorKind::AlreadyExists, problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_knows_its_own_directories_only() {
        assert!(is_staging(".sd3.obsdiff-1", "sd3") && is_staging(".sd3.5.obsdiff-12", "sd3.5"));
        for (file, name) in [
            (".sd3.5.obsdiff-1", "sd3"),
            (".sd3.obsdiff-1", "sd3.5"),
            (".sd3.obsdiff-", "sd3"),
            (".sd3.obsdiff-1x", "sd3"),
            (".sd3.obsdiff-12345", "sd3"),
            ("sd3.obsdiff-1", "sd3"),
            (".sd3.partial", "sd3"),
        ] {
            assert!(!is_staging(file, name), "{file} of {name}");
        }
    }

    #[test]
    fn writers_that_begin_and_end_at_one_time_never_hinder_each_other() {
        let parent = tempfile::tempdir().unwrap();
        let disk = Disk::default();
        let write = |writer: usize| {
            for number in 0..200 {
                try_writing(&parent.path().join("out"), &disk).unwrap();
                let name = format!("{writer}-{number}");
                let mut staging = ExportFolder::beside(&parent.path().join("out"), &disk).unwrap();
                staging.write(&name, b"whole").unwrap();
                staging.commit_file(&name, &parent.path().join(&name)).unwrap();
            }
        };
        std::thread::scope(|scope| (0..4).for_each(|writer| drop(scope.spawn(move || write(writer)))));
        let mut left: Vec<_> =
            std::fs::read_dir(&parent).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left.len(), 4 * 200, "{left:?}");
    }
}
