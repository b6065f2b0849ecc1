//! The output's `README.md`: a model card as the Hugging Face Hub reads it.

use std::fmt::Write;
use std::path::Path;

use obsdiff_engine::export::PruningRecord;
use obsdiff_files::read_regular;
use obsdiff_proto::{Pattern, counted};

use super::documents::{is_two_to_four, mark, name_of};
use super::words;
use super::{Loading, code};
use crate::text;

/// Bytes of a source's card that are looked at.
const MOST_BYTES: u64 = 1 << 20;

/// Keys of a card's front matter that say under which terms a model may be used.
const LICENCE_KEYS: [&str; 3] = ["license", "license_name", "license_link"];

/// What the pruned pipeline has from its source: the terms of its use, and the source's name.
pub(super) struct Licence {
    /// Lines of front matter, as the source's own card has them.
    lines: Vec<String>,
    /// The source's name on the Hub, or the name of its folder.
    base_model: String,
}

impl Licence {
    /// What the card of the pipeline in a folder says of its licence; nothing where there is no card.
    pub(super) fn of(source: &Path) -> Self {
        let card = read_regular(&source.join("README.md"), MOST_BYTES).ok();
        let card = card.and_then(|card| String::from_utf8(card).ok()).unwrap_or_default();
        let front =
            card.strip_prefix("---\n").and_then(|rest| rest.split("\n---").next()).unwrap_or_default();
        let of_licence = |line: &&str| {
            line.split_once(": ")
                .is_some_and(|(key, value)| LICENCE_KEYS.contains(&key) && !value.trim().is_empty())
        };
        Self {
            lines: front.lines().filter(of_licence).map(str::to_owned).collect(),
            base_model: base_model(&source.to_string_lossy()),
        }
    }
}

/// A model's name on the Hub, where its path is that of the Hub's cache (`models--OWNER--NAME/snapshots/REVISION`); else its folder's.
fn base_model(path: &str) -> String {
    let cached = path.split('/').find_map(|part| part.strip_prefix("models--"));
    cached.map_or_else(|| name_of(path), |name| name.replacen("--", "/", 1))
}

/// A string as YAML and JSON both write it.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The card of a pipeline with this record.
pub(super) fn text(record: &PruningRecord, loading: &Loading, licence: &Licence) -> String {
    let mut card = front(record, licence);
    card.push_str(mark());
    let name = plain(&name_of(&record.job.output.path));
    let paragraphs = [
        format!("# {name}"),
        format!(
            "{} pruned in one shot, without training, by obsdiff {}.",
            plain(&licence.base_model),
            record.obsdiff
        ),
        format!("{} {}", words::what(record), words::calibration(&record.job.calibration)),
    ];
    for paragraph in paragraphs {
        let _ = write!(card, "\n\n{paragraph}");
    }
    card.push_str("\n\n## How close it is\n\n");
    card.push_str(&error(record));
    card.push_str("\n\n## How to load it\n\n");
    card.push_str(&fenced(&code::diffusers(loading), "py"));
    if is_two_to_four(record) {
        card.push_str(
            "\n\nGPUs since NVIDIA's Ampere multiply 2:4 weights faster, by PyTorch 2.1 or later. After the lines above:\n\n",
        );
        card.push_str(&fenced(code::SEMI_STRUCTURED, "py"));
        card.push_str("\n\nOf a transformer that was exported to ONNX, TensorRT picks such kernels by:\n\n");
        card.push_str(&fenced(code::TENSORRT, "sh"));
    }
    card.push_str("\n\n## Settings\n\n");
    card.push_str(&fenced(&words::job_file(&record.job), "toml"));
    card.push_str("\n\n`pruning.json` has every linear's share and error, and `report.html` shows them.\n");
    card
}

