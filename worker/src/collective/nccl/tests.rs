//! Groups over a fake NCCL, whose libraries lie in host memory: nothing here has a GPU. A process finds libraries as it is started, so
//! each test starts itself again as a child of which they are the libraries, with the faults that they are to show.

mod on_gpu;

use std::process::Command;
use std::sync::{Mutex, mpsc};
use std::thread;

use obsdiff_proto::{Epoch, lock};
use obsdiff_tests::{FakeNccl, fake_cuda_with};

use super::*;
use crate::collective::tests::{ThreadRendezvous, addends, sums};
use crate::collective::{Buffer, Values};

/// Set where this process is to use the libraries that it finds: the fake ones, or those of a GPU.
const FOUND: &str = "OBSDIFF_NCCL_FOUND";
/// Longer than any of these tests should take.
const LONG: Duration = Duration::from_secs(60);
/// As long as a test waits for what never comes.
const SHORT: Duration = Duration::from_secs(1);

/// Whether this process has libraries to use.
pub(in crate::collective) fn has_libraries() -> bool {
    std::env::var_os(FOUND).is_some()
}

/// Starts tests again in a child that has the fake libraries, and sees that so many pass.
fn in_child(tests: &[&str], nccl: FakeNccl, faults: &[(&str, &str)], passed: usize) {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(tests)
        .args(["--nocapture", "--test-threads", "1"])
        .env(FOUND, "1")
        .env("LD_LIBRARY_PATH", fake_cuda_with(nccl))
        .env("FAKE_CUDA_GPUS", "8")
        .envs(faults.iter().copied())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    let errors = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "{said}{errors}");
    assert!(said.contains(&format!("{passed} passed; 0 failed")), "{said}");
}

/// Runs a test of this file's with the fake NCCL and these faults.
fn with_fake(test: &str, nccl: FakeNccl, faults: &[(&str, &str)], body: impl FnOnce()) {
    with_fakes(test, &[(nccl, faults)], body);
}

/// Runs a test of this file's once for each of these.
fn with_fakes(test: &str, fakes: &[(FakeNccl, &[(&str, &str)])], body: impl FnOnce()) {
    if has_libraries() {
        return body();
    }
    let name = format!("collective::nccl::tests::{test}");
    for (nccl, faults) in fakes {
        in_child(&[&name, "--exact"], *nccl, faults, 1);
    }
}

/// A worker's transport. A group that is not left in time sends the word of it.
fn transport(
    rendezvous: &Arc<ThreadRendezvous>,
    chunk: usize,
    leave: Duration,
) -> (Nccl, mpsc::Receiver<String>) {
    let (stuck, heard) = mpsc::channel();
    let stuck = Mutex::new(stuck);
    // Who does not listen expects that nothing is stuck: `heard` is looked at.
    let on_stuck = Arc::new(move |why: &str| drop(lock(&stuck).send(why.to_owned())));
    let settings = NcclSettings { gpu: 0, chunk, leave, on_stuck };
    (Nccl::open(Arc::new(rendezvous.clone()), settings).unwrap(), heard)
}

/// A transport for each rank of a group.
pub(crate) fn transports(world: usize) -> Vec<Box<dyn Transport>> {
    let rendezvous = Arc::new(ThreadRendezvous::default());
    (0..world).map(|_| Box::new(transport(&rendezvous, 64, LONG).0) as Box<dyn Transport>).collect()
}

fn member(epoch: u64, rank: usize, world: usize) -> Member {
    Member { epoch: Epoch(epoch), rank, world, form: LONG, silence: LONG }
}

