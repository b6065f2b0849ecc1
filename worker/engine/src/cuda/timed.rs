//! Work on a GPU with which its speed is found.

use std::sync::Arc;

use candle_core::{DType, Tensor};

use super::driver::DeviceBuffer;
use super::matrix::CudaMatrix;
use super::products::{Operand, ProductBatch, ProductSizes};
use super::{CudaDevice, CudaError};
use crate::device::transfers::TransferKind;
use crate::{HOST, Result};

/// Two buffers of f32 numbers, one of zeros to read and one to write.
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

    /// Copies the first to the second, and waits.
    pub(crate) fn copy(&mut self) -> Result<(), CudaError> {
        self.device.driver().copy(&self.from, &mut self.to, self.from.len())?;
        self.device.driver().wait()
    }
}

/// A square matrix, and one for its product with itself, as forward calls compute products.
#[derive(Debug)]
pub(crate) struct CudaProduct {
    device: Arc<CudaDevice>,
    factor: CudaMatrix,
    out: CudaMatrix,
}

impl CudaProduct {
    /// Of `side x side` numbers of a type. They differ from each other: by equal ones a GPU takes less power, and may be faster than in a job.
    pub(crate) fn new(device: &Arc<CudaDevice>, side: usize, numbers: DType) -> Result<Self> {
        // The golden ratio in 32 bits: multiples of it are spread evenly.
        let number = |i: usize| (i as u32).wrapping_mul(0x9e37_79b9) as f32 / u32::MAX as f32 - 0.5;
        let values: Vec<f32> = (0..side * side).map(number).collect();
        let factor = Tensor::from_vec(values, (side, side), &HOST)?.to_dtype(numbers)?;
        let factor = CudaMatrix::upload(device, TransferKind::Activations, &factor)?;
        let out = CudaMatrix::new(device, factor.numbers(), side, side)?;
        Ok(Self { device: Arc::clone(device), factor, out })
    }

    /// Multiplies so many times, and waits.
    pub(crate) fn multiply(&mut self, times: usize) -> Result<()> {
        let side = self.factor.rows();
        let factor = Operand { values: self.factor.input(), stride: side, transposed: false };
        let product = ProductBatch {
            numbers: self.factor.numbers(),
            sizes: ProductSizes { rows: side, columns: side, inner: side, stride: side },
            left: factor,
            right: factor,
            steps: [0; 3],
            count: 1,
        };
        for _ in 0..times {
            self.device.products().multiply_numbers(product, self.out.output()?)?;
        }
        Ok(self.device.driver().wait()?)
    }
}
