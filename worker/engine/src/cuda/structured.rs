//! Whole columns of a linear, removed on a GPU: `solve/structured` in f64, with products by cuBLAS. H^-1 and W^T W are whole here, so that a
//! column of either is a row; the choice of what goes next is the host's.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use super::delayed::DeviceRemovals;
use super::driver::{CudaDriver, DeviceBuffer};
use super::f64::{F64Product, copy_columns, diagonal, gathered, read};
use super::kernels::Launch;
use super::moments::SymmetricSquare;
use super::{CudaDevice, CudaError};
use crate::device::transfers::TransferKind;
use crate::solve::structured::{DELAY, Removal, StructuredLayer, inverse_factor, take_lowest};
use crate::solve::{SolveError, check_size, live_mean, raised};

/// A linear of which whole columns go, on a GPU.
#[derive(Debug)]
pub struct CudaStructured {
    pub(super) device: Arc<CudaDevice>,
    pub(super) rows: usize,
    n: usize,
    /// rows x n. Columns that went are zero but for rounding.
    pub(super) weight: DeviceBuffer<f64>,
    /// H^-1 of the columns that are left, n x n.
    pub(super) inverse: DeviceBuffer<f64>,
    /// The columns that went, and those that were dead.
    pub(super) gone: Vec<usize>,
    energy: f64,
    damping_used: f64,
}

impl CudaStructured {
    /// A linear with its weight (rows x n, row-major) and the symmetric Gram S (n x n) of what it reads, as
    /// [`crate::solve::structured::StructuredLinear::new`] takes them. 10/3 n^3 + 2 rows n^2 operations.
    ///
    /// # Errors
    /// When sizes do not fit, a value is not finite, S cannot be factorised however much it is damped, or the GPU has no room.
    pub(crate) fn new(
        device: Arc<CudaDevice>,
        n: usize,
        weight: &[f64],
        gram: SymmetricSquare<'_>,
        damping: f64,
    ) -> Result<Self, SolveError> {
        check_size(weight.len(), n)?;
        let rows = weight.len() / n;
        if let Err(found) = gram.is_of(n) {
            return Err(SolveError::Size { rows: n, columns: n, found });
        }
        if let Some(at) = weight.iter().position(|w| !w.is_finite()) {
            return Err(SolveError::WeightNotFinite { row: at / n, column: at % n });
        }
        if !(damping >= 0.0 && damping.is_finite()) {
            return Err(SolveError::Damping { damping });
        }
        let driver = device.driver();
        let mut on_gpu = driver.upload(TransferKind::Weights, weight)?;
        let energy = energy(&device, &on_gpu, gram, rows, n)?;
        let diagonal = gram.diagonal(n);
        let dead: Vec<usize> = (0..n).filter(|j| diagonal[*j] == 0.0).collect();
        if !dead.is_empty() {
            let mut weight = weight.to_vec();
            zero(&mut weight, n, &dead);
            driver.write(TransferKind::Weights, &weight, &mut on_gpu)?;
        }
        let (inverse, damping_used) = inverse(&device, gram, &diagonal, damping)?;
        Ok(Self { device, rows, n, weight: on_gpu, inverse, gone: dead, energy, damping_used })
    }

    /// tr(V S V^T) for V = `weight` (rows x n) and S = `gram` (n x n): 2 rows n^2 operations and a few more.
    pub(crate) fn output_energy(
        device: &CudaDevice,
        weight: &[f64],
        gram: SymmetricSquare<'_>,
        n: usize,
    ) -> Result<f64, CudaError> {
        energy(device, &device.driver().upload(TransferKind::Weights, weight)?, gram, weight.len() / n, n)
    }

    fn driver(&self) -> &CudaDriver {
        self.device.driver()
    }

    /// G = W_D^T W_D and H^-1_DD of the columns D of a part, k x k each, on the host.
    fn of_part(&self, part: &Range<usize>) -> Result<[Vec<f64>; 2], CudaError> {
        let (driver, n, k) = (self.driver(), self.n, part.len());
        let mut columns = driver.buffer(self.rows * k)?;
        copy_columns(driver, &self.weight, part.start, n, &mut columns, self.rows, k)?;
        let mut column_products = driver.buffer(k * k)?;
        let product =
            F64Product { left: (&columns, true), right: (&columns, false), sizes: [k, k, self.rows] };
        product.add(&self.device, 1.0, 0.0, &mut column_products)?;
        let mut block = driver.buffer(k * k)?;
        copy_columns(driver, &self.inverse, part.start * (n + 1), n, &mut block, k, k)?;
        Ok([read(driver, &column_products, k * k)?, read(driver, &block, k * k)?])
    }
}

