use proptest::prelude::*;

use super::*;

#[test]
fn exactly_the_share_of_each_block_goes() {
    for n in [5, 128, 200, 300] {
        let gram = gram(3, n, &[]);
        let factor = factor(&gram, n, 0.01);
        let rows = 67;
        let weight = noise(5, rows * n);
        for ratio in [0.0, 0.001, 0.3, 0.5, 0.999, 1.0] {
            let target = Target::Unstructured { ratio };
            let mut small = weight.clone();
            magnitude(&mut small, n, &target).unwrap();
            for after in [pruned(&weight, &factor, target), small] {
                for start in (0..n).step_by(BLOCK) {
                    let end = n.min(start + BLOCK);
                    let gone: usize = after.chunks(n).map(|row| zeros(&row[start..end])).sum();
                    assert_eq!(
                        gone,
                        (ratio * (rows * (end - start)) as f64) as usize,
                        "n {n}, ratio {ratio}"
                    );
                }
            }
            let mut by_row = weight.clone();
            wanda(&mut by_row, factor.diagonal(), &target).unwrap();
            by_row.chunks(n).for_each(|row| assert_eq!(zeros(row), (ratio * n as f64) as usize));
        }
    }
}

#[test]
fn exactly_n_of_every_m_go() {
    let n = 203;
    let gram = gram(3, n, &[]);
    let factor = factor(&gram, n, 0.01);
    let weight = noise(6, 66 * n);
    for (k, m) in [(2, 4), (0, 4), (4, 8), (3, 7), (1, 100), (150, 200), (5, 999)] {
        let target = Target::NToM { n: k, m };
        let (mut small, mut normed) = (weight.clone(), weight.clone());
        magnitude(&mut small, n, &target).unwrap();
        wanda(&mut normed, factor.diagonal(), &target).unwrap();
        for after in [pruned(&weight, &factor, target), small, normed] {
            for group in after.chunks(n).flat_map(|row| row.chunks(m)) {
                assert_eq!(zeros(group), k * group.len() / m, "{k}:{m}");
            }
        }
    }
}

#[test]
fn at_ratio_0_nothing_changes_and_at_1_all_goes() {
    let n = 140;
    let factor = factor(&gram(3, n, &[2, 139]), n, 0.01);
    let weight = noise(6, 5 * n);
    // The second one is less than one weight.
    for ratio in [0.0, 0.001] {
        assert_eq!(pruned(&weight, &factor, Target::Unstructured { ratio }), weight);
    }
    assert_eq!(pruned(&weight, &factor, Target::NToM { n: 0, m: 4 }), weight);
    assert!(pruned(&weight, &factor, Target::Unstructured { ratio: 1.0 }).iter().all(|w| w.to_bits() == 0));
}

#[test]
fn weights_of_equal_score_go_by_column_then_row() {
    // The identity treats all weights the same, so that nothing but the order decides.
    let (n, rows) = (6, 70);
    let identity: Vec<f64> = (0..n * n).map(|at| if at / n == at % n { 1.0 } else { 0.0 }).collect();
    let factor = factor(&identity, n, 0.01);
    let weight = vec![1.0; n * rows];
    let mut small = weight.clone();
    let target = Target::Unstructured { ratio: 0.4 };
    magnitude(&mut small, n, &target).unwrap();
    for after in [pruned(&weight, &factor, target), small] {
        for (at, w) in after.iter().enumerate() {
            let place = at % n * rows + at / n;
            assert_eq!(*w == 0.0, place < 168, "row {}, column {}", at / n, at % n);
        }
    }
    for row in pruned(&weight, &factor, Target::NToM { n: 1, m: 3 }).chunks(3) {
        assert!(row[0] == 0.0 && row[1] == 1.0 && row[2] == 1.0, "{row:?}");
    }
}

#[test]
fn dead_columns_go_and_count_as_gone() {
    let (n, rows, dead) = (160, 40, [0, 5, 130, 159]);
    let gram = gram(3, n, &dead);
    let factor = factor(&gram, n, 0.01);
    assert_eq!(factor.dead().collect::<Vec<_>>(), dead);
    let weight = noise(6, rows * n);
    for (ratio, expected) in [(0.001, 4 * rows), (0.5, rows * n / 2)] {
        let after = pruned(&weight, &factor, Target::Unstructured { ratio });
        assert!(after.chunks(n).all(|row| dead.iter().all(|&j| row[j] == 0.0)));
        assert_eq!(zeros(&after), expected);
    }
    // The columns that live are pruned as if the dead were not there.
    let live: Vec<usize> = (0..n).filter(|j| !dead.contains(j)).collect();
    let narrow: Vec<f64> =
        live.iter().flat_map(|&i| live.iter().map(move |&j| (i, j))).map(|(i, j)| gram[i * n + j]).collect();
    let narrow = Factor::new(live.len(), upper::<f32>(&narrow, live.len()), 0.01).unwrap();
    let (wide_c, narrow_c) = (dense_c(&factor), dense_c(&narrow));
    for (a, &i) in live.iter().enumerate() {
        for (b, &j) in live.iter().enumerate() {
            assert!((wide_c[i * n + j] - narrow_c[a * live.len() + b]).abs() < 1e-4);
        }
    }
}

#[test]
fn a_gram_of_zeros_makes_all_weights_zero() {
    let factor = factor(&[0.0; 9], 3, 0.0);
    assert_eq!(pruned(&[1.0; 6], &factor, Target::Unstructured { ratio: 0.2 }), [0.0; 6]);
    assert_eq!(relative_error(&[1.0; 6], &[0.0; 6], &factor), Ok(0.0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_shape_is_pruned_to_its_count(
        n in 1usize..150,
        rows in 1usize..80,
        ratio in 0.0f64..=1.0,
        m in 1usize..12,
        seed in 1u64..1000,
    ) {
        let factor = factor(&gram(seed, n, &[]), n, 0.01);
        let weight = noise(seed + 1, rows * n);
        let after = pruned(&weight, &factor, Target::Unstructured { ratio });
        let expected: usize =
            (0..n).step_by(BLOCK).map(|s| (ratio * (rows * BLOCK.min(n - s)) as f64) as usize).sum();
        prop_assert_eq!(zeros(&after), expected);
        prop_assert!(after.iter().all(|w| w.is_finite()));
        let after = pruned(&weight, &factor, Target::NToM { n: m / 2, m });
        for group in after.chunks(n).flat_map(|row| row.chunks(m)) {
            prop_assert_eq!(zeros(group), m / 2 * group.len() / m);
        }
        prop_assert!(relative_error(&weight, &after, &factor).unwrap() <= 1.0 + 1e-3);
    }
}
