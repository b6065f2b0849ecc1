//! Stores that know who asks as nobody: each place of a job is named at once, with what to check.

use std::fs;
use std::path::Path;
use std::process::Command;

use obsdiff_tests::copy_folder;

use crate::process::{ASSETS, Process, setting};
use crate::store::StoreServer;

#[test]
fn wrong_credentials_end_a_job_at_once_whatever_they_are_for() {
    let server = StoreServer::new();
    let source = Path::new(ASSETS).join("shapes-sd3");
    copy_folder(&source, &server.folder.path().join("bucket/model"));
    let local = format!("path = {source:?}");
    for (url, from, to) in [
        ("s3://bucket/model", &*local, "path = \"s3://bucket/model\""),
        ("s3://bucket/out", "path = \"out\"", "path = \"s3://bucket/out\"\nstate = \"state\""),
        ("s3://bucket/state", "path = \"out\"", "path = \"out\"\nstate = \"s3://bucket/state\""),
    ] {
        let folder = setting(2);
        let job = folder.path().join("job.toml");
        let words = fs::read_to_string(&job).unwrap();
        assert!(words.contains(from), "{from} is not in {words}");
        fs::write(&job, words.replace(from, to)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_obsdiff"));
        command
            .args(["run", "job.toml", "--quiet", "--cache", "cache"])
            .envs(server.server().options())
            .env("AWS_SECRET_ACCESS_KEY", "of-somebody-else")
            .current_dir(folder.path());
        let (code, said) = Process::spawn(&mut command).verdict();
        assert_eq!(code, Some(3), "{url}: {said}");
        assert!(said.contains(url) && said.contains("with these credentials: "), "{url}: {said}");
        assert!(said.contains("check AWS_ACCESS_KEY_ID") && !said.contains("trying again"), "{url}: {said}");
        assert!(!folder.path().join("out").exists() && !folder.path().join("state").exists(), "{url}");
    }
}
