//! Error against sparsity, or against prompts: points that are solved by kept Grams, what a survey expects of each, and what is found.

mod chart;
mod font;
mod prediction;
mod report;
mod staging;

use std::fs;
use std::path::{Path, PathBuf};

use obsdiff_files::Disk;
use obsdiff_proto::{JobSpec, Pattern};
use serde::Serialize;

use crate::described::Described;
use crate::job::JobFile;
use crate::progress::Progress;
use crate::run::RunContext;
use crate::writing::try_writing;
use crate::{Error, Result, conditioning};

pub use report::SweepReport;
pub use staging::StagingRemoval;
use staging::{POINT, RESULTS, Staging, remove_left};

/// The command's option that names the folder of results.
const OUT: &str = "--out";

/// A pattern, a ratio and a number of prompts, and the job that prunes so by kept Grams.
pub struct Point {
    /// Its job, whose output goes to a folder of the sweep's own.
    pub job: JobFile,
    /// What is known of it.
    pub figures: Figures,
}

/// What is known of a point.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Its pattern.
    pub pattern: Pattern,
    /// The share of zeros that it asks for.
    pub ratio: f64,
    /// The calibration prompts whose Grams it goes by.
    pub prompts: u32,
    /// How far the velocity is expected to be from the dense model's: the root of its mean squared relative change. Absent where no
    /// survey was kept.
    pub expected_velocity_error: Option<f64>,
    /// How far the final latents on the held-out prompts were found to be from the dense model's; absent where it was not asked for,
    /// or no prompt was held out.
    pub found_latent_error: Option<f64>,
    /// The share of zeros that was found.
    pub zeros: Option<f64>,
}

impl Point {
    /// A point that nothing is known of.
    pub fn new(job: JobFile) -> Self {
        let (pattern, ratio) = (job.spec.sparsity.pattern, share(&job.spec));
        let calibration = &job.spec.calibration;
        let prompts = calibration.gram_prompts.unwrap_or(calibration.count);
        let (expected_velocity_error, found_latent_error, zeros) = (None, None, None);
        let figures = Figures { pattern, ratio, prompts, expected_velocity_error, found_latent_error, zeros };
        Self { job, figures }
    }
}

/// The share of zeros that a job asks for.
fn share(spec: &JobSpec) -> f64 {
    match spec.sparsity.pattern {
        Pattern::NToM { n, m } => n as f64 / m as f64 * (1.0 - spec.sparsity.dense),
        Pattern::Unstructured | Pattern::Structured => spec.sparsity.ratio.unwrap_or(0.0),
    }
}

/// The folder that a sweep writes, and one beside it for what it needs on the way, which is removed with this value.
pub struct SweepFolder {
    out: PathBuf,
    staging: Staging,
    /// What killed sweeps had left beside it, and is gone now.
    pub removed: Vec<PathBuf>,
}

impl SweepFolder {
    /// Makes the folder beside `out`, where nothing may be yet.
    ///
    /// # Errors
    /// When something is at `out`, or nothing can be written beside it.
    pub fn new(out: &Path) -> Result<Self> {
        let refuse = |problem: String| Err(Error::key(OUT, format!("is {}, {problem}", out.display())));
        if out.symlink_metadata().is_ok() {
            return refuse("which exists already: choose another, or move it away".to_owned());
        }
        if out.file_name().is_none() {
            return refuse("which ends in no name: give the folder a name".to_owned());
        }
        let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        match try_writing(out).and_then(|()| Staging::new(parent)) {
            Ok(staging) => Ok(Self { out: out.to_owned(), staging, removed: remove_left(parent) }),
            Err(error) => refuse(format!("but nothing can be written to {}: {error}", parent.display())),
        }
    }

    /// The folder on the way.
    pub fn staging(&self) -> &Path {
        self.staging.path()
    }

    /// What removes the folder on the way where the sweep is stopped.
    pub fn removal(&self) -> StagingRemoval {
        self.staging.removal()
    }

    /// The place of a point's pruned pipeline.
    pub fn output(&self, point: usize) -> PathBuf {
        self.staging().join(format!("{POINT}{point}"))
    }

    /// Writes the results, which appear whole or not at all.
    ///
    /// # Errors
    /// When they cannot be written, or something else is there by now.
    fn write(&self, report: &SweepReport, disk: &Disk) -> Result<()> {
        let results = self.staging().join(RESULTS);
        let failed = |e| Error::file(&self.out, e);
        disk.create_folder(&results).map_err(failed)?;
        disk.write(&results.join("sweep.csv"), report.csv().as_bytes()).map_err(failed)?;
        let json = serde_json::to_vec_pretty(report).map_err(|e| Error::content(&self.out, e.to_string()))?;
        disk.write(&results.join("sweep.json"), &json).map_err(failed)?;
        crate::picture::write_png(&report.chart(), &results.join("sweep.png"))?;
        disk.sync_folder(&results).map_err(failed)?;
        disk.rename_new(&results, &self.out).map_err(|e| Error::file(&self.out, e))
    }
}

/// Says what a survey expects of each point.
///
/// # Errors
/// When a model or Grams cannot be read.
pub fn predict(points: &mut [Point], progress: &Progress) -> Result<SweepReport> {
    for point in points.iter_mut() {
        let conditioning = conditioning::open(&point.job)?;
        let described = Described::read(&point.job, conditioning.map(|file| file.text_tokens()))?;
        point.figures.expected_velocity_error = prediction::expected(point, &described, progress)?;
    }
    Ok(SweepReport::new(points, None))
}

/// Solves each point and measures it.
///
/// # Errors
/// As [`crate::run::run`].
pub fn measure(points: &mut [Point], process: &RunContext<'_>) -> Result<()> {
    let count = points.len();
    for (i, point) in points.iter_mut().enumerate() {
        let Figures { pattern, ratio, prompts, .. } = point.figures;
        let share = 100.0 * ratio;
        process
            .progress
            .note(&format!("point {} of {count}: {pattern} at {share:.1}%, by {prompts} prompts", i + 1));
        let summary = crate::run::run(&point.job, process)?;
        point.figures.found_latent_error = summary.held_out.as_ref().map(|error| error.relative);
        point.figures.zeros = Some(summary.zeros as f64 / (summary.weights.max(1)) as f64);
        // Only its figures are wanted.
        let output = &point.job.spec.output.path;
        fs::remove_dir_all(output).map_err(|e| Error::file(output, e))?;
    }
    Ok(())
}

/// Writes what is known of all points into the sweep's folder, with the hardware on which they were measured.
///
/// # Errors
/// When it cannot be written.
pub fn write(
    points: &[Point],
    hardware: Option<String>,
    place: &SweepFolder,
    disk: &Disk,
) -> Result<SweepReport> {
    let report = SweepReport::new(points, hardware);
    place.write(&report, disk)?;
    Ok(report)
}
