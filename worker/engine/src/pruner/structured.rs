//! Solving a structure: heads of an attention or neurons of a feed-forward network go, with all that makes and reads them.
//!
//! The model keeps its shapes: what goes becomes zero, in weights and biases, so that it adds nothing from here on. An export leaves the
//! zeros out.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use obsdiff_proto::{HeadScore, LinearId, Method, Package, SiteId, Structure, StructureId, Target};

use super::{Pruner, no_package};
use crate::export::{PrunedLinear, PrunedStructure};
use crate::gram::Gram;
use crate::solve::SolveError;
use crate::solve::structured::{Layer, Moments, Score, Step, folded, heads, neurons};
use crate::{Error, Result};

/// A structure that lost parts, not applied yet, and what is to be said of it.
#[derive(Clone, Debug)]
pub struct SolvedStructure {
    /// Which structure.
    pub structure: StructureId,
    /// Every tensor that changed, by its name in a checkpoint: f32, in its old shape. All that another worker needs to apply it.
    pub tensors: BTreeMap<String, Tensor>,
    /// What went.
    pub report: PrunedStructure,
    /// How the structure's linears were pruned, and how well they kept their function.
    pub linears: Vec<(LinearId, PrunedLinear)>,
}

/// Grams by their sites.
pub type Grams<'a> = BTreeMap<SiteId, &'a Gram>;

/// What is to become of a structure.
struct Change {
    id: StructureId,
    package: u32,
    structure: Structure,
    target: Target,
}

/// A linear that reads the parts, with what is known of its inputs.
struct Reader {
    linear: LinearId,
    before: Vec<f64>,
    moments: Moments,
    /// S about the means, where biases take these over.
    centred: Option<Vec<f64>>,
    gram_trace: f64,
}

impl Reader {
    /// The S that the linear is solved with.
    fn gram(&self) -> &[f64] {
        self.centred.as_deref().unwrap_or(self.moments.gram())
    }

    /// tr(dW S dW^T) / tr(W S W^T), biases counted: a mean that moved is no error where the bias takes it over.
    fn relative_error(&self, after: &[f64]) -> f64 {
        let change: Vec<f64> = after.iter().zip(&self.before).map(|(a, b)| a - b).collect();
        let whole = self.moments.energy(&self.before, self.moments.gram());
        let change = self.moments.energy(&change, self.gram());
        if whole > 0.0 { (change / whole).max(0.0) } else { 0.0 }
    }
}

impl Pruner {
    /// Takes parts from a structure of `package` by the Grams of the sites that its outputs read: `count` of them, or the share that its
    /// target says; one part stays in any case. The model stays as it is.
    ///
    /// # Errors
    /// When the structure is not of the package, a Gram is missing or cannot be factorised, or a weight is not finite.
    pub fn solve_structure(
        &self,
        package: &Package,
        id: StructureId,
        grams: &Grams<'_>,
        count: Option<usize>,
    ) -> Result<SolvedStructure> {
        let _span = tracing::info_span!("solve").entered();
        let structure = self.model.inventory().structure(id).clone();
        let target = package.linears.iter().find(|t| structure.outputs.contains(&t.linear));
        let target = target.map(|t| t.target).ok_or_else(no_package)?;
        let change = Change { id, package: package.id.0, structure, target };
        let structure = &change.structure;
        let count = count.unwrap_or_else(|| share(structure, &target)).min(structure.count - 1);
        if self.method == Method::L1 {
            let removed = self.lowest_l1(structure, count)?;
            return self.assemble(&change, &removed, None, Vec::new());
        }
        let (readers, mut layers) = self.readers(structure, grams)?;
        let steps = self.taken(structure, &mut layers, count)?;
        let removed: Vec<usize> = steps.iter().map(|step| step.part).collect();
        let error = Some(steps.iter().fold(0.0, |sum, step| sum + step.error));
        let readers = readers.into_iter().zip(layers).collect();
        self.assemble(&change, &removed, error, readers)
    }

