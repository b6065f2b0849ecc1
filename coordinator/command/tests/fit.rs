//! A job whose Grams do not fit the worker's memory is refused before any work, with the number of packages that does fit.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::Path;

use candle_core::DType;
use obsdiff::job::JobFile;
use obsdiff::run::Inputs;
use obsdiff_engine::architecture::MOST_KEPT_BYTES;
use obsdiff_proto::ByteSize;

const ASSETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/assets");

fn job(folder: &Path, sets: &[&str]) -> JobFile {
    let file = folder.join("job.toml");
    let text = format!(
        "[model]\npath = {:?}\n[sparsity]\npattern = \"2:4\"\n[calibration]\nprompts = {:?}\ncount = 4\nsteps = 2\n\
         max_sequence_length = 24\nshard_size = 1\n[output]\npath = {:?}\n",
        Path::new(ASSETS).join("shapes-sd3"),
        Path::new(ASSETS).join("shapes-prompts.txt"),
        folder.join("out"),
    );
    fs::write(&file, text).unwrap();
    JobFile::load(&file, [], &sets.iter().map(|set| set.to_string()).collect::<Vec<_>>()).unwrap()
}

/// What a job is refused with on a worker with so much memory.
fn refused(folder: &Path, sets: &[&str], memory: ByteSize) -> Option<String> {
    Inputs::open(&job(folder, sets), 1, Some(memory)).err().map(|error| {
        assert_eq!(error.exit_code(), 2);
        error.line()
    })
}

#[test]
fn the_smallest_number_of_packages_that_fits_is_named_and_works() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let one = job(folder, &[]);
    let inputs = Inputs::open(&one, 1, None).unwrap();
    let peak = inputs.predicted_peak(&one, 1);
    assert_eq!(refused(folder, &[], peak), None);
    let mut named = 0;
    let grams = inputs.described.cost(&one.spec, &inputs.plan).largest_grams();
    // Less than a sixth holds no unit.
    for share in [2, 4, 6] {
        let memory = ByteSize(peak.0 - grams + grams / share);
        let said = refused(folder, &[], memory).expect("the job fits");
        assert!(said.contains("job.toml: packages.count: is 1, with which Grams take"), "{said}");
        let count = said.split("give packages.count = ").nth(1).and_then(|rest| rest.split(' ').next());
        let count: u32 = count.unwrap().parse().unwrap();
        assert!(u64::from(count) >= share && count > named, "{said}");
        named = count;
        assert_eq!(refused(folder, &[&format!("packages.count={count}")], memory), None);
        let fewer = refused(folder, &[&format!("packages.count={}", count - 1)], memory).unwrap();
        assert!(fewer.contains(&format!("packages.count = {count} ")), "{fewer}");
    }
}

#[test]
fn prompts_that_a_gpu_has_no_room_to_encode_are_refused_with_where_to_encode_them() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path(), &[]);
    let encoding = Inputs::open(&job, 1, None).unwrap().described.gpu_encoding_bytes;
    let refused = |free| Inputs::open_on(&job, 1, None, Some(ByteSize(free))).err().unwrap().line();
    let said = refused(encoding - 1);
    assert!(
        said.contains("job.toml: calibration.conditioning: is missing, but to encode the prompts takes"),
        "{said}"
    );
    assert!(said.contains("by `obsdiff encode`"), "{said}");
    // Then the transformer has no room.
    let said = refused(encoding);
    assert!(said.contains("job.toml: packages.count: is 1, "), "{said}");
}

#[test]
fn every_worker_of_the_process_needs_room() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path(), &[]);
    let inputs = Inputs::open(&job, 1, None).unwrap();
    for workers in [1, 2, 3] {
        let peak = inputs.predicted_peak(&job, workers);
        assert!(Inputs::open(&job, workers, Some(peak)).is_ok(), "{workers} workers");
        assert!(Inputs::open(&job, workers + 1, Some(peak)).is_err(), "{workers} workers");
        assert!(Inputs::open(&job, workers, Some(ByteSize(peak.0 - 4))).is_err(), "{workers} workers");
    }
}

