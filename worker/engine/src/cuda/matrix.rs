//! Activations and parameters in a GPU's memory.

use std::sync::Arc;

use bytemuck::Pod;
use candle_core::{CpuStorage, DType, Storage, Tensor, WithDType};
use half::{bf16, f16};

use super::driver::{DeviceBuffer, In, Out};
use super::{CudaDevice, CudaError};
use crate::device::transfers::TransferKind;
use crate::{Error, HOST, Result};

/// The types of numbers that blocks are computed in. Kernels of a name come for each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NumberType {
    F32,
    Bf16,
    F16,
}

impl NumberType {
    /// The type of the same name; none where blocks are not computed in it.
    pub(super) const fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F32 => Some(Self::F32),
            DType::BF16 => Some(Self::Bf16),
            DType::F16 => Some(Self::F16),
            _ => None,
        }
    }

    /// Bytes of a number.
    pub(super) const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }
}

/// A matrix `rows x columns` of f32, bf16 or f16 in a GPU's memory, row after row. A clone shares the memory.
#[derive(Clone, Debug)]
pub struct CudaMatrix {
    device: Arc<CudaDevice>,
    bytes: Arc<DeviceBuffer<u8>>,
    numbers: NumberType,
    rows: usize,
    columns: usize,
}

impl CudaMatrix {
    /// Memory for a matrix, whose numbers nobody knows.
    pub(super) fn new(
        device: &Arc<CudaDevice>,
        numbers: NumberType,
        rows: usize,
        columns: usize,
    ) -> Result<Self, CudaError> {
        let bytes = Arc::new(device.driver().buffer(rows * columns * numbers.size())?);
        Ok(Self { device: Arc::clone(device), bytes, numbers, rows, columns })
    }

    /// A tensor's copy in a GPU's memory. A vector becomes a matrix of one row.
    ///
    /// # Errors
    /// When it is neither a matrix nor a vector of f32, bf16 or f16, or the GPU has no room for it.
    pub(crate) fn upload(device: &Arc<CudaDevice>, kind: TransferKind, tensor: &Tensor) -> Result<Self> {
        let (rows, columns) = match *tensor.dims() {
            [columns] => (1, columns),
            [rows, columns] => (rows, columns),
            _ => return Err(Error::Argument("a tensor for a GPU is a matrix or a vector".to_owned())),
        };
        let tensor = tensor.contiguous()?;
        let numbers = NumberType::of(tensor.dtype())
            .ok_or_else(|| Error::Argument(format!("a GPU does not compute in {:?}", tensor.dtype())))?;
        let mut matrix = Self::new(device, numbers, rows, columns)?;
        let (storage, layout) = tensor.storage_and_layout();
        let range = layout.start_offset()..layout.start_offset() + rows * columns;
        let bytes: Option<&[u8]> = match &*storage {
            Storage::Cpu(CpuStorage::F32(values)) => values.get(range).map(bytemuck::cast_slice),
            Storage::Cpu(CpuStorage::BF16(values)) => values.get(range).map(bytemuck::cast_slice),
            Storage::Cpu(CpuStorage::F16(values)) => values.get(range).map(bytemuck::cast_slice),
            _ => None,
        };
        let bytes = bytes.ok_or_else(|| Error::Argument("a tensor is not in host memory".to_owned()))?;
        device.driver().write(kind, bytes, matrix.bytes_mut()?)?;
        Ok(matrix)
    }

    /// A matrix whose numbers are these bytes, row after row.
    pub(super) fn of_bytes(
        device: &Arc<CudaDevice>,
        kind: TransferKind,
        numbers: NumberType,
        [rows, columns]: [usize; 2],
        bytes: &[u8],
    ) -> Result<Self> {
        if bytes.len() != rows * columns * numbers.size() {
            return Err(Error::Argument(format!(
                "{} bytes are no matrix of {rows} x {columns}",
                bytes.len()
            )));
        }
        let mut matrix = Self::new(device, numbers, rows, columns)?;
        device.driver().write(kind, bytes, matrix.bytes_mut()?)?;
        Ok(matrix)
    }

    /// A copy in the host's memory, once all work before is done.
    pub(crate) fn to_host(&self, kind: TransferKind) -> Result<Tensor> {
        match self.numbers {
            NumberType::F32 => self.read::<f32>(kind),
            NumberType::Bf16 => self.read::<bf16>(kind),
            NumberType::F16 => self.read::<f16>(kind),
        }
    }

    /// The same for the type of its numbers.
    fn read<T: Pod + WithDType>(&self, kind: TransferKind) -> Result<Tensor> {
        let mut values = vec![T::zeroed(); self.count()];
        self.device.driver().read(kind, &self.bytes, bytemuck::cast_slice_mut(&mut values))?;
        Ok(Tensor::from_vec(values, (self.rows, self.columns), &HOST)?)
    }

    /// A copy in memory of its own.
    pub(crate) fn copy(&self) -> Result<Self> {
        let mut copy = Self::new(&self.device, self.numbers, self.rows, self.columns)?;
        let bytes = self.count() * self.numbers.size();
        self.device.driver().copy(&self.bytes, copy.bytes_mut()?, bytes)?;
        Ok(copy)
    }

    /// The same matrix in memory that nobody else holds: as it is, or copied.
    pub(super) fn unshared(mut self) -> Result<Self> {
        if Arc::get_mut(&mut self.bytes).is_some() { Ok(self) } else { self.copy() }
    }

    pub(crate) const fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) const fn columns(&self) -> usize {
        self.columns
    }

    pub(super) const fn numbers(&self) -> NumberType {
        self.numbers
    }

    /// Whether it is in the memory of this GPU.
    pub(super) fn is_on(&self, device: &Arc<CudaDevice>) -> bool {
        Arc::ptr_eq(&self.device, device)
    }

    const fn count(&self) -> usize {
        self.rows * self.columns
    }

    /// To be read, from its first number on.
    pub(super) fn input(&self) -> In<'_, u8> {
        self.input_from(0)
    }

    /// The same from number `first` on, counted row after row.
    pub(super) fn input_from(&self, first: usize) -> In<'_, u8> {
        self.bytes.input_from(first * self.numbers.size())
    }

    /// To be written, from number `first` on.
    ///
    /// # Errors
    /// When somebody else holds it.
    pub(super) fn output_from(&mut self, first: usize) -> Result<Out<'_, u8>> {
        let at = first * self.numbers.size();
        Ok(self.bytes_mut()?.output_from(at))
    }

    /// The same from its first number on.
    pub(super) fn output(&mut self) -> Result<Out<'_, u8>> {
        self.output_from(0)
    }

    /// Copies whole rows of a matrix of the same width to its rows from `to` on.
    pub(super) fn write_rows(&mut self, to: usize, from: &Self, first: usize, count: usize) -> Result<()> {
        if (from.numbers, from.columns) != (self.numbers, self.columns) {
            return Err(Error::Argument("rows of different width or type are not joined".to_owned()));
        }
        let device = Arc::clone(&self.device);
        let row = self.columns * self.numbers.size();
        let [to, first, count] = [to, first, count].map(|rows| rows * row);
        Ok(device.driver().copy_part(&from.bytes, first, self.bytes_mut()?, to, count)?)
    }

    fn bytes_mut(&mut self) -> Result<&mut DeviceBuffer<u8>> {
        Arc::get_mut(&mut self.bytes)
            .ok_or_else(|| Error::Argument("a matrix that others hold is not written".to_owned()))
    }
}
