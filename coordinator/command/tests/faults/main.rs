//! Faults that real processes meet: networks cut and healed, slow and lossy ones, stores that fail, full disks, and all sorts of them by
//! seeds. Whatever happens, the result is that of one undisturbed process.
#![cfg(feature = "gloo")]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cable;
mod cache;
mod cluster;
mod cut;
mod disk;
mod hosts;
mod model;
mod output;
#[path = "../process/mod.rs"]
mod process;
mod random;
mod rights;
#[path = "../../../tests/store/s3.rs"]
mod s3;
mod seeds;
mod slow;
mod store;
