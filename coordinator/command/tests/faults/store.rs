//! A store on an S3 server that fails: away, or too busy, for a while and for good.

use std::fs;
use std::path::Path;
use std::process::Command;

use tokio::runtime::Runtime;

use crate::process::{FIRST, Process, SECOND, assert_same_but_for_the_state, setting};
use crate::s3::Server;

const STORE: &str = "s3://bucket/some/job";

/// A server that comes and goes.
pub(crate) struct StoreServer {
    pub(crate) folder: tempfile::TempDir,
    server: Option<(Server, Runtime)>,
    options: Vec<(String, String)>,
}

impl StoreServer {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("bucket")).unwrap();
        let mut server = Self { folder, server: None, options: Vec::new() };
        server.open("127.0.0.1:0");
        server.options = server.server().options();
        server
    }

    pub(crate) fn server(&self) -> &Server {
        &self.server.as_ref().expect("it is away").0
    }

    fn open(&mut self, address: &str) {
        let runtime = Runtime::new().unwrap();
        let server = runtime.block_on(Server::start_at(address, self.folder.path()));
        self.server = Some((server, runtime));
    }

    /// The server and all its connections are gone.
    fn close(&mut self) {
        let (_, runtime) = self.server.take().expect("it is away already");
        runtime.shutdown_timeout(crate::process::LONG);
    }

    /// The server is back where it was.
    fn open_again(&mut self) {
        let endpoint = &self.options.iter().find(|(key, _)| key == "AWS_ENDPOINT").unwrap().1;
        let address = endpoint.strip_prefix("http://").unwrap().to_owned();
        self.open(&address);
    }

    /// A process that knows the way to the server.
    pub(crate) fn start(&self, folder: &Path, args: &[&str]) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_obsdiff"));
        let options = self.options.iter().map(|(key, value)| (key, value));
        Process::spawn(command.args(args).envs(options).current_dir(folder))
    }

    /// A coordinator, a worker of it, and what is reported.
    pub(crate) fn job(&self, folder: &Path) -> (Process, Process, Process) {
        let args = ["coordinator", "job.toml", "--quiet", "--listen", "127.0.0.1:0"];
        let mut coordinator = self.start(folder, &args);
        let line = coordinator.line(|line| line.starts_with("listening on "));
        let url = line.expect("it does not listen").replace("listening on ", "http://");
        let watch = self.start(folder, &["status", &url, "--watch"]);
        let worker = self.start(folder, &["worker", "--coordinator", &url, "--quiet"]);
        (coordinator, worker, watch)
    }
}

fn job() -> tempfile::TempDir {
    let folder = setting(16);
    let job = folder.path().join("job.toml");
    let words = fs::read_to_string(&job).unwrap();
    fs::write(job, format!("{words}state = {STORE:?}\n")).unwrap();
    folder
}

#[test]
fn a_store_that_is_away_for_a_while_is_waited_for() {
    let (folder, mut server) = (job(), StoreServer::new());
    let (mut coordinator, mut worker, mut watch) = server.job(folder.path());
    assert!(watch.line(FIRST).is_some());
    server.close();
    let line = watch.line(|line| line.contains(" failed 1 time: ")).expect("nobody misses it");
    assert!(line.contains(STORE), "the store is not named: {line}");
    server.open_again();
    let (code, said) = coordinator.verdict();
    assert_eq!(code, Some(0), "{said}");
    assert!(worker.end().success());
    assert_same_but_for_the_state(folder.path());
}

#[test]
fn a_store_that_is_too_busy_for_a_while_is_waited_for() {
    let (folder, server) = (job(), StoreServer::new());
    let (mut coordinator, mut worker, mut watch) = server.job(folder.path());
    assert!(watch.line(FIRST).is_some());
    server.server().refuse(true);
    let line = watch.line(|line| line.contains(" failed 1 time: ")).expect("nobody misses it");
    assert!(line.contains(STORE) && line.contains("503"), "not what the store said: {line}");
    server.server().refuse(false);
    let (code, said) = coordinator.verdict();
    assert_eq!(code, Some(0), "{said}");
    assert!(worker.end().success());
    assert_same_but_for_the_state(folder.path());
}

#[test]
fn a_store_that_is_away_for_good_ends_the_job_which_goes_on_when_it_is_back() {
    let (folder, mut server) = (job(), StoreServer::new());
    let (mut coordinator, mut worker, mut watch) = server.job(folder.path());
    assert!(watch.line(SECOND).is_some());
    server.close();
    let (code, said) = coordinator.verdict();
    assert_eq!(code, Some(3), "{said}");
    let last = said.lines().last().unwrap();
    println!("{last}");
    assert!(
        last.starts_with("error: ") && last.contains(STORE) && last.contains("Connection refused"),
        "{said}"
    );
    assert_eq!(worker.end().code(), Some(3));
    assert!(server.folder.path().join("bucket/some/job/packages/00000.json").is_file());

    // While it is away, the command says so, and is to be run again.
    let mut early = server.start(folder.path(), &["coordinator", "job.toml", "--listen", "127.0.0.1:0"]);
    let (code, said) = early.verdict();
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains(STORE) && said.contains("; it is tried again in 0.2 s"), "{said}");

    server.open_again();
    let (mut coordinator, mut worker, mut watch) = server.job(folder.path());
    let line = watch.line(|line| line.contains(" of 2")).unwrap();
    assert!(line.contains("package 2 of 2"), "what was committed is lost: {line}");
    let (code, said) = coordinator.verdict();
    assert_eq!(code, Some(0), "{said}");
    assert!(worker.end().success());
    assert!(!server.folder.path().join("bucket/some/job/job.json").exists(), "the state is left behind");
    assert_same_but_for_the_state(folder.path());
}
