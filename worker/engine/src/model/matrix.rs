//! Activations, wherever they are computed.

use candle_core::Tensor;

use crate::Result;

/// A matrix `rows x features` in the memory of the device that computes blocks. A clone shares the memory.
#[derive(Clone, Debug)]
pub enum Matrix {
    /// In the processor's memory.
    Host(Tensor),
}

impl Matrix {
    /// Tokens of all batch items.
    ///
    /// # Errors
    /// When it is a tensor that is no matrix.
    pub fn rows(&self) -> Result<usize> {
        match self {
            Self::Host(tensor) => Ok(tensor.dims2()?.0),
        }
    }

    /// Features of a token.
    ///
    /// # Errors
    /// When it is a tensor that is no matrix.
    pub fn columns(&self) -> Result<usize> {
        match self {
            Self::Host(tensor) => Ok(tensor.dims2()?.1),
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
        }
    }

    /// The same numbers in memory of their own, on the same device.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn copy(&self) -> Result<Self> {
        match self {
            Self::Host(tensor) => Ok(Self::Host(tensor.copy()?)),
        }
    }

    /// The tensor of a matrix that the processor computes with.
    ///
    /// # Errors
    /// When it is on another device.
    pub(crate) fn host(&self) -> Result<&Tensor> {
        match self {
            Self::Host(tensor) => Ok(tensor),
        }
    }

    /// The same, without another holder.
    pub(crate) fn into_host(self) -> Result<Tensor> {
        match self {
            Self::Host(tensor) => Ok(tensor),
        }
    }
}

impl From<Tensor> for Matrix {
    fn from(tensor: Tensor) -> Self {
        Self::Host(tensor)
    }
}
