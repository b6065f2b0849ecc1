//! Parts of a report about the job: what was removed, where the time went, what went wrong, how the result is loaded.

use std::time::Duration;

use maud::{Markup, html};
use obsdiff_engine::export::{JobCourse, Measured, PackageCourse, PruningRecord};
use obsdiff_proto::{ByteSize, Pattern, counted};

use super::{Loading, code};
use crate::text::{self, percent};

/// What structured pruning removed.
pub(super) fn structures(record: &PruningRecord) -> Markup {
    html! {
        @if let Some(sizes) = record.sizes {
            @let [parameters, fewer] = sizes.parameters.map(text::count);
            @let [flops, less] = sizes.forward_flops;
            p {
                "Parameters: " (parameters) " before, " (fewer) " now. A forward call: " (text::flops(flops)) " before, "
                (text::flops(less)) " now, " (format!("{:.2}% less.", 100.0 * (1.0 - less / flops)))
            }
        }
        div class="wide" role="region" tabindex="0" aria-label="Heads and neurons that went" {
            table {
                caption { "Heads and neurons that went" }
                thead { tr {
                    th scope="col" { "structure" }
                    th scope="col" class="number" { "kept" }
                    th scope="col" class="number" { "of" }
                    th scope="col" class="number" { "went" }
                    th scope="col" class="number" { "relative error" }
                    th scope="col" { "heads that went" }
                } }
                tbody {
                    @for structure in &record.structures {
                        tr {
                            th scope="row" { code { (structure.name) } }
                            td class="number" { (structure.kept) }
                            td class="number" { (structure.of) (if structure.heads { " heads" } else { " neurons" }) }
                            td class="number" {
                                (percent(structure.of.saturating_sub(structure.kept) as u64, structure.of as u64))
                            }
                            td class="number" { (structure.error.map_or("none".to_owned(), |e| format!("{e:.5}"))) }
                            td {
                                (structure.removed.iter().map(usize::to_string).collect::<Vec<_>>().join(", "))
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Where the time went, and the memory.
pub(super) fn time(measured: &Measured) -> Markup {
    let longest = measured.phases.iter().map(|phase| phase.seconds).fold(measured.other_seconds, f64::max);
    let wide =
        |seconds: f64| format!("width:{:.1}%", if longest > 0.0 { 100.0 * seconds / longest } else { 0.0 });
    let others = measured.phases.iter().any(|phase| phase.beside_seconds > 0.0);
    let row = |name: &str, calls: Option<u64>, seconds: f64, beside: Option<f64>| {
        html! {
            tr {
                th scope="row" { (name) }
                td class="number" { (calls.map_or(String::new(), |calls| calls.to_string())) }
                td class="number" { (duration(seconds)) }
                @if others { td class="number" { (beside.filter(|s| *s > 0.0).map_or(String::new(), duration)) } }
                td class="bar" aria-hidden="true" { div style=(wide(seconds)) {} }
            }
        }
    };
    html! {
        p {
            "The job took " (duration(measured.seconds)) "."
            @if let Some(peak) = measured.peak_memory_bytes { " Peak memory: " (ByteSize(peak)) "." }
        }
        @if !measured.phases.is_empty() {
            div class="wide" role="region" tabindex="0" aria-label="Time of each phase" {
                table {
                    caption { "Time of each phase, the longest first" }
                    thead { tr {
                        th scope="col" { "phase" }
                        th scope="col" class="number" { "calls" }
                        th scope="col" class="number" { "time" }
                        @if others { th scope="col" class="number" { "of other threads" } }
                        td {}
                    } }
                    tbody {
                        @for phase in &measured.phases {
                            (row(&phase.phase, Some(phase.calls), phase.seconds, Some(phase.beside_seconds)))
                        }
                        (row("all else", None, measured.other_seconds, None))
                    }
                }
            }
        }
        @if let Some(course) = &measured.course {
            (bytes(course))
            @if !course.packages.is_empty() { (packages(course)) }
        }
    }
}

/// What each phase read, summed and wrote, over all packages.
fn bytes(course: &JobCourse) -> Markup {
    let all = |of: fn(&PackageCourse) -> u64| course.packages.iter().map(of).sum::<u64>();
    let sent = all(|package| package.sent_gram_bytes);
    let phases = [
        ("load", "files of the source, read", course.read_bytes),
        ("calibrate", "Grams, in the memory of each worker", Some(all(|package| package.gram_bytes))),
        ("sum", "Grams, sent between workers", (course.most_workers > 1).then_some(sent)),
        ("store", "pruned weights, written to the job's store", Some(all(|package| package.stored_bytes))),
        ("export", "files of the output, written", course.written_bytes),
    ];
    html! {
        div class="wide" role="region" tabindex="0" aria-label="Bytes of each phase" {
            table {
                caption { "Bytes of each phase" }
                thead { tr {
                    th scope="col" { "phase" }
                    th scope="col" { "what" }
                    th scope="col" class="number" { "bytes" }
                } }
                tbody {
                    @for (phase, what, bytes) in phases {
                        @if let Some(bytes) = bytes.filter(|bytes| *bytes > 0) {
                            tr { th scope="row" { (phase) } td { (what) } td class="number" { (ByteSize(bytes)) } }
                        }
                    }
                }
            }
        }
    }
}

/// What each package took, as the coordinator saw it.
fn packages(course: &JobCourse) -> Markup {
    let several = course.most_workers > 1;
    html! {
        @if several {
            p {
                (counted(course.most_workers, "worker")) " took part at one time. "
                (counted(course.groups, "group")) " of workers formed to sum Grams."
            }
        }
        div class="wide" role="region" tabindex="0" aria-label="Time and bytes of each package" {
            table {
                caption { "Time and bytes of each package" }
                thead { tr {
                    th scope="col" { "package" }
                    @for name in ["load", "calibrate", "sum", "solve", "store", "Grams", "weights"] {
                        th scope="col" class="number" { (name) }
                    }
                    @if several { th scope="col" class="number" { "Grams sent" } }
                } }
                tbody {
                    @for package in &course.packages {
                        @let times = [
                            package.load_seconds,
                            package.calibrate_seconds,
                            package.reduce_seconds,
                            package.solve_seconds,
                            package.commit_seconds,
                        ];
                        tr {
                            th scope="row" { (package.package + 1) }
                            @for seconds in times { td class="number" { (duration(seconds)) } }
                            td class="number" { (ByteSize(package.gram_bytes)) }
                            td class="number" { (ByteSize(package.stored_bytes)) }
                            @if several { td class="number" { (ByteSize(package.sent_gram_bytes)) } }
                        }
                    }
                }
            }
        }
    }
}

fn duration(seconds: f64) -> String {
    text::duration(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

/// What went wrong on the way, as far as it is recorded.
pub(super) fn faults(record: &PruningRecord) -> Markup {
    let hessian = &record.job.hessian;
    let usual = hessian.damping.max(hessian.mask_damping) * (1.0 + 1e-9);
    let raised: Vec<_> = record
        .linears
        .iter()
        .filter_map(|linear| Some((linear, linear.damping.filter(|damping| *damping > usual)?)))
        .collect();
    let course = record.measured.as_ref().and_then(|measured| measured.course.as_ref());
    html! {
        @if raised.is_empty() {
            p { "Every Hessian was factorised with the damping that the job asks for." }
        } @else {
            p {
                (counted(raised.len(), "linear")) " needed more damping than the job asks for, because the Hessian could not be "
                "factorised otherwise. More prompts or steps may help."
            }
            ul { @for (linear, damping) in &raised { li { code { (linear.name) } ": " (damping) } } }
        }
        @match course {
            None => p { "Nothing else is recorded." },
            Some(course) if course.faults.is_empty() => p { "Nothing else went wrong." },
            Some(course) => {
                p {
                    "The job went on after each of these. The weights are those of a job without them."
                    @if course.workers_lost > 0 { " " (counted(course.workers_lost, "worker")) " left before the end." }
                }
                ol {
                    @for fault in &course.faults { li { "after " (duration(fault.seconds)) ": " (fault.what) } }
                }
                @if course.further_faults > 0 { p { "And " (course.further_faults) " more." } }
            }
        }
    }
}

/// How the pipeline is loaded, and made fast.
pub(super) fn loading(loading: &Loading, pattern: Option<Pattern>) -> Markup {
    html! {
        p { "In diffusers:" }
        (code_block(&code::diffusers(loading), "Python that loads the pipeline"))
        @if pattern == Some(Pattern::NToM { n: 2, m: 4 }) {
            p {
                "GPUs since NVIDIA's Ampere multiply 2:4 weights faster, by PyTorch 2.1 or later. After the lines above:"
            }
            (code_block(code::SEMI_STRUCTURED, "Python that makes 2:4 weights fast"))
            p { "Of a transformer that was exported to ONNX, TensorRT picks such kernels by:" }
            (code_block(code::TENSORRT, "TensorRT's command"))
        }
    }
}

/// Code, which the keyboard can scroll where it is wider than the page.
pub(super) fn code_block(code: &str, label: &str) -> Markup {
    html! { pre class="wide" role="region" tabindex="0" aria-label=(label) { code { (code) } } }
}
