//! Paths at which no regular file lies: refused at once and by name, where opening them would wait for ever.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::setting::{RUN, Setting, WEIGHTS, listing};
use crate::text;

/// Much longer than any refusal takes: past it the command waits for a writer.
const LONG: Duration = Duration::from_secs(60);

/// The command, ended where it hangs.
fn ended(setting: &Setting, args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_obsdiff"));
    command.args(args).current_dir(setting.dir.path()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child: Child = command.spawn().unwrap();
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() && begun.elapsed() < LONG {
        thread::park_timeout(Duration::from_millis(10));
    }
    let code = child.try_wait().unwrap().and_then(|status| status.code());
    // Most have ended by then.
    let _ = child.kill();
    (code, text(&child.wait_with_output().unwrap().stderr))
}

/// Puts a FIFO in the place of a file.
fn fifo(setting: &Setting, name: &str) {
    let path = setting.path(name);
    // Where there was none, there is one now.
    let _ = fs::remove_file(&path);
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

fn assert_refused(setting: &Setting, args: &[&str], says: &[&str]) {
    let before = listing(setting.dir.path());
    let (code, said) = ended(setting, args);
    assert_eq!(code, Some(2), "{args:?}: {said}");
    for part in says {
        assert!(said.contains(part), "{args:?}: \"{part}\" is not in: {said}");
    }
    assert_eq!(listing(setting.dir.path()), before, "{args:?}: wrote something");
}

#[test]
fn a_fifo_in_the_place_of_any_file_that_a_job_reads_is_refused_at_once() {
    for name in [
        "job.toml",
        "prompts.txt",
        "pipeline/model_index.json",
        "pipeline/transformer/config.json",
        WEIGHTS,
        "pipeline/scheduler/scheduler_config.json",
        "pipeline/vae/config.json",
        "pipeline/vae/diffusion_pytorch_model.safetensors",
        "pipeline/text_encoder/config.json",
        "pipeline/text_encoder_3/model.safetensors",
        "pipeline/tokenizer/merges.txt",
        "pipeline/tokenizer/vocab.json",
        "pipeline/tokenizer_2/tokenizer_config.json",
        "pipeline/tokenizer_3/tokenizer.json",
        // Only copied to the output.
        "pipeline/vae/notes",
    ] {
        let setting = Setting::new(RUN);
        fifo(&setting, name);
        assert_refused(&setting, RUN, &[name, "is a FIFO: give a regular file"]);
    }
}

#[test]
fn neither_a_directory_nor_a_device_nor_a_socket_is_read_as_a_file() {
    let setting = Setting::new(RUN);
    let _listener = std::os::unix::net::UnixListener::bind(setting.path("socket.txt")).unwrap();
    fs::create_dir(setting.path("folder.txt")).unwrap();
    symlink("/dev/zero", setting.path("zero.txt")).unwrap();
    for (name, kind) in [("socket.txt", "socket"), ("folder.txt", "directory"), ("zero.txt", "device")] {
        let prompts = format!("calibration.prompts={name}");
        let args = [RUN, &["--set", &prompts]].concat();
        let kind = format!("is a {kind}: give a regular file");
        assert_refused(&setting, &args, &["--set calibration.prompts", name, &kind]);
        assert_refused(&setting, &["run", name], &[name, &kind]);
    }
}

#[test]
fn tokens_and_certificates_are_regular_files_too() {
    let setting = Setting::new(RUN);
    fifo(&setting, "token");
    fifo(&setting, "pem");
    let token = ["status", "http://127.0.0.1:1", "--token-file", "token"];
    assert_refused(&setting, &token, &["token: is a FIFO: give a regular file"]);
    let tls = ["status", "https://127.0.0.1:1", "--tls-cert", "pem", "--tls-key", "pem", "--tls-ca", "pem"];
    assert_refused(&setting, &tls, &["pem: is a FIFO: give a regular file"]);
}

#[test]
fn a_fifo_where_an_earlier_output_would_have_its_record_is_not_waited_for() {
    let setting = Setting::new(RUN);
    fs::create_dir(setting.path("out")).unwrap();
    fifo(&setting, "out/pruning.json");
    assert_refused(&setting, RUN, &["output.path: is out, which exists already"]);
}
