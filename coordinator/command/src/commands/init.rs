//! `obsdiff init PIPELINE`.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use obsdiff_core::fewest_packages;
use obsdiff_engine::pipeline::PipelineFolder;
use obsdiff_files::{Disk, read_regular};
use obsdiff_proto::{ByteSize, counted};
use obsdiff_worker::stored_model::Extent;
use tempfile::NamedTempFile;

use super::pictures::check_place;
use crate::budget::with_surveys;
use crate::cli::InitArgs;
use crate::context::CommandContext;
use crate::described::Described;
use crate::job::JobFile;
use crate::sampling::open_pipeline;
use crate::writing::unfinished_beside;
use crate::{Error, Result, fit, text};

/// The largest file of prompts whose lines are counted.
const MOST_PROMPT_BYTES: u64 = 1 << 30;
/// Prompts that a new job calibrates on, where there are as many: the job's own default.
const CALIBRATION: usize = 100;
/// Prompts that a new job holds out: the job's own default.
const HELD_OUT: usize = 8;

/// What a new file of prompts speaks of, so that a job can be tried before its user has gathered prompts.
const SUBJECTS: [&str; 12] = [
    "a red fox",
    "an old lighthouse",
    "a bowl of ramen",
    "a steam locomotive",
    "two children with kites",
    "a glass chess set",
    "a market street",
    "a mountain lake",
    "an astronaut",
    "a grand piano",
    "a tabby cat",
    "a vintage motorcycle",
];
const MANNERS: [&str; 9] = [
    "a photograph of {} in morning fog",
    "an oil painting of {}",
    "a watercolor of {} in spring",
    "{} at night, under neon signs",
    "a pencil sketch of {}",
    "{} in a snowy forest, wide angle",
    "a low-poly 3d render of {}",
    "a studio photograph of {}, soft light",
    "a poster with {} and the words OPEN TODAY",
];

/// Writes a job for a pipeline that it looks at, with prompts to try it where there are none. The job is one that `plan` accepts.
///
/// # Errors
/// When the pipeline cannot be pruned, the job's file exists already, or nothing can be written.
pub(super) fn init(args: &InitArgs, context: &mut CommandContext<'_>) -> Result<()> {
    let pipeline = open_pipeline(&context.pipeline(&args.pipeline, Extent::Headers { with_text: true })?)?;
    if args.out.symlink_metadata().is_ok() {
        return Err(Error::content(&args.out, "exists already: move it away, or give --out another name"));
    }
    check_place(&args.out, "--out", &[])?;
    let folder = args.out.parent().unwrap_or(Path::new(""));
    let prompts = args.prompts.clone().unwrap_or_else(|| folder.join("prompts.txt"));
    let made = args.prompts.is_none() && prompts.symlink_metadata().is_err();
    if made {
        write_new(&context.disk, &prompts, &sample_prompts())?;
    }
    let written = job_text(args, &pipeline, &prompts, context)
        .and_then(|job| write_new(&context.disk, &args.out, &job));
    if written.is_err() && made {
        // It is this process's own, and of no use without the job.
        let _ = fs::remove_file(&prompts);
    }
    written?;
    let prompts = prompts.display();
    if made {
        writeln!(context.out, "{prompts}: sample prompts; replace them by some of your own")?;
    } else if args.prompts.is_none() {
        writeln!(context.out, "{prompts}: was there already; the job takes its prompts")?;
    }
    writeln!(context.out, "{}: a job for {}", args.out.display(), args.pipeline.display())?;
    let job = text::shell_path(&args.out);
    Ok(writeln!(context.out, "next:\n  obsdiff plan {job}\n  obsdiff run {job}")?)
}

