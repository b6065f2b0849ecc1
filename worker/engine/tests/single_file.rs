//! A transformer as one file in its authors' layout: names, stacked rows and swapped halves as diffusers' conversion scripts read them,
//! and every tensor's bytes as they were.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use obsdiff_engine::checkpoint::Weights;
use obsdiff_engine::export::write_single_file;
use obsdiff_engine::pipeline::PipelineFolder;
use obsdiff_files::Disk;

/// What `scripts/convert_sd3_to_diffusers.py` reads for a diffusers name of block `i`: the name in one file, and which of how many equal
/// parts of its rows. For 2 parts the number counts from the end, as shift and scale change places.
const SD3_BLOCK: [(&str, &str, usize, usize); 20] = [
    ("attn.to_q", "x_block.attn.qkv", 0, 3),
    ("attn.to_k", "x_block.attn.qkv", 1, 3),
    ("attn.to_v", "x_block.attn.qkv", 2, 3),
    ("attn.add_q_proj", "context_block.attn.qkv", 0, 3),
    ("attn.add_k_proj", "context_block.attn.qkv", 1, 3),
    ("attn.add_v_proj", "context_block.attn.qkv", 2, 3),
    ("attn.norm_q", "x_block.attn.ln_q", 0, 1),
    ("attn.norm_k", "x_block.attn.ln_k", 0, 1),
    ("attn.norm_added_q", "context_block.attn.ln_q", 0, 1),
    ("attn.norm_added_k", "context_block.attn.ln_k", 0, 1),
    ("attn.to_out.0", "x_block.attn.proj", 0, 1),
    ("attn.to_add_out", "context_block.attn.proj", 0, 1),
    ("norm1.linear", "x_block.adaLN_modulation.1", 0, 1),
    ("norm1_context.linear", "context_block.adaLN_modulation.1", 0, 1),
    ("ff.net.0.proj", "x_block.mlp.fc1", 0, 1),
    ("ff.net.2", "x_block.mlp.fc2", 0, 1),
    ("ff_context.net.0.proj", "context_block.mlp.fc1", 0, 1),
    ("ff_context.net.2", "context_block.mlp.fc2", 0, 1),
    ("attn2.to_q", "x_block.attn2.qkv", 0, 3),
    ("attn2.norm_k", "x_block.attn2.ln_k", 0, 1),
];

const SD3_TOP: [(&str, &str); 8] = [
    ("pos_embed.pos_embed", "pos_embed"),
    ("pos_embed.proj", "x_embedder.proj"),
    ("time_text_embed.timestep_embedder.linear_1", "t_embedder.mlp.0"),
    ("time_text_embed.timestep_embedder.linear_2", "t_embedder.mlp.2"),
    ("time_text_embed.text_embedder.linear_1", "y_embedder.mlp.0"),
    ("time_text_embed.text_embedder.linear_2", "y_embedder.mlp.2"),
    ("context_embedder", "context_embedder"),
    ("proj_out", "final_layer.linear"),
];

fn pipeline(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/assets")).join(name)
}

/// The transformer as it is, and as one file.
fn both(name: &str, folder: &Path) -> (Weights, Weights) {
    let pipeline = PipelineFolder::open(&pipeline(name)).unwrap();
    let weights = pipeline.transformer_weights().unwrap();
    let tensors = pipeline.transformer_config().single_file().unwrap();
    let file = folder.join("one.safetensors");
    let bytes = write_single_file(&weights, &tensors, &file, &Disk::default()).unwrap();
    assert_eq!(bytes, file.metadata().unwrap().len());
    let written = Weights::open_file(&file).unwrap();
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), 1, "a temporary file is left");
    (weights, written)
}

