//! A job whose coordinator and workers are on hosts of their own.

use std::path::Path;

use crate::hosts::Network;
use crate::process::{LineFilter, Process, until};

/// Where the coordinator is.
pub(crate) const COORDINATOR: usize = 0;

const OBSDIFF: &str = env!("CARGO_BIN_EXE_obsdiff");

/// A worker is given up.
pub(crate) const LEFT: LineFilter = |line| line.contains(" left (");

/// A job on a network.
pub(crate) struct TestCluster<'a> {
    folder: &'a Path,
    pub(crate) network: Network,
    pub(crate) coordinator: Process,
    pub(crate) url: String,
    /// What is reported of the job.
    pub(crate) watch: Process,
}

impl<'a> TestCluster<'a> {
    /// The coordinator of a folder's job on the first host of a network.
    pub(crate) fn new(folder: &'a Path, network: Network) -> Self {
        let (coordinator, url) = coordinate(folder, &network, 0);
        let watch = watch(folder, &network, &url);
        Self { folder, network, coordinator, url, watch }
    }

    /// A worker of one thread on a host.
    pub(crate) fn worker(&self, host: usize) -> Process {
        let args = ["worker", "--coordinator", &self.url, "--insecure", "--quiet", "--threads", "1"];
        Process::spawn(self.network.host(host).command(self.folder, OBSDIFF).args(args))
    }

    /// Starts the coordinator again where it was.
    pub(crate) fn coordinate_again(&mut self) {
        let port = self.url.rsplit_once(':').unwrap().1.parse().unwrap();
        (self.coordinator, self.url) = coordinate(self.folder, &self.network, port);
        self.watch = watch(self.folder, &self.network, &self.url);
    }

    /// Waits until the job has come to a moment, and gives the line that says so.
    pub(crate) fn until(&mut self, moment: LineFilter) -> String {
        until(&mut self.watch, moment)
    }

    /// Waits until a worker is given up.
    pub(crate) fn until_missed(&mut self) -> String {
        self.until(LEFT)
    }

    /// The coordinator ends, and ends well.
    pub(crate) fn assert_done(&mut self) {
        let (code, said) = self.coordinator.verdict();
        assert_eq!(code, Some(0), "the coordinator: {said}");
    }
}

fn coordinate(folder: &Path, network: &Network, port: u16) -> (Process, String) {
    let address = format!("{}:{port}", network.address(COORDINATOR));
    let args = ["coordinator", "job.toml", "--quiet", "--insecure", "--listen", &address];
    let mut process = Process::spawn(network.host(COORDINATOR).command(folder, OBSDIFF).args(args));
    match process.line(|line| line.starts_with("listening on ")) {
        Some(line) => (process, line.replace("listening on ", "http://")),
        None => panic!("it does not listen: {}", process.verdict().1),
    }
}

fn watch(folder: &Path, network: &Network, url: &str) -> Process {
    let args = ["status", url, "--watch", "--insecure"];
    Process::spawn(network.host(COORDINATOR).command(folder, OBSDIFF).args(args))
}

/// Ends well, if it has ended at all.
pub(crate) fn assert_no_failure(worker: &mut Process) {
    if worker.ended().is_some() {
        let (code, said) = worker.verdict();
        assert_eq!(code, Some(0), "a worker: {said}");
    }
}
