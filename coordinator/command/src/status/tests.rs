use obsdiff_proto::view::{Activity, Ending, JobDetails, JobRequest, PastEvent, Phase, View, WorkerView};
use obsdiff_proto::{Epoch, PackageId, WorkerId};

use super::*;

fn worker(id: u64, applied: u32, activity: Activity) -> WorkerView {
    let pace = (id == 7).then_some(Duration::from_millis(2500));
    let (draining, preparing) = (activity == Activity::Leaves, activity == Activity::Prepares);
    let worker = WorkerId(id);
    WorkerView { worker, applied, leased: 2, held: 12, pace, draining, preparing, solving: 0, activity }
}

fn report() -> JobReport {
    let view = View {
        phase: Phase::Calibrate,
        packages: 4,
        surveys: 0,
        committed: 1,
        package: Some(PackageId(1)),
        shards: 25,
        held: 12,
        parts: 8,
        solved: 3,
        epoch: Some(Epoch(5)),
        workers: vec![
            worker(7, 1, Activity::Calibrates),
            worker(8, 0, Activity::Applies),
            worker(9, 1, Activity::Leaves),
            worker(10, 0, Activity::Prepares),
        ],
        ending: None,
    };
    let text = |text: &str| text.to_owned();
    let elapsed = Duration::from_secs(65);
    JobReport {
        release: text("0.1.0"),
        model: text("shapes-sd3"),
        output: text("out"),
        elapsed,
        left: Some(Duration::from_secs(242)),
        request: JobRequest { pattern: text("unstructured"), sparsity: text("50%"), ..JobRequest::default() },
        view,
        details: JobDetails {
            events: vec![PastEvent { at: Duration::from_secs(3), fault: true, words: text("worker 6 left") }],
            ..JobDetails::default()
        },
    }
}

#[test]
fn a_report_is_a_page() {
    let page = "\
shapes-sd3 -> out
calibrate: package 2 of 4, 12 of 25 shards, about 4 min 2 s left
running for 1 min 5 s, obsdiff 0.1.0

worker  now                                     done
7       runs 2 shards                           12 shards, 2.5 s each
8       loads the weights of finished packages  12 shards
9       leaves                                  12 shards
10      prepares: reads the model               12 shards
";
    assert_eq!(render(&report()), page);
}

#[test]
fn what_a_coordinator_says_cannot_change_the_screen() {
    let mut report = report();
    report.model = "m\u{1b}]0;title\u{7}\nover: done".to_owned();
    report.view.ending = Some(Ending::Failed("no\u{202e} worker".to_owned()));
    let page = render(&report);
    assert!(page.starts_with("m\\u{1b}]0;title\\u{7}\\nover: done -> out\n"), "{page}");
    assert!(page.contains("no\\u{202e} worker") && !page.contains('\u{202e}'), "{page}");
    let event = WatchMessage::Event("worker 7 left: \u{1b}[2J\nworker 8 left".to_owned());
    assert_eq!(render_message(&event), "worker 7 left: \\u{1b}[2J\\nworker 8 left\n");
}

#[test]
fn a_report_as_json_has_the_same_figures() {
    let json = serde_json::to_value(report()).unwrap();
    let workers = json["workers"].as_array().unwrap();
    assert_eq!((&json["model"], &json["output"]), (&"shapes-sd3".into(), &"out".into()));
    assert_eq!((&json["elapsed_seconds"], &json["phase"]), (&65.0.into(), &"calibrate".into()));
    assert_eq!(json["left_seconds"], 242.0);
    // Text counts packages from 1.
    assert_eq!((&json["package"], &json["packages"]), (&1.into(), &4.into()));
    assert_eq!((&json["shards_held"], &json["shards"]), (&12.into(), &25.into()));
    assert_eq!((&json["parts_solved"], &json["epoch"]), (&3.into(), &5.into()));
    assert_eq!((&json["packages_committed"], &json["ending"]), (&1.into(), &serde_json::Value::Null));
    let first = serde_json::json!({
        "worker": 7, "packages_applied": 1, "shards_leased": 2, "shards_held": 12, "shard_seconds": 2.5,
        "draining": false, "preparing": false, "parts_to_solve": 0, "activity": "calibrates"
    });
    assert_eq!((workers.len(), &workers[0]), (4, &first));
    assert_eq!(workers[1]["shard_seconds"], serde_json::Value::Null);
    assert_eq!((&json["job"]["sparsity"], &json["surveys"]), (&"50%".into(), &0.into()));
    let event = serde_json::json!({ "at_seconds": 3.0, "fault": true, "words": "worker 6 left" });
    assert_eq!(json["events"], serde_json::json!([event]));
    let grid = serde_json::json!({ "group_size": 0, "running": [], "done": [] });
    assert_eq!((&json["shard_grid"], &json["timeline"]), (&grid, &serde_json::json!([])));
    let failed = serde_json::to_value(Ending::Failed("no worker".to_owned())).unwrap();
    assert_eq!(failed, serde_json::json!({ "outcome": "failed", "reason": "no worker" }));
    assert_eq!(serde_json::to_value(Ending::Done).unwrap(), serde_json::json!({ "outcome": "done" }));
}

#[test]
fn time_goes_on_between_reports_until_the_end() {
    let later = after(report(), Duration::from_secs(42));
    assert_eq!((later.elapsed, later.left), (Duration::from_secs(107), Some(Duration::from_secs(200))));
    assert_eq!(after(report(), Duration::from_secs(999)).left, Some(Duration::ZERO));
    let view = View { ending: Some(Ending::Done), ..report().view };
    let over = JobReport { view, ..report() };
    assert_eq!(after(over.clone(), Duration::from_secs(42)), over);
}

#[test]
fn an_end_is_told_with_its_reason() {
    let mut report = report();
    report.view.phase = Phase::Over;
    report.view.workers.clear();
    report.left = None;
    report.view.ending = Some(Ending::Failed("no worker for 60 s".to_owned()));
    let text = render_message(&WatchMessage::Report(Box::new(report)));
    assert!(text.contains("\nover: no worker for 60 s; 1 of 4 packages committed"), "{text}");
    assert_eq!(
        render_message(&WatchMessage::Event("package 1 is committed".to_owned())),
        "package 1 is committed\n"
    );
}

#[test]
fn a_screen_cuts_what_is_too_wide_and_counts_what_is_too_long() {
    let text = "short\na line with 22 letters\nlast\n";
    assert_eq!(fitted(text, 24, 80), text.trim_end());
    assert_eq!(fitted(text, 4, 22), text.trim_end());
    assert_eq!(fitted(text, 24, 10), "short\na line wi…\nlast");
    assert_eq!(fitted(text, 3, 80), "short\nand 2 more lines");
    assert_eq!(fitted(text, 1, 80), "and 3 more lines");
    // Wide characters take two columns.
    assert_eq!(fitted("模型模型", 24, 5), "模型…");
}
