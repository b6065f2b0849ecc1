use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use obsdiff_proto::{LinearId, Stream, UnitKind};
use serde_json::{Value, json};

use super::*;
use crate::checkpoint::{Library, Weights};
use crate::model::{Denoise, DiffusionModel, NoTap};
use crate::pipeline::noise;

fn keys() -> Value {
    json!({
        "_class_name": "FluxTransformer2DModel", "_diffusers_version": "0.33.1", "attention_head_dim": 8,
        "axes_dims_rope": [2, 2, 4], "guidance_embeds": true, "in_channels": 8, "joint_attention_dim": 6,
        "num_attention_heads": 2, "num_layers": 1, "num_single_layers": 2, "out_channels": null, "patch_size": 1,
        "pooled_projection_dim": 5
    })
}

fn read(keys: &Value) -> Result<FluxConfig, String> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), keys.to_string()).unwrap();
    FluxConfig::read(folder.path()).map_err(|e| e.to_string())
}

#[test]
fn reads_sizes_and_fills_in_what_published_files_lack() {
    let config = read(&keys()).unwrap();
    assert_eq!((config.width(), config.hidden_width(), config.channels()), (16, 64, 2));
    let mut published = keys();
    for key in ["axes_dims_rope", "guidance_embeds", "out_channels"] {
        published.as_object_mut().unwrap().remove(key);
    }
    published["attention_head_dim"] = json!(128);
    let published = read(&published).unwrap();
    assert_eq!((published.axes_dims_rope, published.guidance_embeds), (vec![16, 56, 56], false));
}

#[test]
fn refuses_what_no_such_model_can_have() {
    for (key, value, said) in [
        ("_class_name", json!("SD3Transformer2DModel"), "`_class_name` is \"SD3Transformer2DModel\""),
        ("_class_name", json!(null), "lacks `_class_name`"),
        ("theta", json!(256), "key `theta` = 256 is not known"),
        ("patch_size", json!(2), "`patch_size` is 2, but only 1"),
        ("in_channels", json!(10), "`in_channels` is 10, but must be a multiple of 4"),
        ("out_channels", json!(6), "`out_channels` is 6, but must be a multiple of 4"),
        ("out_channels", json!(0), "`out_channels` is 0"),
        ("out_channels", json!("four"), "is not usable"),
        ("num_attention_heads", json!(0), "`num_attention_heads` is 0"),
        ("num_attention_heads", json!(-2), "`num_attention_heads` is -2"),
        ("num_attention_heads", json!(1u64 << 62), "`num_attention_heads` is 4611686018427387904"),
        ("num_attention_heads", json!(9000), "is above"),
        ("attention_head_dim", json!(10), "`axes_dims_rope` adds up to 8, but `attention_head_dim` is 10"),
        ("axes_dims_rope", json!([4, 4]), "`axes_dims_rope` has 2 numbers"),
        ("axes_dims_rope", json!([1, 3, 4]), "`axes_dims_rope` holds 1"),
        ("axes_dims_rope", json!([-2, 6, 4]), "is not usable"),
        ("guidance_embeds", json!("yes"), "is not usable"),
        ("num_single_layers", json!(2.5), "`num_single_layers` is 2.5"),
    ] {
        let mut keys = keys();
        keys[key] = value.clone();
        let error = read(&keys).unwrap_err();
        assert!(error.contains(said) && error.contains("config.json"), "{key} = {value}: {error}");
    }
    let mut keys = keys();
    keys.as_object_mut().unwrap().remove("num_single_layers");
    assert!(read(&keys).unwrap_err().contains("missing field `num_single_layers`"));
}

