use super::*;

/// Holds an answer to the definition's.
pub(super) fn same(
    name: &str,
    steps: &[Removal],
    weights: &[Vec<f64>],
    (order, errors, expected): (Vec<usize>, Vec<f64>, Vec<Vec<f64>>),
) {
    assert_eq!(steps.iter().map(|s| s.part).collect::<Vec<_>>(), order, "{name}");
    for (step, error) in steps.iter().zip(errors) {
        assert!((step.error - error).abs() <= 1e-6 * error, "{name}: {step:?}, {error}");
    }
    for (found, wanted) in weights.iter().zip(&expected) {
        assert!(apart(found, wanted) < 1e-6, "{name}: {}", apart(found, wanted));
    }
}

#[test]
fn neurons_are_the_definitions_past_many_delays() {
    let case = Case::random(3, 40, 230, &[]);
    let mut layer = case.layer();
    let steps = neurons(&mut layer, Columns::all(230, 1), 215, Score::Exact).unwrap();
    same("neurons", &steps, &[layer.weight().to_vec()], plain(&[case], 1, 215));
}

#[test]
fn heads_of_two_streams_are_the_definitions() {
    let cases = [Case::random(5, 30, 96, &[]), Case::random(7, 50, 96, &[])];
    let mut layers = cases.each_ref().map(Case::layer).to_vec();
    let steps = heads(&mut layers, &[Columns::all(96, 12); 2], 7, Score::Exact).unwrap();
    let weights: Vec<_> = layers.iter().map(|layer| layer.weight().to_vec()).collect();
    same("heads", &steps, &weights, plain(&cases, 12, 7));
}

/// As in a block whose attention and feed-forward network are read by one linear.
#[test]
fn heads_then_neurons_of_one_linear_are_the_definitions() {
    let case = Case::random(31, 40, 180, &[100]);
    let at = |offset, size, count| Columns { offset, size, count };
    for (of_heads, of_neurons) in [(at(0, 12, 6), at(72, 1, 108)), (at(108, 12, 6), at(0, 1, 108))] {
        let mut layers = [case.layer()];
        let mut plain = Plain::new(std::slice::from_ref(&case));
        let removed = heads(&mut layers, &[of_heads], 2, Score::Exact).unwrap();
        let (order, errors) = plain.remove(of_heads, 2);
        let [mut layer] = layers;
        same("heads", &removed, &[layer.weight().to_vec()], (order, errors, plain.weights.clone()));
        let steps = neurons(&mut layer, of_neurons, 104, Score::Exact).unwrap();
        let (order, errors) = plain.remove(of_neurons, 104);
        same("neurons", &steps, &[layer.weight().to_vec()], (order, errors, plain.weights));
        let gone = removed.iter().flat_map(|step| of_heads.of(step.part));
        let gone = gone.chain(steps.iter().flat_map(|step| of_neurons.of(step.part)));
        let mut gone: Vec<usize> = gone.collect();
        gone.sort_unstable();
        let zero = |j: &usize| layer.weight().iter().skip(*j).step_by(180).all(|w| *w == 0.0);
        assert_eq!((0..180).filter(|j| *j != 100).filter(zero).collect::<Vec<_>>(), {
            gone.retain(|j| *j != 100);
            gone
        });
    }
}

#[test]
fn neurons_that_lie_behind_others_go_in_the_published_chunks_too() {
    let case = Case::random(37, 20, 90, &[]);
    let columns = Columns { offset: 30, size: 1, count: 60 };
    let mut layer = case.layer();
    let steps = neurons(&mut layer, columns, 40, Score::Published).unwrap();
    assert!(steps.len() == 40 && steps.iter().all(|step| step.part < 60));
    // One chunk: the forty lowest scores go at once.
    let mut expected = case.layer();
    let mut parts: Vec<usize> = steps.iter().map(|step| step.part + 30).collect();
    parts.sort_unstable();
    expected.remove(&parts).unwrap();
    assert_eq!(layer.weight(), expected.weight());
    let scores = |layer: &StructuredLinear, j: usize| layer.column_scores().unwrap()[j];
    let dense = case.layer();
    let highest = parts.iter().map(|j| scores(&dense, *j)).fold(0.0, f64::max);
    assert!((30..90).filter(|j| !parts.contains(j)).all(|j| scores(&dense, j) >= highest));
}