impl StructuredLayer for CudaStructured {
    fn duplicate(&self) -> Result<Box<dyn StructuredLayer>, SolveError> {
        let copy = |from: &DeviceBuffer<f64>| {
            let mut to = self.driver().buffer(from.len())?;
            self.driver().copy(from, &mut to, from.len())?;
            Ok::<_, CudaError>(to)
        };
        let (weight, inverse) = (copy(&self.weight)?, copy(&self.inverse)?);
        let (device, gone) = (Arc::clone(&self.device), self.gone.clone());
        let Self { rows, n, energy, damping_used, .. } = *self;
        Ok(Box::new(Self { device, rows, n, weight, inverse, gone, energy, damping_used }))
    }

    fn width(&self) -> usize {
        self.n
    }

    fn energy(&self) -> f64 {
        self.energy
    }

    fn damping_used(&self) -> f64 {
        self.damping_used
    }

    fn weight_on_host(&self) -> Result<Cow<'_, [f64]>, SolveError> {
        let mut weight = read(self.driver(), &self.weight, self.rows * self.n)?;
        zero(&mut weight, self.n, &self.gone);
        Ok(Cow::Owned(weight))
    }

    /// tr(G [H^-1_DD]^-1), with G = W_D^T W_D.
    fn removal_errors(&self, parts: &[Range<usize>]) -> Result<Vec<f64>, SolveError> {
        let error = |part: &Range<usize>| {
            let k = part.len();
            let [column_products, block] = self.of_part(part)?;
            let factor = inverse_factor(&block, k)?;
            let mut error = 0.0;
            for row in factor.chunks_exact(k) {
                for (i, a) in row.iter().enumerate() {
                    error += a * row.iter().zip(&column_products[i * k..]).map(|(b, g)| b * g).sum::<f64>();
                }
            }
            Ok(error)
        };
        parts.iter().map(error).collect()
    }

    fn diagonal_scores(&self, parts: &[Range<usize>]) -> Result<Vec<f64>, SolveError> {
        let score = |part: &Range<usize>| {
            let k = part.len();
            let [column_products, block] = self.of_part(part)?;
            let factor = inverse_factor(&block, k)?;
            Ok((0..k).map(|i| column_products[i * (k + 1)] * factor[i * (k + 1)].powi(2)).sum())
        };
        parts.iter().map(score).collect()
    }

    fn column_scores(&self) -> Result<Vec<f64>, SolveError> {
        let (driver, n) = (self.driver(), self.n);
        let energies = diagonal(driver, &self.column_products()?, n)?;
        let pivots = diagonal(driver, &self.inverse, n)?;
        Ok(energies.iter().zip(pivots).map(|(energy, pivot)| energy / pivot).collect())
    }

    fn remove(&mut self, columns: &[usize]) -> Result<f64, SolveError> {
        let (n, k, rows) = (self.n, columns.len(), self.rows);
        let device = Arc::clone(&self.device);
        let driver = device.driver();
        let mut panel = driver.buffer::<f64>(k * n)?;
        for (to, column) in columns.iter().enumerate() {
            driver.copy_part(&self.inverse, column * n, &mut panel, to * n, n)?;
        }
        let block = gathered(driver, &panel, k, n, columns)?;
        let factor =
            driver.upload(TransferKind::Figures, &inverse_factor(&read(driver, &block, k * k)?, k)?)?;
        let gone = gathered(driver, &self.weight, rows, n, columns)?;
        let (mut spread, mut shares) = (driver.buffer(k * rows)?, driver.buffer(k * n)?);
        let of = |right, columns| F64Product {
            left: (&factor, false),
            right: (right, false),
            sizes: [k, columns, k],
        };
        of(&gone, rows).add(&device, 1.0, 0.0, &mut spread)?;
        of(&panel, n).add(&device, 1.0, 0.0, &mut shares)?;
        let off =
            |left, rows| F64Product { left: (left, true), right: (&shares, false), sizes: [rows, n, k] };
        off(&spread, rows).add(&device, -1.0, 1.0, &mut self.weight)?;
        off(&shares, n).add(&device, -1.0, 1.0, &mut self.inverse)?;
        self.gone.extend(columns);
        Ok(read(driver, &spread, k * rows)?.iter().map(|x| x * x).sum())
    }

    fn remove_one_at_a_time(
        &mut self,
        mut left: Vec<usize>,
        count: usize,
    ) -> Result<Vec<Removal>, SolveError> {
        let (n, device) = (self.n, Arc::clone(&self.device));
        let driver = device.driver();
        let mut column_products = self.column_products()?;
        let mut pivots = diagonal(driver, &self.inverse, n)?;
        let mut energies = diagonal(driver, &column_products, n)?;
        let mut delayed = DeviceRemovals::new(driver, n)?;
        let mut steps = Vec::with_capacity(count);
        for _ in 0..count {
            let score = |j: usize| energies[j].max(0.0) / pivots[j];
            let Some(column) = take_lowest(&mut left, score, &pivots)? else { break };
            steps.push(Removal { part: column, error: self.relative(score(column)) });
            let removed = delayed.remove(&device, column, &self.inverse, &column_products)?;
            for (j, [root, share, other]) in removed.into_iter().enumerate() {
                pivots[j] -= root * root;
                energies[j] -= 2.0 * share * other;
            }
            if delayed.columns.len() == DELAY {
                delayed.apply(self, &mut column_products)?;
            }
        }
        delayed.apply(self, &mut column_products)?;
        Ok(steps)
    }
}

