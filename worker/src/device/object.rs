//! A part's object: its pruned weights as safetensors, with their reports in the metadata.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::ops::Range;

use candle_core::Tensor;
use obsdiff_engine::export::{PrunedLinear, PrunedStructure};
use obsdiff_engine::pruner::{SolvedSlice, SolvedStructures, SurveyedSlice};
use obsdiff_engine::solve::OutputEnergy;
use obsdiff_proto::{LinearId, PackageId, StructureId};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use super::PartStoreError;
use crate::grams::SolvedBy;
use obsdiff_engine::HOST;

/// The metadata's only key.
const CONTENT: &str = "content";

/// The record of some rows of a linear.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct SliceRecord {
    pub(super) linear: LinearId,
    pub(super) rows: Range<usize>,
    pub(super) report: PrunedLinear,
    pub(super) energy: Option<OutputEnergy>,
}

/// The record of structures that were solved together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct StructuresRecord {
    pub(super) structures: Vec<(StructureId, PrunedStructure)>,
    pub(super) linears: Vec<(LinearId, PrunedLinear)>,
}

/// The package that an object is solved for, and the Grams that it was solved by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct PartOrigin {
    /// The package that it is solved for.
    pub(super) package: PackageId,
    /// The Grams that it was solved by, where they are kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) solved_by: Vec<SolvedBy>,
}

/// The metadata of an object.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct ObjectHeader {
    #[serde(flatten)]
    origin: PartOrigin,
    records: ObjectRecords,
}

/// The records of its tensors.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ObjectRecords {
    Slices(Vec<SliceRecord>),
    Structures(StructuresRecord),
    /// The error that each further part of each structure would bring.
    Survey(Vec<(StructureId, Vec<f64>)>),
    /// Surveys of rows of linears.
    SurveyedSlices(Vec<SurveyedSlice>),
}

/// The records of an object with their tensors.
#[derive(Debug)]
pub(super) enum PartContent {
    /// Rows of linears, `rows x n` each.
    Slices(Vec<(SliceRecord, Tensor)>),
    /// The tensors of structures, by their names in a checkpoint.
    Structures(StructuresRecord, BTreeMap<String, Tensor>),
    /// The error that each further part of each structure would bring.
    Survey(Vec<(StructureId, Vec<f64>)>),
    /// Surveys of rows of linears.
    SurveyedSlices(Vec<SurveyedSlice>),
}

/// An object of slices being filled.
pub(super) struct SliceWriter {
    origin: PartOrigin,
    records: Vec<SliceRecord>,
    tensors: Vec<(String, Tensor)>,
}

impl SliceWriter {
    /// An empty object.
    pub(super) fn new(origin: PartOrigin) -> Self {
        Self { origin, records: Vec::new(), tensors: Vec::new() }
    }

    /// Adds pruned rows.
    pub(super) fn push(&mut self, solved: SolvedSlice) {
        let SolvedSlice { slice, weight, report, energy } = solved;
        self.tensors.push((name(&report.name, &slice.rows), weight));
        self.records.push(SliceRecord { linear: slice.linear, rows: slice.rows, report, energy });
    }

    pub(super) fn finish(self) -> Result<Vec<u8>, PartStoreError> {
        let tensors = self.tensors.iter().map(|(name, tensor)| (name, tensor));
        serialize(tensors, self.origin, ObjectRecords::Slices(self.records))
    }
}

/// The object of structures that lost parts.
pub(super) fn structures(origin: PartOrigin, solved: SolvedStructures) -> Result<Vec<u8>, PartStoreError> {
    let SolvedStructures { structures, tensors, linears } = solved;
    serialize(&tensors, origin, ObjectRecords::Structures(StructuresRecord { structures, linears }))
}

/// The object of structures that were surveyed.
pub(super) fn survey(
    origin: PartOrigin,
    errors: Vec<(StructureId, Vec<f64>)>,
) -> Result<Vec<u8>, PartStoreError> {
    serialize([], origin, ObjectRecords::Survey(errors))
}

