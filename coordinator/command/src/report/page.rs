//! The page: its head, its sections in their order, and the pictures.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use obsdiff_coordinator::page::LOOK;
use obsdiff_engine::export::{HeldOutError, Measured, PruningRecord};
use obsdiff_proto::counted;

use super::pictures::{DIFFERENCE_GAIN, shown};
use super::words::{self, decibels};
use super::{ReportPage, Sample, documents, heat, linears, sections, steps};

/// What the report has beyond the look that it shares with the live page.
const STYLE: &str = include_str!("style.css");
const SORT: &str = include_str!("sort.js");

/// A section: the id of its heading, the heading, and what follows.
type Section = (&'static str, &'static str, Markup);

/// The ids of the sections on time and on faults.
const TIME: &str = "time";
const FAULTS: &str = "faults";

fn time(measured: &Measured) -> Section {
    (TIME, "Time and memory", sections::time(measured))
}

fn faults(record: &PruningRecord) -> Section {
    (FAULTS, "Faults on the way", sections::faults(record))
}

fn section((id, heading, content): &Section) -> Markup {
    html! { section aria-labelledby=(id) { h2 id=(id) { (heading) } (content) } }
}

/// A page with this record's times and faults in place of its own; none where it has no such sections. Text in a page is
/// escaped, so nothing else looks like the start of one.
pub(super) fn with_course(page: &str, record: &PruningRecord) -> Option<String> {
    let page = with_section(page, &time(record.measured.as_ref()?))?;
    with_section(&page, &faults(record))
}

fn with_section(page: &str, new: &Section) -> Option<String> {
    let (before, rest) = page.split_once(&format!("<section aria-labelledby=\"{}\">", new.0))?;
    let (_, after) = rest.split_once("</section>")?;
    Some(format!("{before}{}{after}", section(new).into_string()))
}

