//! A symmetric matrix as its packed upper triangle in a device's memory.

use crate::device::numbers::DeviceNumbers;

/// The upper triangle of a symmetric n x n matrix: row after row, row i holding columns i..n. An entry is its number times `unit`, rounded
/// to f32.
#[derive(Clone, Debug)]
pub struct PackedUpper {
    /// Rows and columns: n.
    pub n: usize,
    /// What a number is multiplied by.
    pub unit: f64,
    /// The n (n + 1) / 2 numbers.
    pub numbers: DeviceNumbers,
}
