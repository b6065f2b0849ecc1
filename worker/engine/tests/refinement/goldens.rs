//! On the weights and Hessians that the published code pruned.

use obsdiff_engine::solve::stride;
use obsdiff_proto::{Method, Target};
use safetensors::SafeTensors;

use super::assets;
use super::optimum::Problem;

const GOLDENS: [&str; 5] = [
    "unstructured-50-96x128",
    "unstructured-30-72x320",
    "unstructured-70-64x200-dead5",
    "nm-2-4-96x256",
    "nm-4-8-64x192",
];

/// A golden's weight, its Hessian and what it was pruned to.
fn golden(name: &str) -> (Vec<f32>, Problem, Target) {
    let bytes = std::fs::read(assets("goldens/solver").join(format!("{name}.safetensors"))).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let floats = |key: &str| -> Vec<f32> {
        let tensor = file.tensor(key).unwrap();
        tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let n = file.tensor("hessian").unwrap().shape()[0];
    let mut upper = vec![0.0; n * stride(n)];
    for (to, from) in upper.chunks_mut(stride(n)).zip(floats("hessian").chunks(n)) {
        to[..n].copy_from_slice(from);
    }
    let target = match name.strip_prefix("nm-") {
        Some(pattern) => {
            let mut numbers = pattern.split('-').take(2).map(|number| number.parse().unwrap());
            Target::NToM { n: numbers.next().unwrap(), m: numbers.next().unwrap() }
        }
        None => Target::Unstructured { ratio: f64::from(floats("sparsity")[0]) },
    };
    (floats("weight"), Problem::new(n, upper), target)
}

#[test]
fn five_steps_come_within_three_per_cent_of_the_optimum() {
    for name in GOLDENS {
        let (weight, problem, target) = golden(name);
        let errors = problem.errors(&weight, Method::Obs, target, 5);
        let (before, after) = (errors.pruned / errors.optimum, errors.refined / errors.optimum);
        println!("{name}: OBS at {before:.3} of the optimum's error, refined at {after:.4}");
        assert!(errors.optimum > 0.0 && after >= 1.0 - 1e-4, "{name}: below the optimum, {errors:?}");
        assert!(before > 1.2, "{name}: OBS was at the optimum already, {errors:?}");
        assert!(after <= 1.03, "{name}: {after} of the optimum");
    }
}

#[test]
fn masks_of_other_methods_are_refined_too() {
    for name in GOLDENS {
        let (weight, problem, target) = golden(name);
        for method in [Method::Wanda, Method::Magnitude] {
            let errors = problem.errors(&weight, method, target, 5);
            let after = errors.refined / errors.optimum;
            println!("{name}, {method:?}: {:.3}, refined at {after:.4}", errors.pruned / errors.optimum);
            assert!(after <= 1.1, "{name}, {method:?}: {after} of the optimum");
            assert!(errors.pruned > 1.2 * errors.optimum, "{name}, {method:?}: {errors:?}");
        }
    }
}

#[test]
fn no_step_changes_nothing() {
    let (weight, problem, target) = golden("nm-2-4-96x256");
    let errors = problem.errors(&weight, Method::Obs, target, 0);
    assert_eq!(errors.refined, errors.pruned);
}
