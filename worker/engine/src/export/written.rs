//! The files that an export wrote, with their digests: by these the output is known again.

use std::io::{self, Write};
use std::path::{Component, Path};

use obsdiff_proto::{Digest, Hasher, InputDigest};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::sink::{Fill, Sink};
use super::source::is_weights;
use crate::Result;
use crate::checkpoint::sha256;

/// A file of a pipeline as its export wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrittenFile {
    /// Its path in the pipeline.
    pub path: String,
    /// SHA-256, in hexadecimal.
    pub sha256: String,
}

impl WrittenFile {
    /// Whether a pipeline has all of these files as they were written. A file that cannot be read, or is named outside the pipeline, counts
    /// as another one.
    pub(super) fn are_in(files: &[Self], pipeline: &Path) -> bool {
        let same = |file: &Self| {
            let is_within =
                Path::new(&file.path).components().all(|part| matches!(part, Component::Normal(_)));
            is_within && sha256(&pipeline.join(&file.path)).is_ok_and(|found| found == file.sha256)
        };
        // One by one: a large file does not wait for a thread that has others still to read.
        !files.is_empty() && files.par_iter().with_max_len(1).all(same)
    }
}

/// Passes files on to another sink, and notes the digest of each.
pub(super) struct DigestingSink<'a> {
    sink: &'a mut dyn Sink,
    /// Digests of the source's weights by their paths in it, so that they are not read again.
    known: &'a [InputDigest],
    pub(super) files: Vec<WrittenFile>,
}

impl<'a> DigestingSink<'a> {
    pub(super) fn new(sink: &'a mut dyn Sink, known: &'a [InputDigest]) -> Self {
        Self { sink, known, files: Vec::new() }
    }

    fn note(&mut self, name: &str, sha256: String) {
        self.files.push(WrittenFile { path: name.to_owned(), sha256 });
    }
}

impl Sink for DigestingSink<'_> {
    fn create_folder(&mut self, name: &str) -> Result<()> {
        self.sink.create_folder(name)
    }

    fn copy_file(&mut self, from: &Path, name: &str, link: bool) -> Result<()> {
        self.sink.copy_file(from, name, link)?;
        let known = self.known.iter().find(|input| input.path == name && is_weights(name));
        let sha256 = match known {
            Some(input) => input.sha256.clone(),
            None => sha256(from)?,
        };
        self.note(name, sha256);
        Ok(())
    }

    fn write(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.sink.write(name, content)?;
        self.note(name, Digest::of(content).to_string());
        Ok(())
    }

    fn stream(&mut self, name: &str, bytes: u64, fill: &mut Fill<'_>) -> Result<()> {
        let mut digest = None;
        self.sink.stream(name, bytes, &mut |path, out| {
            let mut out = DigestingWriter { out, hasher: Hasher::default() };
            fill(path, &mut out)?;
            digest = Some(out.hasher.finish());
            Ok(())
        })?;
        if let Some(digest) = digest {
            self.note(name, digest.to_string());
        }
        Ok(())
    }
}

/// Passes bytes on, and digests them.
struct DigestingWriter<'a> {
    out: &'a mut dyn Write,
    hasher: Hasher,
}

impl Write for DigestingWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