    /// The error that each further part of a structure would bring, in the order in which parts would go; as many as a budget may take.
    ///
    /// # Errors
    /// As [`Pruner::solve_structure`].
    pub fn survey(&self, id: StructureId, grams: &Grams<'_>) -> Result<Vec<f64>> {
        let _span = tracing::info_span!("solve").entered();
        let structure = self.model.inventory().structure(id).clone();
        let (_, mut layers) = self.readers(&structure, grams)?;
        let steps = self.taken(&structure, &mut layers, structure.count.saturating_sub(structure.least()))?;
        Ok(steps.into_iter().map(|step| step.error).collect())
    }

    /// Replaces tensors by their names in a checkpoint, each by one of the same shape.
    ///
    /// # Errors
    /// When a name is no weight or bias of a linear that can be pruned, or a shape differs.
    pub fn apply_tensors(&mut self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        let _span = tracing::info_span!("apply").entered();
        let ids: BTreeMap<String, LinearId> = self
            .model
            .inventory()
            .linears
            .iter()
            .zip(0..)
            .map(|(l, id)| (l.name.clone(), LinearId(id)))
            .collect();
        for (name, tensor) in tensors {
            let (linear, what) = name.rsplit_once('.').unwrap_or((name, ""));
            match (ids.get(linear), what) {
                (Some(id), "weight") => self.model.replace(*id, tensor.clone())?,
                (Some(id), "bias") => self.model.replace_bias(*id, tensor.clone())?,
                _ => return Err(Error::Argument(format!("{name} is no weight or bias that can be pruned"))),
            }
        }
        Ok(())
    }

    fn readers(&self, structure: &Structure, grams: &Grams<'_>) -> Result<(Vec<Reader>, Vec<Layer>)> {
        let both = structure.outputs.iter().map(|id| self.reader(*id, grams)).collect::<Result<Vec<_>>>()?;
        Ok(both.into_iter().unzip())
    }

    fn reader(&self, linear: LinearId, grams: &Grams<'_>) -> Result<(Reader, Layer)> {
        let inventory = self.model.inventory();
        let site = inventory.linear(linear).site;
        let gram = grams.get(&site).ok_or_else(|| Error::Site {
            name: inventory.site(site).name.clone(),
            problem: "cannot be solved without its Gram".to_owned(),
        })?;
        let n = gram.width() - 1;
        let gram_trace = gram.diagonal()[..n].iter().sum();
        let moments = Moments::new(&gram.to_upper::<f64>(n + 1), n);
        let centred = self.sparsity.fold_bias.then(|| moments.centred());
        let before: Vec<f64> = self.dense_whole(linear)?.into_iter().map(f64::from).collect();
        let reader = Reader { linear, before, moments, centred, gram_trace };
        let layer = Layer::new(n, reader.before.clone(), reader.gram(), self.hessian.damping);
        let layer = layer.map_err(|e| failed(&inventory.linear(linear).name, e))?;
        Ok((reader, layer))
    }

    fn taken(&self, structure: &Structure, layers: &mut [Layer], count: usize) -> Result<Vec<Step>> {
        let score = match self.sparsity.head_score {
            HeadScore::Exact => Score::Exact,
            HeadScore::ObsDiff => Score::Published,
        };
        let steps = match layers {
            [one] if !structure.is_attention() => neurons(one, count, score),
            all => heads(all, structure.size, count, score),
        };
        steps.map_err(|e| failed(&structure.name, e))
    }

    /// The parts whose weights have the smallest sum of |w|, over all linears that make or read them.
    fn lowest_l1(&self, structure: &Structure, count: usize) -> Result<Vec<usize>> {
        let (size, parts) = (structure.size, structure.count);
        let mut sums = vec![0.0; parts];
        for id in &structure.inputs {
            let weight = self.dense_whole(*id)?;
            let part = weight.len() / parts.max(1);
            for (sum, part) in sums.iter_mut().zip(weight.chunks_exact(part.max(1))) {
                *sum += part.iter().map(|w| f64::from(w.abs())).sum::<f64>();
            }
        }
        for id in &structure.outputs {
            for row in self.dense_whole(*id)?.chunks_exact(size * parts) {
                for (sum, part) in sums.iter_mut().zip(row.chunks_exact(size)) {
                    *sum += part.iter().map(|w| f64::from(w.abs())).sum::<f64>();
                }
            }
        }
        let mut order: Vec<usize> = (0..parts).collect();
        order.sort_by(|a, b| sums[*a].total_cmp(&sums[*b]));
        order.truncate(count);
        Ok(order)
    }

