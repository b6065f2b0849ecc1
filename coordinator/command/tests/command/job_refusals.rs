//! Jobs that ask for what they would not get: refused by key before any work.

use std::fs;

use crate::setting::{Case, Setting, refused};
use crate::{asset, job as small_job, obsdiff, text};

const fn job(name: &'static str, arrange: fn(&mut Setting), says: &'static [&'static str]) -> Case {
    Case { name, args: &["plan", "job.toml"], arrange, says }
}

const MODELS: &[Case] = &[
    job(
        "Hub id",
        |s| s.add(&["--set", "model.path=stabilityai/stable-diffusion-3.5-medium"]),
        &[
            "--set model.path: is stabilityai/stable-diffusion-3.5-medium, which is no folder here",
            "hf download",
        ],
    ),
    job(
        "URL",
        |s| s.add(&["--set", "model.path=https://huggingface.co/stabilityai/sd3"]),
        &["--set model.path: is https://huggingface.co/stabilityai/sd3: download the pipeline first"],
    ),
    job(
        "single file",
        |s| s.replace("job.toml", "\"pipeline\"", "\"prompts.txt\""),
        &["job.toml: model.path: is prompts.txt, a file: give the folder of a diffusers pipeline"],
    ),
    job(
        "transformer alone",
        |s| s.replace("job.toml", "\"pipeline\"", "\"pipeline/transformer\""),
        &["job.toml: model.path: is pipeline/transformer, a folder without model_index.json"],
    ),
    job(
        "null",
        |s| s.replace("job.toml", "\"pipeline\"", "null"),
        &["job.toml: is not TOML: line 3, column 8: TOML has no null: leave `path` out"],
    ),
    job(
        "number",
        |s| s.replace("job.toml", "\"pipeline\"", "35"),
        &["job.toml: model.path: is 35, but text in quotes is expected"],
    ),
];

const FILES: &[Case] = &[
    Case {
        name: "job that is a pipeline",
        args: &["plan", "pipeline"],
        arrange: |_| {},
        says: &["pipeline: is a pipeline, not a job: `obsdiff init pipeline` writes one for it"],
    },
    Case {
        name: "job that is a folder",
        args: &["plan", "pipeline/vae"],
        arrange: |_| {},
        says: &["pipeline/vae: is a directory"],
    },
    job("empty job", |s| s.write("job.toml", "\n"), &["job.toml: is empty"]),
    job(
        "job that is no text",
        |s| s.write("job.toml", b"[model]\npath = '\xe9'\n"),
        &["job.toml: line 2 is not UTF-8 text"],
    ),
    job(
        "key that is there twice",
        |s| s.replace("job.toml", "steps = 4", "steps = 4\nsteps = 5"),
        &["job.toml: is not TOML: line 11, column 1: "],
    ),
    job(
        "section that is there twice",
        |s| s.replace("job.toml", "[output]", "[model]\n[output]"),
        &["job.toml: is not TOML: line 12, column 2: duplicate key"],
    ),
];

fn rule(setting: &mut Setting, rules: &str) {
    setting.add(&["--set", &format!("sparsity.rules={rules}")]);
}

const TARGETS: &[Case] = &[
    job(
        "pattern wider than the linears",
        |s| s.add(&["--set", "sparsity.ratio=", "--set", "sparsity.pattern=1:500"]),
        &[
            "--set sparsity.pattern: leaves `transformer_blocks.0.attn.to_q` (and ",
            "0 of its 128 columns would go",
            "M at most 128",
        ],
    ),
    job(
        "pattern wider than the linears of a rule",
        |s| rule(s, "[{ match = \"*.5.attn.to_q\", pattern = \"1:129\" }]"),
        &["--set sparsity.rules[0].pattern: leaves `transformer_blocks.5.attn.to_q` as it is"],
    ),
    job(
        "ratio of less than a weight",
        |s| s.add(&["--set", "sparsity.ratio=1e-6"]),
        &["--set sparsity.ratio: leaves `transformer_blocks."],
    ),
    job(
        "ratio of less than a head",
        |s| {
            let sets = ["sparsity.pattern=structured", "sparsity.ratio=0.05"];
            sets.iter().for_each(|set| s.add(&["--set", set]));
        },
        &["--set sparsity.ratio: leaves `transformer_blocks.1.attn.to_out.0`", "0 of its 8 heads would go"],
    ),
    job(
        "rule for what is never pruned",
        |s| rule(s, "[{ match = \"*.norm1.linear\", skip = true }]"),
        &[
            "--set sparsity.rules[0].match: \"*.norm1.linear\" matches `transformer_blocks.0.norm1.linear.bias`, which is never pruned",
        ],
    ),
    job(
        "rule with the name of a tensor",
        |s| rule(s, "[{ match = \"transformer_blocks.1.attn.to_q.weight\", skip = true }]"),
        &[
            "matches `transformer_blocks.1.attn.to_q.weight`, but rules go by names of linears, without `.weight`",
        ],
    ),
    job(
        "rule in the shadow of another",
        |s| rule(s, "[{ match = \"*.attn.*\", skip = true }, { match = \"*.to_q\", ratio = 0.25 }]"),
        &[
            "--set sparsity.rules[1].match: \"*.to_q\" decides nothing: it matches 6 linears",
            "sparsity.rules[0] before it decides for each",
        ],
    ),
    job(
        "rule of a structured job for what makes the heads",
        |s| {
            s.add(&["--set", "sparsity.pattern=structured"]);
            rule(s, "[{ match = \"*.to_q\", skip = true }]");
        },
        &[
            "--set sparsity.rules[0].match: \"*.to_q\" decides nothing",
            "`transformer_blocks.0.attn.to_out.0`",
        ],
    ),
    job(
        "more packages than units",
        |s| s.add(&["--set", "packages.count=99"]),
        &["--set packages.count: is 99, but 24 units of the model are pruned", "give 24 or fewer"],
    ),
    job(
        "refinement of heads",
        |s| {
            s.replace("job.toml", "\"unstructured\"", "\"structured\"");
            s.replace("job.toml", "ratio = 0.5", "ratio = 0.5\nrefine = 5");
        },
        &["job.toml: sparsity.refine: has no effect: ", "structured pruning refines nothing"],
    ),
];

const PROMPTS: &[Case] = &[
    job(
        "row cut in two by a comma",
        |s| {
            s.write("p.csv", "id,text\n1,a dog\n2,a cat, sleeping\n");
            s.add(&["--set", "calibration.prompts=p.csv", "--set", "calibration.column=text"]);
        },
        &["--set calibration.prompts: p.csv: line 3 has 3 fields, but the header has 2"],
    ),
    job(
        "quote that swallows rows",
        |s| {
            s.write("p.csv", "id,text\n1,\"a dog\n2,a cat\n3,a fox\n");
            s.add(&["--set", "calibration.prompts=p.csv", "--set", "calibration.column=text"]);
        },
        &["--set calibration.prompts: p.csv: line 2 opens a quote that never closes"],
    ),
    job(
        "row without a prompt",
        |s| {
            s.write("p.tsv", "text\tid\na dog\t1\n\t2\n");
            s.add(&["--set", "calibration.prompts=p.tsv", "--set", "calibration.column=text"]);
        },
        &["--set calibration.prompts: p.tsv: line 3 has an empty `text`"],
    ),
];

#[test]
fn a_model_that_is_no_pipeline_folder_is_refused_with_the_remedy() {
    refused(MODELS);
}

#[test]
fn a_job_that_is_no_toml_file_is_refused_by_line() {
    refused(FILES);
}

#[test]
fn what_would_leave_weights_as_they_are_is_refused_by_name() {
    refused(TARGETS);
}

#[test]
fn prompts_that_a_lenient_reader_would_merge_or_cut_are_refused_by_line() {
    refused(PROMPTS);
}

#[test]
fn variables_of_a_kubernetes_service_are_ignored_and_told_to_debuggers_alone() {
    let dir = tempfile::tempdir().unwrap();
    let job = small_job(dir.path());
    let job = job.to_str().unwrap();
    let service = [("OBSDIFF_PORT", "tcp://10.0.0.1:7070"), ("OBSDIFF_SERVICE_HOST", "10.0.0.1")];
    let quiet = obsdiff(&asset(""), &["plan", job], &service);
    assert!(quiet.status.success() && quiet.stderr.is_empty(), "{}", text(&quiet.stderr));
    let debug = [&service[..], &[("OBSDIFF_LOG", "debug")]].concat();
    let said = text(&obsdiff(&asset(""), &["plan", job], &debug).stderr);
    assert!(said.contains("OBSDIFF_PORT is no key of a job"), "{said}");
}

#[test]
fn a_variable_with_one_underscore_is_ignored_and_told_once() {
    let dir = tempfile::tempdir().unwrap();
    let job = small_job(dir.path());
    let variable = [("OBSDIFF_SPARSITY_RATIO", "0.9")];
    let output = obsdiff(&asset(""), &["plan", job.to_str().unwrap()], &variable);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(
        text(&output.stderr),
        "note: OBSDIFF_SPARSITY_RATIO is no key of a job and is ignored: did you mean OBSDIFF_SPARSITY__RATIO?\n"
    );
    assert!(text(&output.stdout).contains("50% unstructured"), "{}", text(&output.stdout));
}

#[test]
fn magnitude_without_refinement_runs_without_calibration() {
    let setting = Setting::new(&[]);
    let job = "[model]\npath = \"pipeline\"\n[sparsity]\nmethod = \"magnitude\"\nrefine = 0\npattern = \"2:4\"\n[output]\npath = \"out\"\n";
    fs::write(setting.path("job.toml"), job).unwrap();
    let run = |sets: &[&str]| {
        let args = [&["run", "job.toml", "--quiet"][..], sets].concat();
        let output = obsdiff(setting.dir.path(), &args, &[]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let printed = run(&[]);
    assert!(printed.contains("50.00%"), "{printed}");
    fs::remove_dir_all(setting.path("out")).unwrap();
    let compared = [
        "evaluation.prompts=prompts.txt",
        "evaluation.count=2",
        "calibration.steps=2",
        "calibration.max_sequence_length=24",
    ];
    let sets: Vec<&str> = compared.iter().flat_map(|set| ["--set", set]).collect();
    let printed = run(&sets);
    assert!(printed.contains("(L2, relative) on 2 held-out prompts"), "{printed}");
}
