//! A worker saves its sums and restores saved ones. Time is paused, and passes in the calls of its engine alone.

use std::sync::Mutex;
use std::time::Duration;

use obsdiff_proto::message::SavedSums;
use tokio::runtime::{Builder, Runtime};

use super::*;
use crate::collective::Local;

const SHARDS: u32 = 12;

/// What a worker has come to before the first and after each command.
struct Course {
    statuses: Vec<Status>,
    /// So many saved sums were in the store then.
    stored: Vec<usize>,
}

impl Course {
    fn last(&self) -> &Status {
        self.statuses.last().unwrap()
    }

    /// The shards of what the worker says it has saved, after each command.
    fn saved(&self) -> Vec<Vec<u32>> {
        let shards = |saved: &Arc<SavedSums>| saved.shards.iter().map(|shard| shard.0).collect();
        let saved = |status: &Status| status.sums.saved.as_ref().map(shards).unwrap_or_default();
        self.statuses[1..].iter().map(saved).collect()
    }
}

/// A clock that stands still.
fn clock() -> Arc<Runtime> {
    Arc::new(Builder::new_current_thread().enable_time().start_paused(true).build().unwrap())
}

/// Shards take 10 s, and saves as long as this.
fn takes(clock: &Arc<Runtime>, save: u64) -> CallHook {
    let clock = clock.clone();
    Arc::new(move |call| {
        let seconds = match call {
            EngineCall::Shard(_) => 10,
            EngineCall::Save => save,
            _ => 0,
        };
        clock.block_on(tokio::time::advance(Duration::from_secs(seconds)));
        Ok(())
    })
}

/// Has a new worker follow commands, each once the one before is done.
fn follow_each(
    store: &MemoryPartStore,
    period: Option<u64>,
    hook: CallHook,
    commands: impl IntoIterator<Item = Command>,
) -> Course {
    let worker_state = WorkerState::new(machine(1), Arc::new(Local::default()), GroupTimeouts::default());
    worker_state.hello();
    worker_state.set_worker_id(WorkerId(1));
    if let Some(period) = period {
        worker_state.save_every(Duration::from_secs(period));
    }
    let result = Arc::new(Mutex::new(None));
    let mut engine = FakeEngine::new(plan(SHARDS), Arc::new(store.clone()), result, hook);
    let (its, mut commands) = (worker_state.clone(), commands.into_iter());
    let mut course = Course { statuses: Vec::new(), stored: Vec::new() };
    follow_waiting(&worker_state, &mut engine, &mut |_, _| {
        let (status, _) = its.status();
        if !status.in_hand.is_empty() {
            return;
        }
        course.statuses.push(status);
        course.stored.push(store.saved_sums().len());
        match commands.next() {
            Some(command) => its.take(command),
            None => its.close(),
        }
    });
    course
}

fn restore(tally: u64, saved: &Arc<SavedSums>) -> Command {
    let Command::Calibrate { opening, .. } = calibrate(tally, 0) else { panic!("it is another command") };
    Command::Restore { tally: Tally(tally), saved: saved.clone(), opening }
}

/// A store with the saved sums of shards 0 and 1, whose worker has ended.
fn of_two_shards() -> (MemoryPartStore, Arc<SavedSums>) {
    let (store, clock) = (MemoryPartStore::default(), clock());
    let _entered = clock.enter();
    let course = follow_each(&store, Some(20), takes(&clock, 0), [0, 1].map(|shard| calibrate(1, shard)));
    let saved = course.last().sums.saved.clone().unwrap();
    assert_eq!(saved.shards, [ShardId(0), ShardId(1)].into());
    (store, saved)
}

fn at_once() -> CallHook {
    Arc::new(|_| Ok(()))
}

fn held(status: &Status) -> Vec<u32> {
    status.sums.held.iter().map(|shard| shard.0).collect()
}

#[test]
fn sums_are_saved_as_often_as_asked_and_what_a_save_contains_goes_with_the_next_shard() {
    let (store, clock) = (MemoryPartStore::default(), clock());
    let _entered = clock.enter();
    let course = follow_each(&store, Some(25), takes(&clock, 0), (0..7).map(|shard| calibrate(1, shard)));
    let three = vec![0, 1, 2];
    let six = vec![0, 1, 2, 3, 4, 5];
    let none = Vec::new();
    assert_eq!(course.saved(), [none.clone(), none, three.clone(), three.clone(), three, six.clone(), six]);
    assert_eq!(course.stored, [0, 0, 0, 1, 1, 1, 2, 1]);
}

#[test]
fn saving_takes_a_twentieth_of_the_time_at_most() {
    let (store, clock) = (MemoryPartStore::default(), clock());
    let _entered = clock.enter();
    let course = follow_each(&store, Some(1), takes(&clock, 5), (0..12).map(|shard| calibrate(1, shard)));
    // Saved at 10 s, until 15 s, and next 100 s later.
    let mut counts = vec![1; 10];
    counts.extend([11, 11]);
    assert_eq!(course.saved().iter().map(Vec::len).collect::<Vec<_>>(), counts);
}

