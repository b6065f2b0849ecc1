//! What diffusers computed: small transformers, their outputs, and the Gram of every linear's input.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use obsdiff_engine::Result;
use obsdiff_engine::architecture::flux::{FluxConfig, FluxTransformer};
use obsdiff_engine::architecture::sd3::{Sd3Config, Sd3Transformer};
use obsdiff_engine::checkpoint::{Library, Weights};
use obsdiff_engine::device::ComputeDevice;
use obsdiff_engine::model::{Denoise, DiffusionModel, Matrix, Tap};
use obsdiff_proto::SiteId;
use obsdiff_tests::goldens;

/// A golden transformer with the call it was recorded for.
pub(crate) struct Golden {
    name: &'static str,
    folder: PathBuf,
    pub(crate) model: Box<dyn DiffusionModel + Sync>,
    tensors: HashMap<String, Tensor>,
}

impl Golden {
    /// The transformer with its blocks on a device.
    pub(crate) fn open(name: &'static str, dtype: DType, device: &ComputeDevice) -> Self {
        let folder = goldens().join("transformers").join(name);
        let tensors =
            candle_core::safetensors::load(folder.join("forward.safetensors"), &Device::Cpu).unwrap();
        let mut model = open(&folder, dtype);
        model.move_blocks(device);
        Self { name, model, folder, tensors }.unpacked()
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

    pub(crate) fn call(&self) -> Denoise<'_> {
        Denoise {
            latents: &self.tensors["hidden_states"],
            timestep: &self.tensors["timestep"],
            text: &self.tensors["encoder_hidden_states"],
            pooled: &self.tensors["pooled_projections"],
            guidance: self.tensors.get("guidance"),
        }
    }

    /// Bytes of a GPU's memory that its configuration predicts for the call.
    #[allow(dead_code)]
    pub(crate) fn predicted_gpu_bytes(&self, dtype: DType) -> u64 {
        let config = obsdiff_engine::architecture::read_config(&self.folder).unwrap();
        let (batch, _, height, width) = self.call().latents.dims4().unwrap();
        let image = height * width / config.latents().patch.pow(2);
        config.gpu_activation_bytes(batch, image, self.call().text.dim(1).unwrap(), dtype)
    }

    pub(crate) fn forward(&self, tap: &mut dyn Tap) -> Tensor {
        self.model.forward(&self.call(), tap).unwrap()
    }

    /// Deviations of the output and of the worst Gram.
    pub(crate) fn deviations(&self) -> (f64, f64) {
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

pub(crate) fn open(folder: &Path, dtype: DType) -> Box<dyn DiffusionModel + Sync> {
    let weights = Weights::open(folder, Library::Diffusers).unwrap();
    match Sd3Config::read(folder) {
        Ok(config) => Box::new(Sd3Transformer::load(config, &weights, dtype).unwrap()),
        Err(_) => {
            let config = FluxConfig::read(folder).unwrap();
            Box::new(FluxTransformer::load(config, &weights, dtype).unwrap())
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
