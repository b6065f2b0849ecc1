//! Flat buffers that collectives send and receive.

use std::fmt;

use obsdiff_engine::device::numbers::DeviceNumbers;
use obsdiff_proto::Accumulate;

use super::{CollectiveError, Result};

/// Numbers to send. A transport refuses what it cannot reach: see [`super::Collective::gpu`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Values<'a> {
    /// 64-bit integers in host memory.
    I64(&'a [i64]),
    /// 32-bit floats in host memory.
    F32(&'a [f32]),
    /// Either in a GPU's memory.
    Device(&'a DeviceNumbers),
}

/// Where numbers are received.
#[derive(Debug, PartialEq)]
#[non_exhaustive]
pub enum Buffer<'a> {
    /// 64-bit integers in host memory.
    I64(&'a mut [i64]),
    /// 32-bit floats in host memory.
    F32(&'a mut [f32]),
    /// Either in a GPU's memory.
    Device(&'a DeviceNumbers),
}

/// How many numbers of which type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BufferShape {
    /// 64-bit integers.
    I64(usize),
    /// 32-bit floats.
    F32(usize),
}

impl Values<'_> {
    /// How many of which type.
    pub fn shape(&self) -> BufferShape {
        match self {
            Self::I64(values) => BufferShape::I64(values.len()),
            Self::F32(values) => BufferShape::F32(values.len()),
            Self::Device(numbers) => match numbers.accumulates() {
                Accumulate::Exact => BufferShape::I64(numbers.count()),
                Accumulate::F32 => BufferShape::F32(numbers.count()),
            },
        }
    }

    /// How many bytes.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::I64(values) => size_of_val(*values) as u64,
            Self::F32(values) => size_of_val(*values) as u64,
            Self::Device(numbers) => (numbers.count() * numbers.size()) as u64,
        }
    }
}

impl Buffer<'_> {
    /// How many of which type.
    pub fn shape(&self) -> BufferShape {
        self.values().shape()
    }

    /// What is in it.
    pub fn values(&self) -> Values<'_> {
        match self {
            Self::I64(values) => Values::I64(values),
            Self::F32(values) => Values::F32(values),
            Self::Device(numbers) => Values::Device(numbers),
        }
    }
}

/// Refuses numbers in a GPU's memory, on behalf of a transport that does not reach them.
///
/// # Errors
/// [`CollectiveError::Buffers`].
pub(super) fn on_host(send: Option<Values<'_>>, receive: Option<&Buffer<'_>>) -> Result<()> {
    let elsewhere = matches!(send, Some(Values::Device(_))) || matches!(receive, Some(Buffer::Device(_)));
    if elsewhere { Err(CollectiveError::Buffers(OUT_OF_REACH)) } else { Ok(()) }
}

/// What is said of numbers in a GPU's memory that a transport does not reach.
pub(super) const OUT_OF_REACH: &str = "a buffer is in a GPU's memory, which this group does not reach";

impl fmt::Display for BufferShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::I64(count) => write!(f, "{count} i64"),
            Self::F32(count) => write!(f, "{count} f32"),
        }
    }
}
