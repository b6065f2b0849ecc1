//! A pipeline's folder: which components `model_index.json` names, and where each one lies.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::download::is_loaded;
use super::keys::Keys;
use super::size::{Geometry, LatentSize};
use super::{Schedule, Scheduler, TextEncoders, Vae};
use crate::architecture::{self, Architecture, Guidance, TransformerConfig};
use crate::checkpoint::{Library, Weights};
use crate::device::ComputeDevice;
use crate::{Error, Result};

/// A component, the classes it may be of, and the file that must be in its folder.
#[derive(Debug)]
struct Component {
    name: &'static str,
    /// The Python library that has the classes.
    library: &'static str,
    classes: Vec<&'static str>,
    /// The one of them that a Python module beside the configuration defines. The index calls that module its library, by whatever name
    /// the module was loaded.
    local_class: Option<&'static str>,
    config: &'static str,
    /// The library that reads its weights, where it has any.
    weights: Option<Library>,
    optional: bool,
}

/// The components of an architecture's pipeline.
fn components(architecture: &Architecture) -> Vec<Component> {
    let slots = || architecture.text_encoders.iter();
    let needed = |name, classes: &[&'static str], config, weights| Component {
        name,
        library: "diffusers",
        classes: classes.to_vec(),
        local_class: None,
        config,
        weights,
        optional: false,
    };
    let encoders = slots().map(|slot| Component {
        library: "transformers",
        optional: slot.optional,
        ..needed(slot.encoder, slot.kind.classes(), "config.json", Some(Library::Transformers))
    });
    let tokenizers = slots().map(|slot| Component {
        library: "transformers",
        optional: slot.optional,
        ..needed(slot.tokenizer, slot.kind.tokenizer_classes(), "tokenizer_config.json", None)
    });
    let transformer = architecture.transformer_classes();
    let scheduler = ["FlowMatchEulerDiscreteScheduler"];
    let own = [
        Component {
            local_class: Some(architecture.shrunk_class),
            ..needed("transformer", &transformer, "config.json", Some(Library::Diffusers))
        },
        needed("scheduler", &scheduler, "scheduler_config.json", None),
        needed("vae", &["AutoencoderKL"], "config.json", Some(Library::Diffusers)),
    ];
    own.into_iter().chain(encoders).chain(tokenizers).collect()
}

/// Whether a component is a text encoder or a tokenizer.
pub(super) fn is_of_text(architecture: &Architecture, component: &str) -> bool {
    architecture.text_encoders.iter().any(|slot| [slot.encoder, slot.tokenizer].contains(&component))
}

/// A pipeline as diffusers saves it. It keeps paths only: every component is loaded when asked for, so that the text encoders can be
/// dropped before the transformer is loaded.
#[derive(Clone, Debug)]
pub struct PipelineFolder {
    path: PathBuf,
    architecture: &'static Architecture,
    /// The components that are there.
    components: BTreeSet<&'static str>,
    /// The text encoders and tokenizers that its index does not name.
    absent_text: Vec<&'static str>,
    transformer: Arc<dyn TransformerConfig>,
    geometry: Geometry,
}

