//! Writing a pruned pipeline: a complete diffusers directory in the source's types and shard layout, put in place whole.
//!
//! Knows tensors and names only. The module `source` says what is copied, and which symbolic links are followed.

mod course;
mod documents;
mod measured;
mod objects;
mod record;
mod rewrite;
mod shrink;
mod single_file;
mod sink;
mod source;
mod staging;
mod written;

use std::io::ErrorKind;
use std::path::Path;

use candle_core::Tensor;
use obsdiff_files::Disk;

pub use course::{FaultRecord, JobCourse, PackageCourse};
pub use documents::{DOCUMENT_MARK, Document};
pub use measured::{Baseline, HeldOutError, Measured, MeasuredPhase, PictureError};
pub use objects::{OutputObjects, read_record, replace_record};
pub use obsdiff_proto::InputDigest;
pub use record::{ModelSizes, PrunedLinear, PrunedStructure, PruningRecord, RECORD_FILE};
pub use shrink::{KeptIndices, Shrink};
pub use single_file::write_single_file;
pub use source::required_bytes;
pub use staging::{longest_name, try_writing};
pub use written::WrittenFile;

use crate::checkpoint::{SourceFiles, Weights};
use crate::{Error, Result};
use sink::Sink;
use source::pipeline_parts;
use staging::ExportFolder;
use written::DigestingSink;

/// A pruned pipeline about to be written.
pub struct Export<'a> {
    /// The pipeline directory that was pruned.
    pub source: &'a Path,
    /// The directory of the new one, which must not exist yet unless the same job has written it; or the URL of its prefix in an object
    /// store.
    pub destination: &'a Path,
    /// Hard-link unchanged files instead of copying them, where the file system allows it.
    pub link: bool,
    /// The source's transformer weights.
    pub weights: &'a Weights,
    /// The source's files that the job has read, as they were then; none where nothing is held against them.
    pub read: Option<&'a SourceFiles>,
    /// What was done, written to [`RECORD_FILE`] with the digests of the files that are written.
    pub record: &'a PruningRecord,
    /// What describes it in words, in place of files of the source with these names.
    pub documents: &'a [Document],
    /// What leaves the tensors; none where all keep their shapes.
    pub shrink: Option<&'a Shrink>,
}

impl Export<'_> {
    /// Writes the pipeline beside its destination and moves it into place. `pruned` gives the new tensor for the names whose
    /// weights changed; one tensor at a time is converted to its stored type and written. A destination that holds this very record,
    /// whatever was measured since, is what another writer of the same job moved into place, before it was cut off: it stays.
    ///
    /// # Errors
    /// When the destination exists otherwise, a symbolic link of the source leads to something that is not copied, a file cannot be read or
    /// written or was changed meanwhile, or a weight leaves the range of its stored type.
    /// Nothing is left behind then. A process that is killed leaves a directory beside the destination, which the next one removes.
    pub fn write(&self, disk: &Disk, pruned: &dyn Fn(&str) -> Result<Option<Tensor>>) -> Result<()> {
        if self.record.is_in(self.destination) {
            return staging::settle(self.destination, disk);
        }
        let mut staging = ExportFolder::create(self.destination, disk)?;
        self.fill(&mut staging, pruned)?;
        match staging.commit(self.destination) {
            Err(Error::Write { source, .. })
                if source.kind() == ErrorKind::AlreadyExists && self.record.is_in(self.destination) =>
            {
                staging::settle(self.destination, disk)
            }
            committed => committed,
        }
    }

    /// Writes every file, in the same order for every kind of destination; the record last, with the digests of all but the documents,
    /// which are replaced later.
    fn fill(&self, sink: &mut dyn Sink, pruned: &dyn Fn(&str) -> Result<Option<Tensor>>) -> Result<()> {
        let mut digesting = DigestingSink::new(sink, &self.record.inputs);
        self.fill_pipeline(&mut digesting, pruned)?;
        self.read.iter().try_for_each(|files| files.check_unchanged())?;
        let record = PruningRecord { files: digesting.files, ..self.record.clone() };
        for document in self.documents {
            sink.write(document.name, document.text.as_bytes())?;
        }
        sink.write(RECORD_FILE, &record.text(self.destination)?)
    }

    /// Writes the files that make a pipeline.
    fn fill_pipeline(
        &self,
        sink: &mut dyn Sink,
        pruned: &dyn Fn(&str) -> Result<Option<Tensor>>,
    ) -> Result<()> {
        self.copy_components(sink)?;
        for (number, file) in self.weights.files().iter().enumerate() {
            let name = format!("transformer/{}", file_name(file.path()));
            // A header that says what was left out may be a little longer.
            sink.stream(&name, file.bytes(), &mut |path, out| {
                rewrite::rewrite(self.weights, number, (path, out), pruned, self.shrink)
            })?;
        }
        for (name, content) in self.shrink.iter().flat_map(|shrink| &shrink.files) {
            sink.write(&format!("transformer/{name}"), content)?;
        }
        Ok(())
    }

    fn copy_components(&self, sink: &mut dyn Sink) -> Result<()> {
        for part in pipeline_parts(self.source)? {
            if part.is_folder {
                sink.create_folder(&part.name)?;
            } else if !part.is_transformer_weights() && !self.replaces(&part.name) {
                sink.copy_file(&part.path, &part.name, self.link)?;
            }
        }
        if let Some(index) = self.weights.index() {
            let name = format!("transformer/{}", file_name(index));
            match self.shrink {
                Some(shrink) => sink.write(&name, &shrink.index(self.weights, index)?)?,
                None => sink.copy_file(index, &name, self.link)?,
            }
        }
        Ok(())
    }

    /// Whether another file is written in the place of one of the source's, by its path in the pipeline.
    fn replaces(&self, name: &str) -> bool {
        let rewritten = self.shrink.iter().flat_map(|shrink| &shrink.files);
        let mut rewritten = rewritten.map(|(file, _)| format!("transformer/{file}"));
        self.documents.iter().any(|document| document.name == name) || rewritten.any(|file| file == name)
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod link_tests;
#[cfg(test)]
mod object_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::output_of;
