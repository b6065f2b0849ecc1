//! How far workers are with the conditioning of prompts.

/// How far a worker is with the conditioning of the job's prompts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Encoding {
    /// It cannot be asked to encode yet.
    #[default]
    Unready,
    /// It can be asked to encode, and waits until it is.
    Ready,
    /// It has found the conditioning of every prompt in the store.
    Done,
}
