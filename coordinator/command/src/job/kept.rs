//! Jobs that read Grams which an earlier job kept, in place of calibration. What the Grams decide cannot be set by the job.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use config::{Config, FileFormat, Map, Value, ValueKind};
use obsdiff_proto::{CalibrationSpec, JobError, JobSpec, Pattern};
use obsdiff_store::GramStore;
use obsdiff_worker::grams::GramIndex;
use serde_json::Value as Json;

use super::{JobFile, StoreSettings, blame, find, is_given, overrides, remove, typed, untyped};
use crate::runtime::runtime;
use crate::{Error, Result};

/// Keys that the Grams decide besides all of `[calibration]`.
const DECIDED: [&str; 7] = [
    "model.dtype",
    "hessian.weighting",
    "hessian.low",
    "hessian.high",
    "hessian.accumulate",
    "evaluation.prompts",
    "evaluation.column",
];

/// Keys of `[sparsity]` that mean something for some patterns only: where another pattern is set, those of the earlier job's go.
const OF_PATTERN: [&str; 8] =
    ["ratio", "allocation", "min_ratio", "max_ratio", "dense", "budget", "head_score", "fold_bias"];

/// Reads what Grams are of.
fn index(url: &str, stores: &StoreSettings) -> Result<GramIndex> {
    let store = GramStore::open(url, stores.pairs())?;
    Ok(runtime()?.block_on(store.index())?)
}

/// A place as every process of a job reaches it, whatever folder it runs in.
fn absolute(url: &str) -> Result<String> {
    if url.contains("://") || url.is_empty() {
        return Ok(url.to_owned());
    }
    Ok(std::path::absolute(url).map_err(|e| Error::file(url, e))?.display().to_string())
}

impl JobFile {
    /// The job that kept the Grams at `url`, going by them, overridden by `environment` and `sets` as [`JobFile::load`] has it. Its output
    /// has to be given.
    ///
    /// # Errors
    /// When the Grams cannot be read; as [`JobFile::load`].
    pub fn of_grams(
        url: &str,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        sets: &[String],
    ) -> Result<Self> {
        let environment: Vec<_> = environment.into_iter().collect();
        let stores = StoreSettings::of(&environment);
        let kept = index(url, &stores)?;
        let path = PathBuf::from(url);
        let unwritten =
            |e: &dyn std::error::Error| Error::content(&path, format!("its job cannot be read: {e}"));
        let mut base = JobSpec { calibration: CalibrationSpec::default(), ..kept.spec };
        // Where the pattern or the method is another, so are the defaults that go by it.
        base.sparsity = base.sparsity.without_defaults();
        base.calibration.grams = Some(url.to_owned());
        (base.output.state, base.output.grams) = (None, None);
        (base.output.gram_prompts, base.output.gram_precision) = (Vec::new(), Default::default());
        let text = toml::to_string(&base).map_err(|e| unwritten(&e))?;
        let source = config::File::from_str(&text, FileFormat::Toml);
        let built = Config::builder().add_source(source).build().map_err(|e| unwritten(&e))?;
        let mut merged = built.cache;
        remove(&mut merged, "output", &["path"]);
        overrides::apply_all(&mut merged, &environment, sets)?;
        let given = only_given(&merged);
        if is_given(&given, "preset") {
            let problem = "says what a job leaves out, but the job that kept these Grams says everything: set the keys themselves";
            return Err(Error::key(blame(&path, &merged, "preset"), problem));
        }
        let pattern = find(&given, "sparsity.pattern").map(|pattern| pattern.to_string());
        if pattern.is_some_and(|pattern| pattern != base.sparsity.pattern.to_string()) {
            let kept: Vec<&str> =
                OF_PATTERN.into_iter().filter(|key| !is_given(&given, &format!("sparsity.{key}"))).collect();
            remove(&mut merged, "sparsity", &kept);
        }
        let spec = typed(&merged).map_err(|r| Error::key(blame(&path, &merged, &r.key), r.problem))?;
        Self::new(spec, path, given, stores).checked()
    }

