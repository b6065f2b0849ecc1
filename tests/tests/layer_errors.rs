//! How far each linear of the shipped pipelines is from its dense output, beside what the same masks reach in plain f64.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::sync::Arc;

use candle_core::{D, DType, Device, Result, Tensor};
use obsdiff_core::{Tokens, plan};
use obsdiff_engine::calibrate::{Encoded, Trajectories};
use obsdiff_engine::gram::Gram;
use obsdiff_engine::pipeline::PipelineFolder;
use obsdiff_engine::pruner::Pruner;
use obsdiff_proto::message::Slice;
use obsdiff_proto::{JobSpec, LinearId, Package, Target};
use serde_json::json;

const PROMPTS: [&str; 4] =
    ["a ring", "two birds on a wire", "a red square above a blue circle", "a small green star"];
const STEPS: u32 = 10;
const TEXT_TOKENS: usize = 24;
const DAMPING: f64 = 0.01;

/// The penalties of the oracle's alternating directions, its rounds by each of them, and its steps on the mask.
const PENALTIES: [f64; 3] = [0.1, 0.3, 1.0];
const ROUNDS: usize = 5;
const REFINED: usize = 5;

/// What errors may be on the whole: this much more than the oracle's.
const MOST: f64 = 1.02;

/// The Gram over its mass, `n x n`.
fn whole(gram: &Gram) -> Result<Tensor> {
    let n = gram.width();
    let upper: Vec<f64> = gram.to_upper(n);
    let at = |i: usize, j: usize| upper[i.min(j) * n + i.max(j)];
    Tensor::from_vec((0..n * n).map(|k| at(k / n, k % n)).collect(), (n, n), &Device::Cpu)
}

/// The inverse of `a + shift I`, which must be positive definite, by elimination without pivots.
fn inverse(a: &Tensor, shift: f64) -> Result<Tensor> {
    let mut rows = a.to_vec2::<f64>()?;
    let n = rows.len();
    for (i, row) in rows.iter_mut().enumerate() {
        row[i] += shift;
        row.extend((0..n).map(|j| if i == j { 1.0 } else { 0.0 }));
    }
    for pivot in 0..n {
        let scale = rows[pivot][pivot].recip();
        rows[pivot].iter_mut().for_each(|x| *x *= scale);
        let own = rows[pivot].clone();
        for (_, row) in rows.iter_mut().enumerate().filter(|(i, _)| *i != pivot) {
            let factor = row[pivot];
            // What lies left of the pivot is zero in its row.
            row[pivot..].iter_mut().zip(&own[pivot..]).for_each(|(x, own)| *x -= factor * own);
        }
    }
    let inverse = rows.into_iter().flat_map(|row| row[n..].to_vec()).collect();
    Tensor::from_vec(inverse, (n, n), &Device::Cpu)
}

/// 1 where a value stays: the largest of the whole, or the M - N largest of each M columns of a row.
fn mask(values: &Tensor, target: Target) -> Result<Tensor> {
    let values = values.abs()?;
    let (groups, pruned): (Vec<Vec<f64>>, usize) = match target {
        Target::Unstructured { ratio } => {
            let all = values.flatten_all()?.to_vec1()?;
            let pruned = (ratio * all.len() as f64) as usize;
            (vec![all], pruned)
        }
        Target::NToM { n, m } => (values.reshape(((), m))?.to_vec2()?, n),
        _ => panic!("masks are of weights"),
    };
    let of_group = |group: Vec<f64>| {
        let mut order: Vec<usize> = (0..group.len()).collect();
        if pruned < order.len() {
            order.select_nth_unstable_by(pruned, |&i, &j| group[i].total_cmp(&group[j]).then(i.cmp(&j)));
        }
        let mut stays = vec![1.0f64; group.len()];
        order[..pruned].iter().for_each(|&i| stays[i] = 0.0);
        stays
    };
    let stays: Vec<f64> = groups.into_iter().flat_map(of_group).collect();
    Tensor::from_vec(stays, values.shape(), &Device::Cpu)
}

