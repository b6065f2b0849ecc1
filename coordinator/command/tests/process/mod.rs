//! Processes of a job that come and go, and what they leave behind.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub const ASSETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/assets");
pub const LONG: Duration = Duration::from_secs(180);

/// A process that does not outlive its test.
pub struct Process {
    child: Child,
    out: Receiver<String>,
    said: Option<JoinHandle<String>>,
    begun: Instant,
    /// The lines of its output that were looked at, each with the seconds from its start until then.
    seen: Vec<String>,
}

impl Process {
    pub fn start(folder: &Path, args: &[&str]) -> Self {
        Self::spawn(Command::new(env!("CARGO_BIN_EXE_obsdiff")).args(args).current_dir(folder))
    }

    /// Starts any command that becomes the process.
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut stderr = child.stderr.take().unwrap();
        let (lines, out) = mpsc::channel();
        // Both end with the process.
        thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| lines.send(line)));
        let said = thread::spawn(move || {
            let mut said = Vec::new();
            stderr.read_to_end(&mut said).unwrap();
            String::from_utf8_lossy(&said).into_owned()
        });
        Self { child, out, said: Some(said), begun: Instant::now(), seen: Vec::new() }
    }

    /// The next line of its output that is as wanted; none at its end.
    pub fn line(&mut self, wanted: impl Fn(&str) -> bool) -> Option<String> {
        let end = Instant::now() + LONG;
        loop {
            match self.out.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push(format!("{:7.2} s  {line}", self.begun.elapsed().as_secs_f64()));
                    if wanted(&line) {
                        return Some(line.trim().to_owned());
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("no such line in {LONG:?}; it has printed:\n{}", self.printed())
                }
            }
        }
    }

    /// The lines of its output that were looked at, each with the seconds from its start until then.
    pub fn printed(&self) -> String {
        self.seen.join("\n")
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn terminate(&mut self) {
        self.signal("TERM");
    }

    /// Sends a signal, by its name.
    pub fn signal(&self, name: &str) {
        let args = [format!("-{name}"), self.child.id().to_string()];
        assert!(Command::new("kill").args(args).status().unwrap().success());
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    pub fn end(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(begun.elapsed() < LONG, "no end");
            thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// Its exit code at its end, and what it said on standard error.
    pub fn verdict(&mut self) -> (Option<i32>, String) {
        let code = self.end().code();
        (code, self.said.take().unwrap().join().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Most have ended by then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder with a small job of two packages, without a survey.
pub fn setting(steps: u32) -> tempfile::TempDir {
    setting_of("method = \"obs\"\nallocation = \"uniform\"\npattern = \"unstructured\"\nratio = 0.5", steps)
}

pub fn setting_of(sparsity: &str, steps: u32) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let job = format!(
        "[model]\npath = {:?}\n[sparsity]\n{sparsity}\n\
         [calibration]\nprompts = {:?}\ncount = 6\nsteps = {steps}\nguidance = 4.0\nmax_sequence_length = 24\n\
         shard_size = 1\n[packages]\ncount = 2\n[evaluation]\ncount = 0\n[output]\npath = \"out\"\n",
        Path::new(ASSETS).join("shapes-sd3"),
        Path::new(ASSETS).join("shapes-prompts.txt"),
    );
    fs::write(folder.path().join("job.toml"), job).unwrap();
    folder
}

/// A job that solves two linears on GPUs.
pub fn gpu_setting(steps: u32) -> tempfile::TempDir {
    let skipped = ["transformer_blocks.[1-9].*", "*.ff*", "*add_*", "*.to_k", "*.to_v"];
    let rules = skipped.map(|linears| format!("[[sparsity.rules]]\nmatch = \"{linears}\"\nskip = true\n"));
    let sparsity =
        "method = \"admm\"\nallocation = \"uniform\"\npattern = \"unstructured\"\nratio = 0.5\nrefine = 0";
    setting_of(&format!("{sparsity}\n{}", rules.concat()), steps)
}

/// What a job wrote of its own.
pub fn result(folder: &Path) -> [Vec<u8>; 2] {
    let files = ["transformer/diffusion_pytorch_model.safetensors", "pruning.json"];
    assert!(!folder.join("out.state").exists(), "the state is left behind");
    let [weights, record] = files.map(|file| fs::read(folder.join("out").join(file)).unwrap());
    [weights, of_every_run(&record)]
}

/// A record without what differs from run to run.
pub fn of_every_run(record: &[u8]) -> Vec<u8> {
    let mut record: serde_json::Value = serde_json::from_slice(record).unwrap();
    record.as_object_mut().unwrap().remove("measured");
    serde_json::to_vec_pretty(&record).unwrap()
}

/// The result of one undisturbed process, of a job of so many steps.
pub fn undisturbed(steps: u32) -> [Vec<u8>; 2] {
    static RESULTS: Mutex<BTreeMap<u32, [Vec<u8>; 2]>> = Mutex::new(BTreeMap::new());
    let make = || {
        let folder = setting(steps);
        assert!(Process::start(folder.path(), &["run", "job.toml", "--quiet"]).end().success());
        result(folder.path())
    };
    RESULTS.lock().unwrap().entry(steps).or_insert_with(make).clone()
}

/// A coordinator, and what it reports from its start on: what happens before somebody watches is not reported.
pub struct Coordinator {
    pub process: Process,
    pub url: String,
    pub watch: Process,
}

impl Coordinator {
    pub fn start(folder: &Path) -> Self {
        let args = ["coordinator", "job.toml", "--quiet", "--listen", "127.0.0.1:0"];
        let mut process = Process::start(folder, &args);
        let line = process.line(|line| line.contains("listening on ")).expect("it does not listen");
        let url = format!("http://{}", line.strip_prefix("listening on ").unwrap());
        let mut watch = Process::start(folder, &["status", &url, "--watch"]);
        assert!(watch.line(|_| true).is_some(), "nothing is printed");
        Self { process, url, watch }
    }

    /// Waits until the job has come to a moment.
    pub fn until(&mut self, moment: LineFilter) {
        until(&mut self.watch, moment);
    }

    /// Kills it, and starts another one where it was.
    pub fn replace(mut self, folder: &Path) -> Process {
        self.process.kill();
        let address = self.url.strip_prefix("http://").unwrap();
        Process::start(folder, &["coordinator", "job.toml", "--quiet", "--listen", address])
    }
}

/// Waits until the job that a process watches has come to a moment, and gives the line that says so.
pub fn until(watch: &mut Process, moment: LineFilter) -> String {
    watch.line(moment).unwrap_or_else(|| panic!("the job ends before; it has printed:\n{}", watch.printed()))
}

pub fn worker(folder: &Path, url: &str) -> Process {
    Process::start(folder, &["worker", "--coordinator", url, "--quiet"])
}

/// What a coordinator answers to a GET request of HTTP/1.1: the status, headers, and the body.
pub fn get(url: &str, path: &str) -> (u16, String, String) {
    let address = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let (status, headers) = head.split_once("\r\n").unwrap();
    let status = status.split(' ').nth(1).unwrap().parse().unwrap();
    (status, headers.to_owned(), body.to_owned())
}

/// Whether a line of a coordinator's log is the one to wait for.
pub type LineFilter = fn(&str) -> bool;

/// Some shards of the first package are held.
pub const FIRST: LineFilter =
    |line| line.starts_with("calibrate: package 1 of 2, ") && !line.contains(" 0 of 6");
/// The first package is finished.
pub const BETWEEN: LineFilter = |line| line.contains("package 1 is committed");
/// Some shards of the second package are held.
pub const SECOND: LineFilter =
    |line| line.starts_with("calibrate: package 2 of 2, ") && !line.contains(" 0 of 6");

/// The result is that of one undisturbed process, of the usual steps.
pub fn assert_undisturbed(folder: &Path) {
    assert_same(&result(folder), &undisturbed(16));
}

pub fn assert_same([weights, record]: &[Vec<u8>; 2], [expected, expected_record]: &[Vec<u8>; 2]) {
    assert!(weights == expected, "the weights differ");
    assert_eq!(String::from_utf8_lossy(record), String::from_utf8_lossy(expected_record));
}

/// The result is that of one undisturbed process of the usual steps that kept its state elsewhere.
pub fn assert_same_but_for_the_state(folder: &Path) {
    let [weights, record] = result(folder);
    let [expected, expected_record] = undisturbed(16);
    assert!(weights == expected, "the weights differ");
    let json = |record: &[u8]| serde_json::from_slice::<serde_json::Value>(record).unwrap();
    let mut record = json(&record);
    record["job"]["output"].as_object_mut().unwrap().remove("state").expect("it has no state");
    assert_eq!(record, json(&expected_record));
}

/// Seconds within which processes miss a worker that is gone. The coordinator gives one up after eight seconds of silence, which
/// `missed.rs` of the core holds to the second in simulated time. Here everything has to get its turn on a busy machine, too; but it
/// is well below the minutes after which a collective or a store would be given up, so that those are not what is seen.
pub const MISSED: f64 = 60.0;

/// Seconds for which a worker that left had sent nothing, and shards that are run again, as they are printed.
pub fn told_of_leaving(line: &str) -> (f64, usize) {
    let number = |before: &str, after: &str| {
        let (_, rest) = line.split_once(before)?;
        rest.split_once(after)?.0.parse::<f64>().ok()
    };
    let quiet = number("last heard of ", " s before").unwrap_or_else(|| panic!("no time in: {line}"));
    let lost = number(" s before; ", " shard").unwrap_or_else(|| panic!("no shards in: {line}"));
    (quiet, lost as usize)
}
