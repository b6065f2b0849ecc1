//! How long a device takes to add observations to Grams, to prune linears by them and to compute blocks, as one JSON object.
//!
//! `device_times DEVICE TOKENS WIDTH,.. ROWSxWIDTH,.. [FOLDER:BATCH:SIDE:TEXT]...`: see `measured`.

mod measured;

use anyhow::Result;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    println!("{}", measured::measured(&arguments)?);
    Ok(())
}
