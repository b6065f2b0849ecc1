//! A job's objects as files of a directory.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use obsdiff_files::{Disk, Lock, LockError, parent_of};
use obsdiff_proto::lock;

use super::layout::{self, ObjectKind};
use super::{Result, StoreError};

/// How often a directory is claimed while other processes remove theirs there.
const TRIES: u32 = 100;

/// The directory of a job's state, run by this process.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// Held as long as the coordinator runs, or until the directory is removed.
    lock: Mutex<Option<Lock>>,
    /// The folders that this process made for it, the outermost first.
    made: Vec<PathBuf>,
}

impl Directory {
    /// Makes a directory, or takes over one that holds nothing but the state of a job, and locks it.
    ///
    /// # Errors
    /// When it holds something that is not obsdiff's, another process runs the job, or it cannot be made.
    pub(super) fn claim(path: &Path, name: &str) -> Result<Self> {
        let refused = |problem: String| StoreError::Url { url: name.to_owned(), problem };
        let mut tries = 1..TRIES;
        loop {
            match path.metadata() {
                Ok(found) if !found.is_dir() => return Err(refused("is no directory".to_owned())),
                Ok(_) => check(path, name)?,
                Err(_) => {}
            }
            let made =
                Disk::default().create_folders(path).map_err(|e| refused(format!("cannot be made: {e}")))?;
            let error = match Lock::take(&path.join(layout::LOCK)) {
                Ok(lock) => {
                    return Ok(Self { path: path.to_owned(), lock: Mutex::new(Some(lock)), made });
                }
                Err(LockError::Held(owner)) => {
                    return Err(StoreError::InUse { store: name.to_owned(), owner });
                }
                Err(error) => error,
            };
            Disk::default().remove_folders(&made);
            // Another process, whose job is done, has removed the directory.
            let is_gone = matches!(&error, LockError::File(e) if e.kind() == io::ErrorKind::NotFound);
            if !is_gone || tries.next().is_none() {
                return Err(refused(error.to_string()));
            }
        }
    }

    /// Makes the folders that workers put objects into.
    pub(super) fn make_folders(&self) -> io::Result<()> {
        let folders =
            [layout::PARTS, layout::SUMS, layout::CONDITIONING].map(|folder| self.path.join(folder));
        folders.iter().try_for_each(|folder| Disk::default().create_folders(folder).map(drop))
    }

    /// How many folders this process made for it.
    pub(super) fn made(&self) -> u32 {
        self.made.len() as u32
    }

    /// Removes the state: obsdiff's files in their order, then the state's own folders, then the directory and those above it, as many as
    /// `made` says. Other files stay, and so do the folders that hold them.
    pub(super) fn remove(&self, made: u32, disk: &Disk) -> io::Result<()> {
        let mut tries = 1..TRIES;
        // A worker that has not heard of the job's end may put a part as long as its folder is there.
        while !self.remove_content(disk)? && tries.next().is_some() {}
        self.remove_files(|kind| kind == ObjectKind::Marker, disk)?;
        if let Some(lock) = lock(&self.lock).take() {
            lock.remove(disk)?;
        }
        for folder in self.path.ancestors().take(made as usize) {
            if !remove_if_empty(disk, folder)? {
                break;
            }
        }
        Ok(())
    }

    /// Removes the files before the marker, and the state's own folders. Returns whether nothing of obsdiff's is left in these.
    fn remove_content(&self, disk: &Disk) -> io::Result<bool> {
        self.remove_files(|kind| kind < ObjectKind::Marker, disk)?;
        let mut all = true;
        for folder in layout::FOLDERS {
            all &= remove_if_empty(disk, &self.path.join(folder))?;
        }
        Ok(all || self.known()?.iter().all(|(kind, _)| *kind >= ObjectKind::Marker))
    }

    fn remove_files(&self, wanted: impl Fn(ObjectKind) -> bool, disk: &Disk) -> io::Result<()> {
        for (_, file) in self.known()?.iter().filter(|(kind, _)| wanted(*kind)) {
            // What a worker has just begun to write gets its final name, or is removed, by the worker.
            if_there(disk.remove_file(&self.path.join(file)))?;
        }
        Ok(())
    }

