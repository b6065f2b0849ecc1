use std::fs;
use std::path::Path;

use candle_core::{DType, Tensor};
use obsdiff_proto::{Features, LinearId, PartKind};
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
        ("quantization_config", json!({ "quant_method": "fp8" }), "is quantised (fp8): load it in Python"),
        ("quantization_config", json!({}), "is quantised (by a method that it does not name)"),
        ("patch_size", json!(2), "`patch_size` is 2, but only 1"),
        ("in_channels", json!(10), "`in_channels` is 10, but must be a multiple of 4"),
        ("out_channels", json!(6), "`out_channels` is 6, but must be a multiple of 4"),
        (
            "out_channels",
            json!(4),
            "it takes more than latents (Fill, Control): `in_channels` is 8 and `out_channels` 4",
        ),
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
        ("num_layers", json!(1025), "`num_layers` is 1025, but must lie within 1..=1024"),
        ("num_single_layers", json!(65_536), "`num_single_layers` is 65536, but must lie within 1..=1024"),
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
    let units: Vec<_> = inventory.units.iter().map(|unit| (unit.block, unit.name.as_str())).collect();
    let single = ["block-inputs", "block-outputs"];
    let double = ["attention-inputs", "attention-outputs", "ffn-inputs", "ffn-hidden"];
    let of = |block: u32, names: &[&'static str]| names.iter().map(|name| (block, *name)).collect::<Vec<_>>();
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
    assert_eq!((inputs.width, joined.width), (16, 80));
    assert!([inputs, joined].iter().all(|site| inventory.stream(site.stream).tokens(1000, 10) == 1010));
    let parts: Vec<_> = joined.joined.iter().map(|part| (part.name.as_str(), part.columns.clone())).collect();
    assert_eq!(parts, [("attention", 0..16), ("hidden", 16..80)]);
    assert!(inputs.joined.is_empty());
    let rows: Vec<_> = inputs.linears.iter().map(|id| inventory.linear(*id).rows).collect();
    assert_eq!(rows, [16, 16, 16, 64]);
    assert_eq!(inventory.check(), Ok(()));
    for (i, site) in inventory.sites.iter().enumerate() {
        assert_eq!(site.name, inventory.linear(site.linears[0]).name);
        assert!(site.linears.iter().all(|id| inventory.linear(*id).site.0 as usize == i));
    }
}