#[test]
fn a_worker_that_is_not_asked_to_saves_nothing() {
    let (store, clock) = (MemoryPartStore::default(), clock());
    let _entered = clock.enter();
    let course = follow_each(&store, None, takes(&clock, 0), (0..9).map(|shard| calibrate(1, shard)));
    assert_eq!((held(course.last()).len(), &course.last().sums.saved), (9, &None));
    assert!(store.saved_sums().is_empty());
}

#[test]
fn a_save_that_fails_is_no_trouble_and_tried_again_after_the_period() {
    let (store, clock) = (MemoryPartStore::default(), clock());
    let _entered = clock.enter();
    let (takes, tried) = (takes(&clock, 0), AtomicU32::new(0));
    let hook: CallHook = Arc::new(move |call| match call {
        EngineCall::Save if tried.fetch_add(1, Ordering::SeqCst) == 0 => {
            Err(PartStoreError::Failed("no room".to_owned()).into())
        }
        call => takes(call),
    });
    let course = follow_each(&store, Some(20), hook, (0..4).map(|shard| calibrate(1, shard)));
    assert_eq!(course.saved(), [vec![], vec![], vec![], vec![0, 1, 2, 3]]);
    let status = course.last();
    assert!(status.trouble.is_none() && !status.sums.spoiled, "{status:?}");
}

#[test]
fn restored_sums_count_once_and_go_when_a_later_save_contains_them() {
    let (store, saved) = of_two_shards();
    let clock = clock();
    let _entered = clock.enter();
    let commands =
        [restore(1, &saved), restore(1, &saved), calibrate(1, 0), calibrate(1, 2), calibrate(1, 3)];
    // The engine refuses to save sums that are not of these shards, each counted once.
    let course = follow_each(&store, Some(0), takes(&clock, 0), commands);
    assert_eq!(course.saved(), [vec![0, 1], vec![0, 1], vec![0, 1], vec![0, 1, 2], vec![0, 1, 2, 3]]);
    assert_eq!(course.statuses[1].sums.saved, Some(saved.clone()));
    assert_eq!(course.statuses[1].progress, course.statuses[3].progress, "nothing is followed again");
    assert_eq!(course.stored[3..], [1, 2, 2]);
    assert!(store.saved_sums().iter().all(|(receipt, _)| *receipt != saved.receipt));
    assert_eq!(course.last().trouble, None);
}

#[test]
fn sums_are_restored_beside_shards_that_a_worker_has_run() {
    let (store, saved) = of_two_shards();
    let course = follow_each(&store, None, at_once(), [calibrate(1, 5), restore(1, &saved)]);
    assert_eq!(held(course.last()), [0, 1, 5]);
    // Of these sums nothing is saved that holds all.
    assert_eq!(course.last().sums.saved, None);
    assert_eq!(course.last().trouble, None);
}

/// That a restoring failed, but may go well another time.
fn assert_passing(status: &Status) {
    let trouble = status.trouble.as_ref().unwrap();
    assert_eq!(trouble.order, Order::Restore { tally: Tally(1), first: ShardId(0) });
    assert!(matches!(trouble.fault, Fault::Transient(_)), "{trouble:?}");
}

#[test]
fn saved_sums_that_are_missing_are_told_at_once_and_the_workers_own_stay() {
    let (store, saved) = of_two_shards();
    store.remove_all_sums();
    let course = follow_each(&store, None, at_once(), [calibrate(1, 5), restore(1, &saved)]);
    assert_passing(course.last());
    assert!(held(course.last()) == [5] && !course.last().sums.spoiled);
}

#[test]
fn saved_sums_of_a_shard_that_a_worker_has_run_are_refused() {
    let (store, saved) = of_two_shards();
    let course = follow_each(&store, None, at_once(), [calibrate(1, 1), restore(1, &saved)]);
    assert_passing(course.last());
    assert!(held(course.last()) == [1] && !course.last().sums.spoiled);
}

#[test]
fn sums_to_which_a_part_was_added_are_spoiled() {
    let (store, saved) = of_two_shards();
    let hook: CallHook = Arc::new(|call| match call {
        EngineCall::Restore => Err(PartStoreError::Damaged("not whole".to_owned()).into()),
        _ => Ok(()),
    });
    let course = follow_each(&store, None, hook, [calibrate(1, 5), restore(1, &saved)]);
    assert_passing(course.last());
    assert!(course.last().sums.spoiled && held(course.last()) == [5]);
}

