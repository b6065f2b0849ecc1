//! Grams whose sums stay on a GPU.

use std::collections::BTreeMap;
use std::sync::Arc;

use obsdiff_proto::SiteId;

use super::driver::{Buffer, Driver, Element};
use super::kernels::Launch;
use super::libraries::{Operand, Sizes};
use super::{CudaDevice, CudaError};
use crate::gram::{Gram, GramError, GramSet, GramSums, GramSumsMut};

/// Tokens that one thread squares, as `kernels/gram.cu` has it.
const TOKENS_OF_PART: usize = 256;

/// Rows of X^T X that are formed at once, from the diagonal to the right: of wide Grams more, so that the product keeps a GPU busy; of
/// narrow ones fewer, so that less is formed below the diagonal. Fixed by the width, so that bits repeat.
const fn panel(n: usize) -> usize {
    if n > 4096 { 1024 } else { 512 }
}

/// The sums of one site.
#[derive(Debug)]
enum Sums {
    Exact(Buffer<i64>),
    F32(Buffer<f32>),
}

/// A site's Gram: as [`Gram`], with its sums on the GPU.
#[derive(Debug)]
struct DeviceGram {
    width: usize,
    exponent: i32,
    sums: Sums,
    /// Of the host's Gram, to which the mass of what is observed is added as the host adds it.
    host: Gram,
}

/// Memory that observations of all sites share. It grows to what the largest needs.
#[derive(Debug, Default)]
struct Scratch {
    rows: Option<Buffer<f32>>,
    parts: Option<Buffer<f64>>,
    energy: Option<Buffer<f64>>,
    /// The first column that is not finite, and the first that passes a limit.
    verdict: Option<Buffer<u32>>,
    spoilt: Option<Buffer<u32>>,
    panel: Option<Buffer<f32>>,
}

/// The open Grams of a package on a GPU.
#[derive(Debug)]
pub struct CudaGrams {
    device: Arc<CudaDevice>,
    open: BTreeMap<SiteId, DeviceGram>,
    scratch: Scratch,
}

impl CudaGrams {
    /// No Grams yet.
    pub fn new(device: Arc<CudaDevice>) -> Self {
        Self { device, open: BTreeMap::new(), scratch: Scratch::default() }
    }
}

impl GramSet for CudaGrams {
    fn open(&mut self, site: SiteId, gram: &Arc<Gram>) -> Result<(), GramError> {
        let driver = self.device.driver();
        let sums = match gram.sums() {
            GramSums::Exact(sums) => Sums::Exact(driver.upload(sums)?),
            GramSums::F32(sums) => Sums::F32(driver.upload(sums)?),
        };
        let host = gram.without_sums();
        self.open.insert(site, DeviceGram { width: gram.width(), exponent: gram.exponent(), sums, host });
        Ok(())
    }

    fn read(&self, site: SiteId, gram: &mut Gram) -> Result<(), GramError> {
        let of = self.open.get(&site).ok_or(GramError::Mismatch)?;
        if (of.width, of.exponent) != (gram.width(), gram.exponent()) {
            return Err(GramError::Mismatch);
        }
        let driver = self.device.driver();
        let (sums, mass) = gram.parts_mut();
        match (&of.sums, sums) {
            (Sums::Exact(from), GramSumsMut::Exact(to)) => driver.read(from, to)?,
            (Sums::F32(from), GramSumsMut::F32(to)) => driver.read(from, to)?,
            _ => return Err(GramError::Mismatch),
        }
        *mass = of.host.mass_units();
        Ok(())
    }

    fn width(&self, site: SiteId) -> Option<usize> {
        self.open.get(&site).map(|gram| gram.width)
    }

    fn observe(&mut self, site: SiteId, rows: &[f32], alpha: f64) -> Result<(), GramError> {
        let Some(gram) = self.open.get_mut(&site) else { return Ok(()) };
        let tokens = gram.host.tokens_of(rows, alpha)?;
        if tokens == 0 {
            return Ok(());
        }
        let driver = self.device.driver();
        let scratch = &mut self.scratch;
        scratch.square(driver, rows, gram.width, 1.0)?;
        scratch.judge(driver, gram, alpha)?;
        scratch.add(&self.device, gram, tokens, alpha)?;
        scratch.accepted(driver, gram.exponent)?;
        gram.host.add_mass(tokens, alpha);
        Ok(())
    }

    fn diagonal(&self, site: SiteId) -> Result<Option<Vec<f64>>, GramError> {
        let Some(gram) = self.open.get(&site) else { return Ok(None) };
        let mut host = Gram::new(gram.width, gram.host.accumulates(), gram.exponent);
        self.read(site, &mut host)?;
        Ok(Some(host.diagonal()))
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
        let driver = self.device.driver();
        let whole = rows.len() / width * width;
        self.scratch.square(driver, &rows[..whole], width, alpha)?;
        let mut brought = vec![0.0; width];
        driver.read(grown(driver, &mut self.scratch.energy, width)?, &mut brought)?;
        energy.iter_mut().zip(brought).for_each(|(energy, brought)| *energy += brought);
        Ok(())
    }
}

