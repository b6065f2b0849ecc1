//! About how long a job still takes, over all its packages.

use std::time::Duration;

/// The work of a package, by kinds that take their time at rates of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkKind {
    /// Forward calls and Grams.
    Calibrate,
    /// Factorising, solving and probing.
    Solve,
}

/// How much work a package is, in operations over the share of the machine's rate that they reach. Only their ratios matter.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct PackageWork {
    /// Of [`WorkKind::Calibrate`].
    pub(crate) calibrate: f64,
    /// Of [`WorkKind::Solve`].
    pub(crate) solve: f64,
}

impl PackageWork {
    fn of(self, kind: WorkKind) -> f64 {
        match kind {
            WorkKind::Calibrate => self.calibrate,
            WorkKind::Solve => self.solve,
        }
    }
}

/// Work that is open, or has just ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct OpenWork {
    /// Its package, counted from 0.
    pub(super) package: usize,
    /// Its kind.
    pub(super) kind: WorkKind,
    /// How much of it is done, from 0 to 1.
    pub(super) share: f64,
    /// How much of it was computed since it was opened: more than is done where results were lost, and less where some were there before.
    pub(super) performed: f64,
    /// How long that took.
    pub(super) took: Duration,
}

/// Predicts by what the job's own work has taken so far: each kind of work at its own rate, or at the other's where none of it is done
/// yet.
#[derive(Clone, Debug, Default)]
pub(super) struct TimeLeft {
    packages: Vec<PackageWork>,
    calibrated: WorkDone,
    solved: WorkDone,
}

/// What is done of one kind of work.
#[derive(Clone, Copy, Debug, Default)]
struct WorkDone {
    work: f64,
    seconds: f64,
}

impl WorkDone {
    fn add(&mut self, work: f64, took: Duration) {
        self.work += work;
        self.seconds += took.as_secs_f64();
    }

    fn seconds_of_one(self) -> Option<f64> {
        (self.work > 0.0).then(|| self.seconds / self.work)
    }
}

impl TimeLeft {
    /// A job of these packages.
    pub(super) fn new(packages: Vec<PackageWork>) -> Self {
        Self { packages, ..Self::default() }
    }

    fn done(&mut self, kind: WorkKind) -> &mut WorkDone {
        match kind {
            WorkKind::Calibrate => &mut self.calibrated,
            WorkKind::Solve => &mut self.solved,
        }
    }

    /// `ended` is over.
    pub(super) fn finish(&mut self, ended: OpenWork) {
        let work = self.packages.get(ended.package).map_or(0.0, |package| package.of(ended.kind));
        self.done(ended.kind).add(ended.performed * work, ended.took);
    }

    /// The share of all work that is done: of the first packages all, of the open one by how much of it is calibrated and solved.
    pub(super) fn share_done(&self, committed: usize, open: Option<(usize, (f64, f64))>) -> f64 {
        let both = |package: &PackageWork| package.calibrate + package.solve;
        let all: f64 = self.packages.iter().map(both).sum();
        let committed: f64 = self.packages.iter().take(committed).map(both).sum();
        let open = open.and_then(|(open, (calibrated, solved))| {
            let package = self.packages.get(open)?;
            Some(package.calibrate * calibrated + package.solve * solved)
        });
        let done = committed + open.unwrap_or(0.0);
        if all > 0.0 { (done / all).min(1.0) } else { 0.0 }
    }

