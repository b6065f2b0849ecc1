//! Work of a known size on a device, whose speed is to be found.

use std::collections::BTreeMap;
use std::time::Duration;

use candle_core::{DType, Tensor};

use super::ComputeDevice;
#[cfg(feature = "cuda")]
use crate::cuda::{CudaBuffers, CudaProduct, observation_times, solve_times};
use crate::gram::PlacedGram;
use crate::model::Matrix;
use crate::solve::{SiteSettings, SolveError};
use crate::{HOST, Result};

/// Does its work once, and returns when it is done.
pub type TimedWork = Box<dyn FnMut() -> Result<()>>;

/// How long a GPU takes for parts of some work, each done alone, by their names.
pub type PartTimes = BTreeMap<&'static str, Duration>;

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

    /// The parts of adding an observation in its memory (`tokens x n`) to a Gram with this exponent, of one of so many that are given one
    /// after another: `judge` whether it may be added, the `products` of all panels, and their `adds` to the sums. None on the processor.
    ///
    /// # Errors
    /// When the device has no room for it, or would not add it.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables))]
    pub fn observation_times(&self, rows: &Matrix, exponent: i32, times: u32) -> Result<Option<PartTimes>> {
        match self {
            Self::Cpu => Ok(None),
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => match rows {
                Matrix::Cuda(rows) => Ok(Some(observation_times(device, rows, exponent, times)?)),
                Matrix::Host(_) => Ok(None),
            },
        }
    }

    /// The parts of solving a linear (`rows x n`) of a site with this Gram by alternating directions: `factor` and `inverse` of the shifted
    /// Grams of all penalties, side by side, all `products`, and `copies` of the weight to the device and back. None on the processor.
    ///
    /// # Errors
    /// [`SolveError::GramNotFinite`], [`SolveError::Size`], [`SolveError::Device`].
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables))]
    pub fn solve_times(
        &self,
        gram: &PlacedGram,
        weight: &[f32],
        settings: SiteSettings,
    ) -> Result<Option<PartTimes>, SolveError> {
        match self {
            Self::Cpu => Ok(None),
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => {
                let packed = gram.packed().filter(|packed| packed.numbers.gpu() == device.ordinal());
                packed.map(|packed| solve_times(device, &packed, weight, settings)).transpose()
            }
        }
    }
}