/// min tr((V - V0) A (V - V0)^T) over V with so many zeros: alternating directions, then conjugate gradients on the mask, each row with
/// its own step lengths.
fn oracle(v0: &Tensor, a: &Tensor, inverses: &[Tensor], target: Target) -> Result<Tensor> {
    let aimed = v0.matmul(a)?;
    let (mut z, mut u) = (v0.clone(), v0.zeros_like()?);
    let mut stays = v0.ones_like()?;
    let mut before = PENALTIES[0];
    for (&penalty, inverse) in PENALTIES.iter().zip(inverses) {
        u = (u * (before / penalty))?;
        before = penalty;
        for _ in 0..ROUNDS {
            let x = (&aimed + ((&z - &u)? * penalty)?)?.matmul(inverse)?;
            let moved = (x + &u)?;
            stays = mask(&moved, target)?;
            z = (&moved * &stays)?;
            u = (moved - &z)?;
        }
    }
    let (mut v, mut residual) = (z.clone(), ((v0 - &z)?.matmul(a)? * &stays)?);
    let (mut direction, mut square) = (residual.clone(), residual.sqr()?.sum_keepdim(D::Minus1)?);
    for _ in 0..REFINED {
        let along = (direction.matmul(a)? * &stays)?;
        let curvature = ((&direction * &along)?.sum_keepdim(D::Minus1)? + 1e-300)?;
        let step = (&square / curvature)?;
        v = (v + direction.broadcast_mul(&step)?)?;
        residual = (residual - along.broadcast_mul(&step)?)?;
        let next = residual.sqr()?.sum_keepdim(D::Minus1)?;
        direction = (&residual + direction.broadcast_mul(&(&next / (square + 1e-300)?)?)?)?;
        square = next;
    }
    Ok(v)
}

/// tr(X S X^T).
fn energy(x: &Tensor, gram: &Tensor) -> Result<f64> {
    (x.matmul(gram)? * x)?.sum_all()?.to_scalar()
}

/// A job that prunes a pipeline uniformly, calibrated by a few prompts.
fn job(asset: &str, pattern: &str, ratio: f64) -> JobSpec {
    serde_json::from_value(json!({
        "model": { "path": asset },
        "sparsity": { "pattern": pattern, "ratio": ratio, "allocation": "uniform" },
        "packages": { "count": 1 },
        "calibration": { "prompts": "p.txt", "count": PROMPTS.len(), "steps": STEPS, "guidance": 4.0 },
        "output": { "path": "out" }
    }))
    .unwrap()
}

/// Errors of the linears that were pruned in the same way, ours and the oracle's.
#[derive(Default)]
struct Errors {
    found: Vec<f64>,
    wanted: Vec<f64>,
}

/// Prunes every linear of a pipeline in several ways, with its Gram of a few prompts, and compares its error with the oracle's.
fn holds(asset: &str, ways: &[(&str, f64)]) {
    let spec = job(asset, ways[0].0, ways[0].1);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets").join(asset);
    let pipeline = PipelineFolder::open(&path).unwrap();
    let config = pipeline.transformer_config();
    let (inventory, size) = (config.inventory(), pipeline.latent_size(Some(32), Some(32)).unwrap());
    let guidance = pipeline.guidance(spec.calibration.guidance, 1.0).unwrap();
    let encoders = pipeline.text_encoders(TEXT_TOKENS).unwrap();
    let tokens = Tokens {
        image: size.tokens as u64,
        text: encoders.tokens() as u64,
        branches: guidance.branches() as u64,
    };
    let plans =
        ways.iter().map(|(pattern, ratio)| plan(&job(asset, pattern, *ratio), &inventory, tokens).unwrap());
    let plans: Vec<_> = plans.collect();
    assert!(plans.iter().all(|plan| plan.packages.len() == 1));
    let weights = Arc::new(pipeline.transformer_weights().unwrap());
    let model = config.load(&weights, DType::F32).unwrap();
    let dtype = DType::F32;
    let encoded = Encoded::new(&encoders, &PROMPTS, dtype, &std::env::temp_dir(), &mut |_, _| {}).unwrap();
    let schedule = pipeline.schedule(STEPS as usize, size.tokens).unwrap();
    let trajectories = Arc::new(Trajectories::new(schedule, guidance, 0, size, encoded));
    let mut pruner = Pruner::new(&spec, model, Arc::clone(&weights), trajectories);
    let on_passed = &mut |_| Ok(());
    let exponents = pruner.pilot(&plans[0].shards[0], inventory.site_ids(), 1, on_passed).unwrap();
    pruner.open(&plans[0].packages[0], &exponents).unwrap();
    plans[0].shards.iter().for_each(|shard| pruner.calibrate(shard, on_passed).unwrap());

    let mut errors: Vec<Errors> = plans.iter().map(|_| Errors::default()).collect();
    for (site, packed) in pruner.grams().unwrap().clone() {
        let known = Site::new(&packed).unwrap();
        for (plan, errors) in plans.iter().zip(&mut errors) {
            let package = &plan.packages[0];
            for target in package.linears.iter().filter(|target| inventory.linear(target.linear).site == site)
            {
                let dense = pruner.model().weight(target.linear).unwrap().to_dtype(DType::F64).unwrap();
                errors
                    .wanted
                    .push(known.error(&known.pruned(&dense, target.target).unwrap(), &dense).unwrap());
                let name = format!("{}.weight", inventory.linear(target.linear).name);
                let stored = weights.entry(&name).unwrap().dtype();
                let found = own_error(&mut pruner, package, target.linear, (&packed, &known), &dense, stored);
                errors.found.push(found);
            }
        }
    }
    for ((pattern, ratio), Errors { found, wanted }) in ways.iter().zip(errors) {
        assert!(found.len() > 30, "{asset} has {} linears", found.len());
        let mean = |errors: &[f64]| errors.iter().sum::<f64>() / errors.len() as f64;
        let shares: Vec<f64> = found.iter().zip(&wanted).map(|(found, wanted)| found / wanted).collect();
        println!(
            "{asset}, {pattern} at {ratio}: the mean error of {} linears is {:.5}, the oracle's {:.5}; {:.4} of the oracle's on average, \
             at most {:.4}",
            found.len(),
            mean(&found),
            mean(&wanted),
            mean(&shares),
            shares.iter().copied().fold(0.0, f64::max)
        );
        let worst = mean(&shares).max(mean(&found) / mean(&wanted));
        assert!(worst <= MOST, "{asset}, {pattern} at {ratio}: {worst}");
    }
}

