use std::cell::RefCell;

use obsdiff_proto::{Inventory, LinearId};

use super::*;
use crate::model::{NoTap, State};
use crate::pipeline::{LevelSource, Scheduler};

/// A model whose velocity is a linear function: latents / 2 + the item's first pooled number + timestep / 1000.
struct LinearModel {
    inventory: Inventory,
    /// The shapes and the timesteps of its calls.
    calls: RefCell<Vec<(Vec<usize>, Vec<f32>)>>,
    /// The guidance of its last call.
    guidance: RefCell<Vec<f32>>,
}

impl LinearModel {
    fn new() -> Self {
        let inventory = Inventory::default();
        Self { inventory, calls: RefCell::default(), guidance: RefCell::default() }
    }
}

impl DiffusionModel for LinearModel {
    fn duplicate(&self) -> Box<dyn DiffusionModel> {
        Box::new(Self::new())
    }

    fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    fn operations(&self) -> u64 {
        0
    }

    fn block_count(&self) -> usize {
        0
    }

    fn start(&self, call: &Denoise<'_>) -> Result<State> {
        let (batch, ..) = call.latents.dims4()?;
        assert_eq!(call.text.dims(), [batch, 2, 3]);
        let column = |x: &Tensor| x.to_dtype(call.latents.dtype())?.reshape((batch, 1, 1, 1));
        let offset = (column(&call.pooled.narrow(1, 0, 1)?)? + column(&(call.timestep / 1000.0)?)?)?;
        self.calls.borrow_mut().push((call.latents.dims().to_vec(), call.timestep.to_vec1()?));
        if let Some(guidance) = call.guidance {
            *self.guidance.borrow_mut() = guidance.to_vec1()?;
        }
        let velocity = (call.latents / 2.0)?.broadcast_add(&offset)?;
        Ok(State::default().with("velocity", velocity))
    }

    fn block(&self, _: usize, state: State, _: &mut dyn Tap) -> Result<State> {
        Ok(state)
    }

    fn finish(&self, mut state: State) -> Result<Tensor> {
        state.take("velocity")
    }

    fn weight(&self, _: LinearId) -> Result<&Tensor> {
        Err(Error::Argument("it has no linears".to_owned()))
    }

    fn replace(&mut self, _: LinearId, _: Tensor) -> Result<()> {
        Err(Error::Argument("it has no linears".to_owned()))
    }

    fn bias(&self, _: LinearId) -> Result<Option<&Tensor>> {
        Err(Error::Argument("it has no linears".to_owned()))
    }

    fn replace_bias(&mut self, _: LinearId, _: Tensor) -> Result<()> {
        Err(Error::Argument("it has no linears".to_owned()))
    }
}

fn free(classifier_free: f64) -> Guidance {
    Guidance { classifier_free, input: None }
}

fn conditioning(pooled: f32) -> Conditioning {
    let text = Tensor::zeros((2, 3), DType::F32, &crate::HOST).unwrap();
    Conditioning { text, pooled: Tensor::new(&[pooled, 9.0], &crate::HOST).unwrap() }
}

/// Levels 1, 0.001 and 0.
fn schedule() -> Schedule {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scheduler_config.json");
    std::fs::write(&path, "{}").unwrap();
    Scheduler::open(&path).unwrap().schedule(2, 1, LevelSource::Scheduler).unwrap()
}

fn noise(prompts: usize) -> Tensor {
    let values: Vec<f32> = (0..prompts).map(|i| i as f32 + 1.0).collect();
    Tensor::from_vec(values, (prompts, 1, 1, 1), &crate::HOST).unwrap()
}

fn run(guidance: f64, model: &LinearModel, schedule: &Schedule) -> Vec<f32> {
    let (one, two, negative) = (conditioning(0.25), conditioning(-0.5), conditioning(0.125));
    let mut trajectory =
        Trajectory::new(schedule, free(guidance), &[&one, &two], &negative, noise(2)).unwrap();
    assert_eq!((trajectory.step_count(), trajectory.next_step()), (2, 0));
    trajectory.step(model, &mut NoTap).unwrap();
    assert_eq!(trajectory.next_step(), 1);
    let latents: Vec<f32> = trajectory.latents().flatten_all().unwrap().to_vec1().unwrap();
    trajectory.step(model, &mut NoTap).unwrap();
    let error = trajectory.step(model, &mut NoTap).unwrap_err().to_string();
    assert!(error.contains("a trajectory of 2 steps is at its end"), "{error}");
    latents
}

