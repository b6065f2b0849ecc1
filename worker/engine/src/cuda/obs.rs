//! Optimal Brain Surgeon on a GPU: `solve/obs.rs` in scaled coordinates, one kernel for a block of columns and one product past it.

use obsdiff_proto::{Precision, Target};

use super::driver::DeviceBuffer;
use super::kernels::Launch;
use super::products::{Operand, ProductSizes};
use super::selection::Lowest;
use super::upper::Upper;
use super::{CudaDevice, CudaError};
use crate::device::transfers::TransferKind;
use crate::solve::{BLOCK, Scales, SolveError, raised, share};

/// Rows that a block of threads prunes, as `kernels/obs.cu` has it: a warp takes one.
const ROWS_OF_BLOCK: usize = 4;

/// U with A^-1 = U^T U, an upper triangle, of the scaled Gram A. With V = W s for a weight W, a weight's score is (v / U_jj)^2, and the errors
/// E of a block B of columns take E U_B: off the columns to its right. That is what pruning W by the factor of the Gram itself does.
#[derive(Debug)]
pub(super) struct ObsFactor {
    n: usize,
    /// U; what lies below the diagonal means nothing.
    u: DeviceBuffer<f32>,
    /// 1 / U_jj.
    reciprocal: DeviceBuffer<f32>,
    scale: DeviceBuffer<f32>,
    dead: DeviceBuffer<u8>,
}

impl ObsFactor {
    /// Factorises the Gram of a site as [`crate::solve::Factor`] does, with `damping` or more, and gives what it took. 4/3 n^3 operations:
    /// a factorisation, an inverse and the factorisation of that.
    pub(super) fn new(
        device: &CudaDevice,
        upper: &Upper,
        damping: f64,
        precision: Precision,
    ) -> Result<(Self, f64), SolveError> {
        let mut next = Some(damping);
        while let Some(used) = next {
            if let Some(factor) = Self::of(device, upper, &upper.scales(used)?, precision)? {
                return Ok((factor, used));
            }
            next = raised(used);
        }
        Err(SolveError::NotPositive { damping: damping.max(1.0) })
    }

    /// In f32 and, where that fails or is not asked for, in f64. Nothing when both fail.
    fn of(
        device: &CudaDevice,
        upper: &Upper,
        scales: &Scales,
        precision: Precision,
    ) -> Result<Option<Self>, CudaError> {
        let (driver, factoriser, n) = (device.driver(), device.factoriser(), upper.width());
        let mut u = upper.scaled(driver, scales)?;
        let narrow = precision == Precision::F32
            && factoriser.factorise(driver, &mut u, n)?
            && factoriser.invert(driver, &mut u, n)?
            && factoriser.factorise(driver, &mut u, n)?;
        if !narrow {
            if precision == Precision::F32 {
                u = upper.scaled(driver, scales)?;
            }
            let mut wide = driver.buffer::<f64>(n * n)?;
            driver.widen_square(Launch::blocks(1024), u.input(), wide.output(), (n * n) as u64)?;
            let factorised = factoriser.factorise(driver, &mut wide, n)?
                && factoriser.invert(driver, &mut wide, n)?
                && factoriser.factorise(driver, &mut wide, n)?;
            if !factorised {
                return Ok(None);
            }
            driver.narrow_upper(Launch::tiles(n, n, 32), wide.input(), u.output(), n)?;
        }
        // The diagonal is every (n + 1)-th value.
        let mut diagonal = driver.buffer::<f32>(n)?;
        driver.copy_columns(Launch::matrix(n, 1), u.input(), diagonal.output(), n, 1, n + 1)?;
        let mut reciprocal = vec![0.0; n];
        driver.read(TransferKind::Figures, &diagonal, &mut reciprocal)?;
        reciprocal.iter_mut().for_each(|x: &mut f32| *x = 1.0 / *x);
        let mut dead = vec![0; n];
        scales.dead.iter().for_each(|j| dead[*j] = 1);
        Ok(Some(Self {
            n,
            u,
            reciprocal: driver.upload(TransferKind::Figures, &reciprocal)?,
            scale: driver.upload(TransferKind::Figures, &scales.scale)?,
            dead: driver.upload(TransferKind::Figures, &dead)?,
        }))
    }

