//! The command line: what each command takes, and what its help says.

mod cache;
mod collective;
mod export;
mod gpus;
mod kept;
mod output;
mod pruning;
mod sampling;
mod saving;
mod security;
mod shell;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use obsdiff_engine::device::DeviceName;
use obsdiff_files::starts_with_tilde;
use obsdiff_proto::ByteSize;

pub use cache::{CacheArgs, CachedModelsArgs};
pub use collective::CollectiveChoice;
pub use export::ExportArgs;
pub use gpus::GpuChoice;
pub use kept::{SolveArgs, SweepArgs};
pub use output::{LogFormat, OutputStyle};
pub use pruning::PruningArgs;
pub use sampling::{CompareArgs, SampleArgs, SamplingArgs};
pub use saving::SaveSums;
pub use security::SecurityArgs;
pub use shell::{CompletionsArgs, InitArgs, ManArgs};

/// One-shot pruning of diffusion transformers.
///
/// obsdiff prunes diffusion transformers without training, by second-order information (Optimal Brain Surgeon) that it gathers along
/// the denoising trajectory of your own prompts. It reads and writes diffusers pipeline directories.
#[derive(Debug, Parser)]
#[command(name = "obsdiff", version, max_term_width = 100, after_long_help = AFTER_HELP)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: CliCommand,
    /// What the process reports of its work.
    #[command(flatten)]
    pub style: OutputStyle,
    /// Where models of object stores are kept.
    #[command(flatten)]
    pub cache: CacheArgs,
}

const AFTER_HELP: &str = "\
Environment:
  OBSDIFF_SECTION__KEY  overrides a key of the job file: OBSDIFF_SPARSITY__RATIO=0.6,
                        OBSDIFF_SPARSITY__RULES__0__RATIO=0.3; an empty one unsets it
  OBSDIFF_CACHE         as --cache
  OBSDIFF_LOG           what is logged to standard error: error, warn (default), info, debug,
                        or by module, such as obsdiff_engine=debug
  NO_COLOR              text without colors, where it is set

Exit codes:
  0    done, now or before
  2    the input has to be changed first; nothing was written
  3    failed; the same command may be run again
  4    a fault of obsdiff; please report it
  130  stopped by SIGINT (Ctrl-C); the same command goes on
  143  stopped by SIGTERM; the same command goes on

