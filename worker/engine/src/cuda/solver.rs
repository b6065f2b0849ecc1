//! Pruning and refinement on a GPU: `solve/admm.rs`, or `solve/obs.rs` by `obs.rs` beside this file, and `solve/refine.rs`, with products by
//! cuBLAS and what lies between them by kernels.

use std::sync::Arc;

use obsdiff_proto::{Effort, Target};

use super::driver::{CudaDriver, DeviceBuffer, In};
use super::error::MemoryPhase;
use super::inverses::inverses;
use super::kernels::Launch;
use super::obs::ObsFactor;
use super::products::{Operand, ProductSizes};
use super::selection::DeviceMask;
use super::upper::Upper;
use super::{CudaDevice, CudaError};
use crate::device::memory::ROWS_TOGETHER;
use crate::device::transfers::TransferKind;
use crate::solve::{
    NO_SITE, OutputEnergy, PackedUpper, SiteSettings, SiteSolver, SolveError, SolvedWeight, check,
    check_size, prunes_nothing, share,
};

/// Values whose sum kernels of refinement keep in shared memory as one f64.
const RUN: usize = 1024;

/// Solves linears on a GPU, one site after another.
#[derive(Debug)]
pub struct CudaSolver {
    device: Arc<CudaDevice>,
    pruning: Pruning,
    site: Option<SiteAtWork>,
}

/// How weights are pruned before they are refined.
#[derive(Clone, Copy, Debug)]
enum Pruning {
    /// By alternating directions.
    Alternating,
    /// By OBS, with this damping or more.
    Obs { damping: f64 },
}

/// What the linears of a site share: see [`crate::solve::ScaledHessian`].
#[derive(Debug)]
struct SiteAtWork {
    n: usize,
    /// A, n x n.
    square: DeviceBuffer<f32>,
    /// (A + rho I)^-1 of each penalty, n x n.
    inverses: Vec<DeviceBuffer<f32>>,
    /// What OBS prunes by, in place of those.
    obs: Option<ObsFactor>,
    effort: Effort,
    /// Steps of refinement.
    refinement: u32,
    scale: DeviceBuffer<f32>,
    /// The share of H_jj that is damping.
    damped: DeviceBuffer<f32>,
    /// 1 for the columns with S_jj = 0.
    dead: DeviceBuffer<u8>,
    /// The largest H_jj.
    unit: f64,
}

/// Some rows of a linear on their way between products with A.
#[derive(Debug)]
struct RowsAtWork {
    count: usize,
    v: DeviceBuffer<f32>,
    residual: DeviceBuffer<f32>,
    direction: DeviceBuffer<f32>,
    errors: DeviceBuffer<f64>,
    squares: DeviceBuffer<f64>,
}

impl CudaSolver {
    /// A solver by alternating directions, with no site.
    pub fn new(device: Arc<CudaDevice>) -> Self {
        Self { device, pruning: Pruning::Alternating, site: None }
    }

    /// A solver by OBS, whose masks are chosen with this damping, with no site.
    pub fn by_obs(device: Arc<CudaDevice>, damping: f64) -> Self {
        Self { device, pruning: Pruning::Obs { damping }, site: None }
    }
}

impl CudaSolver {
    /// Prepares for the linears of a site of this Gram.
    fn prepare(&mut self, upper: Upper, settings: SiteSettings) -> Result<f64, SolveError> {
        let SiteSettings { damping, precision, effort, .. } = settings;
        if let Pruning::Obs { damping: of_masks } = self.pruning {
            let (obs, used) = ObsFactor::new(&self.device, &upper, of_masks, precision)?;
            // A Gram that could be factorised only with more damping than asked for needs it in refinement, too.
            let refined = if used > of_masks { used } else { damping };
            let site = SiteAtWork::new(self.device.driver(), upper, refined, settings)?;
            self.site = Some(SiteAtWork { obs: Some(obs), ..site });
            return Ok(used);
        }
        let mut site = SiteAtWork::new(self.device.driver(), upper, damping, settings)?;
        site.inverses = inverses(&self.device, &site.square, site.n, effort.penalties(), precision)?;
        self.site = Some(site);
        Ok(damping)
    }
}