/// Holds a tensor to part `part` of `parts` of the rows of the one in the file, and says that it was there.
fn hold(
    (weights, written): &(Weights, Weights),
    seen: &mut BTreeSet<String>,
    (name, to): (&str, &str),
    (part, parts): (usize, usize),
) {
    let bytes = written.bytes(to).unwrap();
    let length = bytes.len() / parts;
    assert!(weights.bytes(name).unwrap() == bytes[part * length..(part + 1) * length], "{name} of {to}");
    let (shape, joined) = (weights.entry(name).unwrap().shape(), written.entry(to).unwrap().shape());
    assert_eq!((shape[0] * parts, &shape[1..]), (joined[0], &joined[1..]), "{name} of {to}");
    assert_eq!(weights.entry(name).unwrap().dtype(), written.entry(to).unwrap().dtype());
    seen.insert(name.to_owned());
}

/// Holds the halves of a tensor to those of the one in the file, which are the other way round.
fn hold_swapped((weights, written): &(Weights, Weights), seen: &mut BTreeSet<String>, name: &str, to: &str) {
    let (bytes, joined) = (weights.bytes(name).unwrap(), written.bytes(to).unwrap());
    let half = bytes.len() / 2;
    assert!(bytes[..half] == joined[half..] && bytes[half..] == joined[..half], "{name} of {to}");
    seen.insert(name.to_owned());
}

/// Every tensor of the pipeline has come back from the file, and the file has no other bytes.
fn whole((weights, written): &(Weights, Weights), seen: &BTreeSet<String>) {
    let names: BTreeSet<String> = weights.entries().map(|(name, _)| name.to_owned()).collect();
    assert_eq!(&names, seen);
    let bytes = |of: &Weights| of.entries().map(|(_, entry)| entry.bytes().len()).sum::<usize>();
    assert_eq!(bytes(weights), bytes(written));
}

#[test]
fn stable_diffusion_3() {
    let folder = tempfile::tempdir().unwrap();
    let files = both("shapes-sd3", folder.path());
    let mut seen = BTreeSet::new();
    let last = 5;
    for end in ["weight", "bias"] {
        for (from, to) in SD3_TOP {
            let (from, to) = match from {
                "pos_embed.pos_embed" => (from.to_owned(), to.to_owned()),
                _ => (format!("{from}.{end}"), format!("{to}.{end}")),
            };
            hold(&files, &mut seen, (&from, &format!("model.diffusion_model.{to}")), (0, 1));
        }
        let out = format!("model.diffusion_model.final_layer.adaLN_modulation.1.{end}");
        hold_swapped(&files, &mut seen, &format!("norm_out.linear.{end}"), &out);
        for block in 0..=last {
            for (from, to, part, parts) in SD3_BLOCK {
                let from = format!("transformer_blocks.{block}.{from}.{end}");
                let to = format!("model.diffusion_model.joint_blocks.{block}.{to}.{end}");
                if !files.0.contains(&from) {
                    continue;
                }
                if block == last && to.contains("context_block.adaLN") {
                    hold_swapped(&files, &mut seen, &from, &to);
                } else {
                    hold(&files, &mut seen, (&from, &to), (part, parts));
                }
            }
        }
    }
    whole(&files, &seen);
}

/// What `scripts/convert_flux_to_diffusers.py` reads for a double-stream block.
const FLUX_DOUBLE: [(&str, &str, usize, usize); 14] = [
    ("norm1.linear", "img_mod.lin", 0, 1),
    ("norm1_context.linear", "txt_mod.lin", 0, 1),
    ("attn.to_q", "img_attn.qkv", 0, 3),
    ("attn.to_k", "img_attn.qkv", 1, 3),
    ("attn.to_v", "img_attn.qkv", 2, 3),
    ("attn.add_q_proj", "txt_attn.qkv", 0, 3),
    ("attn.add_k_proj", "txt_attn.qkv", 1, 3),
    ("attn.add_v_proj", "txt_attn.qkv", 2, 3),
    ("attn.to_out.0", "img_attn.proj", 0, 1),
    ("attn.to_add_out", "txt_attn.proj", 0, 1),
    ("ff.net.0.proj", "img_mlp.0", 0, 1),
    ("ff.net.2", "img_mlp.2", 0, 1),
    ("ff_context.net.0.proj", "txt_mlp.0", 0, 1),
    ("ff_context.net.2", "txt_mlp.2", 0, 1),
];

