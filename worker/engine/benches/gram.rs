//! One observation into a Gram, against the full n x tokens x n product by the machine's fastest f32 GEMM.
#![allow(missing_docs)]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use obsdiff_engine::gram::Gram;
use obsdiff_proto::Accumulate;

mod rate;

const TOKENS: usize = 1024;

fn observe(c: &mut Criterion) {
    for n in [1536, 6144] {
        let product = rate::gemm(n, TOKENS, n, 20);
        let rows = rate::noise(TOKENS * n);
        for kind in [Accumulate::Exact, Accumulate::F32] {
            let mut gram = Gram::new(n, kind, 20);
            let time = rate::shortest(20, || (), |()| gram.observe(&rows, 1.0).unwrap());
            let ratio = time.as_secs_f64() / product.as_secs_f64();
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
