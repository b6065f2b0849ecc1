use std::sync::mpsc;
use std::thread;
use std::time::Duration;

#[cfg(any(feature = "gloo", feature = "cuda"))]
use obsdiff_tests::Prng;

use super::*;

#[cfg(any(feature = "gloo", feature = "cuda"))]
mod rendezvous;

#[cfg(any(feature = "gloo", feature = "cuda"))]
pub(super) use rendezvous::ThreadRendezvous;

/// Longer than any of these tests should take.
const LONG: Duration = Duration::from_secs(60);

/// The numbers that a rank adds to a sum.
#[cfg(any(feature = "gloo", feature = "cuda"))]
pub(super) fn addends(rank: usize, length: usize) -> Vec<i64> {
    let mut prng = Prng::new(rank as u64);
    (0..length).map(|_| prng.next() as i64).collect()
}

/// The sums of what the ranks of a group add.
#[cfg(any(feature = "gloo", feature = "cuda"))]
pub(super) fn sums(world: usize, length: usize) -> Vec<i64> {
    (0..world).map(|rank| addends(rank, length)).fold(vec![0; length], |sums, addends| {
        sums.into_iter().zip(addends).map(|(sum, addend)| sum.wrapping_add(addend)).collect()
    })
}

fn member(epoch: u64, rank: usize, world: usize) -> Member {
    Member { epoch: Epoch(epoch), rank, world, form: LONG, silence: LONG }
}

/// How the ranks of a test reach each other.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Local,
    #[cfg(feature = "gloo")]
    Gloo,
    #[cfg(feature = "cuda")]
    Nccl,
}

/// The kinds that this process can try: NCCL alone where it is the fake one.
fn kinds() -> &'static [Kind] {
    #[cfg(feature = "cuda")]
    if super::nccl::tests::has_libraries() {
        return &[Kind::Nccl];
    }
    &[
        Kind::Local,
        #[cfg(feature = "gloo")]
        Kind::Gloo,
    ]
}

impl Kind {
    /// A transport for each rank.
    pub(super) fn transports(self, world: usize) -> Vec<Box<dyn Transport>> {
        match self {
            Self::Local => {
                let local = Local::default();
                (0..world).map(|_| Box::new(local.clone()) as Box<dyn Transport>).collect()
            }
            #[cfg(feature = "gloo")]
            Self::Gloo => super::gloo::tests::transports(world),
            #[cfg(feature = "cuda")]
            Self::Nccl => super::nccl::tests::transports(world),
        }
    }

