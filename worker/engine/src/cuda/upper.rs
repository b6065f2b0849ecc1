//! The Gram of a site as the square that its linears are solved by: see [`ScaledHessian`](crate::solve::ScaledHessian), whose numbers these
//! are.

use obsdiff_proto::Accumulate;

use super::driver::{CudaDriver, DeviceBuffer, In};
use super::kernels::Launch;
use super::{CudaDevice, CudaError};
use crate::device::transfers::TransferKind;
use crate::solve::{PackedUpper, Scales, SolveError, check_upper, stride};

/// The upper triangle of S, divided by its mass, n x n, its rows n apart. What lies below the diagonal means nothing.
#[derive(Debug)]
pub(super) struct Upper {
    n: usize,
    square: DeviceBuffer<f32>,
    /// S_jj.
    diagonal: Vec<f64>,
}

impl Upper {
    /// Of one that lies in this GPU's memory. Only its diagonal crosses to the host.
    ///
    /// # Errors
    /// [`SolveError::GramNotFinite`], [`SolveError::Size`], [`SolveError::Device`].
    pub(super) fn of_packed(device: &CudaDevice, packed: &PackedUpper) -> Result<Self, SolveError> {
        let (driver, n, unit, numbers) = (device.driver(), packed.n, packed.unit, &packed.numbers);
        if n == 0 || numbers.count() != n * (n + 1) / 2 {
            return Err(SolveError::Size { rows: n, columns: n, found: numbers.count() });
        }
        let mut square = driver.buffer::<f32>(n * n)?;
        let mut spoilt = driver.zeros::<u32>(1)?;
        let (launch, to, counts) = (Launch::matrix(n, n), square.output(), spoilt.output());
        match numbers.accumulates() {
            Accumulate::Exact => driver.unpack_exact(launch, In::of(numbers), n, unit, to, counts)?,
            Accumulate::F32 => driver.unpack_f32(launch, In::of(numbers), n, unit, to, counts)?,
        }
        let mut found = [0];
        driver.read(TransferKind::Figures, &spoilt, &mut found)?;
        if found[0] > 0 {
            return Err(SolveError::GramNotFinite);
        }
        // The diagonal is every (n + 1)-th value.
        let mut on_device = driver.buffer::<f32>(n)?;
        driver.copy_columns(Launch::matrix(n, 1), square.input(), on_device.output(), n, 1, n + 1)?;
        let mut diagonal = vec![0.0; n];
        driver.read(TransferKind::Figures, &on_device, &mut diagonal)?;
        Ok(Self { n, square, diagonal: diagonal.into_iter().map(f64::from).collect() })
    }

    /// Of a square in the host's memory, as [`crate::solve::SiteSolver::begin`] takes it.
    ///
    /// # Errors
    /// [`SolveError::Size`], [`SolveError::GramNotFinite`], [`SolveError::Device`].
    pub(super) fn of_host(device: &CudaDevice, n: usize, upper: &[f32]) -> Result<Self, SolveError> {
        check_upper(n, upper)?;
        let (driver, row) = (device.driver(), stride(n));
        let strided = driver.upload(TransferKind::Grams, upper)?;
        let mut square = driver.buffer(n * n)?;
        driver.copy_columns(Launch::matrix(n, n), strided.input(), square.output(), n, n, row)?;
        let diagonal = (0..n).map(|j| f64::from(upper[j * row + j])).collect();
        Ok(Self { n, square, diagonal })
    }

    /// Columns of the linears: n.
    pub(super) const fn width(&self) -> usize {
        self.n
    }

    /// What the diagonal says with this damping.
    pub(super) fn scales(&self, damping: f64) -> Result<Scales, SolveError> {
        Scales::new(&self.diagonal, damping)
    }

    /// A copy of the square, scaled to A, whole and symmetric.
    pub(super) fn scaled(
        &self,
        driver: &CudaDriver,
        scales: &Scales,
    ) -> Result<DeviceBuffer<f32>, CudaError> {
        let mut square = driver.buffer(self.n * self.n)?;
        driver.copy(&self.square, &mut square, self.n * self.n)?;
        scale(driver, &mut square, scales)?;
        Ok(square)
    }

    /// The same in the memory of the square itself.
    pub(super) fn into_scaled(
        mut self,
        driver: &CudaDriver,
        scales: &Scales,
    ) -> Result<DeviceBuffer<f32>, CudaError> {
        scale(driver, &mut self.square, scales)?;
        Ok(self.square)
    }
}

/// Scales the upper triangle of a square, and mirrors it.
fn scale(driver: &CudaDriver, square: &mut DeviceBuffer<f32>, scales: &Scales) -> Result<(), CudaError> {
    let n = scales.reciprocals.len();
    let reciprocals = driver.upload(TransferKind::Figures, &scales.reciprocals)?;
    driver.scale_square(Launch::matrix(n, n), square.output(), reciprocals.input(), n)?;
    driver.mirror_upper_f32(Launch::tiles(n, n, 32), square.output(), n)
}
