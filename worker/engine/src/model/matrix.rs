//! Activations, on the host or on a device.

use candle_core::Tensor;

use crate::Result;
#[cfg(feature = "cuda")]
use crate::cuda::CudaMatrix;
#[cfg(feature = "cuda")]
use crate::device::transfers::TransferKind;

/// A matrix `rows x features` in the memory of the device that computes blocks. A clone shares the memory.
#[derive(Clone, Debug)]
pub enum Matrix {
    /// In the processor's memory.
    Host(Tensor),
    /// In a GPU's memory.
    #[cfg(feature = "cuda")]
    Cuda(CudaMatrix),
}

impl Matrix {
    /// Tokens of all batch items.
    ///
    /// # Errors
    /// When it is a tensor that is no matrix.
    pub fn rows(&self) -> Result<usize> {
        match self {
            Self::Host(tensor) => Ok(tensor.dims2()?.0),
            #[cfg(feature = "cuda")]
            Self::Cuda(matrix) => Ok(matrix.rows()),
        }
    }

    /// Features of a token.
    ///
    /// # Errors
    /// When it is a tensor that is no matrix.
    pub fn columns(&self) -> Result<usize> {
        match self {
            Self::Host(tensor) => Ok(tensor.dims2()?.1),
            #[cfg(feature = "cuda")]
            Self::Cuda(matrix) => Ok(matrix.columns()),
        }
    }

    /// The same numbers in the processor's memory. There already, they are shared; elsewhere this waits until they are computed, and
    /// copies them.
    ///
    /// # Errors
    /// When the device fails.
    pub fn to_host(&self) -> Result<Tensor> {
        match self {
            Self::Host(tensor) => Ok(tensor.clone()),
            #[cfg(feature = "cuda")]
            Self::Cuda(matrix) => matrix.to_host(TransferKind::Activations),
        }
    }

    /// The same of what a forward call predicts.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn predicted(&self) -> Result<Tensor> {
        match self {
            Self::Host(tensor) => Ok(tensor.clone()),
            #[cfg(feature = "cuda")]
            Self::Cuda(matrix) => matrix.to_host(TransferKind::Results),
        }
    }

    /// The same numbers in memory of their own, on the same device.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn copy(&self) -> Result<Self> {
        match self {
            Self::Host(tensor) => Ok(Self::Host(tensor.copy()?)),
            #[cfg(feature = "cuda")]
            Self::Cuda(matrix) => Ok(Self::Cuda(matrix.copy()?)),
        }
    }

    /// The tensor of a matrix that the processor computes with.
    ///
    /// # Errors
    /// When it is on another device.
    pub(crate) fn host(&self) -> Result<&Tensor> {
        match self {
            Self::Host(tensor) => Ok(tensor),
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => {
                Err(crate::Error::Argument("a block on the host was given a GPU's matrix".to_owned()))
            }
        }
    }

    /// The same, which nobody else holds then unless somebody did before.
    ///
    /// # Errors
    /// When it is on another device.
    pub(crate) fn into_host(self) -> Result<Tensor> {
        match self {
            Self::Host(tensor) => Ok(tensor),
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => {
                Err(crate::Error::Argument("a block on the host was given a GPU's matrix".to_owned()))
            }
        }
    }
}

#[cfg(feature = "cuda")]
impl From<CudaMatrix> for Matrix {
    fn from(matrix: CudaMatrix) -> Self {
        Self::Cuda(matrix)
    }
}

impl From<Tensor> for Matrix {
    fn from(tensor: Tensor) -> Self {
        Self::Host(tensor)
    }
}
