//! The transformers hold what diffusers computed: outputs, and the Gram of every linear's input.
#![allow(clippy::unwrap_used)]

mod golden;

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use golden::{Golden, open};
use obsdiff_engine::Result;
use obsdiff_engine::device::ComputeDevice;
use obsdiff_engine::model::{Denoise, Matrix, NoTap, State, Tap};
use obsdiff_proto::SiteId;

fn golden(name: &'static str, dtype: DType) -> Golden {
    Golden::open(name, dtype, &ComputeDevice::Cpu)
}

#[test]
fn outputs_and_grams_hold() {
    for name in ["sd3-medium", "sd35-large", "sd35-medium", "flux-dev", "flux-schnell"] {
        let (output, gram) = golden(name, DType::F32).deviations();
        assert!(output < 2e-4, "{name}: output deviates by {output:e}");
        assert!(gram < 2e-4, "{name}: a Gram deviates by {gram:e}");
    }
}

#[test]
fn half_precision_stays_close() {
    for (name, dtype, limit) in [
        ("sd3-medium", DType::BF16, 0.03),
        ("sd35-medium", DType::BF16, 0.03),
        ("sd35-large", DType::F16, 0.005),
        ("flux-dev", DType::BF16, 0.03),
        ("flux-schnell", DType::F16, 0.005),
    ] {
        let (output, gram) = golden(name, dtype).deviations();
        assert!(output < limit && gram < limit, "{name} in {dtype:?}: output {output:e}, a Gram {gram:e}");
    }
}

/// The trained pipeline's transformer, with a batch and numbers of threads that do not divide each other.
#[test]
fn bytes_do_not_depend_on_the_number_of_threads() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/assets/shapes-sd3/transformer"));
    let model = open(folder, DType::F32);
    let wave = |shape: &[usize]| {
        let count: usize = shape.iter().product();
        Tensor::from_vec((0..count).map(|i| (i as f32).sin()).collect(), shape, &Device::Cpu).unwrap()
    };
    let [latents, text, pooled] = [wave(&[3, 4, 14, 16]), wave(&[3, 31, 96]), wave(&[3, 96])];
    let timestep = Tensor::new(&[1f32, 500., 999.], &Device::Cpu).unwrap();
    let call =
        Denoise { latents: &latents, timestep: &timestep, text: &text, pooled: &pooled, guidance: None };
    let outputs = [1, 2, 5].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let output = pool.install(|| model.forward(&call, &mut NoTap).unwrap());
        output.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    });
    assert!(outputs[0].iter().all(|x| x.is_finite()));
    assert!(outputs[0] == outputs[1] && outputs[0] == outputs[2]);
}

/// What a tap holds on to stays as it was, whatever the model does with its buffers later.
#[test]
fn an_observation_that_is_kept_stays() {
    #[derive(Default)]
    struct Keep(Vec<(Tensor, Vec<f32>)>);
    impl Tap for Keep {
        fn wants(&self, site: SiteId) -> bool {
            site.0.is_multiple_of(2)
        }

        fn observe(&mut self, _: SiteId, rows: &Matrix) -> Result<()> {
            let rows = rows.to_host()?;
            self.0.push((rows.clone(), rows.flatten_all()?.to_vec1()?));
            Ok(())
        }
    }
    for name in ["sd35-medium", "flux-dev"] {
        let golden = golden(name, DType::F32);
        let mut tap = Keep::default();
        let forward = |tap: &mut Keep| golden.forward(tap).flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(forward(&mut tap), forward(&mut tap));
        assert_eq!(tap.0.len(), 2 * golden.model.inventory().sites.len().div_ceil(2));
        for (rows, then) in tap.0 {
            assert_eq!(rows.flatten_all().unwrap().to_vec1::<f32>().unwrap(), then);
        }
    }
}

/// A call that is broken off between all blocks, and goes on from a file each time.
#[test]
fn a_saved_state_goes_on_to_the_same_prediction() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("state.safetensors");
    for (name, dtype) in [("sd35-medium", DType::F32), ("flux-dev", DType::F32), ("flux-dev", DType::BF16)] {
        let golden = golden(name, dtype);
        let flat =
            |t: Tensor| t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let expected = flat(golden.forward(&mut NoTap));
        let model = &golden.model;
        let mut state = model.start(&golden.call()).unwrap();
        for index in 0..model.block_count() {
            state.save(&file).unwrap();
            let loaded = State::load(&file).unwrap();
            assert!(loaded.tensors().map(|(name, _)| name).eq(state.tensors().map(|(name, _)| name)));
            state = model.block(index, loaded, &mut NoTap).unwrap();
        }
        let block =
            model.block(model.block_count(), state.copy().unwrap(), &mut NoTap).unwrap_err().to_string();
        assert!(block.contains(&format!("no block {}", model.block_count())), "{block}");
        assert!(flat(model.finish(state).unwrap()) == expected, "{name}");
    }
}

#[test]
fn a_state_that_does_not_fit_is_refused() {
    let golden = golden("flux-dev", DType::F32);
    let state = golden.model.start(&golden.call()).unwrap();
    // Single-stream blocks have not joined the streams yet.
    let error = golden.model.finish(state.copy().unwrap()).unwrap_err().to_string();
    assert!(error.contains("lacks `tokens`"), "{error}");
    let error = golden.model.block(0, State::default(), &mut NoTap).unwrap_err().to_string();
    assert!(error.contains("lacks `conditioning`"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("state.safetensors");
    let error = State::load(&missing).unwrap_err().to_string();
    assert!(error.contains("state.safetensors"), "{error}");
}
