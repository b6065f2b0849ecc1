//! Notes how a job goes, for its record.

use std::sync::Mutex;
use std::time::Duration;

use obsdiff_core::{Core, Event, Phase, PlanCost};
use obsdiff_engine::export::{Fault, JobCourse, PackageCourse};
use obsdiff_proto::{PackageId, lock};

use crate::clock::Clock;

/// Notes what a coordinator tells and how long its phases take.
pub(crate) struct CourseNotes {
    clock: Clock,
    /// The bytes of the Grams of each package.
    gram_bytes: Vec<u64>,
    noted: Mutex<Noted>,
}

#[derive(Default)]
struct Noted {
    course: JobCourse,
    /// The phase since the last step, and when that was.
    open: Option<(Option<PackageId>, Phase, Duration)>,
    /// The members of the group that forms.
    members: usize,
}

impl Noted {
    fn is_over(&self) -> bool {
        matches!(self.open, Some((_, Phase::Over, _)))
    }
}

impl CourseNotes {
    /// Of a job whose packages cost so much.
    pub(crate) fn new(cost: &PlanCost, clock: Clock) -> Self {
        let gram_bytes = cost.packages.iter().map(|package| package.gram_bytes).collect();
        Self { clock, gram_bytes, noted: Mutex::default() }
    }

    /// The clock that times are read from.
    pub(super) fn clock(&self) -> Clock {
        self.clock.clone()
    }

    /// What was noted until now.
    pub(crate) fn course(&self) -> JobCourse {
        lock(&self.noted).course.clone()
    }

    /// Notes an event.
    pub(super) fn event(&self, event: &Event) {
        let now = (self.clock)();
        let mut noted = lock(&self.noted);
        match event {
            Event::Grouped { members, .. } => noted.members = *members,
            Event::Formed { .. } => {
                noted.course.groups += 1;
                let senders = noted.members.saturating_sub(1) as u64;
                if let Some(package) = noted.open.and_then(|(package, ..)| package) {
                    let entry = self.entry(&mut noted.course, package);
                    entry.sent_gram_bytes += senders * entry.gram_bytes;
                }
            }
            // Workers leave once the job is over.
            Event::Left { .. } if !noted.is_over() => noted.course.workers_lost += 1,
            _ => {}
        }
        if is_fault(event) && !noted.is_over() {
            noted.course.add_fault(Fault { seconds: now.as_secs_f64(), what: event.to_string() });
        }
    }

    /// Notes the phase that the job is in after a step.
    pub(super) fn step(&self, core: &Core) {
        self.reached(core.package(), core.phase(), core.view().workers.len());
    }

    fn reached(&self, package: Option<PackageId>, phase: Phase, workers: usize) {
        let now = (self.clock)();
        let mut noted = lock(&self.noted);
        if let Some((Some(package), phase, since)) = noted.open {
            let entry = self.entry(&mut noted.course, package);
            let seconds = match phase {
                Phase::Apply => Some(&mut entry.load_seconds),
                Phase::Calibrate => Some(&mut entry.calibrate_seconds),
                Phase::Reduce => Some(&mut entry.reduce_seconds),
                Phase::Solve => Some(&mut entry.solve_seconds),
                Phase::Commit => Some(&mut entry.commit_seconds),
                // No package is open then.
                Phase::Pilot | Phase::Export | Phase::Over => None,
            };
            if let Some(seconds) = seconds {
                *seconds += now.saturating_sub(since).as_secs_f64();
            }
        }
        noted.open = Some((package, phase, now));
        noted.course.most_workers = noted.course.most_workers.max(workers);
    }

    /// What is noted of a package.
    fn entry<'c>(&self, course: &'c mut JobCourse, package: PackageId) -> &'c mut PackageCourse {
        let place =
            course.packages.iter().position(|entry| entry.package == package.0).unwrap_or_else(|| {
                let gram_bytes = self.gram_bytes.get(package.0 as usize).copied().unwrap_or(0);
                course.packages.push(PackageCourse { package: package.0, gram_bytes, ..Default::default() });
                course.packages.len() - 1
            });
        &mut course.packages[place]
    }
}

/// Whether an event tells of something that went wrong.
fn is_fault(event: &Event) -> bool {
    match event {
        Event::Left { .. }
        | Event::Discarded { .. }
        | Event::Broken { .. }
        | Event::Lowered { .. }
        | Event::Retried { .. }
        | Event::StandingBy { .. } => true,
        Event::Joined { .. }
        | Event::Preparing { .. }
        | Event::Encodes { .. }
        | Event::Ready { .. }
        | Event::Grouped { .. }
        | Event::Formed { .. }
        | Event::Arrived { .. }
        | Event::Committed { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use obsdiff_proto::{Epoch, WorkerId};

    use super::*;

    #[test]
    fn time_goes_to_the_phase_that_was_open_and_bytes_to_the_group_that_formed() {
        let seconds = Arc::new(AtomicU64::new(0));
        let read = seconds.clone();
        let clock: Clock = Arc::new(move || Duration::from_secs(read.load(Ordering::SeqCst)));
        let notes = CourseNotes { clock, gram_bytes: vec![100, 1000], noted: Mutex::default() };
        let at = |now: u64, package: Option<u32>, phase, workers| {
            seconds.store(now, Ordering::SeqCst);
            notes.reached(package.map(PackageId), phase, workers);
        };
        let group = |epoch, members| {
            notes.event(&Event::Grouped { epoch: Epoch(epoch), members });
            notes.event(&Event::Formed { epoch: Epoch(epoch) });
        };
        at(1, None, Phase::Pilot, 1);
        at(3, Some(0), Phase::Calibrate, 3);
        at(8, Some(0), Phase::Reduce, 3);
        group(1, 3);
        seconds.store(9, Ordering::SeqCst);
        let quiet = Duration::ZERO;
        notes.event(&Event::Left {
            worker: WorkerId(2),
            why: "gone".to_owned(),
            quiet,
            lost: Vec::new(),
            drained: false,
        });
        at(10, Some(0), Phase::Calibrate, 2);
        at(14, Some(0), Phase::Reduce, 2);
        group(2, 2);
        at(15, Some(0), Phase::Solve, 2);
        at(21, Some(0), Phase::Commit, 2);
        at(22, Some(1), Phase::Apply, 2);
        at(24, Some(1), Phase::Calibrate, 2);
        at(24, None, Phase::Over, 2);
        let course = notes.course();
        assert_eq!((course.most_workers, course.workers_lost, course.groups), (3, 1, 2));
        let first = PackageCourse {
            package: 0,
            load_seconds: 0.0,
            calibrate_seconds: 9.0,
            reduce_seconds: 3.0,
            solve_seconds: 6.0,
            commit_seconds: 1.0,
            gram_bytes: 100,
            sent_gram_bytes: 300,
        };
        let second =
            PackageCourse { package: 1, load_seconds: 2.0, gram_bytes: 1000, ..PackageCourse::default() };
        assert_eq!(course.packages, [first, second]);
        let [fault] = &course.faults[..] else { panic!("{:?}", course.faults) };
        assert!(fault.seconds == 9.0 && fault.what.starts_with("worker 2 left (gone)"), "{fault:?}");
    }
}
