use std::fs;
use std::path::Path;

use candle_core::{DType, Tensor};
use obsdiff_proto::LinearId;
use serde_json::{Value, json};

use super::*;
use crate::checkpoint::{Library, Weights};
use crate::model::{Denoise, DiffusionModel, NoTap};
use crate::pipeline::noise;

fn keys() -> Value {
    json!({
        "_class_name": "SD3Transformer2DModel", "_diffusers_version": "0.33.1", "attention_head_dim": 4,
        "caption_projection_dim": 8, "dual_attention_layers": [0], "in_channels": 2, "joint_attention_dim": 6,
        "num_attention_heads": 2, "num_layers": 2, "out_channels": null, "patch_size": 2, "pooled_projection_dim": 5,
        "pos_embed_max_size": 6, "qk_norm": "rms_norm", "sample_size": 8
    })
}

fn read(keys: &Value) -> Result<Sd3Config, String> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), keys.to_string()).unwrap();
    Sd3Config::read(folder.path()).map_err(|e| e.to_string())
}

#[test]
fn reads_sizes_and_fills_in_what_older_files_lack() {
    let config = read(&keys()).unwrap();
    assert_eq!((config.width(), config.hidden_width(), config.output_channels()), (8, 32, 2));
    let mut old = keys();
    for key in ["dual_attention_layers", "qk_norm", "out_channels"] {
        old.as_object_mut().unwrap().remove(key);
    }
    let old = read(&old).unwrap();
    assert_eq!((old.dual_attention_layers, old.qk_norm, old.out_channels), (vec![], None, None));
}

#[test]
fn refuses_what_no_such_model_can_have() {
    for (key, value, said) in [
        ("_class_name", json!("FluxTransformer2DModel"), "`_class_name` is \"FluxTransformer2DModel\""),
        ("_class_name", json!(null), "lacks `_class_name`"),
        ("qk_norm", json!("layer_norm"), "`qk_norm` is \"layer_norm\""),
        ("rope_theta", json!(10000), "key `rope_theta` = 10000 is not known"),
        ("caption_projection_dim", json!(16), "`caption_projection_dim` is 16, but must be"),
        ("num_attention_heads", json!(0), "`num_attention_heads` is 0"),
        ("num_attention_heads", json!(-2), "`num_attention_heads` is -2"),
        ("num_attention_heads", json!(1u64 << 62), "`num_attention_heads` is 4611686018427387904"),
        ("attention_head_dim", json!("wide"), "`attention_head_dim` is \"wide\""),
        ("attention_head_dim", json!(60000), "is above"),
        ("num_layers", json!(2.5), "`num_layers` is 2.5"),
        ("num_layers", json!(0), "`num_layers` is 0, but must lie within 1..=1024"),
        ("num_layers", json!(20_000), "`num_layers` is 20000, but must lie within 1..=1024"),
        ("sample_size", json!(7), "`sample_size` 7 is not a multiple"),
        ("sample_size", json!(16), "more than `pos_embed_max_size` 6"),
        ("dual_attention_layers", json!([2]), "`dual_attention_layers` names 2"),
        ("dual_attention_layers", json!("all"), "is not usable"),
    ] {
        let mut keys = keys();
        keys[key] = value.clone();
        let error = read(&keys).unwrap_err();
        assert!(error.contains(said) && error.contains("config.json"), "{key} = {value}: {error}");
    }
    let mut keys = keys();
    keys.as_object_mut().unwrap().remove("num_layers");
    assert!(read(&keys).unwrap_err().contains("missing field `num_layers`"));
}

/// The configuration with a number for every block: heads, heads of the second attention, neurons of either stream.
fn sized(lists: [Value; 4]) -> Value {
    let mut keys = keys();
    for (key, list) in super::block_sizes::KEYS.into_iter().zip(lists) {
        keys[key] = list;
    }
    keys
}

