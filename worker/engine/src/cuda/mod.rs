//! Blocks, Grams, solves, text encoders and decoders of pictures on an NVIDIA GPU.
//!
//! The kernels in `kernels/` are carried as PTX, in `ptx/`, which `tests/cuda` makes of them and a driver compiles for its GPU;
//! `kernels/kernels.cuh` says what each is launched for. Products are cuBLAS's, factorisations cuSOLVER's. All libraries are looked for
//! when a device is opened, so one build runs on machines with a GPU and without.
//!
//! Tests run without a GPU in two ways. `shim/` compiles the kernels for the processor, to be held to this crate's own functions one by
//! one; `fake/` are a driver, cuBLAS and cuSOLVER in host memory, under which everything here runs as it does on a GPU, with streams that work
//! as late as they may. The worker's fake NCCL works in the same driver's memory.

#[cfg(feature = "cuda")]
mod attention;
#[cfg(test)]
mod compiled;
#[cfg(feature = "cuda")]
mod delayed;
#[cfg(feature = "cuda")]
mod device;
#[cfg(feature = "cuda")]
mod driver;
#[cfg(feature = "cuda")]
mod error;
#[cfg(feature = "cuda")]
mod events;
#[cfg(feature = "cuda")]
mod f64;
#[cfg(feature = "cuda")]
mod factorised;
#[cfg(feature = "cuda")]
mod factoriser;
#[cfg(feature = "cuda")]
mod gram;
#[cfg(feature = "cuda")]
mod inverses;
#[cfg(feature = "cuda")]
mod kernels;
#[cfg(feature = "cuda")]
mod lanes;
#[cfg(feature = "cuda")]
mod launch;
#[cfg(feature = "cuda")]
mod matrix;
#[cfg(feature = "cuda")]
mod modules;
#[cfg(feature = "cuda")]
mod moments;
#[cfg(feature = "cuda")]
mod obs;
#[cfg(feature = "cuda")]
mod observation;
#[cfg(feature = "cuda")]
mod occupied;
#[cfg(feature = "cuda")]
mod ops;
#[cfg(feature = "cuda")]
mod overrides;
#[cfg(feature = "cuda")]
mod panels;
#[cfg(feature = "cuda")]
mod parts;
#[cfg(feature = "cuda")]
mod picture;
#[cfg(feature = "cuda")]
mod pointer;
#[cfg(feature = "cuda")]
mod pool;
#[cfg(feature = "cuda")]
mod products;
#[cfg(feature = "cuda")]
mod selection;
#[cfg(test)]
pub(crate) mod shim;
#[cfg(feature = "cuda")]
mod solver;
#[cfg(feature = "cuda")]
mod stopwatch;
#[cfg(feature = "cuda")]
mod structured;
#[cfg(feature = "cuda")]
mod sums;
#[cfg(test)]
#[cfg(feature = "cuda")]
mod tests;
#[cfg(feature = "cuda")]
mod text;
#[cfg(feature = "cuda")]
mod timed;
#[cfg(feature = "cuda")]
mod upper;
#[cfg(feature = "cuda")]
mod verdicts;

#[cfg(feature = "cuda")]
pub use device::CudaDevice;
#[cfg(feature = "cuda")]
pub use error::{CudaError, MemoryPhase};
#[cfg(feature = "cuda")]
pub use gram::CudaGrams;
#[cfg(feature = "cuda")]
pub use matrix::CudaMatrix;
#[cfg(feature = "cuda")]
pub use moments::CudaMoments;
#[cfg(feature = "cuda")]
pub(crate) use moments::SymmetricSquare;
#[cfg(feature = "cuda")]
pub(crate) use ops::CudaOps;
#[cfg(feature = "cuda")]
pub(crate) use parts::{observation_times, solve_times};
#[cfg(feature = "cuda")]
pub use solver::CudaSolver;
#[cfg(feature = "cuda")]
pub use structured::CudaStructured;
#[cfg(feature = "cuda")]
pub use sums::CudaGram;
#[cfg(feature = "cuda")]
pub(crate) use timed::{CudaBuffers, CudaProduct};
