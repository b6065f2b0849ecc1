use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::t5::T5Encoder;
use super::*;
use crate::pipeline::testing::{assert_near, asset, copy_folder, edit_json, save_formula};

fn encode(pipeline: &Path, prompts: &[&str]) -> Result<Vec<Conditioning>> {
    let encoders = PipelineFolder::open(pipeline)?.text_encoders(24)?;
    encoders.encode(prompts, &mut |_, _| {})
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn a_prompt_is_encoded_once_and_by_itself() {
    let encoders = PipelineFolder::open(&asset("")).unwrap().text_encoders(24).unwrap();
    let mut seen = Vec::new();
    let many = encoders
        .encode(&["a ring", "", "a ring", "on grey"], &mut |done, total| seen.push((done, total)))
        .unwrap();
    assert_eq!(seen.len(), 3 * 6, "three distinct prompts, two layers in each of three encoders");
    assert!(seen.is_sorted() && seen.iter().all(|&(_, total)| total == seen[17].0));
    assert_eq!(numbers(&many[0].text), numbers(&many[2].text));
    assert_ne!(numbers(&many[0].text), numbers(&many[1].text));
    let alone = encoders.encode(&["on grey"], &mut |_, _| {}).unwrap();
    assert_eq!(numbers(&many[3].text), numbers(&alone[0].text));
    assert_eq!(numbers(&many[3].pooled), numbers(&alone[0].pooled));
    assert!(encoders.encode(&[], &mut |_, _| {}).unwrap().is_empty());
}

/// Sums printed by diffusers 0.33.1 for the shipped pipeline with `text_encoder_3=None`; the zeros are those of 0.36 and later.
#[test]
fn without_t5_its_tokens_are_as_many_zeros() {
    let pipeline = copy_folder("");
    edit_json(&pipeline.path().join("model_index.json"), |index| {
        index["text_encoder_3"] = json!([null, null]);
        index["tokenizer_3"] = json!([null, null]);
    });
    // Another number than CLIP's tokens, 24.
    let encoders = PipelineFolder::open(pipeline.path()).unwrap().text_encoders(99).unwrap();
    assert_eq!((encoders.tokens(), encoders.token_ids("a ring").unwrap().len()), (24 + 99, 2));
    let encoded = encoders.encode(&["a green triangle on black"], &mut |_, _| {}).unwrap().remove(0);
    assert_eq!(encoded.text.dims(), [24 + 99, 96]);
    let sum = |numbers: &[f32]| numbers.iter().map(|x| f64::from(x.abs())).sum::<f64>();
    let text = numbers(&encoded.text);
    assert!((sum(&text[..24 * 96]) - 1_851.341_107).abs() < 1e-3, "{}", sum(&text));
    assert!(text[24 * 96..].iter().all(|&x| x == 0.0));
    assert!((sum(&numbers(&encoded.pooled)) - 67.099_945).abs() < 1e-3);
}

/// An old configuration gives 2 for every end token: the largest id is meant.
#[test]
fn the_end_of_a_prompt_is_found_by_an_old_configuration() {
    let prompts = ["a ring on the left"];
    let expected = encode(&asset(""), &prompts).unwrap().remove(0);
    for (eos, same) in [(2, true), (64, false)] {
        let pipeline = copy_folder("");
        edit_json(&pipeline.path().join("text_encoder/config.json"), |config| {
            config["eos_token_id"] = json!(eos)
        });
        let found = encode(pipeline.path(), &prompts).unwrap().remove(0);
        assert_eq!(numbers(&found.pooled) == numbers(&expected.pooled), same, "{eos}");
        assert_eq!(numbers(&found.text), numbers(&expected.text));
    }
}

/// Numbers printed by transformers 4.51.3 for a T5 1.0, which has no gate, filled by the formula.
#[test]
fn an_ungated_t5_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({"vocab_size": 11, "d_model": 8, "d_kv": 3, "d_ff": 12, "num_layers": 2, "num_heads": 2,
        "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "feed_forward_proj": "relu"});
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
    let mut tensors: Vec<(String, Vec<usize>)> = vec![
        ("encoder.embed_tokens.weight".to_owned(), vec![11, 8]),
        (bias.to_owned(), vec![8, 2]),
        ("encoder.final_layer_norm.weight".to_owned(), vec![8]),
    ];
    for block in 0..2 {
        for (name, shape) in [
            ("0.SelfAttention.q", vec![6, 8]),
            ("0.SelfAttention.k", vec![6, 8]),
            ("0.SelfAttention.v", vec![6, 8]),
            ("0.SelfAttention.o", vec![8, 6]),
            ("0.layer_norm", vec![8]),
            ("1.DenseReluDense.wi", vec![12, 8]),
            ("1.DenseReluDense.wo", vec![8, 12]),
            ("1.layer_norm", vec![8]),
        ] {
            tensors.push((format!("encoder.block.{block}.layer.{name}.weight"), shape));
        }
    }
    save_formula(&folder.path().join("model.safetensors"), &tensors);
    let encoder = T5Encoder::open(folder.path(), 8).unwrap();
    let ids: &[u32] = &[3, 1, 4, 1, 5, 9, 2, 6, 5, 10, 0, 0];
    let rows: Vec<Vec<f32>> =
        encoder.encode(&[ids], ModelOps::default().text(), &mut |_| {}).unwrap()[0].to_vec2().unwrap();
    let first = [-0.000_122_875, -0.437_951_83, -0.774_080_46, -0.137_462_65];
    let last = [0.000_210_233_85, -0.020_495_558, 0.681_591_9, 0.028_815_513];
    assert_near(&rows[0][..4], &first, 1e-5);
    assert_near(&rows[11][..4], &last, 1e-5);
    let error = T5Encoder::open(folder.path(), 16).unwrap_err().to_string();
    assert!(error.contains("`d_model` is 8, but the transformer's `joint_attention_dim` is 16"), "{error}");
}

/// transformers writes the activation that it makes of `feed_forward_proj` to a key of its own, and reads that.
#[test]
fn the_activation_that_transformers_has_written_decides() {
    let encoded = |feed_forward: &str, dense: Value| {
        let pipeline = copy_folder("");
        edit_json(&pipeline.path().join("text_encoder_3/config.json"), |config| {
            config["feed_forward_proj"] = json!(feed_forward);
            config["dense_act_fn"] = dense;
        });
        encode(pipeline.path(), &["a ring"]).map(|mut encoded| numbers(&encoded.remove(0).text))
    };
    let gelu = encoded("gated-gelu", Value::Null).unwrap();
    assert_eq!(encoded("gated-gelu", json!("gelu_new")).unwrap(), gelu);
    let relu = encoded("gated-relu", Value::Null).unwrap();
    assert_eq!(encoded("gated-gelu", json!("relu")).unwrap(), relu);
    assert_ne!(relu, gelu);
    let error = encoded("gated-tanh", Value::Null).unwrap_err().to_string();
    assert!(error.contains("`feed_forward_proj` is \"gated-tanh\", but obsdiff supports"), "{error}");
}

/// transformers reads the same encoder in both cases.
#[test]
fn clip_is_read_from_the_files_of_a_whole_one_and_without_its_prefix() {
    let expected = encode(&asset(""), &["a ring"]).unwrap().remove(0);
    let whole: fn(&Path) = |folder| {
        edit_json(&folder.join("config.json"), |config| {
            *config = json!({ "model_type": "clip", "projection_dim": 7, "text_config": config.take() });
        });
    };
    let bare: fn(&Path) = |folder| {
        let path = folder.join("model.safetensors");
        let tensors = candle_core::safetensors::load(&path, &crate::HOST).unwrap().into_iter();
        let bare = |(name, tensor): (String, Tensor)| (name.replace("text_model.", ""), tensor);
        candle_core::safetensors::save(&tensors.map(bare).collect(), &path).unwrap();
    };
    for lay in [whole, bare] {
        let pipeline = copy_folder("");
        lay(&pipeline.path().join("text_encoder"));
        let found = encode(pipeline.path(), &["a ring"]).unwrap().remove(0);
        assert_eq!(numbers(&found.text), numbers(&expected.text));
        assert_eq!(numbers(&found.pooled), numbers(&expected.pooled));
    }
    let error = refused("text_encoder/config.json", "text_config", json!(3));
    assert!(error.contains("`text_config` is 3, but it must be an object"), "{error}");
}

fn refused(component: &str, key: &str, value: Value) -> String {
    let pipeline = copy_folder("");
    edit_json(&pipeline.path().join(component), |config| config[key] = value);
    encode(pipeline.path(), &["a ring"]).unwrap_err().to_string()
}

#[test]
fn configurations_that_do_not_fit_are_refused() {
    let (clip, t5) = ("text_encoder/config.json", "text_encoder_3/config.json");
    let cases = [
        (clip, "hidden_act", json!("tanh"), "`hidden_act` is \"tanh\", but obsdiff supports quick_gelu"),
        (clip, "num_attention_heads", json!(5), "`num_attention_heads` is 5"),
        (clip, "num_attention_heads", json!(0), "`num_attention_heads` is 0"),
        (clip, "max_position_embeddings", json!(23), "`max_position_embeddings` is 23"),
        (
            clip,
            "max_position_embeddings",
            json!(25),
            "has shape [24, 48], but the configuration asks for [25, 48]",
        ),
        (clip, "vocab_size", json!(582), "has shape [581, 48], but the configuration asks for [582, 48]"),
        (clip, "hidden_size", json!(64), "exceed the transformer's `joint_attention_dim`, 96"),
        (clip, "projection_dim", json!(40), "are not the transformer's `pooled_projection_dim`, 96"),
        (clip, "num_hidden_layers", json!(3), "text_model.encoder.layers.2.layer_norm1.weight` is missing"),
        (clip, "intermediate_size", json!(95), "has shape [96, 48], but the configuration asks for [95, 48]"),
        (t5, "vocab_size", json!(94), "has shape [95, 96], but the configuration asks for [94, 96]"),
        (t5, "d_model", json!(95), "`d_model` is 95"),
        (t5, "dense_act_fn", json!("tanh"), "`dense_act_fn` is \"tanh\", but obsdiff supports"),
        (t5, "is_gated_act", json!(false), "layer.1.DenseReluDense.wi.weight` is missing"),
        (t5, "is_gated_act", json!(1), "`is_gated_act` is 1, but it must be true or false"),
        (
            t5,
            "hidden_size",
            json!(95),
            "`hidden_size` is 95, but the transformer's `joint_attention_dim` is 96",
        ),
        (
            t5,
            "num_hidden_layers",
            json!(3),
            "`encoder.block.2.layer.1.DenseReluDense.wi_0.weight` is missing",
        ),
        (t5, "num_attention_heads", json!(5), "configuration asks for"),
        (clip, "layer_norm_eps", Value::Null, "`layer_norm_eps` is null, but only a key that is left out"),
        (t5, "relative_attention_num_buckets", json!(31), "it must be even"),
        (t5, "relative_attention_max_distance", json!(8), "it must be above a quarter"),
        (t5, "num_heads", json!(5), "configuration asks for"),
        (
            "tokenizer/tokenizer_config.json",
            "model_max_length",
            json!(25),
            "there is no position for every token",
        ),
    ];
    for (component, key, value, message) in cases {
        let error = refused(component, key, value);
        assert!(error.contains(message), "{component} {key}: {error}");
    }
    for tokens in [0, 513] {
        let error = PipelineFolder::open(&asset("")).unwrap().text_encoders(tokens).unwrap_err();
        assert!(error.to_string().contains(&format!("`calibration.max_sequence_length` is {tokens}")));
    }
}

#[test]
fn damaged_weights_are_refused() {
    let pipeline = copy_folder("");
    let path = pipeline.path().join("text_encoder_3/model.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &crate::HOST).unwrap();
    let full = tensors["shared.weight"].clone();
    tensors.insert("shared.weight".to_owned(), full.narrow(0, 0, 20).unwrap());
    candle_core::safetensors::save(&tensors, &path).unwrap();
    let error = encode(pipeline.path(), &["it's a ring"]).unwrap_err().to_string();
    assert!(error.contains("`shared.weight` has shape [20, 96], but the configuration asks for"), "{error}");
    let config = pipeline.path().join("text_encoder_3/config.json");
    edit_json(&config, |config| config["vocab_size"] = json!(20));
    let error = encode(pipeline.path(), &["it's a ring"]).unwrap_err().to_string();
    assert!(error.contains("`shared.weight` has 20 rows, but the tokenizer gives id"), "{error}");
    edit_json(&config, |config| config["vocab_size"] = json!(95));
    tensors.insert("shared.weight".to_owned(), (full * f64::NAN).unwrap());
    candle_core::safetensors::save(&tensors, &path).unwrap();
    let error = encode(pipeline.path(), &["it's a ring"]).unwrap_err().to_string();
    assert!(error.contains("text_encoder_3") && error.contains("not finite"), "{error}");
}
