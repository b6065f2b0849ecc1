//! Work of a known size on a device, whose speed is to be found.

use candle_core::{DType, Tensor};

use super::ComputeDevice;
#[cfg(feature = "cuda")]
use crate::cuda::{CudaBuffers, CudaProduct};
use crate::{HOST, Result};

/// Does its work once, and returns when it is done.
pub type TimedWork = Box<dyn FnMut() -> Result<()>>;

impl ComputeDevice {
    /// So many products of two matrices of `side x side` numbers of a type in its memory, one after another: 2 side^3 operations each. A GPU
    /// computes them as it does those of forward calls.
    ///
    /// # Errors
    /// When the device has no room for them, or does not compute in that type.
    pub fn timed_products(&self, side: usize, numbers: DType, times: usize) -> Result<TimedWork> {
        match self {
            Self::Cpu => {
                let matrix = Tensor::ones((side, side), numbers, &HOST)?;
                Ok(Box::new(move || (0..times).try_for_each(|_| Ok(matrix.matmul(&matrix).map(drop)?))))
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => {
                let mut product = CudaProduct::new(device, side, numbers)?;
                Ok(Box::new(move || product.multiply(times)))
            }
        }
    }

    /// A copy of so many f32 numbers within its own memory: 8 bytes of it are read or written for each. None where it works in the host's.
    ///
    /// # Errors
    /// When the device has no room for them.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables))]
    pub fn timed_copy(&self, numbers: usize) -> Result<Option<TimedWork>> {
        match self {
            Self::Cpu => Ok(None),
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => {
                let mut buffers = CudaBuffers::new(device, numbers)?;
                Ok(Some(Box::new(move || Ok(buffers.copy()?))))
            }
        }
    }
}
