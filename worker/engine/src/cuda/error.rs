//! What can go wrong on a GPU.

use std::fmt;

use obsdiff_proto::ByteSize;
use thiserror::Error;

/// What memory of a GPU is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryPhase {
    /// The libraries, when it is opened.
    Opening,
    /// Text encoders, and the prompts that they encode.
    Encoding,
    /// The transformer's weights.
    Weights,
    /// Activations.
    Forward,
    /// The decoder of pictures.
    Decoding,
    /// Sums of Grams, and observations on their way into them.
    Grams,
    /// Pruning and refining linears.
    Solving,
}

impl MemoryPhase {
    /// The setting that makes it take less.
    const fn remedy(self) -> &'static str {
        match self {
            Self::Opening => {
                "stop what else runs there (see `nvidia-smi`), or choose another GPU by --device cuda:N"
            }
            Self::Encoding => {
                "encode the prompts elsewhere by `obsdiff encode` and set calibration.conditioning, or take a GPU with more memory"
            }
            Self::Weights => {
                "set model.dtype = \"bf16\", or more packages.count, or take a GPU with more memory"
            }
            Self::Forward => "set a lower calibration.shard_size, or more packages.count",
            Self::Decoding => "ask for smaller pictures, or for the processor by --device cpu",
            Self::Grams => "set more packages.count, or packages.memory",
            Self::Solving => "set more packages.count, or sparsity.effort = \"fast\"",
        }
    }
}

impl fmt::Display for MemoryPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Opening => "when it is opened",
            Self::Encoding => "to encode prompts",
            Self::Weights => "for the transformer's weights",
            Self::Forward => "in a forward call",
            Self::Decoding => "to decode a picture",
            Self::Grams => "for Grams",
            Self::Solving => "to solve a site",
        })
    }
}

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
    /// cuBLAS is older than the one that products are written for.
    #[error("cuBLAS {}.{} was found, but obsdiff needs 13.0 or newer: install CUDA 13, or `pip install nvidia-cublas`, and put its folder first in LD_LIBRARY_PATH", found / 10_000, found / 100 % 100)]
    OldCublas {
        /// As cuBLAS says it: 120803 for 12.8.3.
        found: i32,
    },
    /// The environment has NVIDIA's libraries compute products in another way.
    #[error(
        "the environment sets {variable}={value}, by which NVIDIA's libraries round products otherwise, so that results would differ: unset it, or set it to 0"
    )]
    Override {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: String,
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
    #[error("the GPU has no room for another {} {phase}: {} of {} are free; {}", ByteSize(*wanted), ByteSize(*free), ByteSize(*total), phase.remedy())]
    Memory {
        /// What the memory was for.
        phase: MemoryPhase,
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

impl CudaError {
    /// The same error, which happened while memory was asked for `phase`.
    pub(crate) fn during(self, phase: MemoryPhase) -> Self {
        match self {
            Self::Memory { wanted, free, total, .. } => Self::Memory { phase, wanted, free, total },
            other => other,
        }
    }
}
