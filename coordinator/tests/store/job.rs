//! A small job and what it leaves in a store.

use obsdiff_proto::message::{Manifest, PartId, Receipt};
use obsdiff_proto::{Digest, InputDigest, PackageId, SiteId};
use obsdiff_store::{JobRecord, Prompts};
use serde_json::json;

pub(crate) fn prompts() -> Prompts {
    let texts = |texts: [&str; 2]| texts.map(str::to_owned).into();
    Prompts { calibration: texts(["a red circle", "ein \"Würfel\"\n"]), held_out: texts(["a square", ""]) }
}

pub(crate) fn record() -> JobRecord {
    let spec = json!({
        "model": { "path": "pipeline" },
        "sparsity": { "pattern": "unstructured", "ratio": 0.5 },
        "calibration": { "prompts": "prompts.txt", "guidance": 0.1 + 0.2 },
        "output": { "path": "out" },
    });
    let input =
        |path: &str| InputDigest { path: path.to_owned(), sha256: Digest::of(path.as_bytes()).to_string() };
    JobRecord {
        release: "1".to_owned(),
        spec: serde_json::from_value(spec).unwrap(),
        model_files: vec![input("model.safetensors")],
        prompt_files: vec![input("prompts.txt")],
        prompts: prompts().digest().unwrap(),
        inventory: Digest::of(b"inventory"),
        plan: Digest::of(b"plan"),
    }
}

/// Something as long as some weights, with this byte in it.
pub(crate) fn weights(byte: u8) -> Vec<u8> {
    (0..5000).map(|i| (i as u8).wrapping_mul(byte)).collect()
}

/// A manifest with a part for each receipt.
pub(crate) fn manifest(package: u32, receipts: impl IntoIterator<Item = Receipt>, exponent: i32) -> Manifest {
    let part = |(index, receipt)| (PartId { package: PackageId(package), site: SiteId(3), index }, receipt);
    Manifest {
        package: PackageId(package),
        exponents: [(SiteId(3), exponent), (SiteId(10), exponent)].into(),
        hardware: Some("a processor".to_owned()),
        parts: (0..).zip(receipts).map(part).collect(),
    }
}
