//! A job is resumed, and worked on by others, with the very files it was begun with.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::Path;
use std::process::Command;

use obsdiff::job::JobFile;
use obsdiff::run::{Inputs, open_state};
use obsdiff_store::JobStore;
use obsdiff_tests::copy_folder;

mod process;

use process::{ASSETS, Process};

/// A folder with a pipeline of its own, and a small job on it that calibrates on `prompts`.
fn setting(prompts: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&Path::new(ASSETS).join("shapes-sd3"), &folder.path().join("pipeline"));
    let texts = fs::read_to_string(Path::new(ASSETS).join("shapes-prompts.txt")).unwrap();
    let texts = texts.lines().take(12).collect::<Vec<_>>().join("\n");
    for name in [prompts, "held-out.txt"] {
        fs::write(folder.path().join(name), &texts).unwrap();
    }
    let path = |name: &str| folder.path().join(name);
    let job = format!(
        "[model]\npath = {:?}\n[sparsity]\npattern = \"2:4\"\nmethod = \"magnitude\"\nrefine = 0\n\
         [calibration]\nprompts = {:?}\ncount = 2\nsteps = 2\nmax_sequence_length = 24\n\
         [evaluation]\nprompts = {:?}\ncount = 2\n[output]\npath = {:?}\n",
        path("pipeline"),
        path(prompts),
        path("held-out.txt"),
        path("out"),
    );
    fs::write(path("job.toml"), job).unwrap();
    folder
}

/// Every file below a folder, by its path from there.
fn files(folder: &Path, below: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder.join(below)).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{below}{}", entry.file_name().into_string().unwrap());
        if entry.metadata().unwrap().is_dir() {
            found.extend(files(folder, &format!("{name}/")))
        } else {
            found.push(name)
        }
    }
    found.sort();
    found
}

/// Begins or resumes the job; why not, where it is refused.
fn begin(folder: &Path) -> Option<String> {
    let job = JobFile::load(&folder.join("job.toml"), [], &[]).unwrap();
    let opened = Inputs::open(&job, 1, None).and_then(|inputs| open_state(&job, &inputs).map(drop));
    opened.err().map(|error| {
        assert_eq!(error.exit_code(), 2, "{}", error.line());
        error.line()
    })
}

/// Changes a file so that it reads as before: a space behind JSON or a text, another last number of weights.
fn change(file: &Path) {
    let mut content = fs::read(file).unwrap();
    if file.extension().is_some_and(|end| end == "safetensors") {
        let last = content.len() - 2;
        content[last] ^= 1;
    } else {
        content.push(b'\n');
    }
    fs::write(file, content).unwrap();
}

#[test]
fn a_job_is_not_resumed_with_any_other_file_of_its_model_or_prompts() {
    let folder = setting("prompts.txt");
    let pipeline = folder.path().join("pipeline");
    // What older tokenizers read, and these do not.
    let unread = ["tokenizer", "tokenizer_2", "tokenizer_3"].map(|t| format!("{t}/special_tokens_map.json"));
    assert_eq!(begin(folder.path()), None);
    assert_eq!(begin(folder.path()), None, "resumed as it was");
    let of_model = files(&pipeline, "");
    assert_eq!(of_model.len(), 23);
    let prompts = ["prompts.txt", "held-out.txt"].map(|name| folder.path().join(name));
    let named = of_model.into_iter().map(|name| (pipeline.join(&name), name));
    for (file, name) in named.chain(prompts.map(|file| (file.clone(), file.display().to_string()))) {
        let before = fs::read(&file).unwrap();
        change(&file);
        let said = begin(folder.path());
        if unread.contains(&name) {
            assert_eq!(said, None, "{name}")
        } else {
            let said = said.unwrap_or_else(|| panic!("{name} may change"));
            assert!(said.contains(&format!("the content of {name} changed")), "{name}: {said}");
        }
        fs::write(&file, before).unwrap();
    }
    assert_eq!(begin(folder.path()), None, "resumed as it was");
}

#[test]
fn a_state_of_another_job_is_told_with_what_differs_and_how_it_is_given_up() {
    let folder = setting("prompts.txt");
    assert_eq!(begin(folder.path()), None);
    let job = folder.path().join("job.toml");
    let text = fs::read_to_string(&job).unwrap();
    fs::write(&job, text.replace("steps = 2", "steps = 3")).unwrap();
    let said = begin(folder.path()).unwrap();
    let state = folder.path().join("out.state");
    let says = format!(
        "job.toml: output.state: {} holds another job: calibration.steps was 2 and is 3. Undo that to resume, or set output.state to \
         another place, or give up what is finished there: ",
        state.display()
    );
    let (_, removal) = said.split_once(&says).unwrap_or_else(|| panic!("{says} is not in: {said}"));
    assert!(Command::new("sh").args(["-c", removal]).status().unwrap().success(), "{removal}");
    assert!(!state.exists());
    assert_eq!(begin(folder.path()), None);
}

