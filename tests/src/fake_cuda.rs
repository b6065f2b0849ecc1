//! CUDA libraries in host memory, for tests on machines without a GPU.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::hash;

/// The sources of the libraries, each with the names that programs look for.
const LIBRARIES: [(&str, &[&str]); 3] = [
    ("driver.cpp", &["libcuda.so.1", "libcuda.so"]),
    ("cublas.cpp", &["libcublas.so.13", "libcublas.so"]),
    ("cusolver.cpp", &["libcusolver.so.12", "libcusolver.so"]),
];

/// Products and sums are rounded one by one, as nvcc does by `--fmad=false`. What some systems fortify by default refuses jumps between stacks.
const FLAGS: [&str; 10] = [
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-U_FORTIFY_SOURCE",
    "-pthread",
    "-Wno-clobbered",
    "-Wno-unknown-pragmas",
];

/// A folder with a CUDA driver, cuBLAS and cuSOLVER that work in host memory, to be put first in a child process's `LD_LIBRARY_PATH`. The
/// environment tells them what to lack: see `worker/engine/src/cuda/fake/driver.cpp`. They are compiled once, by g++.
pub fn fake_cuda() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(built)
}

fn built() -> PathBuf {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../worker/engine/src/cuda");
    let mut text = FLAGS.join(" ");
    for folder in ["fake", "kernels", "shim"] {
        let files = fs::read_dir(sources.join(folder)).unwrap();
        let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
        files.sort();
        files.iter().for_each(|file| text += &fs::read_to_string(file).unwrap());
    }
    let program = std::env::current_exe().unwrap();
    let folder = program.with_file_name(format!("fake-cuda-{:016x}", hash(&text)));
    if !folder.exists() {
        // Others may compile them at the same time: what is there is whole.
        let new = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
        for (source, names) in LIBRARIES {
            compile(&sources.join("fake").join(source), &new.path().join(names[0]), names[0]);
            for name in &names[1..] {
                std::os::unix::fs::symlink(names[0], new.path().join(name)).unwrap();
            }
        }
        let renamed = fs::rename(new.path(), &folder);
        assert!(renamed.is_ok() || folder.exists(), "{renamed:?}");
    }
    folder
}

fn compile(source: &Path, library: &Path, name: &str) {
    let mut compiler = Command::new("g++");
    compiler.args(FLAGS).arg(format!("-Wl,-soname,{name}")).arg("-o").arg(library).arg(source);
    let output =
        compiler.output().unwrap_or_else(|e| panic!("the fake CUDA libraries need g++ (Debian's g++): {e}"));
    assert!(output.status.success(), "g++: {}", String::from_utf8_lossy(&output.stderr));
}
