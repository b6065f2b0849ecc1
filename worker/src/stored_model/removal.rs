//! Removing models from the cache, or parts of them that no process uses.
//!
//! It can be cut off after any step. A pipeline loses the name of a whole one before its first link goes, and its objects go after it: what is left
//! is whole or unfinished, and the next fetch brings the rest.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use obsdiff_files::{Disk, Unused, parent_of};

use super::contents::{CachedCopy, ModelFiles, ObjectFile, PipelineFiles};
use super::error::{Result, StoredModelError};
use super::layout::{ABOUT, LISTING, LOCK, OBJECTS, PIPELINES, UNFINISHED, USERS};

/// What of a model is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelRemoval {
    /// All of it.
    Whole,
    /// Beginnings of objects, and what is left of a removal that was cut off.
    Unfinished,
    /// Objects that the store has replaced since, with the pipelines that they belong to.
    Replaced,
}

impl CachedCopy {
    /// Removes a part of the model, and gives the bytes that are free then; none where a process uses it. Files that obsdiff did not make
    /// stay, and so does a pipeline that holds any, with its objects.
    ///
    /// # Errors
    /// When a file cannot be removed, or the file system cannot say whether the model is used.
    pub fn remove(&self, what: ModelRemoval, disk: &Disk) -> Result<Option<u64>> {
        let users = self.folder.join(USERS);
        // Until the end no process begins to use it.
        let unused = match Unused::take(&users) {
            Ok(Some(unused)) => unused,
            Ok(None) => return Ok(None),
            // Somebody else has just removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(0)),
            Err(error) => return Err(StoredModelError::file(users, error)),
        };
        let files = ModelFiles::of(&self.folder)?;
        let is_left_over = files.url.is_none() && !files.foreign.contains(&self.folder.join(ABOUT));
        let what = match what {
            what if files.url.is_some() => what,
            ModelRemoval::Whole | ModelRemoval::Unfinished if is_left_over => ModelRemoval::Whole,
            // Nothing says that it is obsdiff's.
            _ => return Ok(Some(0)),
        };
        let removing = Removing { folder: &self.folder, files: &files, disk };
        let kept = removing.pipelines(what)?;
        let freed = removing.objects(what, &kept)?;
        removing.begun_listings()?;
        if what == ModelRemoval::Whole && files.foreign.is_empty() {
            removing.rest()?;
            // On a network disk a folder holds the file of a lock until that is released.
            drop(unused);
            removing.folder(&self.folder)?;
        }
        Ok(Some(freed))
    }
}

/// A removal from a model that no process uses.
struct Removing<'a> {
    folder: &'a Path,
    files: &'a ModelFiles,
    disk: &'a Disk,
}

impl<'a> Removing<'a> {
    /// Removes pipelines, and gives the objects of those that stay.
    fn pipelines(&self, what: ModelRemoval) -> Result<BTreeSet<&'a str>> {
        let goes = |pipeline: &PipelineFiles| {
            let replaced = || pipeline.objects.iter().any(|object| self.files.is_replaced(object));
            let wanted = match what {
                ModelRemoval::Whole => true,
                ModelRemoval::Unfinished => false,
                ModelRemoval::Replaced => replaced(),
            };
            // Nobody goes on with one that was begun.
            pipeline.is_own && (wanted || !pipeline.is_whole)
        };
        let (goes, stays): (Vec<_>, Vec<_>) =
            self.files.pipelines.iter().partition(|pipeline| goes(pipeline));
        let (whole, begun): (Vec<_>, Vec<_>) = goes.into_iter().partition(|pipeline| pipeline.is_whole);
        let objects = |pipeline: &'a PipelineFiles| pipeline.objects.iter().map(String::as_str);
        let mut kept: BTreeSet<&str> = stays.into_iter().flat_map(objects).collect();
        for pipeline in begun {
            self.links(pipeline, &pipeline.path)?;
        }
        for pipeline in whole {
            let begun = pipeline.path.with_extension(UNFINISHED);
            match self.disk.rename_new(&pipeline.path, &begun) {
                // Something that is not obsdiff's lies there.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    kept.extend(objects(pipeline));
                    continue;
                }
                renamed => renamed.map_err(|error| StoredModelError::file(&pipeline.path, error))?,
            }
            let folder = parent_of(&begun);
            self.disk.sync_folder(folder).map_err(|error| StoredModelError::file(folder, error))?;
            self.links(pipeline, &begun)?;
        }
        Ok(kept)
    }

    /// Removes the links and folders of a pipeline, which lies at `now`.
    fn links(&self, pipeline: &PipelineFiles, now: &Path) -> Result<()> {
        let at =
            |path: &Path| path.strip_prefix(&pipeline.path).map_or(now.to_owned(), |inner| now.join(inner));
        for link in &pipeline.links {
            self.file(&at(link))?;
        }
        for folder in &pipeline.folders {
            self.folder(&at(folder))?;
        }
        Ok(())
    }

    /// Removes objects that are not `kept`, and gives the bytes that they took.
    fn objects(&self, what: ModelRemoval, kept: &BTreeSet<&str>) -> Result<u64> {
        let goes = |object: &&ObjectFile| match what {
            ModelRemoval::Unfinished => !object.is_whole,
            _ if kept.contains(object.digest.as_str()) => false,
            ModelRemoval::Whole => true,
            ModelRemoval::Replaced => self.files.is_replaced(&object.digest),
        };
        let mut freed = 0;
        for object in self.files.objects.iter().filter(goes) {
            self.file(&object.path)?;
            freed += object.bytes;
        }
        Ok(freed)
    }

    fn begun_listings(&self) -> Result<()> {
        self.files.begun_listings.iter().try_for_each(|listing| self.file(listing))
    }

    /// Removes the files that are left of a model without objects. What names it goes last, so that the same removal can be asked for again.
    fn rest(&self) -> Result<()> {
        for folder in [OBJECTS, PIPELINES] {
            self.folder(&self.folder.join(folder))?;
        }
        for file in [LISTING, LOCK, ABOUT, USERS] {
            self.file(&self.folder.join(file))?;
        }
        Ok(())
    }

    fn file(&self, path: &Path) -> Result<()> {
        removed(path, self.disk.remove_file(path), io::ErrorKind::NotFound)
    }

    /// Removes a folder, unless something has come into it.
    fn folder(&self, path: &Path) -> Result<()> {
        removed(path, self.disk.remove_folder(path), io::ErrorKind::DirectoryNotEmpty)
    }
}

/// Whether something was removed, or is gone or `passed` over.
fn removed(path: &Path, outcome: io::Result<()>, passed: io::ErrorKind) -> Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.kind() == passed => Ok(()),
        outcome => outcome.map_err(|error| StoredModelError::file(path, error)),
    }
}

#[cfg(test)]
mod tests;
