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

/// Where the fake NCCL lies, which sums by the driver's memory.
const NCCL_SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../worker/src/collective/nccl/fake");

const NCCL_FLAGS: [&str; 5] = ["-std=c++17", "-O2", "-fPIC", "-shared", "-pthread"];

/// A folder with a CUDA driver, cuBLAS, cuSOLVER and NCCL that work in host memory, to be put first in a child process's `LD_LIBRARY_PATH`. The
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
    let nccl = Path::new(NCCL_SOURCES);
    ["nccl.cc", "hub.h", "stream.h"]
        .iter()
        .for_each(|file| text += &fs::read_to_string(nccl.join(file)).unwrap());
    let program = std::env::current_exe().unwrap();
    let folder = program.with_file_name(format!("fake-cuda-{:016x}", hash(&text)));
    if !folder.exists() {
        // Others may compile them at the same time: what is there is whole.
        let new = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
        for (source, names) in LIBRARIES {
            compile(&sources.join("fake").join(source), &new.path().join(names[0]), &FLAGS, &[]);
            for name in &names[1..] {
                std::os::unix::fs::symlink(names[0], new.path().join(name)).unwrap();
            }
        }
        let driver = new.path().join("libcuda.so.1");
        compile(&nccl.join("nccl.cc"), &new.path().join("libnccl.so.2"), &NCCL_FLAGS, &[&driver]);
        let renamed = fs::rename(new.path(), &folder);
        assert!(renamed.is_ok() || folder.exists(), "{renamed:?}");
    }
    folder
}

/// Compiles a library to its file, whose name is the one that it is asked for by.
fn compile(source: &Path, library: &Path, flags: &[&str], needed: &[&Path]) {
    let name = library.file_name().unwrap().to_str().unwrap();
    let mut compiler = Command::new("g++");
    compiler.args(flags).arg(format!("-Wl,-soname,{name}")).arg("-o").arg(library).arg(source).args(needed);
    let output =
        compiler.output().unwrap_or_else(|e| panic!("the fake CUDA libraries need g++ (Debian's g++): {e}"));
    assert!(output.status.success(), "g++: {}", String::from_utf8_lossy(&output.stderr));
}
