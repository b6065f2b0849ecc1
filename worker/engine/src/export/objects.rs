//! A pipeline that is written into an object store.
//!
//! Such a store has no folders and renames nothing: each object appears whole under its final name, or not at all. So the order of the
//! objects takes the place of the directory that is moved into place:
//!
//! 1. a marker, which says whose half-written output this is and names every file that it will have;
//! 2. all files but one, the large ones as streams, `pruning.json` after all others;
//! 3. `model_index.json`, without which no program takes the prefix for a pipeline;
//! 4. the marker goes.
//!
//! A writer that is cut off between any two of these steps leaves a marked prefix without `model_index.json`. The next writer of the same
//! job puts every object again, with the same bytes. Nothing else is ever overwritten or removed than what the marker names. Two writers of
//! one job put equal objects, so they do not disturb each other. Nothing is written to a disk on the way.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use obsdiff_files::open_regular;

use super::sink::{Fill, Sink};
use super::{Document, Export, PruningRecord, RECORD_FILE};
use crate::{Error, Result};

/// The file that makes a prefix a pipeline.
const INDEX_FILE: &str = "model_index.json";

/// The objects of an output, by their paths in the pipeline.
pub trait OutputObjects: Send + Sync {
    /// Marks the output as begun, which will consist of these files.
    ///
    /// # Errors
    /// When the prefix holds anything else, or the store fails.
    fn begin(&self, files: &[String]) -> io::Result<()>;

    /// Puts a small object, in place of an earlier one.
    ///
    /// # Errors
    /// When the store fails.
    fn put(&self, file: &str, content: Vec<u8>) -> io::Result<()>;

    /// Puts an object of about so many bytes, whose content `fill` makes. Where `fill` fails, nothing is put.
    ///
    /// # Errors
    /// Those of `fill`, and of a store that fails.
    fn stream(
        &self,
        file: &str,
        bytes: u64,
        fill: &mut dyn FnMut(&mut dyn Write) -> Result<()>,
    ) -> Result<()>;

    /// Reads a small object; none where there is no such one.
    ///
    /// # Errors
    /// When the store fails.
    fn get(&self, file: &str) -> io::Result<Option<Vec<u8>>>;

    /// Removes the marker of an output that is complete.
    ///
    /// # Errors
    /// When the store fails.
    fn finish(&self) -> io::Result<()>;
}

/// The record of a complete output, whose prefix is `url`; none where it is not complete, or not obsdiff's.
///
/// # Errors
/// When the store fails, or the record is none that this release knows.
pub fn read_record(objects: &dyn OutputObjects, url: &Path) -> Result<Option<PruningRecord>> {
    let get = |file: &str| objects.get(file).map_err(|e| Error::file(url.join(file), e));
    if get(INDEX_FILE)?.is_none() {
        return Ok(None);
    }
    match get(RECORD_FILE)? {
        Some(text) => PruningRecord::parse(&text, &url.join(RECORD_FILE)),
        None => Ok(None),
    }
}

/// Puts a record in place of the one that an export of the same job wrote, and before it the `documents` that describe it. Gives the
/// record with the files that the export wrote, as it is put.
///
/// # Errors
/// When the output has another job's record or an object of a document's name that is not obsdiff's, or the store fails.
pub fn replace_record(
    objects: &dyn OutputObjects,
    url: &Path,
    record: &PruningRecord,
    documents: &[Document],
) -> Result<PruningRecord> {
    let path = url.join(RECORD_FILE);
    let Some(there) = written_record(objects, url, record)? else {
        let problem = "is not what the job has written: move the pipeline away and run the job again";
        return Err(Error::content(path, problem));
    };
    for document in documents {
        let path = url.join(document.name);
        let there = objects.get(document.name).map_err(|e| Error::file(&path, e))?;
        if there.is_some_and(|there| !Document::is_marked(&there)) {
            let problem = "was not written by obsdiff and is in the way: move it away";
            return Err(Error::content(path, problem));
        }
        objects.put(document.name, document.text.clone().into()).map_err(|e| Error::write(&path, e))?;
    }
    let record = PruningRecord { files: there.files, ..record.clone() };
    objects.put(RECORD_FILE, record.text(url)?).map_err(|e| Error::write(&path, e))?;
    Ok(record)
}

