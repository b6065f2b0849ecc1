//! The numbers of a Gram as a collective takes them: piece by piece, on the host or on a device.

use std::ops::Range;

use obsdiff_engine::device::ComputeDevice;
use obsdiff_engine::device::numbers::DeviceNumbers;
use obsdiff_engine::gram::{Gram, GramError, GramSums, GramSumsMut, PlacedGram};
use obsdiff_proto::Accumulate;

use crate::collective::{Buffer, Values};

/// Numbers to send.
pub(super) enum Outgoing<'a> {
    Exact(&'a [i64]),
    F32(&'a [f32]),
    Device(DeviceNumbers),
}

impl<'a> Outgoing<'a> {
    /// The sums of a Gram.
    pub(super) fn of(gram: &'a PlacedGram) -> Self {
        match (gram.numbers(), gram.host().map(|gram| gram.sums())) {
            (Some(numbers), _) => Self::Device(numbers),
            (None, Some(GramSums::Exact(sums))) => Self::Exact(sums),
            (None, Some(GramSums::F32(sums))) => Self::F32(sums),
            (None, None) => Self::Exact(&[]),
        }
    }

    /// Does something with some of them.
    pub(super) fn with<T>(&self, range: Range<usize>, act: impl FnOnce(Values<'_>) -> T) -> T {
        match self {
            Self::Exact(sums) => act(Values::I64(&sums[range])),
            Self::F32(sums) => act(Values::F32(&sums[range])),
            Self::Device(numbers) => act(Values::Device(&numbers.part(range))),
        }
    }
}

/// Where numbers are received.
pub(super) enum Incoming<'a> {
    Exact(&'a mut [i64]),
    F32(&'a mut [f32]),
    Device(DeviceNumbers),
}

impl<'a> Incoming<'a> {
    /// The sums of a Gram of the host.
    pub(super) fn of(gram: &'a mut Gram) -> Self {
        match gram.parts_mut().0 {
            GramSumsMut::Exact(sums) => Self::Exact(sums),
            GramSumsMut::F32(sums) => Self::F32(sums),
        }
    }

    /// Does something with some of them.
    pub(super) fn with<T>(&mut self, range: Range<usize>, act: impl FnOnce(Buffer<'_>) -> T) -> T {
        match self {
            Self::Exact(sums) => act(Buffer::I64(&mut sums[range])),
            Self::F32(sums) => act(Buffer::F32(&mut sums[range])),
            Self::Device(numbers) => act(Buffer::Device(&numbers.part(range))),
        }
    }
}

/// As many zeros as a piece has: what a rank without sums sends, and where one receives that needs no sum.
pub(super) enum ZeroPiece {
    Exact(Vec<i64>),
    F32(Vec<f32>),
    Device(DeviceNumbers),
}

impl ZeroPiece {
    /// In the memory of a device, where there is one, else in the host's.
    ///
    /// # Errors
    /// [`GramError::Device`].
    pub(super) fn new(
        count: usize,
        accumulate: Accumulate,
        device: Option<&ComputeDevice>,
    ) -> Result<Self, GramError> {
        let on_device = device.map(|device| device.zeros(accumulate, count)).transpose()?.flatten();
        Ok(match (on_device, accumulate) {
            (Some(numbers), _) => Self::Device(numbers),
            (None, Accumulate::Exact) => Self::Exact(vec![0; count]),
            (None, Accumulate::F32) => Self::F32(vec![0.0; count]),
        })
    }

    pub(super) fn outgoing(&self) -> Outgoing<'_> {
        match self {
            Self::Exact(zeros) => Outgoing::Exact(zeros),
            Self::F32(zeros) => Outgoing::F32(zeros),
            Self::Device(numbers) => Outgoing::Device(numbers.clone()),
        }
    }

    /// What is received there is lost.
    pub(super) fn incoming(&mut self) -> Incoming<'_> {
        match self {
            Self::Exact(zeros) => Incoming::Exact(zeros),
            Self::F32(zeros) => Incoming::F32(zeros),
            Self::Device(numbers) => Incoming::Device(numbers.clone()),
        }
    }
}
