//! Golden linears: what the published OBS-Diff code, or the oracle of alternating directions, made of them.

use obsdiff_engine::gram::Gram;
use obsdiff_engine::solve::stride;
use obsdiff_proto::{Accumulate, Target};
use obsdiff_tests::goldens;
use safetensors::SafeTensors;

/// A linear, the observations that reach it, and what pruning it by them gave.
pub(crate) struct LinearGolden {
    pub(crate) weight: Vec<f32>,
    pub(crate) inputs: Vec<f32>,
    pub(crate) tokens: usize,
    pub(crate) alpha: Vec<f32>,
    pub(crate) hessian: Vec<f32>,
    pub(crate) n: usize,
    pub(crate) target: Target,
    pub(crate) pruned: Vec<f32>,
}

/// What the oracle of alternating directions and refinement made of a golden linear.
pub(crate) struct Oracle {
    pub(crate) pruned: Vec<f32>,
    /// Its relative output error, and that of the published code.
    pub(crate) loss: f64,
    pub(crate) published: f64,
}

/// Those that alternating directions have an oracle of.
pub(crate) const OF_ORACLE: [&str; 5] = [
    "unstructured-50-96x128",
    "unstructured-30-72x320",
    "unstructured-70-64x200-dead5",
    "nm-2-4-96x256",
    "nm-4-8-64x192",
];

/// How many more weights may differ where the published code prunes one more of each block: besides that weight, its error may turn a few
/// later choices of its row.
pub(crate) const KNOCK_ON: [(&str, f64); 2] =
    [("unstructured-50-96x128", 0.0), ("unstructured-30-72x320", 4.0)];

fn read(name: &str) -> Vec<u8> {
    std::fs::read(goldens().join(format!("solver/{name}.safetensors"))).unwrap()
}

pub(crate) fn oracle(name: &str) -> Oracle {
    let bytes = read(&format!("admm-{name}"));
    let oracle = SafeTensors::deserialize(&bytes).unwrap();
    let loss = |key: &str| f64::from_le_bytes(oracle.tensor(key).unwrap().data().try_into().unwrap());
    let pruned = oracle.tensor("pruned").unwrap();
    let pruned = pruned.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    Oracle { pruned, loss: loss("loss"), published: loss("loss_published") }
}

pub(crate) fn golden(name: &str) -> LinearGolden {
    let bytes = read(name);
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let floats = |key: &str| -> Vec<f32> {
        let data = file.tensor(key).unwrap();
        data.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let nm = file.tensor("nm").unwrap();
    let nm: Vec<i64> = nm.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
    let target = match nm[1] {
        0 => Target::Unstructured { ratio: decimal(floats("sparsity")[0]) },
        m => Target::NToM { n: nm[0] as usize, m: m as usize },
    };
    LinearGolden {
        weight: floats("weight"),
        inputs: floats("inputs"),
        tokens: file.tensor("inputs").unwrap().shape()[1],
        alpha: floats("alpha"),
        hessian: floats("hessian"),
        n: file.tensor("hessian").unwrap().shape()[0],
        target,
        pruned: floats("pruned"),
    }
}

/// The short decimal that was rounded to this f32, such as 0.7.
fn decimal(x: f32) -> f64 {
    x.to_string().parse().unwrap()
}

/// How a pruned weight compares with the published one.
pub(crate) struct Agreement {
    /// Share of the weights that are zero in both or in neither.
    pub(crate) zeros: f64,
    /// Share of the rows of which all zeros agree.
    pub(crate) rows: f64,
    /// Relative L2 distance over those rows: a zero more moves everything to its right.
    pub(crate) distance: f64,
}

pub(crate) fn agreement(found: &[f32], wanted: &[f32], n: usize) -> Agreement {
    let same = |(f, w): &(&f32, &f32)| (**f == 0.0) == (**w == 0.0);
    let zeros = found.iter().zip(wanted).filter(same).count() as f64 / found.len() as f64;
    let rows =
        || found.chunks(n).zip(wanted.chunks(n)).filter(|(f, w)| f.iter().zip(*w).all(|pair| same(&pair)));
    let pairs = || rows().flat_map(|(f, w)| f.iter().zip(w)).map(|(f, w)| (f64::from(*f), f64::from(*w)));
    let error: f64 = pairs().map(|(f, w)| (f - w).powi(2)).sum();
    let size: f64 = pairs().map(|(_, w)| w * w).sum();
    Agreement {
        zeros,
        rows: rows().count() as f64 * n as f64 / found.len() as f64,
        distance: (error / size).sqrt(),
    }
}

pub(crate) fn gathered(golden: &LinearGolden, accumulate: Accumulate) -> Vec<f32> {
    let mut gram = Gram::new(golden.n, accumulate, 20);
    for (rows, alpha) in golden.inputs.chunks(golden.tokens * golden.n).zip(&golden.alpha) {
        gram.observe(rows, f64::from(*alpha)).unwrap();
    }
    gram.to_upper(stride(golden.n))
}

pub(crate) fn given<T: Copy + Default + From<f32>>(golden: &LinearGolden) -> Vec<T> {
    let (n, row) = (golden.n, stride(golden.n));
    let mut square = vec![T::default(); n * row];
    for (i, values) in golden.hessian.chunks(n).enumerate() {
        for j in i..n {
            square[i * row + j] = values[j].into();
        }
    }
    square
}

/// tr(dW S dW^T) / tr(W S W^T) in f64, by the whole Hessian S.
pub(crate) fn error(after: &[f32], golden: &LinearGolden) -> f64 {
    let n = golden.n;
    let energy = |of: &dyn Fn(usize) -> f64| -> f64 {
        let row = |r: usize| -> f64 {
            let v: Vec<f64> = (0..n).map(|j| of(r * n + j)).collect();
            (0..n * n).map(|at| v[at / n] * f64::from(golden.hessian[at]) * v[at % n]).sum()
        };
        (0..golden.weight.len() / n).map(row).sum()
    };
    let change = |at: usize| f64::from(after[at]) - f64::from(golden.weight[at]);
    energy(&change) / energy(&|at| f64::from(golden.weight[at]))
}
