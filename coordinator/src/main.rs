//! The `obsdiff` command.
fn main() {}
