//! Work of a known size on a device, whose speed is to be found.

use candle_core::{DType, Device, Tensor};

use super::ComputeDevice;
use crate::Result;
#[cfg(feature = "cuda")]
use crate::cuda::CudaBuffers;

/// Does its work once, and returns when it is done.
pub type TimedWork = Box<dyn FnMut() -> Result<()>>;

impl ComputeDevice {
    /// A product of two f32 matrices of `side x side` in its memory: 2 side^3 operations.
    ///
    /// # Errors
    /// When the device has no room for them.
    pub fn timed_product(&self, side: usize) -> Result<TimedWork> {
        match self {
            Self::Cpu => {
                let matrix = Tensor::ones((side, side), DType::F32, &Device::Cpu)?;
                Ok(Box::new(move || Ok(matrix.matmul(&matrix).map(drop)?)))
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => {
                let mut buffers = CudaBuffers::new(device, side * side)?;
                Ok(Box::new(move || Ok(buffers.multiply(side)?)))
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
