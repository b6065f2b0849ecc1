//! Tensors that lose rows or columns.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use serde_json::{Map, Value, json};

use crate::checkpoint::{TensorEntry, Weights, read_json};
use crate::{Error, HOST, Result};

/// The rows or columns of a tensor that are kept, by index, ascending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeptIndices {
    /// These rows, or of a bias these numbers.
    Rows(Vec<usize>),
    /// These columns.
    Columns(Vec<usize>),
}

/// How an export makes the transformer smaller than its source.
#[derive(Clone, Debug, Default)]
pub struct Shrink {
    /// By tensor name; tensors that are not here stay whole.
    pub kept: BTreeMap<String, KeptIndices>,
    /// Files of the transformer's folder that are rewritten, by name.
    pub files: Vec<(String, Vec<u8>)>,
}

impl KeptIndices {
    fn axis(&self) -> (usize, &[usize]) {
        match self {
            Self::Rows(rows) => (0, rows),
            Self::Columns(columns) => (1, columns),
        }
    }

    /// The tensor without what is not kept.
    pub(super) fn select(&self, tensor: &Tensor) -> Result<Tensor> {
        let (axis, kept) = self.axis();
        let kept: Vec<u32> = kept.iter().map(|i| *i as u32).collect();
        Ok(tensor.index_select(&Tensor::new(kept, &HOST)?, axis)?)
    }
}

impl Shrink {
    /// The shape of a tensor of the source in the export.
    pub(super) fn shape(&self, name: &str, entry: &TensorEntry) -> Vec<usize> {
        let mut shape = entry.shape().to_vec();
        if let Some((axis, kept)) = self.kept.get(name).map(KeptIndices::axis)
            && let Some(size) = shape.get_mut(axis)
        {
            *size = kept.len();
        }
        shape
    }

    /// The bytes of a tensor of the source in the export.
    pub(super) fn bytes(&self, name: &str, entry: &TensorEntry) -> usize {
        self.shape(name, entry).iter().product::<usize>() * entry.dtype().size_in_bytes()
    }

    /// The header of a file with these tensors: that of its source with other shapes and places. Eight bytes of length, then JSON.
    pub(super) fn header(
        &self,
        path: &Path,
        source: &[u8],
        entries: &[(&str, &TensorEntry)],
    ) -> Result<Vec<u8>> {
        let failed =
            |e: serde_json::Error| Error::content(path, format!("has a header that cannot be read: {e}"));
        let mut header: Map<String, Value> = serde_json::from_slice(source).map_err(failed)?;
        let mut next = 0;
        for (name, entry) in entries {
            let end = next + self.bytes(name, entry);
            if let Some(Value::Object(tensor)) = header.get_mut(*name) {
                tensor.insert("shape".to_owned(), json!(self.shape(name, entry)));
                tensor.insert("data_offsets".to_owned(), json!([next, end]));
            }
            next = end;
        }
        let mut text = serde_json::to_vec(&header).map_err(failed)?;
        // The numbers behind it start at a multiple of eight.
        text.resize(text.len().next_multiple_of(8), b' ');
        Ok([&(text.len() as u64).to_le_bytes()[..], &text].concat())
    }

    /// The index of shards with its total size made right.
    pub(super) fn index(&self, weights: &Weights, source: &Path) -> Result<Vec<u8>> {
        let mut index: Map<String, Value> = read_json(source)?;
        let total: usize = weights.entries().map(|(name, entry)| self.bytes(name, entry)).sum();
        if let Some(Value::Object(metadata)) = index.get_mut("metadata") {
            metadata.insert("total_size".to_owned(), json!(total));
        }
        serde_json::to_vec_pretty(&index)
            .map_err(|e| Error::content(source, format!("cannot be written again: {e}")))
    }
}
