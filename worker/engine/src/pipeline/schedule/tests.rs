use super::*;

fn scheduler(config: &str) -> Result<Scheduler> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scheduler_config.json");
    std::fs::write(&path, config).unwrap();
    Scheduler::open(&path)
}

fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= 1e-6 * expected.abs().max(1.0), "{found} for {expected}");
    }
}

/// Levels printed by diffusers 0.33.1 for four steps; those of dynamic shifting with mu = 0.9, which 2000 tokens give here.
#[test]
fn levels_are_those_of_diffusers() {
    let dynamic = "\"use_dynamic_shifting\": true, \"base_image_seq_len\": 1000, \"max_image_seq_len\": 3000, \
                   \"base_shift\": 0.5, \"max_shift\": 1.3";
    let cases = [
        (r#"{"shift": 3.0}"#.to_owned(), [1.0, 0.857_692_3, 0.602_150_56, 0.008_928_572, 0.0]),
        (r#"{"shift": 2.0, "shift_terminal": 0.1}"#.to_owned(), [1.0, 0.819_712_4, 0.549_550_9, 0.1, 0.0]),
        (
            r#"{"shift": 3.0, "use_karras_sigmas": true}"#.to_owned(),
            [1.0, 0.286_693_93, 0.062_588_63, 0.008_928_572, 0.0],
        ),
        (
            r#"{"shift": 3.0, "use_exponential_sigmas": true}"#.to_owned(),
            [1.0, 0.207_456_63, 0.043_038_256, 0.008_928_572, 0.0],
        ),
        (format!("{{{dynamic}}}"), [1.0, 0.831_268_97, 0.552_271_1, 0.002_456_018_5, 0.0]),
        (
            format!("{{{dynamic}, \"time_shift_type\": \"linear\"}}"),
            [1.0, 0.643_201_53, 0.310_986_97, 0.000_900_09, 0.0],
        ),
        (
            r#"{"shift": 3.0, "invert_sigmas": true}"#.to_owned(),
            [0.0, 0.142_307_7, 0.397_849_44, 0.991_071_4, 1.0],
        ),
    ];
    for (config, expected) in cases {
        let schedule = scheduler(&config).unwrap().schedule(4, 2000, LevelSource::Scheduler).unwrap();
        assert_close(schedule.sigmas(), &expected);
        let timesteps: Vec<f32> = expected[..4].iter().map(|sigma| sigma * 1000.0).collect();
        assert_close(schedule.timesteps(), &timesteps);
    }
}

/// Where the pipeline gives the levels, evenly down to 1 / T, each is shifted once. By hand: s l / (1 + (s - 1) l) of level l, with
/// s = 1, s = 3, and s = e^1.15 for as many tokens as the scheduler's largest picture has.
#[test]
fn levels_of_the_pipeline_are_shifted_once() {
    let cases = [
        (r#"{"shift": 1.0}"#, [1.0, 0.75, 0.5, 0.25, 0.0]),
        (r#"{"shift": 3.0}"#, [1.0, 0.9, 0.75, 0.5, 0.0]),
        (
            r#"{"shift": 3.0, "use_dynamic_shifting": true}"#,
            [1.0, 0.904_530_8, 0.759_510_9, 0.512_844_1, 0.0],
        ),
    ];
    for (config, expected) in cases {
        let schedule = scheduler(config).unwrap().schedule(4, 4096, LevelSource::Pipeline).unwrap();
        for (found, expected) in schedule.sigmas().iter().zip(expected) {
            assert!((found - expected).abs() < 5e-6, "{config}: {found} for {expected}");
        }
    }
}

/// Levels printed by diffusers 0.42.1 for four steps: it warns that it ignores these keys, and reads them all the same.
#[test]
fn the_ends_of_spacings_that_are_not_even_can_be_given() {
    let cases = [
        (
            r#"{"shift": 3.0, "use_karras_sigmas": true, "sigma_min": 0.02, "sigma_max": 0.9}"#,
            [0.9, 0.313_588, 0.090_587_75, 0.02, 0.0],
        ),
        (
            r#"{"shift": 3.0, "use_karras_sigmas": true, "sigma_min": 0.02}"#,
            [1.0, 0.340_316_44, 0.095_132_45, 0.02, 0.0],
        ),
        (
            r#"{"shift": 3.0, "use_exponential_sigmas": true, "sigma_min": 0.02, "sigma_max": 0.9}"#,
            [0.9, 0.253_029_8, 0.071_137_87, 0.02, 0.0],
        ),
        (
            r#"{"shift": 3.0, "use_exponential_sigmas": true, "sigma_max": 0.9, "sigma_min": null}"#,
            [0.9, 0.193_384_8, 0.041_552_98, 0.008_928_572, 0.0],
        ),
        (
            r#"{"shift": 3.0, "sigma_min": 0.02, "sigma_max": 0.9}"#,
            [1.0, 0.857_692_3, 0.602_150_56, 0.008_928_572, 0.0],
        ),
    ];
    for (config, expected) in cases {
        let schedule = scheduler(config).unwrap().schedule(4, 2000, LevelSource::Scheduler).unwrap();
        assert_close(schedule.sigmas(), &expected);
    }
    let from_zero = r#"{"use_exponential_sigmas": true, "sigma_min": 0.0}"#;
    let error =
        scheduler(from_zero).unwrap().schedule(4, 64, LevelSource::Scheduler).unwrap_err().to_string();
    assert!(error.contains("not finite for 4 steps"), "{error}");
}

/// Levels printed by diffusers 0.42.1 for four steps without levels of the pipeline, which FLUX's leaves out then; mu is 1.15.
#[test]
fn flow_sigmas_are_those_of_the_scheduler_in_every_pipeline() {
    for (config, expected) in [
        (r#"{"shift": 3.0, "use_flow_sigmas": true}"#, [1.0, 0.857_692_3, 0.602_150_56, 0.008_928_572, 0.0]),
        (
            r#"{"use_dynamic_shifting": true, "use_flow_sigmas": true}"#,
            [1.0, 0.863_497_44, 0.612_978_9, 0.003_151_391_6, 0.0],
        ),
    ] {
        let scheduler = scheduler(config).unwrap();
        for source in [LevelSource::Scheduler, LevelSource::Pipeline] {
            assert_close(scheduler.schedule(4, 4096, source).unwrap().sigmas(), &expected);
        }
    }
}

#[test]
fn training_timesteps_scale_the_timesteps() {
    let schedule = scheduler(r#"{"shift": 1.15, "num_train_timesteps": 500}"#)
        .unwrap()
        .schedule(4, 64, LevelSource::Scheduler)
        .unwrap();
    assert_close(schedule.sigmas(), &[1.0, 0.697_698_06, 0.366_677_94, 0.002_643_295, 0.0]);
    assert_close(schedule.timesteps(), &[500.0, 348.849_03, 183.338_97, 1.321_647_5]);
}

#[test]
fn one_step_goes_from_noise_to_picture() {
    let schedule = scheduler("{}").unwrap().schedule(1, 64, LevelSource::Scheduler).unwrap();
    assert_eq!((schedule.sigmas(), schedule.timesteps()), (&[1.0, 0.0][..], &[1000.0][..]));
}

#[test]
fn euler_steps_by_the_difference_of_levels() {
    let schedule = scheduler(r#"{"shift": 3.0}"#).unwrap().schedule(4, 64, LevelSource::Scheduler).unwrap();
    let latents = Tensor::new(&[1.0_f32, -2.0], &crate::HOST).unwrap();
    let velocity = Tensor::new(&[10.0_f32, 1.0], &crate::HOST).unwrap();
    let next: Vec<f32> = schedule.step(0, &latents, &velocity).unwrap().to_vec1().unwrap();
    assert_close(&next, &[1.0 - 1.423_077, -2.0 - 0.142_307_7]);
    let error = schedule.step(4, &latents, &velocity).unwrap_err().to_string();
    assert!(error.contains("step 4 of a trajectory of 4 steps"), "{error}");
}

#[test]
fn bad_keys_are_named_with_their_values() {
    let cases = [
        (r#"{"use_beta_sigmas": true}"#, "`use_beta_sigmas` is true"),
        (r#"{"shift": "three"}"#, "`shift` is \"three\", but it must be a number"),
        (r#"{"shift": 0}"#, "`shift` is 0, but it must be above 0"),
        (r#"{"shift_terminal": 1.0}"#, "`shift_terminal` is 1.0"),
        (r#"{"num_train_timesteps": 0}"#, "`num_train_timesteps` is 0"),
        (r#"{"time_shift_type": "cubic"}"#, "`time_shift_type` is \"cubic\""),
        (r#"{"use_karras_sigmas": true, "use_exponential_sigmas": true}"#, "only one may be"),
        (r#"{"use_flow_sigmas": "yes"}"#, "`use_flow_sigmas` is \"yes\", but it must be true or false"),
        (r#"{"sigma_min": "small"}"#, "`sigma_min` is \"small\", but it must be a number"),
        (r#"{"use_karras_sigmas": 1}"#, "`use_karras_sigmas` is 1, but it must be true or false"),
        (
            r#"{"use_dynamic_shifting": true, "base_image_seq_len": 9, "max_image_seq_len": 9}"#,
            "`max_image_seq_len` is 9",
        ),
        (r#"{"stochastic_sampling": true}"#, "`stochastic_sampling` is true"),
        (r#"{"shift": null}"#, "`shift` is null, but only a key that is left out has a default"),
        (r#"{"time_shift_type": null}"#, "`time_shift_type` is null"),
        ("[]", "is not the JSON expected here"),
    ];
    for (config, message) in cases {
        let error = scheduler(config).unwrap_err().to_string();
        assert!(error.contains("scheduler_config.json") && error.contains(message), "{config}: {error}");
    }
}

#[test]
fn steps_that_make_no_trajectory_are_refused() {
    for steps in [0, 1_000_001] {
        let error =
            scheduler("{}").unwrap().schedule(steps, 64, LevelSource::Scheduler).unwrap_err().to_string();
        assert!(error.contains("`calibration.steps`") && error.contains(&steps.to_string()), "{error}");
    }
    // Stretching the one level of a single step divides zero by zero, in diffusers too.
    let error = scheduler(r#"{"shift_terminal": 0.1}"#)
        .unwrap()
        .schedule(1, 64, LevelSource::Scheduler)
        .unwrap_err()
        .to_string();
    assert!(error.contains("not finite for 1 steps"), "{error}");
}
