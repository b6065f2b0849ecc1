//! A pipeline's folder: which components `model_index.json` names, and where each one lies.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Device;
use serde_json::Value;

use super::keys::Keys;
use super::size::{Geometry, LatentSize};
use super::{Scheduler, TextEncoders, Vae};
use crate::architecture::sd3::Sd3Config;
use crate::checkpoint::{Library, Weights};
use crate::{Error, Result};

const PIPELINE_CLASS: &str = "StableDiffusion3Pipeline";

/// A component, the classes it may be of, and the file that must be in its folder.
struct Component {
    name: &'static str,
    classes: &'static [&'static str],
    config: &'static str,
    /// The library that reads its weights, where it has any.
    weights: Option<Library>,
}

const CLIP_TOKENIZER: &[&str] = &["CLIPTokenizer", "CLIPTokenizerFast"];
const CLIP_ENCODER: &[&str] = &["CLIPTextModelWithProjection"];

const COMPONENTS: [Component; 9] = [
    Component {
        name: "transformer",
        classes: &["SD3Transformer2DModel", "PrunedSD3Transformer2DModel"],
        config: "config.json",
        weights: Some(Library::Diffusers),
    },
    Component {
        name: "scheduler",
        classes: &["FlowMatchEulerDiscreteScheduler"],
        config: "scheduler_config.json",
        weights: None,
    },
    Component {
        name: "vae",
        classes: &["AutoencoderKL"],
        config: "config.json",
        weights: Some(Library::Diffusers),
    },
    Component {
        name: "text_encoder",
        classes: CLIP_ENCODER,
        config: "config.json",
        weights: Some(Library::Transformers),
    },
    Component {
        name: "text_encoder_2",
        classes: CLIP_ENCODER,
        config: "config.json",
        weights: Some(Library::Transformers),
    },
    Component {
        name: "text_encoder_3",
        classes: &["T5EncoderModel"],
        config: "config.json",
        weights: Some(Library::Transformers),
    },
    Component { name: "tokenizer", classes: CLIP_TOKENIZER, config: "tokenizer_config.json", weights: None },
    Component {
        name: "tokenizer_2",
        classes: CLIP_TOKENIZER,
        config: "tokenizer_config.json",
        weights: None,
    },
    Component {
        name: "tokenizer_3",
        classes: &["T5Tokenizer", "T5TokenizerFast"],
        config: "tokenizer_config.json",
        weights: None,
    },
];

/// The two components that a pipeline can do without.
const OPTIONAL: [&str; 2] = ["text_encoder_3", "tokenizer_3"];

/// A Stable Diffusion 3 pipeline as diffusers saves it. It keeps paths only: every component is loaded when asked for, so that
/// the text encoders can be gone before the transformer comes.
#[derive(Clone, Debug)]
pub struct PipelineFolder {
    path: PathBuf,
    /// Whether the tokenizers of the two CLIP encoders are of the slow class, which reads some texts differently.
    slow_tokenizers: [bool; 2],
    has_t5: bool,
    transformer: Sd3Config,
    geometry: Geometry,
}

