//! A file with the conditioning of prompts, made by obsdiff or another program. It is a safetensors file with the tensors
//! `prompt.ID.text`, `tokens x width`, and `prompt.ID.pooled`, `pooled width`, for the prompts from ID 0 on. `negative.text` and
//! `negative.pooled`, of the empty prompt, are needed where guidance is classifier-free.
//!
//! Its metadata may say of which `architecture` it is (the transformer's class), with how many T5 tokens (`max_sequence_length`), and
//! of which `prompts` (a JSON list of texts, in order of their ids).

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use obsdiff_engine::architecture::ConditioningWidths;
use obsdiff_engine::calibrate::Conditionings;
use obsdiff_engine::checkpoint::Weights;
use obsdiff_engine::pipeline::Conditioning;
use obsdiff_engine::{Error, Result};
use obsdiff_proto::JobSpec;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Value, json};

use crate::preparation::JobModel;

/// The tensors of the empty prompt.
const NEGATIVE: &str = "negative";
/// The metadata of a file that obsdiff wrote.
const WRITTEN_BY: (&str, &str) = ("written_by", "obsdiff");

/// The metadata of a file, as far as it has any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConditioningMetadata {
    /// The class of the transformer that its text encoders belong to.
    pub architecture: Option<String>,
    /// T5 tokens of a prompt.
    pub max_sequence_length: Option<u32>,
    /// The texts of its prompts.
    pub prompts: Option<Vec<String>>,
}

/// A file with the conditioning of prompts. Its header is read; its tensors are read when they are asked for.
#[derive(Debug)]
pub struct ConditioningFile {
    path: PathBuf,
    tensors: Weights,
    about: ConditioningMetadata,
    prompts: u32,
    tokens: usize,
}

/// The first part of the names of a prompt's tensors.
fn prompt(id: u32) -> String {
    format!("prompt.{id}")
}

impl ConditioningFile {
    /// Opens a file.
    ///
    /// # Errors
    /// When it cannot be read, is no safetensors file, or holds no prompt.
    pub fn open(path: &Path) -> Result<Self> {
        let tensors = Weights::open_file(path)?;
        let about = about(path, &tensors)?;
        let count = (0..u32::MAX).take_while(|id| tensors.contains(&format!("{}.text", prompt(*id)))).count();
        let first = format!("{}.text", prompt(0));
        let tokens = match tensors.entry(&first).map(|entry| entry.shape().to_vec()).as_deref() {
            Ok([tokens, _]) => *tokens,
            Ok(shape) => {
                return Err(content(
                    path,
                    format!("tensor `{first}` has shape {shape:?}: it must be tokens x width"),
                ));
            }
            Err(_) => {
                return Err(content(
                    path,
                    format!(
                        "holds no tensor `{first}`: name the tensors of prompt 0 `{first}` and `prompt.0.pooled`, and so on"
                    ),
                ));
            }
        };
        match &about.prompts {
            Some(texts) if texts.len() != count => Err(content(
                path,
                format!("names {} prompts in its metadata, but holds tensors of {count}", texts.len()),
            )),
            _ => Ok(Self { path: path.to_owned(), tensors, about, prompts: count as u32, tokens }),
        }
    }

    /// How many prompts it holds, from id 0 on.
    pub fn prompts(&self) -> u32 {
        self.prompts
    }

    /// Text tokens of a prompt.
    pub fn text_tokens(&self) -> usize {
        self.tokens
    }

    /// The texts of its prompts, where its metadata has them.
    pub fn texts(&self) -> Option<&[String]> {
        self.about.prompts.as_deref()
    }

