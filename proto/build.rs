//! Compiles the gRPC messages and services, where they are asked for.

#[cfg(not(feature = "wire"))]
fn main() {}

#[cfg(feature = "wire")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = ["session", "command", "status", "jobs", "rendezvous"];
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_source_info(true).include_imports(true);
    compiler.open_files(files.map(|name| format!("obsdiff/v1/{name}.proto")))?;
    // Descriptors for gRPC server reflection.
    let descriptors = std::path::PathBuf::from(std::env::var("OUT_DIR")?).join("obsdiff_v1.bin");
    std::fs::write(descriptors, compiler.encode_file_descriptor_set())?;
    // The services run over any transport; who opens one, chooses.
    tonic_prost_build::configure()
        .build_transport(false)
        .btree_map(".")
        .bytes(".")
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
