//! How far pruning one linear alone moves the model's velocity, at a few points of dense trajectories.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{DType, Tensor};
use half::{bf16, f16};
use obsdiff_proto::{LinearId, SiteId};

use crate::calibrate::Trajectories;
use crate::model::{DiffusionModel, Matrix, NoTap, State, Tap};
use crate::pipeline::Trajectory;
use crate::{Error, Result};

/// Points of dense trajectories, with the dense model's velocity at each. Each point keeps the state in front of the block of the linear
/// that was probed last. Linears that are probed in the model's order therefore take about half the arithmetic.
pub(super) struct Probe {
    points: Vec<ProbePoint>,
    /// The block of each site.
    blocks: BTreeMap<SiteId, usize>,
    /// How many blocks the points' states have passed.
    passed: usize,
}

/// Of what rounding moves: below that no effect of a replacement can be seen, but none is taken for nothing.
const LEAST_SHARE: f64 = 1.0 / 32.0;

/// A weight, and perhaps a bias, to put in place of a linear's own.
#[derive(Clone)]
pub(super) struct Replacement {
    pub(super) linear: LinearId,
    pub(super) weight: Tensor,
    /// The bias, where that is replaced too.
    pub(super) bias: Option<Tensor>,
}

impl Replacement {
    fn apply(self, model: &mut dyn DiffusionModel) -> Result<()> {
        model.replace(self.linear, self.weight)?;
        self.bias.map_or(Ok(()), |bias| model.replace_bias(self.linear, bias))
    }
}

struct ProbePoint {
    /// The batch of prompts at this step.
    trajectory: Trajectory,
    /// The dense model's guided velocity there.
    velocity: Vec<f32>,
    state: State,
}

