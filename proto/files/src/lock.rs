//! Locks on files. The system releases them when a process ends, even if it is killed.

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::Disk;

/// More than a lock file ever holds.
const MAX_BYTES: u64 = 4096;
/// How the content of every lock file begins.
const FIRST_WORDS: &[u8] = b"{\"pid\":";

/// A lock on a file, held until it is dropped or the process ends.
#[derive(Debug)]
pub struct Lock {
    /// Keeps the lock.
    _file: File,
    path: PathBuf,
    exclusive: bool,
}

/// The process that holds a lock, according to the lock's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    process: Option<LockHolder>,
    since: Option<SystemTime>,
}

/// The content of a lock file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct LockHolder {
    pid: u32,
    host: String,
}

/// Why a lock was not taken.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another process holds it.
    #[error("is in use by {0}")]
    Held(Owner),
    /// The file cannot be made or read.
    #[error("cannot be locked: {0}")]
    File(#[from] io::Error),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.process {
            Some(LockHolder { pid, host }) => write!(f, "process {pid} on {host}")?,
            None => f.write_str("another process")?,
        }
        match self.since {
            Some(since) => write!(f, ", since {}", humantime::format_rfc3339_seconds(since)),
            None => Ok(()),
        }
    }
}

impl Lock {
    /// Takes the lock of a file, which is made where there is none, and writes this process into it.
    ///
    /// # Errors
    /// When another process holds it, naming that one; when the file cannot be made, or holds what no lock does.
    pub fn take(path: &Path) -> Result<Self, LockError> {
        Self::by(path, File::try_lock)
    }

    /// The same, once no other process holds it. Waits for that.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn wait(path: &Path) -> io::Result<Self> {
        let taken = Self::by(path, |file| uninterrupted(|| file.lock()).map_err(TryLockError::Error));
        taken.map_err(|error| match error {
            LockError::File(error) => error,
            LockError::Held(owner) => io::Error::new(io::ErrorKind::WouldBlock, owner.to_string()),
        })
    }

    fn by(path: &Path, lock: impl Fn(&File) -> Result<(), TryLockError>) -> Result<Self, LockError> {
        loop {
            let mut file = open(path)?;
            let exclusive = match lock(&file) {
                Ok(()) => true,
                Err(TryLockError::WouldBlock) => return Err(LockError::Held(Owner::read(&mut file))),
                Err(TryLockError::Error(error)) => {
                    tracing::warn!(path = %path.display(), %error,
                        "this file system has no locks: nothing keeps two processes from the same folder");
                    false
                }
            };
            // The previous holder may have removed the file. Then this lock would not keep other processes out.
            if !is_at(&file, path)? {
                continue;
            }
            check_ours(&mut file)?;
            let process = LockHolder { pid: std::process::id(), host: host() };
            let words = serde_json::to_vec(&process).map_err(io::Error::from)?;
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(&words)?;
            return Ok(Self { _file: file, path: path.to_owned(), exclusive });
        }
    }

    /// Whether the file system keeps others away.
    pub fn is_exclusive(&self) -> bool {
        self.exclusive
    }

    /// Removes the file, and then releases the lock. A folder that holds it can be removed afterwards, and on a network disk not before: there a
    /// file that is removed while it is open keeps a name until it is closed.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn remove(self, disk: &Disk) -> io::Result<()> {
        disk.remove_file(&self.path)
    }
}

impl Owner {
    fn read(file: &mut File) -> Self {
        let mut words = String::new();
        let read = file.rewind().and_then(|()| file.take(MAX_BYTES).read_to_string(&mut words));
        Self {
            process: read.ok().and_then(|_| serde_json::from_str(&words).ok()),
            since: file.metadata().and_then(|metadata| metadata.modified()).ok(),
        }
    }
}

/// Refuses a file that somebody else's words are in, or that has a second name, which may be somebody else's file: a lock empties its file.
fn check_ours(file: &mut File) -> io::Result<()> {
    let refuse = |problem: &str| Err(io::Error::other(format!("{problem}: move it away")));
    let found = file.metadata()?;
    if !found.is_file() {
        return refuse("is not a regular file");
    }
    if found.nlink() > 1 {
        return refuse("has another name, so it may not be obsdiff's");
    }
    let mut words = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut words)?;
    // A process or machine that died while it wrote them has left a part of them, or zeros.
    let is_ours = words.starts_with(FIRST_WORDS) || FIRST_WORDS.starts_with(&words);
    if is_ours || words.iter().all(|byte| *byte == 0) {
        return Ok(());
    }
    refuse("holds other words than a lock of obsdiff, so it is not obsdiff's")
}

/// Opens the file of a lock, which is made where there is none.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    // A symbolic link would lead to a file that is not ours.
    let options = OFlags::NOFOLLOW.bits().cast_signed();
    OpenOptions::new().read(true).write(true).create(true).truncate(false).custom_flags(options).open(path)
}

/// Waits as often as a signal interrupts that.
pub(crate) fn uninterrupted(mut wait: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    loop {
        match wait() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            waited => return waited,
        }
    }
}

/// Whether an open file is the one that its path leads to.
pub(crate) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let own = file.metadata()?;
    match path.symlink_metadata() {
        Ok(there) => Ok((own.dev(), own.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// This machine's name in its network.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "this host".to_owned(),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests;