impl SiteSolver for CudaSolver {
    /// Nothing: memory of a GPU does not break into pieces.
    fn reserve(&mut self, _: Effort, _: usize, _: usize) {}

    fn begin(&mut self, n: usize, upper: Vec<f32>, settings: SiteSettings) -> Result<f64, SolveError> {
        // The last site's memory goes first.
        self.site = None;
        let on_device = Upper::of_host(&self.device, n, &upper)?;
        drop(upper);
        self.prepare(on_device, settings)
    }

    fn begin_in_place(
        &mut self,
        upper: &PackedUpper,
        settings: SiteSettings,
    ) -> Option<Result<f64, SolveError>> {
        if upper.numbers.gpu() != self.device.ordinal() {
            return None;
        }
        self.site = None;
        let upper = Upper::of_packed(&self.device, upper);
        Some(upper.and_then(|upper| self.prepare(upper, settings)))
    }

    fn solve(&mut self, weights: &[(&[f32], Target)]) -> Vec<Result<SolvedWeight, SolveError>> {
        let Some(site) = &self.site else { return weights.iter().map(|_| Err(NO_SITE)).collect() };
        weights.iter().map(|(dense, target)| site.solve(&self.device, dense, target)).collect()
    }

    fn change(&mut self, before: &[f32], after: &[f32]) -> Option<Result<f64, SolveError>> {
        self.site.as_ref().map(|site| site.change(&self.device, before, after))
    }

    fn end(&mut self) {
        self.site = None;
    }
}

impl SiteAtWork {
    fn new(
        driver: &CudaDriver,
        upper: Upper,
        damping: f64,
        settings: SiteSettings,
    ) -> Result<Self, SolveError> {
        let (n, scales) = (upper.width(), upper.scales(damping)?);
        let mut dead = vec![0; n];
        scales.dead.iter().for_each(|j| dead[*j] = 1);
        Ok(Self {
            n,
            square: upper.into_scaled(driver, &scales)?,
            inverses: Vec::new(),
            obs: None,
            effort: settings.effort,
            refinement: settings.refinement,
            scale: driver.upload(TransferKind::Figures, &scales.scale)?,
            damped: driver.upload(TransferKind::Figures, &scales.damped)?,
            dead: driver.upload(TransferKind::Figures, &dead)?,
            unit: scales.unit,
        })
    }

    /// out = factor * rows * square + keep * out, for `count` rows.
    #[allow(clippy::too_many_arguments)]
    fn multiply(
        &self,
        device: &CudaDevice,
        count: usize,
        factor: f32,
        rows: &DeviceBuffer<f32>,
        square: &DeviceBuffer<f32>,
        keep: f32,
        out: &mut DeviceBuffer<f32>,
    ) -> Result<(), CudaError> {
        let n = self.n;
        let sizes = ProductSizes { rows: count, columns: n, inner: n, stride: n };
        let [left, right] =
            [rows, square].map(|of| Operand { values: of.input(), stride: n, transposed: false });
        device.products().multiply(sizes, factor, left, right, keep, out.output())
    }

    /// Prunes and refines one linear. It crosses to the GPU once, and back once.
    fn solve(&self, device: &CudaDevice, dense: &[f32], target: &Target) -> Result<SolvedWeight, SolveError> {
        let (driver, n) = (device.driver(), self.n);
        check(dense, n, target)?;
        if u32::try_from(dense.len()).is_err() {
            return Err(CudaError::Size { what: "a linear's weights", size: dense.len() }.into());
        }
        let pruned = match *target {
            Target::Unstructured { ratio } => share(ratio, dense.len()),
            _ => dense.len(),
        };
        let before = driver.upload(TransferKind::Weights, dense)?;
        let rows = dense.len() / n;
        let mut weight = match &self.obs {
            _ if prunes_nothing(target, dense.len()) => driver.upload(TransferKind::Weights, dense)?,
            Some(factor) => factor.prune(device, &before, rows, target)?,
            None => self.alternate(device, &before, rows, target, pruned)?,
        };
        let energy = self.refine(device, &before, &mut weight, rows)?;
        let mut solved = vec![0.0; dense.len()];
        driver.read(TransferKind::Results, &weight, &mut solved)?;
        Ok(SolvedWeight { weight: solved, energy })
    }