    /// The tensors of a structure without the `removed` parts. `readers` hold the new weights of its outputs where there are any; else
    /// the removed columns become zero and no more.
    fn assemble(
        &self,
        change: &Change,
        removed: &[usize],
        error: Option<f64>,
        readers: Vec<(Reader, Layer)>,
    ) -> Result<SolvedStructure> {
        let mut removed = removed.to_vec();
        removed.sort_unstable();
        let mut linears = Vec::new();
        let mut tensors = BTreeMap::new();
        let Change { id, package, ref structure, target } = *change;
        let goes = |feature: usize| removed.binary_search(&(feature / structure.size)).is_ok();
        let mut change =
            |linear: LinearId, weight: Vec<f32>, bias: Option<Vec<f32>>, known: Option<(&Reader, &Layer)>| {
                let described = self.model.inventory().linear(linear);
                let (name, rows) = (&described.name, described.rows);
                let shape = [rows, weight.len() / rows.max(1)];
                linears.push((
                    linear,
                    PrunedLinear {
                        name: name.clone(),
                        shape,
                        target,
                        package,
                        zeros: weight.iter().filter(|w| **w == 0.0).count() as u64,
                        damping: known.map(|(_, layer)| layer.damping_used()),
                        gram_trace: known.map(|(reader, _)| reader.gram_trace),
                        unrefined_error: None,
                        relative_error: known.map(|(reader, layer)| reader.relative_error(layer.weight())),
                    },
                ));
                tensors.insert(
                    format!("{name}.weight"),
                    Tensor::from_vec(weight, (shape[0], shape[1]), &Device::Cpu)?,
                );
                if let Some(bias) = bias {
                    tensors.insert(format!("{name}.bias"), Tensor::from_vec(bias, rows, &Device::Cpu)?);
                }
                Ok::<_, Error>(())
            };
        for linear in &structure.outputs {
            let known = readers.iter().find(|(reader, _)| reader.linear == *linear);
            match known {
                Some((reader, layer)) => {
                    let bias = if self.sparsity.fold_bias {
                        let bias: Vec<f64> = self.dense_bias(*linear)?.into_iter().map(f64::from).collect();
                        let means = reader.moments.means();
                        Some(narrow(&folded(&bias, &reader.before, layer.weight(), means)))
                    } else {
                        None
                    };
                    change(*linear, narrow(layer.weight()), bias, Some((reader, layer)))?;
                }
                None => {
                    let mut weight = self.dense_whole(*linear)?;
                    for row in weight.chunks_exact_mut(structure.size * structure.count) {
                        row.iter_mut().enumerate().filter(|(j, _)| goes(*j)).for_each(|(_, w)| *w = 0.0);
                    }
                    change(*linear, weight, None, None)?;
                }
            }
        }
        for linear in &structure.inputs {
            let (mut weight, mut bias) = (self.dense_whole(*linear)?, self.dense_bias(*linear)?);
            let width = weight.len() / bias.len().max(1);
            for (row, w) in weight.chunks_exact_mut(width.max(1)).enumerate().filter(|(row, _)| goes(*row)) {
                w.fill(0.0);
                bias[row] = 0.0;
            }
            change(*linear, weight, Some(bias), None)?;
        }
        let report = PrunedStructure {
            name: structure.name.clone(),
            package,
            heads: structure.is_attention(),
            of: structure.count,
            kept: structure.count - removed.len(),
            error,
            removed: if structure.is_attention() { removed } else { Vec::new() },
        };
        Ok(SolvedStructure { structure: id, tensors, report, linears })
    }
}

/// round(ratio * parts), halves to even, as the published code counts.
fn share(structure: &Structure, target: &Target) -> usize {
    match *target {
        Target::Structured { ratio: Some(ratio) } => {
            (ratio * structure.count as f64).round_ties_even() as usize
        }
        _ => 0,
    }
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|x| *x as f32).collect()
}

fn failed(name: &str, error: SolveError) -> Error {
    Error::Site { name: name.to_owned(), problem: error.to_string() }
}
