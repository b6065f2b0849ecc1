//! The model of a job, from its configuration and headers alone.

use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use obsdiff_core::{Options, PlanCost, PlanError, Tokens, Workload};
use obsdiff_engine::checkpoint::Weights;
use obsdiff_proto::{JobError, JobSpec, Plan};
use obsdiff_worker::preparation::{JobModel, PreparationError};
use obsdiff_worker::stored_model::Extent;

use crate::device_needs::DeviceNeeds;
use crate::job::JobFile;
use crate::{Error, Result};

/// The first tensor that a glob on names of linears matches, as it is named or as the part of the model that it belongs to.
fn met(weights: &Weights, glob: &str) -> Option<String> {
    let glob = obsdiff_proto::glob(glob).ok()?;
    let mut names: Vec<&str> = weights.entries().map(|(name, _)| name).collect();
    names.sort_unstable();
    let part = |name: &&str| name.rsplit_once('.').is_some_and(|(part, _)| glob.is_match(part));
    let met = names.iter().find(|name| glob.is_match(name) || part(name))?;
    Some((*met).to_owned())
}

/// The model of a job, with the tokens that planning needs.
#[derive(Debug)]
pub struct Described {
    model: Arc<JobModel>,
    /// Tokens of one picture.
    pub tokens: Tokens,
}

impl Deref for Described {
    type Target = JobModel;

    fn deref(&self) -> &JobModel {
        &self.model
    }
}

impl Described {
    /// Opens and checks the model of a job. Its text encoders are not looked at where its prompts come encoded, with so many
    /// `text_tokens` each. A model in an object store is downloaded.
    ///
    /// # Errors
    /// The first part that cannot be used, by file and key.
    pub fn read(job: &JobFile, text_tokens: Option<usize>) -> Result<Self> {
        Self::read_in(job, &job.model_folder(Extent::of(&job.spec))?, text_tokens)
    }

    /// The same without a weight: of those of a model in an object store the headers alone are downloaded.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn outline(job: &JobFile, text_tokens: Option<usize>) -> Result<Self> {
        let with_text = text_tokens.is_none();
        Self::read_in(job, &job.model_folder(Extent::Headers { with_text })?, text_tokens)
    }

    /// The same with the weights of text encoders alone.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(crate) fn with_encoders(job: &JobFile) -> Result<Self> {
        Self::read_in(job, &job.model_folder(Extent::TextWeights)?, None)
    }

    fn read_in(job: &JobFile, folder: &Path, text_tokens: Option<usize>) -> Result<Self> {
        let opened = JobModel::open(&job.spec, folder, text_tokens);
        opened.map(|model| Self::new(Arc::new(model))).map_err(|e| unprepared(job, e))
    }

    /// Describes an opened model.
    pub fn new(model: Arc<JobModel>) -> Self {
        let tokens = Tokens {
            image: model.size.tokens as u64,
            text: model.text_tokens as u64,
            branches: model.guidance.branches() as u64,
        };
        Self { model, tokens }
    }

    /// The model.
    pub fn model(&self) -> &JobModel {
        &self.model
    }

    /// The plan of a job on this pipeline.
    ///
    /// # Errors
    /// When the job cannot be planned, by the key that has to be changed.
    pub fn plan(&self, job: &JobFile) -> Result<Plan> {
        let plan = obsdiff_core::plan(&job.spec, &self.inventory, self.tokens);
        if let Some(kept) = job.kept().filter(|kept| !kept.is_of(&self.inventory)) {
            let problem = format!(
                "is {}, which is not the model that the Grams of {} were gathered on: give that",
                job.spec.model.path,
                kept.spec.output.grams.as_deref().unwrap_or_default()
            );
            return Err(job.refuse(JobError::new("model.path", problem)));
        }
        if let (Ok(plan), Some(kept)) = (&plan, job.kept())
            && let Some(site) = kept.lacks(&plan.packages, &self.inventory)
        {
            let problem = format!(
                "holds no Gram of {site}, which linears read that are to be pruned: the job that kept the Grams left them \
                 dense. Skip them by a rule, or keep the Grams of a job that prunes them"
            );
            return Err(job.refuse(JobError::new("calibration.grams", problem)));
        }
        plan.map_err(|error| {
            let PlanError::IdleRule { rule, glob, example } = &error else { return job.unplanned(error) };
            match self.pipeline.transformer_weights().map(|weights| met(&weights, glob)) {
                Ok(Some(met)) => {
                    let linear = met.strip_suffix(".weight").unwrap_or(&met);
                    let why = if self.inventory.linears.iter().any(|other| other.name == linear) {
                        "but rules go by names of linears, without `.weight`"
                    } else {
                        "which is never pruned"
                    };
                    let problem =
                        format!("\"{glob}\" matches `{met}`, {why}: linears that are pruned have names like `{example}`");
                    job.refuse(JobError::new(format!("sparsity.rules[{rule}].match"), problem))
                }
                Ok(None) => job.unplanned(error),
                Err(unread) => unread.into(),
            }
        })
    }

    /// The forward calls of one package of the job.
    pub fn workload(&self, spec: &JobSpec) -> Workload {
        Workload::new(spec, self.tokens, self.forward_flops(&*self.config))
    }

    /// What a worker of the job holds in the memory of its GPU, besides Grams.
    pub fn device_needs(&self, spec: &JobSpec, plan: &Plan) -> DeviceNeeds {
        let needs = DeviceNeeds::new(spec, plan, &*self.config, &self.inventory, self.tokens);
        DeviceNeeds { encoding: self.gpu_encoding_bytes, decoding: self.gpu_decoding_bytes, ..needs }
    }

    /// What a plan of the job costs.
    pub fn cost(&self, spec: &JobSpec, plan: &Plan) -> PlanCost {
        let Options { split_above, solving, .. } = Options::of(spec);
        let workload = self.workload(spec);
        let cost = PlanCost::new(plan, &self.inventory, spec.hessian.accumulate, solving, &workload);
        let (groups, all) = (&spec.output.gram_prompts, spec.calibration.count.max(1));
        let share = f64::from(groups.last().copied().unwrap_or(0)) / f64::from(all);
        cost.in_parts(plan, &self.inventory, split_above, solving, &workload).with_groups(groups.len(), share)
    }
}

/// The error of a job that cannot be prepared, by where its key was given.
pub(crate) fn unprepared(job: &JobFile, error: PreparationError) -> Error {
    match error {
        PreparationError::Job(error) => job.refuse(error),
        PreparationError::Argument(problem) => Error::content(job.path(), problem),
        PreparationError::Content { path, problem } => Error::content(path, problem),
        PreparationError::Engine(error) => error.into(),
        PreparationError::Store(error) => error.into(),
    }
}