/// What each rank of a group of threads does and returns; its transport is left within a limit, or stuck.
fn group<T: Send>(
    world: usize,
    leave: Duration,
    limits: impl Fn(Member) -> Member + Sync,
    each: impl Fn(Result<Box<dyn Collective>>) -> T + Sync,
) -> Vec<(T, mpsc::Receiver<String>)> {
    let rendezvous = Arc::new(ThreadRendezvous::default());
    thread::scope(|scope| {
        let (rendezvous, each, limits) = (&rendezvous, &each, &limits);
        let run = move |rank| {
            let (nccl, stuck) = transport(rendezvous, 64, leave);
            let done = each(nccl.join(limits(member(1, rank, world)), &Abort::default()));
            // Either left, or stuck.
            assert!(nccl.leaving.wait());
            (done, stuck)
        };
        let ranks: Vec<_> = (0..world).map(|rank| scope.spawn(move || run(rank))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Makes calls until one fails.
fn sums_until_an_error(joined: Result<Box<dyn Collective>>) -> (usize, CollectiveError) {
    let mut rank = match joined {
        Ok(rank) => rank,
        Err(error) => return (0, error),
    };
    for done in 0..100 {
        let mut sum = [0; 3];
        if let Err(error) = rank.all_reduce(Values::I64(&[1, 2, 3]), Buffer::I64(&mut sum)) {
            // Later calls say the same.
            assert_eq!(rank.broadcast(0, Buffer::I64(&mut sum)), Err(error.clone()));
            return (done, error);
        }
        assert_eq!(sum, [1, 2, 3].map(|own| own * rank.world() as i64));
    }
    panic!("no call fails");
}

#[test]
fn the_suite_of_all_collectives_holds_over_nccl() {
    if !has_libraries() {
        in_child(&["collective::tests::"], FakeNccl::Current, &[], 10);
        in_child(&["collective::tests::"], FakeNccl::WithoutRevoke, &[], 10);
    }
}

/// Groups of one need no NCCL, but on a machine with one GPU they are all that it forms.
#[test]
fn a_group_of_one_is_formed_and_left_by_nccl_itself() {
    with_fake("a_group_of_one_is_formed_and_left_by_nccl_itself", FakeNccl::Current, &[], || {
        let (nccl, stuck) = transport(&Arc::new(ThreadRendezvous::default()), 64, LONG);
        let mut rank = nccl.form(member(1, 0, 1), &Abort::default()).unwrap();
        let own: Vec<i64> = addends(0, 1000);
        let mut sum = vec![0; own.len()];
        rank.all_reduce(Values::I64(&own), Buffer::I64(&mut sum)).unwrap();
        assert_eq!(sum, own);
        rank.broadcast(0, Buffer::I64(&mut sum)).unwrap();
        assert_eq!(sum, own);
        drop(rank);
        assert!(nccl.leaving.wait());
        assert!(stuck.try_recv().is_err(), "the group is not left in time");
    });
}

#[test]
fn buffers_of_many_chunks_and_any_length_are_summed_and_spread() {
    with_fake("buffers_of_many_chunks_and_any_length_are_summed_and_spread", FakeNccl::Current, &[], || {
        for (world, length) in [(1, 9), (2, 1000), (3, 17), (4, 16), (3, 8), (2, 1), (3, 0)] {
            let expected = sums(world, length);
            let float = |rank: usize, index: usize| (1 + rank * 10 + index) as f32;
            let floats: Vec<f32> =
                (0..length).map(|index| (0..world).map(|rank| float(rank, index)).sum()).collect();
            let ended = group(
                world,
                LONG,
                |member| member,
                |joined| {
                    let mut rank = joined.unwrap();
                    let own = addends(rank.rank(), length);
                    let mut sums = vec![0; length];
                    rank.all_reduce(Values::I64(&own), Buffer::I64(&mut sums)).unwrap();
                    assert!(sums == expected, "all_reduce of {length} among {world}");
                    let owned: Vec<f32> = (0..length).map(|index| float(rank.rank(), index)).collect();
                    for root in 0..world {
                        let at_root = root == rank.rank();
                        sums.fill(0);
                        rank.reduce(root, Values::I64(&own), at_root.then_some(Buffer::I64(&mut sums)))
                            .unwrap();
                        assert!(!at_root || sums == expected, "reduce of {length} among {world} to {root}");
                        let mut sums = vec![0.0; length];
                        rank.reduce(root, Values::F32(&owned), at_root.then_some(Buffer::F32(&mut sums)))
                            .unwrap();
                        assert!(
                            !at_root || sums == floats,
                            "reduce of {length} floats among {world} to {root}"
                        );
                    }
                    let mut copied = own;
                    rank.broadcast(world - 1, Buffer::I64(&mut copied)).unwrap();
                    assert!(copied == addends(world - 1, length));
                },
            );
            assert!(ended.iter().all(|((), stuck)| stuck.try_recv().is_err()));
        }
    });
}

#[test]
fn a_group_of_one_is_stopped_by_an_abort_and_another_one_forms() {
    with_fake("a_group_of_one_is_stopped_by_an_abort_and_another_one_forms", FakeNccl::Current, &[], || {
        let (nccl, stuck) = transport(&Arc::default(), 64, LONG);
        let abort = Abort::default();
        let mut rank = nccl.form(member(1, 0, 1), &abort).unwrap();
        let mut sum = [0; 20];
        rank.reduce(0, Values::I64(&[7; 20]), Some(Buffer::I64(&mut sum))).unwrap();
        assert_eq!(sum, [7; 20]);
        abort.raise();
        let late = rank.all_reduce(Values::I64(&[7; 20]), Buffer::I64(&mut sum));
        assert_eq!(late, Err(CollectiveError::Aborted));
        let mut next = nccl.form(member(2, 0, 1), &Abort::default()).unwrap();
        next.all_reduce(Values::I64(&[8; 20]), Buffer::I64(&mut sum)).unwrap();
        assert_eq!(sum, [8; 20]);
        drop(next);
        assert!(nccl.leaving.wait());
        assert!(stuck.try_recv().is_err(), "a group is not left in time");
    });
}

#[test]
fn who_leaves_after_its_last_call_takes_nothing_from_those_who_still_make_it() {
    let name = "who_leaves_after_its_last_call_takes_nothing_from_those_who_still_make_it";
    with_fake(name, FakeNccl::Current, &[], || {
        for _ in 0..20 {
            let sums = group(
                3,
                LONG,
                |member| member,
                |joined| {
                    let mut sum = [0];
                    joined.unwrap().all_reduce(Values::I64(&[1]), Buffer::I64(&mut sum)).map(|()| sum[0])
                },
            );
            assert!(sums.iter().all(|(sum, stuck)| *sum == Ok(3) && stuck.try_recv().is_err()));
        }
    });
}

/// Some rank knows the fault itself, and all others of a peer.
fn assert_found(
    ended: &[((usize, CollectiveError), mpsc::Receiver<String>)],
    own: fn(&CollectiveError) -> bool,
) {
    let errors: Vec<_> = ended.iter().map(|((_, error), _)| error).collect();
    assert!(errors.iter().any(|error| own(error)), "{errors:?}");
    let known = |error: &&CollectiveError| own(error) || matches!(error, CollectiveError::PeerLost { .. });
    assert!(errors.iter().all(known), "{errors:?}");
}

fn timeout(error: &CollectiveError) -> bool {
    matches!(error, CollectiveError::Timeout { .. })
}

#[test]
fn an_init_that_never_ends_is_given_up() {
    with_fake(
        "an_init_that_never_ends_is_given_up",
        FakeNccl::Current,
        &[("FAKE_NCCL_INIT", "never")],
        || {
            let hasty = |member| Member { form: SHORT, ..member };
            let ended = group(3, LONG, hasty, sums_until_an_error);
            assert_found(&ended, timeout);
            assert!(ended.iter().all(|((calls, _), stuck)| *calls == 0 && stuck.try_recv().is_err()));
        },
    );
}

#[test]
fn an_asynchronous_error_ends_the_group_for_all() {
    let fault: &[_] = &[("FAKE_NCCL_ERROR_AT_CALL", "23")];
    let fakes = [(FakeNccl::Current, fault), (FakeNccl::WithoutRevoke, fault)];
    with_fakes("an_asynchronous_error_ends_the_group_for_all", &fakes, || {
        let ended = group(3, LONG, |member| member, sums_until_an_error);
        let own = |error: &CollectiveError| matches!(error, CollectiveError::Transport(why) if why.contains("NCCL"));
        assert_found(&ended, own);
        assert!(ended.iter().all(|((calls, _), stuck)| *calls >= 2 && stuck.try_recv().is_err()));
    });
}

#[test]
fn silence_ends_the_group_for_all() {
    let fault: &[_] = &[("FAKE_NCCL_SILENT_AT_CALL", "23")];
    let fakes = [(FakeNccl::Current, fault), (FakeNccl::WithoutRevoke, fault)];
    with_fakes("silence_ends_the_group_for_all", &fakes, || {
        let ended = group(3, LONG, |member| Member { silence: SHORT, ..member }, sums_until_an_error);
        assert_found(&ended, timeout);
        assert!(ended.iter().all(|((calls, _), stuck)| *calls >= 2 && stuck.try_recv().is_err()));
    });
}

#[test]
fn an_nccl_that_does_not_stop_is_told_of_in_time() {
    let silent = ("FAKE_NCCL_SILENT_AT_CALL", "23");
    let fakes: [(_, &[_]); 2] = [
        (FakeNccl::WithoutRevoke, &[silent, ("FAKE_NCCL_ABORT", "hang")]),
        (FakeNccl::Current, &[silent, ("FAKE_NCCL_REVOKE", "hang")]),
    ];
    with_fakes("an_nccl_that_does_not_stop_is_told_of_in_time", &fakes, || {
        let ended = group(2, SHORT, |member| Member { silence: SHORT, ..member }, sums_until_an_error);
        assert_found(&ended, timeout);
        for (_, stuck) in ended {
            let why = stuck.recv_timeout(LONG).unwrap();
            assert_eq!(why, "a group of GPUs cannot be left: NCCL did not stop within 1 s");
        }
    });
}

#[test]
fn who_leaves_in_good_order_needs_no_abort() {
    let hang = [("FAKE_NCCL_ABORT", "hang"), ("FAKE_NCCL_REVOKE", "hang")];
    with_fake("who_leaves_in_good_order_needs_no_abort", FakeNccl::Current, &hang, || {
        let sums = group(
            2,
            LONG,
            |member| member,
            |joined| {
                let mut sum = [0];
                joined.unwrap().all_reduce(Values::I64(&[1]), Buffer::I64(&mut sum)).map(|()| sum[0])
            },
        );
        assert!(sums.iter().all(|(sum, stuck)| *sum == Ok(2) && stuck.try_recv().is_err()));
    });
}

#[test]
fn joining_ends_by_its_timeout_and_by_an_abort_and_a_group_that_was_given_up_forms_no_more() {
    let name = "joining_ends_by_its_timeout_and_by_an_abort_and_a_group_that_was_given_up_forms_no_more";
    with_fake(name, FakeNccl::Current, &[], || {
        let transports = transports(2);
        let hasty = |epoch, rank| Member { form: SHORT, ..member(epoch, rank, 2) };
        let error = transports[0].join(hasty(1, 0), &Abort::default()).err().unwrap();
        assert!(matches!(error, CollectiveError::Timeout { ref ranks, .. } if ranks == &[1]), "{error}");
        assert!(transports[1].join(hasty(1, 1), &Abort::default()).is_err());

        let abort = Abort::default();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| transports[0].join(member(2, 0, 2), &abort).err().unwrap());
            abort.raise();
            assert_eq!(waiting.join().unwrap(), CollectiveError::Aborted);
        });
        assert_eq!(transports[0].join(member(3, 0, 2), &abort).err(), Some(CollectiveError::Aborted));
        // None of these epochs is free again.
        for epoch in 1..=3 {
            let error = transports[0].join(member(epoch, 0, 2), &Abort::default()).err();
            assert_eq!(error, Some(CollectiveError::EpochUsed(Epoch(epoch))));
        }
    });
}

#[test]
fn an_abort_between_calls_is_heard_of_by_those_who_wait() {
    with_fake("an_abort_between_calls_is_heard_of_by_those_who_wait", FakeNccl::Current, &[], || {
        let transports = transports(2);
        let abort = Abort::default();
        thread::scope(|scope| {
            let (ready, joined) = mpsc::channel();
            let waits = scope.spawn({
                let transports = &transports;
                move || {
                    let mut rank = transports[0].join(member(1, 0, 2), &Abort::default()).unwrap();
                    ready.send(()).unwrap();
                    rank.all_reduce(Values::I64(&[1]), Buffer::I64(&mut [0]))
                }
            });
            let mut idle = transports[1].join(member(1, 1, 2), &abort).unwrap();
            joined.recv_timeout(LONG).unwrap();
            abort.raise();
            let lost = CollectiveError::PeerLost { rank: 1, why: "aborted".to_owned() };
            assert_eq!(waits.join().unwrap(), Err(lost));
            let late = idle.all_reduce(Values::I64(&[1]), Buffer::I64(&mut [0]));
            assert_eq!(late, Err(CollectiveError::Aborted));
        });
    });
}

#[test]
fn a_gpu_that_is_not_there_is_refused_in_words() {
    with_fake("a_gpu_that_is_not_there_is_refused_in_words", FakeNccl::Current, &[], || {
        let settings = NcclSettings::new(8, Arc::new(|why| panic!("{why}")));
        let error = Nccl::open(Arc::new(Arc::<ThreadRendezvous>::default()), settings).err().unwrap();
        let words = "there is no GPU 8 among 8: choose another, or check CUDA_VISIBLE_DEVICES";
        assert_eq!(error, CollectiveError::Transport(words.to_owned()));
    });
}

#[test]
fn a_library_that_is_too_old_is_refused_in_words() {
    let faults = [("FAKE_NCCL_VERSION", "21701")];
    with_fake("a_library_that_is_too_old_is_refused_in_words", FakeNccl::Current, &faults, || {
        assert!(!Nccl::is_present());
        let settings = NcclSettings::new(0, Arc::new(|why| panic!("{why}")));
        let error = Nccl::open(Arc::new(Arc::<ThreadRendezvous>::default()), settings).err().unwrap();
        let words = "NCCL is too old, as it is 2.17.1: install NCCL 2.18 or newer, best 2.28 or newer";
        assert_eq!(error, CollectiveError::Transport(words.to_owned()));
    });
}
