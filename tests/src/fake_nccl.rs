//! A CUDA driver and an NCCL in host memory, for tests of what needs them on machines that have neither.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use crate::hash;

/// Where their sources lie.
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../worker/src/collective/nccl/fake");

/// What a fake NCCL has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FakeNccl {
    /// All that groups call.
    Current,
    /// All but `ncclCommRevoke`, as before 2.28.
    WithoutRevoke,
}

/// A folder that holds `libcuda.so.1` and `libnccl.so.2`, compiled from the sources as they are; none where there is no compiler. A
/// process finds them if it is started with this folder as `LD_LIBRARY_PATH`.
pub fn fake_nccl(nccl: FakeNccl) -> Option<PathBuf> {
    // One test of a process compiles, the others wait for it.
    static COMPILING: Mutex<()> = Mutex::new(());
    let _compiling = COMPILING.lock().unwrap_or_else(PoisonError::into_inner);
    let source = |name: &str| Path::new(SOURCES).join(name);
    let (cuda, group) = (source("cuda.cc"), source("nccl.cc"));
    let texts =
        [&cuda, &group, &source("hub.h"), &source("stream.h")].map(|file| fs::read_to_string(file).unwrap());
    let text = format!("{}{nccl:?}", texts.concat());
    // Beside what cargo built: .../target/release/deps/TEST.
    let own = std::env::current_exe().unwrap();
    let target = own.ancestors().nth(2).unwrap();
    let folder = target.join(format!("fake-nccl-{:016x}", hash(&text)));
    if folder.is_dir() {
        return Some(folder);
    }
    if Command::new("g++").arg("--version").output().is_err() {
        return None;
    }
    let fresh = target.join(format!("fake-nccl-{}-{nccl:?}", std::process::id()));
    fs::create_dir_all(&fresh).unwrap();
    let compile = |source: &Path, library: &str, more: &[&str]| {
        let output = Command::new("g++")
            .args(["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread"])
            .arg(source)
            .args(["-o", library, &format!("-Wl,-soname,{library}"), "-L."])
            .args(more)
            .current_dir(&fresh)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    compile(&cuda, "libcuda.so.1", &[]);
    // The name that is looked for first, so that a real driver is not found before.
    fs::hard_link(fresh.join("libcuda.so.1"), fresh.join("libcuda.so")).unwrap();
    let revoke: &[&str] = if nccl == FakeNccl::Current { &[] } else { &["-DWITHOUT_REVOKE"] };
    compile(&group, "libnccl.so.2", &[&["-l:libcuda.so.1"], revoke].concat());
    // Another process may have been faster.
    if fs::rename(&fresh, &folder).is_err() {
        fs::remove_dir_all(&fresh).unwrap();
    }
    Some(folder)
}
