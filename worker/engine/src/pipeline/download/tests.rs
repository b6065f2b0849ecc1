use std::fs;
use std::path::PathBuf;

use super::*;

/// The index of a pipeline in a folder of its own, without the last text encoder.
fn index() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(INDEX_FILE);
    let index = serde_json::json!({
        "_class_name": "StableDiffusion3Pipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_3": [null, null],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    });
    fs::write(&path, index.to_string()).unwrap();
    (folder, path)
}

const NAMES: [&str; 21] = [
    ".gitattributes",
    "LICENSE.md",
    "example.png",
    "model_index.json",
    "sd3_medium.safetensors",
    "notes/readme.txt",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/model.onnx",
    "text_encoder/model.safetensors",
    "text_encoder/pytorch_model.bin",
    "text_encoder_3/model.safetensors",
    "tokenizer/vocab.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model-00001-of-00001.safetensors",
    "transformer/diffusion_pytorch_model.fp16-00001-of-00001.safetensors",
    "transformer/diffusion_pytorch_model.safetensors.index.fp16.json",
    "transformer/diffusion_pytorch_model.safetensors.index.json",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
];

#[test]
fn a_pipeline_is_what_its_index_names_without_pickles_and_variants() {
    let (_folder, index) = index();
    let whole = [
        "LICENSE.md",
        "example.png",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/vocab.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model-00001-of-00001.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ];
    assert_eq!(files_of_pipeline(&index, &NAMES, TextFiles::Read).unwrap(), whole);
    let of_text = |name: &&str| name.starts_with("text_encoder/") || name.starts_with("tokenizer/");
    let without: Vec<&str> = whole.into_iter().filter(|name| !of_text(name)).collect();
    assert_eq!(files_of_pipeline(&index, &NAMES, TextFiles::None).unwrap(), without);
    let of_transformer = ["model_index.json", whole[7], whole[8], whole[9]];
    assert_eq!(files_of_transformer(&index, &NAMES).unwrap(), of_transformer);
}

/// A plain index decides which files are read, whatever their names are.
#[test]
fn shards_with_the_names_of_a_variant_that_the_plain_index_names_belong_to_the_pipeline() {
    let (folder, index) = index();
    let [plain, variant] =
        ["", ".fp16"].map(|variant| format!("diffusion_pytorch_model{variant}-00001-of-00001.safetensors"));
    let weights = "transformer/diffusion_pytorch_model.safetensors.index.json";
    assert_eq!(weight_indexes(&NAMES), [weights]);
    assert!(weight_indexes(&NAMES[..9]).is_empty());
    fs::create_dir(folder.path().join("transformer")).unwrap();
    let named = format!("transformer/{variant}");
    for (shard, is_kept) in [(&plain, false), (&variant, true)] {
        let text = serde_json::json!({ "weight_map": { "a": shard } }).to_string();
        fs::write(folder.path().join(weights), text).unwrap();
        let holds = |files: &[&str]| files.contains(&&*named);
        assert_eq!(holds(&files_of_pipeline(&index, &NAMES, TextFiles::Read).unwrap()), is_kept);
        assert_eq!(holds(&files_of_transformer(&index, &NAMES).unwrap()), is_kept);
        assert_eq!(holds(&weights_left_out(&index, &NAMES).unwrap()), !is_kept);
    }
    fs::write(folder.path().join(weights), "[").unwrap();
    assert!(files_of_transformer(&index, &NAMES).is_err());
}

#[test]
fn a_component_that_has_other_weights_alone_is_refused_before_it_is_downloaded() {
    let (_folder, index) = index();
    for (left, says) in [
        ("model.safetensors", None),
        ("model.fp16.safetensors", Some("text_encoder: holds weights of the variant \"fp16\" only")),
        ("pytorch_model.bin", Some("text_encoder: holds pickled weights only, which obsdiff never reads")),
        ("model.onnx", Some("text_encoder: has weights, but no safetensors")),
    ] {
        let own = format!("text_encoder/{left}");
        let of_others = |name: &&str| !name.starts_with("text_encoder/") || name.ends_with("config.json");
        let names: Vec<&str> = NAMES.into_iter().filter(of_others).chain([&*own]).collect();
        let error = files_of_pipeline(&index, &names, TextFiles::Read).err().map(|error| error.to_string());
        match says {
            None => assert!(error.is_none(), "{error:?}"),
            Some(says) => assert!(error.as_ref().unwrap().contains(says), "{error:?}"),
        }
        assert!(files_of_pipeline(&index, &names, TextFiles::Copied).is_ok(), "{left}");
    }
}

#[test]
fn a_pipeline_of_another_kind_is_refused() {
    let (_folder, index) = index();
    let text = fs::read_to_string(&index).unwrap();
    fs::write(&index, text.replace("StableDiffusion3Pipeline", "OtherPipeline")).unwrap();
    let error = files_of_pipeline(&index, &NAMES, TextFiles::Read).unwrap_err().to_string();
    assert!(error.contains("`_class_name` is \"OtherPipeline\", but obsdiff does not support it"), "{error}");
}

#[test]
fn weights_that_stay_out_are_those_of_components_that_are_loaded() {
    let (_folder, index) = index();
    let left = [
        "text_encoder/model.fp16.safetensors",
        "text_encoder/model.onnx",
        "text_encoder/pytorch_model.bin",
        "transformer/diffusion_pytorch_model.fp16-00001-of-00001.safetensors",
    ];
    assert_eq!(weights_left_out(&index, &NAMES).unwrap(), left);
    let whole = files_of_pipeline(&index, &NAMES, TextFiles::Read).unwrap();
    assert_eq!(weights_left_out(&index, &whole).unwrap(), <[&str; 0]>::default());
}
