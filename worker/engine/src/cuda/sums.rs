//! The sums of a Gram in a GPU's memory, and the Gram that shares them.

use std::sync::Arc;

use obsdiff_proto::Accumulate;

use super::driver::{CudaDriver, DeviceBuffer, Element};
use super::kernels::Launch;
use super::{CudaDevice, CudaError};
use crate::device::numbers::DeviceNumbers;
use crate::device::transfers::TransferKind;
use crate::gram::{Gram, GramError, GramSums, GramSumsMut};
use crate::solve::PackedUpper;

/// The upper triangle of a Gram's sums. A clone shares the memory.
#[derive(Clone, Debug)]
pub(super) enum DeviceSums {
    Exact(Arc<DeviceBuffer<i64>>),
    F32(Arc<DeviceBuffer<f32>>),
}

impl DeviceSums {
    /// A copy of the host's sums.
    pub(super) fn upload(driver: &CudaDriver, sums: &GramSums) -> Result<Self, CudaError> {
        Ok(match sums {
            GramSums::Exact(sums) => Self::Exact(Arc::new(driver.upload(TransferKind::Grams, sums)?)),
            GramSums::F32(sums) => Self::F32(Arc::new(driver.upload(TransferKind::Grams, sums)?)),
        })
    }

    /// So many zeros.
    pub(super) fn zeros(
        driver: &CudaDriver,
        accumulate: Accumulate,
        count: usize,
    ) -> Result<Self, CudaError> {
        Ok(match accumulate {
            Accumulate::Exact => Self::Exact(Arc::new(driver.zeros(count)?)),
            Accumulate::F32 => Self::F32(Arc::new(driver.zeros(count)?)),
        })
    }

    /// The same for memory that is used while the first stream works. It waits for that only where the driver gives it what the first stream
    /// has yet to give back. Nothing where there is no room.
    fn zeros_beside(
        device: &CudaDevice,
        accumulate: Accumulate,
        count: usize,
    ) -> Result<Option<Self>, CudaError> {
        fn zeros<T: Element>(device: &CudaDevice, count: usize) -> Result<Arc<DeviceBuffer<T>>, CudaError> {
            let zeros = device.beside().zeros(count)?;
            device.beside().wait()?;
            Ok(Arc::new(device.driver().adopt(zeros)))
        }
        let zeros = match accumulate {
            Accumulate::Exact => zeros(device, count).map(Self::Exact),
            Accumulate::F32 => zeros(device, count).map(Self::F32),
        };
        match zeros {
            Err(CudaError::Memory { .. }) => Ok(None),
            zeros => zeros.map(Some),
        }
    }

    /// Copies them to the host, once all work of the driver's stream is done.
    pub(super) fn read(&self, driver: &CudaDriver, to: GramSumsMut<'_>) -> Result<(), GramError> {
        match (self, to) {
            (Self::Exact(from), GramSumsMut::Exact(to)) => Ok(driver.read(TransferKind::Grams, from, to)?),
            (Self::F32(from), GramSumsMut::F32(to)) => Ok(driver.read(TransferKind::Grams, from, to)?),
            _ => Err(GramError::Mismatch),
        }
    }

    /// Makes them memory that nobody else holds: as they are, or copied.
    pub(super) fn unshare(&mut self, driver: &CudaDriver) -> Result<(), CudaError> {
        fn unshare<T: Element>(
            driver: &CudaDriver,
            buffer: &mut Arc<DeviceBuffer<T>>,
        ) -> Result<(), CudaError> {
            if Arc::get_mut(buffer).is_none() {
                let mut copy = driver.buffer(buffer.len())?;
                driver.copy(buffer, &mut copy, buffer.len())?;
                *buffer = Arc::new(copy);
            }
            Ok(())
        }
        match self {
            Self::Exact(buffer) => unshare(driver, buffer),
            Self::F32(buffer) => unshare(driver, buffer),
        }
    }
}

/// To be written.
///
/// # Errors
/// When somebody else holds it.
pub(super) fn own<T>(buffer: &mut Arc<DeviceBuffer<T>>) -> Result<&mut DeviceBuffer<T>, CudaError> {
    let problem = "they are shared".to_owned();
    Arc::get_mut(buffer).ok_or(CudaError::Call { call: "adding to sums", problem })
}

/// A site's Gram as [`Gram`], with its sums in a GPU's memory.
#[derive(Debug)]
pub struct CudaGram {
    device: Arc<CudaDevice>,
    sums: DeviceSums,
    /// The Gram without its sums.
    host: Gram,
}

impl CudaGram {
    /// A Gram of these sums, on which all work is done.
    pub(super) fn new(device: &Arc<CudaDevice>, sums: &DeviceSums, host: &Gram) -> Self {
        Self { device: Arc::clone(device), sums: sums.clone(), host: host.clone() }
    }

    /// A Gram of this mass whose sums are still to be received; nothing where the GPU has no room for it beside what it holds, held since
    /// memory was released, and `more` bytes.
    pub(crate) fn to_receive(
        device: &Arc<CudaDevice>,
        host: Gram,
        more: u64,
    ) -> Result<Option<Self>, GramError> {
        let (width, accumulate) = (host.width(), host.accumulates());
        if device.driver().room_beside(more)? < Gram::bytes(width, accumulate) {
            return Ok(None);
        }
        let sums = DeviceSums::zeros_beside(device, accumulate, Gram::entries(width))?;
        Ok(sums.map(|sums| Self { device: Arc::clone(device), sums, host }))
    }

