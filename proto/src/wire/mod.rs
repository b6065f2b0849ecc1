//! gRPC: the messages and services of `obsdiff.v1`, and the conversions between them and the types of this crate.
//!
//! A message becomes a type of this crate by `TryFrom`, and such a type a message by `From<&_>`. Both come from one list of fields or
//! variants (`pairs`), which names for each field how it is written and checked (`codec`); what is no copy is written by hand. Reading never
//! panics, bounds every count and length, and refuses what is missing or out of range by the field's name. Messages for people are clipped
//! when they are written, so that the other side can read whatever one side writes.

#[macro_use]
mod pairs;

mod briefing;
mod codec;
mod command;
mod details;
mod error;
mod field;
mod jobs;
mod order;
mod rendezvous;
mod runs;
mod session;
mod status;

/// The generated messages, clients and servers.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod v1 {
    tonic::include_proto!("obsdiff.v1");
}

pub use error::{FieldProblem, Side, WireError};
pub use rendezvous::{Put, Wait};

/// Descriptors for gRPC server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("obsdiff_v1");

/// The largest message that either side takes. Weights travel elsewhere.
pub const MESSAGE_LIMIT: usize = 4 << 20;

/// Metadata of a session's request: the worker's [`Reach`]. Without it the worker works alone.
pub const REACH: &str = "obsdiff-reach";

/// Metadata of a session's request: the worker wants the job's progress, because it can pass it on ([`WANTED`]).
pub const PROGRESS: &str = "obsdiff-progress";

/// The value of [`PROGRESS`].
pub const WANTED: &str = "wanted";

/// How a worker reaches others. A group takes workers of one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// Not at all: it works alone.
    #[default]
    Alone,
    /// By Gloo, over the network of the hosts.
    Gloo,
    /// By NCCL, over the links of the GPUs.
    Nccl,
}

impl Reach {
    /// The value of [`REACH`]; none for a worker that works alone.
    pub fn value(self) -> Option<&'static str> {
        match self {
            Self::Alone => None,
            Self::Gloo => Some("network"),
            Self::Nccl => Some("nccl"),
        }
    }

    /// Reads a value of [`REACH`]. By a way that this release does not know no other worker can be reached.
    pub fn of(value: Option<&[u8]>) -> Self {
        let known = [Self::Gloo, Self::Nccl];
        known.into_iter().find(|reach| reach.value().map(str::as_bytes) == value).unwrap_or_default()
    }
}

/// Shards of a package.
pub const MOST_SHARDS: usize = 1 << 20;
/// Sites, linears, parts and packages of a model.
pub const MOST_SITES: usize = 1 << 16;
/// Workers of a job.
pub const MOST_WORKERS: usize = 1 << 14;
/// Input files of a job.
pub const MOST_INPUTS: usize = 1 << 12;
/// Bytes of a message for people.
pub const LONGEST_WORDS: usize = 4 << 10;
/// The most bytes of a part's receipt.
pub const LONGEST_RECEIPT: usize = 64 << 10;
/// Bytes of a path, a URL or a name.
pub const LONGEST_NAME: usize = 4 << 10;
/// Bytes of a rendezvous's key.
pub const LONGEST_KEY: usize = 256;
/// Bytes of a rendezvous's value.
pub const LONGEST_VALUE: usize = 1 << 20;
/// Exponents lie in -1100..=1100: beyond, no f64 is left.
pub const LARGEST_EXPONENT: i32 = 1100;

/// A value, or why its message is refused.
pub type Result<T> = std::result::Result<T, WireError>;
