//! What a survey takes of a GPU in host memory to probe.

use std::sync::Arc;

use candle_core::DType;
use obsdiff_engine::calibrate::{Encoded, Trajectories};
use obsdiff_engine::device::ComputeDevice;
use obsdiff_engine::gram::{Gram, PlacedGram};
use obsdiff_engine::pipeline::PipelineFolder;
use obsdiff_engine::pruner::{ForwardCall, Pruner};
use obsdiff_proto::message::Slice;
use obsdiff_proto::{Accumulate, JobSpec, LinearId, LinearTarget, Package, PackageId, Target};
use obsdiff_tests::{noise, shipped};
use serde_json::json;

use super::{counted, counts_alone};
use crate::new_device;
use crate::text::encoders;

const STEPS: usize = 5;

/// Bytes of a GPU.
struct Probed {
    /// What a survey took beside the weights.
    taken: u64,
    /// What its forward calls and probes are predicted to take.
    predicted: u64,
    /// What is predicted of the state of a call.
    state: u64,
}

/// Surveys one linear at so many points.
fn probed(device: &ComputeDevice, name: &str, dtype: DType, points: usize) -> Probed {
    let spec: JobSpec = serde_json::from_value(json!({
        "model": { "path": name }, "sparsity": { "pattern": "unstructured", "ratio": 0.5, "method": "magnitude" }, "probe": { "points": points },
        "calibration": { "prompts": "p.txt", "steps": STEPS }, "output": { "path": "out" }
    }))
    .unwrap();
    assert_eq!(spec.probe.steps(STEPS as u32).len(), points);
    let pipeline = PipelineFolder::open(&shipped(name)).unwrap();
    let config = pipeline.transformer_config();
    let size = pipeline.latent_size(Some(16), Some(16)).unwrap();
    let guidance = pipeline.guidance(3.0, 1.0).unwrap();
    let encoders = encoders(name, &ComputeDevice::Cpu, DType::F32);
    let call = ForwardCall {
        config: &**config,
        pictures: guidance.branches(),
        image: size.tokens,
        text: encoders.tokens(),
        dtype,
    };
    let encoded = Encoded::new(&encoders, &["a ring"], dtype, &std::env::temp_dir(), &mut |_, _| {}).unwrap();
    let schedule = pipeline.schedule(STEPS, size.tokens).unwrap();
    let trajectories = Arc::new(Trajectories::new(schedule, guidance, 0, size, encoded));
    let weights = Arc::new(pipeline.transformer_weights().unwrap());
    let model = config.load(&weights, dtype).unwrap();
    counted("fake_cuda_passing_bytes");
    let mut pruner = Pruner::new(&spec, model, weights, trajectories).on(device.clone());

    let inventory = config.inventory();
    // The largest, of which the processor chooses what goes.
    let size = |id: &LinearId| inventory.linear(*id).rows * inventory.site(inventory.linear(*id).site).width;
    let largest = inventory.linear_ids().max_by_key(size).unwrap();
    let linear = inventory.linear(largest);
    let width = inventory.site(linear.site).width;
    let mut gram = Gram::new(width, Accumulate::Exact, 20);
    gram.observe(&noise(1, 2 * width * width), 1.0).unwrap();
    let target = LinearTarget { linear: largest, target: Target::Unstructured { ratio: 0.5 } };
    let (id, sites) = (PackageId(0), vec![linear.site]);
    let package = Package { id, units: 0..0, sites, linears: vec![target], survey: true };
    let slice = Slice { linear: largest, rows: 0..linear.rows };
    let gram = PlacedGram::Host(Arc::new(gram));
    let surveyed = pruner.survey_slices(&package, &[slice], Some(&gram), &mut || Ok(())).unwrap();
    // With the weights and the points, which go now.
    drop(pruner);
    let numbers: usize = config.shapes().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    let taken = counted("fake_cuda_passing_bytes").unwrap() - (numbers * dtype.size_in_bytes()) as u64;
    assert!(surveyed[0].shift > 0.0);
    let state = call.probe_bytes(1, &inventory) - call.probe_bytes(0, &inventory);
    let predicted = call.gpu_bytes() + call.probe_bytes(points, &inventory);
    Probed { taken, predicted, state }
}

#[test]
fn probing_takes_the_memory_that_is_predicted() {
    if !matches!(new_device(), ComputeDevice::Cuda(_)) || counted("fake_cuda_bytes_to_host").is_none() {
        return;
    }
    if !counts_alone("fake::probes::probing_takes_the_memory_that_is_predicted") {
        return;
    }
    let device = new_device();
    for (name, dtype) in [("shapes-sd3", DType::F32), ("shapes-flux", DType::BF16)] {
        let [few, many] = [2, 4].map(|points| probed(&device, name, dtype, points));
        for Probed { taken, predicted, .. } in [&few, &many] {
            assert!((*taken..2 * taken).contains(predicted), "{name}: {taken} bytes, predicted {predicted}");
        }
        // Each point keeps a state. Tables of a state, which are counted with it, are shared.
        let more = many.taken - few.taken;
        assert!(
            (few.state..=2 * few.state).contains(&more),
            "{name}: {more} bytes of two states, of {}",
            few.state
        );
    }
}
