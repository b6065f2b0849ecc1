//! Copying objects into the cache: ranges of them on their way at once, written one after the other.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use obsdiff_files::{Disk, open_to_append};
use obsdiff_store::ModelStore;

use super::cache::{CachedModel, Wanted};
use super::error::{Result, StoredModelError};
use super::{FetchEvent, OnFetch};

/// Bytes that are asked for at a time.
const PIECE_BYTES: u64 = 8 << 20;
/// Pieces that are on their way at a time: 64 MiB of memory at most.
const PIECES_AT_A_TIME: usize = 8;
/// The longest header of safetensors, which is that of their own library.
const MOST_HEADER_BYTES: u64 = 100_000_000;
/// Bytes before a header of safetensors, which say how long it is.
const LENGTH_BYTES: u64 = 8;

/// The download of some objects of a model.
pub(super) struct Download<'a> {
    pub(super) store: &'a ModelStore,
    pub(super) cache: &'a CachedModel,
    /// Whether no other process downloads them.
    pub(super) exclusive: bool,
    pub(super) on_fetch: &'a OnFetch<'a>,
}

/// Some bytes of a file, and whether they are its last ones.
struct FilePiece {
    file: usize,
    first: bool,
    bytes: Bytes,
    last: bool,
}

impl Download<'_> {
    /// Bytes that a file still takes.
    pub(super) fn left(&self, wanted: &Wanted) -> u64 {
        if wanted.headers { 0 } else { wanted.file.bytes - self.begun(wanted) }
    }

    /// Downloads these files whole.
    ///
    /// # Errors
    /// When an object was replaced meanwhile, the store fails, or a file cannot be written. What is here of them stays, as unfinished.
    pub(super) async fn whole(&self, files: &[Wanted]) -> Result<()> {
        let ranges = files.iter().enumerate().flat_map(|(number, wanted)| {
            pieces(self.begun(wanted)..wanted.file.bytes).map(move |range| (number, range))
        });
        let read = |(file, range): (usize, Range<u64>)| async move {
            let object = &files[file].file;
            let (first, last) = (range.start == 0, range.end == object.bytes);
            let alive = || (self.on_fetch)(FetchEvent::Alive);
            let bytes =
                if range.is_empty() { Bytes::new() } else { self.store.read(object, range, &alive).await? };
            Ok::<_, StoredModelError>(FilePiece { file, first, bytes, last })
        };
        let mut pieces = stream::iter(ranges).map(read).buffered(PIECES_AT_A_TIME);
        let mut open: Option<(PathBuf, File)> = None;
        while let Some(FilePiece { file, first, bytes, last }) = pieces.try_next().await? {
            let wanted = &files[file];
            let (path, mut out) = match open.take() {
                Some(open) => open,
                None => {
                    let path = self.cache.unfinished(wanted, self.exclusive);
                    let out = open_to_append(&path, first).map_err(|e| StoredModelError::file(&path, e))?;
                    (path, out)
                }
            };
            out.write_all(&bytes).map_err(|e| StoredModelError::file(&path, e))?;
            (self.on_fetch)(FetchEvent::Done(bytes.len() as u64));
            if last {
                self.finish(wanted, &out, &path)?;
            } else {
                open = Some((path, out));
            }
        }
        Ok(())
    }

    /// Downloads the header of a file of safetensors; the rest of the file is a hole.
    ///
    /// # Errors
    /// As [`Self::whole`]; when its header is too long.
    pub(super) async fn header(&self, wanted: &Wanted) -> Result<()> {
        let object = &wanted.file;
        let alive = || (self.on_fetch)(FetchEvent::Alive);
        let refused = || StoredModelError::Refused {
            url: self.store.name().to_owned(),
            problem: format!("holds {}, which is no whole safetensors file: upload it again", object.name),
        };
        if object.bytes < LENGTH_BYTES {
            return Err(refused());
        }
        let length = self.store.read(object, 0..LENGTH_BYTES, &alive).await?;
        let header = u64::from_le_bytes(length.as_ref().try_into().map_err(|_| refused())?);
        if header > MOST_HEADER_BYTES.min(object.bytes - LENGTH_BYTES) {
            return Err(refused());
        }
        let path = self.cache.unfinished(wanted, self.exclusive);
        let failed = |e: io::Error| StoredModelError::file(&path, e);
        let mut out = open_to_append(&path, true).map_err(failed)?;
        out.write_all(&length).map_err(failed)?;
        if header > 0 {
            let text = self.store.read(object, LENGTH_BYTES..LENGTH_BYTES + header, &alive).await?;
            out.write_all(&text).map_err(failed)?;
        }
        out.set_len(object.bytes).map_err(failed)?;
        self.finish(wanted, &out, &path)
    }

    /// Gives a whole file its name.
    fn finish(&self, wanted: &Wanted, file: &File, path: &Path) -> Result<()> {
        let disk = Disk::default();
        let object = self.cache.object(wanted);
        let named = disk.sync_file(file, path).and_then(|()| disk.replace(path, &object));
        named.map_err(|e| StoredModelError::file(path, e))
    }

    /// Bytes of a file that are here already.
    fn begun(&self, wanted: &Wanted) -> u64 {
        let path = self.cache.unfinished(wanted, self.exclusive);
        let begun = path.symlink_metadata().map_or(0, |found| found.len());
        // A download longer than its object is wrong: it starts again.
        if begun <= wanted.file.bytes && self.exclusive { begun } else { 0 }
    }
}

/// Cuts a range into pieces; an empty one is one piece.
fn pieces(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let count = (range.end - range.start).div_ceil(PIECE_BYTES).max(1);
    (0..count).map(move |number| {
        let start = range.start + number * PIECE_BYTES;
        start..range.end.min(start + PIECE_BYTES)
    })
}
