//! What can go wrong on a GPU.

use obsdiff_proto::ByteSize;
use thiserror::Error;

/// What can go wrong on a GPU, or before there is one. Each says in one line what its user can do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CudaError {
    /// A library is not on this machine, or not where programs look.
    #[error("{library} was not found: {remedy}")]
    Missing {
        /// The library's name.
        library: &'static str,
        /// Where it comes from.
        remedy: &'static str,
    },
    /// The driver is older than the code that it is to compile.
    #[error("the NVIDIA driver supports CUDA {}.{} at most, but obsdiff needs 13.0: install driver 580 or newer", found / 1000, found % 1000 / 10)]
    Driver {
        /// As the driver says it: 12040 for CUDA 12.4.
        found: i32,
    },
    /// There is no GPU of this number.
    #[error(
        "there is no GPU {ordinal}: the driver sees {count}; see `nvidia-smi -L`, and check CUDA_VISIBLE_DEVICES"
    )]
    NoGpu {
        /// The number asked for, counted from 0.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The GPU is too old for the kernels.
    #[error("GPU {ordinal} ({name}) has compute capability {}.{}, but obsdiff needs 8.0 (A100, RTX 30) or newer", found.0, found.1)]
    Capability {
        /// Its number, counted from 0.
        ordinal: usize,
        /// Its name.
        name: String,
        /// Its compute capability.
        found: (i32, i32),
    },
    /// The GPU's memory does not suffice.
    #[error("the GPU has no room for another {}: {} of {} are free; set more packages.count, or packages.memory", ByteSize(*wanted), ByteSize(*free), ByteSize(*total))]
    Memory {
        /// Bytes asked for.
        wanted: u64,
        /// Bytes that are free.
        free: u64,
        /// Bytes that there are.
        total: u64,
    },
    /// A size beyond what a library or a kernel can work with.
    #[error("{what} of {size} is more than a GPU's libraries can work with")]
    Size {
        /// What has this size.
        what: &'static str,
        /// Its size.
        size: usize,
    },
    /// A call failed: the GPU or its driver is damaged, or obsdiff has a fault.
    #[error("{call} failed: {problem}")]
    Call {
        /// The call, or the kernel.
        call: &'static str,
        /// What it said.
        problem: String,
    },
}
