//! Grams near the end of their range are summed on the host.
#![allow(clippy::unwrap_used, clippy::panic)]

#[cfg(feature = "cuda")]
mod on_gpus;

use std::thread;
use std::time::Duration;

use obsdiff_engine::gram::GramSumsMut;
use obsdiff_proto::Epoch;

use super::*;
use crate::collective::{Abort, Local, Member, Transport};

const LONG: Duration = Duration::from_secs(60);
const SITE: SiteId = SiteId(2);

/// A Gram of two features with so much of the limit of a sum on its diagonal's second place, and little elsewhere.
fn gram(exponent: i32, share: f64) -> Gram {
    let mut gram = Gram::new(2, Accumulate::Exact, exponent);
    if let (GramSumsMut::Exact(sums), mass) = gram.parts_mut() {
        sums.copy_from_slice(&[7, -5, (share * SUM_LIMIT) as i64]);
        *mass = 3;
    }
    gram
}

/// What each rank gets of a group to which it brings one of these Grams.
fn reduced(grams: &[Gram], roots: &[usize]) -> Vec<Result<Option<PlacedGram>, WorkError>> {
    let local = Local::default();
    thread::scope(|scope| {
        let run = |(rank, own): (usize, &Gram)| {
            let (transport, own) = (local.clone(), PlacedGram::from(own.clone()));
            scope.spawn(move || {
                let member = Member { epoch: Epoch(1), rank, world: grams.len(), form: LONG, silence: LONG };
                let mut group = transport.join(member, &Abort::default()).unwrap();
                let site = GroupSite {
                    id: SITE,
                    width: 2,
                    accumulate: Accumulate::Exact,
                    own: Some(&own),
                    device: None,
                    solving: None,
                };
                let received = reduce(site, roots, &mut *group);
                // Nobody leaves before all have finished.
                group.all_reduce(Values::I64(&[0]), Buffer::I64(&mut [0])).unwrap();
                received
            })
        };
        let ranks: Vec<_> = grams.iter().enumerate().map(run).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn sums_are_exact_up_to_their_limit() {
    let grams = [0.3, 0.3, 0.399].map(|share| gram(30, share));
    let mut sum = gram(30, 0.3);
    grams[1..].iter().for_each(|other| sum.merge(other).unwrap());
    for roots in [&[1][..], &[0, 2]] {
        for (rank, received) in reduced(&grams, roots).into_iter().enumerate() {
            let received = received.unwrap().map(|gram| gram.to_host().unwrap());
            assert_eq!(received.as_deref(), roots.contains(&rank).then_some(&sum), "{rank} of {roots:?}");
        }
    }
}

#[test]
fn every_rank_is_told_of_a_sum_past_its_limit() {
    // The sums of three just pass it, or lie past what 64 bits hold.
    for share in [0.34, 0.4, 0.9] {
        let grams = [(); 3].map(|()| gram(30, share));
        for roots in [&[1][..], &[0, 2]] {
            for (rank, received) in reduced(&grams, roots).into_iter().enumerate() {
                let told = matches!(received, Err(WorkError::Overflow { site: SITE, exponent: 30 }));
                assert!(told, "{share}: {rank} of {roots:?} got {received:?}");
            }
        }
    }
}

#[test]
fn every_rank_is_told_of_grams_with_different_exponents() {
    for received in reduced(&[gram(30, 0.1), gram(29, 0.1)], &[0]) {
        let Err(WorkError::Group(CollectiveError::Transport(problem))) = received else {
            panic!("{received:?}")
        };
        assert!(problem.contains("site 2 with different exponents"), "{problem}");
    }
}
