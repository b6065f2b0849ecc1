//! CUDA libraries in host memory, for tests on machines without a GPU.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::hash;

/// Folders of their sources, and of what these include.
const ENGINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../worker/engine/src/cuda");
const NCCL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../worker/src/collective/nccl/fake");

/// The driver, with the names that programs look for.
const DRIVER: [&str; 2] = ["libcuda.so.1", "libcuda.so"];
/// What works in its memory and on its streams.
const LIBRARIES: [(&str, [&str; 2]); 3] = [
    ("cublas.cpp", ["libcublas.so.13", "libcublas.so"]),
    ("cusolver.cpp", ["libcusolver.so.12", "libcusolver.so"]),
    ("nvml.cpp", ["libnvidia-ml.so.1", "libnvidia-ml.so"]),
];

/// For this machine's processor: jobs wait for these libraries. Products and sums are rounded one by one, as nvcc does by `--fmad=false`, and are
/// added in the order of the source. What some systems fortify by default refuses jumps between stacks.
const FLAGS: [&str; 11] = [
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-U_FORTIFY_SOURCE",
    "-pthread",
    "-Wno-clobbered",
    "-Wno-unknown-pragmas",
];
/// The driver's besides: the process ends where a kernel reads or writes numbers, or several at once, at an address that is no multiple of
/// their size.
const KERNEL_FLAGS: [&str; 2] = ["-fsanitize=alignment", "-fno-sanitize-recover=alignment"];
const NCCL_FLAGS: [&str; 8] =
    ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-pthread"];

/// What a fake NCCL has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FakeNccl {
    /// All that groups call.
    Current,
    /// All but `ncclCommRevoke`, as before 2.28.
    WithoutRevoke,
}

/// A folder with a CUDA driver, cuBLAS, cuSOLVER, NVML and NCCL that work in host memory, to be put first in a child process's `LD_LIBRARY_PATH`. The
/// environment says what they lack: see `worker/engine/src/cuda/fake/driver.cpp`. They are compiled once, by g++.
pub fn fake_cuda() -> &'static Path {
    fake_cuda_with(FakeNccl::Current)
}

/// The same with this NCCL.
pub fn fake_cuda_with(nccl: FakeNccl) -> &'static Path {
    static BUILT: [OnceLock<PathBuf>; 2] = [const { OnceLock::new() }; 2];
    BUILT[nccl as usize].get_or_init(|| built(nccl))
}

fn built(nccl: FakeNccl) -> PathBuf {
    let folders = ["fake", "kernels", "shim"].map(|folder| Path::new(ENGINE).join(folder));
    let mut text = format!("{nccl:?} {FLAGS:?} {KERNEL_FLAGS:?} {NCCL_FLAGS:?} {}", processor());
    for folder in folders.iter().map(PathBuf::as_path).chain([Path::new(NCCL)]) {
        let files = fs::read_dir(folder).unwrap();
        let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
        files.sort();
        files.iter().for_each(|file| text += &fs::read_to_string(file).unwrap());
    }
    let program = std::env::current_exe().unwrap();
    let folder = program.with_file_name(format!("fake-cuda-{:016x}", hash(&text)));
    if folder.exists() {
        return folder;
    }
    // Others may compile them at the same time: what is there is whole.
    let new = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
    let place = |name: &str| new.path().join(name);
    let driver = place(DRIVER[0]);
    let revoke: &[&str] = match nccl {
        FakeNccl::Current => {
            compile(&folders[0].join("driver.cpp"), &driver, &[&FLAGS[..], &KERNEL_FLAGS].concat(), &[]);
            for (source, names) in LIBRARIES {
                compile(&folders[0].join(source), &place(names[0]), &FLAGS, &[&driver]);
            }
            &[]
        }
        FakeNccl::WithoutRevoke => {
            for name in LIBRARIES.map(|(_, names)| names[0]).into_iter().chain([DRIVER[0]]) {
                fs::hard_link(fake_cuda().join(name), place(name)).unwrap();
            }
            &["-DWITHOUT_REVOKE"]
        }
    };
    for [library, name] in LIBRARIES.map(|(_, names)| names).into_iter().chain([DRIVER]) {
        symlink(library, place(name)).unwrap();
    }
    let flags = [&NCCL_FLAGS, revoke].concat();
    compile(&Path::new(NCCL).join("nccl.cc"), &place("libnccl.so.2"), &flags, &[&driver]);
    let renamed = fs::rename(new.path(), &folder);
    assert!(renamed.is_ok() || folder.exists(), "{renamed:?}");
    folder
}

/// The instructions of this machine's processor: another one may lack some that the libraries are compiled to.
fn processor() -> String {
    let known = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = known.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"));
    line.unwrap_or_default().to_owned()
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
