//! Columns of a linear that went on a GPU, and what the others take of that, applied many at a time.

use std::sync::Arc;

use super::driver::{CudaDriver, DeviceBuffer};
use super::f64::{F64Product, gathered, read};
use super::products::{Operand, ProductSizes};
use super::structured::CudaStructured;
use super::{CudaDevice, CudaError};
use crate::device::transfers::TransferKind;
use crate::solve::structured::DELAY;

/// Removals that have not been applied yet, as `solve/structured/neurons.rs` has them: each a row of n values in three matrices.
pub(super) struct DeviceRemovals {
    n: usize,
    pub(super) columns: Vec<usize>,
    roots: DeviceBuffer<f64>,
    shares: DeviceBuffer<f64>,
    others: DeviceBuffer<f64>,
    /// The shares once more.
    on_host: Vec<f64>,
    /// Columns of H^-1 and of W^T W on their way to the host, and three rows on their way back.
    passing: DeviceBuffer<f64>,
}

impl DeviceRemovals {
    pub(super) fn new(driver: &CudaDriver, n: usize) -> Result<Self, CudaError> {
        let rows = || driver.buffer(DELAY * n);
        let (roots, shares, others) = (rows()?, rows()?, rows()?);
        let (columns, on_host) = (Vec::with_capacity(DELAY), Vec::with_capacity(DELAY * n));
        Ok(Self { n, columns, roots, shares, others, on_host, passing: driver.buffer(3 * n)? })
    }

    /// Notes the removal of a column; gives its root, share and other of each column.
    pub(super) fn remove(
        &mut self,
        device: &CudaDevice,
        column: usize,
        inverse: &DeviceBuffer<f64>,
        column_products: &DeviceBuffer<f64>,
    ) -> Result<Vec<[f64; 3]>, CudaError> {
        let (n, k, driver) = (self.n, self.columns.len(), device.driver());
        driver.copy_part(inverse, column * n, &mut self.passing, 0, n)?;
        driver.copy_part(column_products, column * n, &mut self.passing, n, n)?;
        let Self { roots, shares, others, passing, .. } = self;
        for (of, rows, to) in [(&*roots, &*roots, 0), (&*shares, &*others, n), (&*others, &*shares, n)] {
            // Of all removals so far what they have in this column, times what they take off the others.
            let left = Operand { values: of.input_from(column), stride: n, transposed: true };
            let right = Operand { values: rows.input(), stride: n, transposed: false };
            let sizes = ProductSizes { rows: 1, columns: n, inner: k, stride: n };
            device.products().multiply_f64(sizes, -1.0, left, right, 1.0, passing.output_from(to))?;
        }
        let both = read(driver, passing, 2 * n)?;
        let (h, c) = both.split_at(n);
        let (pivot, half, root) = (h[column], c[column] / 2.0, h[column].sqrt());
        let rows: Vec<[f64; 3]> =
            h.iter().zip(c).map(|(h, c)| [h / root, h / pivot, c - half * (h / pivot)]).collect();
        let flat: Vec<f64> = (0..3).flat_map(|of| rows.iter().map(move |row| row[of])).collect();
        driver.write(TransferKind::Figures, &flat, passing)?;
        for (at, to) in [roots, shares, others].into_iter().enumerate() {
            driver.copy_part(passing, at * n, to, k * n, n)?;
        }
        self.on_host.extend(&flat[n..2 * n]);
        self.columns.push(column);
        Ok(rows)
    }

    /// Applies what has been noted.
    pub(super) fn apply(
        &mut self,
        layer: &mut CudaStructured,
        column_products: &mut DeviceBuffer<f64>,
    ) -> Result<(), CudaError> {
        let (n, k, rows) = (self.n, self.columns.len(), layer.rows);
        if k == 0 {
            return Ok(());
        }
        let device = Arc::clone(&layer.device);
        let driver = device.driver();
        let off = |left, right| F64Product { left: (left, true), right: (right, false), sizes: [n, n, k] };
        off(&self.roots, &self.roots).add(&device, -1.0, 1.0, &mut layer.inverse)?;
        off(&self.shares, &self.others).add(&device, -1.0, 1.0, column_products)?;
        off(&self.others, &self.shares).add(&device, -1.0, 1.0, column_products)?;
        // Each removed column as it was when it went is what is left of it after the removals before: R = T^-1 W_D^T, of which T_il is
        // removal l's share of column i, and 1 on the diagonal.
        let mut solved = vec![0.0; k * k];
        for i in 0..k {
            let (before, here) = solved.split_at_mut(i * k);
            here[i] = 1.0;
            for (l, before) in before.chunks_exact(k).enumerate() {
                let share = self.on_host[l * n + self.columns[i]];
                here[..k].iter_mut().zip(before).for_each(|(x, before)| *x -= share * before);
            }
        }
        let (solved, gone) = (
            driver.upload(TransferKind::Figures, &solved)?,
            gathered(driver, &layer.weight, rows, n, &self.columns)?,
        );
        let mut removed = driver.buffer(k * rows)?;
        let product = F64Product { left: (&solved, false), right: (&gone, false), sizes: [k, rows, k] };
        product.add(&device, 1.0, 0.0, &mut removed)?;
        let taken = F64Product { left: (&removed, true), right: (&self.shares, false), sizes: [rows, n, k] };
        taken.add(&device, -1.0, 1.0, &mut layer.weight)?;
        layer.gone.append(&mut self.columns);
        self.on_host.clear();
        Ok(())
    }
}
