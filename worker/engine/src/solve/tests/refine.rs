use super::answers::threads;
use super::*;
use crate::solve::refine::REFINED_TOGETHER;

fn scaled(gram: &[f64], n: usize) -> ScaledHessian {
    ScaledHessian::new(factor(gram, n, 0.1), 0.01)
}

/// tr((W - W0) H (W - W0)^T) of each row.
fn errors(weight: &[f32], dense: &[f32], h: &[f64], n: usize) -> Vec<f64> {
    let row = |(w, w0): (&[f32], &[f32])| {
        let off: Vec<f64> = w.iter().zip(w0).map(|(w, w0)| f64::from(*w) - f64::from(*w0)).collect();
        (0..n * n).map(|at| off[at / n] * h[at] * off[at % n]).sum()
    };
    weight.chunks(n).zip(dense.chunks(n)).map(row).collect()
}

#[test]
fn the_scaled_gram_is_the_definitions() {
    for (n, dead) in [(1, vec![]), (40, vec![3]), (130, vec![]), (600, vec![0, 599])] {
        let gram = gram(n as u64, n, &dead);
        let h = damped(&gram, n, 0.01);
        let scaled = scaled(&gram, n);
        for i in 0..n {
            for j in 0..n {
                let wanted = h[i * n + j] / (h[i * n + i] * h[j * n + j]).sqrt();
                let found = f64::from(scaled.square()[i * stride(n) + j]);
                assert!((found - wanted).abs() < 1e-6, "n {n}, {i}, {j}: {found} {wanted}");
            }
        }
        let largest = (0..n).map(|j| h[j * n + j]).fold(0.0, f64::max);
        for j in 0..n {
            let wanted = (h[j * n + j] / largest).sqrt();
            assert!((f64::from(scaled.scale()[j]) - wanted).abs() < 1e-6, "{j}");
        }
    }
}

#[test]
fn enough_steps_reach_the_optimum_of_the_mask() {
    let (n, rows) = (60, 7);
    let gram = gram(21, n, &[5]);
    let h = damped(&gram, n, 0.01);
    let dense = noise(22, rows * n);
    for target in TARGETS {
        let mask = pruned(&dense, &factor(&gram, n, 0.01), target);
        let mut refined = mask.clone();
        refine(&mut refined, &dense, &scaled(&gram, n), 60).unwrap();
        for (r, (refined, mask)) in refined.chunks(n).zip(mask.chunks(n)).enumerate() {
            let dense = &dense[r * n..(r + 1) * n];
            let kept: Vec<usize> = (0..n).filter(|j| mask[*j] != 0.0).collect();
            let a = kept.iter().flat_map(|&i| kept.iter().map(move |&j| (i, j)));
            let a = a.map(|(i, j)| h[i * n + j]).collect();
            let wanted = |i: &usize| (0..n).map(|j| h[i * n + j] * f64::from(dense[j])).sum();
            let best = solved(a, kept.iter().map(wanted).collect());
            for (j, best) in kept.iter().zip(&best) {
                let found = f64::from(refined[*j]);
                assert!((found - best).abs() < 2e-3, "{target:?}, row {r}, column {j}: {found} {best}");
            }
            assert!(refined.iter().zip(mask).all(|(r, m)| (*m != 0.0) || *r == 0.0), "{target:?}");
        }
    }
}

#[test]
fn no_row_gets_worse_and_the_share_left_is_the_definitions() {
    let (n, rows) = (200, 150);
    let gram = gram(23, n, &[]);
    let h = damped(&gram, n, 0.01);
    let dense = noise(24, rows * n);
    let mask = pruned(&dense, &factor(&gram, n, 0.01), Target::Unstructured { ratio: 0.5 });
    let before: f64 = errors(&mask, &dense, &gram, n).iter().sum();
    let mut last = errors(&mask, &dense, &h, n);
    for steps in 1..6 {
        let mut refined = mask.clone();
        let left = refine(&mut refined, &dense, &scaled(&gram, n), steps).unwrap();
        let now = errors(&refined, &dense, &h, n);
        assert!(now.iter().zip(&last).all(|(now, last)| *now <= last * (1.0 + 1e-5)), "{steps} steps");
        let wanted = errors(&refined, &dense, &gram, n).iter().sum::<f64>() / before;
        assert!((left - wanted).abs() < 1e-4 * wanted, "{steps} steps: {left} {wanted}");
        last = now;
    }
}

#[test]
fn a_row_that_would_get_worse_stays_as_it_is() {
    let (n, rows) = (48, 5);
    let gram = gram(25, n, &[]);
    let dense = noise(26, rows * n);
    let hessian = scaled(&gram, n);
    // At the optimum of its mask any step can only be a rounding error.
    let mut optimum = dense.clone();
    (0..rows).for_each(|r| optimum[r * n + r] = 0.0);
    refine(&mut optimum, &dense, &hessian, 100).unwrap();
    let mut again = optimum.clone();
    let left = refine(&mut again, &dense, &hessian, 3).unwrap();
    assert!((left - 1.0).abs() < 1e-4, "{left}");
    let h = damped(&gram, n, 0.01);
    let (before, after) = (errors(&optimum, &dense, &h, n), errors(&again, &dense, &h, n));
    assert!(after.iter().zip(&before).all(|(after, before)| *after <= before * (1.0 + 1e-6)));
    // Where A is not positive, there is no way down.
    let wrong = scaled(&gram, n).with_square(|a| -a);
    let mut kept = optimum.clone();
    refine(&mut kept, &dense, &wrong, 3).unwrap();
    assert_eq!(kept, optimum);
}

