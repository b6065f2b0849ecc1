//! The part of the cache of this machine that holds one model. Its files are those of [`super::layout`].

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use obsdiff_files::{Disk, InUse, Lock, LockError, Owner};
use obsdiff_store::StoredFile;
use serde_json::json;

use super::error::{Result, StoredModelError};
use super::layout::{
    self, ABOUT, HEADERS, LISTING, LOCK, MARKER, MODELS, OBJECTS, PIPELINES, UNFINISHED, USERS, digest,
};

/// The part of the cache that holds one model.
#[derive(Debug)]
pub(super) struct CachedModel {
    folder: PathBuf,
    /// Keeps others from removing the model.
    _in_use: InUse,
}

/// A file of a pipeline that has to be here.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// The object.
    pub(super) file: StoredFile,
    /// Whether only the headers of its tensors are needed.
    pub(super) headers: bool,
}

impl CachedModel {
    /// The place of a model below `root`, which is made and marked where it is new. Nobody removes the model until this is dropped.
    ///
    /// # Errors
    /// When the folder holds something else, or cannot be made.
    pub(super) fn open(root: &Path, url: &str) -> Result<Self> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| StoredModelError::File { path, source }
        };
        Disk::default().create_folders(root).map_err(failed(root))?;
        mark(root)?;
        let folder = root.join(MODELS).join(layout::model(url));
        let in_use = loop {
            Disk::default().create_folders(&folder).map_err(failed(&folder))?;
            match InUse::begin(&folder.join(USERS)) {
                // Another process has just removed the model.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                begun => break begun.map_err(failed(&folder))?,
            }
        };
        for inner in [OBJECTS, PIPELINES] {
            let inner = folder.join(inner);
            Disk::default().create_folders(&inner).map_err(failed(&inner))?;
        }
        let about = folder.join(ABOUT);
        if !about.exists() {
            let text = json!({ "holds": "a model of an object store, for obsdiff", "url": url }).to_string();
            match write_new(&about, text.as_bytes()) {
                // It is read by people alone.
                Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {}
                written => written.map_err(failed(&about))?,
            }
        }
        Ok(Self { folder, _in_use: in_use })
    }

    /// Notes the objects that the store has now. What it had before and replaced can then be removed.
    ///
    /// # Errors
    /// When the list cannot be written.
    pub(super) fn note_listing(&self, files: &[StoredFile]) -> Result<()> {
        let mut objects: Vec<String> = files.iter().map(object_digest).collect();
        objects.sort();
        let text = json!({ "objects": objects }).to_string();
        let path = self.folder.join(LISTING);
        if fs::read(&path).is_ok_and(|noted| noted == text.as_bytes()) {
            return Ok(());
        }
        let staged = self.folder.join(format!("{LISTING}.{}.{UNFINISHED}", std::process::id()));
        let disk = Disk::default();
        let write = || {
            // An earlier process of the same number was killed.
            match disk.remove_file(&staged) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            disk.write(&staged, text.as_bytes())?;
            disk.replace(&staged, &path)
        };
        match write() {
            // Where nothing can be written, nothing can be removed either.
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(()),
            written => written.map_err(|error| StoredModelError::file(&path, error)),
        }
    }

    /// The folder of this model.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Takes the lock that keeps other processes from downloading the same model.
    ///
    /// # Errors
    /// Who holds it; when it cannot be made.
    pub(super) fn lock(&self) -> Result<std::result::Result<Lock, Owner>> {
        let path = self.lock_path();
        match Lock::take(&path) {
            Ok(lock) => Ok(Ok(lock)),
            Err(LockError::Held(owner)) => Ok(Err(owner)),
            Err(LockError::File(error)) => Err(StoredModelError::file(path, error)),
        }
    }

    /// The file of that lock.
    pub(super) fn lock_path(&self) -> PathBuf {
        self.folder.join(LOCK)
    }

    /// Where an object lies once it is whole.
    pub(super) fn object(&self, wanted: &Wanted) -> PathBuf {
        self.folder.join(OBJECTS).join(wanted.key())
    }

    /// Where the first bytes of an object lie. Where nothing keeps other processes away, each has files of its own.
    pub(super) fn unfinished(&self, wanted: &Wanted, exclusive: bool) -> PathBuf {
        let key = wanted.key();
        let name = if exclusive {
            format!("{key}.{UNFINISHED}")
        } else {
            format!("{key}.{}.{UNFINISHED}", std::process::id())
        };
        self.folder.join(OBJECTS).join(name)
    }

    /// Whether an object is here.
    pub(super) fn has(&self, wanted: &Wanted) -> bool {
        let found = self.object(wanted).metadata();
        found.is_ok_and(|found| found.is_file() && found.len() == wanted.file.bytes)
    }

    /// The pipeline of these files, where all of it is here.
    pub(super) fn pipeline(&self, files: &[Wanted]) -> Option<PathBuf> {
        let path = self.pipeline_path(files);
        (path.is_dir() && files.iter().all(|file| self.has(file))).then_some(path)
    }

    /// Makes the pipeline of these files, which are all here.
    ///
    /// # Errors
    /// When a folder or a link cannot be made.
    pub(super) fn make_pipeline(&self, files: &[Wanted]) -> Result<PathBuf> {
        let path = self.pipeline_path(files);
        if path.is_dir() {
            return Ok(path);
        }
        let staging = path.with_extension(UNFINISHED);
        let disk = Disk::default();
        let make = || {
            // The process that made it was killed. Whatever else stands there is refused.
            if staging.symlink_metadata().is_ok() {
                disk.remove_tree(&staging)?;
            }
            for wanted in files {
                let link = staging.join(&wanted.file.name);
                let folders = wanted.file.name.matches('/').count();
                fs::create_dir_all(obsdiff_files::parent_of(&link))?;
                symlink(Path::new(&"../".repeat(folders + 2)).join(OBJECTS).join(wanted.key()), &link)?;
            }
            disk.rename_new(&staging, &path)
        };
        make().map_err(|error| StoredModelError::file(&path, error))?;
        Ok(path)
    }

    fn pipeline_path(&self, files: &[Wanted]) -> PathBuf {
        let names = files.iter().flat_map(|wanted| [wanted.file.name.clone(), wanted.key()]);
        let names: Vec<String> = names.collect();
        self.folder.join(PIPELINES).join(digest(names.iter().map(String::as_bytes)))
    }
}