#[test]
fn more_workers_than_fit_are_refused_with_how_many_do() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path(), &[]);
    let inputs = Inputs::open(&job, 1, None).unwrap();
    for most in [1, 2, 3] {
        let peak = inputs.predicted_peak(&job, most);
        let said = Inputs::open(&job, 1000, Some(peak)).err().unwrap().line();
        let held = if most == 1 { "1 worker".to_owned() } else { format!("{most} workers") };
        let says = format!("--workers: is 1000, but the memory of {peak} holds {held}: give at most {most}");
        assert_eq!(said, says);
        assert!(Inputs::open(&job, most, Some(peak)).is_ok(), "{most} workers");
    }
    // With smaller Grams there may be room for as many.
    let peak = inputs.predicted_peak(&job, 3);
    let said = Inputs::open(&job, 3, Some(ByteSize(peak.0 - 4))).err().unwrap().line();
    let (says, count) = said.split_once(", or packages.count = ").unwrap();
    assert!(says.ends_with(" holds 2 workers: give at most 2"), "{said}");
    let more = self::job(folder.path(), &[&format!("packages.count={}", count.split(' ').next().unwrap())]);
    assert!(Inputs::open(&more, 3, Some(ByteSize(peak.0 - 4))).is_ok(), "{said}");
    // On a GPU, too.
    let on_gpu = |workers, free| Inputs::open_on(&job, workers, None, Some(ByteSize(free)));
    let free = (10..40).map(|bits| 1_u64 << bits).find(|free| on_gpu(1, *free).is_ok()).unwrap();
    let said = on_gpu(1000, free).err().unwrap().line();
    assert!(said.starts_with("--workers: is 1000, but the GPU, which has "), "{said}");
    let most: usize = said.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(on_gpu(most, free).is_ok() && on_gpu(most + 1, free).is_err(), "{said}");
}

#[test]
fn a_job_that_no_number_of_packages_makes_fit_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let said = refused(folder.path(), &[], ByteSize(1 << 20)).unwrap();
    assert!(said.contains("no number of packages is enough"), "{said}");
    let said = refused(folder.path(), &["packages.memory=1GiB"], ByteSize(1 << 20)).unwrap();
    assert!(said.starts_with("--set packages.memory: is 1.0 GiB, with which Grams take"), "{said}");
}

#[test]
fn a_job_without_grams_fits() {
    let folder = tempfile::tempdir().unwrap();
    let sets = ["sparsity.method=magnitude", "sparsity.refine=0"];
    assert_eq!(refused(folder.path(), &sets, ByteSize(1)), None);
    assert!(refused(folder.path(), &sets[..1], ByteSize(1)).is_some());
}

#[test]
fn what_a_smaller_batch_leaves_behind_counts_as_far_as_the_engine_keeps_it() {
    let folder = tempfile::tempdir().unwrap();
    let sets = ["calibration.count=400", "calibration.shard_size=400"];
    let opened = |held_out: &str| {
        let job = job(folder.path(), &[&sets[..], &[held_out]].concat());
        let inputs = Inputs::open(&job, 1, None).unwrap();
        (inputs.described.memory(&job.spec, &inputs.plan).activations, inputs)
    };
    let (whole, _) = opened("evaluation.count=400");
    let (halved, inputs) = opened("evaluation.count=200");
    let described = &inputs.described;
    let [pictures, image, text] =
        [200 * described.tokens.branches, described.tokens.image, described.tokens.text]
            .map(|number| number as usize);
    let left = described.config.kept_bytes(pictures, image, text, DType::F32);
    // More than was kept of old.
    assert!(left > 64 << 20 && left <= MOST_KEPT_BYTES, "{left}");
    assert_eq!(halved - whole, left);
}