Example:
  obsdiff inspect ./pipeline";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum CliCommand {
    /// Write a job for a pipeline.
    ///
    /// Looks at the pipeline and writes a commented job that prunes half of it, with as many packages as this machine's memory needs.
    /// Without --prompts, and where there is no prompts.txt beside the job, it writes sample prompts there, to try the job with.
    Init(InitArgs),
    /// Prune a pipeline on this machine.
    ///
    /// Reads the job's pipeline, calibrates on its prompts, prunes package by package and writes a pipeline that diffusers loads. All
    /// input is checked before any work, and the output appears whole or not at all. Ends with what was pruned and by how
    /// much, block by block, how far the final latents of held-out prompts are from the source's, and how to load the output. The same
    /// command goes on after an interruption; where the job is done already, it says so and changes nothing.
    Run(RunArgs),
    /// Prune again with the Grams that an earlier job kept, without calibrating.
    ///
    /// GRAMS is what that job had as output.grams. Its settings are those of this job, except for what --set changes: output.path has
    /// to be given, and ratios, patterns, methods, rules and damping may differ. The pruned weights are those that the whole job would
    /// give, or near them: where the earlier job had several packages and surveyed nothing, or kept Grams as floats.
    Solve(SolveArgs),
    /// Show errors against sparsity by the Grams that an earlier job kept.
    ///
    /// First it prints, before anything is solved, how far the velocity of each pruned model is expected to be from the dense one's:
    /// where the earlier job surveyed unstructured ratios. Then it solves and measures each point on the held-out prompts, and writes
    /// all figures as sweep.csv and sweep.json, with a chart, sweep.png.
    Sweep(SweepArgs),
    /// Coordinate a job for workers on other hosts.
    ///
    /// Checks the job as `run` does, then listens for workers, hands out shards and solving, and ends when a worker has written the
    /// pipeline, as `run` does. The same command goes on from the last finished package, or says that the job is done already, to workers
    /// that wait for it, too. Without certificates it listens on loopback.
    Coordinator(CoordinatorArgs),
    /// Work for a coordinator.
    ///
    /// The worker gets the job from the coordinator. The model must lie at the job's path on this host, too. Any number of workers
    /// share a job, and each may join or leave at any time. They sum their Grams by Gloo, on the address from which they reach the
    /// coordinator, or by NCCL; a build without --features gloo or cuda lets one worker work at a time. On SIGTERM a worker ends its
    /// shard, saves what it has summed (--save-sums) and leaves.
    Worker(WorkerArgs),
    /// Show the progress of a coordinator's job.
    Status(StatusArgs),
    /// Show what a job would do and cost, without reading a weight.
    ///
    /// Shows a job's packages with their bytes and arithmetic, the memory it would take, and what other numbers of packages would
    /// take: bytes, forward passes and about how long this machine computes; reading the model and writing the result take their time
    /// besides. It checks all that can be checked without reading a weight: the job, its prompts, and the configuration and headers of
    /// the pipeline.
    ///
    /// JOB may also be the config.json of a transformer; no other file is needed. The plan then prunes half of its weights, on
    /// pictures of the model's own size, unless --set says otherwise.
    Plan(PlanArgs),
    /// Encode a job's prompts into a file.
    ///
    /// Writes what the pipeline's text encoders make of the job's prompts, and of the empty one, to a safetensors file. A job whose
    /// `calibration.conditioning` names it reads no text encoder; so it takes prompts that another program has encoded, too.
    Encode(EncodeArgs),
    /// Write a pipeline's transformer as one file, in the layout of its authors.
    ///
    /// ComfyUI and stable-diffusion.cpp read such a file. Its tensors have the authors' names, with queries, keys and values joined; the
    /// numbers and their type stay as they are. A transformer that lost heads or neurons has no such layout: `output.layout = "masked"`
    /// keeps its shapes.
    Export(ExportArgs),
    /// Show each linear's shape, zeros and sparsity pattern.
    ///
    /// DIR is a pipeline, of which the transformer is shown, or any folder of safetensors. Weights are read once, a tensor at a
    /// time, so a model may be larger than the memory.
    Inspect(InspectArgs),
    /// Show which models can be pruned.
    ///
    /// Lists the classes of the pipelines and transformers that obsdiff reads, by diffusers' names, and the text encoders that each
    /// pipeline has.
    #[command(after_long_help = "Example:\n  obsdiff models")]
    Models,
    /// Show or remove the copies of models from object stores.
    ///
    /// Lists the models that commands have copied to --cache: their bytes on the disk, when they were used last, and what of them is the
    /// beginning of a download, or was replaced in its store since. A model that a process uses is never removed, and neither is a file
    /// that obsdiff did not make.
    Cache(CachedModelsArgs),
    /// Make pictures from prompts.
    ///
    /// With the same seeds diffusers makes the same pictures, on a CPU in f32.
    ///
    /// Of a pipeline that obsdiff pruned, `pruning.json` names the job: its steps, guidance, size and type of forward calls are taken,
    /// and its held-out prompts, unless options say otherwise.
    Sample(SampleArgs),
    /// Compare a pruned pipeline with the dense one on the same prompts and seeds.
    ///
    /// For each prompt it prints the error of the final latents, ||pruned - dense|| / ||dense||, and the peak signal-to-noise ratio
    /// (PSNR) of the pictures. It writes a grid of pictures: a row of dense ones, below it the same prompts from the pruned pipeline,
    /// and so on. Prompts and settings are those of the job that pruned, by PRUNED's `pruning.json`, unless options say otherwise: so
    /// the error is the one that `run` printed.
    Compare(CompareArgs),
    /// Compare a device with the processor.
    ///
    /// Checks what a job needs of it: forward calls of small transformers, Grams, pruning, and a sum over workers. Prints how far each is
    /// off what is right, and how many times as fast as the processor it is. Ends with exit code 3 where a check fails.
    Selftest(SelftestArgs),
    /// Print a script by which a shell completes commands and options.
    Completions(CompletionsArgs),
    /// Write manual pages.
    Man(ManArgs),
}

