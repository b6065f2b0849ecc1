//! Pruning a linear by OBS and by alternating directions, factorisations included, and refining it, against their arithmetic at the rate
//! of the machine's fastest f32 GEMM.
#![allow(missing_docs, clippy::unwrap_used)]

use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use obsdiff_engine::gram::Gram;
use obsdiff_engine::solve::{Admm, Factor, Obs, ScaledHessian, refine, relative_error, stride};
use obsdiff_proto::{Accumulate, Effort, Target};

mod rate;

const ROWS: usize = 1536;

/// The default of `hessian.damping`.
const DAMPING: f64 = 0.01;

/// The default of `sparsity.refine`.
const STEPS: u32 = 5;

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
        let mut product = rate::Gemm::new(ROWS, n, n);
        let upper: Vec<f32> = gram(n).to_upper(stride(n));
        let weight = rate::noise(ROWS * n);
        let factorise = |upper| Factor::new(n, upper, DAMPING).unwrap();
        let mut obs = Obs::default();
        let mut run = |upper: Vec<f32>, mut weight: Vec<f32>, target: Target| {
            let factor = factorise(upper);
            obs.prune(&mut weight, &factor, &target).unwrap();
            (factor, weight)
        };
        let mut admm = Admm::default();
        let mut alternate = |upper: Vec<f32>, mut pruned: Vec<f32>, target: Target| {
            let hessian = ScaledHessian::of_gram(n, upper, DAMPING).unwrap();
            admm.begin::<f32>(&hessian, Effort::Fast).unwrap();
            admm.prune(&mut pruned, &hessian, &target).unwrap();
            refine(&mut pruned, &weight, &hessian, STEPS).unwrap();
            pruned
        };
        let (factor, masked) = run(upper.clone(), weight.clone(), Target::Unstructured { ratio: 0.5 });
        let hessian = ScaledHessian::new(factor.clone(), DAMPING);
        let mut targets =
            [Target::Unstructured { ratio: 0.5 }, Target::NToM { n: 2, m: 4 }].map(|t| (t, Duration::MAX));
        let mut alternated = targets;
        let [mut factorised, mut compared, mut scaled, mut refined] = [Duration::MAX; 4];
        for _ in 0..if n > ROWS { 3 } else { 12 } {
            product.run();
            rate::time(&mut factorised, upper.clone(), factorise);
            rate::time(&mut compared, (), |()| relative_error(&weight, &weight, &factor).unwrap());
            rate::time(&mut scaled, factor.clone(), |factor| ScaledHessian::new(factor, DAMPING));
            rate::time(&mut refined, masked.clone(), |mut masked| {
                refine(&mut masked, &weight, &hessian, STEPS).unwrap()
            });
            for (target, shortest) in &mut alternated {
                rate::time(shortest, (upper.clone(), weight.clone()), |(upper, weight)| {
                    alternate(upper, weight, *target)
                });
            }
            for (target, shortest) in &mut targets {
                rate::time(shortest, (upper.clone(), weight.clone()), |(upper, weight)| {
                    run(upper, weight, *target)
                });
            }
        }
        product.print();
        let print = |what: &str, time: Duration, operations: f64, bound: &str| {
            let at_gemm_rate = product.seconds() * operations / (2 * ROWS * n * n) as f64;
            println!(
                "{what}: {time:.2?} = {:.2} of its arithmetic{bound}",
                time.as_secs_f64() / at_gemm_rate
            );
        };
        let (cube, rows) = ((n * n * n) as f64, (ROWS * n * n) as f64);
        print(&format!("factor of {n} x {n}"), factorised, cube / 3.0, "");
        print(&format!("relative error of {ROWS} x {n}"), compared, 2.0 * rows, "");
        println!(
            "scaled Gram of {n} x {n}: {scaled:.2?} = {:.2} of the product",
            scaled.as_secs_f64() / product.seconds()
        );
        let products = 2.0 * f64::from(STEPS + 1) * rows;
        print(&format!("refine {ROWS} x {n}, {STEPS} steps"), refined, products, " (at most 1.4)");
        print("  to the products of the steps alone", refined, 2.0 * f64::from(STEPS) * rows, "");
        for (target, time) in alternated {
            let what = format!("alternate and refine {ROWS} x {n}, {target:?}");
            print(&what, time, 3.0 * cube + 40.0 * rows, " (at most 1.4)");
        }
        for (target, time) in targets {
            let what = format!("solve {ROWS} x {n}, {target:?}");
            // What the published way takes, which also inverts the factor.
            print(&what, time, 2.0 / 3.0 * cube + rows, " (at most 1.6)");
            print("  without the factor's inverse, which is not formed", time, cube / 3.0 + rows, "");
            c.bench_function(&what, |b| {
                let input = || (upper.clone(), weight.clone());
                b.iter_batched(input, |(upper, weight)| run(upper, weight, target), BatchSize::PerIteration);
            });
        }
    }
}

criterion_group! { name = benches; config = Criterion::default().sample_size(10); targets = solve }
criterion_main!(benches);
