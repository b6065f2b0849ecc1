//! Where blocks are computed, Grams summed and linears solved.

pub mod memory;
pub mod moments;
pub mod numbers;
mod timed;
pub mod transfers;

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::sync::Arc;

use candle_core::Tensor;
use obsdiff_proto::{Accumulate, MemoryExcess};
use thiserror::Error;

use crate::Result;
#[cfg(feature = "cuda")]
use crate::cuda::{
    CudaDevice, CudaError, CudaGram, CudaGrams, CudaMatrix, CudaSolver, CudaStructured, SymmetricSquare,
};
#[cfg(feature = "cuda")]
use crate::device::memory::opened_bytes;
use crate::device::numbers::DeviceNumbers;
#[cfg(feature = "cuda")]
use crate::device::transfers::TransferKind;
use crate::device::transfers::Transfers;
use crate::gram::{Gram, GramError, GramSet, PlacedGram};
use crate::model::Matrix;
use crate::solve::structured::{StructuredLayer, StructuredLinear, energy};
use crate::solve::{CpuSolver, SiteSolver, SolveError, check_size};

pub use timed::{PartTimes, TimedWork};

/// The name of a device: `cpu`, `cuda` or `cuda:N`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceName {
    /// The processor.
    #[default]
    Cpu,
    /// A GPU of NVIDIA's, counted from 0.
    Cuda(usize),
}

/// Why a device cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DeviceError {
    /// No name of a device.
    #[error("\"{0}\" is not a device: cpu, cuda or cuda:N")]
    Name(String),
    /// This build has no code for GPUs.
    #[error(
        "this build of obsdiff cannot use GPUs: build it with `--features cuda`, or run it with --device cpu"
    )]
    NotBuilt,
    /// The GPU cannot be used.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

impl FromStr for DeviceName {
    type Err = DeviceError;

    fn from_str(name: &str) -> Result<Self, DeviceError> {
        match name.split_once(':') {
            None if name == "cpu" => Ok(Self::Cpu),
            None if name == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", ordinal)) => {
                ordinal.parse().map(Self::Cuda).map_err(|_| DeviceError::Name(name.to_owned()))
            }
            _ => Err(DeviceError::Name(name.to_owned())),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

/// The memory of a device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// What is free, for whomever.
    pub free: u64,
    /// What this process has given back, which is kept for its next buffer.
    pub kept: u64,
    /// All of it.
    pub total: u64,
}

impl DeviceMemory {
    /// What this process can get.
    pub const fn available(self) -> u64 {
        self.free.saturating_add(self.kept)
    }
}

/// A device that is ready to work.
#[derive(Clone, Debug, Default)]
pub enum ComputeDevice {
    /// The processor.
    #[default]
    Cpu,
    /// A GPU of NVIDIA's.
    #[cfg(feature = "cuda")]
    Cuda(Arc<CudaDevice>),
}

impl ComputeDevice {
    /// Opens a device.
    ///
    /// # Errors
    /// When this build or this machine cannot use it, with the remedy.
    pub fn open(name: DeviceName) -> Result<Self, DeviceError> {
        match name {
            DeviceName::Cpu => Ok(Self::Cpu),
            #[cfg(feature = "cuda")]
            DeviceName::Cuda(ordinal) => Ok(Self::Cuda(Arc::new(CudaDevice::open(ordinal)?))),
            #[cfg(not(feature = "cuda"))]
            DeviceName::Cuda(_) => Err(DeviceError::NotBuilt),
        }
    }

    /// How many GPUs of NVIDIA's this machine has.
    ///
    /// # Errors
    /// When this build cannot use them or the driver is missing, with the remedy.
    pub fn gpus() -> Result<usize, DeviceError> {
        #[cfg(feature = "cuda")]
        return Ok(CudaDevice::count()?);
        #[cfg(not(feature = "cuda"))]
        Err(DeviceError::NotBuilt)
    }

    /// An empty set of Grams that it sums.
    pub fn grams(&self) -> Box<dyn GramSet> {
        match self {
            Self::Cpu => Box::new(BTreeMap::<_, Arc<Gram>>::new()),
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => Box::new(CudaGrams::new(Arc::clone(device))),
        }
    }

    /// The same for a GPU with panels of so many rows, added by so many blocks of threads or the usual ones, by which it is found which of them
    /// are fastest; none for the processor.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables))]
    pub fn grams_by_panels(
        &self,
        rows: NonZeroUsize,
        blocks: Option<NonZeroUsize>,
    ) -> Option<Box<dyn GramSet>> {
        match self {
            Self::Cpu => None,
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => {
                let blocks = blocks.map(NonZeroUsize::get);
                Some(Box::new(CudaGrams::by_panels(Arc::clone(device), rows.get(), blocks)))
            }
        }
    }

    /// A matrix (`rows x features`, of f32, bf16 or f16) in its memory: the same one where that is the host's, else a copy.
    ///
    /// # Errors
    /// When it is no such matrix, or the device has no room for it.
    pub fn matrix(&self, tensor: &Tensor) -> Result<Matrix> {
        match self {
            Self::Cpu => Ok(tensor.clone().into()),
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => Ok(CudaMatrix::upload(device, TransferKind::Activations, tensor)?.into()),
        }
    }

