//! What became of observations on a GPU.

use super::CudaError;
use super::driver::{CudaDriver, DeviceBuffer, In, Out};
use crate::device::transfers::TransferKind;
use crate::gram::GramError;

/// What was found of the observations of each site of a set. Nobody reads it after each of them, for which the GPU would have to stand still:
/// nothing more is added to a site of which something was refused.
#[derive(Debug)]
pub(super) struct Verdicts {
    refused: DeviceBuffer<u32>,
    spoilt: DeviceBuffer<u32>,
}

/// What was found of one site's observations.
#[derive(Clone, Copy, Debug)]
pub(super) struct Verdict {
    /// The first column that is not finite, and the first that passes a limit; [`u32::MAX`] where there is none.
    refused: [u32; 2],
    /// Products that were not finite although the observation was.
    spoilt: u32,
}

impl Verdicts {
    /// Those of so many sites; new ones where there are none yet.
    pub(super) fn of<'a>(
        driver: &CudaDriver,
        verdicts: &'a mut Option<Self>,
        sites: usize,
    ) -> Result<&'a mut Self, CudaError> {
        if let Some(verdicts) = verdicts {
            return Ok(verdicts);
        }
        let mut refused = driver.buffer(2 * sites)?;
        driver.set_bytes(&mut refused, 0xff)?;
        Ok(verdicts.insert(Self { refused, spoilt: driver.zeros(sites)? }))
    }

    /// Where a kernel leaves what it refuses of a site.
    pub(super) fn refused(&mut self, site: usize) -> Out<'_, u32> {
        self.refused.output_from(2 * site)
    }

    /// What is refused of a site, to be read, and where its products that are not finite are counted.
    pub(super) fn adding(&mut self, site: usize) -> (In<'_, u32>, Out<'_, u32>) {
        (self.refused.input_from(2 * site), self.spoilt.output_from(site))
    }

    /// All of them, once all work before is done.
    pub(super) fn read(&self, driver: &CudaDriver, sites: usize) -> Result<Vec<Verdict>, CudaError> {
        let (mut refused, mut spoilt) = (vec![[0; 2]; sites], vec![0; sites]);
        driver.read(TransferKind::Figures, &self.refused, refused.as_flattened_mut())?;
        driver.read(TransferKind::Figures, &self.spoilt, &mut spoilt)?;
        Ok(refused.into_iter().zip(spoilt).map(|(refused, spoilt)| Verdict { refused, spoilt }).collect())
    }
}

impl Verdict {
    /// What the processor's own [`Gram::observe`](crate::gram::Gram::observe) returns there, of a Gram with this exponent.
    pub(super) fn result(self, exponent: i32) -> Result<(), GramError> {
        match self.refused {
            [u32::MAX, u32::MAX] if self.spoilt == 0 => Ok(()),
            [u32::MAX, u32::MAX] => {
                Err(GramError::Device(format!("{} products of observations were not finite", self.spoilt)))
            }
            [u32::MAX, column] => Err(GramError::Overflow { column: column as usize, exponent }),
            [column, _] => Err(GramError::NotFinite { column: column as usize }),
        }
    }
}