#[test]
fn lists_units_sites_and_linears_in_the_order_of_a_call() {
    let inventory = read(&keys()).unwrap().inventory();
    let units: Vec<_> = inventory.units.iter().map(|unit| (unit.block, unit.kind)).collect();
    let single = [UnitKind::AttentionInputs, UnitKind::AttentionOutputs];
    let double = [&single[..], &[UnitKind::FfnInputs, UnitKind::FfnHidden]].concat();
    let of = |block: u32, kinds: &[UnitKind]| kinds.iter().map(|kind| (block, *kind)).collect::<Vec<_>>();
    assert_eq!(units, [of(0, &double), of(1, &single), of(2, &single)].concat());
    let names = |unit: usize| -> Vec<_> {
        let sites = inventory.units[unit].sites.iter().map(|id| inventory.site(*id));
        sites.flat_map(|site| site.linears.iter().map(|id| inventory.linear(*id).name.as_str())).collect()
    };
    assert_eq!(names(1), ["transformer_blocks.0.attn.to_out.0", "transformer_blocks.0.attn.to_add_out"]);
    assert_eq!(
        names(6),
        ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"]
            .map(|name| format!("single_transformer_blocks.1.{name}"))
    );
    assert_eq!(names(7), ["single_transformer_blocks.1.proj_out"]);
    // The output projection reads attention and hidden layer, joined.
    let [inputs, joined] = [6, 7].map(|unit: usize| inventory.site(inventory.units[unit].sites[0]));
    assert_eq!(
        (inputs.width, inputs.stream, joined.width, joined.stream),
        (16, Stream::Joint, 80, Stream::Joint)
    );
    let rows: Vec<_> = inputs.linears.iter().map(|id| inventory.linear(*id).rows).collect();
    assert_eq!(rows, [16, 16, 16, 64]);
    for (i, site) in inventory.sites.iter().enumerate() {
        assert_eq!(site.name, inventory.linear(site.linears[0]).name);
        assert!(site.linears.iter().all(|id| inventory.linear(*id).site.0 as usize == i));
    }
}

/// FLUX.1-dev: 11.90 billion parameters, and 228 Grams that are 64.6 GB as whole squares of f32. Its file says no places.
#[test]
fn counts_the_published_models_parameters_and_grams() {
    let mut keys = keys();
    for (key, value) in [
        ("attention_head_dim", json!(128)),
        ("num_attention_heads", json!(24)),
        ("in_channels", json!(64)),
        ("joint_attention_dim", json!(4096)),
        ("pooled_projection_dim", json!(768)),
        ("num_layers", json!(19)),
        ("num_single_layers", json!(38)),
    ] {
        keys[key] = value;
    }
    keys.as_object_mut().unwrap().remove("axes_dims_rope");
    for (guided, parameters) in [(true, 11_901_408_320), (false, 11_891_178_560)] {
        keys["guidance_embeds"] = json!(guided);
        let inventory = read(&keys).unwrap().inventory();
        assert_eq!(inventory.parameters, parameters);
        let squares: u64 = inventory.sites.iter().map(|site| 4 * (site.width as u64).pow(2)).sum();
        assert_eq!((inventory.sites.len(), squares / 100_000_000), (228, 645));
    }
}

type Tensors = Vec<(String, Tensor)>;

/// A checkpoint of small numbers, changed by `change`.
fn checkpoint(folder: &Path, keys: &Value, change: impl Fn(&mut Tensors)) -> Weights {
    let tensor = |(seed, (name, shape)): (u64, (String, Vec<usize>))| {
        (name, (noise(seed, &shape).unwrap() * 0.1).unwrap())
    };
    let mut tensors: Tensors = (0..).zip(read(keys).unwrap().shapes()).map(tensor).collect();
    change(&mut tensors);
    let file = folder.join("diffusion_pytorch_model.safetensors");
    candle_core::safetensors::save(&tensors.into_iter().collect(), &file).unwrap();
    Weights::open(folder, Library::Diffusers).unwrap()
}

fn load(weights: &Weights, keys: &Value) -> crate::Result<FluxTransformer> {
    FluxTransformer::load(read(keys).unwrap(), weights, DType::F32, &Device::Cpu)
}

#[test]
fn refuses_other_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let error = |change: &dyn Fn(&mut Tensors)| {
        load(&checkpoint(folder.path(), &keys(), change), &keys()).unwrap_err().to_string()
    };
    let named = |name: &'static str| move |(n, _): &(String, Tensor)| n == name;
    let output = "single_transformer_blocks.1.proj_out.weight";
    let lacking = error(&|tensors| tensors.retain(|tensor| !named(output)(tensor)));
    assert!(lacking.contains(output), "{lacking}");
    let other = error(&|tensors| {
        tensors.iter_mut().find(|tensor| named(output)(tensor)).unwrap().1 = noise(0, &[16, 64]).unwrap();
    });
    assert!(other.contains(output) && other.contains("[16, 80]"), "{other}");
    let more = error(&|tensors| tensors.push(("pos_embed.proj".to_owned(), noise(0, &[2]).unwrap())));
    assert!(more.contains("holds tensor `pos_embed.proj`"), "{more}");
    // Without guidance its embedder is one tensor too many.
    let mut unguided = keys();
    unguided["guidance_embeds"] = json!(false);
    let weights = checkpoint(folder.path(), &keys(), |_| {});
    let more = load(&weights, &unguided).unwrap_err().to_string();
    assert!(more.contains("holds tensor `time_text_embed.guidance_embedder."), "{more}");
    let spoilt = error(&|tensors| {
        let bias = tensors.iter_mut().find(|tensor| named("proj_out.bias")(tensor)).unwrap();
        bias.1 = (bias.1.clone() / 0.0).unwrap();
    });
    assert!(spoilt.contains("proj_out.bias"), "{spoilt}");
}

