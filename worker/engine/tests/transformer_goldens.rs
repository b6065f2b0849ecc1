//! The transformers hold what diffusers computed: outputs, and the Gram of every linear's input.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use obsdiff_engine::Result;
use obsdiff_engine::architecture::flux::{FluxConfig, FluxTransformer};
use obsdiff_engine::architecture::sd3::{Sd3Config, Sd3Transformer};
use obsdiff_engine::checkpoint::{Library, Weights};
use obsdiff_engine::model::{Denoise, DiffusionModel, Matrix, NoTap, State, Tap};
use obsdiff_proto::SiteId;

/// A golden transformer with the call it was recorded for.
struct Golden {
    name: &'static str,
    folder: PathBuf,
    model: Box<dyn DiffusionModel + Sync>,
    tensors: HashMap<String, Tensor>,
}

impl Golden {
    fn open(name: &'static str, dtype: DType) -> Self {
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/assets/goldens/transformers"));
        let folder = root.join(name);
        let tensors =
            candle_core::safetensors::load(folder.join("forward.safetensors"), &Device::Cpu).unwrap();
        Self { name, model: open(&folder, dtype), folder, tensors }.unpacked()
    }

    /// FLUX's goldens hold packed tokens of 4 x 6 squares, and timesteps from 0 to 1.
    fn unpacked(mut self) -> Self {
        if self.name.starts_with("flux") {
            for name in ["hidden_states", "output"] {
                let tensor = self.tensors.get_mut(name).unwrap();
                let (batch, _, features) = tensor.dims3().unwrap();
                let squares = tensor.reshape(&[batch, 4, 6, features / 4, 2, 2]).unwrap();
                let picture = squares.permute([0, 3, 1, 4, 2, 5]).unwrap();
                *tensor = picture.reshape((batch, features / 4, 8, 12)).unwrap();
            }
            let timestep = self.tensors.get_mut("timestep").unwrap();
            *timestep = (timestep.clone() * 1000.0).unwrap();
        }
        self
    }

    fn call(&self) -> Denoise<'_> {
        Denoise {
            latents: &self.tensors["hidden_states"],
            timestep: &self.tensors["timestep"],
            text: &self.tensors["encoder_hidden_states"],
            pooled: &self.tensors["pooled_projections"],
            guidance: self.tensors.get("guidance"),
        }
    }

    fn forward(&self, tap: &mut dyn Tap) -> Tensor {
        self.model.forward(&self.call(), tap).unwrap()
    }

    /// Deviations of the output and of the worst Gram.
    fn deviations(&self) -> (f64, f64) {
        let grams =
            candle_core::safetensors::load(self.folder.join("grams.safetensors"), &Device::Cpu).unwrap();
        let mut tap = Grams::default();
        let output = self.forward(&mut tap);
        let inventory = self.model.inventory();
        assert_eq!(tap.0.len(), inventory.sites.len(), "{}: every site is shown", self.name);
        // The AdaLN linears have golden Grams too, but are never pruned.
        let adaln = |name: &&String| {
            [".norm1.linear", ".norm1_context.linear", ".norm.linear"].iter().any(|end| name.ends_with(end))
        };
        let listed = grams.keys().filter(|name| !adaln(name)).count();
        assert_eq!(inventory.linears.len(), listed, "{}: every linear of a block is listed", self.name);
        let linears = inventory.linears.iter();
        let worst =
            linears.map(|linear| deviation(&tap.0[&linear.site], &grams[&linear.name])).fold(0.0, f64::max);
        let output = deviation(&output, &self.tensors["output"]);
        println!("{}: output {output:.1e}, worst of {listed} Grams {worst:.1e}", self.name);
        (output, worst)
    }
}

fn open(folder: &Path, dtype: DType) -> Box<dyn DiffusionModel + Sync> {
    let weights = Weights::open(folder, Library::Diffusers).unwrap();
    match Sd3Config::read(folder) {
        Ok(config) => Box::new(Sd3Transformer::load(config, &weights, dtype, &Device::Cpu).unwrap()),
        Err(_) => {
            let config = FluxConfig::read(folder).unwrap();
            Box::new(FluxTransformer::load(config, &weights, dtype, &Device::Cpu).unwrap())
        }
    }
}

/// Sums X^T X of every site in f64.
#[derive(Default)]
struct Grams(HashMap<SiteId, Tensor>);

impl Tap for Grams {
    fn wants(&self, _: SiteId) -> bool {
        true
    }

    fn observe(&mut self, site: SiteId, rows: &Matrix) -> Result<()> {
        let x = rows.to_host()?.to_dtype(DType::F64)?;
        let gram = x.t()?.matmul(&x)?;
        assert!(self.0.insert(site, gram).is_none(), "a forward call shows each site once");
        Ok(())
    }
}

/// Relative, by the Euclidean norm.
fn deviation(found: &Tensor, expected: &Tensor) -> f64 {
    let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
    let norm = |t: Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt();
    norm((wide(found) - wide(expected)).unwrap()) / norm(wide(expected))
}

#[test]
fn outputs_and_grams_hold() {
    for name in ["sd3-medium", "sd35-large", "sd35-medium", "flux-dev", "flux-schnell"] {
        let (output, gram) = Golden::open(name, DType::F32).deviations();
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
        let (output, gram) = Golden::open(name, dtype).deviations();
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
        let golden = Golden::open(name, DType::F32);
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
        let golden = Golden::open(name, dtype);
        let flat =
            |t: Tensor| t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let expected = flat(golden.forward(&mut NoTap));
        let model = &golden.model;
        let mut state = model.start(&golden.call()).unwrap();
        for index in 0..model.block_count() {
            state.save(&file).unwrap();
            let loaded = State::load(&file, &Device::Cpu).unwrap();
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
    let golden = Golden::open("flux-dev", DType::F32);
    let state = golden.model.start(&golden.call()).unwrap();
    // Single-stream blocks have not joined the streams yet.
    let error = golden.model.finish(state.copy().unwrap()).unwrap_err().to_string();
    assert!(error.contains("lacks `tokens`"), "{error}");
    let error = golden.model.block(0, State::default(), &mut NoTap).unwrap_err().to_string();
    assert!(error.contains("lacks `conditioning`"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("state.safetensors");
    let error = State::load(&missing, &Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("state.safetensors"), "{error}");
}
