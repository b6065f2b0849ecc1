//! What groups call of NCCL and of the CUDA driver: all unsafe code of them.
#![allow(unsafe_code)]

mod gpu;
mod library;
#[cfg(test)]
mod on_gpu;

use std::fmt;

pub(super) use gpu::{DeviceMemory, Gpu, GpuStream, Lane};
pub(super) use library::{Communicator, ID, Nccl, Number, Operation, Progress, in_words};
#[cfg(test)]
pub(super) use on_gpu::OnGpu;

/// A call that a library refused, or an error that it found out later.
#[derive(Clone, Debug)]
pub(super) struct CallError {
    call: &'static str,
    code: i32,
    words: String,
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.call, self.words, self.code)
    }
}
