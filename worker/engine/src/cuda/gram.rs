//! Grams whose sums stay on a GPU.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use obsdiff_proto::SiteId;

use super::driver::{CudaDriver, DeviceBuffer, Element, In};
use super::error::MemoryPhase;
use super::kernels::Launch;
use super::matrix::{CudaMatrix, NumberType};
use super::products::{Operand, ProductBatch, ProductSizes};
use super::stopwatch::Stopwatch;
use super::sums::{CudaGram, DeviceSums, own};
use super::verdicts::Verdicts;
use super::{CudaDevice, CudaError};
use crate::device::memory::{ALIGNED, TOKENS_OF_PART, panel};
use crate::device::transfers::TransferKind;
use crate::gram::{Gram, GramError, GramSet, PlacedGram};
use crate::model::Matrix;

/// A site's Gram: as [`Gram`], with its sums on the GPU.
#[derive(Debug)]
struct DeviceGram {
    /// Which of the set's [`Verdicts`] is its own.
    place: usize,
    width: usize,
    exponent: i32,
    sums: DeviceSums,
    /// Of the host's Gram, to which the mass of what is observed is added as the host adds it.
    host: Gram,
}

/// Memory that observations of all sites share. It grows to what the largest needs.
#[derive(Debug, Default)]
struct Scratch {
    parts: Option<DeviceBuffer<f64>>,
    energy: Option<DeviceBuffer<f64>>,
    panel: Option<DeviceBuffer<f32>>,
}

/// An observation in a GPU's memory.
#[derive(Clone, Copy, Debug)]
struct Observation<'a> {
    values: In<'a, u8>,
    numbers: NumberType,
    tokens: usize,
    /// Values between the starts of two rows. Those behind a row's features are zeros.
    stride: usize,
}

/// The open Grams of a package on a GPU.
#[derive(Debug)]
pub struct CudaGrams {
    device: Arc<CudaDevice>,
    open: BTreeMap<SiteId, DeviceGram>,
    /// None while nothing has been observed since the last site was opened.
    verdicts: Option<Verdicts>,
    scratch: Scratch,
    stopwatch: Stopwatch,
    /// Observations of the host, copied here.
    rows: Option<DeviceBuffer<u8>>,
    /// Observations of the GPU with features of constant 1.
    padded: Option<DeviceBuffer<u8>>,
}

