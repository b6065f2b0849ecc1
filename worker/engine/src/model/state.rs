//! The state of a forward call between two blocks.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::Tensor;

use super::Matrix;
use crate::{Error, HOST, Result};

/// Names of tensors that the states of several architectures hold.
pub(crate) mod name {
    /// `(batch * tokens) x width`.
    pub(crate) const IMAGE: &str = "image";
    /// `(batch * tokens) x width`.
    pub(crate) const TEXT: &str = "text";
    /// `batch x width`: SiLU of the conditioning vector.
    pub(crate) const CONDITIONING: &str = "conditioning";
    /// Two whole numbers: image tokens from top to bottom and from left to right.
    pub(crate) const SIDES: &str = "sides";
}

/// What a forward call takes from one block to the next, and all that blocks read besides their weights: tensors by name, on the
/// device that computes blocks. A call can
/// stop between two blocks, save its state, and go on later.
#[derive(Debug, Default)]
pub struct State(BTreeMap<String, Matrix>);

impl State {
    /// The tensors with their names, in alphabetical order.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Matrix)> {
        self.0.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The same state in memory of its own: a block uses the memory of the state that it is given again.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn copy(&self) -> Result<Self> {
        let copy = |(name, tensor): (&String, &Matrix)| Ok((name.clone(), tensor.copy()?));
        Ok(Self(self.0.iter().map(copy).collect::<Result<_>>()?))
    }

    /// Writes the tensors to a safetensors file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let tensor = |(name, tensor): (_, &Matrix)| Ok((name, tensor.to_host()?));
        let tensors: HashMap<&str, Tensor> = self.tensors().map(tensor).collect::<Result<_>>()?;
        candle_core::safetensors::save(&tensors, path).map_err(|e| Error::content(path, e.to_string()))
    }

    /// Reads what [`Self::save`] wrote.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn load(path: &Path) -> Result<Self> {
        let tensors = candle_core::safetensors::load(path, &HOST);
        let tensors = tensors.map_err(|e| Error::content(path, e.to_string()))?;
        Ok(Self(tensors.into_iter().map(|(name, tensor)| (name, tensor.into())).collect()))
    }

    /// The same state with one more tensor, or another one of this name.
    #[must_use]
    pub fn with(mut self, name: &str, tensor: impl Into<Matrix>) -> Self {
        self.0.insert(name.to_owned(), tensor.into());
        self
    }

    pub(crate) fn with_sides(self, (rows, columns): (usize, usize)) -> Result<Self> {
        Ok(self.with(name::SIDES, Tensor::new(&[rows as u32, columns as u32], &HOST)?))
    }

    /// A tensor by its name, in the host's memory.
    ///
    /// # Errors
    /// When there is none.
    pub fn get(&self, name: &str) -> Result<Tensor> {
        self.matrix(name)?.to_host()
    }

    /// A matrix by its name, where blocks are computed.
    pub(crate) fn matrix(&self, name: &str) -> Result<&Matrix> {
        self.0.get(name).ok_or_else(|| lacks(name))
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Takes a tensor out to the host's memory, so that a block there can use its memory again.
    ///
    /// # Errors
    /// When there is none.
    pub fn take(&mut self, name: &str) -> Result<Tensor> {
        self.take_matrix(name)?.to_host()
    }

    /// Takes a matrix out where blocks are computed, so that a block can use its memory again.
    pub(crate) fn take_matrix(&mut self, name: &str) -> Result<Matrix> {
        self.0.remove(name).ok_or_else(|| lacks(name))
    }

    pub(crate) fn sides(&self) -> Result<(usize, usize)> {
        match self.get(name::SIDES)?.to_vec1::<u32>()?[..] {
            [rows, columns] => Ok((rows as usize, columns as usize)),
            _ => Err(Error::Argument("the state of a forward call has no two `sides`".to_owned())),
        }
    }
}

fn lacks(name: &str) -> Error {
    Error::Argument(format!("the state of a forward call lacks `{name}` here"))
}

/// Error of a model of `count` blocks that is asked for another one.
pub(crate) fn no_block(index: usize, count: usize) -> Error {
    Error::Argument(format!("the transformer has {count} blocks, counted from 0, so no block {index}"))
}