#[test]
fn a_store_that_is_away_is_waited_for_while_sums_are_restored() {
    let (store, saved) = of_two_shards();
    let tried = Arc::new(AtomicU32::new(0));
    let counted = tried.clone();
    let hook: CallHook = Arc::new(move |call| match call {
        EngineCall::Restore if counted.fetch_add(1, Ordering::SeqCst) < 2 => {
            Err(PartStoreError::Failed("away".to_owned()).into())
        }
        _ => Ok(()),
    });
    let course = follow_each(&store, None, hook, [restore(1, &saved)]);
    assert_eq!((tried.load(Ordering::SeqCst), held(course.last())), (3, vec![0, 1]));
    assert!(course.last().trouble.is_none() && !course.last().sums.spoiled);
}

#[test]
fn what_is_saved_is_of_one_tally_and_of_weights_that_it_was_gathered_on() {
    let (store, saved) = of_two_shards();
    store.commit(PackageId(0), BTreeMap::new());
    let commands = [
        restore(2, &saved),
        restore(1, &saved),
        Command::Discard { tally: Tally(3) },
        restore(3, &saved),
        Command::Apply { packages: 1 },
    ];
    let course = follow_each(&store, None, at_once(), commands);
    assert_eq!(course.saved(), [vec![0, 1], vec![0, 1], vec![], vec![0, 1], vec![]]);
    assert_eq!(course.statuses[2].sums.tally, Tally(2), "an older tally means nothing");
    assert_eq!((held(course.last()).len(), &course.last().trouble), (0, &None));
}

/// The status of a worker after it was asked to leave within shard 1, with another one in hand.
fn drained(saves: bool, hook_of: impl Fn(Arc<WorkerState>) -> CallHook) -> Status {
    let worker_state = WorkerState::new(machine(1), Arc::new(Local::default()), GroupTimeouts::default());
    worker_state.hello();
    worker_state.set_worker_id(WorkerId(1));
    if saves {
        worker_state.save_when_it_leaves();
    }
    let store = Arc::new(MemoryPartStore::default());
    let hook = hook_of(worker_state.clone());
    let mut engine = FakeEngine::new(plan(SHARDS), store, Arc::new(Mutex::new(None)), hook);
    let (its, mut given) = (worker_state.clone(), false);
    follow_waiting(&worker_state, &mut engine, &mut |_, _| {
        if std::mem::replace(&mut given, true) {
            its.close();
        } else {
            [0, 1, 2].into_iter().for_each(|shard| its.take(calibrate(1, shard)));
        }
    });
    worker_state.status().0
}

#[test]
fn a_worker_that_leaves_ends_its_shard_and_saves_before_all_else_where_it_is_to() {
    for (saves, fails) in [(true, false), (true, true), (false, false)] {
        let calls: Arc<Mutex<Vec<EngineCall>>> = Arc::default();
        let status = drained(saves, |worker_state| {
            let calls = calls.clone();
            Arc::new(move |call| {
                calls.lock().unwrap().push(call);
                if call == EngineCall::Shard(ShardId(1)) {
                    worker_state.drain();
                    assert_eq!(worker_state.status().0.saving, saves);
                }
                let refused = || PartStoreError::Failed("no room".to_owned()).into();
                if fails && call == EngineCall::Save { Err(refused()) } else { Ok(()) }
            })
        });
        assert!(status.draining && !status.saving && status.trouble.is_none());
        let saved = status.sums.saved.as_ref().map(|saved| saved.shards.clone());
        assert_eq!(saved, (saves && !fails).then(|| [ShardId(0), ShardId(1)].into()));
        let calls = calls.lock().unwrap();
        let called = |call| calls.iter().position(|made| *made == call);
        let (save, next) = (called(EngineCall::Save), called(EngineCall::Shard(ShardId(2))));
        // What is still in hand comes after it, unless the coordinator lets the worker go.
        assert!(next.is_some() && save.is_some() == saves && save < next, "{calls:?}");
    }
}

#[test]
fn a_worker_that_leaves_does_not_end_a_shard_that_takes_long() {
    for (took, saves) in [(Some(4 * 60), true), (Some(4 * 60 + 1), false), (None, false)] {
        let worker_state = WorkerState::new(machine(1), Arc::new(Local::default()), GroupTimeouts::default());
        worker_state.save_when_it_leaves();
        [0, 1].into_iter().for_each(|shard| worker_state.take(calibrate(1, shard)));
        worker_state.with(|orders| {
            orders.ready();
            orders.next();
            if let Some(seconds) = took {
                orders.calibrated(Tally(1), ShardId(0), Duration::from_secs(seconds));
                orders.next();
            }
            orders.begin_adding();
        });
        worker_state.drain();
        let (status, _) = worker_state.status();
        assert_eq!((status.draining, status.saving), (true, saves), "{took:?}");
    }
}

#[test]
fn a_worker_without_sums_that_leaves_has_nothing_to_save() {
    let worker_state = WorkerState::new(machine(1), Arc::new(Local::default()), GroupTimeouts::default());
    worker_state.save_when_it_leaves();
    worker_state.take(calibrate(1, 0));
    worker_state.drain();
    let (status, _) = worker_state.status();
    assert!(status.draining && !status.saving);
}
