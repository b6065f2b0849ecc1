//! Prompts as the transformer reads them, kept for as long as they are needed.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use candle_core::{DType, Tensor};
use obsdiff_proto::lock;
use tempfile::{SpooledTempFile, spooled_tempfile_in};

use crate::pipeline::{Conditioning, TextEncoders};
use crate::{Error, HOST, Result};

/// Where the conditionings of a list of prompts are read from, a batch at a time.
pub trait Conditionings: fmt::Debug + Send + Sync {
    /// How many prompts there are; their ids count from 0.
    fn prompts(&self) -> u32;

    /// The empty prompt's conditioning.
    fn negative(&self) -> &Conditioning;

    /// The conditionings of the prompts with these ids.
    ///
    /// # Errors
    /// When there is no prompt with such an id, or they cannot be read.
    fn read(&self, prompts: Range<u32>) -> Result<Vec<Conditioning>>;
}

/// Encoded prompts of this process, each text kept once.
///
/// Up to [`Encoded::IN_MEMORY`] bytes of them are kept in memory. When there are more, all move to a file without a name, which is
/// gone with the process: thousands of prompts then take no memory but that of the batch being read.
pub struct Encoded {
    spool: Mutex<SpooledTempFile>,
    folder: PathBuf,
    /// Where the conditioning of each prompt starts, by the prompt's id.
    places: Vec<u64>,
    /// The conditioning of the empty prompt, which classifier-free guidance needs.
    negative: Conditioning,
}

impl Encoded {
    /// Bytes of conditionings that stay in memory.
    pub const IN_MEMORY: usize = 32 << 20;

    /// Encodes `prompts` and the empty one, and keeps them in `dtype` on `device`, the transformer's. A file, where one is needed, lies
    /// in `folder`. `progress` is called as by [`TextEncoders::encode_each`].
    ///
    /// # Errors
    /// When a prompt cannot be encoded, or the folder has no room.
    pub fn new(
        encoders: &TextEncoders,
        prompts: &[&str],
        dtype: DType,
        folder: &Path,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let mut spool = spooled_tempfile_in(Self::IN_MEMORY, folder);
        let (mut kept, mut negative) = (BTreeMap::new(), None);
        let texts: Vec<&str> = prompts.iter().copied().chain([""]).collect();
        let mut keep = |prompt: &str, conditioning: Conditioning| {
            let conditioning = conditioning.to(dtype)?;
            let written = spool.stream_position().and_then(|place| {
                conditioning.text.write_bytes(&mut spool).map_err(io::Error::other)?;
                conditioning.pooled.write_bytes(&mut spool).map_err(io::Error::other)?;
                Ok(place)
            });
            kept.insert(prompt.to_owned(), written.map_err(|e| Error::file(folder, e))?);
            if prompt.is_empty() {
                negative = Some(conditioning);
            }
            Ok(())
        };
        encoders.encode_each(&texts, &mut keep, progress)?;
        spool.flush().map_err(|e| Error::file(folder, e))?;
        // One that were left out would give every later prompt the noise of the one before it.
        let missing = |prompt: &str| Error::Argument(format!("the prompt \"{prompt}\" was not encoded"));
        let place = |prompt: &&str| kept.get(*prompt).copied().ok_or_else(|| missing(prompt));
        let places = prompts.iter().map(place).collect::<Result<_>>()?;
        let negative = negative.ok_or_else(|| Error::Argument("no prompt was encoded".to_owned()))?;
        Ok(Self { spool: Mutex::new(spool), folder: folder.to_owned(), places, negative })
    }

    /// So many prompts that all have the same `conditioning`, the empty prompt included: for measurements.
    ///
    /// # Errors
    /// When it cannot be kept.
    pub fn repeated(conditioning: Conditioning, prompts: u32) -> Result<Self> {
        let folder = std::env::temp_dir();
        let mut spool = spooled_tempfile_in(Self::IN_MEMORY, &folder);
        let written = [&conditioning.text, &conditioning.pooled].map(|tensor| tensor.write_bytes(&mut spool));
        written.into_iter().collect::<candle_core::Result<Vec<_>>>()?;
        let places = vec![0; prompts as usize];
        Ok(Self { spool: Mutex::new(spool), folder, places, negative: conditioning })
    }

