use std::path::Path;

use crate::{obsdiff, printed, text};

const COMMANDS: [&str; 18] = [
    "init",
    "run",
    "solve",
    "sweep",
    "coordinator",
    "worker",
    "status",
    "plan",
    "encode",
    "export",
    "inspect",
    "models",
    "cache",
    "sample",
    "compare",
    "selftest",
    "completions",
    "man",
];

#[test]
fn every_command_is_listed_and_has_an_example() {
    let help = printed(Path::new("."), &["--help"]);
    assert!(help.contains("Exit codes:") && help.contains("Example:"), "{help}");
    let listed =
        help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let listed: Vec<&str> =
        listed.filter_map(|line| line.strip_prefix("  ")?.split(' ').find(|w| !w.is_empty())).collect();
    assert_eq!(listed, [&COMMANDS[..], &["help"]].concat());
    for command in COMMANDS {
        let help = printed(Path::new("."), &[command, "--help"]);
        assert!(help.contains(&format!("Example:\n  obsdiff {command}")), "{help}");
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
    }
}

#[test]
fn the_models_that_can_be_pruned_are_listed() {
    let models = printed(Path::new("."), &["models"]);
    for class in
        ["StableDiffusion3Pipeline", "SD3Transformer2DModel", "FluxPipeline", "FluxTransformer2DModel"]
    {
        assert!(models.contains(class), "{models}");
    }
    assert!(models.contains("CLIPTextModelWithProjection, T5EncoderModel (optional)"), "{models}");
}

#[test]
fn an_option_that_would_be_ignored_is_refused() {
    let column = ["sample", ".", "--prompt", "a", "--column", "c"];
    let output = obsdiff(Path::new("."), &column, &[]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("'--prompt <TEXT>' cannot be used with '--column <COLUMN>'"), "{said}");
}

#[test]
fn a_command_line_that_cannot_be_read_exits_with_2() {
    let many: [&[&str]; 6] = [
        &["run", "job.toml", "--threads", "0"],
        &["run", "job.toml", "--set"],
        &["sample", ".", "--prompt", "a", "--prompts", "p.txt"],
        &["sample", ".", "--prompt", "a", "--steps", "0"],
        &["sample", ".", "--prompt", "a", "--guidance", "inf"],
        &["sample", ".", "--prompt", "a", "--max-sequence-length", "513"],
    ];
    for args in many {
        assert_eq!(obsdiff(Path::new("."), args, &[]).status.code(), Some(2), "{args:?}");
    }
    for args in [
        &[][..],
        &["prune"],
        &["inspect"],
        &["inspect", "--jsno", "."],
        &["run"],
        &["plan"],
        &["sample"],
        &["compare", "."],
    ] {
        let output = obsdiff(Path::new("."), args, &[]);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(text(&output.stderr).contains("Usage: obsdiff"), "{args:?}: {}", text(&output.stderr));
    }
}
