use std::fs;

use candle_core::DType;
use serde_json::json;

use super::flux::FluxConfig;
use super::*;
use crate::calibrate::{Encoded, Trajectories};
use crate::pipeline::PipelineFolder;
use crate::pipeline::testing::{asset, copy_folder, edit_json};

/// The shipped pipelines' transformers.
fn shipped() -> [Arc<dyn TransformerConfig>; 2] {
    ["transformer", "../shapes-flux/transformer"].map(|folder| read_config(&asset(folder)).unwrap())
}

#[test]
fn a_configuration_is_read_as_its_class_says() {
    let [sd3, flux] = shipped();
    assert_eq!((sd3.latents().max_patches, flux.latents().max_patches), (16, 1024));
    let folder = copy_folder("transformer");
    for (class, said) in [(json!("UNet2DModel"), "is \"UNet2DModel\""), (json!(null), "is null")] {
        edit_json(&folder.path().join("config.json"), |config| config["_class_name"] = class.clone());
        let error = read_config(folder.path()).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
        assert!(error.contains("(supported: SD3Transformer2DModel, FluxTransformer2DModel)"), "{error}");
    }
}

#[test]
fn no_two_architectures_share_a_class() {
    let classes = SUPPORTED
        .iter()
        .flat_map(|known| known.transformer_classes().into_iter().chain([known.pipeline_class]));
    let mut classes: Vec<_> = classes.collect();
    let count = classes.len();
    classes.sort_unstable();
    classes.dedup();
    assert_eq!(classes.len(), count);
}

#[test]
fn fewer_blocks_fit_the_limit_and_keep_one_of_each_kind() {
    for whole in shipped() {
        let parameters = |config: &dyn TransformerConfig| config.inventory().parameters;
        let all = parameters(&*whole);
        let of = |limit: u64| whole.with_fewer_blocks(limit);
        assert_eq!(of(u64::MAX).inventory(), whole.inventory());
        assert!(parameters(&*of(all / 2)) <= all / 2);
        let least = of(1);
        assert!(parameters(&*least) < all / 2);
        // The names of linears without the numbers of their blocks.
        let kinds = |config: &dyn TransformerConfig| {
            let digits = |name: String| name.chars().filter(|c| !c.is_ascii_digit()).collect::<String>();
            let mut kinds: Vec<_> = config.shapes().into_iter().map(|(name, _)| digits(name)).collect();
            kinds.sort();
            kinds.dedup();
            kinds
        };
        assert_eq!(kinds(&*least), kinds(&*whole));
    }
}

#[test]
fn transformers_of_two_architectures_are_not_the_same() {
    let [sd3, flux] = shipped();
    assert!(sd3.same_but_for_blocks(&*sd3) && flux.same_but_for_blocks(&*flux));
    assert!(!sd3.same_but_for_blocks(&*flux) && !flux.same_but_for_blocks(&*sd3));
}

#[test]
fn text_tokens_are_those_that_the_encoders_give() {
    let [sd3, flux] = shipped();
    assert_eq!(sd3.text_tokens(&[Some(24), Some(24), Some(99)], 99), 24 + 99);
    assert_eq!(sd3.text_tokens(&[Some(24), Some(24), None], 99), 24 + 99);
    assert_eq!(flux.text_tokens(&[Some(24), Some(99)], 99), 99);
}

#[test]
fn defaults_are_those_of_diffusers() {
    let [sd3, flux] = shipped();
    assert_eq!(sd3.defaults(), PipelineDefaults { guidance: 7.0, max_sequence_length: 256 });
    assert_eq!(flux.defaults(), PipelineDefaults { guidance: 3.5, max_sequence_length: 512 });
    let schnell = read_config(&asset("../published/flux.1-schnell")).unwrap();
    assert_eq!(schnell.defaults(), PipelineDefaults { guidance: 0.0, max_sequence_length: 256 });
}

#[test]
fn guidance_acts_as_each_architecture_takes_it() {
    let [sd3, flux] = shipped();
    assert_eq!(sd3.guidance(4.0), Guidance { classifier_free: 4.0, input: None });
    assert_eq!((sd3.guidance(4.0).branches(), sd3.guidance(1.0).branches()), (2, 1));
    assert_eq!(flux.guidance(4.0), Guidance { classifier_free: 1.0, input: Some(4.0) });
    let open = |folder: &str| PipelineFolder::open(&asset(folder)).unwrap();
    assert_eq!(open("../shapes-flux").guidance(4.0, 2.0).unwrap().branches(), 2);
    let error = open("").guidance(4.0, 2.0).unwrap_err().to_string();
    assert!(error.contains("`calibration.true_guidance` is 2"), "{error}");
}

/// Registered here alone: FLUX.1 by other names, whose configuration lies elsewhere.
static THIRD: Architecture = Architecture {
    name: "a third",
    pipeline_class: "ThirdPipeline",
    transformer_class: "ThirdTransformer2DModel",
    shrunk_class: "PrunedThirdTransformer2DModel",
    read: |folder| Ok(Arc::new(FluxConfig::read(&folder.join("sizes"))?)),
    text_encoders: flux::ARCHITECTURE.text_encoders,
    levels: flux::ARCHITECTURE.levels,
    true_guidance: flux::ARCHITECTURE.true_guidance,
    small: flux::ARCHITECTURE.small,
};

#[test]
fn an_architecture_that_is_registered_here_runs() {
    let folder = copy_folder("../shapes-flux");
    let path = folder.path();
    edit_json(&path.join("model_index.json"), |index| {
        index["_class_name"] = json!("ThirdPipeline");
        index["transformer"] = json!(["diffusers", "ThirdTransformer2DModel"]);
    });
    let config = path.join("transformer/config.json");
    fs::create_dir(path.join("transformer/sizes")).unwrap();
    fs::copy(&config, path.join("transformer/sizes/config.json")).unwrap();
    edit_json(&config, |config| config["_class_name"] = json!("ThirdTransformer2DModel"));
    let error = PipelineFolder::open(path).unwrap_err().to_string();
    assert!(error.contains("(supported: StableDiffusion3Pipeline, FluxPipeline)"), "{error}");

    let known = [SUPPORTED[0], SUPPORTED[1], &THIRD];
    let latents = |pipeline: &PipelineFolder| {
        let encoders = pipeline.text_encoders(24).unwrap();
        let dtype = DType::F32;
        let encoded = Encoded::new(&encoders, &["a ring"], dtype, path, &mut |_, _| {}).unwrap();
        let size = pipeline.latent_size(Some(32), Some(32)).unwrap();
        let schedule = pipeline.schedule(2, size.tokens).unwrap();
        let guidance = pipeline.guidance(3.5, 1.0).unwrap();
        let trajectories = Trajectories::new(schedule, guidance, 0, size, encoded);
        let config = pipeline.transformer_config();
        let model = config.load(&pipeline.transformer_weights().unwrap(), DType::F32).unwrap();
        let latents = trajectories.final_latents(&*model, 0..1, &mut || Ok(())).unwrap();
        latents.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let third = PipelineFolder::open_as(path, &known).unwrap();
    assert_eq!(third.architecture().name, "a third");
    let flux = PipelineFolder::open_as(&asset("../shapes-flux"), &known).unwrap();
    assert!(latents(&third) == latents(&flux));
}
