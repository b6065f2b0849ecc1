//! Pruned tensors as they were solved, read back from the store one at a time.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use candle_core::Tensor;
use obsdiff_engine::Error;
use obsdiff_proto::lock;
use obsdiff_proto::message::Receipt;

use super::object;
use super::{PartStore, WorkError};

/// The tensors of all applied packages, by their names in a checkpoint. They are stored in f32, whatever type the model computes in. One
/// object of the store is in memory at a time.
pub struct PrunedTensors {
    part_store: Arc<dyn PartStore>,
    /// The rows of each tensor, by the first of them.
    places: BTreeMap<String, BTreeMap<usize, TensorLocation>>,
    /// The object last read: neighbours in a checkpoint are often in the same one.
    last: Mutex<Option<(Receipt, Bytes)>>,
}

/// Where some rows of a tensor are stored.
#[derive(Clone, Debug)]
struct TensorLocation {
    receipt: Receipt,
    /// The name in the object.
    name: String,
}

impl PrunedTensors {
    /// No tensors yet.
    pub(super) fn new(part_store: Arc<dyn PartStore>) -> Self {
        Self { part_store, places: BTreeMap::new(), last: Mutex::new(None) }
    }

    /// Adds rows of `tensor`, from row `start` on: they are the tensor `name` of an object.
    pub(super) fn add(&mut self, tensor: String, start: usize, receipt: &Receipt, name: String) {
        let place = TensorLocation { receipt: receipt.clone(), name };
        self.places.entry(tensor).or_default().insert(start, place);
    }

    /// A tensor, in f32 and of its shape in the dense model; none where it was not pruned.
    ///
    /// # Errors
    /// When the store fails or an object is damaged.
    pub fn tensor(&self, name: &str) -> Result<Option<Tensor>, WorkError> {
        let Some(places) = self.places.get(name) else { return Ok(None) };
        let rows = places.values().map(|place| self.rows(place)).collect::<Result<Vec<_>, _>>()?;
        match &*rows {
            [whole] => Ok(Some(whole.clone())),
            rows => Ok(Some(Tensor::cat(rows, 0).map_err(Error::from)?)),
        }
    }

    fn rows(&self, place: &TensorLocation) -> Result<Tensor, WorkError> {
        let mut last = lock(&self.last);
        let object = match &*last {
            Some((receipt, object)) if *receipt == place.receipt => object.clone(),
            _ => {
                // Two are never held at once.
                *last = None;
                let object = self.part_store.get(&place.receipt)?;
                *last = Some((place.receipt.clone(), object.clone()));
                object
            }
        };
        Ok(object::read_tensor(&object, &place.name)?)
    }
}

impl Clone for PrunedTensors {
    fn clone(&self) -> Self {
        Self { part_store: self.part_store.clone(), places: self.places.clone(), last: Mutex::new(None) }
    }
}

impl fmt::Debug for PrunedTensors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrunedTensors").field("tensors", &self.places.len()).finish_non_exhaustive()
    }
}
