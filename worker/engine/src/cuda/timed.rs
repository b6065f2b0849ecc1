//! Two buffers of a GPU, with which its speed is found.

use std::sync::Arc;

use super::driver::DeviceBuffer;
use super::libraries::{Operand, ProductSizes};
use super::{CudaDevice, CudaError};

/// Buffers of f32 numbers, one of zeros to read and one to write.
#[derive(Debug)]
pub(crate) struct CudaBuffers {
    device: Arc<CudaDevice>,
    from: DeviceBuffer<f32>,
    to: DeviceBuffer<f32>,
}

impl CudaBuffers {
    /// Of so many numbers each.
    pub(crate) fn new(device: &Arc<CudaDevice>, numbers: usize) -> Result<Self, CudaError> {
        let driver = device.driver();
        let (from, to) = (driver.zeros(numbers)?, driver.zeros(numbers)?);
        Ok(Self { device: Arc::clone(device), from, to })
    }

    /// Multiplies the first as a matrix of `side x side` by itself, and waits.
    pub(crate) fn multiply(&mut self, side: usize) -> Result<(), CudaError> {
        let sizes = ProductSizes { rows: side, columns: side, inner: side, stride: side };
        let factor = Operand { values: self.from.input(), stride: side, transposed: false };
        self.device.libraries().multiply(sizes, 1.0, factor, factor, 0.0, self.to.output())?;
        self.device.driver().wait()
    }

    /// Copies the first to the second, and waits.
    pub(crate) fn copy(&mut self) -> Result<(), CudaError> {
        self.device.driver().copy(&self.from, &mut self.to, self.from.len())?;
        self.device.driver().wait()
    }
}
