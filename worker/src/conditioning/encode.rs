//! Encoding: prompts whose conditioning the store lacks are encoded, and the result is put into the store.

use std::collections::BTreeMap;
use std::ops::Range;

use obsdiff_engine::device::ComputeDevice;
use obsdiff_engine::pipeline::{Conditioning, TextEncoders};
use obsdiff_proto::{Digest, JobError, JobSpec};
use obsdiff_store::{JobStore, conditioning_object};
use tokio::runtime::Handle;

use super::object::Expected;
use super::{ConditioningFile, ConditioningObjects, object};
use crate::preparation::{JobModel, PreparationError, Result, compute_type};

/// Parts into which the progress of a prompt is divided.
const PARTS: u64 = 1000;

/// An object that the store lacks: its key, the ids of its prompts (none for the empty prompt), and their texts.
struct MissingObject<'a> {
    key: Digest,
    ids: Option<Range<u32>>,
    texts: Vec<&'a str>,
}

/// Encodes those of a job's prompts whose conditioning is missing from its store or damaged there, and puts it into the store. `prompts`
/// are all prompts, by their ids. `on_encoded` receives how much is done, and of how much. A device has its memory back when this ends.
///
/// # Errors
/// When the encoders cannot be used, the device has no room for them, or the store fails.
pub fn encode_missing(
    spec: &JobSpec,
    model: &JobModel,
    objects: &ConditioningObjects,
    prompts: &[&str],
    (store, runtime): (&JobStore, &Handle),
    device: &ComputeDevice,
    on_encoded: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    let missing = missing(spec, model, objects, prompts, (store, runtime), &mut || on_encoded(0, 1))?;
    if missing.is_empty() {
        return Ok(());
    }
    if let Some(file) = &spec.calibration.conditioning {
        let problem = format!(
            "is {file}, but the job's store lacks {} prompts of it: start the coordinator again, which puts them there",
            prompts_of(&missing)
        );
        return Err(JobError::new("calibration.conditioning", problem).into());
    }
    let encoders = model.pipeline.text_encoders(spec.calibration.max_sequence_length as usize)?;
    let dtype = compute_type(spec.model.dtype);
    let encoders = encoders.on(device, dtype).for_prompts(prompts_of(&missing) as usize, device, dtype)?;
    let mut progress = EncodingProgress { done: 0, all: prompts_of(&missing), on_progress: on_encoded };
    for group in groups(&missing, encoders.prompts_together()) {
        let made = encode(spec, &encoders, group, &mut progress)?;
        model.files.check_unchanged()?;
        for (key, content) in made {
            runtime.block_on(store.at_start().put_conditioning(key, content))?;
        }
    }
    drop(encoders);
    Ok(device.release_unused()?)
}

/// Puts into the store of a job the conditionings of a file that are missing there or damaged. After each object `on_put` receives how
/// many prompts are done, and of how many.
///
/// # Errors
/// When the file cannot be read, or the store fails.
pub fn put_missing(
    spec: &JobSpec,
    model: &JobModel,
    (objects, prompts): (&ConditioningObjects, &[&str]),
    file: &ConditioningFile,
    (store, runtime): (&JobStore, &Handle),
    on_put: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    let missing = missing(spec, model, objects, prompts, (store, runtime), &mut || on_put(0, 1))?;
    let (mut done, all) = (0, prompts_of(&missing));
    let dtype = compute_type(spec.model.dtype);
    for MissingObject { key, ids, texts } in missing {
        let conditionings = match ids {
            Some(ids) => ids.map(|id| file.prompt(id, dtype)).collect::<obsdiff_engine::Result<Vec<_>>>()?,
            None => vec![file.negative(dtype)?],
        };
        let conditionings: Vec<&Conditioning> = conditionings.iter().collect();
        let content = object::write(key, &conditionings).map_err(PreparationError::Argument)?;
        runtime.block_on(store.at_start().put_conditioning(key, content))?;
        done += texts.len() as u64;
        on_put(done, all);
    }
    Ok(())
}

