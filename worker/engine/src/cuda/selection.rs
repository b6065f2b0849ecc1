//! Which weights of a linear stay.

use obsdiff_proto::Target;

use super::CudaError;
use super::driver::{CudaDriver, DeviceBuffer, In, Out};
use super::kernels::Launch;

/// Numbers of a selection, as `kernels/selection.cuh` has it.
const SELECTION: usize = 5;

/// Bins of a histogram of keys, as `kernels/largest.cu` has it.
const BINS: usize = 2048;

/// The digits of a key, highest first: where each begins, and its bits.
const DIGITS: [(u32, u32); 3] = [(20, 11), (10, 10), (0, 10)];

/// The lowest values of a matrix, exactly so many, ties by (column, row).
#[derive(Debug)]
pub(super) struct Lowest {
    selection: DeviceBuffer<u32>,
    histogram: DeviceBuffer<u32>,
    ties: DeviceBuffer<u32>,
}

impl Lowest {
    /// For matrices of so many columns at most.
    pub(super) fn new(driver: &CudaDriver, columns: usize) -> Result<Self, CudaError> {
        let (selection, histogram) = (driver.buffer(SELECTION)?, driver.buffer(BINS)?);
        Ok(Self { selection, histogram, ties: driver.buffer(columns)? })
    }

    /// Which were found last.
    pub(super) fn input(&self) -> In<'_, u32> {
        self.selection.input()
    }

    /// Finds the `rank` lowest of a matrix of these rows and columns, its rows so far apart, by |x|, or |x * factor| where there is a factor
    /// for each column.
    pub(super) fn find(
        &mut self,
        driver: &CudaDriver,
        matrix: In<'_, f32>,
        [rows, columns, stride]: [usize; 3],
        factors: In<'_, f32>,
        rank: usize,
    ) -> Result<(), CudaError> {
        let Self { selection, histogram, ties } = self;
        let (launch, one) = (Launch::matrix(rows, columns), Launch::blocks(1));
        let (histogram_to, ties_to) = (histogram.output(), ties.output());
        driver.begin_selection(
            Launch::blocks(8),
            selection.output(),
            rank,
            histogram_to,
            ties_to,
            columns,
        )?;
        for (shift, bits) in DIGITS {
            let (so_far, counts) = (selection.input(), histogram.output());
            driver.count_keys(launch, matrix, rows, columns, stride, factors, so_far, shift, bits, counts)?;
            driver.choose_digit(one, selection.output(), shift, bits, histogram.output())?;
        }
        let so_far = selection.input();
        driver.count_ties(launch, matrix, rows, columns, stride, factors, so_far, ties.output())?;
        driver.end_selection(one, matrix, rows, columns, stride, factors, selection.output(), ties.input())
    }
}

/// The mask of a linear (rows x n), found again each time the weights have changed.
#[derive(Debug)]
pub(super) enum DeviceMask {
    /// All but the `pruned` lowest of all rows and columns.
    Lowest { pruned: usize, lowest: Lowest },
    /// All but the `pruned` lowest of every `of` consecutive columns of a row.
    Groups { pruned: usize, of: usize, stays: DeviceBuffer<u8> },
}

impl DeviceMask {
    /// For a target that has been checked; `pruned` is how many weights an unstructured one takes.
    pub(super) fn new(
        driver: &CudaDriver,
        rows: usize,
        n: usize,
        target: &Target,
        pruned: usize,
    ) -> Result<Self, CudaError> {
        Ok(match *target {
            Target::NToM { n: pruned, m } => Self::Groups { pruned, of: m, stays: driver.buffer(rows * n)? },
            _ => Self::Lowest { pruned, lowest: Lowest::new(driver, n)? },
        })
    }

    /// Finds the mask of these weights.
    pub(super) fn find(
        &mut self,
        driver: &CudaDriver,
        weight: In<'_, f32>,
        rows: usize,
        n: usize,
    ) -> Result<(), CudaError> {
        let launch = Launch::matrix(rows, n);
        match self {
            Self::Groups { pruned, of, stays } => {
                driver.mask_n_to_m(launch, weight, rows, n, *pruned, *of, stays.output())
            }
            Self::Lowest { pruned, lowest } => lowest.find(driver, weight, [rows, n, n], In::none(), *pruned),
        }
    }

    /// From X + U in `weight` and by the mask found last: leaves Z - U - V0 in `change` and V0 + U in `weight`, U taken `times`.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn split(
        &self,
        driver: &CudaDriver,
        weight: Out<'_, f32>,
        change: Out<'_, f32>,
        dense: In<'_, f32>,
        scale: In<'_, f32>,
        rows: usize,
        n: usize,
        times: f32,
    ) -> Result<(), CudaError> {
        let launch = Launch::matrix(rows, n);
        match self {
            Self::Lowest { lowest, .. } => {
                driver.split_lowest(launch, weight, change, dense, scale, rows, n, times, lowest.input())
            }
            Self::Groups { stays, .. } => {
                driver.split_masked(launch, weight, change, dense, scale, rows, n, times, stays.input())
            }
        }
    }

    /// Leaves W = Z / s in `weight`, by the mask found last.
    pub(super) fn finish(
        &self,
        driver: &CudaDriver,
        weight: Out<'_, f32>,
        scale: In<'_, f32>,
        rows: usize,
        n: usize,
    ) -> Result<(), CudaError> {
        let launch = Launch::matrix(rows, n);
        match self {
            Self::Lowest { lowest, .. } => {
                driver.finish_lowest(launch, weight, scale, rows, n, lowest.input())
            }
            Self::Groups { stays, .. } => driver.finish_masked(launch, weight, scale, rows, n, stays.input()),
        }
    }
}
