//! Jobs on the shipped pipeline, run in this process.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::fs;
use std::path::{Path, PathBuf};

use obsdiff::clock::monotonic;
use obsdiff::job::JobFile;
use obsdiff::progress::Progress;
use obsdiff::run::{DenseSamples, RUN_SPAN, RunContext, Summary, run};
use obsdiff::spans::Spans;
use obsdiff_engine::device::ComputeDevice;
use obsdiff_files::Disk;
use rayon::ThreadPoolBuilder;

/// The folder of shipped assets.
pub(crate) fn assets() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/assets"))
}

/// A copy of a shipped pipeline in `folder` that does without T5.
pub(crate) fn without_t5(folder: &Path) -> PathBuf {
    let pipeline = folder.join("without-t5");
    obsdiff_tests::copy_folder(&assets().join("shapes-sd3"), &pipeline);
    let index = pipeline.join("model_index.json");
    let mut content: serde_json::Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    for component in ["text_encoder_3", "tokenizer_3"] {
        content[component] = serde_json::json!([null, null]);
        fs::remove_dir_all(pipeline.join(component)).unwrap();
    }
    fs::write(index, content.to_string()).unwrap();
    pipeline
}

/// A job file of the shipped pipeline in `folder`, with the output beside it.
pub(crate) fn job_file(folder: &Path, prompts: &Path, output: &str) -> PathBuf {
    let file = folder.join(format!("{output}.toml"));
    let text = format!(
        r#"
        [model]
        path = {:?}
        [sparsity]
        pattern = "unstructured"
        ratio = 0.5
        [calibration]
        prompts = {prompts:?}
        guidance = 4.0
        height = 32
        width = 32
        max_sequence_length = 24
        [output]
        path = {:?}
        "#,
        assets().join("shapes-sd3"),
        folder.join(output),
    );
    fs::write(&file, text).unwrap();
    file
}

/// Runs a job file with some keys set.
pub(crate) fn run_job(file: &Path, sets: &[&str]) -> obsdiff::Result<Summary> {
    run_beside(&JobFile::load(file, [], &owned(sets))?, &DenseSamples::default())
}

/// Has the test's thread do all of its computations. Tests that run at the same time keep the cores busy, and work on a small model that
/// is handed to other threads is mostly waited for.
fn compute_here() {
    if rayon::current_thread_index().is_none() {
        let pool = ThreadPoolBuilder::new().num_threads(1).use_current_thread().build().unwrap();
        // This thread stays its only member as long as it lives.
        std::mem::forget(pool);
    }
}

/// Runs a job, and takes over what the dense model makes of the held-out prompts where it is known.
pub(crate) fn run_beside(job: &JobFile, dense: &DenseSamples) -> obsdiff::Result<Summary> {
    compute_here();
    let progress = Progress::lines(std::io::sink(), monotonic());
    let (spans, disk) = (Spans::new(RUN_SPAN, monotonic()), Disk::default());
    run(
        job,
        &RunContext {
            device: &ComputeDevice::Cpu,
            outlook: None,
            traces: None,
            workers: Some(1),
            memory: None,
            save_every: None,
            baseline: false,
            progress: &progress,
            spans: &spans,
            disk: &disk,
            dense,
        },
    )
}

fn owned(sets: &[&str]) -> Vec<String> {
    sets.iter().map(|set| set.to_string()).collect()
}

/// The Grams of the dense pipeline, by which many ways to prune it are tried: each gives the bytes of a whole job in one package, as
/// `solving_by_kept_grams_gives_the_bytes_of_the_whole_job` holds.
pub(crate) struct KeptGrams {
    /// Lies where Cargo has tests keep files: what tests share is never dropped.
    folder: PathBuf,
    /// The keys of the job that kept them.
    sets: Vec<String>,
    dense: DenseSamples,
}

impl KeptGrams {
    /// Runs a job on the shipped prompts with some keys set, in one package, and keeps its Grams in a folder of this name.
    pub(crate) fn of(name: &str, sets: &[&str]) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        if folder.exists() {
            fs::remove_dir_all(&folder).unwrap();
        }
        fs::create_dir_all(&folder).unwrap();
        let sets = owned(&[sets, &["packages.count=1"]].concat());
        let kept = Self { folder, sets, dense: DenseSamples::default() };
        kept.run(&[&format!("output.grams={}", kept.grams())]);
        kept
    }

    fn grams(&self) -> String {
        self.folder.join("grams").display().to_string()
    }

    /// Runs the job that kept them anew, with some keys set otherwise.
    pub(crate) fn run(&self, sets: &[&str]) -> Summary {
        let place = tempfile::tempdir_in(&self.folder).unwrap();
        let file = job_file(place.path(), &assets().join("shapes-prompts.txt"), "out");
        let sets = [&self.sets[..], &owned(sets)].concat();
        run_beside(&JobFile::load(&file, [], &sets).unwrap(), &self.dense).unwrap()
    }

    /// Prunes by them, with some keys set.
    pub(crate) fn solve(&self, sets: &[&str]) -> Summary {
        let place = tempfile::tempdir_in(&self.folder).unwrap();
        let output = format!("output.path={}", place.path().join("out").display());
        let job = JobFile::of_grams(&self.grams(), [], &owned(&[sets, &[&output]].concat())).unwrap();
        run_beside(&job, &self.dense).unwrap()
    }
}
