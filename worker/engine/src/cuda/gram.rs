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
use super::panels::Panels;
use super::stopwatch::Stopwatch;
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
    device: Arc<CudaDevice>,
    open: BTreeMap<SiteId, DeviceGram>,
    /// None while nothing has been observed since the last site was opened.
    verdicts: Option<Verdicts>,
    squares: Squares,
    panels: Panels,
    stopwatch: Stopwatch,
    /// Observations of the host, copied here.
    rows: Option<DeviceBuffer<u8>>,
    /// Observations of the GPU with features of constant 1.
    padded: Option<DeviceBuffer<u8>>,
}

impl CudaGrams {
    /// No Grams yet. Products are formed in panels of so many rows, or of those that suit each Gram's width: only those give the bits of other
    /// workers.
    pub fn new(device: Arc<CudaDevice>, panel_rows: Option<usize>) -> Self {
        let (squares, panels, stopwatch) =
            (Squares::default(), Panels::of_height(panel_rows), Stopwatch::default());
        let (open, verdicts, rows, padded) = (BTreeMap::new(), None, None, None);
        Self { device, open, verdicts, squares, panels, stopwatch, rows, padded }
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
        for (site, added) in self.open.keys().zip(self.settled().map_err(failed)?) {
            added.map_err(|refused| (*site, refused))?;
        }
        self.stopwatch.take().map_err(failed)
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
        let values = uploaded(self.device.driver(), &mut self.rows, rows)?;
        let observation = Observation { values, numbers: NumberType::F32, tokens, stride: gram.width };
        self.stopwatch.begin(self.device.driver())?;
        let (device, panels, squares) = (&*self.device, &mut self.panels, &mut self.squares);
        add(device, gram, observation, alpha, verdicts, panels, squares)?;
        Ok(self.stopwatch.end(device.driver())?)
    }

    fn observe_in_place(&mut self, site: SiteId, rows: &Matrix, alpha: f64) -> Result<bool, GramError> {
        let Some(rows) = on_device(rows, &self.device)? else { return Ok(false) };
        let verdicts = Verdicts::of(self.device.driver(), &mut self.verdicts, self.open.len())?;
        let Some(gram) = self.open.get_mut(&site) else { return Ok(true) };
        let (tokens, width, numbers) = (rows.rows(), rows.columns(), rows.numbers());
        if width > gram.width {
            return Err(GramError::Rows { values: tokens * width, width: gram.width });
        }
        Gram::check_alpha(alpha)?;
        if tokens == 0 {
            return Ok(true);
        }
        self.stopwatch.begin(self.device.driver())?;
        let mut observation = Observation { values: rows.input(), numbers, tokens, stride: width };
        if width < gram.width {
            let (driver, stride) = (self.device.driver(), gram.width.next_multiple_of(ALIGNED));
            let padded = grown(driver, &mut self.padded, tokens * stride * numbers.size())?;
            let launch = Launch::matrix(tokens, stride);
            driver.pad_rows(
                numbers,
                launch,
                rows.input(),
                tokens,
                width,
                gram.width,
                stride,
                padded.output(),
            )?;
            observation = Observation { values: padded.input(), stride, ..observation };
        }
        let (device, panels, squares) = (&*self.device, &mut self.panels, &mut self.squares);
        add(device, gram, observation, alpha, verdicts, panels, squares)?;
        self.stopwatch.end(device.driver())?;
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
        let values = uploaded(self.device.driver(), &mut self.rows, &rows[..tokens * width])?;
        let observation = Observation { values, numbers: NumberType::F32, tokens, stride: width };
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
            let observation = Observation { values: rows.input(), numbers, tokens, stride: width };
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

/// Adds an observation to a Gram, if it may be: its verdict says so later.
fn add(
    device: &CudaDevice,
    gram: &mut DeviceGram,
    observation: Observation<'_>,
    alpha: f64,
    verdicts: &mut Verdicts,
    panels: &mut Panels,
    squares: &mut Squares,
) -> Result<(), CudaError> {
    let judge = |gram: &DeviceGram, verdicts: &mut Verdicts| {
        squares.judge(device.driver(), gram, observation, alpha, verdicts)
    };
    panels.add(device, gram, observation, alpha, verdicts, judge)?;
    gram.host.add_mass(observation.tokens, alpha);
    Ok(())
}

impl From<CudaError> for GramError {
    fn from(error: CudaError) -> Self {
        Self::Device(error.during(MemoryPhase::Grams).to_string())
    }
}
