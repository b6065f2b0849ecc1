//! What a job would take with other numbers of packages.

use std::collections::BTreeSet;

use obsdiff_core::PlanError;
use obsdiff_proto::{ByteSize, JobSpec, PackagesSpec, Plan};
use serde::Serialize;

use super::plan_report::duration;
use crate::Result;
use crate::budget::with_surveys;
use crate::described::Described;
use crate::job::JobFile;
use crate::machine::MachineRates;
use crate::run_time::{self, FileBytes};
use crate::shares::ProductShares;
use crate::text::Table;

/// The largest number of packages shown by itself: past it, only the job's own.
const MOST: u32 = 32;

/// What a job would take with a number of packages.
#[derive(Serialize)]
pub(super) struct PackageCount {
    packages: usize,
    /// Whether the job itself has so many.
    of_job: bool,
    /// The Grams of the largest package.
    gram_bytes: u64,
    peak_memory_bytes: u64,
    /// Forward passes, counted per picture.
    passes: u64,
    /// About how long it would take on this machine.
    seconds: f64,
}

impl PackageCount {
    pub(super) fn table(counts: &[Self]) -> Table {
        let mut table = Table::new(["packages", "Grams", "peak memory", "passes", "about"]);
        for count in counts {
            let mark = if count.of_job { " (this job)" } else { "" };
            table.row([
                format!("{}{mark}", count.packages),
                ByteSize(count.gram_bytes).to_string(),
                ByteSize(count.peak_memory_bytes).to_string(),
                count.passes.to_string(),
                duration(count.seconds),
            ]);
        }
        table
    }

    /// Bytes, forward passes and the time on a device of this machine for 1, 2, 4, ... packages and for as many as `plan` has.
    ///
    /// # Errors
    /// When the job cannot be planned so.
    pub(super) fn others(
        job: &JobFile,
        described: &Described,
        plan: &Plan,
        rates: (&MachineRates, &ProductShares),
    ) -> Result<Vec<Self>> {
        let of_job = plan.packages.len() as u32;
        let spec = &job.spec;
        let workload = described.workload(spec);
        let files = FileBytes::of(described, spec);
        let powers = (0..).map(|power| 1 << power).take_while(|count| *count <= MOST);
        let asked: BTreeSet<u32> = powers.chain([of_job]).collect();
        let with = |count| {
            let packages = PackagesSpec { count: Some(count), memory: None, ..spec.packages };
            let spec = JobSpec { packages, ..spec.clone() };
            obsdiff_core::plan(&spec, &described.inventory, described.tokens)
        };
        let mut counts = Vec::new();
        let mut planned = 0;
        for count in asked {
            let other = if count == of_job {
                plan.clone()
            } else {
                match with(count) {
                    Err(PlanError::TooManyPackages { most, .. }) => with(most),
                    planned => planned,
                }
                .map_err(|e| job.unplanned(e))?
            };
            let packages = other.packages.len();
            // There are no more packages than units to prune.
            if packages == planned {
                continue;
            }
            planned = packages;
            let other = with_surveys(job, described, other)?;
            let cost = described.cost(spec, &other);
            counts.push(Self {
                packages,
                of_job: packages == plan.packages.len(),
                gram_bytes: cost.largest_grams(),
                peak_memory_bytes: described.memory(spec, &other).peak(&cost),
                passes: cost.total().passes,
                seconds: run_time::seconds(&cost.total(), &workload, spec, files, rates),
            });
        }
        Ok(counts)
    }
}
