//! The output of a job: a directory, or a prefix of an object store.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use obsdiff_engine::export::{
    Document, OutputObjects, PruningRecord, read_record, replace_record, try_writing,
};
use obsdiff_engine::pipeline::PipelineFolder;
use obsdiff_engine::{Error, Result};
use obsdiff_files::{Disk, OnProgress, read_regular};
use obsdiff_proto::{Hasher, JobSpec, causes};
use obsdiff_store::{OutputStore, StoreError, Upload};
use tempfile::TempDir;
use tokio::runtime::Handle;

use crate::preparation;

/// More than any document about a pipeline has.
const MOST_DOCUMENT_BYTES: u64 = 256 << 20;

/// Where a job writes its output.
#[derive(Clone)]
pub enum JobOutput {
    /// A directory.
    Directory(PathBuf),
    /// A prefix of an object store.
    Objects(StoredOutput),
}

/// An output in an object store. Its calls wait on a runtime, so they must not come from one of its own threads.
#[derive(Clone)]
pub struct StoredOutput {
    store: OutputStore,
    url: PathBuf,
    spec: Arc<JobSpec>,
    runtime: Handle,
    on_progress: Option<Arc<OnProgress>>,
}

/// A written pipeline that was opened again.
pub struct WrittenPipeline {
    /// The pipeline.
    pub pipeline: PipelineFolder,
    /// Holds what was downloaded of it, and is removed afterwards.
    _downloaded: Option<TempDir>,
}

impl JobOutput {
    /// The output of a job; `options` are as [`OutputStore::open`] takes them.
    ///
    /// # Errors
    /// When `output.path` is a URL that names no object store.
    pub fn of(spec: &JobSpec, options: &[(String, String)], runtime: &Handle) -> Result<Self, StoreError> {
        let path = &spec.output.path;
        if !OutputStore::is_url(path) {
            return Ok(Self::Directory(path.into()));
        }
        let store = OutputStore::open(path, options)?;
        Ok(Self::Objects(StoredOutput::new(store, spec, runtime.clone())))
    }

    /// The record of the output, if that is written; none where another file has its name.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn record(&self) -> Result<Option<PruningRecord>> {
        match self {
            Self::Directory(path) => PruningRecord::read(path),
            Self::Objects(output) => read_record(output, &output.url),
        }
    }

    /// Whether the output has each file as the export of this record wrote it. All of them are read for that, from a store, too.
    ///
    /// # Errors
    /// When the store fails.
    pub fn is_unchanged(&self, record: &PruningRecord) -> Result<bool> {
        match self {
            Self::Directory(path) => Ok(record.is_unchanged(path)),
            Self::Objects(output) => output.is_unchanged(record),
        }
    }

    /// Bytes of the files that were written: of a directory but for hard links to files elsewhere; of a prefix those of its objects. None
    /// where there is no such directory, or the store does not tell.
    pub fn written_bytes(&self) -> Option<u64> {
        match self {
            Self::Directory(path) => folder_bytes(path),
            Self::Objects(output) => match output.runtime.block_on(output.store.bytes()) {
                Ok(bytes) => Some(bytes),
                Err(error) => {
                    tracing::warn!(%error, "the bytes of the output are not in its record");
                    None
                }
            },
        }
    }

    /// Writes a record in place of the one that an export of the same job wrote, and before it the `documents` that describe it. Gives the
    /// record as it is written.
    ///
    /// # Errors
    /// As [`PruningRecord::replace`] and [`replace_record`].
    pub fn replace(
        &self,
        record: &PruningRecord,
        documents: &[Document],
        disk: &Disk,
    ) -> Result<PruningRecord> {
        match self {
            Self::Directory(path) => record.replace(path, documents, disk),
            Self::Objects(output) => replace_record(output, &output.url, record, documents),
        }
    }

    /// Writes something small there and removes it, so that a right that is missing is found before any work.
    ///
    /// # Errors
    /// When this process may not write there.
    pub fn try_writing(&self, disk: &Disk) -> preparation::Result<()> {
        match self {
            Self::Directory(path) => Ok(try_writing(path, disk)?),
            Self::Objects(output) => Ok(output.runtime.block_on(output.store.at_start().try_writing())?),
        }
    }

    /// The text of a document that obsdiff has written there; none where it has not.
    pub fn document(&self, name: &str) -> Option<String> {
        let content = match self {
            Self::Directory(path) => read_regular(&path.join(name), MOST_DOCUMENT_BYTES).ok()?,
            Self::Objects(output) => output.get(name).ok()??,
        };
        if Document::is_marked(&content) { String::from_utf8(content).ok() } else { None }
    }

    /// Opens the pipeline that was written, to compute with its transformer. Of one in an object store the transformer is downloaded
    /// into a folder of this machine's for temporary files; its other components are those of `source`.
    ///
    /// # Errors
    /// When it cannot be opened, or not be downloaded.
    pub fn open_written(&self, source: &Path) -> Result<WrittenPipeline> {
        match self {
            Self::Directory(path) => {
                let pipeline = PipelineFolder::open_without_text(path)?;
                Ok(WrittenPipeline { pipeline, _downloaded: None })
            }
            Self::Objects(output) => output.open_written(source),
        }
    }
}

