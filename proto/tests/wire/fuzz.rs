//! Damaged bytes: messages of the corpus with a few of their bytes changed, and noise. Reading them gives a value or an error, and
//! never panics; and a value that was read can be written and read again.
//!
//! The corpus are messages of protocol 4 as this release first wrote them: they must be read as long as it is spoken.

use std::fmt::Debug;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use obsdiff_proto::session::{CoordinatorEvent, WorkerEvent};
use obsdiff_proto::view::{JobReport, WatchMessage};
use obsdiff_proto::wire::{Put, Wait, WireError, v1};
use obsdiff_tests::Prng;
use prost::Message;

use crate::mutate::changed;

/// Changed messages for each kind of message.
const ROUNDS: usize = 20_000;

/// What became of some bytes.
#[derive(Debug, PartialEq, Eq)]
enum ReadResult {
    /// They are no message.
    Noise,
    /// The message was refused.
    Refused,
    /// The message was taken.
    Taken,
}

type FuzzTarget = (&'static str, fn(&[u8]) -> ReadResult);

const TARGETS: [FuzzTarget; 7] = [
    ("worker_event", read::<v1::WorkerEvent, WorkerEvent>),
    ("coordinator_event", read::<v1::CoordinatorEvent, CoordinatorEvent>),
    ("job", read::<v1::Job, JobReport>),
    ("news", read::<v1::WatchResponse, WatchMessage>),
    ("put", read::<v1::PutRequest, Put>),
    ("wait", read::<v1::WaitRequest, Wait>),
    ("value", read_value),
];

fn read<M, W>(bytes: &[u8]) -> ReadResult
where
    M: Message + Default + for<'a> From<&'a W>,
    W: TryFrom<M, Error = WireError> + PartialEq + Debug,
{
    let Ok(message) = M::decode(bytes) else { return ReadResult::Noise };
    let value = match W::try_from(message) {
        Ok(value) => value,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return ReadResult::Refused;
        }
    };
    let written = M::from(&value).encode_to_vec();
    assert_eq!(W::try_from(M::decode(written.as_slice()).unwrap()), Ok(value));
    ReadResult::Taken
}

fn read_value(bytes: &[u8]) -> ReadResult {
    match v1::WaitResponse::decode(bytes).map(v1::WaitResponse::into_value) {
        Err(_) => ReadResult::Noise,
        Ok(Err(_)) => ReadResult::Refused,
        Ok(Ok(_)) => ReadResult::Taken,
    }
}

/// The corpus of a kind of message, by file name.
fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wire/corpus").join(name);
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

#[test]
fn the_corpus_is_read() {
    for (name, read) in TARGETS {
        let corpus = corpus(name);
        assert!(corpus.len() >= 3, "{name}");
        for (path, bytes) in corpus {
            assert_eq!(read(&bytes), ReadResult::Taken, "{}", path.display());
        }
    }
}

#[test]
fn changed_messages_and_noise_never_panic() {
    for (at, (name, read)) in TARGETS.into_iter().enumerate() {
        let corpus: Vec<_> = corpus(name).into_iter().map(|(_, bytes)| bytes).collect();
        let mut prng = Prng::new(at as u64);
        let mut counts = [0; 3];
        for round in 0..ROUNDS {
            let bytes = match round % 8 {
                0 => (0..prng.below(200)).map(|_| prng.next() as u8).collect(),
                _ => changed(&mut prng, &corpus),
            };
            let result = catch_unwind(|| read(&bytes));
            let result = result.unwrap_or_else(|_| panic!("{name}: round {round}: {bytes:02x?}"));
            counts[result as usize] += 1;
        }
        println!("{name}: {counts:?} noise, refused, taken");
        // Changes are small enough that many messages pass, and large enough that many do not.
        assert!(counts[0] > ROUNDS / 20 && counts[2] > ROUNDS / 20, "{name}: {counts:?}");
        assert!(counts[1] > ROUNDS / 50 || name == "value", "{name}: {counts:?}");
    }
}
