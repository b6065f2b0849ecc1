//! Flat buffers that collectives send and receive.

use std::fmt;

/// Numbers to send. Memory of a device joins as further variants: a transport refuses what it cannot reach.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Values<'a> {
    /// 64-bit integers in host memory.
    I64(&'a [i64]),
    /// 32-bit floats in host memory.
    F32(&'a [f32]),
}

/// Where numbers are received.
#[derive(Debug, PartialEq)]
#[non_exhaustive]
pub enum Buffer<'a> {
    /// 64-bit integers in host memory.
    I64(&'a mut [i64]),
    /// 32-bit floats in host memory.
    F32(&'a mut [f32]),
}

/// How many numbers of which type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// 64-bit integers.
    I64(usize),
    /// 32-bit floats.
    F32(usize),
}

impl Values<'_> {
    /// How many of which type.
    pub fn shape(&self) -> Shape {
        match self {
            Self::I64(values) => Shape::I64(values.len()),
            Self::F32(values) => Shape::F32(values.len()),
        }
    }

    /// How many bytes.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::I64(values) => size_of_val(*values) as u64,
            Self::F32(values) => size_of_val(*values) as u64,
        }
    }
}

impl Buffer<'_> {
    /// How many of which type.
    pub fn shape(&self) -> Shape {
        self.values().shape()
    }

    /// What is in it.
    pub fn values(&self) -> Values<'_> {
        match self {
            Self::I64(values) => Values::I64(values),
            Self::F32(values) => Values::F32(values),
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::I64(count) => write!(f, "{count} i64"),
            Self::F32(count) => write!(f, "{count} f32"),
        }
    }
}
