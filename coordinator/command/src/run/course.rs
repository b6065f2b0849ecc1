//! How a job went, for the record of its output.

use obsdiff_coordinator::MeasuredCourse;
use obsdiff_core::Phase;
use obsdiff_engine::export::{FaultRecord, JobCourse, PackageCourse};
use obsdiff_proto::view::PastEvent;
use obsdiff_worker::pruning_job::JobOutput;

use super::Inputs;
use crate::job::JobFile;
use crate::run_time::FileBytes;

/// The course of a job that has written its output, as its record has it.
pub(crate) fn recorded(
    course: &MeasuredCourse,
    job: &JobFile,
    inputs: &Inputs,
    output: &JobOutput,
) -> JobCourse {
    let described = &inputs.described;
    let packages = described.cost(&job.spec, &inputs.plan).packages;
    let gram_bytes: Vec<u64> = packages.iter().map(|package| package.gram_bytes).collect();
    JobCourse {
        read_bytes: Some(FileBytes::of(described, &job.spec).read),
        written_bytes: output.written_bytes(),
        ..recorded_with(course, &gram_bytes)
    }
}

/// The same where the bytes of the Grams of each package are known.
fn recorded_with(course: &MeasuredCourse, gram_bytes: &[u64]) -> JobCourse {
    let fault =
        |fault: &PastEvent| FaultRecord { seconds: fault.at.as_secs_f64(), what: fault.words.clone() };
    JobCourse {
        most_workers: course.most_workers,
        workers_lost: course.workers_lost,
        groups: course.groups,
        read_bytes: None,
        written_bytes: None,
        packages: packages(course, gram_bytes),
        faults: course.faults.iter().map(fault).collect(),
        further_faults: course.further_faults,
    }
}

/// What each package took, in the order in which they were pruned.
fn packages(course: &MeasuredCourse, gram_bytes: &[u64]) -> Vec<PackageCourse> {
    let mut packages: Vec<PackageCourse> = Vec::new();
    for time in &course.timeline {
        let Some(package) = time.package else { continue };
        if packages.last().is_none_or(|last| last.package != package.0) {
            let gram_bytes = gram_bytes.get(package.0 as usize).copied().unwrap_or(0);
            let sent_gram_bytes = course.sendings.get(&package).map_or(0, |sendings| sendings * gram_bytes);
            packages.push(PackageCourse {
                package: package.0,
                gram_bytes,
                sent_gram_bytes,
                stored_bytes: course.stored.get(&package).copied().unwrap_or(0),
                ..PackageCourse::default()
            });
        }
        if let Some(open) = packages.last_mut()
            && let Some(seconds) = seconds_of(time.phase, open)
        {
            *seconds += time.took.as_secs_f64();
        }
    }
    packages
}

/// Where the time of a phase is counted; nowhere for phases in which no package is open.
fn seconds_of(phase: Phase, package: &mut PackageCourse) -> Option<&mut f64> {
    match phase {
        Phase::Apply => Some(&mut package.load_seconds),
        Phase::Calibrate => Some(&mut package.calibrate_seconds),
        Phase::Reduce => Some(&mut package.reduce_seconds),
        Phase::Solve => Some(&mut package.solve_seconds),
        Phase::Commit => Some(&mut package.commit_seconds),
        Phase::Pilot | Phase::Export | Phase::Over => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use obsdiff_proto::PackageId;
    use obsdiff_proto::view::PhaseTime;

    use super::*;

    #[test]
    fn each_package_has_the_time_of_its_phases_and_the_bytes_that_were_sent() {
        let time = |package: Option<u32>, phase, seconds| PhaseTime {
            package: package.map(PackageId),
            phase,
            took: Duration::from_secs(seconds),
            since: None,
        };
        let course = MeasuredCourse {
            timeline: vec![
                time(None, Phase::Pilot, 2),
                time(Some(0), Phase::Calibrate, 9),
                time(Some(0), Phase::Reduce, 3),
                time(Some(0), Phase::Solve, 6),
                time(Some(0), Phase::Commit, 1),
                time(Some(1), Phase::Apply, 2),
                time(Some(1), Phase::Calibrate, 0),
                time(None, Phase::Export, 4),
            ],
            most_workers: 3,
            workers_lost: 1,
            groups: 2,
            sendings: [(PackageId(0), 3)].into(),
            stored: [(PackageId(0), 40), (PackageId(1), 50)].into(),
            faults: vec![PastEvent {
                at: Duration::from_secs(9),
                fault: true,
                words: "worker 2 left".to_owned(),
            }],
            further_faults: 4,
        };
        let first = PackageCourse {
            package: 0,
            load_seconds: 0.0,
            calibrate_seconds: 9.0,
            reduce_seconds: 3.0,
            solve_seconds: 6.0,
            commit_seconds: 1.0,
            gram_bytes: 100,
            sent_gram_bytes: 300,
            stored_bytes: 40,
        };
        let second = PackageCourse {
            package: 1,
            load_seconds: 2.0,
            gram_bytes: 1000,
            stored_bytes: 50,
            ..PackageCourse::default()
        };
        let recorded = JobCourse {
            most_workers: 3,
            workers_lost: 1,
            groups: 2,
            read_bytes: None,
            written_bytes: None,
            packages: vec![first, second],
            faults: vec![FaultRecord { seconds: 9.0, what: "worker 2 left".to_owned() }],
            further_faults: 4,
        };
        assert_eq!(recorded_with(&course, &[100, 1000]), recorded);
    }
}
