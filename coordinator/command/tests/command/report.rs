//! `report.html` and `README.md` of an output, and the report that `compare` writes.

use std::fs;
use std::path::Path;

use crate::structured::job;
use crate::{asset, obsdiff, printed, text};

const HALF: &str = "pattern = \"unstructured\"\nratio = 0.5";

/// Prunes the small pipeline into `folder`/`name`.
pub(crate) fn prune(folder: &Path, name: &str) {
    let file = job(folder, name, asset("shapes-sd3").to_str().unwrap(), HALF, "");
    printed(folder, &["run", &file, "--quiet"]);
}

/// A report without the section on time and memory.
fn of_every_run(report: &str) -> String {
    let (before, rest) = report.split_once("<section aria-labelledby=\"time\">").unwrap();
    let (time, after) = rest.split_once("</section>").unwrap();
    assert!(time.contains("The job took "), "{time}");
    format!("{before}{after}")
}

#[test]
fn an_output_tells_of_itself_alike_in_every_run() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [one, other] = folders.each_ref().map(|folder| {
        prune(folder.path(), "out");
        let read = |file: &str| fs::read_to_string(folder.path().join("out").join(file)).unwrap();
        (of_every_run(&read("report.html")), read("README.md"))
    });
    assert_eq!(one, other);
    let (report, card) = one;
    assert_eq!(report.matches("<img ").count(), 2 * 3);
    assert!(
        report.contains("Error along the denoising steps")
            && report.contains("transformer_blocks.5.ff.net.2")
    );
    assert!(
        card.starts_with("---\nlibrary_name: diffusers\n") && card.contains("differ from the source's by 0.")
    );

    // Pruned again, the new output describes itself, and not how its source came about.
    let folder = folders[0].path();
    let file = job(folder, "again", "out", "pattern = \"2:4\"", "");
    printed(folder, &["run", &file, "--quiet", "--set", "evaluation.count=0"]);
    let card = fs::read_to_string(folder.join("again/README.md")).unwrap();
    assert!(card.contains("# again\n") && card.contains("It was not compared with the source."), "{card}");
    assert!(card.contains("to_sparse_semi_structured") && card.contains("base_model: \"out\""), "{card}");
    let left: Vec<_> = fs::read_dir(folder.join("again")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with('.')), "{left:?}");
}

#[test]
fn a_comparison_writes_a_report_and_leaves_other_files_alone() {
    let dir = tempfile::tempdir().unwrap();
    let dense = asset("shapes-sd3");
    let dense = dense.to_str().unwrap();
    let args = [
        "compare",
        dense,
        dense,
        "--prompt",
        "<script>alert(1)</script>",
        "--prompt",
        "a prompt that is much longer than what is left of a line with 80 columns beside two figures",
        "--steps",
        "2",
        "--max-sequence-length",
        "24",
        "--quiet",
    ];
    let compare = |report: &str| obsdiff(dir.path(), &[&args[..], &["--report", report]].concat(), &[]);
    fs::write(dir.path().join("mine.html"), "<p>mine</p>").unwrap();
    for (report, says) in [
        ("mine.html", "mine.html: exists and is no report that obsdiff wrote: choose another --report"),
        ("report.pdf", "report.pdf: is not an .html file"),
        ("absent/report.html", "absent: no such folder: make it first"),
    ] {
        let refused = compare(report);
        assert_eq!(refused.status.code(), Some(2));
        assert!(text(&refused.stderr).contains(says), "{}", text(&refused.stderr));
        assert!(!dir.path().join("compare.png").exists(), "{report} was refused late");
    }
    assert_eq!(fs::read_to_string(dir.path().join("mine.html")).unwrap(), "<p>mine</p>");
    for _ in 0..2 {
        let output = compare("report.html");
        assert!(output.status.success(), "{}", text(&output.stderr));
        let printed = text(&output.stdout);
        assert!(printed.contains("report.html: the report"), "{printed}");
        assert!(printed.lines().any(|line| line.starts_with("a prompt that is much longer")), "{printed}");
        let table = printed.lines().take_while(|line| !line.is_empty());
        assert!(table.map(|line| line.chars().count()).all(|columns| columns <= 80), "{printed}");
    }
    let report = fs::read_to_string(dir.path().join("report.html")).unwrap();
    assert!(report.contains("&lt;script&gt;alert(1)&lt;/script&gt;: by the pruned model"), "{report}");
    assert!(report.matches("<script").count() == 1 && report.contains("PSNR equal, latent error 0.0000"));
    let files = fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(files, 3, "a temporary file is left");
}

#[test]
fn a_transformer_goes_to_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let pipeline = asset("shapes-flux");
    let export =
        |file: &str| obsdiff(dir.path(), &["export", pipeline.to_str().unwrap(), "--single-file", file], &[]);
    let output = export("one.safetensors");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).starts_with("one.safetensors: "), "{}", text(&output.stdout));
    let listed = printed(dir.path(), &["inspect", "one.safetensors"]);
    for (block, name) in [("double_blocks.0 (", "  img_attn.qkv "), ("single_blocks.4 (", "  linear1 ")] {
        let below = listed.split_once(block).unwrap_or_else(|| panic!("no {block}: {listed}")).1;
        assert!(below.contains(name), "{listed}");
    }
    for (file, says) in [
        ("one.safetensors", "one.safetensors: exists already: choose another --single-file"),
        ("one.bin", "one.bin: is not a .safetensors file"),
        ("absent/one.safetensors", "absent: no such folder: make it first"),
    ] {
        let refused = export(file);
        assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
        assert!(text(&refused.stderr).contains(says), "{}", text(&refused.stderr));
    }
}