/// `run JOB`
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  obsdiff run job.toml --set sparsity.pattern=2:4 --set output.path=out-2-4"
)]
pub struct RunArgs {
    /// The job.
    #[command(flatten)]
    pub job: JobArgs,
    /// How it prunes, and what it prints.
    #[command(flatten)]
    pub pruning: PruningArgs,
}

/// `selftest`
#[derive(Debug, Args)]
#[command(after_long_help = "Example:\n  obsdiff selftest --device cuda")]
pub struct SelftestArgs {
    /// What is checked: cpu, cuda, or cuda:N for the N-th GPU, counted from 0.
    #[arg(long, value_name = "DEVICE", default_value_t)]
    pub device: DeviceName,
    /// Print one JSON object with the same figures instead of text. Numbers with a unit have it in their names.
    #[arg(long)]
    pub json: bool,
    /// How the process runs.
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// `coordinator JOB`
#[derive(Debug, Args)]
#[command(after_long_help = "Example:\n  obsdiff coordinator job.toml --listen 127.0.0.1:7070")]
pub struct CoordinatorArgs {
    /// The job.
    #[command(flatten)]
    pub job: JobArgs,
    /// Where to listen; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7070")]
    pub listen: SocketAddr,
    /// Who may connect.
    #[command(flatten)]
    pub security: SecurityArgs,
}

/// `worker`
#[derive(Debug, Args)]
#[command(after_long_help = "Example:\n  obsdiff worker --coordinator http://127.0.0.1:7070 --threads 2")]
pub struct WorkerArgs {
    /// The coordinator's URL.
    #[arg(long, value_name = "URL")]
    pub coordinator: String,
    /// How long the coordinator may be unreachable before the worker gives up with exit code 3, such as 90s, 10min or 2h.
    #[arg(long, value_name = "TIME", default_value = "10min", value_parser = humantime::parse_duration)]
    pub patience: Duration,
    /// Where prompts are encoded, the transformer is computed, Grams summed, linears pruned by `sparsity.method = "admm"` or "obs", and
    /// the pruned model and its pictures are measured: cpu, cuda, or cuda:N for the N-th GPU, counted from 0.
    #[arg(long, value_name = "DEVICE", default_value_t)]
    pub device: DeviceName,
    /// Start a worker for each of these GPUs of this host, all or numbers such as 0,1,3, and end when all of them have ended. Unless
    /// --threads says otherwise they share the cores.
    #[arg(long, value_name = "GPUS", conflicts_with = "device")]
    pub devices: Option<GpuChoice>,
    /// The memory of this host that the worker may take; with --devices, all of them together [default: what is free on this machine].
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<ByteSize>,
    /// When the worker saves in the job's store what it has summed of the open package, so that others run fewer shards again: stop for
    /// once, before it leaves where SIGTERM or Ctrl-C asks it to; a time such as 10min for every ten minutes besides; or never. Saving
    /// takes a twentieth of the time at most, and the store needs room for twice the Grams of each worker that saves.
    #[arg(long, value_name = "WHEN", default_value_t = SaveSums::AtStop)]
    pub save_sums: SaveSums,
    /// How Grams are summed with other workers: gloo over the network, or nccl[:N] between GPUs, by GPU N of this host or else that of
    /// --device. All workers of a job use the same. NCCL needs a build with --features cuda [default: nccl on a GPU, gloo elsewhere]
    #[arg(long, value_name = "NAME")]
    pub collective: Option<CollectiveChoice>,
    /// How the coordinator is reached.
    #[command(flatten)]
    pub security: SecurityArgs,
    /// How the process runs.
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// `status URL`
#[derive(Debug, Args)]
#[command(after_long_help = "Example:\n  obsdiff status http://127.0.0.1:7070 --watch")]
pub struct StatusArgs {
    /// The coordinator's URL.
    #[arg(value_name = "URL")]
    pub coordinator: String,
    /// Follow the job until it is over: on a terminal as one screen, elsewhere by printing each change. Ends with 0 once the job is done,
    /// and with 3 where it fails or its coordinator goes.
    #[arg(long)]
    pub watch: bool,
    /// Stop the job first. Finished packages are kept.
    #[arg(long)]
    pub cancel: bool,
    /// Print one JSON object with the same figures instead of text. Numbers with a unit have it in their names.
    #[arg(long, conflicts_with = "watch")]
    pub json: bool,
    /// How the coordinator is reached.
    #[command(flatten)]
    pub security: SecurityArgs,
}

/// `plan JOB`
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  obsdiff plan job.toml --set packages.memory=16GiB\n  obsdiff plan job.toml --memory 80GiB\n  \
        obsdiff plan job.toml --workers 16 --bandwidth 10GB --device cuda\n  \
        obsdiff plan config.json --device-memory 80GB --set model.dtype=bf16"
)]
pub struct PlanArgs {
    /// The job.
    #[command(flatten)]
    pub job: JobArgs,
    /// The memory of a worker that the job must fit in [default: what is free on this machine].
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<ByteSize>,
    /// The memory of a worker's GPU that the job must fit in, such as 80GB: weights, activations, Grams and solving.
    #[arg(long, value_name = "SIZE")]
    pub device_memory: Option<ByteSize>,
    /// Predict how long each package takes with this number of workers like this machine, each on a device like --device. The speed of one
    /// is measured first, on a model of the same sizes with random weights.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub workers: Option<u32>,
    /// The device whose speed is measured here, and by which all times are predicted: cpu, cuda, or cuda:N for the N-th GPU, counted from 0.
    #[arg(long, value_name = "DEVICE", default_value_t)]
    pub device: DeviceName,
    /// Bytes that each worker can send in a second, with --workers [default: 1GB].
    #[arg(long, value_name = "SIZE", requires = "workers")]
    pub bandwidth: Option<ByteSize>,
    /// Threads of a worker, with --workers [default: one a core].
    #[arg(long, requires = "workers", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub threads: Option<u32>,
    /// Print one JSON object with the same figures instead of text. Numbers with a unit have it in their names.
    #[arg(long)]
    pub json: bool,
}

