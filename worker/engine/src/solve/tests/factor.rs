use super::*;

#[test]
fn c_is_a_factor_of_the_damped_gram() {
    for n in [1, 2, 3, 64, 95, 96, 97, 128, 192, 260, 300] {
        let gram = gram(n as u64, n, &[]);
        let h = damped(&gram, n, 0.01);
        let narrow = factor(&gram, n, 0.01);
        let wide = Factor::new(n, upper::<f64>(&gram, n), 0.01).unwrap();
        for factor in [narrow, wide] {
            assert_eq!(factor.damping_used(), 0.01);
            let c = dense_c(&factor);
            for i in 0..n {
                for j in i..n {
                    let dot: f64 = (j..n).map(|k| c[i * n + k] * c[j * n + k]).sum();
                    let size = (h[i * n + i] * h[j * n + j]).sqrt();
                    assert!((dot - h[i * n + j]).abs() < 2e-6 * size, "n {n} at {i},{j}: {dot}");
                }
            }
        }
    }
}

#[test]
fn factorising_leaves_the_gram_in_place() {
    let n = 301;
    let gram = gram(5, n, &[]);
    let factor = factor(&gram, n, 0.01);
    for i in 0..n {
        assert_eq!(factor.diagonal()[i], f64::from(gram[i * n + i] as f32));
        for j in i + 1..n {
            assert_eq!(factor.square()[i * stride(n) + j], gram[i * n + j] as f32, "{i},{j}");
        }
    }
}

#[test]
fn a_pivot_that_fails_in_f32_is_tried_in_f64() {
    // Two features equal but for 1e-4 of one: an eigenvalue of 5e-9 that f32 cannot see beside 2.
    let e = 1e-4f64;
    let gram = [1.0, 1.0, 1.0, 1.0 + e * e];
    let mut rounded = upper::<f64>(&gram, 2);
    let factor = Factor::new(2, rounded.clone(), 1e-12).unwrap();
    assert_eq!(factor.damping_used(), 1e-12);
    assert!((f64::from(factor.c(1, 1)) - gram[3].sqrt()).abs() < 1e-6);
    // As f32 values the matrix is singular; the damping is below f32's reach but not below f64's.
    rounded.iter_mut().for_each(|x| *x = f64::from(*x as f32));
    let narrow = Factor::new(2, rounded.iter().map(|x| *x as f32).collect::<Vec<f32>>(), 1e-9).unwrap();
    assert_eq!(narrow.damping_used(), 1e-9);
    assert!((narrow.c(0, 0) - 2e-9f32.sqrt()).abs() < 1e-7, "{}", narrow.c(0, 0));
}

#[test]
fn what_f32_rounds_away_is_there_when_the_gram_is_tried_again_in_f64() {
    // Two features equal but for 1e-5 of one: as f32 values the matrix is singular, in f64 it has an eigenvalue of 5e-11.
    let e = 1e-5f64;
    let gram = [1.0, 1.0, 1.0, 1.0 + e * e];
    let narrow = || upper::<f32>(&gram, 2);
    let factor = Factor::with_precise(2, narrow(), 0.0, &|| upper::<f64>(&gram, 2)).unwrap();
    assert_eq!(factor.damping_used(), 0.0);
    assert!((f64::from(factor.c(0, 0)) - e).abs() < 1e-3 * e, "{}", factor.c(0, 0));
    // From the f32 numbers alone nothing but damping helps.
    assert!(Factor::new(2, narrow(), 0.0).unwrap().damping_used() > 0.0);
    let short = Factor::with_precise(2, narrow(), 0.0, &|| vec![1.0]);
    assert_eq!(short.unwrap_err(), SolveError::Size { rows: 2, columns: 16, found: 1 });
}

#[test]
fn damping_is_raised_tenfold_until_it_helps() {
    // No Gram has an eigenvalue of -0.02 or -0.1, but sums that were rounded can. The mean of the diagonal is 0.5.
    for (beside, damping, used) in
        [(0.52, 0.01, 0.1), (0.52, 0.05, 0.05), (0.6, 0.01, 1.0), (0.6, 0.05, 0.5), (0.6, 0.0, 1.0)]
    {
        let factor = factor(&[0.5, beside, beside, 0.5], 2, damping);
        assert!(
            (factor.damping_used() - used).abs() < 1e-12,
            "{beside}, {damping}: {}",
            factor.damping_used()
        );
    }
    let hopeless = upper::<f32>(&[0.5, 2.0, 2.0, 0.5], 2);
    assert_eq!(Factor::new(2, hopeless, 0.01).unwrap_err(), SolveError::NotPositive { damping: 1.0 });
}

#[test]
fn a_gram_that_is_not_finite_is_refused() {
    for at in [(0, 0), (0, 2), (1, 1), (1, 2), (2, 2)] {
        for bad in [f64::NAN, f64::INFINITY] {
            let mut gram = gram(1, 3, &[]);
            gram[at.0 * 3 + at.1] = bad;
            assert_eq!(Factor::new(3, upper::<f32>(&gram, 3), 0.01).unwrap_err(), SolveError::GramNotFinite);
            assert_eq!(Factor::new(3, upper::<f64>(&gram, 3), 0.01).unwrap_err(), SolveError::GramNotFinite);
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let n = 4;
    let factor = factor(&gram(1, n, &[]), n, 0.01);
    let half = Target::Unstructured { ratio: 0.5 };
    assert_eq!(
        Obs::default().prune(&mut [1.0; 6], &factor, &half),
        Err(SolveError::Size { rows: 1, columns: 4, found: 6 })
    );
    let mut bad = [1.0, 1.0, 1.0, 1.0, 1.0, f32::NAN, 1.0, 1.0];
    assert_eq!(
        Obs::default().prune(&mut bad, &factor, &half),
        Err(SolveError::WeightNotFinite { row: 1, column: 1 })
    );
    assert_eq!(wanda(&mut bad, &[1.0; 4], &half), Err(SolveError::WeightNotFinite { row: 1, column: 1 }));
    assert_eq!(wanda(&mut [1.0; 2], &[f64::NAN, f64::INFINITY], &half), Err(SolveError::GramNotFinite));
    for target in [
        Target::Unstructured { ratio: 1.5 },
        Target::Unstructured { ratio: f64::NAN },
        Target::NToM { n: 4, m: 4 },
        Target::NToM { n: 0, m: 0 },
        Target::Structured { ratio: Some(0.5) },
    ] {
        assert!(matches!(Obs::default().prune(&mut [1.0; 4], &factor, &target), Err(SolveError::Target(_))));
        assert!(matches!(magnitude(&mut [1.0; 4], 4, &target), Err(SolveError::Target(_))));
    }
    assert_eq!(
        Factor::new(2, vec![1.0f32; 3], 0.1).unwrap_err(),
        SolveError::Size { rows: 2, columns: 16, found: 3 }
    );
    for damping in [-0.1, f64::NAN, f64::INFINITY] {
        assert!(matches!(Factor::new(1, vec![1.0f32; 16], damping), Err(SolveError::Damping { .. })));
    }
    assert!(matches!(relative_error(&[1.0; 8], &[1.0; 4], &factor), Err(SolveError::Size { .. })));
}
