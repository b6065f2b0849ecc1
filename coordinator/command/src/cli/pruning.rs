//! How a process prunes.

use clap::Args;
use obsdiff_engine::device::DeviceName;

use super::{ProcessArgs, SaveSums};

/// How a process prunes, and what it prints.
#[derive(Debug, Args)]
pub struct PruningArgs {
    /// Workers in this process, which share its threads. Each has Grams of its own; the result does not depend on their number. With
    /// --device cuda each is a process of its own, on one of the first GPUs [default: one for each thread where all but the first take at
    /// most 256MiB together, which is faster for small models, else 1].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub workers: Option<u32>,
    /// Also prune the source by magnitude, uniformly and without an update, in memory only, and print its error beside that of the
    /// job: heads and neurons by the sums of their weights.
    #[arg(long)]
    pub baseline: bool,
    /// Where prompts are encoded, the transformer is computed, Grams summed, linears pruned by `sparsity.method = "admm"` or "obs", and
    /// the pruned model and its pictures are measured: cpu, cuda, or cuda:N for the N-th GPU, counted from 0.
    #[arg(long, value_name = "DEVICE", default_value_t)]
    pub device: DeviceName,
    /// How often each worker saves in the job's state what it has summed of the open package, such as 10min, or never. The same command
    /// then runs fewer shards again after an interruption. Saving takes a twentieth of the time at most, and room for twice the Grams
    /// of all workers.
    #[arg(long, value_name = "TIME", default_value = "10min")]
    pub save_sums: SaveSums,
    /// Print one JSON object with the same figures instead of text. Numbers with a unit have it in their names.
    #[arg(long)]
    pub json: bool,
    /// How the process runs.
    #[command(flatten)]
    pub process: ProcessArgs,
}
