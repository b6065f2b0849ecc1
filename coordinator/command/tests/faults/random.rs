//! Faults of all sorts, by a seed: which ones, on which host, and when. No more of them than the budget allows.

use std::path::Path;

use obsdiff_tests::Prng;
use tempfile::TempDir;

use crate::cluster::{TestCluster, assert_no_failure};
use crate::hosts::{Network, available};
use crate::process::{
    MISSED, Process, assert_same, result, setting, setting_of, told_of_leaving, undisturbed,
};
use crate::seeds::seeds;

/// Faults of a run.
const BUDGET: usize = 4;
/// Hosts with a worker each, at most.
const WORKERS: usize = 2;

#[derive(Clone, Copy, Debug)]
enum InjectedFault {
    /// A worker is killed, and another one starts on its host.
    Kill,
    /// The coordinator is killed and started again.
    KillCoordinator,
    /// A worker is stopped until it is missed, and woken.
    Stop,
    /// A worker is stopped, and woken before anybody misses it.
    Pause,
    /// A worker is cut off until it is missed, and healed.
    Cut,
    /// One more worker comes to a host.
    Join,
}

const FAULTS: [InjectedFault; 6] = [
    InjectedFault::Kill,
    InjectedFault::KillCoordinator,
    InjectedFault::Stop,
    InjectedFault::Pause,
    InjectedFault::Cut,
    InjectedFault::Join,
];

/// A job and what its seed does to it.
struct Run<'a> {
    cluster: TestCluster<'a>,
    prng: Prng,
    /// Workers that should be at work, with their hosts.
    workers: Vec<(usize, Process)>,
}

impl<'a> Run<'a> {
    fn new(folder: &'a Path, seed: u64) -> Self {
        let mut network = Network::new();
        for _ in 0..1 + WORKERS {
            network.add();
        }
        let cluster = TestCluster::new(folder, network);
        let workers = (1..=WORKERS).map(|host| (host, cluster.worker(host))).collect();
        Self { cluster, prng: Prng::new(seed), workers }
    }

    /// Waits for so many more lines of what is reported. False when the job is over.
    fn pass(&mut self, lines: u64) -> bool {
        (0..lines).all(|_| self.cluster.watch.line(|_| true).is_some_and(|line| !line.starts_with("over: ")))
    }

    fn missed(&mut self) {
        // Where the job ends first, nobody is missed any more.
        if let Some(line) =
            self.cluster.watch.line(|line| line.contains(" left (") || line.starts_with("over: "))
        {
            println!("    {line}");
            if line.contains(" left (") {
                let (quiet, lost) = told_of_leaving(&line);
                assert!(
                    quiet < MISSED && lost <= 6,
                    "missed too late, or more is lost than its shards: {line}"
                );
            }
        }
    }

    fn inflict(&mut self, fault: InjectedFault) {
        let victim = self.prng.within(0..self.workers.len() as u64) as usize;
        let host = self.workers[victim].0;
        match fault {
            InjectedFault::Kill => {
                self.workers[victim].1.kill();
                self.workers[victim].1 = self.cluster.worker(host);
            }
            InjectedFault::KillCoordinator => {
                self.cluster.coordinator.kill();
                self.cluster.coordinate_again();
            }
            InjectedFault::Stop => {
                self.workers[victim].1.signal("STOP");
                self.missed();
                self.workers[victim].1.signal("CONT");
            }
            InjectedFault::Pause => {
                self.workers[victim].1.signal("STOP");
                let lines = self.prng.within(0..6);
                self.pass(lines);
                self.workers[victim].1.signal("CONT");
            }
            InjectedFault::Cut => {
                self.cluster.network.cut(host);
                self.missed();
                self.cluster.network.heal(host);
            }
            InjectedFault::Join => self.workers.push((host, self.cluster.worker(host))),
        }
    }
}

#[test]
fn whatever_a_seed_does_to_a_job_its_result_is_that_of_an_undisturbed_one() {
    if !available() {
        return;
    }
    for seed in seeds([1, 9, 14]) {
        as_if_nothing_had_happened(seed, || setting(16), &undisturbed(16));
    }
}

/// The same where ratios are found by a survey: its probes and curves are parts that are lost and found as those that prune.
#[test]
fn whatever_a_seed_does_to_a_survey_its_result_is_that_of_an_undisturbed_one() {
    if !available() {
        return;
    }
    let setting = || setting_of("pattern = \"unstructured\"\nratio = 0.5", 8);
    let folder = setting();
    assert!(Process::start(folder.path(), &["run", "job.toml", "--quiet"]).end().success());
    let expected = result(folder.path());
    for seed in seeds([3, 5]) {
        as_if_nothing_had_happened(seed, setting, &expected);
    }
}

fn as_if_nothing_had_happened(seed: u64, setting: impl Fn() -> TempDir, expected: &[Vec<u8>; 2]) {
    let folder = setting();
    let mut run = Run::new(folder.path(), seed);
    for _ in 0..BUDGET {
        let (lines, choice) = (run.prng.within(1..40), run.prng.within(0..FAULTS.len() as u64));
        if !run.pass(lines) {
            break;
        }
        println!("seed {seed}: {:?} after {lines} lines", FAULTS[choice as usize]);
        run.inflict(FAULTS[choice as usize]);
    }
    run.cluster.assert_done();
    run.workers.iter_mut().for_each(|(_, worker)| assert_no_failure(worker));
    assert_same(&result(folder.path()), expected);
}
