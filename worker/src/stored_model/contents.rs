//! What a cache holds: its models, what of each could be removed, and what is not obsdiff's.

use std::collections::BTreeSet;
use std::fs::{self, DirEntry, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use obsdiff_files::{Unused, read_regular};
use serde::Deserialize;

use super::error::{Result, StoredModelError};
use super::layout::{
    self, ABOUT, LISTING, LOCK, MARKER, MODELS, OBJECTS, PIPELINES, USERS, is_begun_listing, is_digest,
};

/// The largest file that says something of a model.
const MOST_BYTES: u64 = 4 << 20;

/// A folder of models that were copied from object stores.
#[derive(Clone, Debug)]
pub struct ModelCache {
    root: PathBuf,
}

/// What a cache holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheContents {
    /// The models, by their URLs.
    pub models: Vec<CachedCopy>,
    /// Files and folders that obsdiff did not make, and does not touch.
    pub foreign: Vec<PathBuf>,
}

/// A model in a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedCopy {
    /// Its folder.
    pub(super) folder: PathBuf,
    /// Its URL; none where a removal was cut off, or something else lies where the file with the URL should be.
    pub url: Option<String>,
    /// What it takes of the disk, in bytes.
    pub bytes: u64,
    /// Those of them that are beginnings of objects.
    pub unfinished_bytes: u64,
    /// Those of objects that the store has replaced since.
    pub replaced_bytes: u64,
    /// When a process used it last.
    pub last_used: Option<SystemTime>,
    /// Whether a process uses it; none where the file system cannot say.
    pub in_use: Option<bool>,
}

/// The files of a model.
#[derive(Debug, Default)]
pub(super) struct ModelFiles {
    /// What [`ABOUT`] says, where that fits the folder.
    pub(super) url: Option<String>,
    /// Files of the folder of objects.
    pub(super) objects: Vec<ObjectFile>,
    /// Pipelines, whole and begun.
    pub(super) pipelines: Vec<PipelineFiles>,
    /// Listings that were not finished.
    pub(super) begun_listings: Vec<PathBuf>,
    /// Digests of the objects that the store had when it was listed last, if that is known.
    listing: Option<BTreeSet<String>>,
    /// What obsdiff did not make.
    pub(super) foreign: Vec<PathBuf>,
}

/// A file of the folder of objects.
#[derive(Debug)]
pub(super) struct ObjectFile {
    pub(super) path: PathBuf,
    pub(super) digest: String,
    pub(super) is_whole: bool,
    /// Bytes of the disk.
    pub(super) bytes: u64,
}

/// A pipeline.
#[derive(Debug)]
pub(super) struct PipelineFiles {
    pub(super) path: PathBuf,
    pub(super) is_whole: bool,
    /// Its links.
    pub(super) links: Vec<PathBuf>,
    /// Its folders, each after those in it.
    pub(super) folders: Vec<PathBuf>,
    /// Digests of the objects that it consists of.
    pub(super) objects: BTreeSet<String>,
    /// Whether it holds nothing that is not obsdiff's.
    pub(super) is_own: bool,
}

#[derive(Deserialize)]
struct About {
    url: String,
}

#[derive(Deserialize)]
struct ObjectListing {
    objects: BTreeSet<String>,
}

impl ModelCache {
    /// The cache in a folder; none where nothing is there.
    ///
    /// # Errors
    /// When the folder holds something else, or cannot be read.
    pub fn open(root: &Path) -> Result<Option<Self>> {
        let mut names = match fs::read_dir(root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|error| StoredModelError::file(root, error))?,
        };
        let marker = root.join(MARKER).symlink_metadata();
        if marker.is_ok_and(|marker| marker.is_file()) {
            return Ok(Some(Self { root: root.to_owned() }));
        }
        match names.next() {
            None => Ok(None),
            Some(entry) => {
                let entry = entry.map_err(|error| StoredModelError::file(root, error))?;
                let entry = entry.file_name().to_string_lossy().into_owned();
                Err(StoredModelError::Foreign { path: root.to_owned(), entry, marker: MARKER })
            }
        }
    }

    /// What it holds now. Nothing is changed, and nobody is kept waiting for longer than a moment.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn contents(&self) -> Result<CacheContents> {
        let mut contents = CacheContents::default();
        for entry in entries(&self.root)? {
            if !(entry.is_file(MARKER) || entry.is_folder(MODELS)) {
                contents.foreign.push(entry.path);
            }
        }
        for entry in entries(&self.root.join(MODELS))? {
            if !(is_digest(&entry.name) && entry.metadata.is_dir()) {
                contents.foreign.push(entry.path);
                continue;
            }
            let files = ModelFiles::of(&entry.path)?;
            contents.models.push(files.copy(&entry.path)?);
            contents.foreign.extend(files.foreign);
        }
        contents.models.sort_by(|a, b| a.url.cmp(&b.url));
        contents.foreign.sort();
        Ok(contents)
    }
}

