//! Input that `run` refuses: most of it before any work, weights that turn a Gram non-finite while it calibrates. Either way nothing
//! is written.

use std::fs;

use crate::checkpoint::{Checkpoint, INFINITY, LARGEST, NAN, file};
use crate::setting::{Case, RUN, Setting, WEIGHTS, refused};

const fn run(name: &'static str, arrange: fn(&mut Setting), says: &'static [&'static str]) -> Case {
    Case { name, args: RUN, arrange, says }
}

/// The first linear of the feed-forward network of a block.
const FF: &str = "transformer_blocks.2.ff.net.0.proj.weight";

const JOBS: &[Case] = &[
    run(
        "output exists",
        |s| fs::create_dir(s.path("out")).unwrap(),
        &["job.toml: output.path: is out, which exists already"],
    ),
    run(
        "output is a link to nowhere",
        |s| std::os::unix::fs::symlink("nowhere", s.path("out")).unwrap(),
        &["job.toml: output.path: is out, which exists already"],
    ),
    run(
        "output below a file",
        |s| {
            s.write("file", "");
            s.add(&["--set", "output.path=file/out"]);
        },
        &["--set output.path: is file/out, but file is not a directory"],
    ),
    run(
        "output at a web server",
        |s| s.add(&["--set", "output.path=https://host/out"]),
        &[
            "--set output.path: is https://host/out, which is no store: give a directory, or a URL such as s3://",
        ],
    ),
    run(
        "output that is a whole bucket",
        |s| s.add(&["--set", "output.path=s3://bucket"]),
        &["--set output.path: is s3://bucket, which names a whole bucket: give the output a prefix"],
    ),
    run(
        "output by the URL of a directory",
        |s| s.add(&["--set", "output.path=file:///tmp/out"]),
        &[
            "--set output.path: is file:///tmp/out, which is no object store: give a directory without file://",
        ],
    ),
    run(
        "output in its own state",
        |s| s.add(&["--set", "output.path=s3://bucket/job/out", "--set", "output.state=s3://bucket/job"]),
        &["--set output.state: is s3://bucket/job, which holds output.path, s3://bucket/job/out"],
    ),
    run("no output", |s| s.add(&["--set", "output.path="]), &["--set output.path: is missing"]),
    run(
        "another pipeline class",
        |s| s.replace("pipeline/model_index.json", "StableDiffusion3Pipeline", "FluxPipeline"),
        &["model_index.json", "FluxPipeline"],
    ),
    run(
        "no prompts",
        |s| s.write("prompts.txt", "\n"),
        &["calibration.prompts: prompts.txt: holds no prompt"],
    ),
    run(
        "no such column",
        |s| {
            s.write("p.tsv", "id\ttext\n1\ta\n");
            s.add(&["--set", "calibration.prompts=p.tsv", "--set", "calibration.column=caption"]);
        },
        &["--set calibration.column: p.tsv: has no column `caption`", "id, text"],
    ),
    run(
        "no held-out prompt file",
        |s| s.add(&["--set", "evaluation.prompts=absent.txt"]),
        &["--set evaluation.prompts: absent.txt: No such file"],
    ),
    run("no steps", |s| s.add(&["--set", "calibration.steps=0"]), &["--set calibration.steps: is 0"]),
    run(
        "ratio 1.5",
        |s| s.add(&["--set", "sparsity.ratio=1.5"]),
        &["--set sparsity.ratio: is 1.5, but a ratio lies within 0..1"],
    ),
    run("N >= M", |s| s.add(&["--set", "sparsity.pattern=4:2"]), &["\"4:2\"", "N must be smaller"]),
    run(
        "width not divisible",
        |s| s.add(&["--set", "calibration.width=33"]),
        &["calibration.width` is 33", "multiples of 4"],
    ),
    run(
        "unknown key",
        |s| s.replace("job.toml", "ratio", "ration"),
        &["sparsity.ration", "did you mean `ratio`?"],
    ),
];

const CHECKPOINTS: &[Case] = &[
    run("cut off", |s| s.cut(WEIGHTS, 1_000_000), &[WEIGHTS, "is not a whole safetensors file"]),
    run(
        "header longer than memory",
        |s| s.write(WEIGHTS, [0xff; 64]),
        &[WEIGHTS, "is not a whole safetensors file"],
    ),
    run(
        "header is no JSON",
        |s| s.write(WEIGHTS, file(b"{{{{", &[0; 64])),
        &[WEIGHTS, "is not a whole safetensors file"],
    ),
    run(
        "size that overflows",
        |s| {
            let header = br#"{"a":{"dtype":"F16","shape":[9223372036854775807,4],"data_offsets":[0,8]}}"#;
            s.write(WEIGHTS, file(header, &[0; 8]));
        },
        &[WEIGHTS, "is not a whole safetensors file"],
    ),
    run(
        "tensors that overlap",
        |s| {
            let header = br#"{"a":{"dtype":"F16","shape":[4],"data_offsets":[0,8]},"b":{"dtype":"F16","shape":[4],"data_offsets":[4,12]}}"#;
            s.write(WEIGHTS, file(header, &[0; 12]));
        },
        &[WEIGHTS, "is not a whole safetensors file"],
    ),
    run(
        "offsets that run backwards",
        |s| {
            let header = br#"{"a":{"dtype":"F16","shape":[4],"data_offsets":[8,0]}}"#;
            s.write(WEIGHTS, file(header, &[0; 8]));
        },
        &[WEIGHTS, "is not a whole safetensors file"],
    ),
    run(
        "another shape",
        |s| s.weights(|w| w.reshape(FF, [128, 512])),
        &[WEIGHTS, FF, "has shape [128, 512], but the configuration asks for [512, 128]"],
    ),
    run(
        "missing tensor",
        |s| s.weights(|w| w.rename(FF, "transformer_blocks.2.ff.weight")),
        &["pipeline/transformer", FF, "is missing"],
    ),
    run(
        "type that is no float",
        |s| s.weights(|w| w.header[FF]["dtype"] = "I16".into()),
        &[WEIGHTS, FF, "I16"],
    ),
    run("NaN", |s| s.weights(|w| w.set(FF, 1000, NAN)), &[WEIGHTS, FF, "not finite"]),
    run("infinity", |s| s.weights(|w| w.set(FF, 65_535, INFINITY)), &[WEIGHTS, FF, "not finite"]),
    run(
        "NaN in a bias, which is not pruned",
        |s| s.weights(|w| w.set("proj_out.bias", 3, NAN)),
        &[WEIGHTS, "`proj_out.bias`", "not finite"],
    ),
];

const OVERFLOWS: &[Case] = &[
    run(
        "activations past 16 bits",
        |s| {
            s.weights(|w| w.fill(FF, LARGEST));
            s.add(&["--set", "model.dtype=f16"]);
        },
        &["site transformer_blocks.2.ff.net.2: ", "not finite"],
    ),
    run("activations past 32 bits", |s| s.weights(huge), &["site transformer_blocks.", "not finite"]),
    run(
        "final latents past 32 bits, by a method that does not calibrate",
        |s| {
            s.weights(huge);
            s.add(&["--set", "sparsity.method=magnitude", "--set", "sparsity.refine=0"]);
        },
        &["pipeline/transformer: computes final latents that are not finite"],
    ),
    run(
        "a pruned weight past the 16 bits it is stored in",
        |s| s.weights(|w| w.fill(FF, LARGEST)),
        &[WEIGHTS, "pruned tensor `transformer_blocks.2.ff.net.0.proj.weight` leaves the range of F16"],
    ),
    run(
        "a Gram past 32 bits",
        |s| {
            s.weights(huge);
            s.add(&["--set", "hessian.accumulate=f32"]);
        },
        &["site transformer_blocks.2.ff.net.2: ", "too large to square"],
    ),
];

/// Makes the feed-forward network of a block as strong as 16 bits can say, and what modulates it.
fn huge(weights: &mut Checkpoint) {
    for tensor in [
        "time_text_embed.timestep_embedder.linear_2.bias",
        "transformer_blocks.2.norm1.linear.weight",
        FF,
        "transformer_blocks.2.ff.net.2.weight",
    ] {
        weights.fill(tensor, LARGEST);
    }
}

#[test]
fn jobs_that_cannot_be_run() {
    refused(JOBS);
}

#[test]
fn checkpoints_that_cannot_be_read() {
    refused(CHECKPOINTS);
}

#[test]
fn weights_that_overflow_name_their_site() {
    refused(OVERFLOWS);
}