    /// A weight (rows x n), pruned: as many of each block of columns as the target says.
    pub(super) fn prune(
        &self,
        device: &CudaDevice,
        before: &DeviceBuffer<f32>,
        rows: usize,
        target: &Target,
    ) -> Result<DeviceBuffer<f32>, CudaError> {
        let (driver, n) = (device.driver(), self.n);
        let mut weight = driver.buffer::<f32>(rows * n)?;
        driver.copy(before, &mut weight, rows * n)?;
        let whole = Launch::matrix(rows, n);
        let (scale, dead) = (self.scale.input(), self.dead.input());
        {
            let mut dense = driver.buffer::<f32>(rows * n)?;
            driver.scale_weight(whole, weight.output(), rows, n, scale, dead, dense.output())?;
        }
        let width = match *target {
            Target::NToM { m, .. } if m > BLOCK => {
                return Err(CudaError::Size { what: "a group of N:M columns", size: m });
            }
            // Groups never straddle two blocks.
            Target::NToM { m, .. } => m * (BLOCK / m),
            _ => BLOCK,
        }
        .min(n);
        let matrix = |columns: usize| driver.buffer::<f32>(rows * columns);
        let (mut settled, mut errors) = (matrix(width)?, matrix(width)?);
        let mut block = driver.buffer::<f32>(width * width)?;
        let mut lowest = Lowest::new(driver, width)?;
        for start in (0..n).step_by(width) {
            let columns = width.min(n - start);
            let launch = Launch::matrix(rows, columns);
            driver.copy_columns(launch, weight.input_from(start), settled.output(), rows, columns, n)?;
            let (of_u, launch) = (self.u.input_from(start * (n + 1)), Launch::matrix(columns, columns));
            driver.copy_columns(launch, of_u, block.output(), columns, columns, n)?;
            let (reciprocal, launch) = (self.reciprocal.input_from(start), Launch::rows(rows, ROWS_OF_BLOCK));
            let (from, of_u) = (settled.input(), block.input());
            let (to, errors_to) = (weight.output_from(start), errors.output());
            match *target {
                Target::NToM { n: pruned, m } => driver.prune_block_n_to_m(
                    launch, from, of_u, reciprocal, rows, columns, n, pruned, m, to, errors_to,
                )?,
                Target::Unstructured { ratio } => {
                    let pruned = share(ratio, rows * columns);
                    lowest.find(driver, from, [rows, columns, columns], reciprocal, pruned)?;
                    let selection = lowest.input();
                    driver.prune_block_lowest(
                        launch, from, of_u, reciprocal, rows, columns, n, selection, to, errors_to,
                    )?;
                }
                Target::Structured { .. } => {
                    return Err(CudaError::Size { what: "a structure's part of a linear", size: n });
                }
            }
            self.spread(device, &errors, &mut weight, rows, start..start + columns)?;
        }
        let mut stays = driver.buffer::<u8>(rows * n)?;
        driver.set_bytes(&mut stays, 1)?;
        driver.finish_masked(whole, weight.output(), scale, rows, n, stays.input())?;
        Ok(weight)
    }

    /// Takes the errors of a block of columns, times the rows of U that are theirs, off the columns to their right.
    fn spread(
        &self,
        device: &CudaDevice,
        errors: &DeviceBuffer<f32>,
        weight: &mut DeviceBuffer<f32>,
        rows: usize,
        block: std::ops::Range<usize>,
    ) -> Result<(), CudaError> {
        let n = self.n;
        if block.end == n {
            return Ok(());
        }
        let sizes = ProductSizes { rows, columns: n - block.end, inner: block.len(), stride: n };
        let left = Operand { values: errors.input(), stride: block.len(), transposed: false };
        let of_u = self.u.input_from(block.start * n + block.end);
        let right = Operand { values: of_u, stride: n, transposed: false };
        device.products().multiply(sizes, -1.0, left, right, 1.0, weight.output_from(block.end))
    }
}
