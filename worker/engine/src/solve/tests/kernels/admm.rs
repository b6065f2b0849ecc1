use faer::Accum;
use obsdiff_proto::{Effort, Target};

use super::*;
use crate::solve::obs::share;
use crate::solve::product::multiply;
use crate::solve::shifted::shifted_inverse;
use crate::solve::tests::{gram, upper};
use crate::solve::{Admm, ScaledHessian};

/// What the kernels keep between two products.
struct Alternation<'a> {
    n: usize,
    scale: &'a [f32],
    target: Target,
    /// X + U, or V0 + U.
    weight: Vec<f32>,
    dense: Vec<f32>,
    change: Vec<f32>,
    runs: usize,
}

impl Alternation<'_> {
    fn rows(&self) -> usize {
        self.weight.len() / self.n
    }

    /// Runs launches in another order each time.
    fn run(&mut self, device: &Device) -> crate::cuda::shim::Memory {
        self.runs += 1;
        device.run(SEEDS[self.runs % SEEDS.len()])
    }

    fn begin(&mut self, dead: &[usize]) {
        let mut device = Device::default();
        let mut is_dead = vec![0u8; self.n];
        dead.iter().for_each(|j| is_dead[*j] = 1);
        let [weight, scale] = [&self.weight[..], self.scale].map(|values| device.buffer(values));
        let (dead, dense) = (device.buffer(&is_dead), device.buffer(&self.dense));
        let arguments = arguments![weight, self.rows(), self.n, scale, dead, dense];
        device.launch("scale_weight", over(self.n), arguments);
        let memory = self.run(&device);
        (self.weight, self.dense) = (memory.values(weight), memory.values(dense));
    }

    /// Launches what finds the mask of `weight`, and a kernel that acts by it.
    fn by_mask(&self, device: &mut Device, weight: Buffer, kernel: &str, arguments: &[Argument]) {
        let (rows, n) = (self.rows(), self.n);
        let (mask, kernel) = match self.target {
            Target::NToM { n: pruned, m } => {
                let mask = device.buffer(&vec![7u8; rows * n]);
                device.launch("mask_n_to_m", over(n), arguments![weight, rows, n, pruned, m, mask]);
                (mask, format!("{kernel}_masked"))
            }
            Target::Unstructured { ratio } => {
                let rank = share(ratio, rows * n);
                let sizes = MatrixSizes { rows, columns: n, stride: n };
                (select(device, weight, sizes, Argument::None, rank), format!("{kernel}_lowest"))
            }
            Target::Structured { .. } => unreachable!("heads and neurons have no mask of weights"),
        };
        device.launch(&kernel, over(n), &[arguments, &[mask.into()]].concat());
    }

    fn split(&mut self, times: f32) {
        let mut device = Device::default();
        let [weight, change, dense, scale] =
            [&self.weight[..], &self.change, &self.dense, self.scale].map(|values| device.buffer(values));
        let arguments = arguments![weight, change, dense, scale, self.rows(), self.n, times];
        self.by_mask(&mut device, weight, "split", arguments);
        let memory = self.run(&device);
        (self.weight, self.change) = (memory.values(weight), memory.values(change));
    }

    fn finish(&mut self) {
        let mut device = Device::default();
        let [weight, scale] = [&self.weight[..], self.scale].map(|values| device.buffer(values));
        let arguments = arguments![weight, scale, self.rows(), self.n];
        self.by_mask(&mut device, weight, "finish", arguments);
        self.weight = self.run(&device).values(weight);
    }
}

/// Alternating directions with the products of the processor and everything else by kernels.
fn alternated(dense: &[f32], hessian: &ScaledHessian, effort: Effort, target: Target) -> Vec<f32> {
    let n = hessian.width();
    let empty = || vec![f32::NAN; dense.len()];
    let (weight, change, scale) = (dense.to_vec(), empty(), hessian.scale());
    let mut state = Alternation { n, scale, target, weight, dense: empty(), change, runs: 0 };
    state.begin(hessian.dead());
    let mut before = effort.penalties()[0];
    for (number, rho) in effort.penalties().iter().enumerate() {
        let mut inverse = Vec::new();
        shifted_inverse::<f32>(hessian, *rho, &mut Vec::new(), &mut inverse).unwrap();
        for round in 0..effort.rounds() {
            if (number, round) == (0, 0) {
                continue;
            }
            state.split((before / rho) as f32);
            before = *rho;
            multiply(&mut state.weight, Accum::Add, &state.change, &inverse, n, *rho as f32);
        }
    }
    state.finish();
    state.weight
}

#[test]
fn between_products_weights_are_the_processors_bits() {
    for (rows, n, dead) in [(1, 1, vec![]), (19, 45, vec![0, 7]), (40, 130, vec![129])] {
        let gram = gram(n as u64, n, &dead);
        let hessian = ScaledHessian::of_gram(n, upper::<f32>(&gram, n), 0.01).unwrap();
        for (kind, dense) in [noise(1, rows * n), with_ties(2, rows * n)].into_iter().enumerate() {
            for target in [
                Target::Unstructured { ratio: 0.5 },
                Target::Unstructured { ratio: 1.0 },
                Target::NToM { n: 2, m: 4 },
                Target::NToM { n: 3, m: 7 },
            ] {
                let mut admm = Admm::default();
                admm.begin::<f32>(&hessian, Effort::Fast).unwrap();
                let mut wanted = dense.clone();
                admm.prune(&mut wanted, &hessian, &target).unwrap();
                let found = alternated(&dense, &hessian, Effort::Fast, target);
                assert_eq!(bits(&found), bits(&wanted), "{rows} x {n}, kind {kind}, {target:?}");
            }
        }
    }
}

#[test]
fn no_two_threads_race() {
    let (rows, n) = (6, 40);
    let values = with_ties(3, rows * n);
    let mut state = Alternation {
        n,
        scale: &[0.5; 40],
        target: Target::Unstructured { ratio: 0.5 },
        weight: values.clone(),
        dense: values.clone(),
        change: values.clone(),
        runs: 0,
    };
    for target in [state.target, Target::NToM { n: 2, m: 4 }] {
        state.target = target;
        let mut device = Device::default();
        let [weight, change, dense, scale] =
            [&values[..], &values, &values, state.scale].map(|values| device.buffer(values));
        let dead = device.buffer(&[0u8; 40]);
        device.launch("scale_weight", over(n), arguments![weight, rows, n, scale, dead, dense]);
        state.by_mask(
            &mut device,
            weight,
            "split",
            arguments![weight, change, dense, scale, rows, n, 0.5f32],
        );
        state.by_mask(&mut device, weight, "finish", arguments![weight, scale, rows, n]);
        let found = device.run_sanitized().values::<f32>(weight);
        assert_eq!(found, device.run(0).values::<f32>(weight));
    }
}
