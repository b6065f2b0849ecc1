//! Solving structures: heads of an attention or neurons of a feed-forward network are removed, with the rows that compute them and the
//! columns that read them.
//!
//! The model keeps its shapes: the weights and biases of a removed part become zero. An export leaves the zeros out.

mod assembling;

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;
use obsdiff_proto::{
    BudgetBy, Features, HeadScore, LinearId, Method, Package, PartKind, SiteId, Structure, StructureId,
    Target,
};

use super::budget::RemovalCurve;
use super::probe::Replacement;
use super::{Pruner, no_package, of_site};
use crate::device::moments::SiteMoments;
use crate::export::{PrunedLinear, PrunedStructure};
use crate::gram::{GramError, PlacedGram};
use crate::solve::SolveError;
use crate::solve::structured::{Columns, Removal, Score, StructuredLayer, heads, neurons};
use crate::{Error, Result};

/// Structures that were solved together and are not applied yet, with their reports.
#[derive(Clone, Debug)]
pub struct SolvedStructures {
    /// The report of each.
    pub structures: Vec<(StructureId, PrunedStructure)>,
    /// Every tensor that changed, by its name in a checkpoint: f32, in its old shape. Another worker needs no more to apply the result.
    pub tensors: BTreeMap<String, Tensor>,
    /// How the structures' linears were pruned, and how well they kept their function.
    pub linears: Vec<(LinearId, PrunedLinear)>,
}

/// A structure is probed without this share of its parts.
const PROBED_SHARE: f64 = 0.3;

/// Grams by their sites.
pub type Grams = BTreeMap<SiteId, PlacedGram>;

/// The parts that a structure loses.
struct StructureLoss<'a> {
    id: StructureId,
    structure: &'a Structure,
    /// The parts that go, ascending.
    removed: Vec<usize>,
    /// The sum of the errors that they add; absent without a Gram.
    error: Option<f64>,
}

/// A linear that reads the parts, with what is known of its inputs.
struct Reader {
    linear: LinearId,
    before: Vec<f64>,
    moments: SiteMoments,
    gram_trace: f64,
}

/// The same, and the linear on its way on the device that solves it.
type LinearAtWork = (Arc<Reader>, Box<dyn StructuredLayer>);

impl Reader {
    /// tr(dW S dW^T) / tr(W S W^T), as [`SiteMoments::relative_error`].
    fn relative_error(&self, after: &[f64]) -> Result<f64, SolveError> {
        let change: Vec<f64> = after.iter().zip(&self.before).map(|(a, b)| a - b).collect();
        self.moments.relative_error(&self.before, &change)
    }
}

impl Pruner {
    /// Removes parts from structures of `package` that are solved together, one structure after the other, by the Grams of the sites that
    /// their outputs read. `counts` says how many parts each structure loses; where it does not, the structure's target does. At least
    /// one part stays. The model does not change.
    ///
    /// # Errors
    /// When a structure is not of the package, a Gram is missing or cannot be factorised, or a weight is not finite.
    pub fn solve_structures(
        &self,
        package: &Package,
        group: &[StructureId],
        grams: &Grams,
        counts: &[Option<usize>],
    ) -> Result<SolvedStructures> {
        let _span = tracing::info_span!("solve").entered();
        let inventory = self.model.inventory();
        let mut layers = if self.method == Method::L1 { Vec::new() } else { self.layers(group, grams)? };
        let mut losses = Vec::with_capacity(group.len());
        for (place, &id) in group.iter().enumerate() {
            let structure = inventory.structure(id);
            let target = target(package, structure)?;
            let count = counts
                .get(place)
                .copied()
                .flatten()
                .unwrap_or_else(|| self.removed_count(structure, &target));
            let count = count.min(structure.count - 1);
            let (mut removed, error) = if self.method == Method::L1 {
                (self.lowest_l1(structure, count)?, None)
            } else {
                let steps = self.remove_parts(structure, &mut layers, count)?;
                let error = steps.iter().fold(0.0, |sum, step| sum + step.error);
                (steps.iter().map(|step| step.part).collect(), Some(error))
            };
            removed.sort_unstable();
            losses.push(StructureLoss { id, structure, removed, error });
        }
        self.assemble(package, losses, layers)
    }

