//! Figures of the linears of a part, for people: read from the header of its object alone, without the weights.

use bytes::Buf;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::ObjectStoreExt;
use obsdiff_proto::{LinearId, PackageId};
use serde::Deserialize;

use super::part::LOOKUPS;
use super::{JobStore, PartReceipt, Result};

/// The most bytes of a header that are read, the same as what safetensors takes.
const MOST_HEADER: u64 = 100_000_000;

/// What became of some rows of a linear.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearFigures {
    /// The linear.
    pub linear: LinearId,
    /// Its module path.
    pub name: String,
    /// Its weights, of these rows.
    pub weights: u64,
    /// Those of them that are zero or gone.
    pub zeros: u64,
    /// The relative output error of these rows, where it was measured on Grams.
    pub error: Option<f64>,
}

/// A safetensors header, but for its tensors.
#[derive(Deserialize)]
struct PartHeader {
    #[serde(rename = "__metadata__")]
    metadata: Option<Metadata>,
}

/// The metadata that workers write.
#[derive(Deserialize)]
struct Metadata {
    /// A [`Content`] as JSON.
    content: String,
}

#[derive(Deserialize)]
struct Content {
    records: LinearRecords,
}

/// The records of linears; those of surveys have none.
#[derive(Default, Deserialize)]
struct LinearRecords {
    #[serde(default)]
    slices: Vec<SliceContent>,
    #[serde(default)]
    structures: Structures,
}

#[derive(Deserialize)]
struct SliceContent {
    linear: LinearId,
    report: LinearReport,
}

#[derive(Default, Deserialize)]
struct Structures {
    linears: Vec<(LinearId, LinearReport)>,
}

#[derive(Deserialize)]
struct LinearReport {
    name: String,
    shape: [u64; 2],
    zeros: u64,
    relative_error: Option<f64>,
}

/// The figures in the header of a part's object.
fn figures(header: &[u8]) -> serde_json::Result<Vec<LinearFigures>> {
    let header: PartHeader = serde_json::from_slice(header)?;
    let Some(metadata) = header.metadata else { return Ok(Vec::new()) };
    let LinearRecords { slices, structures } = serde_json::from_str::<Content>(&metadata.content)?.records;
    let slices = slices.into_iter().map(|slice| (slice.linear, slice.report));
    let figures = |(linear, report): (LinearId, LinearReport)| LinearFigures {
        linear,
        weights: report.shape[0].saturating_mul(report.shape[1]),
        zeros: report.zeros,
        error: report.relative_error,
        name: report.name,
    };
    Ok(slices.chain(structures.linears).map(figures).collect())
}

impl JobStore {
    /// What became of the linears of a committed package. Only the headers of its parts are read, and no digest is checked: the figures
    /// are shown and decide nothing.
    ///
    /// # Errors
    /// When the manifest or a header cannot be read.
    pub async fn linear_figures(&self, package: PackageId) -> Result<Vec<LinearFigures>> {
        let receipts = self.manifest_record(package).await?.receipts();
        let read = |receipt: PartReceipt| async move {
            let header = self.header(&receipt).await?;
            figures(&header)
                .map_err(|e| self.damaged(&receipt.object, &format!("its header cannot be read: {e}")))
        };
        let figures: Vec<_> = stream::iter(receipts).map(read).buffered(LOOKUPS).try_collect().await?;
        Ok(figures.into_iter().flatten().collect())
    }

    /// The header of a part's object: its length in 8 bytes, least significant first, stands before it.
    async fn header(&self, receipt: &PartReceipt) -> Result<bytes::Bytes> {
        let length = self.range(&receipt.object, 0..8).await?.try_get_u64_le().unwrap_or(u64::MAX);
        if length > receipt.bytes.min(MOST_HEADER) {
            return Err(self.damaged(&receipt.object, "its header is longer than the object"));
        }
        self.range(&receipt.object, 8..8 + length).await
    }

    async fn range(&self, object: &str, range: std::ops::Range<u64>) -> Result<bytes::Bytes> {
        let path = self.path(object);
        self.retried("read", object, || self.objects.get_range(&path, range.clone())).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_names_slices_and_structures_and_that_of_a_survey_none() {
        let header = |records: &str| {
            let content = serde_json::json!({ "package": 3, "records": serde_json::from_str::<serde_json::Value>(records).unwrap() });
            let header = serde_json::json!({
                "__metadata__": { "content": content.to_string() },
                "a.weight": { "dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32] },
            });
            figures(header.to_string().as_bytes()).unwrap()
        };
        let report =
            r#"{"name":"a","shape":[2,4],"target":"x","zeros":3,"damping":null,"relative_error":0.25}"#;
        let expected = || LinearFigures {
            linear: LinearId(5),
            name: "a".to_owned(),
            weights: 8,
            zeros: 3,
            error: Some(0.25),
        };
        let slices = format!(
            r#"{{"slices":[{{"linear":5,"rows":{{"start":0,"end":2}},"report":{report},"energy":null}}]}}"#
        );
        assert_eq!(header(&slices), [expected()]);
        let structures = format!(r#"{{"structures":{{"structures":[],"linears":[[5,{report}]]}}}}"#);
        assert_eq!(header(&structures), [expected()]);
        assert_eq!(header(r#"{"surveyed_slices":[{"linear":5}]}"#), []);
    }
}