#[test]
fn blocks_may_differ_in_heads_and_neurons() {
    let config = read(&sized([json!([1, 2]), json!([2, 0]), json!([30, 7]), json!([5, 0])])).unwrap();
    assert_eq!([config.heads(0), config.heads(1), config.own_heads(0), config.own_heads(1)], [1, 2, 2, 0]);
    let shape = |name: &str| config.shapes().into_iter().find(|(n, _)| n == name).unwrap().1;
    assert_eq!(shape("transformer_blocks.0.attn.add_k_proj.weight"), [4, 8]);
    assert_eq!(shape("transformer_blocks.0.attn.to_out.0.weight"), [8, 4]);
    assert_eq!(shape("transformer_blocks.0.attn2.to_q.bias"), [8]);
    assert_eq!(shape("transformer_blocks.1.ff.net.2.weight"), [8, 7]);
    let inventory = config.inventory();
    let structures: Vec<_> = inventory
        .structures
        .iter()
        .map(|s| (s.name.as_str(), s.outputs[0].size, s.count, s.outputs.len()))
        .collect();
    assert_eq!(
        structures,
        [
            ("transformer_blocks.0.attn", 4, 1, 2),
            ("transformer_blocks.0.attn2", 4, 2, 1),
            ("transformer_blocks.0.ff", 1, 30, 1),
            ("transformer_blocks.0.ff_context", 1, 5, 1),
            // The last block's text stream ends at its attention.
            ("transformer_blocks.1.attn", 4, 2, 1),
            ("transformer_blocks.1.ff", 1, 7, 1),
        ]
    );
    assert_eq!(inventory.structures[4].inputs.len(), 6);
    let dense = read(&keys()).unwrap();
    assert!(dense.same_but_for_blocks(&config) && dense != config);
    assert!(config.flops(1, 16, 3).total() < dense.flops(1, 16, 3).total());
    assert_eq!(dense.shrunk(&[1, 2, 30, 5, 2, 7]).block_sizes(), config.block_sizes());
}

