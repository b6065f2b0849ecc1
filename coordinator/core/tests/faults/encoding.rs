//! Before anybody is ready, one worker encodes the prompts, and the others find them encoded.

use std::time::Duration;

use obsdiff_core::{Command, Encoding, Event, Job, Options, Order, Outcome, Status};
use obsdiff_proto::WorkerId;

use crate::none;
use crate::script::{Script, job};

/// A worker whose encoders are open.
fn can_encode(script: &mut Script, worker: u64) {
    script.join(worker, Status { preparing: true, encoding: Encoding::Ready, ..Status::default() });
}

/// The workers that the core chose to encode, in order.
fn encoders(script: &Script) -> Vec<u64> {
    let of = |event| if let Event::Encodes { worker } = event { Some(worker.0) } else { None };
    script.events().into_iter().filter_map(of).collect()
}

fn get_ready(script: &mut Script, worker: u64) {
    script.workers.get_mut(&worker).unwrap().preparing = false;
    script.report(worker);
}

#[test]
fn one_worker_encodes_and_the_others_wait_until_it_has() {
    let mut script = Script::new(job());
    script.join(1, Status { preparing: true, ..Status::default() });
    assert_eq!(script.orders(1), [], "its encoders are not open yet");
    (2..5).for_each(|worker| can_encode(&mut script, worker));
    assert_eq!((script.orders(2), encoders(&script)), (vec![Order::Encode], vec![2]));
    assert_eq!(script.commands(2), [Command::Encode { is_stored: false }]);
    assert!([1, 3, 4].iter().all(|worker| script.orders(*worker).is_empty()));
    script.obey(2, none);
    for worker in [3, 4] {
        assert_eq!(script.commands(worker), [Command::Encode { is_stored: true }]);
        script.obey(worker, none);
    }
    assert_eq!(encoders(&script), [2]);
    // Who comes later finds all of them encoded, too.
    can_encode(&mut script, 5);
    assert_eq!(script.orders(5), [Order::Encode]);
    script.obey(5, none);
    (2..6).for_each(|worker| get_ready(&mut script, worker));
    script.settle();
    assert_eq!(script.outcome(), Some(Outcome::Done));
}

#[test]
fn another_takes_over_from_an_encoder_that_is_lost_or_leaves() {
    let mut script = Script::new(job());
    (1..4).for_each(|worker| can_encode(&mut script, worker));
    assert_eq!((script.orders(1), script.orders(2)), (vec![Order::Encode], Vec::new()));
    script.leave(1);
    assert_eq!((encoders(&script), script.orders(2)), (vec![1, 2], vec![Order::Encode]));
    script.workers.get_mut(&2).unwrap().draining = true;
    script.report(2);
    assert_eq!(encoders(&script), [1, 2, 3]);
    // What the first one says now does not count: its session is over.
    script.workers.insert(1, Status { encoding: Encoding::Done, ..Status::default() });
    script.report(1);
    assert!(script.orders(3) == [Order::Encode]);
}

#[test]
fn who_waits_for_the_encoder_is_not_stalled_and_an_encoder_that_hangs_is() {
    let options = Options { stall: Duration::from_secs(30), ..job().options };
    let mut script = Script::new(Job { options, ..job() });
    (1..3).for_each(|worker| can_encode(&mut script, worker));
    script.workers.get_mut(&1).unwrap().in_hand = [Order::Encode].into();
    for _ in 0..60 {
        script.workers.get_mut(&1).unwrap().progress += 1;
        script.pass(1, &[1, 2]);
    }
    assert_eq!((script.dismissal(1), script.dismissal(2)), (None, None));
    script.pass(30, &[1, 2]);
    assert!(script.dismissal(1).is_some() && script.dismissal(2).is_none());
    assert_eq!(encoders(&script), [1, 2]);
}

#[test]
fn a_coordinator_that_comes_back_hears_that_the_prompts_are_encoded() {
    let mut script = Script::new(Job { life: 1, ..job() });
    can_encode(&mut script, 1);
    assert_eq!(encoders(&script), [1]);
    script.join(2, Status { encoding: Encoding::Done, ..Status::default() });
    can_encode(&mut script, 3);
    assert_eq!((script.orders(3), encoders(&script)), (vec![Order::Encode], vec![1]));
    assert!(script.events().contains(&Event::Joined { worker: WorkerId(2), kept: 0 }));
}
