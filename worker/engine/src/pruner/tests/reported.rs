//! Reports of solved slices.

use candle_core::safetensors::save;
use obsdiff_proto::message::Slice;

use super::*;

/// Observations of a few tokens, whose features are alike, summed with so many binary digits.
fn gram(n: usize, tokens: usize, exponent: i32) -> Gram {
    let mut rows = noise(5, tokens * n);
    for row in rows.chunks_mut(n) {
        (1..n).for_each(|j| row[j] = 0.8 * row[j - 1] + 0.6 * row[j]);
    }
    let mut gram = Gram::new(n, Accumulate::Exact, exponent);
    gram.observe(&rows, 1.0).unwrap();
    gram
}

impl Case {
    /// Prunes the first linear by a Gram.
    fn solve(&mut self, gram: Gram) -> Result<SolvedSlice> {
        let slice = Slice { linear: LinearId(0), rows: 0..self.shape().0 };
        let mut solved = None;
        self.pruner.solve(&self.package, &[slice], Some(&gram.into()), &mut |slice| {
            solved = Some(slice);
            Ok(())
        })?;
        Ok(solved.unwrap())
    }

    /// Puts a checkpoint in place of its own that has only the first linear's weight, of these numbers in this type.
    fn store(&mut self, values: &[f32], dtype: DType) {
        let name = format!("{}.weight", self.pruner.model().inventory().linear(LinearId(0)).name);
        let weight = Tensor::from_slice(values, self.shape(), &crate::HOST).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weight.safetensors");
        save(&[(name, weight.to_dtype(dtype).unwrap())].into(), &path).unwrap();
        self.pruner.weights = Arc::new(Weights::open_file(&path).unwrap());
    }

    fn noise(&self, largest: f32) -> Vec<f32> {
        let (rows, n) = self.shape();
        noise(6, rows * n).into_iter().map(|w| w * largest).collect()
    }
}

fn zeros(weight: &[f32]) -> u64 {
    weight.iter().filter(|w| **w == 0.0).count() as u64
}

/// tr(X S X^T) by definition.
fn energy(x: &[f64], gram: &Gram) -> f64 {
    let n = gram.width();
    let upper: Vec<f64> = gram.to_upper(n);
    let row = |x: &[f64]| {
        let at = |(k, s): (usize, &f64)| {
            let (i, j) = (k / n, k % n);
            if j < i { 0.0 } else { x[i] * x[j] * s * if i == j { 1.0 } else { 2.0 } }
        };
        upper.iter().enumerate().map(at).sum::<f64>()
    };
    x.chunks(n).map(row).sum()
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap()
}

/// Every way to solve a slice to a ratio: a site at a time, by a factor, refined afterwards, and by scores, which move no weight.
fn ways(ratio: f64) -> [Value; 4] {
    [("admm", 5), ("obs", 0), ("obs", 5), ("wanda", 0)].map(|(method, refine)| {
        json!({ "pattern": "unstructured", "ratio": ratio, "method": method, "refine": refine })
    })
}

#[test]
fn a_report_describes_the_numbers_that_are_stored() {
    for way in ways(0.05) {
        let mut case = Case::new(way.clone(), json!({}));
        case.store(&case.noise(0.1), DType::BF16);
        let n = case.shape().1;
        let gram = gram(n, 2 * n, 30);
        let solved = case.solve(gram.clone()).unwrap();
        let dense =
            numbers(&Tensor::new(case.noise(0.1), &crate::HOST).unwrap().to_dtype(DType::BF16).unwrap());
        let error = |after: &[f32]| {
            let change: Vec<f64> = after.iter().zip(&dense).map(|(a, b)| f64::from(a - b)).collect();
            let dense: Vec<f64> = dense.iter().copied().map(f64::from).collect();
            energy(&change, &gram) / energy(&dense, &gram)
        };
        let stored = error(&numbers(&solved.weight.to_dtype(DType::BF16).unwrap()));
        let in_f32 = error(&numbers(&solved.weight));
        let reported = solved.report.relative_error.unwrap();
        assert!((reported / stored - 1.0).abs() < 1e-3, "{way}: {reported}, but {stored} is stored");
        let moved = way["method"] != "wanda";
        assert_eq!(
            (in_f32 / stored - 1.0).abs() > 5e-3,
            moved,
            "{way}: {in_f32} before rounding, {stored} after"
        );
        assert_eq!(solved.energy.unwrap().relative(), reported, "{way}");
    }
}

#[test]
fn weights_that_are_rounded_to_zero_count_as_zeros() {
    // Some of the smallest numbers go and some stay, of which what went moves a few to less than half of one.
    for way in ways(0.2).into_iter().filter(|way| way["method"] != "wanda") {
        let mut case = Case::new(way.clone(), json!({}));
        // A few units of the smallest numbers of f16.
        case.store(&case.noise(2e-7), DType::F16);
        let n = case.shape().1;
        let solved = case.solve(gram(n, 2 * n, 30)).unwrap();
        let stored = zeros(&numbers(&solved.weight.to_dtype(DType::F16).unwrap()));
        assert_eq!(solved.report.zeros, stored, "{way}");
        assert!(zeros(&numbers(&solved.weight)) < stored, "{way}");
    }
}

#[test]
fn a_weight_that_leaves_the_range_of_its_type_is_no_result() {
    for way in ways(0.5).into_iter().filter(|way| way["method"] != "wanda") {
        for (dtype, fits) in [(DType::F16, false), (DType::BF16, true)] {
            let mut case = Case::new(way.clone(), json!({}));
            let (rows, n) = case.shape();
            // What goes is moved to its neighbours, which see nearly the same.
            case.store(&vec![65_000.0; rows * n], dtype);
            let solved = case.solve(gram(n, 2 * n, 30));
            assert_eq!(solved.is_ok(), fits, "{way}");
            let Err(error) = solved else { continue };
            assert!(
                error.to_string().ends_with("leaves the range of F16, the type it is stored in"),
                "{error}"
            );
        }
    }
}

#[test]
fn damping_that_was_raised_is_reported_and_refines() {
    for refine in [0, 5] {
        let solved = |damping: f64| {
            let sparsity =
                json!({ "pattern": "unstructured", "ratio": 0.5, "method": "obs", "refine": refine });
            let mut case = Case::new(sparsity, json!({ "damping": damping, "mask_damping": damping }));
            // Of so few tokens, with so few digits, this is not positive.
            let solved = case.solve(gram(case.shape().1, 5, 20)).unwrap();
            (solved.report.damping, numbers(&solved.weight).into_iter().map(f32::to_bits).collect::<Vec<_>>())
        };
        let (damping, weight) = solved(1e-12);
        assert_eq!(damping, Some(1e-4), "{refine} steps");
        // What is raised to is what a job may ask for.
        assert!(weight == solved(1e-4).1, "{refine} steps");
    }
}
