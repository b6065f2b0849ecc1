//! Hosts that are cut off: nothing gets to them or comes from them, without any notice, and later they are back.

use std::path::Path;

use obsdiff_tests::Prng;

use crate::cluster::{COORDINATOR, LEFT, TestCluster, assert_no_failure};
use crate::hosts::{Network, available};
use crate::process::{
    FIRST, LineFilter, MISSED, Process, assert_same, result, setting, told_of_leaving, undisturbed,
};
use crate::seeds::seeds;

/// Enough for both workers to be there while the first package is calibrated.
const STEPS: u32 = 48;
/// Enough for a host that was away to be back in time, too, and for a worker that starts late on a busy machine.
const MANY_STEPS: u32 = 96;

const JOINED: LineFilter = |line| line.contains(" joined ");
/// Both workers are about to reduce.
const BOTH: LineFilter = |line| line.contains("2 workers form group");

/// A coordinator and two workers, each on a host of its own.
fn cluster(folder: &Path) -> (TestCluster<'_>, [Process; 2]) {
    let mut network = Network::new();
    for _ in 0..3 {
        network.add();
    }
    let mut cluster = TestCluster::new(folder, network);
    let workers = [1, 2].map(|host| cluster.worker(host));
    workers.iter().for_each(|_| drop(cluster.until(JOINED)));
    (cluster, workers)
}

/// A worker that was cut off is missed soon, and takes only its open shards with it.
fn assert_missed(line: &str) {
    println!("{line}");
    let (quiet, lost) = told_of_leaving(line);
    assert!(quiet < MISSED, "missed too late: {line}");
    assert!(lost <= 6, "more is lost than a package's shards: {line}");
}

#[test]
fn a_worker_that_is_cut_off_while_calibrating_and_healed_takes_part_again() {
    if !available() {
        return;
    }
    let folder = setting(MANY_STEPS);
    let (mut cluster, workers) = cluster(folder.path());
    cluster.until(FIRST);
    cluster.network.cut(2);
    let line = cluster.until_missed();
    assert_missed(&line);
    assert!(told_of_leaving(&line).1 > 0, "it had nothing to do: {line}");
    cluster.network.heal(2);
    cluster.until(JOINED);
    cluster.until(BOTH);
    cluster.assert_done();
    for mut worker in workers {
        assert!(worker.end().success());
    }
    assert_same(&result(folder.path()), &undisturbed(MANY_STEPS));
}

/// Where a worker is cut off between the forming of the group and the end of the package is the seed's choice. One that had nothing left
/// to do may not be missed before the other has finished the job.
#[test]
fn a_worker_that_is_cut_off_while_reducing_or_solving_leaves_the_rest_to_the_other() {
    if !available() {
        return;
    }
    for seed in seeds([1, 2, 3]) {
        let mut prng = Prng::new(seed);
        let folder = setting(STEPS);
        let (mut cluster, mut workers) = cluster(folder.path());
        cluster.until(BOTH);
        // At the latest when the package is over.
        for _ in 0..prng.within(0..16) {
            if cluster.until(|_| true).contains(" is committed") {
                break;
            }
        }
        let cut = prng.within(0..2) as usize;
        cluster.network.cut(1 + cut);
        let line = cluster.until(|line| LEFT(line) || line.starts_with("over: done"));
        if LEFT(&line) {
            assert_missed(&line);
        }
        cluster.network.heal(1 + cut);
        cluster.assert_done();
        assert!(workers[1 - cut].end().success(), "seed {seed}");
        // The other may have come back too late to hear of the end.
        assert_no_failure(&mut workers[cut]);
        assert_same(&result(folder.path()), &undisturbed(STEPS));
    }
}

#[test]
fn a_coordinator_that_is_cut_off_and_healed_finds_its_workers_again() {
    if !available() {
        return;
    }
    for moment in [FIRST, BOTH] {
        let folder = setting(STEPS);
        let (mut cluster, workers) = cluster(folder.path());
        cluster.until(moment);
        cluster.network.cut(COORDINATOR);
        for _ in 0..2 {
            assert_missed(&cluster.until_missed());
        }
        cluster.network.heal(COORDINATOR);
        cluster.assert_done();
        workers.into_iter().for_each(|mut worker| assert_no_failure(&mut worker));
        assert_same(&result(folder.path()), &undisturbed(STEPS));
    }
}
