//! Removing 30% of a feed-forward network's neurons with H^-1 downdated, against factorising again after removals.
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use obsdiff_engine::solve::structured::{Columns, Score, StructuredLinear, neurons};

mod rate;

/// Neurons that a version which factorises again would remove at once: as few as the published code ever does.
const CHUNK: usize = 64;

/// The symmetric Gram of activations whose features are correlated.
fn gram(n: usize) -> Vec<f64> {
    let mut gram = vec![0.0; n * n];
    let rows = rate::noise(4 * n);
    for i in 0..n {
        for j in 0..n {
            let far = i.abs_diff(j) as i32;
            let by_chance =
                if far == 0 { 0.0 } else { f64::from(rows[i.min(j)] * rows[n + i.max(j)]) * 1e-4 };
            gram[i * n + j] = 0.9f64.powi(far) + by_chance;
        }
    }
    gram
}

fn structured(c: &mut Criterion) {
    for (rows, n) in [(384, 1536), (1536, 6144)] {
        let count = n * 3 / 10;
        let weight: Vec<f64> = rate::noise(rows * n).into_iter().map(f64::from).collect();
        let gram = gram(n);
        let (mut factorised, mut whole) = (Duration::MAX, Duration::MAX);
        let mut product = rate::Gemm::new(rows, n, n);
        for _ in 0..if n > 2000 { 1 } else { 5 } {
            product.run();
            rate::time(&mut factorised, weight.clone(), |weight| {
                StructuredLinear::new(n, weight, &gram, 0.01).unwrap()
            });
            rate::time(&mut whole, weight.clone(), |weight| {
                let mut layer = StructuredLinear::new(n, weight, &gram, 0.01).unwrap();
                neurons(&mut layer, Columns::all(n, 1), count, Score::Exact).unwrap();
                layer
            });
        }
        product.print();
        let again = |times: usize| factorised.as_secs_f64() * times as f64 / whole.as_secs_f64();
        // Factorised, inverted and multiplied; W^T W; three downdates of a triangle; the weight.
        let (square, rows) = ((n * n) as f64, rows as f64);
        let operations = (n as f64 + rows + 3.0 * count as f64) * square + 2.0 * (count * n) as f64 * rows;
        let bound = if n == 6144 { "(at least 10)" } else { "(no bound)" };
        let at_gemm_rate = product.seconds() * operations / (2.0 * rows * square);
        println!(
            "{count} of {n} neurons, one at a time: {whole:.2?}, of which {factorised:.2?} factorise, \
             {:.1} of its arithmetic in f32; factorised again after every {CHUNK} neurons it would take {:.1} times as long \
             {bound}, after each {:.0} times",
            whole.as_secs_f64() / at_gemm_rate,
            again(count.div_ceil(CHUNK)),
            again(count),
        );
    }
    let (rows, n) = (96, 384);
    let weight: Vec<f64> = rate::noise(rows * n).into_iter().map(f64::from).collect();
    let gram = gram(n);
    c.bench_function("115 of 384 neurons", |b| {
        b.iter(|| {
            let mut layer = StructuredLinear::new(n, weight.clone(), &gram, 0.01).unwrap();
            neurons(&mut layer, Columns::all(n, 1), 115, Score::Exact).unwrap()
        });
    });
}

criterion_group! { name = benches; config = Criterion::default().sample_size(10); targets = structured }
criterion_main!(benches);
