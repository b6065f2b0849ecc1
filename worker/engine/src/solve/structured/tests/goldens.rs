use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Tensor};

use super::*;

const NEURONS: [&str; 2] = ["ffn-25-64x256", "ffn-30-96x512"];
const HEADS: [&str; 4] =
    ["heads-25-128x128", "heads-50-96x256", "joint-heads-25-128x128", "joint-heads-50-192x192"];

struct Golden {
    cases: Vec<Case>,
    pruned: Vec<Vec<f64>>,
    removed: Vec<usize>,
    size: usize,
}

impl Golden {
    fn read(name: &str) -> Self {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/assets/goldens/solver"));
        let path = folder.join(format!("{name}.safetensors"));
        let tensors: HashMap<String, Tensor> = candle_core::safetensors::load(path, &crate::HOST).unwrap();
        let of = |name: &str| -> Vec<f64> {
            let tensor = tensors[name].to_dtype(DType::F64).unwrap();
            tensor.flatten_all().unwrap().to_vec1().unwrap()
        };
        let streams: &[&str] = if tensors.contains_key("weight_add") { &["", "_add"] } else { &[""] };
        let n = tensors["hessian"].dim(0).unwrap();
        Self {
            cases: streams
                .iter()
                .map(|s| Case { n, weight: of(&format!("weight{s}")), gram: of(&format!("hessian{s}")) })
                .collect(),
            pruned: streams.iter().map(|s| of(&format!("pruned{s}"))).collect(),
            removed: of("removed").into_iter().map(|j| j as usize).collect(),
            size: of("head_dim")[0] as usize,
        }
    }

    /// Prunes as many parts as the golden; gives the steps and the weights.
    fn solve(&self, score: Score) -> (Vec<Removal>, Vec<Vec<f64>>) {
        let mut layers: Vec<StructuredLinear> = self.cases.iter().map(Case::layer).collect();
        let count = self.removed.len() / self.size;
        let steps = match self.size {
            1 => neurons(&mut layers[0], Columns::all(self.cases[0].n, 1), count, score).unwrap(),
            size => {
                let columns = vec![Columns::all(self.cases[0].n, size); layers.len()];
                heads(&mut layers, &columns, count, score).unwrap()
            }
        };
        (steps, layers.iter().map(|layer| layer.weight().to_vec()).collect())
    }

    /// The sum over streams of the relative errors.
    fn error(&self, weights: &[Vec<f64>]) -> f64 {
        self.cases.iter().zip(weights).map(|(case, after)| case.error(after)).sum()
    }
}

#[test]
fn the_published_choices_give_the_published_answers() {
    for name in NEURONS.into_iter().chain(HEADS) {
        let golden = Golden::read(name);
        let (steps, weights) = golden.solve(Score::Published);
        assert_eq!(columns(&steps, golden.size), golden.removed, "{name}");
        for (found, wanted) in weights.iter().zip(&golden.pruned) {
            let apart = apart(found, wanted);
            println!("{name}: weights {apart:.1e} apart");
            assert!(apart < 1e-3, "{name}: {apart}");
        }
    }
}

#[test]
fn exact_is_never_worse_than_the_published_answers() {
    for name in NEURONS.into_iter().chain(HEADS) {
        let golden = Golden::read(name);
        let (steps, weights) = golden.solve(Score::Exact);
        assert_eq!(steps.len() * golden.size, golden.removed.len());
        let [ours, theirs] = [golden.error(&weights), golden.error(&golden.pruned)];
        println!("{name}: exact {ours:.6}, published {theirs:.6}");
        // What f32 rounds of their weights is left out.
        assert!(ours <= theirs * (1.0 + 1e-6), "{name}: {ours} {theirs}");
    }
}

#[test]
fn exact_is_the_definitions_on_the_goldens() {
    for name in ["ffn-25-64x256"].into_iter().chain(HEADS) {
        let golden = Golden::read(name);
        let (steps, weights) = golden.solve(Score::Exact);
        let (order, errors, expected) = plain(&golden.cases, golden.size, steps.len());
        super::answers::same(name, &steps, &weights, (order, errors, expected));
    }
}