#[test]
fn errors_add_up_to_the_damped_energy_of_the_change() {
    let case = Case::random(11, 24, 120, &[]);
    let h = damped(&case.gram, 120, 0.01);
    for (score, count) in [(Score::Exact, 50), (Score::Published, 100)] {
        let mut layer = case.layer();
        let steps = neurons(&mut layer, Columns::all(120, 1), count, score).unwrap();
        let change: Vec<f64> = layer.weight().iter().zip(&case.weight).map(|(a, b)| a - b).collect();
        let wanted = layer::energy(&change, &h, 120) / layer.energy();
        let found: f64 = steps.iter().map(|s| s.error).sum();
        assert!((found - wanted).abs() < 1e-9 * wanted, "{score:?}: {found} {wanted}");
        let gone = columns(&steps, 1);
        assert_eq!(gone.len(), count);
        let zero = |j: &usize| layer.weight().iter().skip(*j).step_by(120).all(|w| *w == 0.0);
        assert_eq!((0..120).filter(zero).collect::<Vec<_>>(), gone);
    }
}

#[test]
fn dead_columns_go_first_and_disturb_nothing() {
    let case = Case::random(13, 20, 60, &[4, 59]);
    let mut layer = case.layer();
    let steps = neurons(&mut layer, Columns::all(60, 1), 10, Score::Exact).unwrap();
    assert_eq!(steps[..2].iter().map(|s| (s.part, s.error)).collect::<Vec<_>>(), [(4, 0.0), (59, 0.0)]);
    same("dead", &steps, &[layer.weight().to_vec()], plain(&[case], 1, 10));
}

#[test]
fn threads_do_not_change_a_bit() {
    let case = Case::random(17, 150, 300, &[]);
    let work = || {
        let mut one = case.layer();
        let mut steps = neurons(&mut one, Columns::all(300, 1), 130, Score::Exact).unwrap();
        let mut two = [case.layer(), case.layer()];
        steps.extend(heads(&mut two, &[Columns::all(300, 20); 2], 4, Score::Exact).unwrap());
        let bits = |layer: &StructuredLinear| layer.weight().iter().map(|w| w.to_bits()).collect::<Vec<_>>();
        (steps.iter().map(|s| (s.part, s.error.to_bits())).collect::<Vec<_>>(), bits(&one), bits(&two[1]))
    };
    let on = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work);
    assert!(on(1) == on(2));
}

#[test]
fn all_but_nothing_can_go() {
    let case = Case::random(19, 5, 12, &[]);
    let mut layer = case.layer();
    assert_eq!(neurons(&mut layer, Columns::all(12, 1), 0, Score::Exact).unwrap(), []);
    assert_eq!(layer.weight(), case.weight);
    assert_eq!(neurons(&mut layer, Columns::all(12, 1), 12, Score::Exact).unwrap().len(), 12);
    assert!(layer.weight().iter().all(|w| *w == 0.0));
    let mut streams = [case.layer()];
    assert_eq!(heads(&mut streams, &[Columns::all(12, 4)], 3, Score::Published).unwrap().len(), 3);
    assert!(streams[0].weight().iter().all(|w| *w == 0.0));
}

#[test]
fn what_does_not_fit_is_refused() {
    use super::super::super::SolveError;
    let case = Case::random(19, 5, 12, &[]);
    let refused = |weight: Vec<f64>, gram: &[f64]| StructuredLinear::new(12, weight, gram, 0.01).unwrap_err();
    let mut bad = case.weight.clone();
    bad[13] = f64::NAN;
    assert_eq!(refused(bad, &case.gram), SolveError::WeightNotFinite { row: 1, column: 1 });
    let mut bad = case.gram.clone();
    bad[7] = f64::INFINITY;
    assert_eq!(refused(case.weight.clone(), &bad), SolveError::GramNotFinite);
    assert!(matches!(refused(case.weight.clone(), &case.gram[1..]), SolveError::Size { .. }));
    assert!(matches!(refused(case.weight[1..].to_vec(), &case.gram), SolveError::Size { .. }));
    let at = |offset, size, count| Columns { offset, size, count };
    let heads = |columns: &[Columns]| heads(&mut [case.layer()], columns, 1, Score::Exact).unwrap_err();
    assert_eq!(heads(&[at(0, 5, 3)]), SolveError::Size { rows: 3, columns: 5, found: 12 });
    assert_eq!(heads(&[at(1, 4, 3)]), SolveError::Size { rows: 3, columns: 4, found: 12 });
    assert_eq!(heads(&[at(0, 0, 3)]), SolveError::Size { rows: 3, columns: 0, found: 12 });
    assert_eq!(heads(&[at(0, usize::MAX, 3)]), SolveError::Size { rows: 3, columns: usize::MAX, found: 12 });
    assert_eq!(heads(&[at(0, 4, 3); 2]), SolveError::Size { rows: 1, columns: 3, found: 2 });
    assert_eq!(heads(&[at(0, 4, 3), at(0, 4, 2)]), SolveError::Size { rows: 3, columns: 4, found: 2 });
    let neurons = |columns| neurons(&mut case.layer(), columns, 1, Score::Exact).unwrap_err();
    assert_eq!(neurons(at(3, 1, 10)), SolveError::Size { rows: 10, columns: 1, found: 12 });
    assert_eq!(neurons(at(0, 2, 6)), SolveError::Size { rows: 6, columns: 2, found: 12 });
}

