//! Input that every command refuses before any work.

use obsdiff_tests::copy_folder;

use crate::pipeline;
use crate::setting::{Case, Setting, WEIGHTS, refused};

const fn inspect(name: &'static str, arrange: fn(&mut Setting), says: &'static [&'static str]) -> Case {
    Case { name, args: &["inspect", "pipeline"], arrange, says }
}

/// A job that is refused before any work, by `plan` as by every command that works on a job.
const fn job(name: &'static str, arrange: fn(&mut Setting), says: &'static [&'static str]) -> Case {
    Case { name, args: &["plan", "job.toml"], arrange, says }
}

const fn sample(name: &'static str, arrange: fn(&mut Setting), says: &'static [&'static str]) -> Case {
    let args = &[
        "sample",
        "pipeline",
        "--prompts",
        "prompts.txt",
        "--max-sequence-length",
        "24",
        "--steps",
        "1",
        "--count",
        "1",
    ];
    Case { name, args, arrange, says }
}

const CASES: &[Case] = &[
    Case {
        name: "no folder",
        args: &["inspect", "absent"],
        arrange: |_| {},
        says: &["absent: No such file", "check the path"],
    },
    Case {
        name: "Hub id to inspect",
        args: &["inspect", "stabilityai/stable-diffusion-3.5-medium"],
        arrange: |_| {},
        says: &["hf download stabilityai/stable-diffusion-3.5-medium --local-dir DIR"],
    },
    Case {
        name: "weights of another kind",
        args: &["inspect", "model.gguf"],
        arrange: |s| s.write("model.gguf", "GGUF of some length"),
        says: &["model.gguf: is not a whole safetensors file", "save it as safetensors"],
    },
    Case {
        name: "checkpoint in the place of a job",
        args: &["plan", WEIGHTS],
        arrange: |_| {},
        says: &[
            "safetensors: is a checkpoint, not a job file: give a job file, which `obsdiff init PIPELINE` writes",
            "config.json of a transformer",
        ],
    },
    Case {
        name: "ratios for patterns that take none",
        args: &["sweep", "grams", "--ratios", "0.5,0.6", "--patterns", "2:4,1:4", "--out", "sweep"],
        arrange: |_| {},
        says: &["--ratios: is given, but each of --patterns has a share of its own: leave it out"],
    },
    Case {
        name: "pipeline in the place of a job",
        args: &["run", "pipeline"],
        arrange: |_| {},
        says: &["pipeline: is a pipeline, not a job: `obsdiff init pipeline` writes one for it"],
    },
    Case {
        name: "Hub id to write a job for",
        args: &["init", "stabilityai/stable-diffusion-3.5-medium", "--out", "new.toml"],
        arrange: |_| {},
        says: &["hf download stabilityai/stable-diffusion-3.5-medium --local-dir DIR"],
    },
    Case {
        name: "no folder to write a job for, beside a job",
        args: &["init", "absent"],
        arrange: |_| {},
        says: &["is absent: No such file"],
    },
    Case {
        name: "file to write a job for",
        args: &["init", "model.safetensors", "--out", "new.toml"],
        arrange: |s| s.write("model.safetensors", ""),
        says: &["is model.safetensors, a file: give the folder of a diffusers pipeline"],
    },
    Case {
        name: "transformer to write a job for",
        args: &["init", "pipeline/transformer", "--out", "new.toml"],
        arrange: |_| {},
        says: &["without model_index.json: give the folder of a whole diffusers pipeline"],
    },
    Case {
        name: "no folder for a new job",
        args: &["init", "pipeline", "--out", "absent/new.toml"],
        arrange: |_| {},
        says: &["absent: no such folder: make it first"],
    },
    inspect(
        "no weights",
        |s| s.remove(WEIGHTS),
        &["transformer: has neither diffusion_pytorch_model.safetensors nor"],
    ),
    inspect(
        "weights cut off",
        |s| s.cut(WEIGHTS, 100_000),
        &["safetensors: is not a whole safetensors file", "again"],
    ),
    inspect("header cut off", |s| s.cut(WEIGHTS, 100), &["safetensors: is not a whole safetensors file"]),
    inspect("no bytes", |s| s.cut(WEIGHTS, 0), &["diffusion_pytorch_model.safetensors: "]),
    inspect("hostile header", |s| s.write(WEIGHTS, [0xff; 64]), &["is not a whole safetensors file"]),
    inspect(
        "pickled weights",
        |s| {
            s.remove(WEIGHTS);
            s.write("pipeline/transformer/diffusion_pytorch_model.bin", "pickle");
        },
        &["pickled weights only, which obsdiff never reads"],
    ),
    inspect(
        "shard outside of the folder",
        |s| {
            let index = "pipeline/transformer/diffusion_pytorch_model.safetensors.index.json";
            s.write(index, r#"{"weight_map": {"a": "../../secret.safetensors"}}"#);
        },
        &["../../secret.safetensors", "same folder"],
    ),
    job(
        "no job file",
        |s| s.remove("job.toml"),
        &["job.toml: No such file", "`obsdiff init PIPELINE` writes one"],
    ),
    job(
        "job is no TOML",
        |s| s.replace("job.toml", "ratio =", "ratio"),
        &["job.toml: is not TOML: line 6, column 7"],
    ),
    job(
        "unknown key",
        |s| s.replace("job.toml", "ratio", "ration"),
        &["sparsity.ration", "did you mean `ratio`?"],
    ),
    job(
        "unknown section",
        |s| s.replace("job.toml", "[model]", "[modle]"),
        &["modle: is not a key", "`model`"],
    ),
    job(
        "wrong type",
        |s| s.replace("job.toml", "0.5", "\"half\""),
        &["sparsity.ratio: is \"half\", but a number"],
    ),
    job(
        "missing key",
        |s| s.replace("job.toml", "path = \"out\"", ""),
        &["job.toml: output.path: is missing"],
    ),
    job(
        "ratio 1.5",
        |s| s.replace("job.toml", "0.5", "1.5"),
        &["sparsity.ratio: is 1.5, but a ratio lies within 0..1"],
    ),
    job(
        "N >= M",
        |s| s.replace("job.toml", "\"unstructured\"", "\"4:4\""),
        &["sparsity.pattern: ", "\"4:4\"", "N must be smaller"],
    ),
    job(
        "pattern",
        |s| s.replace("job.toml", "unstructured", "2/4"),
        &["sparsity.pattern: ", "\"2/4\" is not"],
    ),
    job("no prompts used", |s| s.replace("job.toml", "count = 8", "count = 0"), &["calibration.count: is 0"]),
    job("no steps", |s| s.replace("job.toml", "steps = 4", "steps = 0"), &["calibration.steps: is 0"]),
    job(
        "variable of a mistyped key",
        |s| s.env("OBSDIFF_SPARSITY__RATO", "0.5"),
        &["OBSDIFF_SPARSITY__RATO: is not a key; did you mean `ratio`?"],
    ),
    job(
        "variable's value",
        |s| s.env("OBSDIFF_CALIBRATION__COUNT", "ten"),
        &["OBSDIFF_CALIBRATION__COUNT: is \"ten\""],
    ),
    job("flag's value", |s| s.add(&["--set", "packages.count=-1"]), &["--set packages.count: is \"-1\""]),
    job(
        "count and memory",
        |s| s.add(&["--set", "packages.count=2", "--set", "packages.memory=1GiB"]),
        &["packages.memory: excludes"],
    ),
    job(
        "no prompt file",
        |s| s.remove("prompts.txt"),
        &["job.toml: calibration.prompts: prompts.txt: No such file"],
    ),
    job(
        "no prompts",
        |s| s.write("prompts.txt", " \n\n"),
        &["calibration.prompts: prompts.txt: holds no prompt: write some into it"],
    ),
    job(
        "too few prompts",
        |s| s.write("prompts.txt", "a\nb\n"),
        &["calibration.count: is 8", "holds 2 prompts"],
    ),
    job("one prompt", |s| s.write("prompts.txt", "a\n"), &["holds 1 prompt: lower the count"]),
    job(
        "prompts are no text",
        |s| s.write("prompts.txt", [b'a', b'\n', 0xff]),
        &["prompts.txt: line 2 is not UTF-8"],
    ),
    job(
        "prompts of an unknown kind",
        |s| s.add(&["--set", "calibration.prompts=p.parquet"]),
        &["p.parquet: is not a .txt"],
    ),
    job(
        "no such column",
        |s| {
            s.write("p.csv", "id,text\n1,a\n");
            s.add(&["--set", "calibration.prompts=p.csv", "--set", "calibration.column=caption"]);
        },
        &["--set calibration.column: p.csv: has no column `caption`: its header has id, text"],
    ),
    job(
        "rule that matches nothing",
        |s| {
            s.replace(
                "job.toml",
                "[calibration]",
                "[[sparsity.rules]]\nmatch = \"blocks.0.*\"\nskip = true\n[calibration]",
            )
        },
        &[
            "sparsity.rules[0].match: \"blocks.0.*\" matches no linear that can be pruned",
            "`transformer_blocks.0.",
        ],
    ),
    job(
        "everything skipped",
        |s| {
            s.replace(
                "job.toml",
                "[calibration]",
                "[[sparsity.rules]]\nmatch = \"*\"\nskip = true\n[calibration]",
            )
        },
        &["sparsity.rules: every linear", "nothing to prune"],
    ),
    job(
        "too little memory",
        |s| s.add(&["--set", "packages.memory=1MiB"]),
        &["packages.memory: is 1.0 MiB", "at least \"3MiB\""],
    ),
    job(
        "width not divisible",
        |s| s.add(&["--set", "calibration.width=33"]),
        &["calibration.width` is 33", "multiples of 4"],
    ),
    job(
        "no pipeline",
        |s| s.replace("job.toml", "\"pipeline\"", "\"absent\""),
        &["job.toml: model.path: is absent: No such file"],
    ),
    job(
        "guidance of another architecture",
        |s| s.add(&["--set", "calibration.true_guidance=3"]),
        &["job.toml", "`calibration.true_guidance` is 3", "leave it out"],
    ),
    job(
        "another pipeline class",
        |s| s.replace("pipeline/model_index.json", "StableDiffusion3Pipeline", "FluxPipeline"),
        &["model_index.json", "FluxPipeline", "StableDiffusion3Pipeline"],
    ),
    job(
        "another transformer class",
        |s| s.replace("pipeline/transformer/config.json", "SD3Transformer2DModel", "UNet2DConditionModel"),
        &["UNet2DConditionModel", "SD3Transformer2DModel"],
    ),
    job(
        "unknown key of the transformer",
        |s| s.replace("pipeline/transformer/config.json", "{", "{\"mixture_of_experts\": 8,"),
        &["transformer/config.json", "mixture_of_experts"],
    ),
    job(
        "shapes that do not fit",
        |s| s.replace("pipeline/transformer/config.json", "\"num_layers\": 6", "\"num_layers\": 7"),
        &["transformer", "transformer_blocks.5."],
    ),
    job(
        "transformer cut off",
        |s| s.cut(WEIGHTS, 100_000),
        &["diffusion_pytorch_model.safetensors: is not a whole safetensors file"],
    ),
    job("no text encoder", |s| s.remove("pipeline/text_encoder_2/model.safetensors"), &["text_encoder_2"]),
    job("no merges", |s| s.remove("pipeline/tokenizer/merges.txt"), &["tokenizer"]),
    sample("no prompt file", |s| s.remove("prompts.txt"), &["prompts.txt: No such file"]),
    sample("picture that is no PNG", |s| s.add(&["--out", "p.jpg"]), &["p.jpg: is not a .png file"]),
    sample(
        "picture over a file of another kind",
        |s| s.add(&["--out", "prompts.txt"]),
        &["prompts.txt: is neither a folder nor a .png file"],
    ),
    Case {
        name: "nothing to sample",
        args: &["sample", "pipeline"],
        arrange: |_| {},
        says: &["--prompt: is missing, and pipeline names no held-out prompts", "--prompts"],
    },
    Case {
        name: "no pipeline to sample, and no prompts",
        args: &["sample", "nosuch"],
        arrange: |_| {},
        says: &["the pipeline: is nosuch: No such file"],
    },
    Case {
        name: "nothing to compare with, and no prompts",
        args: &["compare", "pipeline", "nosuch"],
        arrange: |_| {},
        says: &["the pipeline: is nosuch: No such file"],
    },
    Case {
        name: "nothing to compare, and no prompts",
        args: &["compare", "nosuch", "pipeline"],
        arrange: |_| {},
        says: &["the pipeline: is nosuch: No such file"],
    },
    Case {
        name: "fewer prompts than asked for",
        args: &["sample", "pipeline", "--prompts", "two.txt", "--count", "3"],
        arrange: |s| s.write("two.txt", "a\rb\r"),
        says: &["--count: is 3, but two.txt holds 2 prompts: lower it"],
    },
    Case {
        name: "seed without room for the prompts",
        args: &["sample", "pipeline", "--prompt", "a", "--seed", "18446744073709551615"],
        arrange: |_| {},
        says: &["--seed: is 18446744073709551615", "2^64 - 1"],
    },
    Case {
        name: "Hub id to sample",
        args: &["sample", "stabilityai/stable-diffusion-3.5-medium", "--prompt", "a"],
        arrange: |_| {},
        says: &["hf download stabilityai/stable-diffusion-3.5-medium --local-dir DIR"],
    },
    sample(
        "no folder to write to",
        |s| s.add(&["--out", "absent/p.png"]),
        &["absent: no such folder: make it first"],
    ),
    sample("height not divisible", |s| s.add(&["--height", "33"]), &["`--height` is 33", "multiples of 4"]),
    sample("weights cut off", |s| s.cut(WEIGHTS, 100_000), &["is not a whole safetensors file"]),
    Case {
        name: "compared with itself in another shape",
        args: &["compare", "pipeline", "other", "--prompt", "a"],
        arrange: |s| {
            copy_folder(&pipeline(), &s.path("other"));
            s.replace("other/transformer/config.json", "\"num_layers\": 6", "\"num_layers\": 5");
        },
        says: &["other/transformer/config.json", "cannot be compared"],
    },
    Case {
        name: "grid that is no PNG",
        args: &["compare", "pipeline", "pipeline", "--prompt", "a", "--out", "grid.jpg"],
        arrange: |_| {},
        says: &["grid.jpg: is not a .png file"],
    },
    inspect("log level", |s| s.env("OBSDIFF_LOG", "obsdiff=loud"), &["OBSDIFF_LOG: is \"obsdiff=loud\""]),
];

#[test]
fn bad_input_is_refused_by_name_and_writes_nothing() {
    refused(CASES);
}
