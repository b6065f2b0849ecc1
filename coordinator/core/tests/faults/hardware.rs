//! Workers on different kinds of hardware: their bits may differ, so they do not mix unless the job says that they may.

use obsdiff_core::{Action, Dismissal, Event, Failure, Job, Options, Outcome, Status};

use crate::none;
use crate::script::{HARDWARE, Script, job};

const OTHER: &str = "another processor";

/// The kinds that were saved for the next life.
fn saved(script: &Script) -> Vec<String> {
    let of =
        |action: &Action| if let Action::SaveHardware(kind) = action { Some(kind.clone()) } else { None };
    script.actions.iter().filter_map(of).collect()
}

/// Runs to the end of a package; gives the kind that its manifest names.
fn committed(script: &mut Script, workers: &[u64]) -> Option<String> {
    for _ in 0..100 {
        workers.iter().for_each(|worker| script.obey(*worker, none));
        let manifest = script.actions.iter().find_map(|action| match action {
            Action::Commit(manifest) => Some(manifest.hardware.clone()),
            _ => None,
        });
        if let Some(hardware) = manifest {
            return hardware;
        }
    }
    panic!("nothing is committed");
}

#[test]
fn the_first_worker_decides_and_others_stand_by_with_that_reason() {
    let mut script = Script::new(job());
    script.start(1);
    assert_eq!(saved(&script), [HARDWARE]);
    for worker in [2, 3] {
        script.join_on(OTHER, worker, Status::default());
        let why = script.dismissal(worker).unwrap();
        assert_eq!(why, Dismissal::OtherHardware { job: HARDWARE.to_owned(), worker: OTHER.to_owned() });
        assert!(why.to_string().contains("the job runs on a processor and this worker on another processor"));
    }
    let reported = script.events().into_iter().filter(|event| matches!(event, Event::StandingBy { .. }));
    assert_eq!(reported.count(), 1, "a kind is reported once");
    script.start(4);
    assert_eq!(script.core.view().workers.len(), 2);
    assert_eq!(committed(&mut script, &[1, 4]).as_deref(), Some(HARDWARE));
}

#[test]
fn a_later_coordinator_keeps_the_kind() {
    let mut script = Script::new(Job { hardware: Some(HARDWARE.to_owned()), life: 1, ..job() });
    script.join_on(OTHER, 1, Status::default());
    assert!(matches!(script.dismissal(1), Some(Dismissal::OtherHardware { .. })));
    script.start(2);
    assert_eq!((script.dismissal(2), saved(&script)), (None, Vec::new()));
}

#[test]
fn a_job_that_says_so_mixes_kinds_and_its_manifests_name_none() {
    let options = Options { mixed_hardware: true, ..job().options };
    let mut script = Script::new(Job { options, ..job() });
    script.start(1);
    script.join_on(OTHER, 2, Status::default());
    assert_eq!((script.core.view().workers.len(), saved(&script)), (2, Vec::new()));
    assert_eq!(committed(&mut script, &[1, 2]), None);
}

#[test]
fn a_job_that_ends_without_workers_says_who_stood_by() {
    let mut script = Script::new(job());
    script.start(1);
    script.leave(1);
    script.join_on(OTHER, 2, Status::default());
    script.pass(job().options.no_workers.as_secs(), &[]);
    let Some(Outcome::Failed(failure @ Failure::Alone { .. })) = script.outcome() else { panic!("goes on") };
    let words = "workers on another processor stand by, since the job runs on a processor";
    assert!(failure.to_string().contains(words), "{failure}");
}
