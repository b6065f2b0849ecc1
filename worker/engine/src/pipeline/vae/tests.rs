use candle_core::IndexOp;
use serde_json::{Value, json};

use super::*;
use crate::pipeline::testing::{assert_near, asset, copy_folder, edit_json, save_formula};

type Tensors = Vec<(String, Vec<usize>)>;

fn conv(tensors: &mut Tensors, name: &str, inputs: usize, outputs: usize, kernel: usize) {
    tensors.push((format!("{name}.weight"), vec![outputs, inputs, kernel, kernel]));
    tensors.push((format!("{name}.bias"), vec![outputs]));
}

fn vectors(tensors: &mut Tensors, name: &str, channels: usize, weight: &[usize]) {
    tensors.push((format!("{name}.weight"), weight.to_vec()));
    tensors.push((format!("{name}.bias"), vec![channels]));
}

fn resnet(tensors: &mut Tensors, name: &str, inputs: usize, outputs: usize) {
    vectors(tensors, &format!("{name}.norm1"), inputs, &[inputs]);
    conv(tensors, &format!("{name}.conv1"), inputs, outputs, 3);
    vectors(tensors, &format!("{name}.norm2"), outputs, &[outputs]);
    conv(tensors, &format!("{name}.conv2"), outputs, outputs, 3);
    if inputs != outputs {
        conv(tensors, &format!("{name}.conv_shortcut"), inputs, outputs, 1);
    }
}

/// A decoder with two latent channels and two residual blocks at each size, filled by the formula.
fn decoder(channels: &[usize], attention: bool, config: Value) -> Vae {
    let (mut t, mut inputs) = (Tensors::new(), channels[channels.len() - 1]);
    conv(&mut t, "post_quant_conv", 2, 2, 1);
    conv(&mut t, "decoder.conv_in", 2, inputs, 3);
    for i in 0..2 {
        resnet(&mut t, &format!("decoder.mid_block.resnets.{i}"), inputs, inputs);
    }
    if attention {
        let name = "decoder.mid_block.attentions.0";
        vectors(&mut t, &format!("{name}.group_norm"), inputs, &[inputs]);
        for part in ["to_q", "to_k", "to_v", "to_out.0"] {
            vectors(&mut t, &format!("{name}.{part}"), inputs, &[inputs, inputs]);
        }
    }
    for (i, &outputs) in channels.iter().rev().enumerate() {
        let block = format!("decoder.up_blocks.{i}");
        for j in 0..2 {
            resnet(&mut t, &format!("{block}.resnets.{j}"), inputs, outputs);
            inputs = outputs;
        }
        if i + 1 < channels.len() {
            conv(&mut t, &format!("{block}.upsamplers.0.conv"), outputs, outputs, 3);
        }
    }
    vectors(&mut t, "decoder.conv_norm_out", inputs, &[inputs]);
    conv(&mut t, "decoder.conv_out", inputs, 3, 3);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    save_formula(&folder.path().join("diffusion_pytorch_model.safetensors"), &t);
    Vae::open(folder.path(), &ComputeDevice::Cpu).unwrap()
}

fn cosines(shape: [usize; 4]) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| (0.7 * i as f64).cos() as f32).collect();
    Tensor::from_vec(values, shape.as_slice(), &crate::HOST).unwrap()
}

fn pixel(picture: &Tensor, row: usize, column: usize) -> Vec<f32> {
    picture.i((0, .., row, column)).unwrap().to_vec1().unwrap()
}

/// Numbers printed by diffusers 0.33.1.
#[test]
fn a_decoder_without_attention_and_with_a_convolution_after_quantisation() {
    let config = json!({"block_out_channels": [4, 8, 4], "latent_channels": 2, "norm_num_groups": 2,
        "mid_block_add_attention": false, "scaling_factor": 0.5, "shift_factor": null});
    let picture = decoder(&[4, 8, 4], false, config).decode(&cosines([1, 2, 3, 2])).unwrap();
    assert_eq!(picture.dims(), [1, 3, 12, 8]);
    assert_near(&pixel(&picture, 0, 0), &[-0.241_219_58, -0.036_335_73, 0.184_151_44], 1e-5);
    assert_near(&pixel(&picture, 5, 3), &[-0.207_003_3, -0.604_190_65, -0.478_833_53], 1e-5);
    assert_near(&pixel(&picture, 11, 7), &[-0.351_208_42, -0.018_238_626, 0.314_178_7], 1e-5);
}

