//! What every device must do, in one suite: each test holds the device that `OBSDIFF_DEVICE` names to the numbers of the processor.
//! Without that variable it is the processor itself. On machines without a GPU the suite runs once more with libraries that do a GPU's work
//! in host memory.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[cfg(feature = "cuda")]
mod fake;
mod forward;
#[path = "../golden/mod.rs"]
mod golden;
mod goldens;
mod grams;
mod in_place;
#[path = "../golden/linear.rs"]
mod linear;
mod pictures;
mod solver;
#[cfg(feature = "cuda")]
mod strict;
mod structured;
mod text;
mod transfers;

use std::env;

use obsdiff_engine::device::ComputeDevice;

thread_local! {
    static OPENED: ComputeDevice = new_device();
}

/// The device that the suite is run for, opened once for each test: opening a GPU takes a while.
fn device() -> ComputeDevice {
    OPENED.with(Clone::clone)
}

/// The same, opened anew: nothing has crossed to it, and its memory is free.
fn new_device() -> ComputeDevice {
    let name = env::var("OBSDIFF_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
    ComputeDevice::open(name.parse().unwrap()).unwrap()
}
