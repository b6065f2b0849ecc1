//! The wire: each side reads exactly what the other one wrote, and nothing else is accepted.
#![allow(clippy::unwrap_used, clippy::panic)]

mod fuzz;
mod mutate;
mod refused;
mod strategies;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use obsdiff_proto::message::{Command, Fault, Group, Order, Status, Tally, Trouble};
use obsdiff_proto::session::{Briefing, CoordinatorEvent, Welcome, WorkerEvent};
use obsdiff_proto::view::{JobReport, WatchMessage};
use obsdiff_proto::wire::{
    FILE_DESCRIPTOR_SET, LONGEST_VALUE, LONGEST_WORDS, MESSAGE_LIMIT, MOST_SHARDS, Put, Wait, v1,
};
use obsdiff_proto::{Epoch, PackageId, Plan, Shard, ShardId, WorkerId};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use prost::Message;
use prost::bytes::Bytes;

/// Through bytes and back.
fn sent<M: Message + Default>(message: &M) -> M {
    M::decode(message.encode_to_vec().as_slice()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn a_workers_events_are_read_as_written(event in strategies::worker_event()) {
        let message = sent(&v1::WorkerEvent::from(&event));
        prop_assert_eq!(WorkerEvent::try_from(message), Ok(event));
    }

    #[test]
    fn the_coordinators_events_are_read_as_written(event in strategies::coordinator_event()) {
        let message = sent(&v1::CoordinatorEvent::from(&event));
        prop_assert_eq!(CoordinatorEvent::try_from(message), Ok(event));
    }

    #[test]
    fn a_report_is_read_as_written(report in strategies::report()) {
        let message = sent(&v1::Job::from(&report));
        prop_assert_eq!(JobReport::try_from(message), Ok(report));
    }

    #[test]
    fn messages_to_watchers_are_read_as_written(news in strategies::news()) {
        let message = sent(&v1::WatchResponse::from(&news));
        prop_assert_eq!(WatchMessage::try_from(message), Ok(news));
    }

    #[test]
    fn peers_find_each_other(
        (worker, epoch, millis) in any::<(u64, u64, u64)>(),
        key in "\\PC{1,60}",
        value in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let (worker, epoch) = (WorkerId(worker), Epoch(epoch));
        let put = Put { worker, epoch, key: key.clone(), value: value.into() };
        prop_assert_eq!(Put::try_from(sent(&v1::PutRequest::from(&put))), Ok(put));
        let wait = Wait { worker, epoch, key, timeout: Duration::from_millis(millis) };
        prop_assert_eq!(Wait::try_from(sent(&v1::WaitRequest::from(&wait))), Ok(wait));
    }
}

#[test]
fn a_value_has_a_limit() {
    let response = |len| v1::WaitResponse { value: Bytes::from(vec![7; len]) };
    assert_eq!(response(LONGEST_VALUE).into_value().unwrap().len(), LONGEST_VALUE);
    let error = response(LONGEST_VALUE + 1).into_value().unwrap_err().to_string();
    assert_eq!(error, "value: has 1048577 bytes, but at most 1048576 are taken");
}

/// The longest lists that are taken: a job of 2^20 shards, of which a worker holds every other one.
#[test]
fn messages_of_a_million_shards_stay_below_the_limit() {
    let drawn = strategies::briefing().new_tree(&mut TestRunner::deterministic()).unwrap().current();
    let shard = |id: u32| Shard { id: ShardId(id), prompts: 4 * id..4 * id + 4 };
    let shards = (0..MOST_SHARDS as u32).map(shard).collect();
    let briefing = Arc::new(Briefing { plan: Plan { shards, ..drawn.plan.clone() }, ..drawn });
    let welcome = Welcome { worker: WorkerId(1), heartbeat: Duration::from_secs(1), briefing };
    let welcome = CoordinatorEvent::Welcome(Box::new(welcome));
    let held: BTreeSet<ShardId> = (0..MOST_SHARDS as u32).step_by(2).map(ShardId).collect();
    let group = Group {
        epoch: Epoch(1),
        package: PackageId(0),
        members: Vec::new(),
        reductions: Vec::new(),
        owners: BTreeMap::new(),
    };
    let form = Command::Form { tally: Tally(1), holds: Arc::new(held.clone()), group: Arc::new(group) };
    for event in [welcome, CoordinatorEvent::Command(form)] {
        let message = v1::CoordinatorEvent::from(&event);
        assert!(message.encoded_len() < MESSAGE_LIMIT, "{}", message.encoded_len());
        assert!(CoordinatorEvent::try_from(sent(&message)) == Ok(event), "it does not come back");
    }
    let mut status = Status::default();
    status.sums.held = held;
    let event = WorkerEvent::Status(Box::new(status));
    let message = v1::WorkerEvent::from(&event);
    assert!(message.encoded_len() < MESSAGE_LIMIT, "{}", message.encoded_len());
    assert!(WorkerEvent::try_from(sent(&message)) == Ok(event), "it does not come back");
}

#[test]
fn long_words_are_cut_between_characters() {
    let fault = Fault::Fatal("ä€".repeat(LONGEST_WORDS));
    let status =
        Status { trouble: Some(Trouble { serial: 1, order: Order::Pilot, fault }), ..Status::default() };
    let read = Status::try_from(sent(&v1::Status::from(&status))).unwrap();
    let Some(Trouble { fault: Fault::Fatal(words), .. }) = read.trouble else { panic!("{:?}", read.trouble) };
    assert!("ä€".repeat(LONGEST_WORDS).starts_with(&words) && words.len() > LONGEST_WORDS - 4);
}

#[test]
fn the_descriptors_name_every_service() {
    let text = String::from_utf8_lossy(FILE_DESCRIPTOR_SET);
    for service in ["Session", "Jobs", "Rendezvous"] {
        assert!(text.contains(service), "{service}");
    }
}
