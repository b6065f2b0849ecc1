//! What an output has beside its record: the report, and the model card.

use obsdiff_engine::calibrate::Denoised;
use obsdiff_engine::device::ComputeDevice;
use obsdiff_engine::export::{DOCUMENT_MARK, Document, PruningRecord};
use obsdiff_engine::pipeline::Picture;
use obsdiff_proto::{ByteSize, JobSpec, OutputLayout, Pattern};
use obsdiff_store::OutputStore;
use obsdiff_worker::pruning_job::{Describe, JobOutput};

use super::{Loading, ReportPage, Sample, card, module_of, page};
use crate::Result;
use crate::clock::Clock;
use crate::run::Inputs;
use crate::run::held_out;

/// The report's name in an output.
const REPORT_FILE: &str = "report.html";

/// The model card's name, as the Hub knows it.
const CARD_FILE: &str = "README.md";

/// Writes the documents of a job's output.
pub(crate) struct OutputDocuments<'a> {
    inputs: &'a Inputs,
    /// Where pictures are decoded.
    device: &'a ComputeDevice,
    /// The most memory that the job was predicted to take: no picture is decoded that takes more.
    peak: ByteSize,
    clock: Clock,
    loading: Loading,
    /// What the source's own card says that holds of the output, too.
    licence: card::Licence,
}

impl<'a> OutputDocuments<'a> {
    /// Those of the output of a job with this specification.
    pub(crate) fn new(
        spec: &JobSpec,
        inputs: &'a Inputs,
        (device, peak): (&'a ComputeDevice, ByteSize),
        clock: Clock,
    ) -> Self {
        let pipeline = &inputs.described.pipeline;
        let shrunk = inputs.plan.packages.iter().any(obsdiff_proto::Package::is_structured)
            && spec.output.layout == OutputLayout::Shrunk;
        let module = || {
            let files = inputs.described.config.shrunk_files(&pipeline.path().join("transformer")).ok()?;
            files.into_iter().find_map(|(name, _)| name.strip_suffix(".py").map(str::to_owned))
        };
        let loading = Loading {
            path: if OutputStore::is_url(&spec.output.path) {
                name_of(&spec.output.path)
            } else {
                spec.output.path.clone()
            },
            url: OutputStore::is_url(&spec.output.path).then(|| spec.output.path.clone()),
            pipeline_class: pipeline.architecture().pipeline_class.to_owned(),
            module: if shrunk { module() } else { module_of(pipeline) },
            absent_text: pipeline.absent_text().to_vec(),
        };
        Self { inputs, device, peak, clock, loading, licence: card::Licence::of(pipeline.path()) }
    }

    /// The documents of a pipeline with this record, and with pictures by the dense and the pruned model if there are any.
    pub(crate) fn of(&self, record: &PruningRecord, pictures: [Vec<Picture>; 2]) -> Vec<Document> {
        let error = record.measured.as_ref().and_then(|measured| measured.held_out.as_ref());
        let seed = record.job.calibration.seed.wrapping_add(self.inputs.prompts.calibration.len() as u64);
        let errors = error.map_or(&[][..], |error| &error.per_prompt);
        let report = ReportPage {
            name: name_of(&record.job.output.path),
            record: Some(record),
            comparison: None,
            samples: Sample::of(&record.held_out, seed, errors, pictures),
            per_step: error.map_or(&[], |error| &error.per_step),
            loading: Some(self.loading.clone()),
        };
        let begun = (self.clock)();
        let page = report.html();
        let seconds = ((self.clock)() - begun).as_secs_f64();
        tracing::info!(seconds, bytes = page.len(), "the report is made, with its pictures");
        let card = card::text(record, &self.loading, &self.licence);
        vec![Document { name: REPORT_FILE, text: page }, Document { name: CARD_FILE, text: card }]
    }

    /// Pictures of the first held-out prompts by both models; the first error of these joins the record.
    fn pictures(&self, record: &mut PruningRecord, models: [&Denoised; 2]) -> Result<[Vec<Picture>; 2]> {
        let latents = models.map(|model| &model.latents);
        let pictures =
            held_out::pictures(&self.inputs.described.pipeline, &latents, (self.device, self.peak))?;
        let mut pictures = pictures.into_iter();
        let both = [pictures.next().unwrap_or_default(), pictures.next().unwrap_or_default()];
        let measured = record.measured.as_mut().and_then(|measured| measured.held_out.as_mut());
        if let Some(error) = measured {
            error.pictures = Some(held_out::picture_error(&both[0], &both[1]));
        }
        Ok(both)
    }
}

/// The report in an output, with the times and faults that its record has by now; none where the output has no report of obsdiff.
pub(crate) fn retimed(output: &JobOutput, record: &PruningRecord) -> Option<Document> {
    let page = output.document(REPORT_FILE)?;
    let text = page::with_course(&page, record)?;
    Some(Document { name: REPORT_FILE, text })
}

impl Describe for OutputDocuments<'_> {
    fn documents(&self, record: &PruningRecord) -> Vec<Document> {
        self.of(record, Default::default())
    }

    fn measured(&self, record: &mut PruningRecord, models: Option<[&Denoised; 2]>) -> Vec<Document> {
        let pictures = models.map_or_else(|| Ok(Default::default()), |models| self.pictures(record, models));
        // The job has its result, and does not fail for a picture.
        let pictures = pictures.unwrap_or_else(|error| {
            tracing::warn!(error = %error.line(), "pictures are not compared");
            Default::default()
        });
        self.of(record, pictures)
    }
}

/// The last part of a path: what people call what lies there.
pub(crate) fn name_of(path: &str) -> String {
    let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    if name.is_empty() { path.to_owned() } else { name.to_owned() }
}

/// A document's first lines, by which it is known as obsdiff's.
pub(super) const fn mark() -> &'static str {
    DOCUMENT_MARK
}

/// Whether a job shrinks nothing but weights.
pub(super) fn is_two_to_four(record: &PruningRecord) -> bool {
    record.job.sparsity.pattern == Pattern::NToM { n: 2, m: 4 }
}