    /// Fills in what kept Grams decide, if the job reads any, and makes their paths absolute.
    pub(super) fn fill_kept(&mut self) -> Result<()> {
        for place in [&mut self.spec.calibration.grams, &mut self.spec.output.grams].into_iter().flatten() {
            *place = absolute(place)?;
        }
        let Some(url) = self.spec.calibration.grams.clone() else { return Ok(()) };
        let kept = index(&url, &self.stores)
            .map_err(|e| self.refuse(JobError::new("calibration.grams", format!("cannot be used: {e}"))))?;
        self.check_decided(&kept, &url)?;
        let (own, its) = (&mut self.spec, kept.spec.clone());
        let conditioning = own.calibration.conditioning.take().or(its.calibration.conditioning.clone());
        // Of all prompts is what is meant where nothing is said.
        let gram_prompts = own.calibration.gram_prompts.filter(|prompts| *prompts != its.calibration.count);
        own.calibration = CalibrationSpec { grams: Some(url), gram_prompts, conditioning, ..its.calibration };
        own.model.dtype = its.model.dtype;
        own.hessian.weighting = its.hessian.weighting;
        (own.hessian.low, own.hessian.high) = (its.hessian.low, its.hessian.high);
        own.hessian.accumulate = its.hessian.accumulate;
        (own.evaluation.prompts, own.evaluation.column) = (its.evaluation.prompts, its.evaluation.column);
        self.kept = Some(Arc::new(kept));
        Ok(())
    }

    /// Refuses a key that the Grams decide and that is given another value, and a pattern that they cannot serve.
    fn check_decided(&self, kept: &GramIndex, url: &str) -> Result<()> {
        let json = |spec: &JobSpec| {
            serde_json::to_value(spec).map_err(|e| Error::content(self.path(), e.to_string()))
        };
        let (own, its) = (json(&self.spec)?, json(&kept.spec)?);
        let of_calibration =
            ["prompts", "column", "count", "steps", "guidance", "true_guidance", "height", "width"]
                .into_iter()
                .chain(["max_sequence_length", "seed", "shard_size", "conditioning"])
                .map(|key| format!("calibration.{key}"));
        for key in of_calibration.chain(DECIDED.map(str::to_owned)) {
            let moved = key == "calibration.conditioning" && kept.spec.calibration.conditioning.is_some();
            if !is_given(&self.merged, &key) || moved {
                continue;
            }
            let at = |spec: &Json| spec.pointer(&format!("/{}", key.replace('.', "/"))).cloned();
            let shown = |value: Option<Json>| {
                value.filter(|v| !v.is_null()).map_or("absent".to_owned(), |v| v.to_string())
            };
            let (own, its) = (shown(at(&own)), shown(at(&its)));
            if own != its {
                let problem = format!(
                    "is {own}, but it was {its} for the Grams of {url}: leave it out, or run the whole job"
                );
                return Err(self.refuse(JobError::new(key, problem)));
            }
        }
        let (counts, all) = (&kept.spec.output.gram_prompts, kept.spec.calibration.count);
        if let Some(prompts) = self.spec.calibration.gram_prompts
            && prompts != all
            && !counts.contains(&prompts)
        {
            let known = counts.iter().chain([&all]).map(u32::to_string).collect::<Vec<_>>().join(", ");
            let problem = format!(
                "is {prompts}, but {url} holds Grams over {known} prompts: give one of these, or keep others by output.gram_prompts \
                 of the whole job"
            );
            return Err(self.refuse(JobError::new("calibration.gram_prompts", problem)));
        }
        let structured = self.spec.sparsity.pattern == Pattern::Structured;
        if structured != kept.is_structured() {
            let problem = if structured {
                format!(
                    "is \"structured\", but the Grams of {url} lack the constant column that heads and neurons need: run the whole job"
                )
            } else {
                format!(
                    "is not \"structured\", but the Grams of {url} were kept for heads and neurons and have a column more: run the whole job"
                )
            };
            return Err(self.refuse(JobError::new("sparsity.pattern", problem)));
        }
        Ok(())
    }
}

/// Of a table, what the environment or a flag gave.
fn only_given(value: &Value) -> Value {
    match &value.kind {
        ValueKind::Table(table) => {
            let entries = table.iter().map(|(key, value)| (key.clone(), only_given(value)));
            let given: Map<String, Value> =
                entries.filter(|(_, value)| value.kind != ValueKind::Nil).collect();
            let kind = if given.is_empty() { ValueKind::Nil } else { ValueKind::Table(given) };
            Value::new(None, kind)
        }
        _ if untyped(value) => value.clone(),
        _ => Value::new(None, ValueKind::Nil),
    }
}
