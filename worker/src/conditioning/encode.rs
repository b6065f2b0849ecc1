//! Encoding: the prompts whose conditioning is not in the store are encoded, and put there.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::Device;
use obsdiff_engine::pipeline::{Conditioning, TextEncoders};
use obsdiff_proto::{Digest, JobError, JobSpec};
use obsdiff_store::{JobStore, conditioning_object};
use tokio::runtime::Handle;

use super::object::Expected;
use super::{ConditioningFile, ConditioningObjects, object};
use crate::preparation::{JobModel, PreparationError, Result, compute_type};

/// Parts into which the progress of a prompt is divided.
const PARTS: u64 = 1000;

/// An object to make: its key, the ids of its prompts, none of the empty one, and its texts.
struct Missing<'a> {
    key: Digest,
    ids: Option<Range<u32>>,
    texts: Vec<&'a str>,
}

/// Encodes those of a job's prompts whose conditioning its store lacks or has damaged, and puts it there; `prompts` are all of them, by
/// their ids. `on_encoded` is told how much is done, and of how much.
///
/// # Errors
/// When the encoders cannot be used, or the store fails.
pub fn encode_missing(
    spec: &JobSpec,
    model: &JobModel,
    objects: &ConditioningObjects,
    prompts: &[&str],
    (store, runtime): (&JobStore, &Handle),
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
    let encoders =
        model.pipeline.text_encoders(spec.calibration.max_sequence_length as usize, &Device::Cpu)?;
    let mut progress = Progress { done: 0, all: prompts_of(&missing), tell: on_encoded };
    for group in groups(&missing, encoders.prompts_together()) {
        let made = encode(spec, &encoders, group, &mut progress)?;
        for (key, content) in made {
            runtime.block_on(store.at_start().put_conditioning(key, content))?;
        }
    }
    Ok(())
}

/// Puts into the store of a job what it lacks of a file of conditionings, or has damaged. `on_put` is told after each object how many
/// prompts are done, and of how many.
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
    for Missing { key, ids, texts } in missing {
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

/// The objects that the store lacks, or that are not what was put; calls `on_read` after each that was read.
fn missing<'a>(
    spec: &JobSpec,
    model: &JobModel,
    objects: &ConditioningObjects,
    prompts: &[&'a str],
    (store, runtime): (&JobStore, &Handle),
    on_read: &mut dyn FnMut(),
) -> Result<Vec<Missing<'a>>> {
    let store = store.at_start();
    let present = runtime.block_on(store.conditionings())?;
    let of_shard = |(ids, key): &(Range<u32>, Digest)| {
        let texts = prompts.get(ids.start as usize..ids.end as usize).unwrap_or_default();
        Missing { key: *key, ids: Some(ids.clone()), texts: texts.to_vec() }
    };
    let negative = Missing { key: objects.negative, ids: None, texts: vec![""] };
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

fn prompts_of(objects: &[Missing<'_>]) -> u64 {
    objects.iter().map(|object| object.texts.len() as u64).sum()
}

/// Objects that follow each other, as many as have `most` prompts together, but at least one.
fn groups<'o, 'a>(objects: &'o [Missing<'a>], most: usize) -> impl Iterator<Item = &'o [Missing<'a>]> {
    let mut left = objects;
    std::iter::from_fn(move || {
        let mut prompts = 0;
        let fits = |object: &&Missing<'_>| {
            prompts += object.texts.len();
            prompts <= most
        };
        let count = left.iter().take_while(fits).count().max(1);
        let (group, rest) = left.split_at_checked(count)?;
        left = rest;
        Some(group)
    })
}

/// The contents of some objects, by key.
fn encode(
    spec: &JobSpec,
    encoders: &TextEncoders,
    objects: &[Missing<'_>],
    progress: &mut Progress<'_>,
) -> Result<Vec<(Digest, Vec<u8>)>> {
    let dtype = compute_type(spec.model.dtype);
    let mut encoded: BTreeMap<String, Conditioning> = BTreeMap::new();
    let mut keep = |prompt: &str, conditioning: Conditioning| {
        encoded.insert(prompt.to_owned(), conditioning.to(dtype, &Device::Cpu)?);
        Ok(())
    };
    let texts: Vec<&str> = objects.iter().flat_map(|object| object.texts.iter().copied()).collect();
    let prompts = texts.len() as u64;
    encoders.encode_each(&texts, &mut keep, &mut |done, all| progress.tell(prompts, done, all))?;
    progress.done += prompts;
    let unmade =
        |problem: String| PreparationError::Argument(format!("the prompts were not encoded: {problem}"));
    let content = |Missing { key, texts, .. }: &Missing<'_>| {
        let of = |text: &&str| encoded.get(*text).ok_or_else(|| unmade(format!("\"{text}\" is missing")));
        let conditionings: Vec<&Conditioning> = texts.iter().map(of).collect::<Result<_>>()?;
        Ok((*key, object::write(*key, &conditionings).map_err(unmade)?))
    };
    objects.iter().map(content).collect()
}

/// How far encoding is, in prompts.
struct Progress<'a> {
    done: u64,
    all: u64,
    tell: &'a mut dyn FnMut(u64, u64),
}

impl Progress<'_> {
    /// `done` of the work of so many prompts is done.
    fn tell(&mut self, prompts: u64, done: u64, of: u64) {
        let part = (u128::from(prompts * PARTS) * u128::from(done) / u128::from(of.max(1))) as u64;
        (self.tell)(self.done * PARTS + part, self.all * PARTS);
    }
}
