//! Workers far away, behind a network that loses frames.

use std::time::Duration;

use crate::cable::{self, Cable, Quality};
use crate::cluster::TestCluster;
use crate::hosts::{Network, available};
use crate::process::{Process, assert_same, result, setting_of};
use crate::seeds::seeds;

/// Half of the attention of one block: at such a loss TCP carries some 20 KB a second.
const SPARSITY: &str = "method = \"obs\"\nallocation = \"uniform\"\npattern = \"unstructured\"\nratio = 0.5\n\
    [[sparsity.rules]]\nmatch = \"transformer_blocks.[1-9].*\"\nskip = true\n\
    [[sparsity.rules]]\nmatch = \"*.ff*\"\nskip = true";

/// 200 ms to the coordinator and back, twice that to the other worker; of each 100 frames in either direction 5 are lost.
#[test]
fn a_job_over_a_slow_and_lossy_network_is_done_the_same() {
    if !available() || !cable::available() {
        return;
    }
    let setting = || setting_of(SPARSITY, 16);
    let expected = {
        let folder = setting();
        assert!(Process::start(folder.path(), &["run", "job.toml", "--quiet"]).end().success());
        result(folder.path())
    };
    for seed in seeds([1]) {
        let folder = setting();
        let mut network = Network::new();
        network.add();
        let quality = Quality { delay: Duration::from_millis(100), loss: 5 };
        let _cables = [seed, seed + 1].map(|seed| Cable::add(&mut network, quality, seed));
        let mut cluster = TestCluster::new(folder.path(), network);
        let mut workers = [1, 2].map(|host| cluster.worker(host));
        cluster.until(|line| line.contains("2 workers form group"));
        cluster.assert_done();
        assert!(workers.iter_mut().any(|worker| worker.end().success()), "seed {seed}");
        assert_same(&result(folder.path()), &expected);
    }
}