/// 1400 pixels of attention: more than are scored at once.
#[test]
fn attention_in_parts_is_that_of_all_pixels() {
    let config = json!({"block_out_channels": [4], "latent_channels": 2, "norm_num_groups": 2,
        "scaling_factor": 2.0, "shift_factor": 0.25, "up_block_types": ["UpDecoderBlock2D"]});
    let picture = decoder(&[4], true, config).decode(&cosines([1, 2, 35, 40])).unwrap();
    assert_near(&pixel(&picture, 0, 0), &[-0.097_378_79, 0.031_392_522, 0.115_304_19], 1e-5);
    assert_near(&pixel(&picture, 34, 39), &[0.087_383_84, 0.088_315_36, -0.006_429_523], 1e-5);
    let mean: f32 = picture.abs().unwrap().mean_all().unwrap().to_scalar().unwrap();
    assert_near(&[mean], &[0.821_485_6], 1e-5);
}

#[test]
fn a_batch_is_decoded_as_its_pictures_are() {
    let vae = Vae::open(&asset("vae"), &ComputeDevice::Cpu).unwrap();
    let latents = cosines([2, 4, 6, 4]);
    let both: Vec<f32> =
        vae.decode(&latents).unwrap().i(1).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let one = vae.decode(&latents.narrow(0, 1, 1).unwrap()).unwrap();
    assert_eq!(both, one.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    let error = vae.decode(&cosines([1, 3, 4, 4])).unwrap_err().to_string();
    assert!(error.contains("[1, 3, 4, 4] have not the 4 channels"), "{error}");
}

#[test]
fn pictures_are_rounded_as_diffusers_rounds_them() {
    let row = [-1.2_f32, -1.0, -0.5, 0.0, 1.0 / 255.0, 3.0 / 255.0, 0.3, 0.999, 1.0, 7.0];
    let decoded = Tensor::new(&row, &crate::HOST).unwrap().reshape((1, 1, 1, 10)).unwrap();
    let black = Tensor::full(-1.0_f32, (1, 1, 1, 10), &crate::HOST).unwrap();
    let pictures = Picture::of_batch(&Tensor::cat(&[&decoded, &black, &black], 1).unwrap()).unwrap();
    assert_eq!((pictures.len(), pictures[0].width, pictures[0].height), (1, 10, 1));
    let red: Vec<u8> = pictures[0].rgb.iter().copied().step_by(3).collect();
    assert_eq!(red, [0, 0, 64, 128, 128, 129, 166, 255, 255, 255]);
    assert!(pictures[0].rgb.iter().skip(1).step_by(3).all(|&green| green == 0));
    let broken = Tensor::full(f32::NAN, (1, 3, 2, 2), &crate::HOST).unwrap();
    let error = Picture::of_batch(&broken).unwrap_err().to_string();
    assert!(error.contains("not finite"), "{error}");
    let error = Picture::of_batch(&black).unwrap_err().to_string();
    assert!(error.contains("[1, 1, 1, 10]"), "{error}");
}

#[test]
fn configurations_that_are_not_supported_are_refused() {
    let cases = [
        ("act_fn", json!("mish"), "`act_fn` is \"mish\", but obsdiff supports \"silu\""),
        ("out_channels", json!(4), "`out_channels` is 4"),
        ("norm_num_groups", json!(7), "`norm_num_groups` is 7, but it must divide 32"),
        ("block_out_channels", json!([]), "`block_out_channels` is []"),
        ("block_out_channels", json!([16, "x"]), "`block_out_channels` is [16,\"x\"]"),
        ("up_block_types", json!(["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]), "AttnUpDecoderBlock2D"),
        ("scaling_factor", json!(0), "`scaling_factor` is 0, but it must not be 0"),
        ("scaling_factor", Value::Null, "`scaling_factor` is null, but only a key that is left out"),
        ("block_out_channels", Value::Null, "`block_out_channels` is null"),
        ("layers_per_block", json!(2), "`decoder.up_blocks.0.resnets.2.norm1.weight` is missing"),
        ("latent_channels", json!(5), "`decoder.conv_in.weight` has shape [32, 4, 3, 3]"),
        ("use_post_quant_conv", json!(true), "`post_quant_conv.weight` is missing"),
    ];
    for (key, value, message) in cases {
        let folder = copy_folder("vae");
        edit_json(&folder.path().join("config.json"), |config| config[key] = value);
        let error = Vae::open(folder.path(), &ComputeDevice::Cpu).unwrap_err().to_string();
        assert!(error.contains(message), "{key}: {error}");
    }
    // To Python, null is false.
    let folder = copy_folder("vae");
    edit_json(&folder.path().join("config.json"), |config| config["use_post_quant_conv"] = Value::Null);
    Vae::open(folder.path(), &ComputeDevice::Cpu).unwrap();
}
