//! Files that are not obsdiff's: whatever a job or an argument names, they stay as they are.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use crate::setting::{Case, RUN, Setting, listing, refused};
use crate::{obsdiff, text};

const fn run(name: &'static str, arrange: fn(&mut Setting), says: &'static [&'static str]) -> Case {
    Case { name, args: RUN, arrange, says }
}

const fn sample(name: &'static str, arrange: fn(&mut Setting), says: &'static [&'static str]) -> Case {
    let args = &["sample", "pipeline", "--prompt", "a", "--max-sequence-length", "24", "--steps", "1"];
    Case { name, args, arrange, says }
}

/// A folder with a user's file in it.
fn mine(setting: &mut Setting) {
    fs::create_dir(setting.path("mine")).unwrap();
    setting.write("mine/thesis.tex", "years of work");
}

const STATES: &[Case] = &[
    run(
        "a state in a folder with other files",
        |s| {
            mine(s);
            s.add(&["--set", "output.state=mine"]);
        },
        &["mine holds thesis.tex, which obsdiff did not write: set output.state to a folder of its own"],
    ),
    run(
        "a state in a folder with other files, through a link",
        |s| {
            mine(s);
            symlink("mine", s.path("link")).unwrap();
            s.add(&["--set", "output.state=link"]);
        },
        &["link holds thesis.tex, which obsdiff did not write"],
    ),
    run(
        "a state by the URL of a folder with other files",
        |s| {
            mine(s);
            let url = format!("output.state=file://{}", s.path("mine").display());
            s.add(&["--set", &url]);
        },
        &["mine holds thesis.tex, which obsdiff did not write"],
    ),
    run(
        "a state in the current folder",
        |s| s.add(&["--set", "output.state=."]),
        &["--set output.state: is ., which holds model.path, pipeline: choose a place of its own"],
    ),
    run(
        "a state that would hold the output",
        |s| s.add(&["--set", "output.path=new/out", "--set", "output.state=new"]),
        &["--set output.state: is new, which holds output.path, new/out"],
    ),
    run(
        "a state in the output",
        |s| s.add(&["--set", "output.state=out/state"]),
        &["--set output.state: is out/state, which lies in output.path, out"],
    ),
    run(
        "a state in the model's place",
        |s| s.add(&["--set", "output.state=pipeline"]),
        &["--set output.state: is pipeline, which is the same as model.path, pipeline"],
    ),
    run(
        "a state in the model, through a link",
        |s| {
            symlink("pipeline/vae", s.path("link")).unwrap();
            s.add(&["--set", "output.state=link/state"]);
        },
        &["--set output.state: is link/state, which lies in model.path, pipeline"],
    ),
    run(
        "a state in the prompts' place",
        |s| s.add(&["--set", "output.state=prompts.txt"]),
        &["--set output.state: is prompts.txt, which is the same as calibration.prompts"],
    ),
    run(
        "a state that looks like one, but is not marked",
        |s| {
            fs::create_dir(s.path("out.state")).unwrap();
            s.write("out.state/job.json", "of another program");
        },
        &["out.state holds job.json, but no obsdiff.json that marks it"],
    ),
];

const OUTPUTS: &[Case] = &[
    run(
        "an output in the model",
        |s| s.add(&["--set", "output.path=pipeline/pruned"]),
        &["--set output.path: is pipeline/pruned, which lies in model.path, pipeline"],
    ),
    run(
        "an output in the model, through a link",
        |s| {
            symlink(".", s.path("link")).unwrap();
            s.add(&["--set", "output.path=link/pipeline/new/pruned"]);
        },
        &["which lies in model.path, pipeline"],
    ),
    run(
        "an output in the model's place",
        |s| s.add(&["--set", "output.path=pipeline/"]),
        &["which is the same as model.path"],
    ),
    run(
        "an output in the prompts' place",
        |s| s.add(&["--set", "output.path=prompts.txt"]),
        &["which is the same as calibration.prompts"],
    ),
    run(
        "an output in the held-out prompts' place",
        |s| {
            s.write("held-out.txt", "a\nb\n");
            s.add(&["--set", "evaluation.prompts=held-out.txt", "--set", "output.path=./held-out.txt"]);
        },
        &["which is the same as evaluation.prompts, held-out.txt"],
    ),
    run(
        "an output without a name",
        |s| s.add(&["--set", "output.path=new/.."]),
        &["output.path: is new/.., which"],
    ),
    run(
        "an output whose name leaves no room for the one it is written under",
        |s| s.add(&["--set", &format!("output.path={}", "n".repeat(245))]),
        &["--set output.path: is nnn", "has 245 bytes: at most 241 can be used"],
    ),
];

const TILDES: &[Case] = &[
    run(
        "an output at home",
        |s| s.add(&["--set", "output.path=~/out"]),
        &["--set output.path: is ~/out, but only a shell expands ~: write the whole path"],
    ),
    run(
        "a state at home",
        |s| s.add(&["--set", "output.state=~/state"]),
        &["--set output.state: is ~/state"],
    ),
    run("a model at home", |s| s.add(&["--set", "model.path=~me/m"]), &["--set model.path: is ~me/m"]),
    run(
        "prompts at home",
        |s| s.add(&["--set", "calibration.prompts=~/p"]),
        &["--set calibration.prompts: is ~/p"],
    ),
    run(
        "held-out prompts at home",
        |s| s.replace("job.toml", "[output]", "[evaluation]\nprompts = \"~/p.txt\"\n[output]"),
        &["job.toml: evaluation.prompts: is ~/p.txt"],
    ),
];

const PICTURES: &[Case] = &[
    sample(
        "over another file",
        |s| {
            s.write("photo.png", "not one of ours");
            s.add(&["--out", "photo.png"]);
        },
        &["photo.png: exists and is no picture that obsdiff wrote: choose another --out"],
    ),
    sample(
        "into a folder, over another file",
        |s| {
            fs::create_dir(s.path("photos")).unwrap();
            s.write("photos/0000.png", "not one of ours");
            s.add(&["--out", "photos"]);
        },
        &["photos/0000.png: exists and is no picture that obsdiff wrote"],
    ),
    sample(
        "in the pipeline",
        |s| s.add(&["--out", "pipeline/vae/a.png"]),
        &["lies in pipeline, which is only read"],
    ),
    sample(
        "in the pipeline's place",
        |s| s.add(&["--out", "pipeline"]),
        &["lies in pipeline, which is only read"],
    ),
    Case {
        name: "over a comparison's prompts",
        args: &["compare", "pipeline", "pipeline", "--prompts", "p.png", "--out", "p.png"],
        arrange: |s| s.write("p.png", "a prompt"),
        says: &["p.png"],
    },
    Case {
        name: "a grid over another file",
        args: &["compare", "pipeline", "pipeline", "--prompt", "a"],
        arrange: |s| s.write("compare.png", "not one of ours"),
        says: &["compare.png: exists and is no picture that obsdiff wrote"],
    },
];

#[test]
fn a_state_keeps_away_from_everything_else() {
    refused(STATES);
}

#[test]
fn an_output_keeps_away_from_everything_that_is_read() {
    refused(OUTPUTS);
}

#[test]
fn a_tilde_is_refused_with_what_to_write() {
    refused(TILDES);
}

#[test]
fn pictures_replace_no_file_but_their_own() {
    refused(PICTURES);
}

#[test]
fn a_tilde_is_refused_in_arguments_too() {
    let setting = Setting::new(&[]);
    for args in [
        &["run", "~/job.toml"][..],
        &["inspect", "~/model"],
        &["sample", "~/model", "--prompt", "a"],
        &["sample", "pipeline", "--prompts", "~/prompts.txt"],
        &["compare", "pipeline", "pipeline", "--prompt", "a", "--out", "~/grid.png"],
        &["worker", "--coordinator", "http://127.0.0.1:1", "--token-file", "~/token"],
    ] {
        let output = obsdiff(setting.dir.path(), args, &[]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("only a shell expands ~: write the whole path"), "{said}");
    }
}

/// What is left of a setting after a run: paths that were not there before, and whether any is gone or changed.
fn new_paths(setting: &Setting, before: &[(PathBuf, u64)]) -> Vec<PathBuf> {
    let after = listing(setting.dir.path());
    let files = before.iter().filter(|(path, _)| path.is_file());
    files.for_each(|file| assert!(after.contains(file), "{} changed", file.0.display()));
    let new = after.iter().filter(|(path, _)| !before.iter().any(|(old, _)| old == path));
    new.map(|(path, _)| path.strip_prefix(setting.dir.path()).unwrap().to_owned()).collect()
}

#[test]
fn a_job_that_is_done_leaves_folders_that_were_there_before() {
    let mut setting = Setting::new(RUN);
    fs::create_dir(setting.path("empty")).unwrap();
    symlink("empty", setting.path("link")).unwrap();
    setting.add(&["--set", "output.state=link"]);
    let before = listing(setting.dir.path());
    let output = obsdiff(setting.dir.path(), &setting.args(), &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(new_paths(&setting, &before).iter().all(|path| path.starts_with("out")));
    assert!(setting.path("empty").is_dir() && setting.path("link").is_symlink());
}

#[test]
fn a_job_does_not_touch_what_another_one_is_writing_or_has_left() {
    let mut setting = Setting::new(RUN);
    // Of a job whose output is `out.5`, of an earlier release, and of a user.
    let others = [".out.5.obsdiff-1", ".out.abc.partial", ".out.obsdiff-mine", "out.state.bak"];
    for folder in others {
        fs::create_dir(setting.path(folder)).unwrap();
        setting.write(&format!("{folder}/half"), "written");
    }
    let before = listing(setting.dir.path());
    let output = obsdiff(setting.dir.path(), &setting.args(), &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(new_paths(&setting, &before).iter().all(|path| path.starts_with("out")));
}

#[test]
fn a_coordinator_whose_port_is_taken_leaves_nothing() {
    let mut setting = Setting::new(&["coordinator", "job.toml", "--quiet", "--listen"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    setting.add(&[&address]);
    let before = listing(setting.dir.path());
    let output = obsdiff(setting.dir.path(), &setting.args(), &[]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains(&format!("--listen: is {address}: Address already in use")), "{said}");
    assert!(
        said.trim_end().ends_with("; choose an address of this machine and a port that is free"),
        "{said}"
    );
    assert_eq!(listing(setting.dir.path()), before);
}