/// The objects that are missing from the store or damaged there. Calls `on_read` after reading each object.
fn missing<'a>(
    spec: &JobSpec,
    model: &JobModel,
    objects: &ConditioningObjects,
    prompts: &[&'a str],
    (store, runtime): (&JobStore, &Handle),
    on_read: &mut dyn FnMut(),
) -> Result<Vec<MissingObject<'a>>> {
    let store = store.at_start();
    let present = runtime.block_on(store.conditionings())?;
    let of_shard = |(ids, key): &(Range<u32>, Digest)| {
        let texts = prompts.get(ids.start as usize..ids.end as usize).unwrap_or_default();
        MissingObject { key: *key, ids: Some(ids.clone()), texts: texts.to_vec() }
    };
    let negative = MissingObject { key: objects.negative, ids: None, texts: vec![""] };
    let all = std::iter::once(negative).chain(objects.shards.iter().map(of_shard));
    let mut missing = Vec::new();
    for object in all {
        if !present.contains(&conditioning_object(object.key)) {
            missing.push(object);
            continue;
        }
        let content = runtime.block_on(store.conditioning(object.key))?;
        let expected = Expected::of(spec, model, object.texts.len());
        if let Err(problem) = object::read(object.key, &content, expected) {
            let error = store.damaged_conditioning(object.key, &problem);
            tracing::warn!("{error}");
            missing.push(object);
        }
        on_read();
    }
    Ok(missing)
}

fn prompts_of(objects: &[MissingObject<'_>]) -> u64 {
    objects.iter().map(|object| object.texts.len() as u64).sum()
}

/// Groups of consecutive objects with at most `most` prompts together, but at least one object.
fn groups<'o, 'a>(
    objects: &'o [MissingObject<'a>],
    most: usize,
) -> impl Iterator<Item = &'o [MissingObject<'a>]> {
    let mut left = objects;
    std::iter::from_fn(move || {
        let mut prompts = 0;
        let fits = |object: &&MissingObject<'_>| {
            prompts += object.texts.len();
            prompts <= most
        };
        let count = left.iter().take_while(fits).count().max(1);
        let (group, rest) = left.split_at_checked(count)?;
        left = rest;
        Some(group)
    })
}

/// Encodes the prompts of some objects, and returns the content of each by its key.
fn encode(
    spec: &JobSpec,
    encoders: &TextEncoders,
    objects: &[MissingObject<'_>],
    progress: &mut EncodingProgress<'_>,
) -> Result<Vec<(Digest, Vec<u8>)>> {
    let dtype = compute_type(spec.model.dtype);
    let mut encoded: BTreeMap<String, Conditioning> = BTreeMap::new();
    let mut keep = |prompt: &str, conditioning: Conditioning| {
        encoded.insert(prompt.to_owned(), conditioning.to(dtype)?);
        Ok(())
    };
    let texts: Vec<&str> = objects.iter().flat_map(|object| object.texts.iter().copied()).collect();
    let prompts = texts.len() as u64;
    encoders.encode_each(&texts, &mut keep, &mut |done, all| progress.report(prompts, done, all))?;
    progress.done += prompts;
    let unmade =
        |problem: String| PreparationError::Argument(format!("the prompts were not encoded: {problem}"));
    let content = |MissingObject { key, texts, .. }: &MissingObject<'_>| {
        let of = |text: &&str| encoded.get(*text).ok_or_else(|| unmade(format!("\"{text}\" is missing")));
        let conditionings: Vec<&Conditioning> = texts.iter().map(of).collect::<Result<_>>()?;
        Ok((*key, object::write(*key, &conditionings).map_err(unmade)?))
    };
    objects.iter().map(content).collect()
}

/// The progress of encoding, counted in prompts.
struct EncodingProgress<'a> {
    done: u64,
    all: u64,
    on_progress: &'a mut dyn FnMut(u64, u64),
}

impl EncodingProgress<'_> {
    /// Reports that, of the work of a batch of so many prompts, the share `done / of` is done.
    fn report(&mut self, prompts: u64, done: u64, of: u64) {
        let part = (u128::from(prompts * PARTS) * u128::from(done) / u128::from(of.max(1))) as u64;
        (self.on_progress)(self.done * PARTS + part, self.all * PARTS);
    }
}