const FLUX_NORMS: [(&str, &str); 6] = [
    ("transformer_blocks.I.attn.norm_q.weight", "double_blocks.I.img_attn.norm.query_norm.scale"),
    ("transformer_blocks.I.attn.norm_k.weight", "double_blocks.I.img_attn.norm.key_norm.scale"),
    ("transformer_blocks.I.attn.norm_added_q.weight", "double_blocks.I.txt_attn.norm.query_norm.scale"),
    ("transformer_blocks.I.attn.norm_added_k.weight", "double_blocks.I.txt_attn.norm.key_norm.scale"),
    ("single_transformer_blocks.I.attn.norm_q.weight", "single_blocks.I.norm.query_norm.scale"),
    ("single_transformer_blocks.I.attn.norm_k.weight", "single_blocks.I.norm.key_norm.scale"),
];

const FLUX_TOP: [(&str, &str); 9] = [
    ("x_embedder", "img_in"),
    ("context_embedder", "txt_in"),
    ("time_text_embed.timestep_embedder.linear_1", "time_in.in_layer"),
    ("time_text_embed.timestep_embedder.linear_2", "time_in.out_layer"),
    ("time_text_embed.text_embedder.linear_1", "vector_in.in_layer"),
    ("time_text_embed.text_embedder.linear_2", "vector_in.out_layer"),
    ("time_text_embed.guidance_embedder.linear_1", "guidance_in.in_layer"),
    ("time_text_embed.guidance_embedder.linear_2", "guidance_in.out_layer"),
    ("proj_out", "final_layer.linear"),
];

#[test]
fn flux() {
    let folder = tempfile::tempdir().unwrap();
    let files = both("shapes-flux", folder.path());
    let mut seen = BTreeSet::new();
    for end in ["weight", "bias"] {
        for (from, to) in FLUX_TOP {
            hold(&files, &mut seen, (&format!("{from}.{end}"), &format!("{to}.{end}")), (0, 1));
        }
        let out = format!("final_layer.adaLN_modulation.1.{end}");
        hold_swapped(&files, &mut seen, &format!("norm_out.linear.{end}"), &out);
        for block in 0..3 {
            for (from, to, part, parts) in FLUX_DOUBLE {
                let from = format!("transformer_blocks.{block}.{from}.{end}");
                hold(&files, &mut seen, (&from, &format!("double_blocks.{block}.{to}.{end}")), (part, parts));
            }
        }
        for block in 0..5 {
            // Queries, keys and values, each as wide as the model, then four times as many features.
            let joined = files.1.bytes(&format!("single_blocks.{block}.linear1.{end}")).unwrap();
            let width = joined.len() / 7;
            let parts = [("attn.to_q", 0, 1), ("attn.to_k", 1, 2), ("attn.to_v", 2, 3), ("proj_mlp", 3, 7)];
            for (from, first, next) in parts {
                let from = format!("single_transformer_blocks.{block}.{from}.{end}");
                assert!(files.0.bytes(&from).unwrap() == joined[first * width..next * width], "{from}");
                seen.insert(from);
            }
            for (from, to) in [("norm.linear", "modulation.lin"), ("proj_out", "linear2")] {
                let from = format!("single_transformer_blocks.{block}.{from}.{end}");
                hold(&files, &mut seen, (&from, &format!("single_blocks.{block}.{to}.{end}")), (0, 1));
            }
        }
    }
    for block in 0..5 {
        for (from, to) in
            FLUX_NORMS.map(|(from, to)| [from, to].map(|name| name.replace('I', &block.to_string())).into())
        {
            if files.0.contains(&from) {
                hold(&files, &mut seen, (&from, &to), (0, 1));
            }
        }
    }
    whole(&files, &seen);
}

#[test]
fn a_file_that_is_there_stays() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.safetensors");
    std::fs::write(&file, "mine").unwrap();
    let pipeline = PipelineFolder::open(&pipeline("shapes-sd3")).unwrap();
    let tensors = pipeline.transformer_config().single_file().unwrap();
    let written =
        write_single_file(&pipeline.transformer_weights().unwrap(), &tensors, &file, &Disk::default());
    assert!(written.unwrap_err().to_string().contains("mine.safetensors"));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}
