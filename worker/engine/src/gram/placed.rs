//! A Gram whose sums lie on the host or on a device.

use std::sync::Arc;

use obsdiff_proto::Accumulate;

use super::{Gram, GramError};
#[cfg(feature = "cuda")]
use crate::cuda::CudaGram;
use crate::device::numbers::DeviceNumbers;
use crate::solve::PackedUpper;

/// A site's Gram in the memory where it was summed. A clone shares it, and nothing that is observed later changes it.
#[derive(Clone, Debug)]
pub enum PlacedGram {
    /// In the host's memory.
    Host(Arc<Gram>),
    /// In a GPU's memory.
    #[cfg(feature = "cuda")]
    Cuda(Arc<CudaGram>),
}

impl PlacedGram {
    /// Features of the site: n.
    pub fn width(&self) -> usize {
        match self {
            Self::Host(gram) => gram.width(),
            #[cfg(feature = "cuda")]
            Self::Cuda(gram) => gram.width(),
        }
    }

    /// e: exact sums are kept in units of 2^-e.
    pub fn exponent(&self) -> i32 {
        match self {
            Self::Host(gram) => gram.exponent(),
            #[cfg(feature = "cuda")]
            Self::Cuda(gram) => gram.exponent(),
        }
    }

    /// How the observations are summed.
    pub fn accumulates(&self) -> Accumulate {
        match self {
            Self::Host(gram) => gram.accumulates(),
            #[cfg(feature = "cuda")]
            Self::Cuda(gram) => gram.accumulates(),
        }
    }

    /// The mass in its own integer units.
    pub fn mass_units(&self) -> i64 {
        match self {
            Self::Host(gram) => gram.mass_units(),
            #[cfg(feature = "cuda")]
            Self::Cuda(gram) => gram.mass_units(),
        }
    }

    /// S_jj for every column j, in the units of exact sums; none for `f32` sums.
    ///
    /// # Errors
    /// [`GramError::Device`].
    pub fn diagonal_units(&self) -> Result<Option<Vec<i64>>, GramError> {
        match self {
            Self::Host(gram) => Ok(gram.diagonal_units()),
            #[cfg(feature = "cuda")]
            Self::Cuda(gram) => gram.diagonal_units(),
        }
    }

    /// S_jj for every column j, not divided by the mass.
    ///
    /// # Errors
    /// [`GramError::Device`].
    pub fn diagonal(&self) -> Result<Vec<f64>, GramError> {
        match self {
            Self::Host(gram) => Ok(gram.diagonal()),
            #[cfg(feature = "cuda")]
            Self::Cuda(gram) => gram.diagonal(),
        }
    }

    /// The sum of the diagonal, not divided by the mass.
    ///
    /// # Errors
    /// [`GramError::Device`].
    pub fn trace(&self) -> Result<f64, GramError> {
        Ok(self.diagonal()?.iter().sum())
    }

    /// The Gram in the host's memory, if it lies there.
    pub const fn host(&self) -> Option<&Arc<Gram>> {
        match self {
            Self::Host(gram) => Some(gram),
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => None,
        }
    }

    /// The Gram in the host's memory: shared if it lies there, else copied.
    ///
    /// # Errors
    /// [`GramError::Device`].
    pub fn to_host(&self) -> Result<Arc<Gram>, GramError> {
        match self {
            Self::Host(gram) => Ok(Arc::clone(gram)),
            #[cfg(feature = "cuda")]
            Self::Cuda(gram) => Ok(Arc::new(gram.to_host()?)),
        }
    }

    /// S divided by its mass, where its sums lie in a device's memory; none where they lie in the host's.
    pub fn packed(&self) -> Option<PackedUpper> {
        match self {
            Self::Host(_) => None,
            #[cfg(feature = "cuda")]
            Self::Cuda(gram) => Some(gram.packed()),
        }
    }

    /// Its sums in a device's memory; none where they lie in the host's.
    pub fn numbers(&self) -> Option<DeviceNumbers> {
        match self {
            Self::Host(_) => None,
            #[cfg(feature = "cuda")]
            Self::Cuda(gram) => Some(gram.numbers()),
        }
    }
}

impl From<Gram> for PlacedGram {
    fn from(gram: Gram) -> Self {
        Self::Host(Arc::new(gram))
    }
}

impl From<Arc<Gram>> for PlacedGram {
    fn from(gram: Arc<Gram>) -> Self {
        Self::Host(gram)
    }
}