#[test]
fn refuses_blocks_that_no_pruning_leaves() {
    let fine = [json!([1, 2]), json!([2, 0]), json!([30, 7]), json!([5, 0])];
    for (at, list, said) in [
        (0, json!([1]), "`attention_heads_per_block` has 1 numbers, but `num_layers` is 2"),
        (0, json!([3, 2]), "`attention_heads_per_block` is 3 in block 0, but must lie within 1..=2"),
        (1, json!([0, 0]), "`attention_2_heads_per_block` is 0 in block 0, but must lie within 1..=2"),
        (1, json!([1, 1]), "`attention_2_heads_per_block` is 1 in block 1, but must lie within 0..=0"),
        (2, json!([33, 1]), "`ffn_width_per_block` is 33"),
        (3, json!([]), "`ffn_context_width_per_block` has 0 numbers"),
        (3, json!("few"), "is not usable"),
    ] {
        let mut lists = fine.clone();
        lists[at] = list;
        let error = read(&sized(lists)).unwrap_err();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn lists_units_sites_and_linears_in_the_order_of_a_call() {
    let inventory = read(&keys()).unwrap().inventory();
    let names = |unit: usize| -> Vec<_> {
        let sites = inventory.units[unit].sites.iter().map(|id| inventory.site(*id));
        sites.flat_map(|site| site.linears.iter().map(|id| inventory.linear(*id).name.as_str())).collect()
    };
    let prefixed = |block: usize, names: &[&str]| -> Vec<_> {
        names.iter().map(|name| format!("transformer_blocks.{block}.{name}")).collect()
    };
    let first =
        ["attn.to_q", "attn.to_k", "attn.to_v", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"];
    let own = ["attn2.to_q", "attn2.to_k", "attn2.to_v"];
    assert_eq!(names(0), prefixed(0, &[&first[..], &own[..]].concat()));
    assert_eq!(names(1), prefixed(0, &["attn.to_out.0", "attn.to_add_out", "attn2.to_out.0"]));
    assert_eq!(names(2), prefixed(0, &["ff.net.0.proj", "ff_context.net.0.proj"]));
    assert_eq!(names(3), prefixed(0, &["ff.net.2", "ff_context.net.2"]));
    // The last block's text stream ends at its attention, but its queries, keys and values are there.
    assert_eq!(names(4), prefixed(1, &first));
    assert_eq!(names(5), prefixed(1, &["attn.to_out.0"]));
    assert_eq!(names(7), prefixed(1, &["ff.net.2"]));
    let units: Vec<_> = inventory.units.iter().map(|unit| unit.name.as_str()).collect();
    let of_block = ["attention-inputs", "attention-outputs", "ffn-inputs", "ffn-hidden"];
    assert_eq!(units, [of_block, of_block].concat());
    let hidden = inventory.site(inventory.units[3].sites[1]);
    assert_eq!(
        (
            hidden.width,
            inventory.stream(hidden.stream).name.as_str(),
            inventory.linear(hidden.linears[0]).rows
        ),
        (32, "text", 8)
    );
    assert_eq!(inventory.check(), Ok(()));
    for (i, site) in inventory.sites.iter().enumerate() {
        assert_eq!(site.name, inventory.linear(site.linears[0]).name);
        assert!(site.linears.iter().all(|id| inventory.linear(*id).site.0 as usize == i));
    }
}

/// SD3-medium's transformer has 2.03 billion parameters, SD3.5-large's 8.06.
#[test]
fn counts_the_published_models_parameters() {
    let mut keys = keys();
    for (key, value) in [
        ("attention_head_dim", json!(64)),
        ("joint_attention_dim", json!(4096)),
        ("pooled_projection_dim", json!(2048)),
        ("in_channels", json!(16)),
        ("pos_embed_max_size", json!(192)),
        ("sample_size", json!(128)),
        ("dual_attention_layers", json!([])),
    ] {
        keys[key] = value;
    }
    for (depth, norm, billions) in [(24, json!(null), 2.03), (38, json!("rms_norm"), 8.06)] {
        keys["num_layers"] = json!(depth);
        keys["num_attention_heads"] = json!(depth);
        keys["caption_projection_dim"] = json!(depth * 64);
        keys["qk_norm"] = norm;
        let found = read(&keys).unwrap().inventory().parameters as f64 / 1e9;
        assert!(
            (found - billions).abs() < 0.005 * billions,
            "{found} billion parameters, expected {billions}"
        );
    }
}

/// A checkpoint of small numbers, changed by `change`.
fn checkpoint(folder: &Path, change: impl Fn(&mut Vec<(String, Tensor)>)) -> Weights {
    let tensor = |(seed, (name, shape)): (u64, (String, Vec<usize>))| {
        (name, (noise(seed, &shape).unwrap() * 0.1).unwrap())
    };
    let mut tensors: Vec<_> = (0..).zip(read(&keys()).unwrap().shapes()).map(tensor).collect();
    change(&mut tensors);
    let file = folder.join("diffusion_pytorch_model.safetensors");
    candle_core::safetensors::save(&tensors.into_iter().collect(), &file).unwrap();
    Weights::open(folder, Library::Diffusers).unwrap()
}

fn load(weights: &Weights, dtype: DType) -> crate::Result<Sd3Transformer> {
    Sd3Transformer::load(read(&keys()).unwrap(), weights, dtype)
}

#[test]
fn refuses_checkpoints_that_are_not_the_configurations() {
    type Change = fn(&mut Vec<(String, Tensor)>);
    let cases: [(&str, Change, &str); 5] = [
        (
            "missing",
            |tensors| tensors.retain(|t| !t.0.ends_with("0.ff.net.2.bias")),
            "`transformer_blocks.0.ff.net.2.bias` is missing",
        ),
        (
            "shape",
            |tensors| tensors[0].1 = Tensor::zeros((1, 7, 8), DType::F32, &crate::HOST).unwrap(),
            "`pos_embed.pos_embed` has shape [1, 7, 8], but the configuration asks for [1, 36, 8]",
        ),
        (
            "unexpected",
            |tensors| tensors.push(("lora.weight".into(), tensors[1].1.clone())),
            "holds tensor `lora.weight`",
        ),
        (
            "type",
            |tensors| tensors[0].1 = tensors[0].1.to_dtype(DType::I64).unwrap(),
            "`pos_embed.pos_embed` is I64",
        ),
        (
            "infinite",
            |tensors| tensors[2].1 = (&tensors[2].1 / 0.0).unwrap(),
            "`pos_embed.proj.bias` holds a value that is not finite",
        ),
    ];
    for (case, change, said) in cases {
        let folder = tempfile::tempdir().unwrap();
        let error = load(&checkpoint(folder.path(), change), DType::F32).unwrap_err().to_string();
        assert!(error.contains(said), "{case}: {error}");
    }
    // Finite in f32, but not in the type it is to be computed in.
    let folder = tempfile::tempdir().unwrap();
    let weights = checkpoint(folder.path(), |tensors| tensors[2].1 = tensors[2].1.affine(0.0, 1e5).unwrap());
    assert!(load(&weights, DType::F32).is_ok());
    assert!(load(&weights, DType::F16).unwrap_err().to_string().contains("not finite"));
    assert!(load(&weights, DType::F64).unwrap_err().to_string().contains("not in F64"));
}

#[test]
fn refuses_calls_that_do_not_fit() {
    let folder = tempfile::tempdir().unwrap();
    let model = load(&checkpoint(folder.path(), |_| {}), DType::F32).unwrap();
    let call = |latents: &[usize], timestep: &[usize], text: &[usize], pooled: &[usize]| {
        let [latents, timestep, text, pooled] = [latents, timestep, text, pooled]
            .map(|shape| Tensor::zeros(shape, DType::F32, &crate::HOST).unwrap());
        let call =
            Denoise { latents: &latents, timestep: &timestep, text: &text, pooled: &pooled, guidance: None };
        model.forward(&call, &mut NoTap).map(|out| out.dims().to_vec()).map_err(|e| e.to_string())
    };
    assert_eq!(call(&[3, 2, 12, 4], &[3], &[3, 1, 6], &[3, 5]).unwrap(), [3, 2, 12, 4]);
    for (error, said) in [
        (call(&[3, 4, 12, 4], &[3], &[3, 1, 6], &[3, 5]), "latents have shape [3, 4, 12, 4]"),
        (call(&[0, 2, 12, 4], &[0], &[0, 1, 6], &[0, 5]), "latents have shape [0, 2, 12, 4]"),
        (call(&[3, 2, 12], &[3], &[3, 1, 6], &[3, 5]), "latents have shape [3, 2, 12]"),
        (call(&[3, 2, 12, 5], &[3], &[3, 1, 6], &[3, 5]), "latent width 5 is not a multiple"),
        (call(&[3, 2, 14, 4], &[3], &[3, 1, 6], &[3, 5]), "latent height 14 is 7 patches"),
        (call(&[3, 2, 12, 4], &[2], &[3, 1, 6], &[3, 5]), "timesteps have shape [2]"),
        (call(&[3, 2, 12, 4], &[3], &[3, 0, 6], &[3, 5]), "text tokens have shape [3, 0, 6]"),
        (call(&[3, 2, 12, 4], &[3], &[3, 1, 7], &[3, 5]), "text tokens have shape [3, 1, 7]"),
        (call(&[3, 2, 12, 4], &[3], &[3, 1, 6], &[1, 5]), "pooled embeddings have shape [1, 5]"),
    ] {
        let error = error.unwrap_err();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn a_replaced_linear_changes_the_prediction() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = load(&checkpoint(folder.path(), |_| {}), DType::F32).unwrap();
    let [latents, text] = [[1, 2, 4, 4].as_slice(), &[1, 3, 6]].map(|shape| noise(1, shape).unwrap());
    let (timestep, pooled) = (
        Tensor::new(&[3f32], &crate::HOST).unwrap(),
        Tensor::ones((1, 5), DType::F32, &crate::HOST).unwrap(),
    );
    let call =
        Denoise { latents: &latents, timestep: &timestep, text: &text, pooled: &pooled, guidance: None };
    let predict = |model: &Sd3Transformer| {
        model.forward(&call, &mut NoTap).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let dense = predict(&model);
    for id in model.inventory().linear_ids() {
        let old = model.weight(id).unwrap().clone();
        model.replace(id, old.zeros_like().unwrap()).unwrap();
        // Nobody reads the queries of the last block's text.
        let unread = model.inventory().linear(id).name == "transformer_blocks.1.attn.add_q_proj";
        assert_eq!(predict(&model) == dense, unread, "{}", model.inventory().linear(id).name);
        model.replace(id, old).unwrap();
        assert_eq!(predict(&model), dense);
    }
    let narrow = Tensor::zeros((8, 7), DType::F32, &crate::HOST).unwrap();
    let error = model.replace(LinearId(0), narrow).unwrap_err().to_string();
    assert!(
        error.contains("transformer_blocks.0.attn.to_q has shape [8, 8], but its replacement [8, 7]"),
        "{error}"
    );
    assert!(
        model.weight(LinearId(1000)).unwrap_err().to_string().contains("linear 1000 is not of this model")
    );
}

#[test]
fn flops_are_those_of_the_products() {
    let config = read(&keys()).unwrap();
    let of = |batch, image, text| config.flops(batch, image, text).total();
    // Linears grow with the tokens, attention with their square.
    let (linear, square) = (of(1, 100, 0) * 2.0, of(1, 200, 0));
    let quadratic = 2.0 * 2.0 * 8.0 * (2.0 * 100.0 * 100.0) * 3.0;
    let conditioning = of(1, 0, 0);
    assert_eq!(square - (linear - conditioning), quadratic);
}

#[test]
fn operations_of_a_forward_call_are_those_that_the_configuration_says() {
    let folder = tempfile::tempdir().unwrap();
    let model = load(&checkpoint(folder.path(), |_| {}), DType::F32).unwrap();
    let [latents, text, pooled] =
        [[2, 2, 4, 6].as_slice(), &[2, 3, 6], &[2, 5]].map(|shape| noise(1, shape).unwrap());
    let timestep = Tensor::new(&[3f32, 700.0], &crate::HOST).unwrap();
    let call =
        Denoise { latents: &latents, timestep: &timestep, text: &text, pooled: &pooled, guidance: None };
    let expected = model.config().flops(2, model.config().image_tokens(4, 6).unwrap(), 3).total();
    for calls in [1.0, 2.0] {
        model.forward(&call, &mut NoTap).unwrap();
        assert_eq!(model.operations() as f64, calls * expected);
    }
}
