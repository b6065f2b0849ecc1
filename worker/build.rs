//! Compiles the way to Gloo, where it is asked for.

#[cfg(not(feature = "gloo"))]
fn main() {}

#[cfg(feature = "gloo")]
fn main() {
    const FOLDER: &str = "src/collective/gloo";
    for file in ["mesh.rs", "mesh.h", "mesh.cc"] {
        println!("cargo:rerun-if-changed={FOLDER}/{file}");
    }
    println!("cargo:rustc-link-lib=gloo");
    cxx_build::bridge(format!("{FOLDER}/mesh.rs"))
        .file(format!("{FOLDER}/mesh.cc"))
        .std("c++17")
        .warnings(true)
        .flag_if_supported("-Wno-unused-parameter")
        .compile("obsdiff-gloo");
}