/// A bias is the weight of a feature that is always 1, neither damped nor removed: solved together, or centred and folded.
#[test]
fn a_folded_bias_is_that_of_the_constant_features_own_column() {
    let (n, rows, tokens) = (9, 4, 200);
    let mut features: Vec<f64> = noise(23, tokens * n).into_iter().map(f64::from).collect();
    for row in features.chunks_mut(n) {
        for j in 1..n {
            row[j] += 0.4 * row[j - 1] + 0.2 * j as f64;
        }
    }
    let alpha = |k: usize| 1.2 - 0.4 * k as f64 / tokens as f64;
    let mut upper = vec![0.0; (n + 1) * (n + 1)];
    for (k, row) in features.chunks(n).enumerate() {
        let row: Vec<f64> = row.iter().copied().chain([1.0]).collect();
        for i in 0..=n {
            for j in i..=n {
                upper[i * (n + 1) + j] += alpha(k) * row[i] * row[j];
            }
        }
    }
    let moments = Moments::new(&upper, n);
    let weight: Vec<f64> = noise(29, rows * n).into_iter().map(f64::from).collect();
    let bias = [0.5, -1.0, 0.0, 2.0];
    let mut layer = StructuredLinear::new(n, weight.clone(), &moments.centred(), 0.01).unwrap();
    let steps = neurons(&mut layer, Columns::all(n, 1), 3, Score::Exact).unwrap();
    let found = folded(&bias, &weight, layer.weight(), moments.means());

    // By hand: H with the constant's row and column, its inverse, and the three columns at once.
    let mass = upper[(n + 1) * (n + 1) - 1];
    let centred = moments.centred();
    let mean: f64 = (0..n).map(|j| centred[j * n + j]).sum::<f64>() / n as f64;
    let mut h = vec![0.0; (n + 1) * (n + 1)];
    for i in 0..=n {
        for j in 0..=n {
            h[i * (n + 1) + j] = upper[i.min(j) * (n + 1) + i.max(j)] / mass;
        }
        h[i * (n + 1) + i] += if i < n { 0.01 * mean } else { 0.0 };
    }
    let inverse = plain_inverse(&h, n + 1);
    let gone = columns(&steps, 1);
    let block: Vec<f64> = gone
        .iter()
        .flat_map(|i| gone.iter().map(move |j| (i, j)))
        .map(|(i, j)| inverse[i * (n + 1) + j])
        .collect();
    let block = plain_inverse(&block, 3);
    for (r, row) in weight.chunks(n).enumerate() {
        let row: Vec<f64> = row.iter().copied().chain([bias[r]]).collect();
        for j in 0..=n {
            let step: f64 = (0..3)
                .map(|b| {
                    let share: f64 = (0..3).map(|a| row[gone[a]] * block[a * 3 + b]).sum();
                    share * inverse[gone[b] * (n + 1) + j]
                })
                .sum();
            let wanted = row[j] - step;
            let ours = if j < n { layer.weight()[r * n + j] } else { found[r] };
            assert!((ours - wanted).abs() < 1e-9, "row {r}, column {j}: {ours} {wanted}");
        }
    }
}

#[test]
fn a_feature_that_never_changes_is_dead_about_its_mean() {
    // Two features: 3 always, and one that changes; then the constant.
    let upper = [45.0, 30.0, 15.0, 0.0, 60.0, 10.0, 0.0, 0.0, 5.0];
    let moments = Moments::new(&upper, 2);
    assert_eq!(moments.means(), [3.0, 2.0]);
    assert_eq!(moments.centred(), [0.0, 0.0, 0.0, 8.0]);
    let mut layer = StructuredLinear::new(2, vec![2.0, 1.0], &moments.centred(), 0.01).unwrap();
    assert_eq!(
        neurons(&mut layer, Columns::all(2, 1), 1, Score::Exact).unwrap(),
        [Removal { part: 0, error: 0.0 }]
    );
    assert_eq!(folded(&[1.0], &[2.0, 1.0], layer.weight(), moments.means()), [7.0]);
}