    /// The files that are obsdiff's, in the order in which they are removed.
    fn known(&self) -> io::Result<Vec<(ObjectKind, String)>> {
        let mut files = Vec::new();
        for (file, is_folder) in entries(&self.path)? {
            if is_folder && layout::FOLDERS.contains(&file.as_str()) {
                let inner = entries(&self.path.join(&file))?.into_iter().filter(|(_, is_folder)| !is_folder);
                files.extend(inner.map(|(inner, _)| format!("{file}/{inner}")));
            } else if !is_folder {
                files.push(file);
            }
        }
        let kind = |file: String| Some((layout::kind_of_file(&file)?, file));
        let mut known: Vec<_> = files.into_iter().filter_map(kind).collect();
        known.sort();
        Ok(known)
    }
}

/// Writes a file in place of the one that may be there, whole or not at all: beside it first, as `NAME#NUMBER`.
///
/// # Errors
/// When it cannot be written; not found where its folder is missing.
pub(super) fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let disk = Disk::default();
    let mut number = 0;
    let (staged, mut file) = loop {
        number += 1;
        let mut staged = path.as_os_str().to_owned();
        staged.push(format!("#{number}"));
        match disk.create_file(staged.as_ref()) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            created => break (PathBuf::from(staged), created?),
        }
    };
    let written = file.write_all(content).and_then(|()| disk.sync_file(&file, &staged));
    if let Err(error) = written.and_then(|()| disk.replace(&staged, path)) {
        // The error is reported; the state's removal would take the file along, too.
        let _ = disk.remove_file(&staged);
        return Err(error);
    }
    disk.sync_folder(parent_of(path))
}

/// Removes a folder if it exists and is empty. Returns whether it is gone.
fn remove_if_empty(disk: &Disk, folder: &Path) -> io::Result<bool> {
    match disk.remove_folder(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
        removed => removed.map(|()| true),
    }
}

/// Refuses a directory that holds anything but the state of a job.
pub(super) fn check(path: &Path, name: &str) -> Result<()> {
    let files = files(path, name)?;
    let is = |kind: ObjectKind| move |file: &&String| layout::kind_of_file(file) == Some(kind);
    if files.iter().any(|file| file == layout::MARKER) {
        return Ok(());
    }
    // A process that was killed before it put the marker has left nothing else.
    match files.iter().find(|file| !is(ObjectKind::Marker)(file) && !is(ObjectKind::Lock)(file)) {
        None => Ok(()),
        Some(object) => Err(StoreError::Unmarked { store: name.to_owned(), object: object.clone() }),
    }
}

/// The files of a state's directory and of its folders, by their paths. The first file that is not obsdiff's is an error.
pub(super) fn files(path: &Path, name: &str) -> Result<Vec<String>> {
    let unreadable =
        |e: io::Error| StoreError::Url { url: name.to_owned(), problem: format!("cannot be read: {e}") };
    let mut files = Vec::new();
    for (file, is_folder) in entries(path).map_err(unreadable)? {
        if is_folder && layout::FOLDERS.contains(&file.as_str()) {
            let inner = entries(&path.join(&file)).map_err(unreadable)?;
            files.extend(inner.into_iter().map(|(inner, is_folder)| (format!("{file}/{inner}"), is_folder)));
        } else {
            files.push((file, is_folder));
        }
    }
    let known = |(file, is_folder): &(String, bool)| !is_folder && layout::kind_of_file(file).is_some();
    match files.iter().find(|file| !known(file)) {
        Some((object, _)) => Err(StoreError::Foreign { store: name.to_owned(), object: object.clone() }),
        None => Ok(files.into_iter().map(|(file, _)| file).collect()),
    }
}

/// The names in a folder, and which of them are folders. A symbolic link or another special file gets a note behind its name, so that it
/// is not taken for one of obsdiff's files. What another process, whose job is done, removes meanwhile is not there.
fn entries(path: &Path) -> io::Result<Vec<(String, bool)>> {
    let mut entries = Vec::new();
    let Some(found) = if_there(fs::read_dir(path))? else { return Ok(entries) };
    for entry in found {
        let entry = entry?;
        let Some(kind) = if_there(entry.file_type())? else { continue };
        let name = entry.file_name().to_string_lossy().into_owned();
        let name = if kind.is_dir() || kind.is_file() { name } else { format!("{name} (no plain file)") };
        entries.push((name, kind.is_dir()));
    }
    entries.sort();
    Ok(entries)
}

fn if_there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}