/// One step by hand: x + dt * (x / 2 + n + t / 1000 + g (p - n)).
fn by_hand(guidance: f32, schedule: &Schedule) -> Vec<f32> {
    let dt = schedule.sigmas()[1] - schedule.sigmas()[0];
    let t = schedule.timesteps()[0] / 1000.0;
    let step = |x: f32, p: f32| x + dt * (x / 2.0 + 0.125 + t + guidance * (p - 0.125));
    vec![step(1.0, 0.25), step(2.0, -0.5)]
}

#[test]
fn guidance_leads_away_from_the_negative() {
    let (model, schedule) = (LinearModel::new(), schedule());
    let (found, expected) = (run(4.0, &model, &schedule), by_hand(4.0, &schedule));
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() <= 1e-4 * expected.abs(), "{found} for {expected}");
    }
    let calls = model.calls.borrow();
    assert_eq!(calls.len(), 2);
    for ((shape, timesteps), &timestep) in calls.iter().zip(schedule.timesteps()) {
        assert_eq!((shape.as_slice(), timesteps.as_slice()), (&[4, 1, 1, 1][..], &[timestep; 4][..]));
    }
}

#[test]
fn without_guidance_the_negative_takes_no_part() {
    let (model, schedule) = (LinearModel::new(), schedule());
    for guidance in [1.0, 0.0] {
        let (found, expected) = (run(guidance, &model, &schedule), by_hand(1.0, &schedule));
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() <= 1e-4 * expected.abs(), "{found} for {expected}");
        }
    }
    assert!(model.calls.borrow().iter().all(|(shape, _)| shape == &[2, 1, 1, 1]));
}

/// The model gets the scale that it takes as an input, for the negative prompt and for the prompt.
#[test]
fn guidance_that_is_an_input_goes_with_every_picture() {
    let (one, negative) = (conditioning(0.25), conditioning(0.125));
    for (classifier_free, pictures) in [(1.0, 1), (4.0, 2)] {
        let (model, schedule) = (LinearModel::new(), schedule());
        let guidance = Guidance { classifier_free, input: Some(3.5) };
        let mut trajectory = Trajectory::new(&schedule, guidance, &[&one], &negative, noise(1)).unwrap();
        trajectory.step(&model, &mut NoTap).unwrap();
        assert_eq!(*model.guidance.borrow(), vec![3.5; pictures]);
        let found: Vec<f32> = trajectory.latents().flatten_all().unwrap().to_vec1().unwrap();
        let expected = by_hand(classifier_free as f32, &schedule)[0];
        assert!((found[0] - expected).abs() <= 1e-4 * expected.abs(), "{found:?} for {expected}");
    }
}

#[test]
fn latents_stay_in_f32_whatever_the_model_computes_in() {
    let half = conditioning(0.25).to(DType::BF16).unwrap();
    let schedule = schedule();
    let mut trajectory = Trajectory::new(&schedule, free(2.0), &[&half], &half, noise(1)).unwrap();
    trajectory.step(&LinearModel::new(), &mut NoTap).unwrap();
    assert_eq!(trajectory.latents().dtype(), DType::F32);
}

#[test]
fn batches_that_do_not_fit_are_refused() {
    let (one, schedule) = (conditioning(0.0), schedule());
    let error = |guidance, prompts: &[&Conditioning], noise| {
        Trajectory::new(&schedule, free(guidance), prompts, &one, noise).unwrap_err().to_string()
    };
    assert!(error(4.0, &[], noise(1)).contains("0 prompts"));
    assert!(error(4.0, &[&one], noise(2)).contains("1 prompts for noise of shape [2, 1, 1, 1]"));
    assert!(error(f64::NAN, &[&one], noise(1)).contains("`calibration.guidance` is NaN"));
    let mut narrow = one.clone();
    narrow.pooled = narrow.pooled.narrow(0, 0, 1).unwrap();
    assert!(error(4.0, &[&one, &narrow], noise(2)).contains("is not like that of the negative"));
}
