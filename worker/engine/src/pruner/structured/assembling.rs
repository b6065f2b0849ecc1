//! The new tensors of structures that lost parts.

use std::borrow::Cow;
use std::collections::BTreeMap;

use candle_core::Tensor;
use obsdiff_proto::{LinearId, Package, PartKind, StructureId, Target};

use super::{LinearAtWork, Reader, SolvedStructures, StructureLoss, failed, target};
use crate::export::{PrunedLinear, PrunedStructure};
use crate::pruner::Pruner;
use crate::pruner::probe::Replacement;
use crate::pruner::stored::zeros;
use crate::solve::SolveError;
use crate::solve::structured::{StructuredLayer, folded};
use crate::{Error, HOST, Result};

impl Pruner {
    /// The new tensors of structures that lose parts. `layers` hold the solved weights of their outputs; where an output has none, its
    /// removed columns become zero and its other columns stay as they are.
    pub(super) fn assemble(
        &self,
        package: &Package,
        losses: Vec<StructureLoss<'_>>,
        layers: Vec<LinearAtWork>,
    ) -> Result<SolvedStructures> {
        let mut solved =
            SolvedStructures { structures: Vec::new(), tensors: BTreeMap::new(), linears: Vec::new() };
        // By linear, in the order in which the structures name them: the columns and rows to remove.
        let mut columns: Vec<(LinearId, Target, Vec<usize>)> = Vec::new();
        let mut rows = columns.clone();
        for loss in &losses {
            let target = target(package, loss.structure)?;
            for (features, lost) in
                [(&loss.structure.outputs, &mut columns), (&loss.structure.inputs, &mut rows)]
            {
                for features in features {
                    let gone = loss.removed.iter().flat_map(|part| features.of(*part));
                    match lost.iter_mut().find(|(linear, ..)| *linear == features.linear) {
                        Some((.., all)) => all.extend(gone),
                        None => lost.push((features.linear, target, gone.collect())),
                    }
                }
            }
        }
        for (linear, target, columns) in columns {
            let changed = match layers.iter().find(|(reader, _)| reader.linear == linear) {
                Some((reader, layer)) if columns.is_empty() => ChangedLinear {
                    linear,
                    weight: to_f32(&reader.before),
                    bias: None,
                    solved_from: Some(SolvedFrom {
                        reader,
                        layer: &**layer,
                        after: Cow::Borrowed(&reader.before),
                    }),
                },
                Some((reader, layer)) => self.changed_reader(reader, &**layer)?,
                None => {
                    let mut weight = self.dense_whole(linear)?;
                    for row in weight.chunks_exact_mut(self.width(linear)) {
                        columns.iter().for_each(|j| row[*j] = 0.0);
                    }
                    ChangedLinear { linear, weight, bias: None, solved_from: None }
                }
            };
            self.add(&mut solved, package, target, changed)?;
        }
        for (linear, target, rows) in rows {
            let (mut weight, mut bias) = (self.dense_whole(linear)?, self.dense_bias(linear)?);
            let width = self.width(linear);
            for row in rows {
                weight[row * width..(row + 1) * width].fill(0.0);
                if let Some(bias) = &mut bias {
                    bias[row] = 0.0;
                }
            }
            self.add(
                &mut solved,
                package,
                target,
                ChangedLinear { linear, weight, bias, solved_from: None },
            )?;
        }
        solved.structures = losses.into_iter().map(|loss| loss.report(package)).collect();
        Ok(solved)
    }

