//! Numbers in a GPU's memory go through the same calls, and meet the same faults.

use obsdiff_proto::Accumulate;

use super::super::ffi::OnGpu;
use super::*;

/// The first GPU, whose memory numbers are to lie in.
fn gpu() -> Arc<Gpu> {
    Arc::new(Gpu::open(0).unwrap())
}

#[test]
fn numbers_of_a_gpu_are_summed_and_spread_where_they_lie() {
    with_fake(
        "on_gpu::numbers_of_a_gpu_are_summed_and_spread_where_they_lie",
        FakeNccl::Current,
        &[],
        || {
            for (world, length) in [(2, 1000), (3, 17), (4, 16), (2, 1)] {
                let expected = sums(world, length);
                let floats: Vec<f32> =
                    (0..length).map(|index| (0..world).map(|rank| float(rank, index)).sum()).collect();
                let ended = group(
                    world,
                    LONG,
                    |member| member,
                    |joined| {
                        let (mut rank, gpu) = (joined.unwrap(), gpu());
                        assert_eq!(rank.gpu(), Some(0));
                        let own = addends(rank.rank(), length);
                        let owned: Vec<f32> = (0..length).map(|index| float(rank.rank(), index)).collect();
                        let on_gpu = OnGpu::new(&gpu, Accumulate::Exact, &own);
                        let floats_on_gpu = OnGpu::new(&gpu, Accumulate::F32, &owned);
                        let sums = OnGpu::new(&gpu, Accumulate::Exact, &vec![-1i64; length]);
                        let to = sums.numbers();
                        rank.all_reduce(Values::Device(&on_gpu.numbers()), Buffer::Device(&to)).unwrap();
                        assert!(sums.read::<i64>() == expected, "all_reduce of {length} among {world}");
                        for root in 0..world {
                            let at_root = root == rank.rank();
                            let sums = OnGpu::new(&gpu, Accumulate::F32, &vec![-1f32; length]);
                            let to = sums.numbers();
                            let receive = at_root.then_some(Buffer::Device(&to));
                            rank.reduce(root, Values::Device(&floats_on_gpu.numbers()), receive).unwrap();
                            let wanted = if at_root { &floats } else { &vec![-1.0; length] };
                            assert!(
                                sums.read::<f32>() == *wanted,
                                "reduce of {length} among {world} to {root}"
                            );
                            // The host's and a GPU's numbers meet, and each goes where its rank wants it.
                            let mut on_host = vec![0; length];
                            let (from, to) = (on_gpu.numbers(), OnGpu::new(&gpu, Accumulate::Exact, &own));
                            let place = to.numbers();
                            let even = rank.rank().is_multiple_of(2);
                            let send = if even { Values::Device(&from) } else { Values::I64(&own) };
                            let receive =
                                if even { Buffer::I64(&mut on_host) } else { Buffer::Device(&place) };
                            rank.reduce(root, send, at_root.then_some(receive)).unwrap();
                            let found = if even { on_host } else { to.read() };
                            assert!(!at_root || found == expected, "mixed reduce of {length} to {root}");
                        }
                        assert!(on_gpu.read::<i64>() == own, "what is sent stays");
                        rank.broadcast(world - 1, Buffer::Device(&on_gpu.numbers())).unwrap();
                        assert!(on_gpu.read::<i64>() == addends(world - 1, length));
                    },
                );
                assert!(ended.iter().all(|((), stuck)| stuck.try_recv().is_err()));
            }
        },
    );
}

/// What rank `rank` adds to float `index`.
fn float(rank: usize, index: usize) -> f32 {
    (1 + rank * 10 + index) as f32
}