impl PipelineFolder {
    /// Reads `model_index.json`, and checks that every component is there: its class, its configuration, and the headers of its
    /// weights. Nothing is loaded.
    ///
    /// # Errors
    /// When the pipeline or a component has a class that is not supported, or a folder or file is missing or damaged.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_as(path, &architecture::SUPPORTED)
    }

    /// As [`Self::open`], without the text encoders and their tokenizers: they are not opened, and may be missing or of any class.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_without_text(path: &Path) -> Result<Self> {
        Self::open_parts(path, &architecture::SUPPORTED, false)
    }

    /// As [`Self::open`], for the architectures that are given.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_as(path: &Path, known: &[&'static Architecture]) -> Result<Self> {
        Self::open_parts(path, known, true)
    }

    fn open_parts(path: &Path, known: &[&'static Architecture], with_text: bool) -> Result<Self> {
        let index = Keys::open(&path.join("model_index.json"))?;
        let architecture = architecture_of(&index, known)?;
        let of_text = architecture.text_encoders.iter().flat_map(|slot| [slot.encoder, slot.tokenizer]);
        let absent_text = of_text.filter(|component| !is_loaded(&index, component)).collect();
        let mut found = BTreeSet::new();
        let wanted = |component: &&Component| with_text || !is_of_text(architecture, component.name);
        for component in components(architecture).iter().filter(wanted) {
            if component.is_named(&index)? {
                component.check(path)?;
                found.insert(component.name);
            }
        }
        for slot in architecture.text_encoders {
            if found.contains(slot.encoder) && !found.contains(slot.tokenizer) {
                let allowed = format!("`{}` is there and needs its tokenizer", slot.encoder);
                return Err(index.refuse(slot.tokenizer, &allowed));
            }
        }
        let transformer = (architecture.read)(&path.join("transformer"))?;
        let vae = Keys::open(&path.join("vae").join("config.json"))?;
        Ok(Self {
            path: path.to_owned(),
            architecture,
            components: found,
            absent_text,
            geometry: Geometry::new(transformer.latents(), &vae)?,
            transformer,
        })
    }

    /// The pipeline's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The family of its transformer.
    pub fn architecture(&self) -> &'static Architecture {
        self.architecture
    }

    /// The transformer's configuration.
    pub fn transformer_config(&self) -> &Arc<dyn TransformerConfig> {
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
        let components = components(self.architecture);
        for component in components.iter().filter(|component| !is_of_text(self.architecture, component.name))
        {
            let folder = self.path.join(component.name);
            files.push(folder.join(component.config));
            if let Some(library) = component.weights {
                files.extend(Weights::open(&folder, library)?.paths().map(Path::to_owned));
            }
        }
        Ok(files)
    }

    /// Whether the pipeline has this component.
    pub fn has(&self, component: &str) -> bool {
        self.components.contains(component)
    }

    /// The text encoders and tokenizers of its architecture that its index does not name, also where they were not opened. diffusers loads
    /// such a pipeline only where it is given `None` in place of each.
    pub fn absent_text(&self) -> &[&'static str] {
        &self.absent_text
    }

    /// The latents of a picture of `height x width` pixels; a side that is not given has the model's own size.
    ///
    /// # Errors
    /// When a side cannot be cut into patches, or there are no positional embeddings for it.
    pub fn latent_size(&self, height: Option<u32>, width: Option<u32>) -> Result<LatentSize> {
        self.geometry.latents(height, width)
    }

    /// The schedule of a trajectory of `steps` steps for a picture of `tokens` image tokens.
    ///
    /// # Errors
    /// When a key of the scheduler's configuration has a value that is unknown or not supported, or there can be no such schedule.
    pub fn schedule(&self, steps: usize, tokens: usize) -> Result<Schedule> {
        let scheduler = Scheduler::open(&self.path.join("scheduler").join("scheduler_config.json"))?;
        scheduler.schedule(steps, tokens, self.architecture.levels)
    }

    /// How guidance acts: `scale` as the architecture takes it, and `true_scale` as classifier-free guidance where that has a scale of
    /// its own.
    ///
    /// # Errors
    /// When `true_scale` is above 1, and the architecture has no such scale.
    pub fn guidance(&self, scale: f64, true_scale: f64) -> Result<Guidance> {
        self.architecture.guidance(&*self.transformer, scale, true_scale)
    }

    /// Loads the tokenizers, and opens the text encoders, which compute on the processor unless [`TextEncoders::on`] says where.
    /// `max_sequence_length` is the number of T5 tokens of a prompt, 1 to 512.
    ///
    /// # Errors
    /// When a tokenizer or an encoder cannot be used, or their widths do not fit the transformer.
    pub fn text_encoders(&self, max_sequence_length: usize) -> Result<TextEncoders> {
        TextEncoders::open(self, max_sequence_length)
    }

    /// Loads the decoder of the autoencoder, which computes on `device`.
    ///
    /// # Errors
    /// When its configuration is not supported, a weight is missing or has another shape, or the device has no room for it.
    pub fn vae(&self, device: &ComputeDevice) -> Result<Vae> {
        Vae::open(&self.path.join("vae"), device)
    }

    /// Bytes of a GPU's memory that this decoder and a picture of this size on its way take at most, from its configuration alone.
    ///
    /// # Errors
    /// When its configuration is not supported.
    pub fn gpu_decoding_bytes(&self, size: LatentSize) -> Result<u64> {
        Vae::gpu_bytes(&self.path.join("vae"), size)
    }
}

/// The architecture of the transformer that `model_index.json` names.
pub(super) fn architecture_of(
    index: &Keys,
    known: &[&'static Architecture],
) -> Result<&'static Architecture> {
    let class = index.text("_class_name")?;
    if !known.iter().any(|architecture| Some(architecture.pipeline_class) == class) {
        let classes = architecture::list(known, |architecture| architecture.pipeline_class);
        return Err(
            index.refuse("_class_name", &format!("obsdiff does not support it (supported: {classes})"))
        );
    }
    let transformer = index.value("transformer").and_then(|pair| pair.get(1)).and_then(Value::as_str);
    let found = transformer.and_then(|class| architecture::of_transformer(known, class));
    let Some(found) = found else {
        let classes = architecture::list(known, |architecture| architecture.transformer_class);
        return Err(
            index.refuse("transformer", &format!("obsdiff does not support it (supported: {classes})"))
        );
    };
    if Some(found.pipeline_class) == class {
        return Ok(found);
    }
    let (transformer, pipeline) = (found.transformer_class, found.pipeline_class);
    Err(index.refuse("_class_name", &format!("obsdiff reads {transformer} in a {pipeline}")))
}

impl Component {
    /// Whether the pipeline has the component, of a class that it may be of; else it does without.
    fn is_named(&self, index: &Keys) -> Result<bool> {
        let supported = self.classes.join(" or ");
        let is_named = match index.value(self.name) {
            None => false,
            Some(Value::Array(pair)) if pair.len() == 2 && pair.iter().all(Value::is_null) => false,
            Some(Value::Array(pair)) if pair.len() == 2 => match pair[1].as_str() {
                // A class of the same name in another library may compute anything.
                Some(class)
                    if self.classes.contains(&class)
                        && self.local_class != Some(class)
                        && pair[0] != self.library =>
                {
                    let allowed = format!("obsdiff supports that of {} there", self.library);
                    return Err(index.refuse(self.name, &allowed));
                }
                Some(class) if self.classes.contains(&class) => true,
                _ => return Err(index.refuse(self.name, &format!("obsdiff supports {supported} there"))),
            },
            Some(_) => {
                let allowed = format!("it must be a pair of a library and a class ({supported})");
                return Err(index.refuse(self.name, &allowed));
            }
        };
        if !is_named && !self.optional {
            return Err(index.refuse(self.name, &format!("a pipeline needs this component ({supported})")));
        }
        Ok(is_named)
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
        config.check_not_quantised()?;
        match self.weights {
            Some(library) => Weights::open(&folder, library)?.check_not_quantised(),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