    /// Checks that the file fits the job's model and its first `prompts` prompts: the names, shapes and types of all tensors that the job
    /// reads.
    ///
    /// # Errors
    /// The first thing that does not fit, and what would.
    pub fn check(&self, spec: &JobSpec, model: &JobModel, prompts: u32) -> Result<()> {
        let architecture = model.pipeline.architecture();
        let class = architecture.transformer_class;
        let strange = |of: &&String| !architecture.transformer_classes().contains(&of.as_str());
        if let Some(of) = self.about.architecture.as_ref().filter(strange) {
            let problem = format!(
                "is of a pipeline with {of}, but the model has {class}: encode by the model's own encoders"
            );
            return Err(content(&self.path, problem));
        }
        let wanted = spec.calibration.max_sequence_length;
        if let Some(length) = self.about.max_sequence_length.filter(|length| *length != wanted) {
            let problem = format!(
                "has {length} T5 tokens a prompt: set calibration.max_sequence_length = {length}, which is {wanted}"
            );
            return Err(content(&self.path, problem));
        }
        if model.guidance.branches() > 1 && !self.tensors.contains(&format!("{NEGATIVE}.text")) {
            let problem = format!(
                "lacks tensor `{NEGATIVE}.text`: classifier-free guidance needs the empty prompt's conditioning, too"
            );
            return Err(content(&self.path, problem));
        }
        let widths = model.config.conditioning();
        let negative =
            [NEGATIVE.to_owned()].into_iter().filter(|name| self.tensors.contains(&format!("{name}.text")));
        (0..prompts).map(prompt).chain(negative).try_for_each(|name| self.check_prompt(&name, widths))
    }

    fn check_prompt(&self, name: &str, widths: ConditioningWidths) -> Result<()> {
        for (name, shape) in [
            (format!("{name}.text"), vec![self.tokens, widths.text]),
            (format!("{name}.pooled"), vec![widths.pooled]),
        ] {
            let Ok(entry) = self.tensors.entry(&name) else {
                return Err(content(
                    &self.path,
                    format!("lacks tensor `{name}`: it must be of shape {shape:?}"),
                ));
            };
            let (found, dtype) = (entry.shape(), entry.dtype());
            if found != shape || ![DType::F32, DType::BF16, DType::F16].contains(&dtype) {
                let problem = format!(
                    "tensor `{name}` is {found:?} of {dtype:?}, but the model takes {shape:?} of F32, BF16 or F16: encode by the model's own encoders"
                );
                return Err(content(&self.path, problem));
            }
        }
        Ok(())
    }

    /// The conditioning of a prompt, in `dtype`.
    ///
    /// # Errors
    /// When its tensors are missing or hold a number that is not finite.
    pub fn prompt(&self, id: u32, dtype: DType) -> Result<Conditioning> {
        Ok(Conditioning {
            text: self.tensor(&format!("{}.text", prompt(id)), dtype)?,
            pooled: self.tensor(&format!("{}.pooled", prompt(id)), dtype)?,
        })
    }

    /// The conditioning of the empty prompt, in `dtype`. Zeros where the file has none: guidance then does not read it.
    ///
    /// # Errors
    /// As [`Self::prompt`].
    pub fn negative(&self, dtype: DType) -> Result<Conditioning> {
        if !self.tensors.contains(&format!("{NEGATIVE}.text")) {
            let like = self.prompt(0, dtype)?;
            return Ok(Conditioning { text: like.text.zeros_like()?, pooled: like.pooled.zeros_like()? });
        }
        Ok(Conditioning {
            text: self.tensor(&format!("{NEGATIVE}.text"), dtype)?,
            pooled: self.tensor(&format!("{NEGATIVE}.pooled"), dtype)?,
        })
    }

    fn tensor(&self, name: &str, dtype: DType) -> Result<Tensor> {
        let shape = self.tensors.entry(name)?.shape().to_vec();
        let tensor = self.tensors.tensor(name, &shape, dtype)?;
        // A sum is finite only if every number in it is.
        if tensor.to_dtype(DType::F32)?.abs()?.sum_all()?.to_scalar::<f32>()?.is_finite() {
            Ok(tensor)
        } else {
            Err(Error::NotFinite { path: self.path.clone(), name: name.to_owned() })
        }
    }
}

