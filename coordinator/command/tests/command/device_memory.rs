//! The memory of a GPU that jobs take.

use std::fs;

use serde_json::Value;

use crate::device::CONTEXT;
use crate::{asset, obsdiff, printed, text};

/// Its solver takes more than forward calls: the widest linear of one block, in several inverses.
#[test]
fn a_wide_site_is_solved_in_the_memory_of_a_gpu_that_its_plan_predicts() {
    let folder = tempfile::tempdir().unwrap();
    let libraries = obsdiff_tests::fake_cuda().to_str().unwrap();
    let skipped = ["transformer_blocks.[1-9].*", "*attn*", "*context*", "*ff.net.0*"];
    let rules: String = skipped
        .iter()
        .map(|linears| format!("[[sparsity.rules]]\nmatch = \"{linears}\"\nskip = true\n"))
        .collect();
    let job = format!(
        "[model]\npath = {:?}\n[sparsity]\nmethod = \"admm\"\npattern = \"unstructured\"\nallocation = \"uniform\"\nratio = 0.5\n{rules}\
         [calibration]\nprompts = {:?}\ncount = 1\nsteps = 1\nheight = 8\nwidth = 8\nmax_sequence_length = 8\n[evaluation]\ncount = 0\n\
         [output]\npath = \"out\"\n",
        asset("shapes-sd3"),
        asset("shapes-prompts.txt"),
    );
    fs::write(folder.path().join("job.toml"), job).unwrap();
    let planned = printed(folder.path(), &["plan", "--json", "--device-memory", "80GB", "job.toml"]);
    let memory = serde_json::from_str::<Value>(&planned).unwrap()["device_memory"].clone();
    let bytes = |key: &str| memory[key].as_u64().unwrap();
    assert!(bytes("solver_bytes") > 4 * bytes("activations_bytes"), "{memory}");
    let least = (bytes("peak_bytes") - CONTEXT).to_string();
    let environment = [("LD_LIBRARY_PATH", libraries), ("FAKE_CUDA_MEMORY", &*least)];
    let ran = obsdiff(folder.path(), &["run", "--quiet", "--device", "cuda", "job.toml"], &environment);
    assert!(ran.status.success(), "{}", text(&ran.stderr));
}