/// Shapes of latents, timestep, text, pooled text and guidance, and what is said of them.
type Refusal = ([&'static [usize]; 4], Option<&'static [usize]>, &'static str);

#[test]
fn refuses_calls_that_do_not_fit() {
    let folder = tempfile::tempdir().unwrap();
    let model = load(&checkpoint(folder.path(), &keys(), |_| {}), &keys()).unwrap();
    let refusals: [Refusal; 7] = [
        ([&[3, 4, 4, 6], &[3], &[3, 1, 6], &[3, 5]], Some(&[3]), "latents have shape [3, 4, 4, 6]"),
        ([&[3, 2, 4, 5], &[3], &[3, 1, 6], &[3, 5]], Some(&[3]), "latent width 5 is not a multiple of 2"),
        ([&[3, 2, 4, 6], &[1], &[3, 1, 6], &[3, 5]], Some(&[3]), "timesteps have shape [1]"),
        ([&[3, 2, 4, 6], &[3], &[3, 0, 6], &[3, 5]], Some(&[3]), "text tokens have shape [3, 0, 6]"),
        ([&[3, 2, 4, 6], &[3], &[3, 1, 6], &[1, 5]], Some(&[3]), "pooled embeddings have shape [1, 5]"),
        ([&[3, 2, 4, 6], &[3], &[3, 1, 6], &[3, 5]], Some(&[1]), "guidances have shape [1]"),
        ([&[3, 2, 4, 6], &[3], &[3, 1, 6], &[3, 5]], None, "takes guidance as an input"),
    ];
    for (shapes, guidance, said) in refusals {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        let ([latents, timestep, text, pooled], guidance) = (shapes.map(zeros), guidance.map(zeros));
        let call = Denoise {
            latents: &latents,
            timestep: &timestep,
            text: &text,
            pooled: &pooled,
            guidance: guidance.as_ref(),
        };
        let error = model.forward(&call, &mut NoTap).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn a_replaced_linear_changes_the_prediction() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = load(&checkpoint(folder.path(), &keys(), |_| {}), &keys()).unwrap();
    let [latents, text, pooled] =
        [[1, 2, 4, 6].as_slice(), &[1, 3, 6], &[1, 5]].map(|shape| noise(1, shape).unwrap());
    let timestep = Tensor::new(&[300f32], &Device::Cpu).unwrap();
    let predict = |model: &FluxTransformer, guidance: f32| {
        let guidance = Tensor::new(&[guidance], &Device::Cpu).unwrap();
        let call = Denoise {
            latents: &latents,
            timestep: &timestep,
            text: &text,
            pooled: &pooled,
            guidance: Some(&guidance),
        };
        model.forward(&call, &mut NoTap).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let dense = predict(&model, 3.5);
    assert!(predict(&model, 1.0) != dense, "guidance is not read");
    for id in model.inventory().linear_ids() {
        let name = model.inventory().linear(id).name.clone();
        let [weight, bias] = [model.weight(id).unwrap().clone(), model.bias(id).unwrap().clone()];
        model.replace(id, weight.zeros_like().unwrap()).unwrap();
        assert!(predict(&model, 3.5) != dense, "{name}");
        model.replace(id, weight.clone()).unwrap();
        assert_eq!(predict(&model, 3.5), dense, "{name}");
        model.replace_bias(id, (bias.clone() + 1.0).unwrap()).unwrap();
        assert!(predict(&model, 3.5) != dense, "{name}");
        model.replace_bias(id, bias).unwrap();
        let error = model.replace(id, weight.t().unwrap().narrow(0, 0, 1).unwrap()).unwrap_err().to_string();
        assert!(error.contains(&name), "{error}");
    }
    let unknown = LinearId(model.inventory().linears.len() as u32);
    assert!(model.weight(unknown).unwrap_err().to_string().contains("is not of this model"));
}
