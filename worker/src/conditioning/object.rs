//! The content of a conditioning object: a safetensors file with the tensors `text`, `prompts x tokens x width`, and `pooled`,
//! `prompts x pooled width`. Its metadata says which object it is, and the digest of both tensors' bytes.

use std::collections::HashMap;

use candle_core::{DType, Tensor};
use obsdiff_engine::pipeline::Conditioning;
use obsdiff_proto::{Digest, JobSpec};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde::{Deserialize, Serialize};

use crate::preparation::{JobModel, compute_type};
use obsdiff_engine::HOST;

/// The metadata's only key.
const CONTENT: &str = "content";

/// The metadata of an object.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct ObjectMetadata {
    /// The digest of everything that decides the object's content.
    key: Digest,
    /// The digest of the bytes of `text`, then `pooled`.
    sha256: Digest,
}

/// The number, sizes and type that the conditionings of an object must have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    pub(super) prompts: usize,
    /// Text tokens, features of each, and pooled features.
    pub(super) sizes: [usize; 3],
    pub(super) dtype: DType,
}

impl Expected {
    /// Those of so many prompts of a job.
    pub(super) fn of(spec: &JobSpec, model: &JobModel, prompts: usize) -> Self {
        let widths = model.config.conditioning();
        let sizes = [model.text_tokens, widths.text, widths.pooled];
        Self { prompts, sizes, dtype: compute_type(spec.model.dtype) }
    }
}

/// The bytes of an object with these conditionings.
pub(super) fn write(key: Digest, conditionings: &[&Conditioning]) -> Result<Vec<u8>, String> {
    let stacked = |of: fn(&Conditioning) -> &Tensor| {
        Tensor::stack(&conditionings.iter().map(|one| of(one)).collect::<Vec<_>>(), 0)
    };
    let made = || -> candle_core::Result<_> {
        let (text, pooled) = (stacked(|one| &one.text)?, stacked(|one| &one.pooled)?);
        let mut bytes = Vec::new();
        text.write_bytes(&mut bytes)?;
        let middle = bytes.len();
        pooled.write_bytes(&mut bytes)?;
        Ok((text, pooled, bytes, middle))
    };
    let (text, pooled, bytes, middle) = made().map_err(|e| e.to_string())?;
    let metadata = ObjectMetadata { key, sha256: Digest::of(&bytes) };
    let metadata = serde_json::to_string(&metadata).map_err(|e| e.to_string())?;
    let view = |tensor: &Tensor, bytes| {
        TensorView::new(tensor.dtype().into(), tensor.dims().to_vec(), bytes).map_err(|e| e.to_string())
    };
    let tensors = [("text", view(&text, &bytes[..middle])?), ("pooled", view(&pooled, &bytes[middle..])?)];
    safetensors::serialize(tensors, Some(HashMap::from([(CONTENT.to_owned(), metadata)])))
        .map_err(|e| e.to_string())
}

/// The text tokens of a prompt in an object.
pub(super) fn text_tokens(object: &[u8]) -> Result<usize, String> {
    let tensors = SafeTensors::deserialize(object).map_err(|e| format!("it cannot be read: {e}"))?;
    match tensors.tensor("text").map(|text| text.shape().to_vec()).as_deref() {
        Ok([_, tokens, _]) => Ok(*tokens),
        _ => Err("`text` is missing, or no matrix for each prompt".to_owned()),
    }
}

/// Reads an object. The error says in words what is wrong with it.
pub(super) fn read(key: Digest, object: &[u8], expected: Expected) -> Result<Vec<Conditioning>, String> {
    let (_, header) = SafeTensors::read_metadata(object).map_err(|e| format!("it cannot be read: {e}"))?;
    let tensors = SafeTensors::deserialize(object).map_err(|e| format!("it cannot be read: {e}"))?;
    let metadata = header.metadata().as_ref().and_then(|metadata| metadata.get(CONTENT));
    let metadata: ObjectMetadata = metadata
        .and_then(|text| serde_json::from_str(text).ok())
        .ok_or("its metadata does not say which prompts it is of")?;
    if metadata.key != key {
        return Err(format!(
            "it is the conditioning of other prompts or by other encoders, {}",
            metadata.key
        ));
    }
    let Expected { prompts, sizes: [tokens, width, pooled], dtype } = expected;
    let view = |name: &str, shape: &[usize]| {
        let view = tensors.tensor(name).map_err(|_| format!("`{name}` is missing"))?;
        if view.shape() != shape || view.dtype() != dtype.into() {
            return Err(format!(
                "`{name}` is {:?} {:?} instead of {dtype:?} {shape:?}",
                view.dtype(),
                view.shape()
            ));
        }
        Ok(view)
    };
    let shapes = [vec![prompts, tokens, width], vec![prompts, pooled]];
    let (text, pooled) = (view("text", &shapes[0])?, view("pooled", &shapes[1])?);
    let found = Digest::of(&[text.data(), pooled.data()].concat());
    if found != metadata.sha256 {
        return Err(format!("its tensors have the digest {found} instead of {}", metadata.sha256));
    }
    let tensor = |view: &TensorView<'_>| Tensor::from_raw_buffer(view.data(), dtype, view.shape(), &HOST);
    let split = || -> candle_core::Result<_> {
        let (text, pooled) = (tensor(&text)?, tensor(&pooled)?);
        (0..prompts).map(|i| Ok(Conditioning { text: text.get(i)?, pooled: pooled.get(i)? })).collect()
    };
    split().map_err(|e| e.to_string())
}
