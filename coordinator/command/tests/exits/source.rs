//! A model whose files are changed while it is pruned.

use std::fs;
use std::path::{Path, PathBuf};

use obsdiff_tests::copy_folder;

use crate::process::{ASSETS, Process, result, setting};
use crate::signals::until;

/// Changes the file at a path, whose content is given.
type Change = fn(&Path, &[u8]);

/// Ways in which the file of the transformer's weights may be changed, by their names.
const CHANGES: [(&str, Change); 3] = [
    ("written to", |path, content| {
        let mut other = content.to_vec();
        other.iter_mut().rev().take(1000).for_each(|byte| *byte ^= 1);
        fs::write(path, other).unwrap();
    }),
    ("shortened", |path, content| fs::write(path, &content[..content.len() / 2]).unwrap()),
    ("replaced", |path, content| {
        let other = path.with_extension("new");
        fs::write(&other, content).unwrap();
        fs::rename(other, path).unwrap();
    }),
];

/// A folder with a job whose model is in it, and the file of the model's weights.
fn own_model() -> (tempfile::TempDir, PathBuf) {
    let folder = setting(16);
    let model = folder.path().join("dense");
    copy_folder(&Path::new(ASSETS).join("shapes-sd3"), &model);
    let job = fs::read_to_string(folder.path().join("job.toml")).unwrap();
    let shipped = Path::new(ASSETS).join("shapes-sd3");
    fs::write(folder.path().join("job.toml"), job.replace(shipped.to_str().unwrap(), "dense")).unwrap();
    (folder, model.join("transformer/diffusion_pytorch_model.safetensors"))
}

#[test]
fn a_job_whose_model_is_changed_ends_without_a_result_and_goes_on_once_the_file_is_back() {
    let undisturbed = {
        let (folder, _) = own_model();
        assert!(Process::start(folder.path(), &["run", "job.toml", "--quiet"]).end().success());
        result(folder.path())
    };
    for (name, change) in CHANGES {
        let (folder, weights) = own_model();
        let dense = fs::read(&weights).unwrap();
        let mut run = Process::start(folder.path(), &["run", "job.toml", "--quiet"]);
        let manifest = folder.path().join("out.state/packages/00000.json");
        until("a package", || manifest.exists());
        change(&weights, &dense);
        let (code, said) = run.verdict();
        assert_eq!(code, Some(3), "{name}: {said}");
        let words = "diffusion_pytorch_model.safetensors: was changed while it was in use";
        assert!(said.contains(words), "{name}: {said}");
        assert!(!folder.path().join("out").exists(), "{name}");
        fs::write(&weights, &dense).unwrap();
        let (code, said) = Process::start(folder.path(), &["run", "job.toml", "--quiet"]).verdict();
        assert_eq!(code, Some(0), "{name}: {said}");
        assert!(result(folder.path()) == undisturbed, "{name}");
    }
}