    /// As `solve/admm.rs` does: between rounds the weight holds X + U.
    fn alternate(
        &self,
        device: &CudaDevice,
        before: &DeviceBuffer<f32>,
        rows: usize,
        target: &Target,
        pruned: usize,
    ) -> Result<DeviceBuffer<f32>, CudaError> {
        let (driver, n) = (device.driver(), self.n);
        let matrix = || driver.buffer::<f32>(rows * n);
        let (mut weight, mut dense, mut change) = (matrix()?, matrix()?, matrix()?);
        driver.copy(before, &mut weight, rows * n)?;
        let mut mask = DeviceMask::new(driver, rows, n, target, pruned)?;
        let (scale, dead) = (self.scale.input(), self.dead.input());
        let launch = Launch::matrix(rows, n);
        driver.scale_weight(launch, weight.output(), rows, n, scale, dead, dense.output())?;
        let mut last = self.effort.penalties().first().copied().unwrap_or(1.0);
        let mut first = true;
        for (inverse, &rho) in self.inverses.iter().zip(self.effort.penalties()) {
            for _ in 0..self.effort.rounds() {
                // At the start Z = V0 and U = 0, so that X = V0.
                if !std::mem::take(&mut first) {
                    mask.find(driver, weight.input(), rows, n)?;
                    let (v0, times) = (dense.input(), (last / rho) as f32);
                    mask.split(driver, weight.output(), change.output(), v0, scale, rows, n, times)?;
                    last = rho;
                    self.multiply(device, rows, rho as f32, &change, inverse, 1.0, &mut weight)?;
                }
            }
        }
        mask.find(driver, weight.input(), rows, n)?;
        mask.finish(driver, weight.output(), scale, rows, n)?;
        Ok(weight)
    }

    /// Refines a weight in place, some rows at a time; what was done to the linear's outputs.
    fn refine(
        &self,
        device: &CudaDevice,
        before: &DeviceBuffer<f32>,
        weight: &mut DeviceBuffer<f32>,
        rows: usize,
    ) -> Result<OutputEnergy, CudaError> {
        let nothing = device.driver().zeros::<f32>(rows.min(ROWS_TOGETHER) * self.n)?;
        let (mut whole, mut change, mut left) = (0.0, 0.0, 0.0);
        for first in (0..rows).step_by(ROWS_TOGETHER) {
            let (count, at) = (ROWS_TOGETHER.min(rows - first), first * self.n);
            let all = self.offset(device, nothing.input(), before.input_from(at), count)?;
            whole += all.errors(device.driver())?.iter().map(|[_, plain]| plain).sum::<f64>();
            drop(all);
            let mut band = self.offset(device, weight.input_from(at), before.input_from(at), count)?;
            if self.refinement == 0 {
                change += band.errors(device.driver())?.iter().map(|[_, plain]| plain).sum::<f64>();
                continue;
            }
            let _span = tracing::info_span!("refine").entered();
            self.advance(device, &mut band)?;
            let (scale, damped) = (self.scale.input(), self.damped.input());
            let (v, residual, errors) = (band.v.input(), band.residual.input(), band.errors.output());
            let (w, w0, launch) = (weight.output_from(at), before.input_from(at), Launch::blocks(count));
            device.driver().finish_rows(launch, w, w0, v, residual, scale, damped, self.n, errors)?;
            for [before, after] in band.errors(device.driver())? {
                change += before;
                left += after;
            }
        }
        let [change, whole, left] = [change, whole, left].map(|sum: f64| sum.max(0.0) * self.unit);
        let energy = OutputEnergy { change, unrefined: None, whole };
        Ok(match self.refinement {
            0 => energy,
            _ => energy.refined(if change > 0.0 { left / change } else { 1.0 }),
        })
    }