impl CudaGrams {
    /// No Grams yet.
    pub fn new(device: Arc<CudaDevice>) -> Self {
        let (scratch, stopwatch) = (Scratch::default(), Stopwatch::default());
        Self { device, open: BTreeMap::new(), verdicts: None, scratch, stopwatch, rows: None, padded: None }
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
        self.scratch.observe(&self.device, gram, verdicts, observation, alpha)?;
        Ok(self.stopwatch.end(self.device.driver())?)
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
        self.scratch.observe(&self.device, gram, verdicts, observation, alpha)?;
        self.stopwatch.end(self.device.driver())?;
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
        Ok(self.scratch.add_energy(self.device.driver(), observation, alpha, energy)?)
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
            self.scratch.add_energy(self.device.driver(), observation, alpha, energy)?;
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

impl Scratch {
    /// Adds an observation to a Gram, if it may be: its verdict says so later.
    fn observe(
        &mut self,
        device: &CudaDevice,
        gram: &mut DeviceGram,
        verdicts: &mut Verdicts,
        observation: Observation<'_>,
        alpha: f64,
    ) -> Result<(), GramError> {
        let driver = device.driver();
        gram.sums.unshare(driver)?;
        self.square(driver, observation, 1.0)?;
        self.judge(driver, gram, verdicts, alpha)?;
        self.add(device, gram, verdicts, observation, alpha)?;
        gram.host.add_mass(observation.tokens, alpha);
        Ok(())
    }

    /// Adds `alpha` times an observation's column energies to those of the host.
    fn add_energy(
        &mut self,
        driver: &CudaDriver,
        observation: Observation<'_>,
        alpha: f64,
        energy: &mut [f64],
    ) -> Result<(), CudaError> {
        self.square(driver, observation, alpha)?;
        let mut brought = vec![0.0; observation.stride];
        driver.read(TransferKind::Figures, grown(driver, &mut self.energy, brought.len())?, &mut brought)?;
        energy.iter_mut().zip(brought).for_each(|(energy, brought)| *energy += brought);
        Ok(())
    }

    /// Leaves `alpha` times an observation's column energies.
    fn square(
        &mut self,
        driver: &CudaDriver,
        observation: Observation<'_>,
        alpha: f64,
    ) -> Result<(), CudaError> {
        let Observation { values, numbers, tokens, stride: width } = observation;
        let count = tokens.div_ceil(TOKENS_OF_PART);
        let parts = grown(driver, &mut self.parts, count * width)?;
        let launch = Launch::parts(width, count);
        driver.column_squares(numbers, launch, values, tokens, width, parts.output())?;
        let energy = grown(driver, &mut self.energy, width)?;
        driver.set_bytes(energy, 0)?;
        driver.add_column_squares(Launch::each(width), parts.input(), count, width, alpha, energy.output())
    }

    /// Leaves in its Gram's verdict whether the observation may be added.
    fn judge(
        &mut self,
        driver: &CudaDriver,
        gram: &DeviceGram,
        verdicts: &mut Verdicts,
        alpha: f64,
    ) -> Result<(), CudaError> {
        let n = gram.width;
        let energy = grown(driver, &mut self.energy, n)?.input();
        let verdict = verdicts.refused(gram.place);
        match &gram.sums {
            DeviceSums::Exact(sums) => {
                let unit = unit(gram.exponent);
                driver.admit_observation_exact(Launch::each(n), energy, sums.input(), n, alpha, unit, verdict)
            }
            DeviceSums::F32(sums) => {
                driver.admit_observation_f32(Launch::each(n), energy, sums.input(), n, alpha, verdict)
            }
        }
    }

    /// Adds the observation, if it may be: panel by panel of X^T X, from the diagonal to the right.
    fn add(
        &mut self,
        device: &CudaDevice,
        gram: &mut DeviceGram,
        verdicts: &mut Verdicts,
        observation: Observation<'_>,
        alpha: f64,
    ) -> Result<(), CudaError> {
        let Observation { values, numbers, tokens, stride } = observation;
        let (n, driver) = (gram.width, device.driver());
        let height = panel(n).min(n);
        let product = grown(driver, &mut self.panel, height * n)?;
        for first in (0..n).step_by(height) {
            let (tall, wide) = (height.min(n - first), n - first);
            let sizes = ProductSizes { rows: tall, columns: wide, inner: tokens, stride: wide };
            let left = Operand { values: values.skip(first * numbers.size()), stride, transposed: true };
            let right = Operand { transposed: false, ..left };
            let one = ProductBatch { numbers, sizes, left, right, steps: [0; 3], count: 1 };
            device.products().multiply_to_f32(one, product.output().bytes())?;
            let (launch, tile) = (Launch::tiles(tall, wide, 8), product.input());
            let (verdict, spoilt) = verdicts.adding(gram.place);
            match &mut gram.sums {
                DeviceSums::Exact(sums) => {
                    let scale = alpha / unit(gram.exponent);
                    let sums = own(sums)?.output();
                    driver.add_tile_exact(
                        launch, tile, tall, wide, wide, first, first, n, scale, verdict, sums, spoilt,
                    )?;
                }
                DeviceSums::F32(sums) => {
                    let (alpha, sums) = (alpha as f32, own(sums)?.output());
                    driver.add_tile_f32(
                        launch, tile, tall, wide, wide, first, first, n, alpha, verdict, sums,
                    )?;
                }
            }
        }
        Ok(())
    }
}

/// What one unit of exact sums is worth.
fn unit(exponent: i32) -> f64 {
    (-f64::from(exponent)).exp2()
}

/// A buffer of at least so many values. One that is too small is replaced, and what it held is lost.
fn grown<'a, T: Element>(
    driver: &CudaDriver,
    buffer: &'a mut Option<DeviceBuffer<T>>,
    length: usize,
) -> Result<&'a mut DeviceBuffer<T>, CudaError> {
    if buffer.as_ref().is_none_or(|buffer| buffer.len() < length) {
        // The old one goes first.
        *buffer = None;
    }
    match buffer {
        Some(buffer) => Ok(buffer),
        None => Ok(buffer.insert(driver.buffer(length)?)),
    }
}

impl From<CudaError> for GramError {
    fn from(error: CudaError) -> Self {
        Self::Device(error.during(MemoryPhase::Grams).to_string())
    }
}