    /// So many zeros in a GPU's memory, where it has room.
    pub(crate) fn zeros(
        device: &Arc<CudaDevice>,
        accumulate: Accumulate,
        count: usize,
    ) -> Result<Option<DeviceNumbers>, GramError> {
        let sums = DeviceSums::zeros_beside(device, accumulate, count)?;
        Ok(sums.map(|sums| numbers(device, &sums)))
    }

    pub(crate) const fn width(&self) -> usize {
        self.host.width()
    }

    pub(crate) const fn exponent(&self) -> i32 {
        self.host.exponent()
    }

    pub(crate) const fn accumulates(&self) -> Accumulate {
        self.host.accumulates()
    }

    pub(crate) const fn mass_units(&self) -> i64 {
        self.host.mass_units()
    }

    /// S divided by its mass.
    pub(crate) fn packed(&self) -> PackedUpper {
        PackedUpper { n: self.width(), unit: self.host.value_of_entry(), numbers: self.numbers() }
    }

    /// As [`Gram::diagonal_units`].
    pub(crate) fn diagonal_units(&self) -> Result<Option<Vec<i64>>, GramError> {
        match &self.sums {
            DeviceSums::Exact(sums) => Ok(Some(self.vector_of(sums, |driver, launch, out| {
                driver.diagonal_exact(launch, sums.input(), self.width(), out.output())
            })?)),
            DeviceSums::F32(_) => Ok(None),
        }
    }

    /// As [`Gram::diagonal`].
    pub(crate) fn diagonal(&self) -> Result<Vec<f64>, GramError> {
        match &self.sums {
            DeviceSums::Exact(_) => {
                let unit = self.host.value_of_unit();
                Ok(self
                    .diagonal_units()?
                    .unwrap_or_default()
                    .into_iter()
                    .map(|sum| sum as f64 * unit)
                    .collect())
            }
            DeviceSums::F32(sums) => {
                let diagonal: Vec<f32> = self.vector_of(sums, |driver, launch, out| {
                    driver.diagonal_f32(launch, sums.input(), self.width(), out.output())
                })?;
                Ok(diagonal.into_iter().map(f64::from).collect())
            }
        }
    }

    /// The sums of the diagonal, as they are.
    pub(super) fn diagonal_sums(&self) -> Result<Vec<f64>, GramError> {
        match self.diagonal_units()? {
            Some(units) => Ok(units.into_iter().map(|sum| sum as f64).collect()),
            None => self.diagonal(),
        }
    }

    /// The sums of the last column, as they are.
    pub(super) fn last_column(&self) -> Result<Vec<f64>, GramError> {
        Ok(match &self.sums {
            DeviceSums::Exact(sums) => {
                let column = self.vector_of(sums, |driver, launch, out| {
                    driver.last_column_exact(launch, sums.input(), self.width(), out.output())
                })?;
                column.into_iter().map(|sum| sum as f64).collect()
            }
            DeviceSums::F32(sums) => {
                let column = self.vector_of(sums, |driver, launch, out| {
                    driver.last_column_f32(launch, sums.input(), self.width(), out.output())
                })?;
                column.into_iter().map(f64::from).collect()
            }
        })
    }

    /// What a kernel takes out of the sums, n of them, beside what the GPU works on.
    fn vector_of<T: Element>(
        &self,
        _: &Arc<DeviceBuffer<T>>,
        take: impl FnOnce(&CudaDriver, Launch, &mut DeviceBuffer<T>) -> Result<(), CudaError>,
    ) -> Result<Vec<T>, GramError> {
        let (driver, n) = (self.device.beside(), self.width());
        let mut on_device = driver.buffer::<T>(n)?;
        take(driver, Launch::each(n), &mut on_device)?;
        let mut vector = vec![T::default(); n];
        driver.read(TransferKind::Figures, &on_device, &mut vector)?;
        Ok(vector)
    }

    /// A copy in the host's memory, made beside what the GPU works on.
    pub(crate) fn to_host(&self) -> Result<Gram, GramError> {
        let mut gram = Gram::new(self.width(), self.accumulates(), self.exponent());
        let (sums, mass) = gram.parts_mut();
        self.sums.read(self.device.beside(), sums)?;
        *mass = self.mass_units();
        Ok(gram)
    }

    /// What one sum is worth in the mean.
    pub(super) fn value_of_entry(&self) -> f64 {
        self.host.value_of_entry()
    }

    /// The GPU in whose memory its sums are.
    pub(super) const fn device(&self) -> &Arc<CudaDevice> {
        &self.device
    }

    /// Whether its sums are in the memory of this GPU, on whose streams they are worked on.
    pub(crate) fn is_on(&self, device: &Arc<CudaDevice>) -> bool {
        Arc::ptr_eq(&self.device, device)
    }

    /// Its sums, for a collective.
    pub(crate) fn numbers(&self) -> DeviceNumbers {
        numbers(&self.device, &self.sums)
    }
}

/// Sums, for a collective.
fn numbers(device: &CudaDevice, sums: &DeviceSums) -> DeviceNumbers {
    match sums {
        DeviceSums::Exact(sums) => sums.numbers(device.ordinal(), Accumulate::Exact),
        DeviceSums::F32(sums) => sums.numbers(device.ordinal(), Accumulate::F32),
    }
}