/// What the Hub reads: the model that this one was made of, the library, the kind of task, and words to find it by.
fn front(record: &PruningRecord, licence: &Licence) -> String {
    let pattern = match record.job.sparsity.pattern {
        Pattern::Unstructured => "unstructured-sparsity".to_owned(),
        Pattern::NToM { n, m } => format!("{n}:{m}-sparsity"),
        Pattern::Structured => "structured-pruning".to_owned(),
    };
    let mut lines = vec!["---".to_owned()];
    lines.extend(licence.lines.iter().cloned());
    lines.extend([
        "library_name: diffusers".to_owned(),
        "pipeline_tag: text-to-image".to_owned(),
        format!("base_model: {}", quoted(&licence.base_model)),
        "tags:".to_owned(),
        "- pruned".to_owned(),
        "- obsdiff".to_owned(),
        format!("- {}", quoted(&pattern)),
        "---".to_owned(),
    ]);
    lines.join("\n") + "\n"
}

/// How far the pruned model is from the source, where that was measured.
fn error(record: &PruningRecord) -> String {
    let Some(error) = record.measured.as_ref().and_then(|measured| measured.held_out.as_ref()) else {
        return "It was not compared with the source.".to_owned();
    };
    let prompts = counted(error.per_prompt.len(), "prompt");
    let mut text = format!(
        "On {prompts} that took no part in the calibration, the final latents differ from the source's by {:.4} of their \
         length (L2 norm, same noise).",
        error.relative
    );
    if let Some(pictures) = &error.pictures {
        let of = if pictures.count == error.per_prompt.len() {
            String::new()
        } else {
            format!(" for {} of them", pictures.count)
        };
        let _ = match pictures.mean_psnr_decibels {
            Some(psnr) if pictures.count == 1 => {
                write!(text, " The picture{of} has a PSNR of {psnr:.2} dB to the source's.")
            }
            Some(psnr) => write!(text, " The pictures{of} have a mean PSNR of {psnr:.2} dB to the source's."),
            None => write!(text, " The pictures{of} equal the source's."),
        };
    }
    if let Some(sizes) = record.sizes {
        let [before, after] = sizes.parameters.map(text::count);
        let [flops, fewer] = sizes.forward_flops.map(text::flops);
        let _ = write!(
            text,
            " Parameters: {before} before, {after} now; a forward call: {flops} before, {fewer} now."
        );
    }
    text
}

/// Code between fences that it cannot close.
fn fenced(code: &str, language: &str) -> String {
    let mut fence = "```".to_owned();
    while code.contains(&fence) {
        fence.push('`');
    }
    format!("{fence}{language}\n{}\n{fence}", code.trim_end())
}

/// Text that Markdown and HTML take as it is.
fn plain(text: &str) -> String {
    let escaped = text.chars().flat_map(|c| {
        let escape = c.is_ascii_punctuation() && !matches!(c, '-' | '.' | '/' | ',' | ':');
        escape.then_some('\\').into_iter().chain((!c.is_control()).then_some(c))
    });
    escaped.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_of_the_hubs_cache_has_its_name_there() {
        let path = "/root/.cache/huggingface/hub/models--owner--a-model--dev/snapshots/123";
        assert_eq!(base_model(path), "owner/a-model--dev");
        assert_eq!(base_model("models/sd3/"), "sd3");
    }

    #[test]
    fn the_terms_of_the_source_go_on_and_nothing_else_of_its_card() {
        let folder = tempfile::tempdir().unwrap();
        let card =
            "---\nlicense: other\nlicense_name: a-licence\ntags:\n- mine\nextra: x\n---\nlicense: not this\n";
        std::fs::write(folder.path().join("README.md"), card).unwrap();
        assert_eq!(Licence::of(folder.path()).lines, ["license: other", "license_name: a-licence"]);
        assert!(Licence::of(Path::new("absent")).lines.is_empty());
    }

    #[test]
    fn code_and_names_cannot_leave_their_place() {
        assert_eq!(fenced("a\n````\nb", "py"), "`````py\na\n````\nb\n`````");
        assert_eq!(plain("a<b>_c-d"), "a\\<b\\>\\_c-d");
    }
}
