//! The second moments that heads and neurons are solved by, in the memory where a site's Gram was summed.

use super::ComputeDevice;
#[cfg(feature = "cuda")]
use crate::cuda::CudaMoments;
use crate::gram::{GramError, PlacedGram};
use crate::solve::SolveError;
use crate::solve::structured::{Moments, StructuredLayer};

/// The second moments of what a site's linears read, for the device that solves them. Of a Gram in a GPU's memory only the diagonal and the
/// means come to the host.
#[derive(Debug)]
pub struct SiteMoments {
    device: ComputeDevice,
    /// Whether linears are solved by the moments about the means, because a bias takes the means over.
    about_means: bool,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Host {
        moments: Moments,
        centred: Option<Vec<f64>>,
    },
    #[cfg(feature = "cuda")]
    Cuda(CudaMoments),
}

impl SiteMoments {
    /// From a Gram of n features and the constant 1 behind them.
    ///
    /// # Errors
    /// [`GramError::Rows`] for a Gram without the constant, [`GramError::Device`].
    pub fn new(device: &ComputeDevice, gram: &PlacedGram, about_means: bool) -> Result<Self, GramError> {
        let width = gram.width();
        let n = width.checked_sub(1).ok_or(GramError::Rows { values: 0, width })?;
        #[cfg(feature = "cuda")]
        if let (ComputeDevice::Cuda(on), PlacedGram::Cuda(gram)) = (device, gram)
            && gram.is_on(on)
        {
            let place = Place::Cuda(CudaMoments::new(gram)?);
            return Ok(Self { device: device.clone(), about_means, place });
        }
        let moments = Moments::new(&gram.to_host()?.to_upper::<f64>(width), n);
        let centred = about_means.then(|| moments.centred());
        Ok(Self { device: device.clone(), about_means, place: Place::Host { moments, centred } })
    }

    /// The mean of each feature.
    pub fn means(&self) -> &[f64] {
        match &self.place {
            Place::Host { moments, .. } => moments.means(),
            #[cfg(feature = "cuda")]
            Place::Cuda(moments) => moments.means(),
        }
    }

    /// A linear of this weight (rows x n, row-major) of which columns are to go.
    ///
    /// # Errors
    /// As [`ComputeDevice::structured`].
    pub fn linear(&self, weight: &[f64], damping: f64) -> Result<Box<dyn StructuredLayer>, SolveError> {
        match &self.place {
            Place::Host { moments, centred } => {
                let gram = centred.as_deref().unwrap_or(moments.gram());
                self.device.structured(moments.means().len(), weight, gram, damping)
            }
            #[cfg(feature = "cuda")]
            Place::Cuda(moments) => Ok(Box::new(moments.linear(weight, self.about_means, damping)?)),
        }
    }

    /// tr(dW S dW^T) / tr(W S W^T) of a weight and its `change`, both rows x n. Where the bias takes the means over, a change that only moves
    /// the mean is no error: the S of dW is then that about the means.
    ///
    /// # Errors
    /// As [`ComputeDevice::output_energy`].
    pub fn relative_error(&self, weight: &[f64], change: &[f64]) -> Result<f64, SolveError> {
        let (whole, change) = (self.energy(weight, false)?, self.energy(change, self.about_means)?);
        Ok(if whole > 0.0 { (change / whole).max(0.0) } else { 0.0 })
    }

    fn energy(&self, weight: &[f64], about_means: bool) -> Result<f64, SolveError> {
        match &self.place {
            Place::Host { moments, centred } => {
                let centred = centred.as_deref().filter(|_| about_means);
                self.device.output_energy(weight, centred.unwrap_or(moments.gram()))
            }
            #[cfg(feature = "cuda")]
            Place::Cuda(moments) => moments.output_energy(weight, about_means),
        }
    }
}