/// A site as the oracle prunes by it.
struct Site {
    gram: Tensor,
    /// The square root of the damped Gram's diagonal.
    scale: Tensor,
    /// The damped Gram with a diagonal of ones.
    scaled: Tensor,
    /// Its inverse with each penalty on the diagonal.
    inverses: [Tensor; PENALTIES.len()],
}

impl Site {
    fn new(packed: &Gram) -> Result<Self> {
        let (n, gram) = (packed.width(), whole(packed)?);
        let upper: Vec<f64> = packed.to_upper(n);
        let diagonal: Vec<f64> = (0..n).map(|j| upper[j * n + j]).collect();
        let damping = DAMPING * diagonal.iter().sum::<f64>() / n as f64;
        let scale: Vec<f64> = diagonal.iter().map(|d| (d + damping).sqrt()).collect();
        let scale = Tensor::new(scale, &Device::Cpu)?;
        let damped = (&gram + (Tensor::eye(n, DType::F64, &Device::Cpu)? * damping)?)?;
        let scaled = damped.broadcast_div(&scale)?.broadcast_div(&scale.unsqueeze(1)?)?;
        let inverses = PENALTIES.map(|penalty| inverse(&scaled, penalty).unwrap());
        Ok(Self { gram, scale, scaled, inverses })
    }

    /// What the oracle makes of a weight.
    fn pruned(&self, dense: &Tensor, target: Target) -> Result<Tensor> {
        let v0 = dense.broadcast_mul(&self.scale)?;
        oracle(&v0, &self.scaled, &self.inverses, target)?.broadcast_div(&self.scale)
    }

    /// tr(dW S dW^T) / tr(W S W^T).
    fn error(&self, pruned: &Tensor, dense: &Tensor) -> Result<f64> {
        Ok(energy(&(pruned - dense)?, &self.gram)? / energy(dense, &self.gram)?)
    }
}

/// The error of what the pruner makes of a linear once it is stored in its type; its report says the same.
fn own_error(
    pruner: &mut Pruner,
    package: &Package,
    linear: LinearId,
    (packed, site): (&Arc<Gram>, &Site),
    dense: &Tensor,
    stored: DType,
) -> f64 {
    let slice = Slice { linear, rows: 0..dense.dim(0).unwrap() };
    let mut solved = None;
    let done = &mut |slice| {
        solved = Some(slice);
        Ok(())
    };
    pruner.solve(package, &[slice], Some(&packed.clone().into()), done).unwrap();
    let solved = solved.unwrap();
    let stored = solved.weight.to_dtype(stored).unwrap().to_dtype(DType::F64).unwrap();
    let error = site.error(&stored, dense).unwrap();
    let reported = solved.report.relative_error.unwrap();
    assert!((reported / error - 1.0).abs() < 1e-3, "{}: {reported} and {error}", solved.report.name);
    error
}

#[test]
fn errors_of_linears_are_those_of_the_oracle() {
    for asset in ["shapes-sd3", "shapes-flux"] {
        holds(asset, &[("unstructured", 0.5), ("unstructured", 0.7), ("2:4", 0.5)]);
    }
}