#[test]
fn heads_and_neurons_of_a_single_stream_block_are_columns_of_one_linear() {
    let inventory = read(&keys()).unwrap().inventory();
    let structure = |name: &str| inventory.structures.iter().find(|s| s.name == name).unwrap();
    let of = |features: &[Features]| -> Vec<(String, usize, usize)> {
        let name = |of: &Features| inventory.linear(of.linear).name.clone();
        features.iter().map(|of| (name(of), of.offset, of.size)).collect()
    };
    let named = |prefix: &str, names: &[&str], offset: usize, size: usize| -> Vec<_> {
        names.iter().map(|name| (format!("{prefix}.{name}"), offset, size)).collect()
    };
    let double = structure("transformer_blocks.0.attn");
    let both = ["attn.to_out.0", "attn.to_add_out"];
    assert_eq!(of(&double.outputs), named("transformer_blocks.0", &both, 0, 8));
    assert_eq!((double.kind, double.count, double.inputs.len()), (PartKind::Heads, 2, 6));
    let single = "single_transformer_blocks.1";
    let heads = structure(&format!("{single}.attn"));
    assert_eq!((heads.kind, heads.count, heads.block), (PartKind::Heads, 2, 2));
    assert_eq!(of(&heads.outputs), named(single, &["proj_out"], 0, 8));
    assert_eq!(of(&heads.inputs), named(single, &["attn.to_q", "attn.to_k", "attn.to_v"], 0, 8));
    let neurons = structure(&format!("{single}.proj_mlp"));
    assert_eq!((neurons.kind, neurons.count), (PartKind::Neurons, 64));
    assert_eq!(of(&neurons.outputs), named(single, &["proj_out"], 16, 1));
    assert_eq!(of(&neurons.inputs), named(single, &["proj_mlp"], 0, 1));
    assert_eq!(inventory.structures.len(), 3 + 2 * 2);
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
        let prunable: u64 = inventory.linears.iter().map(|linear| inventory.parameters_of(linear)).sum();
        let fixed: u64 = inventory.fixed.iter().map(|layer| layer.parameters).sum();
        assert_eq!(prunable + fixed, parameters);
        assert!(inventory.fixed.iter().any(|layer| layer.name == "single_transformer_blocks.37.norm.linear"));
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
    FluxTransformer::load(read(keys).unwrap(), weights, DType::F32)
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
    // Without guidance its embedder may stay, and is not read; with guidance nothing more than it may be there.
    let mut unguided = keys();
    unguided["guidance_embeds"] = json!(false);
    let weights = checkpoint(folder.path(), &keys(), |_| {});
    load(&weights, &unguided).unwrap();
    let other = "time_text_embed.guidance_embedder.linear_3.weight";
    let more = error(&|tensors| tensors.push((other.to_owned(), noise(0, &[2]).unwrap())));
    assert!(more.contains(&format!("holds tensor `{other}`")), "{more}");
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
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &crate::HOST).unwrap();
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
    let timestep = Tensor::new(&[300f32], &crate::HOST).unwrap();
    let predict = |model: &FluxTransformer, guidance: f32| {
        let guidance = Tensor::new(&[guidance], &crate::HOST).unwrap();
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
        let [weight, bias] = [model.weight(id).unwrap().clone(), model.bias(id).unwrap().unwrap().clone()];
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

/// Text and image tokens of different numbers, two items a batch, blocks that differ, with and without guidance.
#[test]
fn operations_of_a_forward_call_are_those_that_the_configuration_says() {
    let folder = tempfile::tempdir().unwrap();
    for (guided, sizes) in [(true, None), (false, Some([[1], [7], [9]]))] {
        let mut keys = keys();
        keys["guidance_embeds"] = json!(guided);
        if let Some([heads, ffn, ffn_context]) = sizes {
            keys["attention_heads_per_block"] = json!(heads);
            keys["ffn_width_per_block"] = json!(ffn);
            keys["ffn_context_width_per_block"] = json!(ffn_context);
            keys["single_attention_heads_per_block"] = json!([2, 1]);
            keys["single_mlp_width_per_block"] = json!([64, 3]);
        }
        let model = load(&checkpoint(folder.path(), &keys, |_| {}), &keys).unwrap();
        let [latents, text, pooled] =
            [[2, 2, 4, 6].as_slice(), &[2, 5, 6], &[2, 5]].map(|shape| noise(1, shape).unwrap());
        let twos = Tensor::new(&[2f32, 300.0], &crate::HOST).unwrap();
        let call = Denoise {
            latents: &latents,
            timestep: &twos,
            text: &text,
            pooled: &pooled,
            guidance: guided.then_some(&twos),
        };
        let expected = model.config().flops(2, 6, 5).total();
        for calls in [1.0, 2.0] {
            model.forward(&call, &mut NoTap).unwrap();
            assert_eq!(model.operations() as f64, calls * expected);
        }
    }
}

#[test]
fn blocks_may_differ_in_heads_and_neurons() {
    let sized = |lists: [Value; 5]| {
        let mut keys = keys();
        for (key, list) in super::block_sizes::KEYS.into_iter().zip(lists) {
            keys[key] = list;
        }
        keys
    };
    let fine = [json!([1]), json!([30]), json!([5]), json!([2, 1]), json!([64, 7])];
    let config = read(&sized(fine.clone())).unwrap();
    let shape = |name: &str| config.shapes().into_iter().find(|(n, _)| n == name).unwrap().1;
    assert_eq!(shape("transformer_blocks.0.attn.add_k_proj.weight"), [8, 16]);
    assert_eq!(shape("transformer_blocks.0.attn.to_add_out.weight"), [16, 8]);
    assert_eq!(shape("transformer_blocks.0.ff_context.net.2.weight"), [16, 5]);
    assert_eq!(shape("single_transformer_blocks.0.proj_out.weight"), [16, 80]);
    assert_eq!(shape("single_transformer_blocks.1.proj_out.weight"), [16, 15]);
    assert_eq!(shape("single_transformer_blocks.1.attn.to_v.bias"), [8]);
    let inventory = config.inventory();
    assert_eq!(inventory.check(), Ok(()));
    let neurons = inventory.structures.last().unwrap();
    assert_eq!((neurons.count, neurons.outputs[0].offset), (7, 8));
    let dense = read(&keys()).unwrap();
    assert!(dense.same_but_for_blocks(&config) && dense != config);
    assert!(config.flops(1, 16, 3).total() < dense.flops(1, 16, 3).total());
    assert_eq!(dense.shrunk(&[1, 30, 5, 2, 64, 1, 7]).block_sizes(), config.block_sizes());
    for (at, list, said) in [
        (0, json!([1, 1]), "`attention_heads_per_block` has 2 numbers, but `num_layers` is 1"),
        (3, json!([1]), "`single_attention_heads_per_block` has 1 numbers, but `num_single_layers` is 2"),
        (0, json!([3]), "`attention_heads_per_block` is 3 in block 0, but must lie within 1..=2"),
        (4, json!([64, 0]), "`single_mlp_width_per_block` is 0 in block 1, but must lie within 1..=64"),
        (1, json!([65]), "`ffn_width_per_block` is 65"),
        (2, json!([]), "`ffn_context_width_per_block` has 0 numbers"),
        (2, json!("few"), "is not usable"),
    ] {
        let mut lists = fine.clone();
        lists[at] = list;
        let error = read(&sized(lists)).unwrap_err();
        assert!(error.contains(said), "{error}");
    }
}