    /// For each structure of a group, the error that each further part would add if the other structures stayed whole: in the order in
    /// which its parts would go, and as many as a budget may remove. With `sparsity.budget_by = "velocity"` errors are multiplied by
    /// what they cost.
    ///
    /// # Errors
    /// As [`Pruner::solve_structures`], and when a forward call or `on_step` fails.
    pub fn survey_structures(
        &mut self,
        group: &[StructureId],
        grams: &Grams,
        on_step: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<Vec<f64>>> {
        let solving = tracing::info_span!("solve").entered();
        let mut layers = self.layers(group, grams)?;
        let probes = self.sparsity.budget_by == BudgetBy::Velocity;
        let (mut errors, mut trials) = (Vec::with_capacity(group.len()), Vec::new());
        for (place, &id) in group.iter().enumerate() {
            let structure = self.model.inventory().structure(id);
            let count = structure.removable(self.sparsity.align);
            if probes {
                trials.push(self.without_some(structure, duplicates(structure, &layers)?, count)?);
            }
            let last = place + 1 == group.len();
            let steps = if last {
                self.remove_parts(structure, &mut layers, count)?
            } else {
                self.remove_parts(structure, &mut duplicates(structure, &layers)?, count)?
            };
            errors.push(steps.into_iter().map(|step| step.error).collect::<Vec<_>>());
        }
        drop((solving, layers));
        for (errors, (replaced, error)) in errors.iter_mut().zip(trials) {
            let mut probe = match self.probe.take() {
                Some(probe) => probe,
                None => self.new_probe(on_step)?,
            };
            let shift = probe.shift(&mut *self.model, replaced, on_step)?;
            self.probe = Some(probe);
            let cost = if error > 0.0 { shift / error } else { 0.0 };
            errors.iter_mut().for_each(|error| *error *= cost);
        }
        Ok(errors)
    }

    /// What a structure is probed with: the linears that read it, after some of its parts were removed, at most `most` of them; and the
    /// error that this adds.
    fn without_some(
        &self,
        structure: &Structure,
        mut layers: Vec<LinearAtWork>,
        most: usize,
    ) -> Result<(Vec<Replacement>, f64)> {
        let count = ((PROBED_SHARE * structure.count as f64).round() as usize).clamp(1, most.max(1));
        let steps = self.remove_parts(structure, &mut layers, count)?;
        let reads = |reader: &Reader| structure.outputs.iter().any(|output| output.linear == reader.linear);
        let own = layers.iter().filter(|(reader, _)| reads(reader));
        let replaced =
            own.map(|(reader, layer)| self.replacement(reader, &**layer)).collect::<Result<_>>()?;
        Ok((replaced, steps.iter().map(|step| step.error).sum()))
    }

    /// The removal curve of a structure whose parts add these errors, and each save so many operations.
    pub fn removal_curve(&self, id: StructureId, errors: Vec<f64>, flops: f64) -> RemovalCurve {
        let structure = self.model.inventory().structure(id);
        let unit = structure.unit(self.sparsity.align);
        let rest = structure.count % unit;
        RemovalCurve { errors, flops, first: if rest == 0 { unit } else { rest }, unit }
    }

    /// How many parts a structure of this target loses.
    fn removed_count(&self, structure: &Structure, target: &Target) -> usize {
        match *target {
            Target::Structured { ratio: Some(ratio) } => {
                structure.count - structure.kept_at(ratio, self.sparsity.align)
            }
            _ => 0,
        }
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

    /// The linears that read a group of structures.
    fn layers(&self, group: &[StructureId], grams: &Grams) -> Result<Vec<LinearAtWork>> {
        let outputs = self.model.inventory().outputs_of(group);
        outputs.into_iter().map(|id| self.reader(id, grams)).collect()
    }

    fn reader(&self, linear: LinearId, grams: &Grams) -> Result<LinearAtWork> {
        let inventory = self.model.inventory();
        let site = inventory.linear(linear).site;
        let gram = grams.get(&site).ok_or_else(|| Error::Site {
            name: inventory.site(site).name.clone(),
            problem: "cannot be solved without its Gram".to_owned(),
        })?;
        let unread = |error: GramError| of_site(site, inventory, &error);
        let mut diagonal = gram.diagonal().map_err(unread)?;
        // That of the constant 1.
        diagonal.pop();
        // Only a bias can take over a mean.
        let folds = self.sparsity.fold_bias && inventory.linear(linear).bias;
        let moments = SiteMoments::new(&self.device, gram, folds).map_err(unread)?;
        let before: Vec<f64> = self.dense_whole(linear)?.into_iter().map(f64::from).collect();
        let reader = Reader { linear, before, moments, gram_trace: diagonal.iter().sum() };
        let layer = reader.moments.linear(&reader.before, self.hessian.damping);
        let layer = layer.map_err(|e| failed(&inventory.linear(linear).name, e))?;
        Ok((Arc::new(reader), layer))
    }

    /// Removes parts of a structure from the linears that read it.
    fn remove_parts(
        &self,
        structure: &Structure,
        layers: &mut Vec<LinearAtWork>,
        count: usize,
    ) -> Result<Vec<Removal>> {
        let score = match self.sparsity.head_score {
            HeadScore::Exact => Score::Exact,
            HeadScore::ObsDiff => Score::Published,
        };
        let mut own = Vec::with_capacity(structure.outputs.len());
        for output in &structure.outputs {
            let place = layers.iter().position(|(reader, _)| reader.linear == output.linear);
            own.push(layers.remove(place.ok_or_else(no_package)?));
        }
        let columns: Vec<Columns> =
            structure.outputs.iter().map(|output| columns(structure, output)).collect();
        let (readers, mut taken): (Vec<_>, Vec<_>) = own.into_iter().unzip();
        let steps = match (&mut taken[..], &columns[..], structure.kind) {
            ([one], [columns], PartKind::Neurons) if columns.size == 1 => {
                neurons(one, *columns, count, score)
            }
            (all, columns, _) => heads(all, columns, count, score),
        };
        layers.extend(readers.into_iter().zip(taken));
        steps.map_err(|e| failed(&structure.name, e))
    }

    /// The parts whose weights have the smallest sum of |w|, over all linears that compute or read them.
    fn lowest_l1(&self, structure: &Structure, count: usize) -> Result<Vec<usize>> {
        let mut sums = vec![0.0; structure.count];
        let mut add = |part: usize, weights: &[f32]| {
            sums[part] += weights.iter().map(|w| f64::from(w.abs())).sum::<f64>();
        };
        for input in &structure.inputs {
            let weight = self.dense_whole(input.linear)?;
            let width = self.width(input.linear);
            for part in 0..structure.count {
                let rows = input.of(part);
                add(part, &weight[rows.start * width..rows.end * width]);
            }
        }
        for output in &structure.outputs {
            for row in self.dense_whole(output.linear)?.chunks_exact(self.width(output.linear)) {
                (0..structure.count).for_each(|part| add(part, &row[output.of(part)]));
            }
        }
        let mut order: Vec<usize> = (0..structure.count).collect();
        order.sort_by(|a, b| sums[*a].total_cmp(&sums[*b]));
        order.truncate(count);
        Ok(order)
    }

    fn width(&self, linear: LinearId) -> usize {
        let inventory = self.model.inventory();
        inventory.site(inventory.linear(linear).site).width
    }
}

/// The linears of a group once more, so that a structure can lose parts of its own.
fn duplicates(structure: &Structure, layers: &[LinearAtWork]) -> Result<Vec<LinearAtWork>> {
    let duplicate = |(reader, layer): &LinearAtWork| {
        Ok((Arc::clone(reader), layer.duplicate().map_err(|e| failed(&structure.name, e))?))
    };
    layers.iter().map(duplicate).collect()
}

/// The target of a structure.
fn target(package: &Package, structure: &Structure) -> Result<Target> {
    let reads = |linear: LinearId| structure.outputs.iter().any(|output| output.linear == linear);
    let target = package.linears.iter().find(|target| reads(target.linear));
    target.map(|target| target.target).ok_or_else(no_package)
}

fn columns(structure: &Structure, output: &Features) -> Columns {
    Columns { offset: output.offset, size: output.size, count: structure.count }
}

fn failed(name: &str, error: SolveError) -> Error {
    Error::Site { name: name.to_owned(), problem: error.to_string() }
}
