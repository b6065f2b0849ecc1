//! On Grams that the shipped pipeline's own activations make, which are worse conditioned than those of random inputs.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::DType;
use obsdiff_engine::calibrate::{Encoded, GramTap, Trajectories, alphas};
use obsdiff_engine::gram::Gram;
use obsdiff_engine::model::DiffusionModel;
use obsdiff_engine::pipeline::PipelineFolder;
use obsdiff_engine::solve::stride;
use obsdiff_proto::{Accumulate, Method, SiteId, Target, Weighting};

use super::assets;
use super::optimum::Problem;

/// The Grams of all sites over a few prompts.
fn grams(model: &dyn DiffusionModel, pipeline: &PipelineFolder) -> BTreeMap<SiteId, Arc<Gram>> {
    let inventory = model.inventory();
    let gram = |site| (site, Arc::new(Gram::new(inventory.site(site).width, Accumulate::F32, 0)));
    let mut grams: BTreeMap<SiteId, Arc<Gram>> = inventory.site_ids().map(gram).collect();
    let text = std::fs::read_to_string(assets("shapes-prompts.txt")).unwrap();
    let prompts: Vec<&str> = text.lines().take(8).collect();
    let encoders = pipeline.text_encoders(24).unwrap();
    let (dtype, folder) = (DType::F32, std::env::temp_dir());
    let encoded = Encoded::new(&encoders, &prompts, dtype, &folder, &mut |_, _| {}).unwrap();
    let size = pipeline.latent_size(Some(32), Some(32)).unwrap();
    let steps = 10;
    let schedule = pipeline.schedule(steps, size.tokens).unwrap();
    let trajectories =
        Trajectories::new(schedule, pipeline.transformer_config().guidance(4.0), 0, size, encoded);
    let alphas = alphas(Weighting::LogDecrease, steps as u32, 0.8, 1.2);
    let mut tap = GramTap::new(inventory, &mut grams);
    for first in [0, 4] {
        trajectories.denoise(model, first..first + 4, &alphas, &mut tap, &mut |_| Ok(())).unwrap();
    }
    grams
}

#[test]
fn ten_steps_come_within_a_tenth_of_the_optimum() {
    let pipeline = PipelineFolder::open(&assets("shapes-sd3")).unwrap();
    let weights = pipeline.transformer_weights().unwrap();
    let model = pipeline.transformer_config().load(&weights, DType::F32).unwrap();
    let inventory = model.inventory();
    let (mut all, mut count) = ([0.0; 2], 0.0);
    for (site, gram) in grams(&*model, &pipeline) {
        let n = gram.width();
        let problem = Problem::new(n, gram.to_upper(stride(n)));
        for linear in &inventory.site(site).linears {
            let weight = model.weight(*linear).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for target in [Target::Unstructured { ratio: 0.6 }, Target::NToM { n: 2, m: 4 }] {
                let errors = problem.errors(&weight, Method::Obs, target, 10);
                let ratios = [errors.pruned, errors.refined].map(|error| error / errors.optimum);
                let name = &inventory.linear(*linear).name;
                println!("{name}, {target:?}: OBS at {:.3}, refined at {:.3}", ratios[0], ratios[1]);
                assert!(1.0 - 1e-3 <= ratios[1] && ratios[1] < ratios[0], "{name}: {ratios:?}");
                all.iter_mut().zip(ratios).for_each(|(sum, ratio)| *sum += ratio);
                count += 1.0;
            }
        }
    }
    assert_eq!(count, 2.0 * 69.0);
    let [before, after] = all.map(|sum| sum / count);
    println!("on average: OBS at {before:.3} of the optimum's error, refined at {after:.3}");
    assert!(after <= 1.10, "{after} of the optimum on average");
}