impl ModelFiles {
    /// The files of the model in a folder.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn of(folder: &Path) -> Result<Self> {
        let mut files = Self::default();
        for entry in entries(folder)? {
            match &*entry.name {
                ABOUT if entry.metadata.is_file() => {
                    let about: Option<About> = read(&entry.path)?;
                    let name = folder.file_name().unwrap_or_default();
                    files.url = about.map(|about| about.url).filter(|url| name == &*layout::model(url));
                    if files.url.is_none() {
                        files.foreign.push(entry.path);
                    }
                }
                LISTING if entry.metadata.is_file() => {
                    files.listing = read(&entry.path)?.map(|listing: ObjectListing| listing.objects);
                }
                USERS | LOCK if entry.metadata.is_file() => {}
                OBJECTS if entry.metadata.is_dir() => files.read_objects(&entry.path)?,
                PIPELINES if entry.metadata.is_dir() => files.read_pipelines(&entry.path)?,
                name if is_begun_listing(name) && entry.metadata.is_file() => {
                    files.begun_listings.push(entry.path);
                }
                _ => files.foreign.push(entry.path),
            }
        }
        Ok(files)
    }

    fn read_objects(&mut self, folder: &Path) -> Result<()> {
        for FolderEntry { path, name, metadata } in entries(folder)? {
            match layout::object(&name).filter(|_| metadata.is_file()) {
                Some(object) => self.objects.push(ObjectFile {
                    digest: object.digest.to_owned(),
                    is_whole: object.is_whole,
                    bytes: on_disk(&metadata),
                    path,
                }),
                None => self.foreign.push(path),
            }
        }
        Ok(())
    }

    fn read_pipelines(&mut self, folder: &Path) -> Result<()> {
        for FolderEntry { path, name, metadata } in entries(folder)? {
            let Some((_, is_whole)) = layout::pipeline(&name).filter(|_| metadata.is_dir()) else {
                self.foreign.push(path);
                continue;
            };
            let mut pipeline = PipelineFiles {
                path: path.clone(),
                is_whole,
                links: Vec::new(),
                folders: Vec::new(),
                objects: BTreeSet::new(),
                is_own: true,
            };
            let mut open = vec![path];
            while let Some(folder) = open.pop() {
                for FolderEntry { path, metadata, .. } in entries(&folder)? {
                    let object = if metadata.is_symlink() { linked(&path) } else { None };
                    if metadata.is_dir() {
                        open.push(path);
                    } else if let Some(object) = object {
                        pipeline.objects.insert(object);
                        pipeline.links.push(path);
                    } else {
                        pipeline.is_own = false;
                        self.foreign.push(path);
                    }
                }
                pipeline.folders.insert(0, folder);
            }
            self.pipelines.push(pipeline);
        }
        Ok(())
    }

    /// Whether the store has replaced an object, as far as is known.
    pub(super) fn is_replaced(&self, object: &str) -> bool {
        self.listing.as_ref().is_some_and(|listing| !listing.contains(object))
    }

    fn copy(&self, folder: &Path) -> Result<CachedCopy> {
        let bytes = |wanted: &dyn Fn(&ObjectFile) -> bool| {
            self.objects.iter().filter(|object| wanted(object)).map(|object| object.bytes).sum()
        };
        let users = folder.join(USERS);
        let last_used = [&users, &folder.join(ABOUT)]
            .into_iter()
            .find_map(|path| path.symlink_metadata().and_then(|found| found.modified()).ok());
        let in_use = match users.symlink_metadata() {
            Ok(_) => Unused::take(&users).ok().map(|unused| unused.is_none()),
            Err(_) => Some(false),
        };
        Ok(CachedCopy {
            folder: folder.to_owned(),
            url: self.url.clone(),
            bytes: bytes(&|_| true),
            unfinished_bytes: bytes(&|object| !object.is_whole),
            replaced_bytes: bytes(&|object| self.is_replaced(&object.digest)),
            last_used,
            in_use,
        })
    }
}

/// An entry of a folder. Symbolic links are what they are themselves.
struct FolderEntry {
    path: PathBuf,
    name: String,
    metadata: Metadata,
}

impl FolderEntry {
    fn is_file(&self, name: &str) -> bool {
        self.name == name && self.metadata.is_file()
    }

    fn is_folder(&self, name: &str) -> bool {
        self.name == name && self.metadata.is_dir()
    }
}

/// The entries of a folder, by their names; none where it is gone.
fn entries(folder: &Path) -> Result<Vec<FolderEntry>> {
    let failed = |error| StoredModelError::file(folder, error);
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let found = match fs::read_dir(folder) {
        Err(error) if gone(&error) => return Ok(Vec::new()),
        found => found.map_err(failed)?,
    };
    let read = |entry: io::Result<DirEntry>| {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        Ok(FolderEntry { path: entry.path(), name, metadata: entry.metadata()? })
    };
    let mut entries = Vec::new();
    for entry in found {
        match read(entry) {
            // Another process has finished or removed it meanwhile.
            Err(error) if gone(&error) => {}
            entry => entries.push(entry.map_err(failed)?),
        }
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// The object that a link of a pipeline leads to; none where it leads elsewhere.
fn linked(path: &Path) -> Option<String> {
    let target = fs::read_link(path).ok()?;
    let object = layout::object(target.file_name()?.to_str()?)?;
    let folder = target.parent()?;
    let up = folder.parent()?;
    let leads_up = up.components().all(|part| part.as_os_str() == "..");
    (folder.ends_with(OBJECTS) && leads_up).then(|| object.digest.to_owned())
}

/// The content of a file; none where it is none of this kind, or gone.
fn read<T: for<'d> Deserialize<'d>>(path: &Path) -> Result<Option<T>> {
    match read_regular(path, MOST_BYTES) {
        Ok(text) => Ok(serde_json::from_slice(&text).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoredModelError::file(path, error)),
    }
}

/// Bytes that a file takes of the disk: holes take none.
fn on_disk(metadata: &Metadata) -> u64 {
    // POSIX has blocks of 512 bytes there, whatever those of the file system are.
    metadata.blocks() * 512
}
