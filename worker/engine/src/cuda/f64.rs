//! Matrices of f64 on a GPU, rows one behind another: their products, and what moves their columns.

use super::driver::{CudaDriver, DeviceBuffer};
use super::kernels::Launch;
use super::products::{Operand, ProductSizes};
use super::{CudaDevice, CudaError};
use crate::device::transfers::TransferKind;

/// out = left * right, of matrices whose rows lie one behind another; either factor may be transposed.
pub(super) struct F64Product<'a> {
    pub(super) left: (&'a DeviceBuffer<f64>, bool),
    pub(super) right: (&'a DeviceBuffer<f64>, bool),
    /// Rows, columns, and what is summed over.
    pub(super) sizes: [usize; 3],
}

impl F64Product<'_> {
    /// out = factor * left * right + keep * out.
    pub(super) fn add(
        self,
        device: &CudaDevice,
        factor: f64,
        keep: f64,
        out: &mut DeviceBuffer<f64>,
    ) -> Result<(), CudaError> {
        let [rows, columns, inner] = self.sizes;
        let (left, right) = (operand(self.left, inner, rows), operand(self.right, columns, inner));
        let sizes = ProductSizes { rows, columns, inner, stride: columns };
        device.products().multiply_f64(sizes, factor, left, right, keep, out.output())
    }
}

/// A factor of so many columns and rows, of which either is stored first.
fn operand((of, transposed): (&DeviceBuffer<f64>, bool), columns: usize, rows: usize) -> Operand<'_, f64> {
    Operand { values: of.input(), stride: if transposed { rows } else { columns }, transposed }
}

/// The diagonal of a square, on the host.
pub(super) fn diagonal(
    driver: &CudaDriver,
    square: &DeviceBuffer<f64>,
    n: usize,
) -> Result<Vec<f64>, CudaError> {
    let mut values = driver.buffer(n)?;
    copy_columns(driver, square, 0, n + 1, &mut values, n, 1)?;
    read(driver, &values, n)
}

/// Columns of a matrix (rows x n), each a row: k x rows.
pub(super) fn gathered(
    driver: &CudaDriver,
    matrix: &DeviceBuffer<f64>,
    rows: usize,
    n: usize,
    columns: &[usize],
) -> Result<DeviceBuffer<f64>, CudaError> {
    let (mut gathered, mut one) = (driver.buffer(columns.len() * rows)?, driver.buffer(rows)?);
    for (to, column) in columns.iter().enumerate() {
        copy_columns(driver, matrix, *column, n, &mut one, rows, 1)?;
        driver.copy_part(&one, 0, &mut gathered, to * rows, rows)?;
    }
    Ok(gathered)
}

/// Copies `rows` times `columns` values, from value `first` on, whose rows are `stride` apart.
pub(super) fn copy_columns(
    driver: &CudaDriver,
    from: &DeviceBuffer<f64>,
    first: usize,
    stride: usize,
    to: &mut DeviceBuffer<f64>,
    rows: usize,
    columns: usize,
) -> Result<(), CudaError> {
    // The kernel copies values of four bytes.
    let (launch, from, to) =
        (Launch::matrix(rows, 2 * columns), from.input_from(first).halves(), to.output().halves());
    driver.copy_columns(launch, from, to, rows, 2 * columns, 2 * stride)
}

pub(super) fn read(
    driver: &CudaDriver,
    buffer: &DeviceBuffer<f64>,
    count: usize,
) -> Result<Vec<f64>, CudaError> {
    let mut values = vec![0.0; count];
    driver.read(TransferKind::Results, buffer, &mut values)?;
    Ok(values)
}