    /// What each rank of a group of threads returns, by rank.
    pub(super) fn group<T: Send>(
        self,
        world: usize,
        each: impl Fn(Box<dyn Collective>) -> T + Sync,
    ) -> Vec<T> {
        let transports = self.transports(world);
        thread::scope(|scope| {
            let each = &each;
            let ranks: Vec<_> = (transports.iter().enumerate())
                .map(|(rank, transport)| {
                    let join = move || transport.join(member(1, rank, world), &Abort::default()).unwrap();
                    scope.spawn(move || each(join()))
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }
}

#[test]
fn every_rank_gets_the_sum_and_sends_what_stays_as_it_was() {
    for &kind in kinds() {
        for world in 1..=4 {
            let sums = kind.group(world, |mut rank| {
                let own = [rank.rank() as i64 + 1, i64::MAX];
                let mut sums = [0; 2];
                for _ in 0..50 {
                    rank.all_reduce(Values::I64(&own), Buffer::I64(&mut sums)).unwrap();
                }
                assert_eq!(own, [rank.rank() as i64 + 1, i64::MAX]);
                sums
            });
            let first = (1..=world as i64).sum();
            let wrapped = (1..world).fold(i64::MAX, |sum, _| sum.wrapping_add(i64::MAX));
            assert_eq!(sums, vec![[first, wrapped]; world]);
        }
    }
}

#[test]
fn floats_are_added_in_the_order_of_ranks() {
    for &kind in kinds() {
        // 1e8 + 1 - 1e8 is 0 in f32, 1e8 - 1e8 + 1 is 1.
        let values = [1e8f32, 1.0, -1e8];
        for _ in 0..20 {
            let sums = kind.group(3, |mut rank| {
                let mut sum = [9.0];
                rank.all_reduce(Values::F32(&[values[rank.rank()]]), Buffer::F32(&mut sum)).unwrap();
                sum[0]
            });
            match kind {
                // NCCL has an order of its own, the same for all.
                #[cfg(feature = "cuda")]
                Kind::Nccl => {
                    assert!([[0.0; 3], [1.0; 3]].contains(&[sums[0], sums[1], sums[2]]), "{sums:?}")
                }
                _ => assert_eq!(sums, [0.0; 3]),
            }
        }
    }
}

#[test]
fn the_root_alone_receives_a_reduction_and_all_receive_a_broadcast() {
    for &kind in kinds() {
        let got = kind.group(3, |mut rank| {
            let own = [rank.rank() as f32];
            let mut sum = [-1.0];
            for root in 0..3 {
                let receive = (root == rank.rank()).then_some(Buffer::F32(&mut sum));
                rank.reduce(root, Values::F32(&own), receive).unwrap();
            }
            let mut copied = [10 * rank.rank() as i64];
            rank.broadcast(2, Buffer::I64(&mut copied)).unwrap();
            (sum[0], copied[0])
        });
        assert_eq!(got, [(3.0, 20); 3]);
    }
}

#[test]
fn ranks_that_call_different_things_get_an_error() {
    for &kind in kinds() {
        let errors = kind.group(2, |mut rank| {
            let mut sums = [0; 3];
            let count = 2 + rank.rank();
            let own = vec![1; count];
            rank.all_reduce(Values::I64(&own), Buffer::I64(&mut sums[..count])).unwrap_err()
        });
        let mismatches = errors.iter().filter(|e| matches!(e, CollectiveError::Mismatch { .. })).count();
        let lost = errors.iter().filter(|e| matches!(e, CollectiveError::PeerLost { .. })).count();
        // Over a network both may hear of it at the same time.
        assert!(mismatches >= 1 && mismatches + lost == 2, "{kind:?}: {errors:?}");
    }
}

#[test]
fn buffers_that_do_not_fit_are_refused_here() {
    for &kind in kinds() {
        let errors = kind.group(1, |mut rank| {
            let (mut integers, mut floats) = ([0; 2], [0.0; 2]);
            let sent = Values::I64(&[1]);
            [
                rank.all_reduce(sent, Buffer::I64(&mut integers)).unwrap_err(),
                rank.all_reduce(sent, Buffer::F32(&mut floats[..1])).unwrap_err(),
                rank.reduce(0, sent, None).unwrap_err(),
                rank.reduce(1, sent, None).unwrap_err(),
            ]
        });
        assert!(matches!(
            errors[0][..3],
            [CollectiveError::Buffers(_), CollectiveError::Buffers(_), CollectiveError::Buffers(_)]
        ));
        assert_eq!(errors[0][3], CollectiveError::Member { rank: 1, world: 1 });
    }
}

#[test]
fn a_peer_that_leaves_frees_those_who_wait_for_it() {
    for &kind in kinds() {
        let results = kind.group(3, |mut rank| {
            let mut sum = [0];
            rank.all_reduce(Values::I64(&[1]), Buffer::I64(&mut sum)).unwrap();
            if rank.rank() == 1 {
                return Ok(());
            }
            rank.all_reduce(Values::I64(&[1]), Buffer::I64(&mut sum))
        });
        for rank in [0, 2] {
            assert!(matches!(results[rank], Err(CollectiveError::PeerLost { .. })), "{:?}", results[rank]);
        }
        let lost = |r: &Result<()>| matches!(r, Err(CollectiveError::PeerLost { rank: 1, .. }));
        assert!(results.iter().any(lost), "{results:?}");
    }
}

#[test]
fn silence_is_bounded_and_says_who_is_missing() {
    for &kind in kinds() {
        let transports = kind.transports(2);
        let silence = Duration::from_millis(50);
        thread::scope(|scope| {
            let join = |rank| {
                let member = Member { silence, ..member(1, rank, 2) };
                let transport = &transports[rank];
                scope.spawn(move || transport.join(member, &Abort::default()).unwrap())
            };
            let (first, second) = (join(0), join(1));
            let (mut first, second) = (first.join().unwrap(), second.join().unwrap());
            let error = first.all_reduce(Values::I64(&[1]), Buffer::I64(&mut [0])).unwrap_err();
            let CollectiveError::Timeout { ranks, waited } = &error else { panic!("{error}") };
            assert_eq!(ranks, &[1]);
            assert!(*waited >= silence);
            // The one who was waited for finds the group ended, and so does every later call.
            assert!(first.broadcast(0, Buffer::I64(&mut [0])).is_err());
            drop(second);
        });
    }
}

#[test]
fn an_abort_frees_a_blocked_call_and_its_peers() {
    for &kind in kinds() {
        let transports = kind.transports(3);
        let aborts = [Abort::default(), Abort::default(), Abort::default()];
        let (ready, blocked) = mpsc::channel();
        thread::scope(|scope| {
            let (transports, aborts) = (&transports, &aborts);
            let run = |rank: usize| {
                let ready = ready.clone();
                scope.spawn(move || {
                    let mut group = transports[rank].join(member(4, rank, 3), &aborts[rank]).unwrap();
                    ready.send(()).unwrap();
                    group.all_reduce(Values::I64(&[1]), Buffer::I64(&mut [0]))
                })
            };
            let ranks: Vec<_> = (0..2).map(run).collect();
            let idle = {
                let ready = ready.clone();
                scope.spawn(move || {
                    let group = transports[2].join(member(4, 2, 3), &aborts[2]).unwrap();
                    ready.send(()).unwrap();
                    group
                })
            };
            (0..3).for_each(|_| blocked.recv_timeout(LONG).unwrap());
            aborts[0].raise();
            let errors: Vec<_> = ranks.into_iter().map(|rank| rank.join().unwrap().unwrap_err()).collect();
            assert_eq!(errors[0], CollectiveError::Aborted);
            assert!(matches!(errors[1], CollectiveError::PeerLost { rank: 0, .. }), "{:?}", errors[1]);
            drop(idle.join().unwrap());
        });
    }
}

#[test]
fn joining_ends_by_its_timeout_by_an_abort_and_by_a_peer_that_gives_up() {
    let local = Local::default();
    let alone = Member { form: Duration::from_millis(20), ..member(1, 0, 2) };
    let error = local.join(alone, &Abort::default()).err().unwrap();
    assert!(matches!(error, CollectiveError::Timeout { ref ranks, .. } if ranks == &[1]), "{error}");
    // Who comes later finds the group given up.
    let late = local.join(member(1, 1, 2), &Abort::default()).err().unwrap();
    assert!(matches!(late, CollectiveError::PeerLost { rank: 0, .. }), "{late}");

    let abort = Abort::default();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| local.join(member(2, 0, 2), &abort).err().unwrap());
        abort.raise();
        assert_eq!(waiting.join().unwrap(), CollectiveError::Aborted);
    });
    assert_eq!(local.join(member(3, 0, 2), &abort).err(), Some(CollectiveError::Aborted));
}

#[test]
fn an_epoch_is_never_used_again() {
    let local = Local::default();
    let join = |epoch, world| local.join(member(epoch, 0, world), &Abort::default()).map(drop);
    assert_eq!(join(5, 1), Ok(()));
    assert_eq!(join(5, 1), Err(CollectiveError::EpochUsed(Epoch(5))));
    assert_eq!(join(4, 1), Err(CollectiveError::EpochUsed(Epoch(4))));
    assert_eq!(join(6, 1), Ok(()));
    assert_eq!(join(5, 1), Err(CollectiveError::EpochUsed(Epoch(5))));
    let outside = local.join(Member { rank: 2, ..member(7, 0, 2) }, &Abort::default()).err();
    assert_eq!(outside, Some(CollectiveError::Member { rank: 2, world: 2 }));
}