/// Bytes of the files in a folder and below, but for hard links to files elsewhere; none where it cannot be read.
fn folder_bytes(folder: &Path) -> Option<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder).ok()? {
        let entry = entry.ok()?;
        let metadata = entry.metadata().ok()?;
        if metadata.is_dir() {
            bytes += folder_bytes(&entry.path())?;
        } else if metadata.is_file() && metadata.nlink() == 1 {
            bytes += metadata.len();
        }
    }
    Some(bytes)
}

impl StoredOutput {
    /// The output of a job in a store.
    pub fn new(store: OutputStore, spec: &JobSpec, runtime: Handle) -> Self {
        let url = store.name().into();
        Self { store, url, spec: Arc::new(spec.clone()), runtime, on_progress: None }
    }

    /// Its URL.
    pub fn url(&self) -> &Path {
        &self.url
    }

    /// The same output, which calls `on_progress` while it is written.
    #[must_use]
    pub fn with_progress(&self, on_progress: Arc<OnProgress>) -> Self {
        Self { on_progress: Some(on_progress), ..self.clone() }
    }

    fn progress(&self) {
        if let Some(on_progress) = &self.on_progress {
            on_progress();
        }
    }

    fn is_unchanged(&self, record: &PruningRecord) -> Result<bool> {
        for file in &record.files {
            let mut hasher = Hasher::default();
            let mut take = |bytes: bytes::Bytes| {
                hasher.update(&bytes);
                Ok::<_, StoreError>(())
            };
            match self.runtime.block_on(self.store.download(&file.path, &mut take)) {
                Err(StoreError::Missing { .. }) => return Ok(false),
                read => read.map_err(|e| failed(&self.url.join(&file.path), io_error(e)))?,
            }
            if hasher.finish().to_string() != file.sha256 {
                return Ok(false);
            }
        }
        Ok(!record.files.is_empty())
    }

    fn open_written(&self, source: &Path) -> Result<WrittenPipeline> {
        const TRANSFORMER: &str = "transformer";
        let temporary = std::env::temp_dir();
        let folder = tempfile::Builder::new().prefix("obsdiff-").tempdir_in(&temporary);
        let folder = folder.map_err(|e| failed(&temporary, e))?;
        for entry in fs::read_dir(source).map_err(|e| failed(source, e))? {
            let entry = entry.map_err(|e| failed(source, e))?;
            if entry.file_name() != TRANSFORMER {
                let to = folder.path().join(entry.file_name());
                let from = std::path::absolute(entry.path()).map_err(|e| failed(source, e))?;
                symlink(from, &to).map_err(|e| failed(&to, e))?;
            }
        }
        let transformer = folder.path().join(TRANSFORMER);
        fs::create_dir(&transformer).map_err(|e| failed(&transformer, e))?;
        let listed = self.runtime.block_on(self.store.list(TRANSFORMER));
        for name in listed.map_err(|e| failed(&self.url, io_error(e)))? {
            let path = transformer.join(&name);
            let mut file = File::create_new(&path).map_err(|e| failed(&path, e))?;
            let mut take = |bytes: bytes::Bytes| {
                self.progress();
                file.write_all(&bytes).map_err(DownloadError::File)
            };
            let object = format!("{TRANSFORMER}/{name}");
            let download = self.store.download(&object, &mut take);
            self.runtime.block_on(download).map_err(|error| match error {
                DownloadError::File(error) => failed(&path, error),
                DownloadError::Store(error) => failed(&self.url.join(&object), io_error(error)),
            })?;
        }
        let pipeline = PipelineFolder::open_without_text(folder.path())?;
        Ok(WrittenPipeline { pipeline, _downloaded: Some(folder) })
    }
}

