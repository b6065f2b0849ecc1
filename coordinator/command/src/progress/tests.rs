use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is printed, with a clock that goes on by `tick(seconds)` alone.
fn printed(run: impl FnOnce(&Progress, &dyn Fn(u64))) -> String {
    let (printed, seconds) = (Captured::default(), Arc::new(AtomicU64::new(7)));
    let read = Arc::clone(&seconds);
    let clock: Clock = Arc::new(move || Duration::from_secs(read.load(Ordering::Relaxed)));
    run(&Progress::lines(printed.clone(), clock), &|s| _ = seconds.fetch_add(s, Ordering::Relaxed));
    String::from_utf8(printed.0.lock().unwrap().clone()).unwrap()
}

#[test]
fn elsewhere_than_on_a_terminal_a_package_and_a_phase_are_a_line_each() {
    let text = printed(|progress, tick| {
        let phase = progress.phase("encode", "prompts", 3);
        phase.advance(3);
        tick(2);
        phase.finish();
        progress.package(1, 2, "6 units, 48 linears");
        let phase = progress.phase("calibrate", "prompt steps", 2500);
        (0..2500).for_each(|_| phase.advance(1));
        tick(50);
        phase.finish();
        progress.event("worker 2 joined");
        progress.packages_done();
        progress.note("nothing is held out");
        progress.phase("export", "files", 1).finish();
        let phase = progress.phase("solve", "linears", 1);
        phase.advance(1);
        phase.finish();
        let phase = progress.phase("compare", "pictures", 4);
        phase.advance(4);
        phase.finish();
    });
    let expected = "encode: 3 prompts in 2.0 s (1.5/s)\n\
                    package 1/2: 6 units, 48 linears\n\
                    package 1/2: calibrate: 2500 prompt steps in 50.0 s (50.0/s)\n\
                    worker 2 joined\n\
                    note: nothing is held out\n\
                    solve: 1 linear in 0 ms\n\
                    compare: 4 pictures in 0 ms\n";
    assert_eq!(text, expected);
}

#[test]
fn a_long_phase_is_told_every_half_minute() {
    let text = printed(|progress, tick| {
        let phase = progress.phase("calibrate", "prompt steps", 100);
        for _ in 0..100 {
            tick(2);
            phase.advance(1);
        }
    });
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 6, "{text}");
    assert_eq!(lines[0], "calibrate: 15 of 100 prompt steps, 2 min 50 s left in this step");
}

#[test]
fn a_step_that_takes_long_does_not_keep_a_phase_silent() {
    let text = printed(|progress, tick| {
        let phase = progress.phase("solve", "linears", 3);
        for _ in 0..7 {
            tick(10);
            phase.tell_if_due();
        }
    });
    // Where nothing is done, nothing says how long it takes.
    assert_eq!(text, "solve: 0 of 3 linears\nsolve: 0 of 3 linears\n");
}

#[test]
fn the_time_left_is_that_of_all_packages() {
    let text = printed(|progress, tick| {
        progress.expect_work(vec![PackageWork { calibrate: 4.0, solve: 1.0 }; 2]);
        progress.package(1, 2, "24 linears");
        let phase = progress.work(WorkKind::Calibrate, "calibrate", "prompt steps", 100);
        tick(40);
        phase.advance(50);
        assert_eq!(progress.expected_end(), Some(Duration::from_secs(7 + 40 + 160)));
        drop(phase);
    });
    // 2 of 10 in 40 s.
    assert_eq!(
        text,
        "package 1/2: 24 linears\npackage 1/2: calibrate: 50 of 100 prompt steps, about 2 min 40 s left\n"
    );
}

#[test]
fn shards_that_are_lost_are_still_to_be_done() {
    let text = printed(|progress, tick| {
        progress.expect_work(vec![PackageWork { calibrate: 10.0, solve: 0.0 }]);
        progress.package(1, 1, "24 linears");
        let phase = progress.work(WorkKind::Calibrate, "calibrate", "prompt steps", 100);
        let left = || progress.expected_end().unwrap();
        tick(40);
        phase.reach(1.0);
        assert_eq!(left(), Duration::from_secs(47));
        // A worker that had three quarters of them goes.
        phase.reach(0.25);
        assert_eq!(left(), Duration::from_secs(47 + 30));
        tick(10);
        phase.reach(0.5);
        assert_eq!(left(), Duration::from_secs(57 + 20));
        // Another one only lost its connection.
        phase.correct(0.25);
        phase.correct(0.5);
        assert_eq!(left(), Duration::from_secs(57 + 20));
        // Nothing is done until the job should be over.
        tick(30);
        phase.tell_if_due();
        assert_eq!(left(), Duration::from_secs(87 + 32));
        phase.reach(1.0);
        phase.finish();
    });
    assert_eq!(
        text,
        "package 1/1: 24 linears\n\
         package 1/1: calibrate: 25 of 100 prompt steps, about 30.0 s left\n\
         package 1/1: calibrate: 50 of 100 prompt steps, about 32.0 s left\n\
         package 1/1: calibrate: 175 prompt steps in 1 min 20 s (2.2/s)\n"
    );
}

#[test]
fn words_from_elsewhere_stay_in_their_line_and_change_no_other() {
    let text = printed(|progress, _| {
        progress.note("worker 2 left: \u{1b}[1A\u{1b}[2Kall is well\nnote: done");
        progress.event("worker \u{202e}3 joined");
    });
    assert_eq!(
        text,
        "note: worker 2 left: \\u{1b}[1A\\u{1b}[2Kall is well\\nnote: done\nworker \\u{202e}3 joined\n"
    );
}

#[test]
fn a_phase_that_fails_is_not_told_as_done() {
    assert_eq!(printed(|progress, _| drop(progress.phase("solve", "linears", 9))), "");
}
