//! What a job would take with other numbers of packages.

use std::collections::BTreeSet;
use std::time::Duration;

use obsdiff_core::PlanError;
use obsdiff_proto::{ByteSize, JobSpec, PackagesSpec, Plan};

use crate::Result;
use crate::budget::with_surveys;
use crate::described::Described;
use crate::job::JobFile;
use crate::machine::MachineRates;
use crate::run_time::{self, FileBytes};
use crate::text::{self, Table};

/// The largest number of packages shown by itself: past it, only the job's own.
const MOST: u32 = 32;

/// Bytes, forward passes and the time on this machine for 1, 2, 4, ... packages and for as many as `plan` has.
pub(super) fn counts(
    job: &JobFile,
    described: &Described,
    plan: &Plan,
    rates: &MachineRates,
) -> Result<Table> {
    let of_job = plan.packages.len() as u32;
    let spec = &job.spec;
    let workload = described.workload(spec);
    let files = FileBytes::of(described, spec)?;
    let powers = (0..).map(|power| 1 << power).take_while(|count| *count <= MOST);
    let asked: BTreeSet<u32> = powers.chain([of_job]).collect();
    let with = |count| {
        let packages = PackagesSpec { count: Some(count), memory: None, ..spec.packages };
        let spec = JobSpec { packages, ..spec.clone() };
        obsdiff_core::plan(&spec, &described.inventory, described.tokens)
    };
    let mut table = Table::new(["packages", "Grams", "peak memory", "passes", "about"]);
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
        let mark = if packages == plan.packages.len() { " (this job)" } else { "" };
        table.row([
            format!("{packages}{mark}"),
            ByteSize(cost.largest_grams()).to_string(),
            ByteSize(described.memory(spec, &other).peak(&cost)).to_string(),
            cost.total().passes.to_string(),
            text::duration(Duration::from_secs_f64(run_time::seconds(
                &cost.total(),
                &workload,
                spec,
                files,
                rates,
            ))),
        ]);
    }
    Ok(table)
}