    /// Bytes of `prompts` conditionings of `tokens x width` and `pooled` numbers of `number` bytes each.
    pub const fn bytes(prompts: u64, [tokens, width, pooled]: [u64; 3], number: u64) -> u64 {
        prompts.saturating_mul((tokens.saturating_mul(width)).saturating_add(pooled)).saturating_mul(number)
    }
}

impl Conditionings for Encoded {
    fn prompts(&self) -> u32 {
        self.places.len() as u32
    }

    fn negative(&self) -> &Conditioning {
        &self.negative
    }

    fn read(&self, prompts: Range<u32>) -> Result<Vec<Conditioning>> {
        let places = self.places.get(prompts.start as usize..prompts.end as usize).ok_or_else(|| {
            Error::Argument(format!("prompts {prompts:?} are not among {}", self.places.len()))
        })?;
        let like = &self.negative;
        let mut spool = lock(&self.spool);
        let mut read = |place: u64| {
            spool.seek(SeekFrom::Start(place)).map_err(|e| Error::file(&self.folder, e))?;
            let mut next = |like: &Tensor| {
                let mut bytes = vec![0; like.elem_count() * like.dtype().size_in_bytes()];
                spool.read_exact(&mut bytes).map_err(|e| Error::file(&self.folder, e))?;
                Ok::<_, Error>(Tensor::from_raw_buffer(&bytes, like.dtype(), like.dims(), &HOST)?)
            };
            Ok(Conditioning { text: next(&like.text)?, pooled: next(&like.pooled)? })
        };
        places.iter().map(|place| read(*place)).collect()
    }
}

impl fmt::Debug for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoded").field("prompts", &self.places.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::PipelineFolder;

    fn encoded(prompts: &[&str], dtype: DType, folder: &Path) -> (Vec<Conditioning>, Encoded) {
        let asset = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/assets/shapes-sd3");
        let encoders = PipelineFolder::open(&asset).unwrap().text_encoders(24).unwrap();
        let expected = encoders.encode(prompts, &mut |_, _| {}).unwrap();
        let kept = Encoded::new(&encoders, prompts, dtype, folder, &mut |_, _| {}).unwrap();
        (expected, kept)
    }

    fn numbers(one: &Conditioning) -> Vec<f32> {
        let flat =
            |t: &Tensor| t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        [flat(&one.text), flat(&one.pooled)].concat()
    }

    #[test]
    fn encoding_tells_after_each_prompt_how_much_is_done() {
        let asset = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/assets/shapes-sd3");
        let encoders = PipelineFolder::open(&asset).unwrap().text_encoders(24).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut reported = Vec::new();
        let mut report = |done, all| reported.push((done, all));
        let prompts = ["a red circle", "on grey", "a ring"];
        Encoded::new(&encoders, &prompts, DType::F32, folder.path(), &mut report).unwrap();
        let (last, all) = *reported.last().unwrap();
        assert!(last == all && reported.iter().all(|(_, of)| *of == all), "{reported:?}");
        // The empty prompt is one more.
        assert!(reported.len() > prompts.len() && reported.is_sorted_by(|a, b| a.0 < b.0), "{reported:?}");
    }

    #[test]
    fn every_prompt_comes_back_as_it_was_encoded_from_memory_and_from_a_file() {
        let prompts = ["a red circle", "on grey", "a red circle", ""];
        for dtype in [DType::F32, DType::BF16] {
            let folder = tempfile::tempdir().unwrap();
            let (expected, kept) = encoded(&prompts, dtype, folder.path());
            assert_eq!(kept.prompts(), 4);
            for roll in [false, true] {
                if roll {
                    kept.spool.lock().unwrap().roll().unwrap();
                }
                for id in [2, 0, 1, 3] {
                    let found = kept.read(id..id + 1).unwrap().remove(0);
                    let expected = expected[id as usize].to(dtype).unwrap();
                    assert_eq!(found.text.dtype(), dtype);
                    assert_eq!(numbers(&found), numbers(&expected));
                }
            }
            assert_eq!(numbers(kept.negative()), numbers(&expected[3].to(dtype).unwrap()));
            assert_eq!(kept.places[0], kept.places[2], "a text is kept once");
            assert!(kept.read(3..5).is_err());
        }
    }
}
