//! The architecture's configuration, and what others ask of it.

use std::any::Any;
use std::path::Path;
use std::sync::Arc;

use candle_core::DType;
use obsdiff_engine::architecture::{
    Architecture, ConditioningWidths, Guidance, LatentLayout, PipelineDefaults, TransformerConfig,
};
use obsdiff_engine::checkpoint::{Weights, read_json};
use obsdiff_engine::model::DiffusionModel;
use obsdiff_engine::pipeline::{
    Conditioning, EncodedText, EncoderKind, EncoderSlot, EncoderWidths, LevelSource,
};
use obsdiff_engine::{Error, Result};
use obsdiff_proto::{
    FixedLayer, ForwardFlops, Inventory, Joined, Linear, LinearId, Site, SiteId, Stream, StreamId, Unit,
};
use serde::Deserialize;

use crate::model::TwoBranches;

/// Blocks whose two branches read one activation, and whose last linear reads both branches side by side.
pub(crate) static ARCHITECTURE: Architecture = Architecture {
    name: "two branches",
    pipeline_class: "TwoBranchPipeline",
    transformer_class: "TwoBranchTransformer2DModel",
    shrunk_class: "PrunedTwoBranchTransformer2DModel",
    text_encoders: &[EncoderSlot {
        encoder: "text_encoder",
        tokenizer: "tokenizer",
        kind: EncoderKind::Clip,
        optional: false,
    }],
    levels: LevelSource::Pipeline,
    true_guidance: false,
    read: |folder| Ok(Arc::new(read_json::<TwoBranchConfig>(&folder.join("config.json"))?)),
    small: || {
        Arc::new(TwoBranchConfig {
            blocks: 2,
            channels: 4,
            width: 16,
            wide_branch: 24,
            narrow_branch: 8,
            text_width: 16,
        })
    },
};

/// Latent pixels on a side of a token.
pub(crate) const PATCH: usize = 2;

/// The sizes of such a transformer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct TwoBranchConfig {
    pub(crate) blocks: usize,
    pub(crate) channels: usize,
    pub(crate) width: usize,
    pub(crate) wide_branch: usize,
    pub(crate) narrow_branch: usize,
    pub(crate) text_width: usize,
}

impl TwoBranchConfig {
    pub(crate) fn token_features(&self) -> usize {
        PATCH * PATCH * self.channels
    }

    /// The linears of a block with their rows and columns, in the order of their ids. Only the wide branch has a bias.
    pub(crate) fn block_linears(&self) -> [(&'static str, usize, usize); 3] {
        [
            ("wide", self.wide_branch, self.width),
            ("narrow", self.narrow_branch, self.width),
            ("merge", self.width, self.wide_branch + self.narrow_branch),
        ]
    }
}

impl TransformerConfig for TwoBranchConfig {
    fn architecture(&self) -> &'static Architecture {
        &ARCHITECTURE
    }

    fn defaults(&self) -> PipelineDefaults {
        PipelineDefaults { guidance: 2.0, max_sequence_length: 64 }
    }

    fn inventory(&self) -> Inventory {
        let mut inventory = Inventory {
            streams: vec![Stream::new("image", 1, false)],
            fixed: ["embed", "context", "predict"]
                .map(|name| FixedLayer { name: name.to_owned(), parameters: 0 })
                .to_vec(),
            ..Inventory::default()
        };
        for (name, shape) in self.shapes() {
            let parameters = shape.iter().product::<usize>() as u64;
            inventory.parameters += parameters;
            if let Some(layer) = inventory.fixed.iter_mut().find(|layer| name.starts_with(&layer.name)) {
                layer.parameters += parameters;
            }
        }
        for block in 0..self.blocks as u32 {
            let (site, linear) = (2 * block, 3 * block);
            let path = |name: &str| format!("layers.{block}.{name}");
            for (index, (name, rows, _)) in (0..).zip(self.block_linears()) {
                let site = SiteId(site + index / 2);
                inventory.linears.push(Linear { name: path(name), rows, bias: name == "wide", site });
            }
            let (wide, both) = (self.wide_branch, self.wide_branch + self.narrow_branch);
            let joined = |name: &str, columns| Joined { name: name.to_owned(), columns };
            inventory.sites.push(Site {
                name: path("wide"),
                width: self.width,
                stream: StreamId(0),
                joined: Vec::new(),
                linears: vec![LinearId(linear), LinearId(linear + 1)],
            });
            inventory.sites.push(Site {
                name: path("merge"),
                width: both,
                stream: StreamId(0),
                joined: vec![joined("wide", 0..wide), joined("narrow", wide..both)],
                linears: vec![LinearId(linear + 2)],
            });
            let unit = |name: &str, site| Unit { block, name: name.to_owned(), sites: vec![SiteId(site)] };
            inventory.units.extend([unit("branches", site), unit("merge", site + 1)]);
        }
        inventory
    }

    fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let mut shapes = vec![
            ("embed.weight".to_owned(), vec![self.width, self.token_features()]),
            ("context.weight".to_owned(), vec![self.width, self.text_width]),
            ("predict.weight".to_owned(), vec![self.token_features(), self.width]),
        ];
        for block in 0..self.blocks {
            for (name, rows, columns) in self.block_linears() {
                shapes.push((format!("layers.{block}.{name}.weight"), vec![rows, columns]));
            }
            shapes.push((format!("layers.{block}.wide.bias"), vec![self.wide_branch]));
        }
        shapes
    }

    fn check(&self, weights: &Weights) -> Result<()> {
        let found = weights.entries().count();
        let expected = self.shapes().len();
        if found == expected {
            return Ok(());
        }
        Err(Error::Argument(format!("the checkpoint has {found} tensors, but {expected} are expected")))
    }

    fn load(&self, weights: &Weights, dtype: DType) -> Result<Box<dyn DiffusionModel>> {
        Ok(Box::new(TwoBranches::load(self, weights, dtype)?))
    }

    fn flops(&self, batch: usize, image: usize, _: usize) -> ForwardFlops {
        let block: usize = self.block_linears().iter().map(|(_, rows, columns)| rows * columns).sum();
        let tokens = |weights: usize| 2.0 * (batch * image * weights) as f64;
        let embedded = tokens(self.token_features() * self.width);
        ForwardFlops {
            start: embedded + 2.0 * (batch * self.text_width * self.width) as f64,
            blocks: vec![tokens(block); self.blocks],
            finish: embedded,
        }
    }

    fn activation_bytes(&self, batch: usize, image: usize, _: usize, dtype: DType) -> u64 {
        let features = self.width + 2 * (self.wide_branch + self.narrow_branch);
        (batch * image * features * dtype.size_in_bytes()) as u64
    }

    fn kept_bytes(&self, _: usize, _: usize, _: usize, _: DType) -> u64 {
        0
    }

    fn state_bytes(&self, batch: usize, image: usize, text: usize, dtype: DType) -> u64 {
        (batch * (image + text) * self.width * dtype.size_in_bytes()) as u64
    }

    fn latents(&self) -> LatentLayout {
        LatentLayout {
            channels: self.channels,
            patch: PATCH,
            sample: 16,
            max_patches: 64,
            channels_key: "`channels`",
        }
    }

    fn conditioning(&self) -> ConditioningWidths {
        ConditioningWidths { text: self.text_width, pooled: self.text_width }
    }

    fn guidance(&self, scale: f64) -> Guidance {
        Guidance { classifier_free: scale, input: None }
    }

    fn text_tokens(&self, encoders: &[Option<usize>], _: usize) -> usize {
        encoders.iter().flatten().sum()
    }

    fn check_encoders(&self, encoders: &[Option<EncoderWidths>]) -> Result<(), (usize, String)> {
        let found = encoders.first().copied().flatten().map_or(0, |encoder| encoder.hidden);
        if found == self.text_width {
            return Ok(());
        }
        Err((0, format!("gives {found} features, but `text_width` is {}", self.text_width)))
    }

    fn join_texts(&self, texts: &[Option<EncodedText>], _: usize) -> Result<Conditioning> {
        let [Some(text)] = texts else {
            return Err(Error::Argument("one text encoder is expected".to_owned()));
        };
        Ok(Conditioning { text: text.hidden.clone(), pooled: text.pooled()?.clone() })
    }

    fn with_fewer_blocks(&self, _: u64) -> Arc<dyn TransformerConfig> {
        Arc::new(Self { blocks: 1, ..self.clone() })
    }

    fn shrunk(&self, _: &[usize]) -> Arc<dyn TransformerConfig> {
        Arc::new(self.clone())
    }

    fn shrunk_files(&self, _: &Path) -> Result<Vec<(String, Vec<u8>)>> {
        Err(Error::Argument("blocks of two branches have no heads or neurons to remove".to_owned()))
    }

    fn same_but_for_blocks(&self, other: &dyn TransformerConfig) -> bool {
        let other: &dyn Any = other;
        other.downcast_ref() == Some(self)
    }
}
