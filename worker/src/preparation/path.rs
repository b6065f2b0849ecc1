//! The path of a pipeline, which must be a folder on this machine.

use std::path::Path;

/// Why a path names nothing on this machine that could be read, with the remedy: it is the URL or the name of something elsewhere. None
/// where it may name something here.
pub fn not_here(path: &Path) -> Option<String> {
    let name = path.display();
    if name.to_string().contains("://") {
        return Some(format!(
            "is {name}: download the pipeline first, and give the folder that it is in, or its place in an object store: s3://, gs:// or \
             az:// with bucket and prefix"
        ));
    }
    (is_hub_id(&name.to_string()) && path.metadata().is_err()).then(|| {
        format!(
            "is {name}, which is no folder here. Where it is an id of the Hugging Face Hub, download it first by \
             `hf download {name} --local-dir DIR`, and give that folder"
        )
    })
}

/// Why there can be no pipeline at a path, with the remedy; none where there may be one.
pub fn not_a_pipeline(path: &Path) -> Option<String> {
    if let Some(problem) = not_here(path) {
        return Some(problem);
    }
    let name = path.display();
    match path.metadata() {
        Ok(found) if found.is_file() => Some(format!(
            "is {name}, a file: give the folder of a diffusers pipeline, which `save_pretrained` of diffusers writes"
        )),
        Ok(found) if found.is_dir() && !path.join("model_index.json").exists() => Some(format!(
            "is {name}, a folder without model_index.json: give the folder of a whole diffusers pipeline"
        )),
        Ok(_) => None,
        Err(error) => Some(format!("is {name}: {error}")),
    }
}

/// Whether it looks like `organisation/model`.
fn is_hub_id(name: &str) -> bool {
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    name.split_once('/').is_some_and(|(organisation, model)| part(organisation) && part(model))
}