/// `encode JOB`
#[derive(Debug, Args)]
#[command(after_long_help = "Example:\n  obsdiff encode job.toml --out prompts.safetensors\n  \
    obsdiff run job.toml --set calibration.conditioning=prompts.safetensors")]
pub struct EncodeArgs {
    /// The job.
    #[command(flatten)]
    pub job: JobArgs,
    /// The safetensors file. An earlier one of obsdiff's is replaced, any other file is left alone.
    #[arg(long, value_name = "FILE", value_parser = path())]
    pub out: PathBuf,
    /// Where the text encoders are computed: cpu, cuda, or cuda:N for the N-th GPU, counted from 0.
    #[arg(long, value_name = "DEVICE", default_value_t)]
    pub device: DeviceName,
    /// How the process runs.
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// `inspect DIR`
#[derive(Debug, Args)]
#[command(after_long_help = "Example:\n  obsdiff inspect out\n  obsdiff inspect out --json > sparsity.json")]
pub struct InspectArgs {
    /// A pipeline, or a folder or file of safetensors.
    #[arg(value_name = "DIR", value_parser = path())]
    pub path: PathBuf,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// Takes a path as it is. A path that starts with `~`, which only a shell expands, is refused.
fn path() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new()
        .try_map(|path| if path.to_str().is_some_and(starts_with_tilde) { Err(TILDE) } else { Ok(path) })
}

/// What to do about a path that starts with `~`.
pub(crate) const TILDE: &str =
    "only a shell expands ~: write the whole path, or ./~... for a name that starts so";

/// How a process that computes runs.
#[derive(Debug, Args)]
pub struct ProcessArgs {
    /// Threads [default: one a core]. Results do not depend on it.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub threads: Option<u32>,
}

/// The job that a command works on.
#[derive(Debug, Args)]
pub struct JobArgs {
    /// The job file, TOML. Paths in it are relative to the current directory.
    #[arg(value_name = "JOB", value_parser = path())]
    pub job: PathBuf,
    /// Override a key of the job file, and its OBSDIFF_... variable. May be given several times. VALUE is text as it stands; in quotes
    /// it is a string of TOML, and lists are TOML. SECTION.KEY= unsets the key.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub sets: Vec<String>,
}