/// The job's text, checked as `plan` checks it, with as many packages as this machine's memory needs.
fn job_text(
    args: &InitArgs,
    pipeline: &PipelineFolder,
    prompts: &Path,
    context: &CommandContext<'_>,
) -> Result<String> {
    if prompts.extension().is_none_or(|extension| extension != "txt") {
        let problem =
            "is no .txt file: of a table, set calibration.prompts and calibration.column in the job";
        return Err(Error::content(prompts, problem));
    }
    let lines = read_regular(prompts, MOST_PROMPT_BYTES).map_err(|e| Error::file(prompts, e))?;
    let lines = String::from_utf8_lossy(&lines).lines().filter(|line| !line.trim().is_empty()).count();
    let count = lines.saturating_sub(HELD_OUT).clamp(1, CALIBRATION);
    let mut text = JobText {
        pipeline: args.pipeline.clone(),
        class: pipeline.architecture().pipeline_class,
        what: String::new(),
        prompts: prompts.to_owned(),
        count,
        held_out: lines.saturating_sub(count).min(HELD_OUT),
        packages: 1,
    };
    let job = parsed(&text, context)?;
    let described = Described::outline(&job, None)?;
    let (inventory, plan) = (&described.inventory, described.plan(&job)?);
    let weights: u64 = inventory
        .linears
        .iter()
        .map(|linear| linear.rows as u64 * inventory.site(linear.site).width as u64)
        .sum();
    text.what = format!(
        "{} in {} of {}",
        text::count(weights),
        counted(inventory.linears.len(), "linear"),
        counted(inventory.units.len(), "unit")
    );
    let plan = with_surveys(&job, &described, plan)?;
    if let Some(memory) = context.memory
        && fit::misfit(&job, &described, &plan, 1, memory)?.is_some()
    {
        let room = described.memory(&job.spec, &plan).room_for_grams(memory.0, 1);
        let fewest = fewest_packages(&job.spec, inventory, described.tokens, ByteSize(room));
        text.packages = fewest.map_err(|e| job.unplanned(e))?.unwrap_or(1);
    }
    parsed(&text, context)?;
    Ok(text.render())
}

/// The job as `plan` reads it, from a file that is gone again.
fn parsed(text: &JobText, context: &CommandContext<'_>) -> Result<JobFile> {
    let failed = |e| Error::file(std::env::temp_dir(), e);
    let mut file = NamedTempFile::new().map_err(failed)?;
    file.as_file_mut().write_all(text.render().as_bytes()).map_err(failed)?;
    context.with_model(JobFile::load(file.path(), context.environment.iter().cloned(), &[])?)
}

/// What a job's text is made of.
struct JobText {
    pipeline: PathBuf,
    class: &'static str,
    /// What can be pruned.
    what: String,
    prompts: PathBuf,
    count: usize,
    held_out: usize,
    packages: u32,
}

impl JobText {
    fn render(&self) -> String {
        let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
        let path = |path: &Path| quoted(&path.to_string_lossy());
        // The URL of an object store is none.
        let name = fs::canonicalize(&self.pipeline).unwrap_or_else(|_| self.pipeline.clone());
        let name = name.file_name().map(|name| name.to_string_lossy());
        let output = format!("{}-pruned", name.as_deref().unwrap_or("pipeline"));
        let Self { class, what, count, held_out, packages, .. } = self;
        let mut text = String::new();
        // Writing to a string never fails.
        let _ = write!(
            text,
            "\
# Prunes half of the weights of a {class}: {what} can be pruned.
# `obsdiff plan` predicts memory and time before any work, `obsdiff run` prunes.
# Any key can be set for one run: obsdiff run JOB --set sparsity.ratio=0.6

[model]
path = {}
dtype = \"f32\"               # of forward calls: f32 | bf16 | f16; weights keep the checkpoint's type

[sparsity]
pattern = \"unstructured\"    # or \"2:4\", any \"N:M\", or \"structured\": heads and neurons
ratio = 0.5                 # the share that goes; leave it out with N:M

[calibration]
prompts = {}
count = {count}                 # prompts; more give a lower error and take longer
steps = 25                  # denoising steps of each
# guidance, height, width and max_sequence_length are the model's own unless they are set here

[evaluation]
count = {held_out}                   # prompts held out, on which the result is held against the source

[packages]
count = {packages}                   # calibrations: more take less memory and more time

[output]
path = {}
",
            path(&self.pipeline),
            path(&self.prompts),
            quoted(&output)
        );
        text
    }
}

fn sample_prompts() -> String {
    let lines = MANNERS.iter().flat_map(|manner| SUBJECTS.map(|subject| manner.replace("{}", subject)));
    lines.fold(String::new(), |text, line| text + &line + "\n")
}

/// Writes a file that does not exist yet. It appears whole or not at all.
fn write_new(disk: &Disk, path: &Path, text: &str) -> Result<()> {
    let failed = |e| Error::file(path, e);
    let mut file = unfinished_beside(path, "").map_err(failed)?;
    // Its own `Write` would put the temporary name behind what the system says.
    file.as_file_mut().write_all(text.as_bytes()).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    // Where it fails, the file is removed when its name is dropped.
    disk.rename_new(&file.into_temp_path(), path).map_err(failed)
}
