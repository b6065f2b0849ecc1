//! Grams whose sums stay on a GPU.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use obsdiff_proto::SiteId;

use super::driver::{CudaDriver, DeviceBuffer, In};
use super::error::MemoryPhase;
use super::kernels::Launch;
use super::matrix::{CudaMatrix, NumberType};
use super::observation::{DeviceGram, Observation, Squares, grown};
use super::panels::{PanelSizes, Panels};
use super::sums::{CudaGram, DeviceSums};
use super::verdicts::Verdicts;
use super::{CudaDevice, CudaError};
use crate::device::memory::ALIGNED;
use crate::device::transfers::TransferKind;
use crate::gram::{Gram, GramError, GramSet, PlacedGram};
use crate::model::Matrix;

/// The open Grams of a package on a GPU.
#[derive(Debug)]
pub struct CudaGrams {
    // They go before what they work in.
    panels: Panels,
    device: Arc<CudaDevice>,
    open: BTreeMap<SiteId, DeviceGram>,
    /// None while nothing has been observed since the last site was opened.
    verdicts: Option<Verdicts>,
    squares: Squares,
    /// Observations of the host, copied here.
    rows: Option<DeviceBuffer<u8>>,
    /// Observations of the GPU with features of constant 1.
    padded: Option<DeviceBuffer<u8>>,
}

impl CudaGrams {
    /// No Grams yet.
    pub fn new(device: Arc<CudaDevice>) -> Self {
        Self::of_sizes(device, PanelSizes::default())
    }

    /// The same with products in panels of so many rows, added by so many blocks of threads where that is said. Only the usual rows give the
    /// bits of other workers.
    pub fn by_panels(device: Arc<CudaDevice>, rows: usize, blocks: Option<usize>) -> Self {
        Self::of_sizes(device, PanelSizes { rows: Some(rows), blocks })
    }

    fn of_sizes(device: Arc<CudaDevice>, sizes: PanelSizes) -> Self {
        let (panels, squares) = (Panels::new(&device, sizes), Squares::default());
        Self { panels, device, open: BTreeMap::new(), verdicts: None, squares, rows: None, padded: None }
    }

    fn insert(&mut self, site: SiteId, gram: &Gram, sums: DeviceSums) -> Result<(), GramError> {
        self.settle().map_err(|(_, refused)| refused)?;
        self.verdicts = None;
        let (width, exponent, host) = (gram.width(), gram.exponent(), gram.without_sums());
        self.open.insert(site, DeviceGram { place: 0, width, exponent, sums, host });
        self.open.values_mut().enumerate().for_each(|(place, gram)| gram.place = place);
        Ok(())
    }

    /// What became of all that was observed of each site, in the sites' order, once that is known.
    fn settled(&self) -> Result<Vec<Result<(), GramError>>, CudaError> {
        let driver = self.device.driver();
        self.panels.join()?;
        let Some(verdicts) = &self.verdicts else {
            driver.wait()?;
            return Ok(vec![Ok(()); self.open.len()]);
        };
        let found = verdicts.read(driver, self.open.len())?;
        Ok(self.open.values().zip(found).map(|(gram, verdict)| verdict.result(gram.exponent)).collect())
    }
}

impl GramSet for CudaGrams {
    fn open(&mut self, site: SiteId, gram: &Arc<Gram>) -> Result<(), GramError> {
        let sums = DeviceSums::upload(self.device.driver(), gram.sums())?;
        self.insert(site, gram, sums)
    }

    fn open_empty(&mut self, site: SiteId, gram: &Arc<Gram>) -> Result<(), GramError> {
        let entries = Gram::entries(gram.width());
        let sums = DeviceSums::zeros(self.device.driver(), gram.accumulates(), entries)?;
        self.insert(site, gram, sums)
    }

    fn settle(&mut self) -> Result<Duration, (SiteId, GramError)> {
        let Some(first) = self.open.keys().next() else { return Ok(Duration::ZERO) };
        let failed = |error: CudaError| (*first, error.into());
        self.panels.wait().map_err(failed)?;
        for (site, added) in self.open.keys().zip(self.settled().map_err(failed)?) {
            added.map_err(|refused| (*site, refused))?;
        }
        self.panels.worked().map_err(failed)
    }

    fn share(&self, site: SiteId) -> Result<Option<PlacedGram>, GramError> {
        let Some(gram) = self.open.get(&site) else { return Ok(None) };
        self.settled()?.swap_remove(gram.place)?;
        let shared = CudaGram::new(&self.device, &gram.sums, &gram.host);
        Ok(Some(PlacedGram::Cuda(Arc::new(shared))))
    }

    fn read(&self, site: SiteId, gram: &mut Gram) -> Result<(), GramError> {
        let of = self.open.get(&site).ok_or(GramError::Mismatch)?;
        if (of.width, of.exponent) != (gram.width(), gram.exponent()) {
            return Err(GramError::Mismatch);
        }
        self.settled()?.swap_remove(of.place)?;
        let (sums, mass) = gram.parts_mut();
        of.sums.read(self.device.driver(), sums)?;
        *mass = of.host.mass_units();
        Ok(())
    }

    fn width(&self, site: SiteId) -> Option<usize> {
        self.open.get(&site).map(|gram| gram.width)
    }

