//! A safetensors file that a test can damage.

use std::fs;
use std::ops::Range;
use std::path::Path;

use serde_json::{Map, Value, json};

/// Bits of 16-bit floats (IEEE binary16).
pub(crate) const NAN: u16 = 0x7e00;
pub(crate) const INFINITY: u16 = 0x7c00;
pub(crate) const LARGEST: u16 = 0x7bff;

/// A file of 16-bit floats: its header and its numbers.
pub(crate) struct Checkpoint {
    pub(crate) header: Map<String, Value>,
    data: Vec<u8>,
}

impl Checkpoint {
    pub(crate) fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
        let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
        Self { header: serde_json::from_slice(header).unwrap(), data: data.to_vec() }
    }

    /// The file, its header as it is now.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        file(&serde_json::to_vec(&self.header).unwrap(), &self.data)
    }

    fn place(&self, tensor: &str) -> Range<usize> {
        let offset = |i: usize| self.header[tensor]["data_offsets"][i].as_u64().unwrap() as usize;
        offset(0)..offset(1)
    }

    /// Replaces one number of a tensor.
    pub(crate) fn set(&mut self, tensor: &str, index: usize, bits: u16) {
        let at = self.place(tensor).start + 2 * index;
        self.data[at..at + 2].copy_from_slice(&bits.to_le_bytes());
    }

    /// Replaces every number of a tensor.
    pub(crate) fn fill(&mut self, tensor: &str, bits: u16) {
        let place = self.place(tensor);
        self.data[place].chunks_exact_mut(2).for_each(|number| number.copy_from_slice(&bits.to_le_bytes()));
    }

    /// Gives a tensor another name, so that the one asked for is missing.
    pub(crate) fn rename(&mut self, tensor: &str, name: &str) {
        let entry = self.header.remove(tensor).unwrap();
        self.header.insert(name.to_owned(), entry);
    }

    /// Gives a tensor another shape of as many numbers.
    pub(crate) fn reshape(&mut self, tensor: &str, shape: [usize; 2]) {
        self.header[tensor]["shape"] = json!(shape);
    }
}

/// A safetensors file of this header and these numbers.
pub(crate) fn file(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}
