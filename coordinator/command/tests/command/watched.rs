//! What a coordinator and `status --watch` show on a terminal while workers come and go.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::Instant;

use crate::process::{LONG, Process, setting, worker};

/// Rows of the terminals.
const ROWS: u16 = 24;

/// A command that runs on a terminal.
struct Terminal {
    child: Child,
    written: PathBuf,
    columns: u16,
}

impl Terminal {
    /// Runs `obsdiff` with these arguments in `folder`, on a terminal of so many columns.
    fn start(folder: &Path, columns: u16, args: &str) -> Self {
        let written = folder.join(format!("terminal-{columns}"));
        let command = env!("CARGO_BIN_EXE_obsdiff");
        let line = format!("stty cols {columns} rows {ROWS}; exec {command} {args}");
        let mut script = Command::new("script");
        script.args(["--quiet", "--return", "--flush", "--command", &line, "/dev/null"]);
        script.current_dir(folder).env("TERM", "xterm-256color").env_remove("NO_COLOR");
        let child = script.stdout(File::create(&written).unwrap()).spawn().unwrap();
        Self { child, written, columns }
    }

    fn written(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.written).unwrap()).into_owned()
    }

    /// What has been written once it has a part like this, and what follows that part in its line.
    fn until(&self, part: &str) -> String {
        let end = Instant::now() + LONG;
        loop {
            let written = self.written();
            if let Some((_, rest)) = written.split_once(part)
                && let Some((rest, _)) = rest.split_once(['\r', '\n'])
            {
                return rest.to_owned();
            }
            assert!(Instant::now() < end, "no {part}: {written}");
            thread::park_timeout(std::time::Duration::from_millis(20));
        }
    }

    /// All that it has written, once it ended well.
    fn end(&mut self) -> String {
        assert!(self.child.wait().unwrap().success(), "{}", self.written());
        self.written()
    }

    /// The screens between drawings, and the last one. A drawing begins by moving up to the first row of what it replaces.
    fn screens(&self, written: &str) -> Vec<Vec<String>> {
        let mut terminal = vt100::Parser::new(ROWS, self.columns, 0);
        let rows = |terminal: &vt100::Parser| {
            let rows = terminal.screen().rows(0, self.columns);
            rows.map(|row| row.trim_end().to_owned()).filter(|row| !row.is_empty()).collect()
        };
        let mut screens = Vec::new();
        for (i, piece) in written.split("\x1b[").enumerate() {
            if piece.trim_start_matches(|c: char| c.is_ascii_digit()).starts_with('A') {
                screens.push(rows(&terminal));
            }
            let start = if i == 0 { "" } else { "\x1b[" };
            terminal.process(format!("{start}{piece}").as_bytes());
        }
        screens.push(rows(&terminal));
        screens
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Most have ended by then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_last_screen_stays_above_the_line_that_the_coordinator_has_gone() {
    let folder = setting(2);
    let folder = folder.path();
    let args = ["coordinator", "job.toml", "--quiet", "--listen", "127.0.0.1:0"];
    let mut coordinator = Process::start(folder, &args);
    let line = coordinator.line(|line| line.starts_with("listening on ")).unwrap();
    let url = line.replace("listening on ", "http://");
    let mut watch = Terminal::start(folder, 200, &format!("status {url} --watch"));
    watch.until("running for ");
    coordinator.kill();
    assert_eq!(watch.child.wait().unwrap().code(), Some(3), "{}", watch.written());
    let last = watch.screens(&watch.written()).pop().unwrap();
    let [.., time, workers, gone] = &last[..] else { panic!("{last:#?}") };
    assert!(time.starts_with("running for ") && workers == "no workers", "{last:#?}");
    assert!(gone.starts_with(&format!("error: {url} has gone, but the job is not over: ")), "{last:#?}");
}

#[test]
fn workers_that_come_and_go_are_lines_and_the_job_is_one_screen_until_its_end() {
    let folder = setting(24);
    let folder = folder.path();
    let mut coordinator = Terminal::start(folder, 100, "coordinator job.toml --listen 127.0.0.1:0");
    let url = format!("http://{}", coordinator.until("listening on "));
    let watch = format!("status {url} --watch");
    let (mut wide, mut narrow) = (Terminal::start(folder, 120, &watch), Terminal::start(folder, 44, &watch));
    for terminal in [&wide, &narrow] {
        terminal.until("running for ");
    }
    let mut lost = worker(folder, &url);
    wide.until("1 of 6 shards");
    lost.kill();
    wide.until("worker 1 left ");
    let mut other = worker(folder, &url);
    assert!(other.end().success());
    let [printed, wide_printed, narrow_printed] =
        [&mut coordinator, &mut wide, &mut narrow].map(Terminal::end);

    // The coordinator's own terminal keeps a line of each worker that joined and of the one that was lost.
    let last = coordinator.screens(&printed[..printed.find("Pruned 50").unwrap()]).pop().unwrap();
    let found = |start: &str| last.iter().position(|row| row.starts_with(start));
    let order = ["worker 1 joined", "note: worker 1 left (the connection was lost), ", "worker 2 joined"];
    let places = order.map(|start| found(start).unwrap_or_else(|| panic!("no line {start}: {last:#?}")));
    assert!(places.is_sorted(), "{last:#?}");

    for (terminal, printed) in [(&wide, &wide_printed), (&narrow, &narrow_printed)] {
        let screens = terminal.screens(printed);
        let mut live = 0;
        let (last, earlier) = screens.split_last().unwrap();
        for screen in earlier {
            let first: Vec<_> =
                (0..screen.len()).filter(|i| screen[*i].starts_with("running for ")).collect();
            assert!(first.len() <= 1, "two reports at once: {screen:#?}");
            let Some(row) = first.first() else { continue };
            // The two rows above are the model and the phase: neither goes on in a row of its own.
            assert!(*row >= 2 && screen[row - 2].starts_with('/'), "at {row}: {screen:#?}");
            assert!(screen[row - 1].contains(": "), "{screen:#?}");
            live += usize::from(screen[row + 1..].iter().any(|row| row.starts_with("worker  now")));
        }
        assert!(live > 3, "{live} screens had a table of workers: {printed}");
        // The end stays as it is, in as many rows as it needs.
        let tail: Vec<&str> = last[last.len() - 2..].iter().map(String::as_str).collect();
        assert_eq!(tail[0], "over: done; 2 of 2 packages committed", "{last:#?}");
        assert!(tail[1].starts_with("running for "), "{last:#?}");
    }
    // What is too wide was cut, with a sign that it goes on.
    assert!(narrow_printed.contains('…') && !wide_printed.contains('…'), "{narrow_printed}");
}