    fn observe(&mut self, site: SiteId, rows: &[f32], alpha: f64) -> Result<(), GramError> {
        let verdicts = Verdicts::of(self.device.driver(), &mut self.verdicts, self.open.len())?;
        let Some(gram) = self.open.get_mut(&site) else { return Ok(()) };
        let tokens = gram.host.tokens_of(rows, alpha)?;
        if tokens == 0 {
            return Ok(());
        }
        // Until then the last ones are read.
        self.panels.wait()?;
        let values = uploaded(self.device.driver(), &mut self.rows, rows)?;
        let numbers = NumberType::F32;
        let observation = Observation { values, numbers, tokens, stride: gram.width, matrix: None };
        self.panels.add(gram, observation, alpha, verdicts, &mut self.squares)?;
        gram.host.add_mass(tokens, alpha);
        Ok(())
    }

    fn observe_in_place(&mut self, site: SiteId, rows: &Matrix, alpha: f64) -> Result<bool, GramError> {
        let Some(matrix) = on_device(rows, &self.device)? else { return Ok(false) };
        let verdicts = Verdicts::of(self.device.driver(), &mut self.verdicts, self.open.len())?;
        let Some(gram) = self.open.get_mut(&site) else { return Ok(true) };
        let (tokens, width, numbers) = (matrix.rows(), matrix.columns(), matrix.numbers());
        if width > gram.width {
            return Err(GramError::Rows { values: tokens * width, width: gram.width });
        }
        Gram::check_alpha(alpha)?;
        if tokens == 0 {
            return Ok(true);
        }
        let values = matrix.input();
        let mut observation = Observation { values, numbers, tokens, stride: width, matrix: Some(matrix) };
        if width < gram.width {
            self.panels.wait()?;
            let (driver, stride) = (self.device.driver(), gram.width.next_multiple_of(ALIGNED));
            let padded = grown(driver, &mut self.padded, tokens * stride * numbers.size())?;
            let launch = Launch::matrix(tokens, stride);
            driver.pad_rows(numbers, launch, values, tokens, width, gram.width, stride, padded.output())?;
            observation = Observation { values: padded.input(), stride, matrix: None, ..observation };
        }
        self.panels.add(gram, observation, alpha, verdicts, &mut self.squares)?;
        gram.host.add_mass(tokens, alpha);
        Ok(true)
    }

    fn diagonal(&self, site: SiteId) -> Result<Option<Vec<f64>>, GramError> {
        let Some(PlacedGram::Cuda(gram)) = self.share(site)? else { return Ok(None) };
        Ok(Some(gram.diagonal()?))
    }

    fn column_energy(
        &mut self,
        rows: &[f32],
        width: usize,
        alpha: f64,
        energy: &mut [f64],
    ) -> Result<(), GramError> {
        if width == 0 || rows.len() < width {
            return Ok(());
        }
        let tokens = rows.len() / width;
        self.panels.wait()?;
        let values = uploaded(self.device.driver(), &mut self.rows, &rows[..tokens * width])?;
        let numbers = NumberType::F32;
        let observation = Observation { values, numbers, tokens, stride: width, matrix: None };
        Ok(self.squares.add_energy(self.device.driver(), observation, alpha, energy)?)
    }

    fn column_energy_in_place(
        &mut self,
        rows: &Matrix,
        alpha: f64,
        energy: &mut [f64],
    ) -> Result<bool, GramError> {
        let Some(rows) = on_device(rows, &self.device)? else { return Ok(false) };
        let (tokens, width, numbers) = (rows.rows(), rows.columns(), rows.numbers());
        if tokens > 0 && width > 0 {
            self.panels.wait()?;
            let values = rows.input();
            let observation = Observation { values, numbers, tokens, stride: width, matrix: None };
            self.squares.add_energy(self.device.driver(), observation, alpha, energy)?;
        }
        Ok(true)
    }
}

/// A matrix that is in the memory of this GPU; none where it is in the host's.
fn on_device<'a>(rows: &'a Matrix, device: &Arc<CudaDevice>) -> Result<Option<&'a CudaMatrix>, GramError> {
    match rows {
        Matrix::Cuda(rows) if rows.is_on(device) => Ok(Some(rows)),
        // Its own stream orders the work on them, not this one's.
        Matrix::Cuda(_) => Err(GramError::Device(
            "rows are on another GPU, or on one that was opened twice: open each GPU once in a process"
                .to_owned(),
        )),
        Matrix::Host(_) => Ok(None),
    }
}

/// Rows of the host, copied to the GPU.
fn uploaded<'a>(
    driver: &CudaDriver,
    buffer: &'a mut Option<DeviceBuffer<u8>>,
    rows: &[f32],
) -> Result<In<'a, u8>, CudaError> {
    let bytes: &[u8] = bytemuck::cast_slice(rows);
    let buffer = grown(driver, buffer, bytes.len())?;
    driver.write(TransferKind::Activations, bytes, buffer)?;
    Ok(buffer.input())
}

impl From<CudaError> for GramError {
    fn from(error: CudaError) -> Self {
        Self::Device(error.during(MemoryPhase::Grams).to_string())
    }
}