#[test]
fn an_index_that_takes_over_from_a_single_file_is_told() {
    let folder = setting("prompts.txt");
    assert_eq!(begin(folder.path()), None);
    let vae = folder.path().join("pipeline/vae");
    let whole = "diffusion_pytorch_model.safetensors";
    fs::copy(vae.join(whole), vae.join("shard.safetensors")).unwrap();
    let header = fs::read(vae.join(whole)).unwrap();
    let length = u64::from_le_bytes(header[..8].try_into().unwrap()) as usize;
    let header: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&header[8..8 + length]).unwrap();
    let names = header.keys().filter(|name| *name != "__metadata__");
    let map: Vec<String> = names.map(|name| format!("{name:?}: \"shard.safetensors\"")).collect();
    fs::write(vae.join(format!("{whole}.index.json")), format!("{{\"weight_map\": {{{}}}}}", map.join(",")))
        .unwrap();
    let said = begin(folder.path()).unwrap();
    for part in [
        "vae/diffusion_pytorch_model.safetensors is gone",
        "vae/diffusion_pytorch_model.safetensors.index.json is new",
        "vae/shard.safetensors is new",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn a_prompt_keeps_its_place_from_the_file_through_the_store() {
    let folder = setting("prompts.txt");
    // Blank lines are no prompts; one that repeats is a prompt of its own, with noise of its own.
    fs::write(folder.path().join("prompts.txt"), "\n  a ring \n\na ring\n \na cube\n").unwrap();
    fs::write(folder.path().join("held-out.txt"), "a ring\n\na disc\na disc\n\na cone\n").unwrap();
    let sets = ["calibration.count=3".to_owned(), "calibration.shard_size=2".to_owned()];
    let job = JobFile::load(&folder.path().join("job.toml"), [], &sets).unwrap();
    let inputs = Inputs::open(&job, 1, None).unwrap();
    let (calibration, held_out) = (["a ring", "a ring", "a cube"], ["a disc", "a cone"]);
    assert_eq!(inputs.prompts.calibration, calibration);
    assert_eq!(inputs.prompts.held_out, held_out);
    let state = open_state(&job, &inputs).unwrap();
    let store = JobStore::open(state.url(), &[]).unwrap();
    let stored = state.runtime().block_on(async {
        let record = store.job().await.unwrap();
        store.prompts(&record).await.unwrap()
    });
    assert_eq!(stored.calibration, calibration);
    assert_eq!(stored.held_out, held_out);
}

/// A coordinator of the job in `folder`, and its URL.
fn coordinator(folder: &Path) -> (Process, String) {
    let mut process =
        Process::start(folder, &["coordinator", "job.toml", "--quiet", "--listen", "127.0.0.1:0"]);
    let line = process.line(|line| line.contains("listening on ")).expect("it does not listen");
    (process, format!("http://{}", line.strip_prefix("listening on ").unwrap()))
}

#[test]
fn a_worker_whose_copy_of_any_component_differs_is_refused_by_name() {
    let folder = setting("prompts.txt");
    let (mut coordinator, url) = coordinator(folder.path());
    let pipeline = folder.path().join("pipeline");
    for name in [
        "scheduler/scheduler_config.json",
        "text_encoder_3/model.safetensors",
        "tokenizer/vocab.json",
        "model_index.json",
    ] {
        let before = fs::read(pipeline.join(name)).unwrap();
        change(&pipeline.join(name));
        let mut worker = process::worker(folder.path(), &url);
        let (code, said) = worker.verdict();
        assert_eq!(code, Some(2), "{name}: {said}");
        assert!(said.contains(&format!("{name}: differs from the coordinator's: give both the same model")));
        fs::write(pipeline.join(name), before).unwrap();
    }
    // With the coordinator's files it does the job.
    assert!(process::worker(folder.path(), &url).end().success());
    assert!(coordinator.end().success());
}

#[test]
fn a_worker_takes_no_file_of_prompts_for_one_of_its_model() {
    let folder = setting("pipeline/transformer/prompts.txt");
    let (mut coordinator, url) = coordinator(folder.path());
    // Workers have no need of it: the store holds the prompts.
    fs::remove_file(folder.path().join("pipeline/transformer/prompts.txt")).unwrap();
    let (code, said) = process::worker(folder.path(), &url).verdict();
    assert_eq!(code, Some(0), "{said}");
    assert!(coordinator.end().success());
}