    /// tr(dW S dW^T), with W = `before` and dW = `after` - W. Both cross to the GPU.
    fn change(&self, device: &CudaDevice, before: &[f32], after: &[f32]) -> Result<f64, SolveError> {
        check_size(before.len(), self.n)?;
        if after.len() != before.len() {
            let (rows, columns) = (before.len() / self.n, self.n);
            return Err(SolveError::Size { rows, columns, found: after.len() });
        }
        let driver = device.driver();
        let (w0, w) =
            (driver.upload(TransferKind::Weights, before)?, driver.upload(TransferKind::Weights, after)?);
        let (rows, mut change) = (before.len() / self.n, 0.0);
        for first in (0..rows).step_by(ROWS_TOGETHER) {
            let (count, at) = (ROWS_TOGETHER.min(rows - first), first * self.n);
            let band = self.offset(device, w.input_from(at), w0.input_from(at), count)?;
            change += band.errors(driver)?.iter().map(|[_, plain]| plain).sum::<f64>();
        }
        Ok(change.max(0.0) * self.unit)
    }

    /// Leaves V = W s of some rows, V0 - V in `direction` and (V0 - V) A in `residual`, and the errors before anything is done; then the first
    /// direction.
    fn offset(
        &self,
        device: &CudaDevice,
        weight: In<'_, f32>,
        dense: In<'_, f32>,
        count: usize,
    ) -> Result<RowsAtWork, CudaError> {
        let (driver, n) = (device.driver(), self.n);
        let matrix = || driver.buffer::<f32>(count * n);
        let (errors, squares) = (driver.buffer(2 * count)?, driver.buffer(count)?);
        let mut rows =
            RowsAtWork { count, v: matrix()?, residual: matrix()?, direction: matrix()?, errors, squares };
        let RowsAtWork { v, residual, direction, errors, squares, .. } = &mut rows;
        let scale = self.scale.input();
        driver.offset_rows(Launch::blocks(count), v.output(), direction.output(), weight, dense, scale, n)?;
        self.multiply(device, count, 1.0, direction, &self.square, 0.0, residual)?;
        let (residual, v, damped) = (residual.input(), v.input(), self.damped.input());
        let (direction, errors, squares) = (direction.output(), errors.output(), squares.output());
        driver.first_direction(self.row_blocks(count), direction, residual, v, damped, n, errors, squares)?;
        Ok(rows)
    }

    /// Makes the steps of refinement.
    fn advance(&self, device: &CudaDevice, rows: &mut RowsAtWork) -> Result<(), CudaError> {
        let (driver, n, count) = (device.driver(), self.n, rows.count);
        let mut product = driver.buffer::<f32>(count * n)?;
        for step in 1..=self.refinement {
            self.multiply(device, count, 1.0, &rows.direction, &self.square, 0.0, &mut product)?;
            let (launch, more) = (self.row_blocks(count), u32::from(step < self.refinement));
            let RowsAtWork { v, residual, direction, squares, .. } = rows;
            let (v, residual, direction) = (v.output(), residual.output(), direction.output());
            driver.advance_rows(
                launch,
                v,
                residual,
                direction,
                product.input(),
                n,
                squares.output(),
                more,
            )?;
        }
        Ok(())
    }

    /// A block of threads for each row, with room for the sum of each run.
    fn row_blocks(&self, count: usize) -> Launch {
        Launch::blocks(count).with_shared(8 * self.n.div_ceil(RUN))
    }
}

impl RowsAtWork {
    /// The errors of each row: with damping and without, or without before and after refinement.
    fn errors(&self, driver: &CudaDriver) -> Result<Vec<[f64; 2]>, CudaError> {
        let mut errors = vec![0.0; 2 * self.count];
        driver.read(TransferKind::Figures, &self.errors, &mut errors)?;
        Ok(errors.as_chunks::<2>().0.to_vec())
    }
}

impl From<CudaError> for SolveError {
    fn from(error: CudaError) -> Self {
        Self::Device(error.during(MemoryPhase::Solving).to_string())
    }
}