impl ReportPage<'_> {
    /// The report as one HTML page.
    pub(crate) fn html(&self) -> String {
        let title = format!("{}, pruned by obsdiff", self.name);
        let sections = self.sections();
        let page = html! {
            (DOCTYPE)
            (PreEscaped(documents::mark()))
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { (title) }
                    style { (PreEscaped(LOOK)) (PreEscaped(STYLE)) }
                }
                body {
                    a class="skip" href="#main" { "Skip to the report" }
                    header {
                        h1 { (title) }
                        (self.lead())
                        nav aria-label="Sections" { ul {
                            @for (id, heading, _) in &sections { li { a href=(format!("#{id}")) { (heading) } } }
                        } }
                    }
                    main id="main" tabindex="-1" {
                        @for part in &sections { (section(part)) }
                    }
                    footer {
                        p {
                            "Written by obsdiff " (self.record.map_or(env!("CARGO_PKG_VERSION"), |record| &record.obsdiff)) "."
                            @if self.record.is_some() { " The same figures for programs: " code { "pruning.json" } "." }
                        }
                    }
                    script { (PreEscaped(SORT)) }
                }
            }
        };
        page.into_string()
    }

    /// What was done, and the figures that matter most.
    fn lead(&self) -> Markup {
        let error = self.error();
        let tiles = [
            self.record.map(|record| ("weights that are zero or gone", words::share(record))),
            error.map(|(relative, prompts)| {
                let what =
                    if prompts == 1 { "error of the latents of 1 prompt" } else { "error of final latents" };
                (what, format!("{relative:.4}"))
            }),
            self.mean_psnr().map(|psnr| ("PSNR of the pictures", decibels(psnr))),
        ];
        html! {
            @if let Some(compared) = &self.comparison {
                p class="lead" {
                    code { (compared.pruned) } " beside " code { (compared.dense) } ", on " (counted(compared.prompts, "prompt"))
                    " of " (counted(compared.steps, "denoising step")) ", from the same noise."
                }
            }
            @if let Some(record) = self.record {
                p class="lead" { (words::what(record)) " " (words::calibration(&record.job.calibration)) }
            }
            dl class="tiles" {
                @for (what, figure) in tiles.into_iter().flatten() { div { dt { (what) } dd { (figure) } } }
            }
            @if let Some((relative, _)) = error {
                p {
                    "The pruned model's final latents differ from the source's by " (format!("{:.1}%", 100.0 * relative))
                    " of their length (L2 norm), from the same prompts and the same noise."
                }
            }
        }
    }

    fn held_out(&self) -> Option<&HeldOutError> {
        self.record?.measured.as_ref()?.held_out.as_ref()
    }

    /// The relative error of final latents, and of how many prompts.
    fn error(&self) -> Option<(f64, usize)> {
        match &self.comparison {
            Some(compared) => Some((compared.relative_error, compared.prompts)),
            None => self.held_out().map(|error| (error.relative, error.per_prompt.len())),
        }
    }

    /// The mean PSNR of the pictures that differ; the inner value is absent where all are equal.
    fn mean_psnr(&self) -> Option<Option<f64>> {
        match self.held_out().and_then(|error| error.pictures.as_ref()) {
            Some(pictures) if self.comparison.is_none() => Some(pictures.mean_psnr_decibels),
            _ if self.samples.is_empty() => None,
            _ => Some(crate::run::held_out::mean(self.samples.iter().filter_map(Sample::psnr))),
        }
    }

    fn sections(&self) -> Vec<Section> {
        let mut sections: Vec<Section> = Vec::new();
        if !self.samples.is_empty() {
            sections.push(("pictures", "Pictures", self.pictures()));
        }
        if self.per_step.len() > 1 {
            sections.push(("steps", "Error along the denoising steps", self.steps()));
        }
        if let Some(record) = self.record {
            if !record.structures.is_empty() {
                sections.push(("structures", "What was removed", sections::structures(record)));
            }
            sections.push(("blocks", "By block and linear", heat::maps(record)));
            sections.push(("linears", "Every linear", linears::table(record)));
            if let Some(measured) = &record.measured {
                sections.push(time(measured));
            }
            sections.push(faults(record));
        }
        if let Some(loading) = &self.loading {
            let pattern = self.record.map(|record| record.job.sparsity.pattern);
            sections.push(("loading", "How to load it", sections::loading(loading, pattern)));
        }
        if let Some(record) = self.record {
            sections.push(("job", "The job", self.job(record)));
        }
        sections
    }

    fn job(&self, record: &PruningRecord) -> Markup {
        html! {
            p { "With every default filled in:" }
            (sections::code_block(&words::job_file(&record.job), "The job file"))
        }
    }

    fn steps(&self) -> Markup {
        html! {
            p {
                "How far the latents are from the source's after each step, as a share of their length: how the errors of "
                "single steps add up."
            }
            (steps::chart(self.per_step))
        }
    }

    fn pictures(&self) -> Markup {
        let pictures = shown(&self.samples);
        html! {
            p {
                "By the source, by the pruned model from the same noise, and their difference, enlarged "
                (DIFFERENCE_GAIN) " times: black is equal."
            }
            @for (i, (sample, shown)) in self.samples.iter().zip(&pictures).enumerate() {
                @let prompt = sample.prompt.clone().unwrap_or_else(|| format!("Held-out prompt {}", i + 1));
                @let models = [
                    ("source", &shown.dense, "by the source"),
                    ("pruned", &shown.pruned, "by the pruned model"),
                    ("difference", &shown.difference, "difference of the two"),
                ];
                figure {
                    div class="pictures" {
                        @for (label, uri, alt) in models {
                            div {
                                img src=(uri) alt=(format!("{prompt}: {alt}")) width=(sample.dense.width)
                                    height=(sample.dense.height) class=[(sample.dense.width < 128).then_some("small")];
                                p class="label" { (label) }
                            }
                        }
                    }
                    figcaption {
                        span class="prompt" { (prompt) }
                        " Seed " (sample.seed) ", PSNR " (decibels(sample.psnr())) ", latent error "
                        (format!("{:.4}", sample.relative_error)) "."
                    }
                }
            }
        }
    }
}