impl Probe {
    /// Takes the dense trajectories of a batch of prompts to the last of the steps, which ascend.
    ///
    /// # Errors
    /// When there is no such prompt or step, or the model or `on_step` fails.
    pub(super) fn new(
        model: &dyn DiffusionModel,
        trajectories: &Trajectories,
        prompts: Range<u32>,
        steps: &[u32],
        on_step: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Self> {
        let mut trajectory = trajectories.start(prompts)?;
        let (mut points, mut sites) = (Vec::with_capacity(steps.len()), SiteBlocks::default());
        for step in 0..=steps.last().copied().unwrap_or(0) {
            let inputs = trajectory.inputs()?;
            let velocity = if steps.contains(&step) {
                let first = model.start(&inputs.call())?;
                let mut state = first.copy()?;
                for block in 0..model.block_count() {
                    sites.block = block;
                    state = model.block(block, state, &mut sites)?;
                }
                let velocity = trajectory.guided(model.finish(state)?)?;
                points.push(ProbePoint {
                    velocity: to_f32(&velocity)?,
                    state: first,
                    trajectory: trajectory.clone(),
                });
                velocity
            } else {
                trajectory.guided(model.forward(&inputs.call(), &mut NoTap)?)?
            };
            trajectory.advance(&velocity)?;
            on_step()?;
        }
        Ok(Self { points, blocks: sites.found.into_inner(), passed: 0 })
    }

    /// The mean squared relative change of the velocity over the points when some linears are replaced. `model` is the dense model; its
    /// own weights are put back afterwards.
    ///
    /// Where forward calls round to 16 bits, any change of a weight, however small, has all that follows rounded otherwise. What that alone
    /// moves is found by the linears' own weights, each moved by one unit in its last place, and taken off.
    ///
    /// # Errors
    /// When a tensor is not of the linear's shape, or the model or `on_step` fails.
    pub(super) fn shift(
        &mut self,
        model: &mut dyn DiffusionModel,
        replaced: Vec<Replacement>,
        on_step: &mut dyn FnMut() -> Result<()>,
    ) -> Result<f64> {
        let mut first = model.block_count();
        let mut dense = Vec::with_capacity(replaced.len());
        for Replacement { linear, bias, .. } in &replaced {
            first = first.min(self.block_of(model, *linear)?);
            let own_bias = if bias.is_some() { model.bias(*linear)?.cloned() } else { None };
            dense.push(Replacement {
                linear: *linear,
                weight: model.weight(*linear)?.clone(),
                bias: own_bias,
            });
        }
        self.move_to(model, first)?;
        let by_rounding = match dense.iter().map(nudged).collect::<Result<Option<Vec<_>>>>()? {
            Some(nudged) => self.change_by(model, nudged, &dense, on_step)?,
            None => 0.0,
        };
        let change = self.change_by(model, replaced, &dense, on_step)?;
        Ok((change - by_rounding).max(LEAST_SHARE * by_rounding))
    }

    /// The change when some linears are replaced, whose own weights are put back afterwards.
    fn change_by(
        &self,
        model: &mut dyn DiffusionModel,
        replaced: Vec<Replacement>,
        dense: &[Replacement],
        on_step: &mut dyn FnMut() -> Result<()>,
    ) -> Result<f64> {
        let applied = replaced.into_iter().try_for_each(|replaced| replaced.apply(model));
        let change = applied.and_then(|()| self.mean_change(model, on_step));
        dense.iter().cloned().try_for_each(|dense| dense.apply(model))?;
        change
    }

    /// The block that a linear is in.
    fn block_of(&self, model: &dyn DiffusionModel, linear: LinearId) -> Result<usize> {
        let site = model.inventory().linear(linear).site;
        self.blocks.get(&site).copied().ok_or_else(|| Error::Site {
            name: model.inventory().site(site).name.clone(),
            problem: "is not reached by a forward call".to_owned(),
        })
    }

    /// Moves the states of all points to just in front of a block.
    fn move_to(&mut self, model: &dyn DiffusionModel, block: usize) -> Result<()> {
        for point in &mut self.points {
            let mut state = if block < self.passed {
                model.start(&point.trajectory.inputs()?.call())?
            } else {
                std::mem::take(&mut point.state)
            };
            let from = if block < self.passed { 0 } else { self.passed };
            for before in from..block {
                state = model.block(before, state, &mut NoTap)?;
            }
            point.state = state;
        }
        self.passed = block;
        Ok(())
    }

    /// The mean squared relative change of the velocity over the points, with `model` as it is now from the points' block on.
    fn mean_change(
        &self,
        model: &dyn DiffusionModel,
        on_step: &mut dyn FnMut() -> Result<()>,
    ) -> Result<f64> {
        let mut sum = 0.0;
        for point in &self.points {
            let mut state = point.state.copy()?;
            for block in self.passed..model.block_count() {
                state = model.block(block, state, &mut NoTap)?;
                on_step()?;
            }
            let moved = to_f32(&point.trajectory.guided(model.finish(state)?)?)?;
            sum += relative_change(&point.velocity, &moved);
        }
        Ok(sum / self.points.len().max(1) as f64)
    }
}

/// A linear with each number of its weight moved by one unit in the last place; nothing where that has more than 16 bits.
fn nudged(dense: &Replacement) -> Result<Option<Replacement>> {
    let Replacement { linear, weight, .. } = dense;
    let (values, shape, device) = (weight.flatten_all()?, weight.dims(), weight.device());
    let weight = match weight.dtype() {
        DType::BF16 => {
            let moved = |x: bf16| bf16::from_bits(x.to_bits() ^ 1);
            Tensor::from_vec(values.to_vec1()?.into_iter().map(moved).collect::<Vec<_>>(), shape, device)?
        }
        DType::F16 => {
            let moved = |x: f16| f16::from_bits(x.to_bits() ^ 1);
            Tensor::from_vec(values.to_vec1()?.into_iter().map(moved).collect::<Vec<_>>(), shape, device)?
        }
        _ => return Ok(None),
    };
    Ok(Some(Replacement { linear: *linear, weight, bias: None }))
}

/// |after - before|^2 / |before|^2; 0 where `before` is all zeros.
fn relative_change(before: &[f32], after: &[f32]) -> f64 {
    let (mut change, mut whole) = (0.0, 0.0);
    for (before, after) in before.iter().zip(after) {
        let (before, after) = (f64::from(*before), f64::from(*after));
        change += (after - before).powi(2);
        whole += before.powi(2);
    }
    if whole > 0.0 { change / whole } else { 0.0 }
}

fn to_f32(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

/// A tap that records the block of each site, and observes nothing.
#[derive(Default)]
struct SiteBlocks {
    block: usize,
    found: RefCell<BTreeMap<SiteId, usize>>,
}

impl Tap for SiteBlocks {
    fn wants(&self, site: SiteId) -> bool {
        self.found.borrow_mut().insert(site, self.block);
        false
    }

    fn observe(&mut self, _: SiteId, _: &Matrix) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::calibrate::Encoded;
    use crate::pipeline::PipelineFolder;

    /// The velocity at step 3 of a trajectory that the dense model took there, by a model.
    fn velocity(trajectory: &Trajectory, model: &dyn DiffusionModel) -> Vec<f32> {
        let velocity = model.forward(&trajectory.inputs().unwrap().call(), &mut NoTap).unwrap();
        to_f32(&trajectory.guided(velocity).unwrap()).unwrap()
    }

    #[test]
    fn a_shift_is_that_of_whole_forward_calls_in_whatever_order_linears_come() {
        for pipeline in ["shapes-sd3", "shapes-flux"] {
            let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/assets");
            let folder = PipelineFolder::open(&assets.join(pipeline)).unwrap();
            let (config, size) =
                (folder.transformer_config(), folder.latent_size(Some(32), Some(32)).unwrap());
            let mut model = config.load(&folder.transformer_weights().unwrap(), DType::F32).unwrap();
            let encoders = folder.text_encoders(24).unwrap();
            let (dtype, spool) = (DType::F32, std::env::temp_dir());
            let encoded = Encoded::new(&encoders, &["a red circle"], dtype, &spool, &mut |_, _| {}).unwrap();
            let schedule = folder.schedule(4, size.tokens).unwrap();
            let trajectories = Trajectories::new(schedule, config.guidance(4.0), 0, size, encoded);
            let (mut steps, mut wanted) = (0, 4);
            let mut step = || {
                steps += 1;
                Ok(())
            };
            let mut probe = Probe::new(&*model, &trajectories, 0..1, &[1, 3], &mut step).unwrap();
            let mut points = Vec::new();
            let mut trajectory = trajectories.start(0..1).unwrap();
            for k in 0..4 {
                if [1, 3].contains(&k) {
                    points.push((trajectory.clone(), velocity(&trajectory, &*model)));
                }
                trajectory.step(&*model, &mut NoTap).unwrap();
            }
            let count = model.inventory().linears.len() as u32;
            for linear in [count - 1, 0, count / 2, 1].map(LinearId) {
                let dense = model.weight(linear).unwrap().clone();
                let half = (&dense * 0.5).unwrap();
                let shift = probe
                    .shift(
                        &mut *model,
                        vec![Replacement { linear, weight: half.clone(), bias: None }],
                        &mut step,
                    )
                    .unwrap();
                wanted += 2 * (model.block_count() - probe.block_of(&*model, linear).unwrap());
                assert_eq!(to_f32(model.weight(linear).unwrap()).unwrap(), to_f32(&dense).unwrap());
                model.replace(linear, half).unwrap();
                let changes =
                    points.iter().map(|(at, before)| relative_change(before, &velocity(at, &*model)));
                let expected = changes.sum::<f64>() / 2.0;
                model.replace(linear, dense).unwrap();
                assert!(shift > 0.0 && shift == expected, "{pipeline}, {linear}: {shift}, not {expected}");
            }
            // The steps to the last point, then for each point of each linear the blocks from its own on.
            assert_eq!(steps, wanted);
        }
    }

    #[test]
    fn what_rounding_alone_moves_counts_for_little() {
        let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/assets");
        let folder = PipelineFolder::open(&assets.join("shapes-sd3")).unwrap();
        let (config, size) = (folder.transformer_config(), folder.latent_size(Some(32), Some(32)).unwrap());
        let encoders = folder.text_encoders(24).unwrap();
        // Found without and with what rounding moves, and the number of steps.
        let [wide, narrow] = [DType::F32, DType::BF16].map(|dtype| {
            let mut model = config.load(&folder.transformer_weights().unwrap(), dtype).unwrap();
            let spool = std::env::temp_dir();
            let encoded = Encoded::new(&encoders, &["a red circle"], dtype, &spool, &mut |_, _| {}).unwrap();
            let schedule = folder.schedule(4, size.tokens).unwrap();
            let trajectories = Trajectories::new(schedule, config.guidance(4.0), 0, size, encoded);
            let mut steps = 0;
            let mut step = || {
                steps += 1;
                Ok(())
            };
            let mut probe = Probe::new(&*model, &trajectories, 0..1, &[1, 3], &mut step).unwrap();
            let (mut found, mut with_rounding) = (0.0, 0.0);
            for linear in (0..12).map(LinearId) {
                let weight = model.weight(linear).unwrap().clone();
                // A hundredth less: that moves next to nothing.
                let replaced = || vec![Replacement { linear, weight: (&weight * 0.99).unwrap(), bias: None }];
                found += probe.shift(&mut *model, replaced(), &mut step).unwrap();
                let dense = [Replacement { linear, weight: weight.clone(), bias: None }];
                with_rounding += probe.change_by(&mut *model, replaced(), &dense, &mut step).unwrap();
            }
            (found, with_rounding, steps)
        });
        assert!(wide.0 == wide.1, "{wide:?}");
        // In f32 a shift and a change take a forward call each, in bf16 a shift takes two.
        assert_eq!((wide.2 - 4) * 3, (narrow.2 - 4) * 2, "{wide:?} {narrow:?}");
        // Nearly all that moves in 16 bits is rounding, and most of that is taken off.
        assert!(wide.0 < 0.05 * narrow.1, "{wide:?} {narrow:?}");
        assert!(narrow.0 > 0.0 && narrow.0 < 0.4 * narrow.1, "{wide:?} {narrow:?}");
    }
}