impl Scratch {
    /// Copies an observation to the GPU, and leaves `alpha` times its column energies.
    fn square(&mut self, driver: &Driver, rows: &[f32], width: usize, alpha: f64) -> Result<(), CudaError> {
        let tokens = rows.len() / width;
        let count = tokens.div_ceil(TOKENS_OF_PART);
        let observed = grown(driver, &mut self.rows, rows.len())?;
        driver.write(rows, observed)?;
        let parts = grown(driver, &mut self.parts, count * width)?;
        driver.column_squares_f32(
            Launch::parts(width, count),
            observed.input(),
            tokens,
            width,
            parts.output(),
        )?;
        let energy = grown(driver, &mut self.energy, width)?;
        driver.set_bytes(energy, 0)?;
        driver.add_column_squares(Launch::each(width), parts.input(), count, width, alpha, energy.output())
    }

    /// Leaves whether the observation may be added.
    fn judge(&mut self, driver: &Driver, gram: &DeviceGram, alpha: f64) -> Result<(), CudaError> {
        let n = gram.width;
        let energy = grown(driver, &mut self.energy, n)?.input();
        let verdict = grown(driver, &mut self.verdict, 2)?;
        driver.set_bytes(verdict, 0xff)?;
        let verdict = verdict.output();
        match &gram.sums {
            Sums::Exact(sums) => {
                let unit = unit(gram.exponent);
                driver.admit_observation_exact(Launch::each(n), energy, sums.input(), n, alpha, unit, verdict)
            }
            Sums::F32(sums) => {
                driver.admit_observation_f32(Launch::each(n), energy, sums.input(), n, alpha, verdict)
            }
        }
    }

    /// Adds the observation, if it may be: panel by panel of X^T X, from the diagonal to the right.
    fn add(
        &mut self,
        device: &CudaDevice,
        gram: &mut DeviceGram,
        tokens: usize,
        alpha: f64,
    ) -> Result<(), CudaError> {
        let (n, driver) = (gram.width, device.driver());
        let height = panel(n).min(n);
        let rows = grown(driver, &mut self.rows, tokens * n)?;
        let product = grown(driver, &mut self.panel, height * n)?;
        let verdict = grown(driver, &mut self.verdict, 2)?.input();
        let spoilt = grown(driver, &mut self.spoilt, 1)?;
        driver.set_bytes(spoilt, 0)?;
        for first in (0..n).step_by(height) {
            let (tall, wide) = (height.min(n - first), n - first);
            let sizes = Sizes { rows: tall, columns: wide, inner: tokens, stride: wide };
            let left = Operand { values: rows.input_from(first), stride: n, transposed: true };
            let right = Operand { transposed: false, ..left };
            device.libraries().multiply(sizes, 1.0, left, right, 0.0, product.output())?;
            let (launch, tile) = (Launch::tiles(tall, wide, 8), product.input());
            match &mut gram.sums {
                Sums::Exact(sums) => {
                    let (scale, spoilt) = (alpha / unit(gram.exponent), spoilt.output());
                    let sums = sums.output();
                    driver.add_tile_exact(
                        launch, tile, tall, wide, wide, first, first, n, scale, verdict, sums, spoilt,
                    )?;
                }
                Sums::F32(sums) => {
                    let (alpha, sums) = (alpha as f32, sums.output());
                    driver.add_tile_f32(
                        launch, tile, tall, wide, wide, first, first, n, alpha, verdict, sums,
                    )?;
                }
            }
        }
        Ok(())
    }

    /// Whether the observation was added.
    fn accepted(&mut self, driver: &Driver, exponent: i32) -> Result<(), GramError> {
        let (mut verdict, mut spoilt) = ([0; 2], [0]);
        driver.read(grown(driver, &mut self.verdict, 2)?, &mut verdict)?;
        match verdict {
            [u32::MAX, u32::MAX] => (),
            [u32::MAX, column] => return Err(GramError::Overflow { column: column as usize, exponent }),
            [column, _] => return Err(GramError::NotFinite { column: column as usize }),
        }
        driver.read(grown(driver, &mut self.spoilt, 1)?, &mut spoilt)?;
        if spoilt[0] == 0 {
            Ok(())
        } else {
            Err(GramError::Device(format!("{} products of an observation were not finite", spoilt[0])))
        }
    }
}

/// What one unit of exact sums is worth.
fn unit(exponent: i32) -> f64 {
    (-f64::from(exponent)).exp2()
}

/// A buffer of at least so many values. One that is too small is replaced, and what it held is lost.
fn grown<'a, T: Element>(
    driver: &Driver,
    buffer: &'a mut Option<Buffer<T>>,
    length: usize,
) -> Result<&'a mut Buffer<T>, CudaError> {
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
        Self::Device(error.to_string())
    }
}