/// The object of rows of linears that were surveyed.
pub(super) fn surveyed(origin: PartOrigin, slices: Vec<SurveyedSlice>) -> Result<Vec<u8>, PartStoreError> {
    serialize([], origin, ObjectRecords::SurveyedSlices(slices))
}

/// The bytes of an object with these f32 tensors and records.
fn serialize<'a>(
    tensors: impl IntoIterator<Item = (&'a String, &'a Tensor)>,
    origin: PartOrigin,
    records: ObjectRecords,
) -> Result<Vec<u8>, PartStoreError> {
    let written = ObjectHeader { origin, records };
    let text = serde_json::to_string(&written).map_err(|e| unwritten(&e))?;
    // JSON writes null in place of NaN and infinity.
    if serde_json::from_str::<ObjectHeader>(&text).map_err(|e| unwritten(&e))? != written {
        return Err(unwritten(&"a number in its report is not finite"));
    }
    let metadata = HashMap::from([(CONTENT.to_owned(), text)]);
    safetensors::serialize(tensors, Some(metadata)).map_err(|e| unwritten(&e))
}

fn unwritten(error: &dyn Display) -> PartStoreError {
    PartStoreError::Damaged(format!("a part cannot be written: {error}"))
}

fn broken(error: &dyn Display) -> PartStoreError {
    PartStoreError::Damaged(format!("a part cannot be read: {error}"))
}

/// Reads an object and its origin.
pub(super) fn read(object: &[u8]) -> Result<(PartOrigin, PartContent), PartStoreError> {
    let (_, header) = SafeTensors::read_metadata(object).map_err(|e| broken(&e))?;
    let text =
        header.metadata().as_ref().and_then(|m| m.get(CONTENT)).ok_or_else(|| broken(&"no content"))?;
    let tensors = SafeTensors::deserialize(object).map_err(|e| broken(&e))?;
    let slice = |record: SliceRecord| {
        let view = tensors.tensor(&name(&record.report.name, &record.rows)).map_err(|e| broken(&e))?;
        if view.shape() != record.report.shape {
            return Err(broken(&format!("{} is of another shape", record.report.name)));
        }
        let weight = tensor(&record.report.name, &view)?;
        Ok((record, weight))
    };
    let header: ObjectHeader = serde_json::from_str(text).map_err(|e| broken(&e))?;
    let content = match header.records {
        ObjectRecords::Slices(slices) => {
            PartContent::Slices(slices.into_iter().map(slice).collect::<Result<_, _>>()?)
        }
        ObjectRecords::Structures(record) => {
            let named = |(name, view): (String, _)| Ok((name.clone(), tensor(&name, &view)?));
            let tensors = tensors.tensors().into_iter().map(named).collect::<Result<_, PartStoreError>>()?;
            PartContent::Structures(record, tensors)
        }
        ObjectRecords::Survey(errors) => PartContent::Survey(errors),
        ObjectRecords::SurveyedSlices(slices) => PartContent::SurveyedSlices(slices),
    };
    Ok((header.origin, content))
}

/// Reads one tensor of an object.
pub(super) fn read_tensor(object: &[u8], named: &str) -> Result<Tensor, PartStoreError> {
    let tensors = SafeTensors::deserialize(object).map_err(|e| broken(&e))?;
    tensor(named, &tensors.tensor(named).map_err(|e| broken(&e))?)
}

fn tensor(name: &str, view: &TensorView<'_>) -> Result<Tensor, PartStoreError> {
    if view.dtype() != Dtype::F32 {
        return Err(broken(&format!("{name} is of another type")));
    }
    let values: Vec<f32> = view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    Tensor::from_vec(values, view.shape(), &HOST).map_err(|e| broken(&e))
}

/// The name of a slice's tensor: that of the linear's weight, with the first row unless it is 0.
pub(super) fn name(linear: &str, rows: &Range<usize>) -> String {
    match rows.start {
        0 => format!("{linear}.weight"),
        start => format!("{linear}.weight.{start}"),
    }
}
