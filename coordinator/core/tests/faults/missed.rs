//! How soon a worker that is gone is missed, and what of its work is lost.

use std::collections::BTreeSet;
use std::time::Duration;

use obsdiff_core::{Dismissal, Event, Outcome};

use crate::script::{Script, job};
use crate::shards;

#[test]
fn shards_of_a_worker_that_dies_while_calibrating_are_leased_again() {
    let mut script = Script::new(job());
    script.start(1);
    script.start(2);
    let before = shards(&script.orders(1));
    assert_eq!((before.len(), script.kept(2)), (2, 2));
    // Half a second after it last spoke.
    script.now += Duration::from_millis(500);
    script.leave(1);
    let Some(event @ Event::Left { .. }) = script.events().pop() else { panic!("no event") };
    assert_eq!(
        event.to_string(),
        "worker 1 left (connection lost), last heard of 0.5 s before; 2 shards are run again"
    );
    let Event::Left { lost, .. } = event else { panic!("another event") };
    assert_eq!(lost.into_iter().collect::<BTreeSet<_>>(), before);
    script.workers.remove(&1);
    script.settle();
    assert_eq!(script.outcome(), Some(Outcome::Done));
}

#[test]
fn a_silent_worker_is_gone_within_ten_seconds_and_one_that_speaks_stays() {
    let mut script = Script::new(job());
    script.start(1);
    script.start(2);
    script.pass(7, &[2]);
    assert_eq!(script.dismissal(1), None);
    script.pass(2, &[2]);
    assert_eq!(script.dismissal(1), Some(Dismissal::Silent { seconds: 8 }));
    assert_eq!(script.dismissal(2), None);
    let Some(Event::Left { quiet, lost, .. }) = script.events().pop() else { panic!("no event") };
    assert!(quiet < Duration::from_secs(10), "{quiet:?}");
    assert_eq!(lost.len(), 2);
    // What it says afterwards does not count, and nothing is sent to it.
    script.look();
    script.report(1);
    assert_eq!(script.actions, []);
}

#[test]
fn a_worker_that_speaks_but_makes_no_progress_is_gone_too() {
    let mut script = Script::new(job());
    script.start(1);
    let in_hand = script.orders(1).into_iter().collect();
    script.workers.get_mut(&1).unwrap().in_hand = in_hand;
    let stall = job().options.stall.as_secs();
    script.pass(stall - 1, &[1]);
    assert_eq!(script.dismissal(1), None);
    script.pass(1, &[1]);
    assert_eq!(script.dismissal(1), Some(Dismissal::Stalled { seconds: stall }));
}

/// Held or leased, of the open package: nothing else is run again.
#[test]
fn with_a_worker_that_is_gone_only_its_shards_of_the_open_package_are_lost() {
    let mut script = Script::new(job());
    script.start(1);
    while script.core.view().committed == 0 {
        script.obey(1, crate::none);
        script.store();
    }
    script.obey(1, crate::none);
    let kept = script.kept(1);
    assert!((1..=4).contains(&kept), "{kept}");
    script.look();
    script.leave(1);
    let Some(Event::Left { lost, .. }) = script.events().pop() else { panic!("no event") };
    assert_eq!(lost.len(), kept);
    assert_eq!(script.core.view().committed, 1, "what is committed stays");
}