    /// How long the rest of the job takes while `open` is under way; none where it is not known yet.
    pub(super) fn left(&self, open: OpenWork) -> Option<Duration> {
        let package = self.packages.get(open.package)?;
        let mut now = self.clone();
        now.done(open.kind).add(open.performed * package.of(open.kind), open.took);
        let [calibrating, solving] = [now.calibrated.seconds_of_one(), now.solved.seconds_of_one()];
        let (calibrating, solving) = (calibrating.or(solving)?, solving.or(calibrating)?);
        let rest = (1.0 - open.share) * package.of(open.kind);
        let mut left = match open.kind {
            WorkKind::Calibrate => rest * calibrating + package.solve * solving,
            WorkKind::Solve => rest * solving,
        };
        for later in &self.packages[open.package + 1..] {
            left += later.calibrate * calibrating + later.solve * solving;
        }
        Duration::try_from_secs_f64(left).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(package: usize, kind: WorkKind, share: f64, seconds: u64) -> OpenWork {
        OpenWork { package, kind, share, performed: share, took: Duration::from_secs(seconds) }
    }

    #[test]
    fn what_is_left_counts_all_packages_at_the_rates_seen() {
        let mut job = TimeLeft::new(vec![PackageWork { calibrate: 10.0, solve: 5.0 }; 3]);
        let left = |job: &TimeLeft, open| job.left(open).map(|left| left.as_secs_f64());
        assert_eq!(left(&job, open(0, WorkKind::Calibrate, 0.0, 4)), None, "nothing is done yet");
        // 5 of 45 in 10 s.
        assert_eq!(left(&job, open(0, WorkKind::Calibrate, 0.5, 10)), Some(80.0));
        job.finish(open(0, WorkKind::Calibrate, 1.0, 20));
        // Solving turns out to take 4 s where calibrating takes 2 s.
        assert_eq!(left(&job, open(0, WorkKind::Solve, 0.2, 4)), Some(16.0 + 2.0 * (20.0 + 20.0)));
        job.finish(open(0, WorkKind::Solve, 1.0, 20));
        assert_eq!(left(&job, open(2, WorkKind::Solve, 1.0, 20)), Some(0.0));
    }

    #[test]
    fn the_rate_is_that_of_what_was_computed_and_not_of_what_is_kept() {
        let mut job = TimeLeft::new(vec![PackageWork { calibrate: 10.0, solve: 0.0 }; 2]);
        // 8 of 10 are computed in 16 s, of which 6 are lost; the other 2 are there when the work is opened again.
        let lost = OpenWork { performed: 0.8, ..open(0, WorkKind::Calibrate, 0.2, 16) };
        assert_eq!(job.left(lost), Some(Duration::from_secs(16 + 20)));
        job.finish(lost);
        let again = OpenWork { performed: 0.0, ..open(0, WorkKind::Calibrate, 0.2, 0) };
        assert_eq!(job.left(again), Some(Duration::from_secs(16 + 20)));
    }

    #[test]
    fn work_counts_by_what_it_takes_and_not_by_packages() {
        let [small, large] =
            [(1.0, 1.0), (6.0, 2.0)].map(|(calibrate, solve)| PackageWork { calibrate, solve });
        let job = TimeLeft::new(vec![small, large]);
        let open = |package, calibrated, solved| Some((package, (calibrated, solved)));
        assert_eq!(job.share_done(0, None), 0.0);
        assert_eq!(job.share_done(0, open(0, 0.5, 0.0)), 0.05);
        assert_eq!(job.share_done(1, open(1, 1.0, 0.5)), 0.9);
        assert_eq!(job.share_done(2, None), 1.0);
        assert_eq!(TimeLeft::default().share_done(0, open(3, 1.0, 1.0)), 0.0, "nothing is known of its work");
    }

    #[test]
    fn a_job_that_goes_on_is_told_by_its_own_work_alone() {
        let job = TimeLeft::new(vec![PackageWork { calibrate: 10.0, solve: 0.0 }; 4]);
        // An earlier process did two packages, of which this one knows no times.
        assert_eq!(job.left(open(2, WorkKind::Calibrate, 0.0, 9)), None);
        let left = job.left(open(2, WorkKind::Calibrate, 0.5, 10)).unwrap();
        assert_eq!(left, Duration::from_secs(30));
        assert_eq!(job.left(open(4, WorkKind::Calibrate, 0.5, 10)), None, "there is no such package");
    }
}