/// What a file's metadata says.
fn about(path: &Path, tensors: &Weights) -> Result<ConditioningMetadata> {
    let metadata = metadata(tensors);
    let refuse = |key: &str, problem: &str| content(path, format!("has the metadata `{key}`, but {problem}"));
    let max_sequence_length = match metadata.get("max_sequence_length").map(|length| length.parse()) {
        Some(Err(_)) => return Err(refuse("max_sequence_length", "it is no number of tokens")),
        length => length.and_then(std::result::Result::ok),
    };
    let prompts = match metadata.get("prompts").map(|prompts| serde_json::from_str(prompts)) {
        Some(Err(_)) => return Err(refuse("prompts", "it is no JSON list of texts")),
        prompts => prompts.and_then(std::result::Result::ok),
    };
    Ok(ConditioningMetadata {
        architecture: metadata.get("architecture").cloned(),
        max_sequence_length,
        prompts,
    })
}

fn metadata(tensors: &Weights) -> HashMap<String, String> {
    tensors.files().first().map(|file| file.metadata().clone()).unwrap_or_default()
}

fn content(path: &Path, problem: String) -> Error {
    Error::Content { path: path.to_owned(), problem }
}

/// Whether a file says that obsdiff wrote it.
pub fn is_ours(path: &Path) -> bool {
    let Ok(tensors) = Weights::open_file(path) else { return false };
    metadata(&tensors).get(WRITTEN_BY.0).is_some_and(|by| by == WRITTEN_BY.1)
}

/// Writes a file: its metadata, and all of `conditionings`, in their type.
///
/// # Errors
/// When the conditionings cannot be read, or `out` does not take them.
pub fn write_file(
    out: &mut dyn Write,
    about: &ConditioningMetadata,
    conditionings: &dyn Conditionings,
) -> Result<io::Result<()>> {
    let negative = conditionings.negative();
    let names = [NEGATIVE.to_owned()].into_iter().chain((0..conditionings.prompts()).map(prompt));
    let (mut infos, mut next) = (Vec::new(), 0);
    for name in names {
        for (part, like) in [("text", &negative.text), ("pooled", &negative.pooled)] {
            let end = next + like.elem_count() * like.dtype().size_in_bytes();
            let info = TensorInfo {
                dtype: like.dtype().into(),
                shape: like.dims().to_vec(),
                data_offsets: (next, end),
            };
            infos.push((format!("{name}.{part}"), info));
            next = end;
        }
    }
    let unnamed = |e: &dyn std::fmt::Display| Error::Argument(format!("the prompts cannot be named: {e}"));
    let texts = about.prompts.as_ref().map(serde_json::to_string).transpose().map_err(|e| unnamed(&e))?;
    let said = [
        ("architecture", about.architecture.clone()),
        ("max_sequence_length", about.max_sequence_length.map(|length| length.to_string())),
        ("prompts", texts),
        (WRITTEN_BY.0, Some(WRITTEN_BY.1.to_owned())),
    ];
    // In the order of their names: the same prompts make the same file.
    let said: BTreeMap<String, String> =
        said.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect();
    let header = Metadata::new(None, infos).map_err(|e| unnamed(&e))?;
    let header = serde_json::to_value(&header).and_then(serde_json::from_value::<BTreeMap<String, Value>>);
    let mut header = header.map_err(|e| unnamed(&e))?;
    header.insert("__metadata__".to_owned(), json!(said));
    let mut header = serde_json::to_vec(&header).map_err(|e| unnamed(&e))?;
    // The numbers behind it start at a multiple of eight.
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut bytes = [&(header.len() as u64).to_le_bytes()[..], &header].concat();
    put(&mut bytes, negative)?;
    if let Err(error) = out.write_all(&bytes) {
        return Ok(Err(error));
    }
    for id in 0..conditionings.prompts() {
        let mut bytes = Vec::new();
        for conditioning in &conditionings.read(id..id + 1)? {
            put(&mut bytes, conditioning)?;
        }
        if let Err(error) = out.write_all(&bytes) {
            return Ok(Err(error));
        }
    }
    Ok(Ok(()))
}

fn put(bytes: &mut Vec<u8>, conditioning: &Conditioning) -> Result<()> {
    conditioning.text.write_bytes(bytes)?;
    Ok(conditioning.pooled.write_bytes(bytes)?)
}
