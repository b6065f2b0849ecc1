//! What pruning the published models takes, from their configurations alone. The numbers expected were computed apart from this code,
//! from the shapes of the models' linears.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::assets;
use obsdiff_core::cost::{GramTotals, Tokens};
use obsdiff_core::packages_within;
use obsdiff_engine::architecture::read_config;
use obsdiff_proto::{Accumulate, ByteSize, Inventory, JobSpec};

/// Image tokens of a picture of 1024 x 1024 pixels, whose latents are 128 x 128.
const IMAGE: u64 = 4096;
/// Bytes of the memory that packages may be cut to.
const MEMORIES: [u64; 3] = [24_000_000_000, 48_000_000_000, 80_000_000_000];

/// What is known of a published model.
struct Published {
    name: &'static str,
    /// Text tokens: of CLIP and T5 together, or of T5 alone.
    text: u64,
    parameters: u64,
    grams: usize,
    square_bytes: u64,
    packed_bytes: u64,
    forward_flops: f64,
    gram_flops: f64,
    /// Fewest packages whose Grams take at most so much memory.
    packages: [u32; 3],
}

const PUBLISHED: [Published; 5] = [
    Published {
        name: "sd3-medium",
        text: 333,
        parameters: 2_028_328_000,
        grams: 189,
        square_bytes: 8_436_842_496,
        packed_bytes: 8_438_870_016,
        forward_flops: 8_893_704_726_528.0,
        gram_flops: 4_751_889_030_144.0,
        packages: [1, 1, 1],
    },
    Published {
        name: "sd3.5-medium",
        text: 333,
        parameters: 2_243_171_520,
        grams: 215,
        square_bytes: 8_682_209_280,
        packed_bytes: 8_684_396_544,
        forward_flops: 11_238_940_895_232.0,
        gram_flops: 5_003_308_194_816.0,
        packages: [1, 1, 1],
    },
    Published {
        name: "sd3.5-large",
        text: 333,
        parameters: 8_056_627_520,
        grams: 301,
        square_bytes: 33_737_015_296,
        packed_bytes: 33_742_132_224,
        forward_flops: 31_102_828_359_168.0,
        gram_flops: 18_880_825_978_368.0,
        packages: [2, 1, 1],
    },
    Published {
        name: "flux.1-dev",
        text: 512,
        parameters: 11_901_408_320,
        grams: 228,
        // 64.6 GB.
        square_bytes: 64_550_338_560,
        packed_bytes: 64_556_408_832,
        forward_flops: 74_384_653_418_496.0,
        gram_flops: 58_668_457_918_464.0,
        packages: [3, 2, 1],
    },
    Published {
        name: "flux.1-schnell",
        text: 256,
        parameters: 11_891_178_560,
        grams: 228,
        square_bytes: 64_550_338_560,
        packed_bytes: 64_556_408_832,
        forward_flops: 69_466_626_981_888.0,
        gram_flops: 55_409_099_145_216.0,
        packages: [3, 2, 1],
    },
];

/// The inventory of a published model, and the operations of one forward call on one picture of 1024 x 1024 pixels.
fn read(published: &Published) -> (Inventory, f64) {
    let config = read_config(&assets().join("published").join(published.name)).unwrap();
    assert_eq!((1024 / 8 / config.latents().patch as u64).pow(2), IMAGE, "{}", published.name);
    (config.inventory(), config.flops(1, IMAGE as usize, published.text as usize).total())
}

fn spec() -> JobSpec {
    serde_json::from_value(serde_json::json!({
        "model": { "path": "m" }, "sparsity": { "pattern": "unstructured", "ratio": 0.5 },
        "calibration": { "prompts": "p.txt", "count": 100, "steps": 28 }, "output": { "path": "out" }
    }))
    .unwrap()
}

#[test]
fn published_models_come_to_their_known_sizes() {
    for published in &PUBLISHED {
        let name = published.name;
        let (inventory, forward) = read(published);
        assert_eq!(inventory.check(), Ok(()), "{name}");
        assert_eq!(inventory.parameters, published.parameters, "{name}");
        let prunable: u64 = inventory.linears.iter().map(|linear| inventory.parameters_of(linear)).sum();
        let fixed: u64 = inventory.fixed.iter().map(|layer| layer.parameters).sum();
        assert_eq!(prunable + fixed, inventory.parameters, "{name}");

        let tokens = Tokens { image: IMAGE, text: published.text, branches: 1 };
        let totals = GramTotals::new(&inventory, Accumulate::Exact, tokens);
        let expected = GramTotals {
            count: published.grams,
            square_bytes: published.square_bytes,
            packed_bytes: published.packed_bytes,
            flops: published.gram_flops,
        };
        assert_eq!(totals, expected, "{name}");
        assert_eq!(forward, published.forward_flops, "{name}");
        let packed = GramTotals::new(&inventory, Accumulate::F32, tokens).packed_bytes;
        assert_eq!(packed * 2, published.packed_bytes, "{name}");

        for (memory, packages) in MEMORIES.into_iter().zip(published.packages) {
            let fewest = packages_within(&spec(), &inventory, tokens, ByteSize(memory)).unwrap();
            assert_eq!(fewest, Some(packages), "{name} in {memory} bytes");
        }
        println!(
            "{name}: {:.2} billion parameters, {:.1}% can be pruned; {} Grams, {:.1} GB as squares of f32; a forward call takes {:.1} \
             TFLOP, its Grams {:.1}",
            inventory.parameters as f64 / 1e9,
            100.0 * prunable as f64 / inventory.parameters as f64,
            totals.count,
            totals.square_bytes as f64 / 1e9,
            forward / 1e12,
            totals.flops / 1e12,
        );
    }
}