#[test]
fn numbers_of_another_gpu_or_shape_are_refused_and_the_group_goes_on() {
    let name = "on_gpu::numbers_of_another_gpu_or_shape_are_refused_and_the_group_goes_on";
    with_fake(name, FakeNccl::Current, &[], || {
        let nccl = transport(&Arc::default(), 64, LONG).0;
        let mut rank = nccl.form(member(1, 0, 1), &Abort::default()).unwrap();
        let [own, sums] = [7i64, 0].map(|value| OnGpu::new(&gpu(), Accumulate::Exact, &[value; 20]));
        let elsewhere = OnGpu::new(&Arc::new(Gpu::open(1).unwrap()), Accumulate::Exact, &[0i64; 20]);
        for to in [elsewhere.numbers(), sums.numbers().part(1..20)] {
            let refused = rank.all_reduce(Values::Device(&own.numbers()), Buffer::Device(&to)).unwrap_err();
            assert!(matches!(refused, CollectiveError::Buffers(_)), "{refused}");
        }
        let to = sums.numbers();
        rank.all_reduce(Values::Device(&own.numbers()), Buffer::Device(&to)).unwrap();
        assert_eq!(sums.read::<i64>(), [7; 20]);
    });
}

/// Makes calls until one fails, and then drops at once what lies on the GPU: the fake driver ends the process where NCCL still uses it.
fn sums_on_a_gpu_until_an_error(joined: Result<Box<dyn Collective>>) -> (usize, CollectiveError) {
    let mut rank = match joined {
        Ok(rank) => rank,
        Err(error) => return (0, error),
    };
    let gpu = gpu();
    for done in 0..100 {
        let own = OnGpu::new(&gpu, Accumulate::Exact, &[1i64, 2, 3]);
        let sum = OnGpu::new(&gpu, Accumulate::Exact, &[0i64; 3]);
        let called = rank.all_reduce(Values::Device(&own.numbers()), Buffer::Device(&sum.numbers()));
        if let Err(error) = called {
            return (done, error);
        }
        assert_eq!(sum.read::<i64>(), [1, 2, 3].map(|own| own * rank.world() as i64));
    }
    panic!("no call fails");
}

#[test]
fn an_asynchronous_error_ends_the_group_and_no_memory_goes_before_nccl_has_let_go() {
    let name = "on_gpu::an_asynchronous_error_ends_the_group_and_no_memory_goes_before_nccl_has_let_go";
    let fault: &[_] = &[("FAKE_NCCL_ERROR_AT_CALL", "24")];
    with_fakes(name, &[(FakeNccl::Current, fault), (FakeNccl::WithoutRevoke, fault)], || {
        let ended = group(3, LONG, |member| member, sums_on_a_gpu_until_an_error);
        let own = |error: &CollectiveError| matches!(error, CollectiveError::Transport(why) if why.contains("NCCL"));
        assert_found(&ended, own);
        assert!(ended.iter().all(|((calls, _), stuck)| *calls >= 2 && stuck.try_recv().is_err()));
    });
}

#[test]
fn silence_ends_the_group_and_no_memory_goes_before_nccl_has_let_go() {
    let name = "on_gpu::silence_ends_the_group_and_no_memory_goes_before_nccl_has_let_go";
    let fault: &[_] = &[("FAKE_NCCL_SILENT_AT_CALL", "24")];
    with_fakes(name, &[(FakeNccl::Current, fault), (FakeNccl::WithoutRevoke, fault)], || {
        let hasty = |member| Member { silence: SHORT, ..member };
        let ended = group(3, LONG, hasty, sums_on_a_gpu_until_an_error);
        assert_found(&ended, timeout);
        assert!(ended.iter().all(|((calls, _), stuck)| *calls >= 2 && stuck.try_recv().is_err()));
    });
}

#[test]
fn an_nccl_that_does_not_stop_keeps_the_memory_and_is_told_of() {
    let name = "on_gpu::an_nccl_that_does_not_stop_keeps_the_memory_and_is_told_of";
    let silent = ("FAKE_NCCL_SILENT_AT_CALL", "24");
    let fakes: [(_, &[_]); 2] = [
        (FakeNccl::WithoutRevoke, &[silent, ("FAKE_NCCL_ABORT", "hang")]),
        (FakeNccl::Current, &[silent, ("FAKE_NCCL_REVOKE", "hang")]),
    ];
    with_fakes(name, &fakes, || {
        let hasty = |member| Member { silence: SHORT, ..member };
        let ended = group(2, SHORT, hasty, sums_on_a_gpu_until_an_error);
        assert_found(&ended, timeout);
        for (_, stuck) in ended {
            let why = stuck.recv_timeout(LONG).unwrap();
            assert_eq!(why, "a group of GPUs cannot be left: NCCL did not stop within 1 s");
        }
    });
}
