//! One observation into a Gram, against the full n x tokens x n product by the machine's fastest f32 GEMM.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use obsdiff_engine::gram::Gram;
use obsdiff_proto::Accumulate;

mod rate;

const TOKENS: usize = 1024;

fn observe(c: &mut Criterion) {
    for n in [1536, 6144] {
        let mut product = rate::Gemm::new(n, TOKENS, n);
        let rows = rate::noise(TOKENS * n);
        let mut kinds =
            [Accumulate::Exact, Accumulate::F32].map(|kind| (kind, Gram::new(n, kind, 20), Duration::MAX));
        for _ in 0..25 {
            product.run();
            for (_, gram, shortest) in &mut kinds {
                rate::time(shortest, (), |()| gram.observe(&rows, 1.0).unwrap());
            }
        }
        product.print();
        for (kind, _, time) in kinds {
            let ratio = time.as_secs_f64() / product.seconds();
            let bound = if kind == Accumulate::Exact { " (at most 0.75)" } else { "" };
            println!(
                "observation n = {n}, {TOKENS} tokens, {kind:?}: {time:.2?} = {ratio:.2} of the full product{bound}"
            );
        }
        let mut gram = Gram::new(n, Accumulate::Exact, 20);
        c.bench_function(&format!("observe {TOKENS} x {n}"), |b| {
            b.iter(|| gram.observe(black_box(&rows), 1.0).unwrap());
        });
    }
}

criterion_group! { name = benches; config = Criterion::default().sample_size(10); targets = observe }
criterion_main!(benches);