/// Why an object could not be downloaded into a file.
enum DownloadError {
    File(io::Error),
    Store(StoreError),
}

impl From<StoreError> for DownloadError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

fn failed(path: &Path, source: io::Error) -> Error {
    Error::File { path: path.to_owned(), source }
}

/// A store's error as one of input and output, which the caller reports with the URL of the object.
fn io_error(error: StoreError) -> io::Error {
    let rights = error.rights();
    io::Error::other(match error {
        StoreError::Denied { what, source, .. } => {
            let (why, rights) = (causes(&*source), rights.unwrap_or_default());
            let problem = format!("may not be {what} with these credentials ({rights}): {why}");
            return io::Error::new(io::ErrorKind::PermissionDenied, problem);
        }
        StoreError::Failed { what, tries, source, .. } => {
            format!("could not be {what} in {tries} tries: {}", causes(&*source))
        }
        StoreError::Url { problem, .. } => problem,
        other => other.to_string(),
    })
}

impl OutputObjects for StoredOutput {
    fn begin(&self, files: &[String]) -> io::Result<()> {
        self.progress();
        self.runtime.block_on(self.store.begin(&self.spec, files)).map_err(io_error)
    }

    fn put(&self, file: &str, content: Vec<u8>) -> io::Result<()> {
        self.progress();
        self.runtime.block_on(self.store.put(file, content)).map_err(io_error)
    }

    fn stream(
        &self,
        file: &str,
        bytes: u64,
        fill: &mut dyn FnMut(&mut dyn Write) -> Result<()>,
    ) -> Result<()> {
        self.progress();
        let mut out = BlockingUpload { upload: self.store.upload(file, bytes), output: self };
        match fill(&mut out) {
            Ok(()) => {
                let finished = self.runtime.block_on(out.upload.finish());
                finished.map_err(|e| Error::Write { path: self.url.join(file), source: io_error(e) })
            }
            Err(error) => {
                self.runtime.block_on(out.upload.abort());
                Err(error)
            }
        }
    }

    fn get(&self, file: &str) -> io::Result<Option<Vec<u8>>> {
        let read = self.runtime.block_on(self.store.get(file)).map_err(io_error)?;
        Ok(read.map(Vec::from))
    }

    fn finish(&self) -> io::Result<()> {
        self.progress();
        self.runtime.block_on(self.store.finish()).map_err(io_error)
    }
}

/// An upload whose writes wait.
struct BlockingUpload<'a> {
    upload: Upload<'a>,
    output: &'a StoredOutput,
}

impl Write for BlockingUpload<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.progress();
        self.output.runtime.block_on(self.upload.write(bytes)).map_err(io_error)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_linked_was_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let (source, output) = (folder.path().join("source"), folder.path().join("output"));
        fs::write(&source, [0; 100]).unwrap();
        fs::create_dir_all(output.join("below")).unwrap();
        fs::write(output.join("below/weights"), [0; 7]).unwrap();
        fs::write(output.join("index"), [0; 3]).unwrap();
        fs::hard_link(&source, output.join("linked")).unwrap();
        assert_eq!(JobOutput::Directory(output).written_bytes(), Some(10));
        assert_eq!(JobOutput::Directory(source.join("none")).written_bytes(), None);
    }
}