impl CudaStructured {
    /// W^T W, n x n.
    fn column_products(&self) -> Result<DeviceBuffer<f64>, CudaError> {
        let (n, rows) = (self.n, self.rows);
        let mut column_products = self.driver().buffer(n * n)?;
        let product =
            F64Product { left: (&self.weight, true), right: (&self.weight, false), sizes: [n, n, rows] };
        product.add(&self.device, 1.0, 0.0, &mut column_products)?;
        Ok(column_products)
    }
}

/// tr(W S W^T): the diagonal of W (S W^T).
fn energy(
    device: &CudaDevice,
    weight: &DeviceBuffer<f64>,
    gram: SymmetricSquare<'_>,
    rows: usize,
    n: usize,
) -> Result<f64, CudaError> {
    let (driver, gram) = (device.driver(), gram.on(device)?);
    let (mut seen, mut outputs) = (driver.buffer(rows * n)?, driver.buffer(rows * rows)?);
    F64Product { left: (weight, false), right: (&gram, false), sizes: [rows, n, n] }
        .add(device, 1.0, 0.0, &mut seen)?;
    F64Product { left: (&seen, false), right: (weight, true), sizes: [rows, rows, n] }.add(
        device,
        1.0,
        0.0,
        &mut outputs,
    )?;
    Ok(diagonal(driver, &outputs, rows)?.iter().sum())
}

/// H^-1, whole, and the damping with which S, of this diagonal, could be factorised.
fn inverse(
    device: &CudaDevice,
    gram: SymmetricSquare<'_>,
    diagonal: &[f64],
    damping: f64,
) -> Result<(DeviceBuffer<f64>, f64), SolveError> {
    let (driver, factoriser, n) = (device.driver(), device.factoriser(), diagonal.len());
    let mut next = Some(damping);
    while let Some(used) = next {
        let mut square = gram.on(device)?;
        let mut spoilt = driver.zeros::<u32>(1)?;
        let (launch, added) = (Launch::matrix(n, n), used * live_mean(diagonal));
        driver.damp_upper(launch, square.output(), n, added, spoilt.output())?;
        let mut found = [0];
        driver.read(TransferKind::Figures, &spoilt, &mut found)?;
        if found[0] > 0 {
            return Err(SolveError::GramNotFinite);
        }
        if factoriser.factorise(driver, &mut square, n)? && factoriser.invert(driver, &mut square, n)? {
            driver.mirror_upper_f64(Launch::tiles(n, n, 32), square.output(), n)?;
            return Ok((square, used));
        }
        next = raised(used);
    }
    Err(SolveError::NotPositive { damping: damping.max(1.0) })
}

/// Makes columns of a weight exactly zero.
fn zero(weight: &mut [f64], n: usize, columns: &[usize]) {
    for row in weight.chunks_exact_mut(n) {
        columns.iter().for_each(|j| row[*j] = 0.0);
    }
}
