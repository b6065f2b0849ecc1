//! An observation on a GPU, and whether it may be added to a Gram.

use super::CudaError;
use super::driver::{CudaDriver, DeviceBuffer, Element, In};
use super::kernels::Launch;
use super::matrix::{CudaMatrix, NumberType};
use super::sums::DeviceSums;
use super::verdicts::Verdicts;
use crate::device::memory::TOKENS_OF_PART;
use crate::device::transfers::TransferKind;
use crate::gram::Gram;

/// A site's Gram: as [`Gram`], with its sums on the GPU.
#[derive(Debug)]
pub(super) struct DeviceGram {
    /// Which of the set's [`Verdicts`] is its own.
    pub(super) place: usize,
    pub(super) width: usize,
    pub(super) exponent: i32,
    pub(super) sums: DeviceSums,
    /// Of the host's Gram, to which the mass of what is observed is added as the host adds it.
    pub(super) host: Gram,
}

/// An observation in a GPU's memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Observation<'a> {
    pub(super) values: In<'a, u8>,
    pub(super) numbers: NumberType,
    pub(super) tokens: usize,
    /// Values between the starts of two rows. Those behind a row's features are zeros.
    pub(super) stride: usize,
    /// The matrix whose memory it is, which others may free or write; none where that is left to its owner.
    pub(super) matrix: Option<&'a CudaMatrix>,
}

/// Memory for an observation's squares. It grows to what the largest needs.
#[derive(Debug, Default)]
pub(super) struct Squares {
    parts: Option<DeviceBuffer<f64>>,
    energy: Option<DeviceBuffer<f64>>,
}

impl Squares {
    /// Adds `alpha` times an observation's column energies to those of the host.
    pub(super) fn add_energy(
        &mut self,
        driver: &CudaDriver,
        observation: Observation<'_>,
        alpha: f64,
        energy: &mut [f64],
    ) -> Result<(), CudaError> {
        self.square(driver, observation, alpha)?;
        let mut brought = vec![0.0; observation.stride];
        driver.read(TransferKind::Figures, grown(driver, &mut self.energy, brought.len())?, &mut brought)?;
        energy.iter_mut().zip(brought).for_each(|(energy, brought)| *energy += brought);
        Ok(())
    }

    /// Leaves `alpha` times an observation's column energies.
    fn square(
        &mut self,
        driver: &CudaDriver,
        observation: Observation<'_>,
        alpha: f64,
    ) -> Result<(), CudaError> {
        let Observation { values, numbers, tokens, stride: width, .. } = observation;
        let count = tokens.div_ceil(TOKENS_OF_PART);
        let parts = grown(driver, &mut self.parts, count * width)?;
        let launch = Launch::parts(width, count);
        driver.column_squares(numbers, launch, values, tokens, width, parts.output())?;
        let energy = grown(driver, &mut self.energy, width)?;
        driver.set_bytes(energy, 0)?;
        driver.add_column_squares(Launch::each(width), parts.input(), count, width, alpha, energy.output())
    }

    /// Whether an observation has room without new memory.
    pub(super) fn have_room(&self, observation: Observation<'_>) -> bool {
        let [parts, energy] = Self::lengths(observation);
        self.parts.as_ref().is_some_and(|held| held.len() >= parts)
            && self.energy.as_ref().is_some_and(|held| held.len() >= energy)
    }

    /// Takes memory of the driver's stream for an observation. What works with the memory before is done there.
    pub(super) fn reserve(
        &mut self,
        driver: &CudaDriver,
        observation: Observation<'_>,
    ) -> Result<(), CudaError> {
        let [parts, energy] = Self::lengths(observation);
        grown(driver, &mut self.parts, parts)?;
        grown(driver, &mut self.energy, energy)?;
        Ok(())
    }

    fn lengths(Observation { tokens, stride: width, .. }: Observation<'_>) -> [usize; 2] {
        [tokens.div_ceil(TOKENS_OF_PART) * width, width]
    }

    /// Squares an observation, so that it can be judged.
    pub(super) fn measure(
        &mut self,
        driver: &CudaDriver,
        observation: Observation<'_>,
    ) -> Result<(), CudaError> {
        self.square(driver, observation, 1.0)
    }

    /// Leaves in its Gram's verdict whether the observation that was measured may be added to the sums as they are.
    pub(super) fn judge(
        &mut self,
        driver: &CudaDriver,
        gram: &DeviceGram,
        alpha: f64,
        verdicts: &mut Verdicts,
    ) -> Result<(), CudaError> {
        let n = gram.width;
        let energy = grown(driver, &mut self.energy, n)?.input();
        let verdict = verdicts.refused(gram.place);
        match &gram.sums {
            DeviceSums::Exact(sums) => {
                let unit = unit(gram.exponent);
                driver.admit_observation_exact(Launch::each(n), energy, sums.input(), n, alpha, unit, verdict)
            }
            DeviceSums::F32(sums) => {
                driver.admit_observation_f32(Launch::each(n), energy, sums.input(), n, alpha, verdict)
            }
        }
    }
}

/// What one unit of exact sums is worth.
pub(super) fn unit(exponent: i32) -> f64 {
    (-f64::from(exponent)).exp2()
}

/// A buffer of at least so many values. One that is too small is replaced, and what it held is lost.
pub(super) fn grown<'a, T: Element>(
    driver: &CudaDriver,
    buffer: &'a mut Option<DeviceBuffer<T>>,
    length: usize,
) -> Result<&'a mut DeviceBuffer<T>, CudaError> {
    if buffer.as_ref().is_none_or(|buffer| buffer.len() < length) {
        // The old one goes first.
        *buffer = None;
    }
    match buffer {
        Some(buffer) => Ok(buffer),
        None => Ok(buffer.insert(driver.buffer(length)?)),
    }
}
