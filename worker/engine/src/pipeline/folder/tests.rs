use std::fs;

use candle_core::{DType, Tensor};
use serde_json::json;

use super::*;
use crate::pipeline::testing::{asset, copy_folder, edit_json};

/// What is done to a pipeline, and what the error must say.
type Damage = (fn(&Path), &'static str);

fn index(pipeline: &Path, key: &str, value: Value) {
    edit_json(&pipeline.join("model_index.json"), |index| index[key] = value);
}

fn quantise(pipeline: &Path, component: &str, method: &str) {
    edit_json(&pipeline.join(component).join("config.json"), |config| {
        config["quantization_config"] = json!({ "quant_method": method });
    });
}

/// Adds zeros of these names and types to T5.
fn add_tensors(pipeline: &Path, added: &[(&str, DType)]) {
    let path = pipeline.join("text_encoder_3/model.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &crate::HOST).unwrap();
    for (name, dtype) in added {
        let zeros = Tensor::zeros((2, 2), DType::F32, &crate::HOST).unwrap();
        tensors.insert((*name).to_owned(), zeros.to_dtype(*dtype).unwrap());
    }
    candle_core::safetensors::save(&tensors, &path).unwrap();
}

#[test]
fn eight_bits_without_scales_and_scales_without_eight_bits_are_read() {
    for added in [
        &[("a.weight", DType::F8E4M3)][..],
        &[("a.weight_scale", DType::F32)],
        &[("a.weight", DType::F8E4M3), ("logit_scale", DType::F32)],
    ] {
        let pipeline = copy_folder("");
        add_tensors(pipeline.path(), added);
        assert!(PipelineFolder::open(pipeline.path()).unwrap().has("text_encoder_3"), "{added:?}");
    }
}

#[test]
fn the_shipped_pipeline_opens() {
    let pipeline = PipelineFolder::open(&asset("")).unwrap();
    assert!(pipeline.has("text_encoder_3"));
    assert!(pipeline.absent_text().is_empty());
    assert_eq!(pipeline.architecture().pipeline_class, "StableDiffusion3Pipeline");
    assert_eq!(pipeline.transformer_config().conditioning().pooled, 96);
    assert!(pipeline.transformer_weights().unwrap().contains("proj_out.weight"));
    assert_eq!(pipeline.schedule(10, 64).unwrap().steps(), 10);
}

#[test]
fn sizes_are_those_the_model_takes() {
    let pipeline = PipelineFolder::open(&asset("")).unwrap();
    let own = pipeline.latent_size(None, None).unwrap();
    assert_eq!((own.shape(3), own.tokens), ([3, 4, 16, 16], 64));
    let other = pipeline.latent_size(Some(64), Some(4)).unwrap();
    assert_eq!((other.shape(1), other.tokens), ([1, 4, 32, 2], 16));
    for (height, width, message) in [
        (Some(30), None, "`calibration.height` is 30: this model takes multiples of 4 up to 64 pixels"),
        (None, Some(68), "`calibration.width` is 68: this model takes multiples of 4 up to 64 pixels"),
        (Some(0), None, "`calibration.height` is 0"),
        (Some(u32::MAX), None, "`calibration.height` is 4294967295"),
    ] {
        assert_eq!(pipeline.latent_size(height, width).unwrap_err().to_string().find(message), Some(0));
    }
}

#[test]
fn a_pipeline_without_t5_opens() {
    let null: fn(&Path) = |pipeline| {
        index(pipeline, "text_encoder_3", json!([null, null]));
        index(pipeline, "tokenizer_3", json!([null, null]));
    };
    let absent: fn(&Path) = |pipeline| {
        edit_json(&pipeline.join("model_index.json"), |index| {
            index.as_object_mut().unwrap().retain(|key, _| !key.ends_with("_3"));
        });
    };
    for without in [null, absent] {
        let pipeline = copy_folder("");
        without(pipeline.path());
        fs::remove_dir_all(pipeline.path().join("text_encoder_3")).unwrap();
        let opened = PipelineFolder::open(pipeline.path()).unwrap();
        assert!(!opened.has("text_encoder_3"));
        assert_eq!(opened.absent_text(), ["text_encoder_3", "tokenizer_3"]);
        let without_text = PipelineFolder::open_without_text(pipeline.path()).unwrap();
        assert_eq!(without_text.absent_text(), ["text_encoder_3", "tokenizer_3"]);
    }
}

/// diffusers writes the name of the Python module that defines a class of its own, in a name of the process that has loaded it.
#[test]
fn a_shrunk_transformer_may_be_of_any_module() {
    let class = "PrunedSD3Transformer2DModel";
    for library in ["diffusers", "diffusers_modules.local.modeling_pruned_sd3", "modeling_pruned_sd3"] {
        let pipeline = copy_folder("");
        index(pipeline.path(), "transformer", json!([library, class]));
        edit_json(&pipeline.path().join("transformer/config.json"), |config| {
            config["_class_name"] = json!(class)
        });
        assert!(PipelineFolder::open(pipeline.path()).is_ok(), "{library}");
    }
}

#[test]
fn t5_may_have_the_tokenizer_class_of_any_whole_file() {
    for class in ["PreTrainedTokenizerFast", "TokenizersBackend"] {
        let pipeline = copy_folder("");
        index(pipeline.path(), "tokenizer_3", json!(["transformers", class]));
        let encoders = PipelineFolder::open(pipeline.path()).unwrap().text_encoders(24).unwrap();
        assert_eq!(encoders.token_ids("a ring").unwrap().len(), 3, "{class}");
    }
}

#[test]
fn pipelines_that_cannot_be_read_are_refused() {
    let cases: &[Damage] = &[
        (|p| fs::remove_file(p.join("model_index.json")).unwrap(), "model_index.json"),
        (|p| fs::write(p.join("model_index.json"), "{").unwrap(), "model_index.json: is not the JSON"),
        (
            |p| index(p, "_class_name", json!("FluxPipeline")),
            "`_class_name` is \"FluxPipeline\", but obsdiff reads SD3Transformer2DModel in a StableDiffusion3Pipeline",
        ),
        (|p| index(p, "_class_name", Value::Null), "`_class_name` is null"),
        (
            |p| index(p, "_class_name", json!("StableDiffusionPipeline")),
            "obsdiff does not support it (supported: StableDiffusion3Pipeline, FluxPipeline)",
        ),
        (
            |p| index(p, "transformer", json!(["diffusers", "PixArtTransformer2DModel"])),
            "obsdiff does not support it (supported: SD3Transformer2DModel, FluxTransformer2DModel)",
        ),
        (
            |p| index(p, "transformer", json!("SD3Transformer2DModel")),
            "`transformer` is \"SD3Transformer2DModel\", but obsdiff does not support it",
        ),
        (
            |p| index(p, "vae", json!(["diffusers", "AutoencoderTiny"])),
            "obsdiff supports AutoencoderKL there",
        ),
        (
            |p| index(p, "vae", json!(["my_code", "AutoencoderKL"])),
            "`vae` is [\"my_code\",\"AutoencoderKL\"], but obsdiff supports that of diffusers there",
        ),
        (
            |p| index(p, "transformer", json!(["my_code", "SD3Transformer2DModel"])),
            "obsdiff supports that of diffusers there",
        ),
        (
            |p| index(p, "tokenizer", json!(["diffusers", "CLIPTokenizer"])),
            "obsdiff supports that of transformers there",
        ),
        (|p| index(p, "vae", json!([null, null])), "a pipeline needs this component (AutoencoderKL)"),
        (|p| index(p, "scheduler", json!("Euler")), "`scheduler` is \"Euler\", but it must be a pair"),
        (
            |p| index(p, "scheduler", json!(["diffusers", "DDIMScheduler"])),
            "FlowMatchEulerDiscreteScheduler there",
        ),
        (|p| index(p, "text_encoder_2", json!(["transformers", "CLIPTextModel"])), "`text_encoder_2` is"),
        (|p| index(p, "tokenizer_3", Value::Null), "`text_encoder_3` is there and needs its tokenizer"),
        (|p| fs::remove_dir_all(p.join("vae")).unwrap(), "vae: is missing"),
        (|p| fs::remove_dir_all(p.join("tokenizer_2")).unwrap(), "tokenizer_2: is missing"),
        (|p| fs::remove_file(p.join("scheduler/scheduler_config.json")).unwrap(), "scheduler_config.json"),
        (|p| fs::remove_file(p.join("text_encoder/config.json")).unwrap(), "text_encoder/config.json"),
        (
            |p| fs::remove_file(p.join("text_encoder_3/model.safetensors")).unwrap(),
            "text_encoder_3: has neither model.safetensors",
        ),
        (
            |p| fs::write(p.join("vae/diffusion_pytorch_model.safetensors"), [9; 100]).unwrap(),
            "vae/diffusion_pytorch_model.safetensors: is not a whole safetensors file",
        ),
        (
            |p| {
                edit_json(&p.join("vae/config.json"), |config| {
                    config["_class_name"] = json!("AsymmetricAutoencoderKL")
                })
            },
            "`_class_name` is \"AsymmetricAutoencoderKL\"",
        ),
        (
            |p| edit_json(&p.join("vae/config.json"), |config| config["latent_channels"] = json!(16)),
            "`latent_channels` is 16, but the transformer's `in_channels` is 4",
        ),
        (
            |p| {
                edit_json(&p.join("vae/config.json"), |config| {
                    config["block_out_channels"] = json!(vec![8; 9])
                })
            },
            "it may have 8 entries at most",
        ),
        (
            |p| quantise(p, "text_encoder_3", "fp8"),
            "text_encoder_3/config.json: is quantised (fp8): load it in Python",
        ),
        (|p| quantise(p, "text_encoder", "quanto"), "text_encoder/config.json: is quantised (quanto)"),
        (|p| quantise(p, "vae", "quanto"), "vae/config.json: is quantised (quanto)"),
        (
            |p| quantise(p, "transformer", "bitsandbytes"),
            "transformer/config.json: is quantised (bitsandbytes)",
        ),
        (
            |p| add_tensors(p, &[("a.weight", DType::F8E4M3), ("a.weight_scale_inv", DType::F32)]),
            "text_encoder_3: is quantised (fp8, with scales such as `a.weight_scale_inv`)",
        ),
        (
            |p| edit_json(&p.join("transformer/config.json"), |config| config["in_channels"] = json!("four")),
            "`in_channels` is \"four\"",
        ),
    ];
    for (damage, message) in cases {
        let pipeline = copy_folder("");
        damage(pipeline.path());
        let error = PipelineFolder::open(pipeline.path()).unwrap_err().to_string();
        assert!(error.contains(message), "{message}: {error}");
    }
}

/// Every file that a pipeline of the shipped kind reads to encode prompts, to denoise and to decode, by its path in the folder.
fn files(pipeline: &Path) -> Vec<PathBuf> {
    let opened = PipelineFolder::open(pipeline).unwrap();
    let encoders = opened.text_encoders(24).unwrap();
    let all = opened.files().unwrap().into_iter().chain(encoders.files());
    let mut names: Vec<PathBuf> = all.map(|file| file.strip_prefix(pipeline).unwrap().to_owned()).collect();
    names.sort();
    names
}

/// What the pipeline gives: token ids, conditioning, a schedule and a picture.
fn given(pipeline: &Path) -> (Vec<Vec<u32>>, Vec<Vec<f32>>) {
    let opened = PipelineFolder::open(pipeline).unwrap();
    let encoders = opened.text_encoders(24).unwrap();
    let prompt = "A red circle, ein Kreis <|endoftext|> \u{e000}";
    let encoded = encoders.encode(&[prompt], &mut |_, _| {}).unwrap().remove(0);
    let latents = crate::pipeline::noise(1, &opened.latent_size(None, None).unwrap().shape(1)).unwrap();
    let picture = opened.vae(&ComputeDevice::Cpu).unwrap().decode(&latents).unwrap();
    let schedule = opened.schedule(10, 64).unwrap();
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let numbers = vec![flat(&encoded.text), flat(&encoded.pooled), flat(&picture)];
    let schedule = format!("{schedule:?}").bytes().map(f32::from).collect();
    (encoders.token_ids(prompt).unwrap(), [numbers, vec![schedule]].concat())
}

#[test]
fn a_pipeline_of_the_files_that_it_names_alone_is_the_same_pipeline() {
    let layouts: [fn(&Path); 3] = [
        |_| {},
        // Special tokens that only the older file knows.
        |p| {
            for tokenizer in ["tokenizer", "tokenizer_2"] {
                edit_json(&p.join(tokenizer).join("tokenizer_config.json"), |config| {
                    config.as_object_mut().unwrap().remove("added_tokens_decoder");
                });
            }
            fs::write(p.join("text_encoder/model.fp16.safetensors"), "a variant").unwrap();
        },
        // Shards, and a single file left over.
        |p| {
            let folder = p.join("vae");
            let whole = fs::read(folder.join("diffusion_pytorch_model.safetensors")).unwrap();
            fs::write(folder.join("shard.safetensors"), &whole).unwrap();
            fs::write(folder.join("diffusion_pytorch_model.safetensors"), "left over").unwrap();
            let weights = Weights::open_file(&folder.join("shard.safetensors")).unwrap();
            let map: serde_json::Map<String, Value> =
                weights.entries().map(|(name, _)| (name.to_owned(), json!("shard.safetensors"))).collect();
            let index = json!({ "weight_map": map }).to_string();
            fs::write(folder.join("diffusion_pytorch_model.safetensors.index.json"), index).unwrap();
        },
    ];
    for (number, lay) in layouts.into_iter().enumerate() {
        let whole = copy_folder("");
        lay(whole.path());
        let names = files(whole.path());
        let alone = tempfile::tempdir().unwrap();
        for name in &names {
            fs::create_dir_all(alone.path().join(name).parent().unwrap()).unwrap();
            fs::write(alone.path().join(name), fs::read(whole.path().join(name)).unwrap()).unwrap();
        }
        assert!(given(alone.path()) == given(whole.path()), "layout {number} lacks a file");
        assert_eq!(files(alone.path()), names);
        let has = |name: &str| names.contains(&PathBuf::from(name));
        assert!(has("scheduler/scheduler_config.json") && has("text_encoder_3/model.safetensors"));
        assert_eq!(has("tokenizer/special_tokens_map.json"), number == 1);
        assert_eq!(has("vae/diffusion_pytorch_model.safetensors"), number != 2);
        assert!(!has("tokenizer/tokenizer.json") && !has("text_encoder/model.fp16.safetensors"));
    }
}
