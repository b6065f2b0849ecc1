//! Messages that say what cannot be: each is refused by the field's name.

use obsdiff_proto::message::{Command, Hello, Status};
use obsdiff_proto::session::{Briefing, CoordinatorEvent, PROTOCOL, Welcome, WorkerEvent};
use obsdiff_proto::view::JobReport;
use obsdiff_proto::wire::{LONGEST_RECEIPT, Put, WireError, v1};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

use crate::strategies;

fn status(change: impl FnOnce(&mut v1::Status)) -> String {
    let mut status = v1::Status::from(&Status::default());
    change(&mut status);
    Status::try_from(status).unwrap_err().to_string()
}

fn briefing(change: impl FnOnce(&mut v1::Briefing)) -> String {
    let drawn = strategies::briefing().new_tree(&mut TestRunner::deterministic()).unwrap().current();
    let mut message = v1::Briefing::from(&drawn);
    change(&mut message);
    Briefing::try_from(message).unwrap_err().to_string()
}

#[test]
fn a_briefing_that_would_not_come_back_as_it_is_is_an_error() {
    let drawn = strategies::briefing().new_tree(&mut TestRunner::deterministic()).unwrap().current();
    assert_eq!(drawn.check(), Ok(()));
    for number in [f64::NAN, f64::INFINITY] {
        let mut briefing = drawn.clone();
        briefing.spec.calibration.guidance = number;
        assert!(briefing.check().is_err(), "{number}");
    }
}

#[test]
fn another_protocol_is_refused_in_words_whatever_else_is_said() {
    let hello = v1::Hello { protocol: PROTOCOL + 1, ..v1::Hello::default() };
    let event = v1::WorkerEvent { event: Some(v1::worker_event::Event::Hello(hello)) };
    let error = WorkerEvent::try_from(event).unwrap_err();
    assert!(matches!(error, WireError::Protocol { theirs: 5, .. }));
    assert_eq!(
        error.to_string(),
        "this coordinator speaks protocol 4, the worker 5: use the same release on both"
    );
    let welcome = v1::Welcome { protocol: PROTOCOL - 1, ..v1::Welcome::default() };
    assert_eq!(
        Welcome::try_from(welcome).unwrap_err().to_string(),
        "this worker speaks protocol 4, the coordinator 3: use the same release on both"
    );
}

#[test]
fn what_is_missing_is_named() {
    let nothing = WorkerEvent::try_from(v1::WorkerEvent::default()).unwrap_err();
    assert_eq!(nothing.to_string(), "event: is missing");
    let hello = v1::Hello { protocol: PROTOCOL, ..v1::Hello::default() };
    assert_eq!(Hello::try_from(hello).unwrap_err().to_string(), "status: is missing");
    assert_eq!(status(|s| s.sums = None), "sums: is missing");
    assert_eq!(status(|s| s.in_hand.push(v1::Order::default())), "in_hand[0].order: is missing");
    assert_eq!(status(|s| s.trouble = Some(v1::Trouble::default())), "trouble.fault: is missing");
    assert_eq!(status(|s| s.group = Some(v1::GroupStatus::default())), "group.stage: is missing");
    assert_eq!(status(|s| s.solved.push(v1::Solved::default())), "solved[0].part: is missing");
    assert_eq!(JobReport::try_from(v1::Job::default()).unwrap_err().to_string(), "phase: is missing");
    assert_eq!(Put::try_from(v1::PutRequest::default()).unwrap_err().to_string(), "key: is missing");
}

#[test]
fn progress_past_the_end_is_refused() {
    let progress = v1::Progress { percent: 101, ..v1::Progress::default() };
    let heartbeat = v1::Heartbeat { progress: Some(progress) };
    let event = v1::CoordinatorEvent { event: Some(v1::coordinator_event::Event::Heartbeat(heartbeat)) };
    let error = CoordinatorEvent::try_from(event).unwrap_err().to_string();
    assert_eq!(error, "heartbeat.progress.percent: is 101, but must be 0 to 100");
}

