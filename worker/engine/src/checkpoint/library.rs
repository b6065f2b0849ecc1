//! Which files hold a component's weights, where several could.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The library that saves and loads a component. It decides what the files of weights are called, and which of them are read where
/// there are several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// Shards named by an index come before a single file (0.33, `ModelMixin.from_pretrained`).
    Diffusers,
    /// A single file comes before shards named by an index (4.51, `PreTrainedModel.from_pretrained`).
    Transformers,
}

/// The files of a component's weights, by the one that leads to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Files {
    /// All weights lie in it.
    Whole(PathBuf),
    /// It names the files that hold them.
    Index(PathBuf),
}

impl Library {
    /// How the names of its files begin.
    pub fn stem(self) -> &'static str {
        match self {
            Self::Diffusers => "diffusion_pytorch_model",
            Self::Transformers => "model",
        }
    }

    /// What the library reads from a folder, asked for no variant.
    pub(super) fn find(self, folder: &Path) -> Result<Files> {
        let stem = self.stem();
        // Whatever stands at these paths: one that is not a file is refused when it is opened.
        let existing = |name: String| Some(folder.join(name)).filter(|path| path.exists());
        let whole = existing(format!("{stem}.safetensors")).map(Files::Whole);
        let index = existing(format!("{stem}.safetensors.index.json")).map(Files::Index);
        let found = match self {
            Self::Diffusers => index.or(whole),
            Self::Transformers => whole.or(index),
        };
        match found {
            Some(found) => Ok(found),
            None => Err(Error::content(folder, self.missing(folder)?)),
        }
    }

    /// Why a folder has no weights, and what to do.
    fn missing(self, folder: &Path) -> Result<String> {
        let mut names = Vec::new();
        for entry in fs::read_dir(folder).map_err(|e| Error::file(folder, e))? {
            names.extend(entry.map_err(|e| Error::file(folder, e))?.file_name().into_string());
        }
        names.sort();
        let stem = self.stem();
        let none = || {
            format!(
                "has neither {stem}.safetensors nor {stem}.safetensors.index.json: give the folder of a whole pipeline"
            )
        };
        Ok(self.only_others(&names).unwrap_or_else(none))
    }

    /// What the files of a folder without weights that are read hold instead, and what to do; none where they hold no weights at all.
    pub(crate) fn only_others(self, names: &[String]) -> Option<String> {
        let stem = self.stem();
        if let Some((name, variant)) = names.iter().find_map(|name| Some((name, variant(name, stem)?))) {
            // An index names its files, and would have to be rewritten.
            let is_alone = *name == format!("{stem}.{variant}.safetensors");
            let or = if is_alone { format!(", or rename it to {stem}.safetensors") } else { String::new() };
            return Some(format!(
                "holds weights of the variant \"{variant}\" only ({name}), which diffusers does not read unless asked: load the \
                 pipeline with variant=\"{variant}\" and save it again with save_pretrained{or}"
            ));
        }
        let pickled = |name: &String| {
            let pickle = [".bin", ".pt", ".pth", ".ckpt"].iter().any(|end| name.ends_with(end));
            pickle && (name.starts_with(stem) || name.starts_with("pytorch_model"))
        };
        names.iter().any(pickled).then(|| {
            format!("holds pickled weights only, which obsdiff never reads: save it as {stem}.safetensors")
        })
    }

    /// Whether a file is of a variant, which the library does not read unless asked.
    pub(crate) fn is_variant(self, file: &str) -> bool {
        variant(file, self.stem()).is_some()
    }
}

/// The variant that a file of weights belongs to: `fp16` for `model.fp16.safetensors`, for a shard such as
/// `model.fp16-00001-of-00002.safetensors`, and for the names that indexes of variants have had.
fn variant<'a>(name: &'a str, stem: &str) -> Option<&'a str> {
    let rest = name.strip_prefix(stem)?.strip_prefix('.')?;
    let index = rest.strip_prefix("safetensors.").and_then(|rest| {
        let middle = rest.strip_suffix(".json")?;
        middle.strip_prefix("index.").or_else(|| middle.strip_suffix(".index"))
    });
    let variant = index.or_else(|| {
        let middle = rest.strip_suffix(".safetensors")?;
        Some(middle.split_once('-').map_or(middle, |(variant, _)| variant))
    });
    variant.filter(|variant| !variant.is_empty() && !variant.contains('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_are_known_by_every_name_that_they_have_had() {
        for name in [
            "model.fp16.safetensors",
            "model.fp16-00001-of-00002.safetensors",
            "model.safetensors.index.fp16.json",
            "model.safetensors.fp16.index.json",
        ] {
            assert_eq!(variant(name, "model"), Some("fp16"), "{name}");
        }
        for name in [
            "model.safetensors",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "model.bin",
            "other.fp16.safetensors",
        ] {
            assert_eq!(variant(name, "model"), None, "{name}");
        }
    }
}