    /// What has crossed between the host's memory and its own since it was opened; nothing for the processor.
    pub fn transfers(&self) -> Transfers {
        match self {
            Self::Cpu => Transfers::default(),
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => device.transfers(),
        }
    }

    /// The GPU that it is, as CUDA counts them; none for the processor.
    pub fn gpu(&self) -> Option<usize> {
        match self {
            Self::Cpu => None,
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => Some(device.ordinal()),
        }
    }

    /// A Gram of this mass whose sums are still to be received in the device's own memory; none for the processor, and where that memory has no
    /// room for them beside what it holds, what it has held, and `more` bytes. May be called while the device works, and does not wait for it.
    ///
    /// # Errors
    /// [`GramError::Device`].
    pub fn gram_to_receive(
        &self,
        _width: usize,
        _accumulate: Accumulate,
        (_exponent, _mass): (i32, i64),
        _more: u64,
    ) -> Result<Option<PlacedGram>, GramError> {
        match self {
            Self::Cpu => Ok(None),
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => {
                let gram = Gram::of_mass(_width, _accumulate, _exponent, _mass);
                let gram = CudaGram::to_receive(device, gram, _more)?;
                Ok(gram.map(|gram| PlacedGram::Cuda(Arc::new(gram))))
            }
        }
    }

    /// So many zeros in the device's own memory, for a collective; none for the processor, and where there is no room. The device may work
    /// meanwhile, as for [`Self::gram_to_receive`].
    ///
    /// # Errors
    /// [`GramError::Device`].
    pub fn zeros(&self, _accumulate: Accumulate, _count: usize) -> Result<Option<DeviceNumbers>, GramError> {
        match self {
            Self::Cpu => Ok(None),
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => CudaGram::zeros(device, _accumulate, _count),
        }
    }

    /// A solver by OBS that works on it, with this damping of the Grams by which masks are chosen; none on the processor, which prunes in
    /// place: see [`crate::solve::Obs`].
    pub fn obs_solver(&self, _damping: f64) -> Option<Box<dyn SiteSolver>> {
        match self {
            Self::Cpu => None,
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => Some(Box::new(CudaSolver::by_obs(Arc::clone(device), _damping))),
        }
    }

    /// A solver by alternating directions that works on it.
    pub fn solver(&self) -> Box<dyn SiteSolver> {
        match self {
            Self::Cpu => Box::<CpuSolver>::default(),
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => Box::new(CudaSolver::new(Arc::clone(device))),
        }
    }

    /// A linear of which whole columns are to go, to be solved on it: its weight (rows x n, row-major), and the symmetric Gram (n x n) of what
    /// it reads.
    ///
    /// # Errors
    /// As [`StructuredLinear::new`], and [`SolveError::Device`].
    pub fn structured(
        &self,
        n: usize,
        weight: &[f64],
        gram: &[f64],
        damping: f64,
    ) -> Result<Box<dyn StructuredLayer>, SolveError> {
        match self {
            Self::Cpu => Ok(Box::new(StructuredLinear::new(n, weight.to_vec(), gram, damping)?)),
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => {
                let gram = SymmetricSquare::Host(gram);
                Ok(Box::new(CudaStructured::new(Arc::clone(device), n, weight, gram, damping)?))
            }
        }
    }

    /// tr(V S V^T) for V = `weight` (rows x n, row-major) and a symmetric Gram S (n x n).
    ///
    /// # Errors
    /// [`SolveError::Size`], [`SolveError::Device`].
    pub fn output_energy(&self, weight: &[f64], gram: &[f64]) -> Result<f64, SolveError> {
        let n = gram.len().isqrt();
        check_size(weight.len(), n)?;
        match self {
            Self::Cpu => Ok(energy(weight, gram, n)),
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => {
                Ok(CudaStructured::output_energy(device, weight, SymmetricSquare::Host(gram), n)?)
            }
        }
    }

    /// The kind of hardware that results depend on: the machine's, and the GPU's with its libraries.
    pub fn hardware(&self) -> String {
        match self {
            Self::Cpu => crate::hardware(),
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => format!("{}, {}", crate::hardware(), device.kind()),
        }
    }

    /// Its own memory; none where it works in the host's.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn memory(&self) -> Result<Option<DeviceMemory>, DeviceError> {
        match self {
            Self::Cpu => Ok(None),
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => Ok(Some(device.memory()?)),
        }
    }

    /// What of its own memory was taken while it was opened, where that is known to be more than plans count.
    pub fn opening_excess(&self) -> Option<MemoryExcess> {
        match self {
            Self::Cpu => None,
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => {
                let excess = MemoryExcess { taken: device.opening_bytes()?, planned: opened_bytes() };
                (excess.taken > excess.planned).then_some(excess)
            }
        }
    }

    /// What of its own memory a factorisation worked in, where that was found to be more than plans count.
    pub fn solving_excess(&self) -> Option<MemoryExcess> {
        match self {
            Self::Cpu => None,
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => device.solving_excess(),
        }
    }

    /// Gives memory back that nobody uses and that is kept for the next buffer: what comes now is of other sizes.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn release_unused(&self) -> Result<()> {
        match self {
            Self::Cpu => Ok(()),
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => Ok(device.release_unused()?),
        }
    }

    /// Whether it works in the host's memory, so that Grams of the host are its own.
    pub const fn is_host(&self) -> bool {
        matches!(self, Self::Cpu)
    }
}