impl PipelineFolder {
    /// Reads `model_index.json`, and checks that every component is there: its class, its configuration, and the headers of its
    /// weights. Nothing is loaded.
    ///
    /// # Errors
    /// When the pipeline or a component has a class that is not supported, or a folder or file is missing or damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let index = Keys::open(&path.join("model_index.json"))?;
        if index.text("_class_name")? != Some(PIPELINE_CLASS) {
            let allowed = format!("obsdiff reads pipelines of class \"{PIPELINE_CLASS}\"");
            return Err(index.refuse("_class_name", &allowed));
        }
        let mut classes = BTreeMap::new();
        for component in &COMPONENTS {
            if let Some(class) = component.class(&index)? {
                component.check(path)?;
                classes.insert(component.name, class);
            }
        }
        let has_t5 = classes.contains_key("text_encoder_3");
        if has_t5 && !classes.contains_key("tokenizer_3") {
            return Err(index.refuse("tokenizer_3", "`text_encoder_3` is there and needs its tokenizer"));
        }
        let slow = |name: &str| classes.get(name).is_some_and(|class| class == "CLIPTokenizer");
        let transformer = Sd3Config::read(&path.join("transformer"))?;
        let vae = Keys::open(&path.join("vae").join("config.json"))?;
        Ok(Self {
            path: path.to_owned(),
            slow_tokenizers: ["tokenizer", "tokenizer_2"].map(slow),
            has_t5,
            geometry: Geometry::new(&transformer, &vae)?,
            transformer,
        })
    }

    /// The pipeline's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The transformer's configuration.
    pub fn transformer_config(&self) -> &Sd3Config {
        &self.transformer
    }

    /// Opens the transformer's weights, and reads their headers.
    ///
    /// # Errors
    /// When they are missing, truncated or hostile.
    pub fn transformer_weights(&self) -> Result<Weights> {
        Weights::open(&self.path.join("transformer"), Library::Diffusers)
    }

    /// The files that decide what the pipeline computes, without those of the text encoders and their tokenizers, which
    /// [`TextEncoders::files`] gives.
    ///
    /// # Errors
    /// When weights are missing, truncated or hostile.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let mut files = vec![self.path.join("model_index.json")];
        for component in COMPONENTS.iter().filter(|component| !component.is_of_text()) {
            let folder = self.path.join(component.name);
            files.push(folder.join(component.config));
            if let Some(library) = component.weights {
                files.extend(Weights::open(&folder, library)?.paths().map(Path::to_owned));
            }
        }
        Ok(files)
    }

    /// Whether the pipeline has its third text encoder. diffusers puts zeros in the place of one that is missing.
    pub fn has_t5(&self) -> bool {
        self.has_t5
    }

    /// The latents of a picture of `height x width` pixels; a side that is not given has the model's own size.
    ///
    /// # Errors
    /// When a side cannot be cut into patches, or there are no positional embeddings for it.
    pub fn latent_size(&self, height: Option<u32>, width: Option<u32>) -> Result<LatentSize> {
        self.geometry.latents(height, width)
    }

    /// Reads the scheduler's configuration.
    ///
    /// # Errors
    /// When a key has a value that is unknown or not supported.
    pub fn scheduler(&self) -> Result<Scheduler> {
        Scheduler::open(&self.path.join("scheduler").join("scheduler_config.json"))
    }

    /// Loads the tokenizers, and opens the text encoders, which compute on `device`. `max_sequence_length` is the number of T5
    /// tokens of a prompt, 1 to 512.
    ///
    /// # Errors
    /// When a tokenizer or an encoder cannot be used, or their widths do not fit the transformer.
    pub fn text_encoders(&self, max_sequence_length: usize, device: &Device) -> Result<TextEncoders> {
        TextEncoders::open(self, max_sequence_length, device)
    }

    /// Loads the decoder of the autoencoder onto `device`.
    ///
    /// # Errors
    /// When its configuration is not supported, or a weight is missing or has another shape.
    pub fn vae(&self, device: &Device) -> Result<Vae> {
        Vae::open(&self.path.join("vae"), device)
    }

    pub(super) fn slow_tokenizers(&self) -> [bool; 2] {
        self.slow_tokenizers
    }
}

impl Component {
    /// Whether it plays a part in encoding prompts.
    fn is_of_text(&self) -> bool {
        self.name.starts_with("text_encoder") || self.name.starts_with("tokenizer")
    }

    /// The component's class, or `None` where the pipeline does without it.
    fn class(&self, index: &Keys) -> Result<Option<String>> {
        let supported = self.classes.join(" or ");
        let class = match index.value(self.name) {
            None => None,
            Some(Value::Array(pair)) if pair.len() == 2 && pair.iter().all(Value::is_null) => None,
            Some(Value::Array(pair)) if pair.len() == 2 => match pair[1].as_str() {
                Some(class) if self.classes.contains(&class) => Some(class.to_owned()),
                _ => return Err(index.refuse(self.name, &format!("obsdiff supports {supported} there"))),
            },
            Some(_) => {
                let allowed = format!("it must be a pair of a library and a class ({supported})");
                return Err(index.refuse(self.name, &allowed));
            }
        };
        match class {
            None if !OPTIONAL.contains(&self.name) => {
                Err(index.refuse(self.name, &format!("a pipeline needs this component ({supported})")))
            }
            class => Ok(class),
        }
    }

    /// Checks that the component's files are there, and the class that its configuration names where it names one.
    fn check(&self, pipeline: &Path) -> Result<()> {
        let folder = pipeline.join(self.name);
        if !folder.is_dir() {
            return Err(Error::content(&folder, "is missing, but `model_index.json` names this component"));
        }
        let config = Keys::open(&folder.join(self.config))?;
        if let Some(class) = config.text("_class_name")?
            && !self.classes.contains(&class)
        {
            return Err(config
                .refuse("_class_name", &format!("obsdiff supports {} there", self.classes.join(" or "))));
        }
        match self.weights {
            Some(library) => Weights::open(&folder, library).map(drop),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
