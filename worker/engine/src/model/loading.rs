//! Reads a model's tensors from its checkpoint.

use std::collections::BTreeMap;

use candle_core::{CpuStorage, DType, Storage, Tensor};
use rayon::prelude::*;

use super::ops::LinearTensors;
use crate::checkpoint::Weights;
use crate::{Error, HOST, Result};

/// Numbers checked as one piece of work.
const CHUNK: usize = 1 << 18;

/// Reads tensors for one model, in its type.
pub(crate) struct Loader<'a> {
    pub(crate) weights: &'a Weights,
    pub(crate) dtype: DType,
}

impl Loader<'_> {
    /// A tensor in the model's type.
    ///
    /// # Errors
    /// When it is missing, has another shape, or holds a value that is not finite in the model's type.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.weights.tensor(name, shape, self.dtype)?;
        if !all_finite(&tensor) {
            let path = self.weights.files()[self.weights.entry(name)?.file()].path().to_owned();
            return Err(Error::NotFinite { path, name: name.to_owned() });
        }
        Ok(tensor)
    }

    /// `name.weight` (`rows x n`), with zeros for a bias.
    pub(crate) fn linear_without_bias(&self, name: &str, rows: usize, n: usize) -> Result<LinearTensors> {
        let weight = self.tensor(&format!("{name}.weight"), &[rows, n])?;
        let bias = Tensor::zeros(rows, self.dtype, &HOST)?;
        Ok(LinearTensors::new(weight, bias))
    }

    /// `name.weight` (`rows x n`) and `name.bias` (`rows`).
    pub(crate) fn linear(&self, name: &str, rows: usize, n: usize) -> Result<LinearTensors> {
        let weight = self.tensor(&format!("{name}.weight"), &[rows, n])?;
        let bias = self.tensor(&format!("{name}.bias"), &[rows])?;
        Ok(LinearTensors::new(weight, bias))
    }
}

/// Holds a checkpoint's headers against the tensors that a configuration asks for; no weight is read.
///
/// # Errors
/// When a tensor is missing, has another shape or a type that is no float, or is one that the configuration neither asks for nor `ignores`.
pub(crate) fn check(
    shapes: Vec<(String, Vec<usize>)>,
    weights: &Weights,
    ignores: impl Fn(&str) -> bool,
) -> Result<()> {
    let shapes: BTreeMap<String, Vec<usize>> = shapes.into_iter().collect();
    for (name, shape) in &shapes {
        let entry = weights.entry(name)?;
        let path = || weights.files()[entry.file()].path().to_owned();
        if entry.shape() != shape {
            let (expected, found) = (shape.clone(), entry.shape().to_vec());
            return Err(Error::Shape { path: path(), name: name.clone(), expected, found });
        }
        if !matches!(entry.dtype(), DType::F32 | DType::F16 | DType::BF16) {
            let problem = format!("tensor `{name}` is {:?}, but must be f32, f16 or bf16", entry.dtype());
            return Err(Error::content(path(), problem));
        }
    }
    match weights.entries().find(|(name, _)| !shapes.contains_key(*name) && !ignores(name)) {
        None => Ok(()),
        Some((name, entry)) => {
            let problem = format!("holds tensor `{name}`, which the configuration does not ask for");
            Err(Error::content(weights.files()[entry.file()].path(), problem))
        }
    }
}

/// Whether a freshly read tensor holds no NaN and no infinity: none of its numbers has an exponent of ones.
fn all_finite(tensor: &Tensor) -> bool {
    fn every<T: Sync>(numbers: &[T], finite: impl Fn(&T) -> bool + Sync) -> bool {
        // No early end inside a piece: without one the loop is vectorised.
        numbers.par_chunks(CHUNK).all(|piece| piece.iter().fold(true, |all, number| all & finite(number)))
    }
    match &*tensor.storage_and_layout().0 {
        Storage::Cpu(CpuStorage::F32(numbers)) => {
            every(numbers, |x| x.to_bits() & 0x7f80_0000 != 0x7f80_0000)
        }
        Storage::Cpu(CpuStorage::F16(numbers)) => every(numbers, |x| x.to_bits() & 0x7c00 != 0x7c00),
        Storage::Cpu(CpuStorage::BF16(numbers)) => every(numbers, |x| x.to_bits() & 0x7f80 != 0x7f80),
        _ => false,
    }
}