/// The record of a complete output, if it is of the job of this one with the same result, whatever was measured since.
fn written_record(
    objects: &dyn OutputObjects,
    url: &Path,
    record: &PruningRecord,
) -> Result<Option<PruningRecord>> {
    Ok(read_record(objects, url)?.filter(|there| record.is_same(there)))
}

impl Export<'_> {
    /// Writes the pipeline into an object store. Otherwise as [`Export::write`]; `on_progress` is called after each piece.
    ///
    /// # Errors
    /// When the prefix holds anything else, a file cannot be read, a weight leaves the range of its stored type, or the store fails. What
    /// is written stays, marked as not complete, for the next writer.
    pub fn write_objects(
        &self,
        objects: &dyn OutputObjects,
        pruned: &dyn Fn(&str) -> Result<Option<Tensor>>,
    ) -> Result<()> {
        let url = self.destination;
        if written_record(objects, url, self.record)?.is_none() {
            let mut names = Names(Vec::new());
            self.fill_pipeline(&mut names, pruned)?;
            let further = self.documents.iter().map(|document| document.name).chain([RECORD_FILE]);
            names.0.extend(further.map(str::to_owned));
            objects.begin(&names.0).map_err(|e| Error::write(url, e))?;
            let mut writer = ObjectWriter { objects, url, index: None };
            self.fill(&mut writer, pruned)?;
            writer.put_index()?;
        }
        objects.finish().map_err(|e| Error::write(url, e))
    }
}

/// Notes the names of the files of a pipeline, and writes none.
struct Names(Vec<String>);

impl Sink for Names {
    fn create_folder(&mut self, _: &str) -> Result<()> {
        Ok(())
    }

    fn copy_file(&mut self, _: &Path, name: &str, _: bool) -> Result<()> {
        self.0.push(name.to_owned());
        Ok(())
    }

    fn write(&mut self, name: &str, _: &[u8]) -> Result<()> {
        self.0.push(name.to_owned());
        Ok(())
    }

    fn stream(&mut self, name: &str, _: u64, _: &mut Fill<'_>) -> Result<()> {
        self.0.push(name.to_owned());
        Ok(())
    }
}

/// Puts the files of a pipeline.
struct ObjectWriter<'a> {
    objects: &'a dyn OutputObjects,
    url: &'a Path,
    /// The source's index, which is put last.
    index: Option<PathBuf>,
}

impl ObjectWriter<'_> {
    fn copy(&self, from: &Path, name: &str) -> Result<()> {
        let mut file = open_regular(from).map_err(|e| Error::file(from, e))?;
        let bytes = file.metadata().map_err(|e| Error::file(from, e))?.len();
        let path = self.url.join(name);
        self.objects.stream(name, bytes, &mut |out| {
            io::copy(&mut file, out).map(drop).map_err(|e| Error::write(&path, e))
        })
    }

    fn put_index(self) -> Result<()> {
        match &self.index {
            Some(from) => self.copy(from, INDEX_FILE),
            None => Err(Error::content(self.url, format!("gets no {INDEX_FILE}"))),
        }
    }
}

impl Sink for ObjectWriter<'_> {
    fn create_folder(&mut self, _: &str) -> Result<()> {
        Ok(())
    }

    fn copy_file(&mut self, from: &Path, name: &str, _: bool) -> Result<()> {
        if name == INDEX_FILE {
            self.index = Some(from.to_owned());
            return Ok(());
        }
        self.copy(from, name)
    }

    fn write(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.objects.put(name, content.to_owned()).map_err(|e| Error::write(self.url.join(name), e))
    }

    fn stream(&mut self, name: &str, bytes: u64, fill: &mut Fill<'_>) -> Result<()> {
        let path = self.url.join(name);
        self.objects.stream(name, bytes, &mut |out| fill(&path, out))
    }
}