#[test]
fn what_is_out_of_range_is_named() {
    let exponents = v1::Exponents { exponents: [(4, 1101)].into() };
    assert_eq!(status(|s| s.pilot = Some(exponents)), "pilot[4]: is 1101, but must be in -1100..=1100");
    let solve = v1::command::Solve {
        epoch: 1,
        part: Some(v1::Part {
            id: Some(v1::PartId::default()),
            sites: vec![0],
            slices: vec![v1::Slice { linear: 0, start: 5, end: 5 }],
            cost: 0,
        }),
    };
    let command = v1::Command { command: Some(v1::command::Command::Solve(solve)) };
    assert_eq!(
        Command::try_from(command).unwrap_err().to_string(),
        "solve.part.slices[0].end: is 5, but must be above start 5, and at most 4294967295"
    );
    // A stage of a later release.
    let group = v1::GroupStatus { stage: 99, ..v1::GroupStatus::default() };
    assert_eq!(status(|s| s.group = Some(group)), "group.stage: is missing");
}

#[test]
fn what_is_too_much_is_named() {
    let receipt = "r".repeat(LONGEST_RECEIPT + 1);
    let solved = v1::Solved { part: Some(v1::PartId::default()), receipt, ..v1::Solved::default() };
    assert_eq!(
        status(|s| s.solved.push(solved)),
        "solved[0].receipt: has 65537 bytes, but at most 65536 are taken"
    );
    let many = |s: &mut v1::Status| {
        s.group = Some(v1::GroupStatus {
            epoch: 1,
            stage: 1,
            failure: String::new(),
            received: (0..=1 << 16).collect(),
        })
    };
    assert_eq!(status(many), "group.received: has 65537 entries, but at most 65536 are taken");
}

#[test]
fn what_repeats_or_is_out_of_order_is_named() {
    for held_runs in [vec![0, 0], vec![2, 1, 0, 1]] {
        let sums = v1::Sums { held_runs, ..v1::Sums::default() };
        assert_eq!(status(|s| s.sums = Some(sums)), "sums.held_runs: is not ascending");
    }
    let saved = |shards_runs| Some(v1::SavedSums { shards_runs, ..v1::SavedSums::default() });
    for (runs, problem) in [(vec![0, 0], "is not ascending"), (vec![], "is missing")] {
        let sums = v1::Sums { saved: saved(runs), ..v1::Sums::default() };
        assert_eq!(status(|s| s.sums = Some(sums)), format!("sums.saved.shards_runs: {problem}"));
    }
    let solved = v1::Solved { part: Some(v1::PartId::default()), ..v1::Solved::default() };
    assert_eq!(status(|s| s.solved = vec![solved.clone(), solved]), "solved: is not ascending");
}

#[test]
fn a_briefing_that_does_not_fit_itself_is_named() {
    let damage = |document: &mut Option<v1::Document>| {
        let document = document.as_mut().unwrap();
        document.content = document.content.iter().map(|b| b ^ 1).collect();
    };
    assert!(briefing(|b| damage(&mut b.plan)).starts_with("plan: has the digest "));
    assert_eq!(
        briefing(|b| b.inputs = vec![v1::Input::default()]),
        "inputs[0].sha256.length: is 0, but must be 32"
    );
    let other = |text: &str| {
        let content = prost::bytes::Bytes::copy_from_slice(text.as_bytes());
        let sha256 = prost::bytes::Bytes::copy_from_slice(&obsdiff_proto::Digest::of(&content).0);
        Some(v1::Document { content, sha256 })
    };
    let empty =
        r#"{"parameters":0,"streams":[],"units":[],"sites":[],"linears":[],"structures":[],"fixed":[]}"#;
    assert!(briefing(|b| b.inventory = other(empty)).starts_with("plan: package 0 "));
    let linear = r#""linears":[{"name":"a","rows":1,"bias":false,"site":3}]"#;
    let unknown_site = empty.replace(r#""linears":[]"#, linear);
    assert_eq!(briefing(|b| b.inventory = other(&unknown_site)), "inventory: names site 3 of 0");
    assert!(briefing(|b| b.spec = other("{}")).starts_with("spec: cannot be read: missing field `model`"));
    let event = v1::CoordinatorEvent { event: None };
    assert_eq!(CoordinatorEvent::try_from(event).unwrap_err().to_string(), "event: is missing");
}
