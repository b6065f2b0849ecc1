//! Copies of models from object stores, as `obsdiff cache` lists and removes them while other processes read, download or die.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use obsdiff_tests::copy_folder;

use crate::hosts::available;
use crate::output::{files, until_held};
use crate::process::{ASSETS, Process, setting};
use crate::s3::Later;
use crate::store::StoreServer;

const URL: &str = "s3://bucket/models/small";

/// A server with the small model, and a folder with a job on it.
fn server_and_job() -> (StoreServer, tempfile::TempDir) {
    let server = StoreServer::new();
    let source = Path::new(ASSETS).join("shapes-sd3");
    copy_folder(&source, &server.folder.path().join("bucket/models/small"));
    let folder = setting(2);
    let path = folder.path().join("job.toml");
    let words = fs::read_to_string(&path).unwrap();
    fs::write(path, words.replace(&format!("path = {source:?}"), &format!("path = {URL:?}"))).unwrap();
    (server, folder)
}

/// The exit code of a command on the folder `cache`, and what it prints and says.
fn outcome(server: &StoreServer, folder: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let mut process = server.start(folder, &[args, &["--quiet", "--cache", "cache"]].concat());
    let mut printed = String::new();
    while let Some(line) = process.line(|_| true) {
        printed += &line;
        printed.push('\n');
    }
    let (code, said) = process.verdict();
    (code, printed, said)
}

#[test]
fn a_model_that_a_job_reads_stays_and_goes_once_the_job_is_killed() {
    let (server, folder) = server_and_job();
    let cache = |args: &[&str]| outcome(&server, folder.path(), &[&["cache"], args].concat());
    let json = || -> serde_json::Value { serde_json::from_str(&cache(&["--json"]).1).unwrap() };
    assert_eq!(cache(&[]), (Some(0), "0 B in cache: 0 models\n".to_owned(), String::new()));
    // It is cut off while it downloads.
    server.server().pass_reads("models/", 12, Later::Held);
    let mut job = server.start(folder.path(), &["run", "job.toml", "--quiet", "--cache", "cache"]);
    until_held(&server, &mut job);
    let used = json();
    assert_eq!((&used["models"][0]["url"], &used["models"][0]["in_use"]), (&URL.into(), &true.into()));
    let before = files(&folder.path().join("cache"));
    let (code, printed, said) = cache(&["--remove", URL]);
    assert_eq!(code, Some(3), "{said}");
    assert!(printed.contains(&format!("\n{URL}\n")) && printed.contains(", in use"), "{printed}");
    assert!(said.contains(&format!("a process uses {URL}: run the same command again")), "{said}");
    let (code, printed, said) = cache(&["--older-than", "0s", "--unfinished", "--replaced"]);
    assert_eq!((code, printed.contains("removed"), said.as_str()), (Some(0), false, ""));
    assert!(files(&folder.path().join("cache")).len() >= before.len(), "something goes while it is used");
    job.kill();
    server.server().pass_all();
    let (code, _, said) = cache(&["--older-than", "1h", "--unfinished"]);
    assert_eq!(code, Some(0), "{said}");
    let left = json();
    assert_eq!(
        (&left["models"][0]["unfinished_bytes"], &left["models"][0]["in_use"]),
        (&0.into(), &false.into())
    );
    // The next job downloads what is missing, and its model goes when it has ended.
    let (code, _, said) = outcome(&server, folder.path(), &["run", "job.toml"]);
    assert_eq!(code, Some(0), "{said}");
    let (code, printed, said) = cache(&["--remove", &format!("{URL}/")]);
    assert_eq!(code, Some(0), "{said}");
    assert!(printed.starts_with("removed ") && printed.contains(URL), "{printed}");
    assert_eq!(files(&folder.path().join("cache")).into_keys().collect::<Vec<_>>(), ["obsdiff-cache.json"]);
    let (code, _, said) = cache(&["--remove", URL]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("--remove: is s3://bucket/models/small, which is not in cache"), "{said}");
}

#[test]
fn a_command_that_reads_a_model_keeps_it_until_it_ends() {
    let (server, folder) = server_and_job();
    let models = server.folder.path().join("bucket/models");
    copy_folder(&models.join("small"), &models.join("other"));
    let other = "s3://bucket/models/other";
    // The first one is here, and the second one is on its way.
    server.server().pass_reads("models/other/", 0, Later::Held);
    let args = ["compare", URL, other, "--prompt", "a fox", "--steps", "1", "--out", "compare.png"];
    let mut reads = server.start(folder.path(), &[&args[..], &["--quiet", "--cache", "cache"]].concat());
    until_held(&server, &mut reads);
    let weights = |models: usize| {
        let names = files(&folder.path().join("cache")).into_keys();
        assert!(names.filter(|name| name.ends_with("vae/config.json")).count() == models, "{models} models");
    };
    weights(1);
    assert_eq!(outcome(&server, folder.path(), &["cache", "--remove", URL]).0, Some(3));
    weights(1);
    server.server().pass_all();
    reads.kill();
    assert_eq!(outcome(&server, folder.path(), &["cache", "--remove", URL]).0, Some(0));
    weights(0);
}

