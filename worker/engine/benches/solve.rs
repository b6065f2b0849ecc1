//! Pruning a linear by OBS, factorisation included, against its arithmetic at the rate of the machine's fastest f32 GEMM.
#![allow(missing_docs)]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use obsdiff_engine::gram::Gram;
use obsdiff_engine::solve::{Factor, obs, relative_error, stride};
use obsdiff_proto::{Accumulate, Target};

mod rate;

const ROWS: usize = 1536;

/// The Gram of activations whose features are correlated and of different sizes.
fn gram(n: usize) -> Gram {
    let mut gram = Gram::new(n, Accumulate::Exact, 20);
    let mut rows = rate::noise((n + 64) * n);
    for row in rows.chunks_mut(n) {
        for j in 1..n {
            row[j] += 0.7 * row[j - 1];
        }
        row.iter_mut().enumerate().for_each(|(j, x)| *x *= 1.0 + (j * 7 % 13) as f32);
    }
    gram.observe(&rows, 1.1).unwrap();
    gram
}

fn solve(c: &mut Criterion) {
    for n in [1536, 6144] {
        let product = rate::gemm(ROWS, n, n, 10);
        // 2/3 n^3 + rows * n^2 operations, against 2 * rows * n^2 of the product.
        let operations = 2.0 / 3.0 * (n * n * n) as f64 + (ROWS * n * n) as f64;
        let bound = product.as_secs_f64() * operations / (2 * ROWS * n * n) as f64;
        let upper: Vec<f32> = gram(n).into_upper(stride(n));
        let weight = rate::noise(ROWS * n);
        let factorised =
            rate::shortest(8, || upper.clone(), |upper| drop(Factor::new(n, upper, 0.01).unwrap()));
        println!("factor of {n} x {n}: {factorised:.2?}");
        for target in [Target::Unstructured { ratio: 0.5 }, Target::NToM { n: 2, m: 4 }] {
            let run = |(upper, mut weight): (Vec<f32>, Vec<f32>)| {
                let factor = Factor::new(n, upper, 0.01).unwrap();
                obs(&mut weight, &factor, &target).unwrap();
                black_box((factor, weight))
            };
            let time = rate::shortest(8, || (upper.clone(), weight.clone()), |input| drop(run(input)));
            let ratio = time.as_secs_f64() / bound;
            println!(
                "solve {ROWS} x {n}, {target:?}: {time:.2?} = {ratio:.2} of its arithmetic (at most 1.6)"
            );
            c.bench_function(&format!("solve {ROWS} x {n}, {target:?}"), |b| {
                b.iter_batched(|| (upper.clone(), weight.clone()), run, BatchSize::PerIteration);
            });
        }
        let factor = Factor::new(n, upper, 0.01).unwrap();
        let error = rate::shortest(5, || (), |()| drop(relative_error(&weight, &weight, &factor)));
        println!(
            "relative error of {ROWS} x {n}: {error:.2?} = {:.2} of its arithmetic",
            error.as_secs_f64() / product.as_secs_f64()
        );
    }
}

criterion_group! { name = benches; config = Criterion::default().sample_size(10); targets = solve }
criterion_main!(benches);