/// What pruning by magnitude leaves of a weight, refined by so many steps: the errors of each row before and after, with damping, and how
/// far what is said to be left is from what is.
fn refined_errors(gram: &[f64], n: usize, damping: f64, scale: f32, steps: u32) -> ([Vec<f64>; 2], f64) {
    let rows = 64;
    let dense: Vec<f32> = noise(31, rows * n).into_iter().map(|w| w * scale).collect();
    let mut mask = dense.clone();
    magnitude(&mut mask, n, &Target::Unstructured { ratio: 0.5 }).unwrap();
    let hessian = ScaledHessian::of_gram(n, upper::<f32>(gram, n), damping).unwrap();
    let mut refined = mask.clone();
    let left = refine(&mut refined, &dense, &hessian, steps).unwrap();
    assert!(refined.iter().zip(&mask).all(|(r, m)| r.is_finite() && (*m != 0.0 || *r == 0.0)));
    let plain = [&mask, &refined].map(|weight| errors(weight, &dense, gram, n).iter().sum::<f64>());
    let h = damped(gram, n, damping);
    ([&mask, &refined].map(|weight| errors(weight, &dense, &h, n)), left - plain[1] / plain[0])
}

#[test]
fn rows_that_have_arrived_stay_where_they_are() {
    let n = 60;
    for scale in [1.0, 1e-6, 1e-12] {
        let gram = gram(1, n, &[]);
        let ([_, enough], _) = refined_errors(&gram, n, 0.01, scale, 20);
        let ([before, after], off) = refined_errors(&gram, n, 0.01, scale, 10_000);
        assert!(off.abs() < 1e-4, "at {scale}: what is left is off by {off}");
        for (r, ((before, after), enough)) in before.iter().zip(&after).zip(&enough).enumerate() {
            let found = [before, after, enough];
            assert!(after < before && *after <= enough * (1.0 + 1e-5), "at {scale}, row {r}: {found:?}");
        }
    }
}

#[test]
fn no_row_gets_worse_where_f32_rounds_the_damping_away() {
    let (n, tokens) = (60, 20);
    let rows = noise(32, tokens * n);
    let entry = |at: usize| {
        let row = |row: &[f32]| f64::from(row[at / n]) * f64::from(row[at % n]);
        rows.chunks(n).map(row).sum::<f64>() / tokens as f64
    };
    let gram: Vec<f64> = (0..n * n).map(entry).collect();
    for steps in [100, 1000] {
        let ([before, after], _) = refined_errors(&gram, n, 1e-10, 1.0, steps);
        for (r, (before, after)) in before.iter().zip(&after).enumerate() {
            assert!(*after <= before * (1.0 + 1e-3), "{steps} steps, row {r}: {before} {after}");
        }
    }
}

#[test]
fn what_has_no_error_is_left_alone() {
    let n = 96;
    let hessian = scaled(&gram(27, n, &[1]), n);
    let dense = noise(28, 4 * n);
    let mut weight = dense.clone();
    assert_eq!(refine(&mut weight, &dense, &hessian, 5), Ok(1.0));
    assert_eq!(weight, dense);
    let mut nothing = vec![0.0; 4 * n];
    refine(&mut nothing, &dense, &hessian, 5).unwrap();
    assert_eq!(zeros(&nothing), 4 * n);
    assert!(matches!(refine(&mut weight, &dense[n..], &hessian, 5), Err(SolveError::Size { .. })));
    assert!(matches!(refine(&mut weight[1..], &dense, &hessian, 5), Err(SolveError::Size { .. })));
}

#[test]
fn threads_do_not_change_a_bit() {
    // More rows than are refined together, and more columns than the smaller tile has.
    for (n, rows) in [(96, REFINED_TOGETHER + 150), (1040, 530)] {
        let gram = gram_of_few_tokens(n);
        let dense = noise(30, rows * n);
        let mask = pruned(&dense, &factor(&gram, n, 0.01), Target::NToM { n: 2, m: 4 });
        let hessian = scaled(&gram, n);
        let work = || {
            let mut weight = mask.clone();
            let left = refine(&mut weight, &dense, &hessian, 3).unwrap();
            (weight.into_iter().map(f32::to_bits).collect::<Vec<_>>(), left.to_bits())
        };
        let one = threads(1, work);
        assert!(one == threads(2, work) && one == threads(3, work), "{rows} x {n}");
    }
}

/// A Gram that takes no time to make.
fn gram_of_few_tokens(n: usize) -> Vec<f64> {
    let rows = noise(29, 20 * n);
    let mut gram: Vec<f64> = (0..n * n).map(|at| if at / n == at % n { 1.0 } else { 0.0 }).collect();
    for row in rows.chunks(n) {
        for (at, g) in gram.iter_mut().enumerate() {
            *g += f64::from(row[at / n]) * f64::from(row[at % n]) / 20.0;
        }
    }
    gram
}