#[test]
fn what_the_store_replaces_can_be_removed_and_a_foreign_file_is_told() {
    let (server, folder) = server_and_job();
    assert_eq!(outcome(&server, folder.path(), &["inspect", URL]).0, Some(0));
    let config = server.folder.path().join("bucket/models/small/transformer/config.json");
    let words = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{words}\n")).unwrap();
    assert_eq!(outcome(&server, folder.path(), &["inspect", URL]).0, Some(0));
    fs::write(folder.path().join("cache/notes.txt"), "mine").unwrap();
    let (code, printed, _) = outcome(&server, folder.path(), &["cache"]);
    assert!(code == Some(0) && printed.contains(" replaced\n"), "{printed}");
    assert!(printed.contains("not obsdiff's, and left alone: cache/notes.txt"), "{printed}");
    assert!(printed.lines().all(|line| line.chars().count() <= 80), "{printed}");
    let (code, printed, _) = outcome(&server, folder.path(), &["cache", "--replaced"]);
    assert!(
        code == Some(0) && printed.starts_with("removed ") && !printed.contains(" replaced"),
        "{printed}"
    );
    server.server().read("");
    assert_eq!(outcome(&server, folder.path(), &["inspect", URL]).0, Some(0));
    assert!(server.server().read("models/").is_empty(), "what is left is downloaded again");
    assert_eq!(fs::read_to_string(folder.path().join("cache/notes.txt")).unwrap(), "mine");
}

#[test]
fn an_index_is_copied_with_its_absent_components_and_pickled_weights_are_told_once() {
    let (server, folder) = server_and_job();
    let place = server.folder.path().join("bucket/models/small");
    let index = place.join("model_index.json");
    let words = fs::read_to_string(&index).unwrap();
    let words =
        words.replacen('{', "{\n  \"image_encoder\": [null, null],\n  \"feature_extractor\": null,", 1);
    fs::write(&index, &words).unwrap();
    for name in ["vae/diffusion_pytorch_model.bin", "text_encoder/model.fp16.safetensors"] {
        fs::write(place.join(name), "x").unwrap();
    }
    let (code, _, said) = outcome(&server, folder.path(), &["run", "job.toml"]);
    assert_eq!(code, Some(0), "{said}");
    let says = "note: the output has no copy of pickled weights and variants of s3://bucket/models/small, which are never \
                read: text_encoder/model.fp16.safetensors and 1 more\n";
    assert_eq!(said.matches(says).count(), 1, "{said}");
    let out = folder.path().join("out");
    assert_eq!(fs::read_to_string(out.join("model_index.json")).unwrap(), words);
    assert!(out.join("vae/config.json").is_file() && !out.join("vae/diffusion_pytorch_model.bin").exists());
}

#[test]
fn a_cache_that_nobody_can_write_is_read_whether_or_not_it_has_files_of_locks() {
    if !available() {
        return;
    }
    let (server, folder) = server_and_job();
    let run = ["run", "job.toml", "--quiet", "--cache", "cache"];
    let (code, said) = server.start(folder.path(), &run).verdict();
    assert_eq!(code, Some(0), "{said}");
    let weights = "transformer/diffusion_pytorch_model.safetensors";
    let written = |output: &str| fs::read(folder.path().join(output).join(weights)).unwrap();

    let read_only = |output: &str| {
        let script = "mount --bind cache cache && mount -o remount,bind,ro cache && exec \"$0\" \"$@\"";
        let output = format!("output.path={output}");
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script, env!("CARGO_BIN_EXE_obsdiff")]).args(run);
        command.args(["--set", &output]).envs(server.server().options()).current_dir(folder.path());
        Process::spawn(&mut command).verdict()
    };
    let mut models = fs::read_dir(folder.path().join("cache/models")).unwrap();
    let model: PathBuf = models.next().unwrap().unwrap().path();
    for (output, lacks) in [("complete", &[][..]), ("lacking", &["users", "about.json", "lock"])] {
        lacks.iter().for_each(|file| fs::remove_file(model.join(file)).unwrap());
        let before = files(&folder.path().join("cache"));
        let (code, said) = read_only(output);
        assert_eq!(code, Some(0), "{output}: {said}");
        assert!(written(output) == written("out"));
        assert!(files(&folder.path().join("cache")) == before);
    }
    // What it lacks cannot be brought.
    fs::remove_dir_all(model.join("pipelines")).unwrap();
    fs::create_dir(model.join("pipelines")).unwrap();
    let (code, said) = read_only("none");
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("Read-only file system") && said.contains("another folder by --cache"), "{said}");
}