    /// The solved weight and bias of a linear that reads parts.
    fn changed_reader<'a>(
        &self,
        reader: &'a Reader,
        layer: &'a dyn StructuredLayer,
    ) -> Result<ChangedLinear<'a>> {
        let after = layer.weight_on_host().map_err(|e| self.not_solved(reader, e))?;
        let bias = match (self.sparsity.fold_bias, self.dense_bias(reader.linear)?) {
            (true, Some(bias)) => {
                let bias: Vec<f64> = bias.into_iter().map(f64::from).collect();
                Some(to_f32(&folded(&bias, &reader.before, &after, reader.moments.means())))
            }
            _ => None,
        };
        let (weight, linear) = (to_f32(&after), reader.linear);
        Ok(ChangedLinear { linear, weight, bias, solved_from: Some(SolvedFrom { reader, layer, after }) })
    }

    fn not_solved(&self, reader: &Reader, error: SolveError) -> Error {
        failed(&self.model.inventory().linear(reader.linear).name, error)
    }

    /// The same as tensors, to probe with.
    pub(super) fn replacement(&self, reader: &Reader, layer: &dyn StructuredLayer) -> Result<Replacement> {
        let ChangedLinear { linear, weight, bias, .. } = self.changed_reader(reader, layer)?;
        let rows = self.model.inventory().linear(linear).rows;
        let width = self.width(linear);
        let bias = bias.map(|bias| Tensor::from_vec(bias, rows, &HOST)).transpose()?;
        Ok(Replacement { linear, weight: Tensor::from_vec(weight, (rows, width), &HOST)?, bias })
    }

    /// Adds a changed linear to the result.
    fn add(
        &self,
        solved: &mut SolvedStructures,
        package: &Package,
        target: Target,
        changed: ChangedLinear<'_>,
    ) -> Result<()> {
        let ChangedLinear { linear, weight, bias, solved_from } = changed;
        let described = self.model.inventory().linear(linear);
        let (name, rows) = (&described.name, described.rows);
        let shape = [rows, weight.len() / rows.max(1)];
        let in_f32 = zeros(&weight);
        let weight = Tensor::from_vec(weight, (shape[0], shape[1]), &HOST)?;
        let stored = self.stored(&format!("{name}.weight"), &weight)?;
        let error = |from: &SolvedFrom<'_>| {
            let error = match &stored {
                Some(stored) => {
                    let stored: Vec<f64> = stored.iter().copied().map(f64::from).collect();
                    from.reader.relative_error(&stored)
                }
                None => from.reader.relative_error(&from.after),
            };
            error.map_err(|e| self.not_solved(from.reader, e))
        };
        let relative_error = solved_from.as_ref().map(error).transpose()?;
        let report = PrunedLinear {
            cost: None,
            name: name.clone(),
            shape,
            target,
            package: package.id.0,
            zeros: stored.as_deref().map_or(in_f32, zeros),
            damping: solved_from.as_ref().map(|from| from.layer.damping_used()),
            gram_trace: solved_from.as_ref().map(|from| from.reader.gram_trace),
            unrefined_error: None,
            relative_error,
        };
        solved.linears.push((linear, report));
        solved.tensors.insert(format!("{name}.weight"), weight);
        if let Some(bias) = bias {
            let (name, bias) = (format!("{name}.bias"), Tensor::from_vec(bias, rows, &HOST)?);
            self.stored(&name, &bias)?;
            solved.tensors.insert(name, bias);
        }
        Ok(())
    }
}

/// A linear's new weight and bias, and what they were solved from if they were solved.
struct ChangedLinear<'a> {
    linear: LinearId,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    solved_from: Option<SolvedFrom<'a>>,
}

/// What a linear was solved from, and its weight after that.
struct SolvedFrom<'a> {
    reader: &'a Reader,
    layer: &'a dyn StructuredLayer,
    after: Cow<'a, [f64]>,
}

impl StructureLoss<'_> {
    fn report(self, package: &Package) -> (StructureId, PrunedStructure) {
        let heads = self.structure.kind == PartKind::Heads;
        let report = PrunedStructure {
            name: self.structure.name.clone(),
            package: package.id.0,
            heads,
            of: self.structure.count,
            kept: self.structure.count - self.removed.len(),
            error: self.error,
            removed: if heads { self.removed } else { Vec::new() },
        };
        (self.id, report)
    }
}

fn to_f32(values: &[f64]) -> Vec<f32> {
    values.iter().map(|x| *x as f32).collect()
}
