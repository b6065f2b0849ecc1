use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use obsdiff_proto::Epoch;

use super::*;
use crate::collective::tests::{ThreadRendezvous, addends, sums};
use crate::collective::{Buffer, Values};

/// A transport for each rank of a group.
pub(in crate::collective) fn transports(world: usize) -> Vec<Box<dyn Transport>> {
    let board = Arc::new(ThreadRendezvous::default());
    (0..world).map(|_| Box::new(Gloo::new(Arc::new(board.clone()))) as Box<dyn Transport>).collect()
}

const LONG: Duration = Duration::from_secs(60);

fn member(epoch: u64, rank: usize, world: usize) -> Member {
    Member { epoch: Epoch(epoch), rank, world, form: LONG, silence: LONG }
}

/// What each rank of a group returns; `abort` is that of rank 0.
fn group<T: Send>(world: usize, abort: &Abort, each: impl Fn(Box<dyn Collective>) -> T + Sync) -> Vec<T> {
    let transports = transports(world);
    thread::scope(|scope| {
        let each = &each;
        let run = |rank: usize, transport: &dyn Transport| {
            let abort = if rank == 0 { abort.clone() } else { Abort::default() };
            each(transport.join(member(1, rank, world), &abort).unwrap())
        };
        let ranks = transports.iter().map(|transport| &**transport).enumerate();
        let ranks: Vec<_> =
            ranks.map(|(rank, transport)| scope.spawn(move || run(rank, transport))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn buffers_of_many_messages_and_any_length_are_summed_and_spread() {
    for (world, length) in [(2, 1 << 20), (3, (1 << 20) + 1), (4, 700_001), (3, 2), (3, 0)] {
        let expected = sums(world, length);
        group(world, &Abort::default(), |mut rank| {
            let own = addends(rank.rank(), length);
            let mut sums = vec![0; length];
            rank.all_reduce(Values::I64(&own), Buffer::I64(&mut sums)).unwrap();
            assert!(sums == expected, "all_reduce of {length} among {world}");
            for root in 0..world {
                let at_root = root == rank.rank();
                sums.fill(0);
                rank.reduce(root, Values::I64(&own), at_root.then_some(Buffer::I64(&mut sums))).unwrap();
                assert!(!at_root || sums == expected, "reduce of {length} among {world} to {root}");
            }
            let mut copied = own;
            rank.broadcast(world - 1, Buffer::I64(&mut copied)).unwrap();
            assert!(copied == addends(world - 1, length));
        });
    }
}

#[test]
fn floats_are_summed_in_the_order_of_ranks_in_every_segment_and_at_every_root() {
    let (world, length) = (4, 600_003);
    let value =
        |rank: usize, index: usize| ((index * 31 + rank * 17) % 1009) as f32 * 10f32.powi(rank as i32 * 3);
    let sum = |index| (1..world).fold(value(0, index), |sum, rank| sum + value(rank, index));
    let expected: Vec<f32> = (0..length).map(sum).collect();
    group(world, &Abort::default(), |mut rank| {
        let own: Vec<f32> = (0..length).map(|index| value(rank.rank(), index)).collect();
        let mut sums = vec![0.0; length];
        rank.all_reduce(Values::F32(&own), Buffer::F32(&mut sums)).unwrap();
        assert!(sums == expected);
        for root in 0..world {
            let at_root = root == rank.rank();
            rank.reduce(root, Values::F32(&own), at_root.then_some(Buffer::F32(&mut sums))).unwrap();
            assert!(!at_root || sums == expected);
        }
    });
}

#[test]
fn who_leaves_after_its_last_call_takes_nothing_from_those_who_still_make_it() {
    for _ in 0..30 {
        let sums = group(3, &Abort::default(), |mut rank| {
            let mut sum = [0];
            rank.all_reduce(Values::I64(&[1]), Buffer::I64(&mut sum)).map(|()| sum[0])
        });
        assert_eq!(sums, [Ok(3), Ok(3), Ok(3)]);
    }
}

#[test]
fn an_abort_amid_large_messages_frees_everybody_at_once() {
    for _ in 0..5 {
        let abort = Abort::default();
        let (begun, running) = std::sync::mpsc::channel();
        thread::scope(|scope| {
            let raise = abort.clone();
            scope.spawn(move || {
                running.recv_timeout(LONG).unwrap();
                raise.raise();
            });
            let begun = &begun;
            let freed = group(3, &abort, |mut rank| {
                let own = vec![1i64; 4 << 20];
                let mut sums = own.clone();
                loop {
                    if rank.rank() == 2 {
                        // Nobody waits for it any more once the abort is raised.
                        let _ = begun.send(());
                    }
                    if let Err(error) = rank.all_reduce(Values::I64(&own), Buffer::I64(&mut sums)) {
                        // Later calls say the same.
                        assert_eq!(rank.broadcast(0, Buffer::I64(&mut sums)), Err(error.clone()));
                        return error;
                    }
                }
            });
            assert_eq!(freed[0], CollectiveError::Aborted);
            let lost = |error: &CollectiveError| matches!(error, CollectiveError::PeerLost { .. });
            assert!(freed[1..].iter().all(lost), "{freed:?}");
        });
    }
}

#[test]
fn joining_ends_by_its_timeout_and_by_an_abort_and_a_group_that_was_given_up_forms_no_more() {
    let transports = transports(2);
    let hasty = |epoch, rank| Member { form: Duration::from_millis(200), ..member(epoch, rank, 2) };
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
}

/// Joins a group of two as rank 0, whose peer is played by hand: it hears where rank 0 listens, and says where it is itself.
fn join_by_hand(form: Duration, peer: impl FnOnce(SocketAddr) -> u16) -> Result<Box<dyn Collective>> {
    let board = Arc::new(ThreadRendezvous::default());
    let gloo = Gloo::new(Arc::new(board.clone()));
    let member = Member { form, ..member(1, 0, 2) };
    thread::scope(|scope| {
        let joining = scope.spawn(|| gloo.join(member, &Abort::default()));
        let mut address = board.wait(member.epoch, &key(0), LONG, &Abort::default()).unwrap().unwrap();
        // It begins with a `sockaddr_in`.
        let port = u16::from_be_bytes([address[2], address[3]]);
        let port = peer((Ipv4Addr::LOCALHOST, port).into());
        address[2..4].copy_from_slice(&port.to_be_bytes());
        board.put(member.epoch, &key(1), address).unwrap();
        joining.join().unwrap()
    })
}

/// Closes a connection as a process does that is killed.
fn reset(connection: TcpStream) {
    socket2::SockRef::from(&connection).set_linger(Some(Duration::ZERO)).unwrap();
}

#[test]
fn a_peer_that_dies_as_it_connects_is_an_error() {
    // The addresses decide which side connects: here rank 0 is connected to...
    for _ in 0..20 {
        // Seen at once, however busy the machine is: the limit is never reached.
        let joined = join_by_hand(Duration::from_secs(30), |rank| {
            reset(TcpStream::connect(rank).unwrap());
            u16::MAX
        });
        assert!(matches!(joined.err().unwrap(), CollectiveError::PeerLost { rank: 1, .. }));
    }
    // ...and here it connects, unless the system gave it a lower port.
    for _ in 0..20 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let dies = thread::spawn(move || reset(listener.accept().unwrap().0));
        assert!(join_by_hand(Duration::from_millis(100), |_| address.port()).is_err());
        // Where nobody came.
        drop(TcpStream::connect(address));
        dies.join().unwrap();
    }
}