impl Wanted {
    /// The name of its file.
    fn key(&self) -> String {
        let digest = object_digest(&self.file);
        if self.headers { format!("{digest}.{HEADERS}") } else { digest }
    }
}

/// The digest of an object's name, size and tag.
fn object_digest(file: &StoredFile) -> String {
    let StoredFile { name, bytes, tag, .. } = file;
    let bytes = bytes.to_string();
    digest([name.as_bytes(), bytes.as_bytes(), tag.as_deref().unwrap_or_default().as_bytes()])
}

/// Marks a folder as obsdiff's, unless it is. One that holds anything else is refused.
fn mark(root: &Path) -> Result<()> {
    let marker = root.join(MARKER);
    if marker.exists() {
        return Ok(());
    }
    let failed = |error| StoredModelError::file(root, error);
    let mut foreign = None;
    for entry in fs::read_dir(root).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        // Another process has marked it in the meantime.
        if name == MARKER {
            return Ok(());
        }
        foreign = Some(name.to_string_lossy().into_owned());
    }
    match foreign {
        Some(entry) => Err(StoredModelError::Foreign { path: root.to_owned(), entry, marker: MARKER }),
        None => {
            let text = json!({ "holds": "models of object stores, which obsdiff downloads again where they are missing" });
            write_new(&marker, text.to_string().as_bytes())
                .map_err(|error| StoredModelError::file(&marker, error))
        }
    }
}

/// Writes a file, unless another process has.
fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    match Disk::default().write(path, content) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        written => written,
    }
}
