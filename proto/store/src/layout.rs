//! The names of a job's objects. What has another name is not obsdiff's.

use std::cmp::Reverse;

/// Marks a store as the state of an obsdiff job: the first object put, the last removed.
pub(super) const MARKER: &str = "obsdiff.json";
/// Of a directory: the lock of the coordinator that runs the job.
pub(super) const LOCK: &str = "obsdiff.lock";
/// What decides the job's result.
pub const JOB: &str = "job.json";
/// The job's prompts.
pub const PROMPTS: &str = "prompts.json";
/// The folder of exponents: each coordinator keeps those that it knew last.
pub const EXPONENTS: &str = "exponents";
/// The folder of the kind of hardware of the job's workers, as each coordinator found it.
pub const HARDWARE: &str = "hardware";
/// The metrics of the coordinator that stopped last.
pub const METRICS: &str = "metrics.json";
/// The folder of lives.
pub const LIVES: &str = "lives";
/// The folder of pruned weights.
pub(super) const PARTS: &str = "parts";
/// The folder of saved sums.
pub(super) const SUMS: &str = "sums";
/// The folder of the conditioning of prompts.
pub(super) const CONDITIONING: &str = "conditioning";
/// The folder of manifests.
pub const PACKAGES: &str = "packages";
/// Marks a store as the Grams that a job keeps: the first object put, the last removed.
pub(super) const GRAMS_MARKER: &str = "obsdiff-grams.json";
/// The index of the kept Grams: put after all of them.
pub(super) const GRAMS_INDEX: &str = "grams.json";
/// The folder of kept Grams.
pub(super) const GRAMS: &str = "grams";
/// All folders of a job's state.
pub(super) const FOLDERS: [&str; 7] = [PACKAGES, EXPONENTS, HARDWARE, PARTS, SUMS, CONDITIONING, LIVES];

/// The kind of an object. Objects are removed in this order, so that an interrupted removal leaves a valid state of the same job, or of
/// no job. Saved sums go first, records before what they name, because they count only on the packages that were committed before them.
/// The last package's manifest goes before the others, because a manifest counts only together with all earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ObjectKind {
    SumsRecord,
    GramOfSums,
    Manifest(Reverse<u32>),
    Exponents,
    Hardware,
    Metrics,
    Part,
    Conditioning,
    Life,
    Prompts,
    Job,
    Marker,
    Lock,
}

/// The kind of an object by its name; none where obsdiff gives no object such a name.
pub(super) fn kind(object: &str) -> Option<ObjectKind> {
    match object {
        MARKER => return Some(ObjectKind::Marker),
        LOCK => return Some(ObjectKind::Lock),
        JOB => return Some(ObjectKind::Job),
        PROMPTS => return Some(ObjectKind::Prompts),
        METRICS => return Some(ObjectKind::Metrics),
        _ => {}
    }
    let (folder, name) = object.split_once('/')?;
    match folder {
        LIVES => padded(name, 8).map(|_| ObjectKind::Life),
        EXPONENTS => padded(name.strip_suffix(".json")?, 8).map(|_| ObjectKind::Exponents),
        HARDWARE => padded(name.strip_suffix(".json")?, 8).map(|_| ObjectKind::Hardware),
        PACKAGES => {
            padded(name.strip_suffix(".json")?, 5).map(|number| ObjectKind::Manifest(Reverse(number)))
        }
        PARTS => is_digest(name.strip_suffix(".safetensors")?).then_some(ObjectKind::Part),
        SUMS => match name.rsplit_once('.')? {
            (digest, "json") => is_digest(digest).then_some(ObjectKind::SumsRecord),
            (digest, "safetensors") => is_digest(digest).then_some(ObjectKind::GramOfSums),
            _ => None,
        },
        CONDITIONING => is_digest(name.strip_suffix(".safetensors")?).then_some(ObjectKind::Conditioning),
        _ => None,
    }
}

/// Whether an object of this name is one of those that kept Grams consist of.
pub(super) fn is_of_grams(object: &str) -> bool {
    match object.split_once('/') {
        None => [GRAMS_MARKER, GRAMS_INDEX].contains(&object),
        Some((folder, name)) => folder == GRAMS && name.strip_suffix(".safetensors").is_some_and(is_digest),
    }
}

/// Whether a file is, or was to become, one of those that kept Grams consist of.
pub(super) fn is_file_of_grams(file: &str) -> bool {
    match file.rsplit_once('#') {
        Some((object, number)) if is_number(number) => is_of_grams(object),
        _ => is_of_grams(file),
    }
}

/// The object that a file of a directory is, or was to become: files are written as `NAME#NUMBER` and renamed.
pub(super) fn kind_of_file(file: &str) -> Option<ObjectKind> {
    match file.rsplit_once('#') {
        Some((object, number)) if is_number(number) => kind(object),
        _ => kind(file),
    }
}

/// What to do about an object that is damaged.
pub(super) fn remedy(object: &str) -> &'static str {
    if is_of_grams(object) {
        return "run the job that kept these Grams again, with output.grams at another place";
    }
    match kind(object) {
        Some(ObjectKind::Manifest(_) | ObjectKind::Part) => {
            "remove it, and the same command runs its package and those after it again"
        }
        Some(ObjectKind::SumsRecord | ObjectKind::GramOfSums) => "the same command runs its shards again",
        Some(ObjectKind::Conditioning) => "the same command makes it again",
        Some(ObjectKind::Job) => "remove it, and the same command starts the job again",
        Some(ObjectKind::Marker) => "if nothing but obsdiff's state is there, remove all of it",
        _ => "remove it, and the same command goes on without it",
    }
}

fn is_digest(text: &str) -> bool {
    let hexadecimal = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    text.len() == 64 && text.bytes().all(hexadecimal)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit())
}

/// The number that obsdiff writes like this: with zeros before it where it has fewer than so many digits.
fn padded(text: &str, digits: usize) -> Option<u32> {
    text.parse::<u32>().ok().filter(|number| format!("{number:0digits$}") == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_names_are_known() {
        let part = format!("parts/{}.safetensors", "0a".repeat(32));
        let conditioning = part.replace("parts", "conditioning");
        let gram_of_sums = part.replace("parts", "sums");
        let sums = gram_of_sums.replace("safetensors", "json");
        for known in [
            "job.json",
            "exponents/00000000.json",
            "hardware/00000012.json",
            "obsdiff.json",
            "lives/00000012",
            "lives/4294967295",
            "packages/00003.json",
            "packages/100003.json",
            &part,
            &conditioning,
            &gram_of_sums,
            &sums,
        ] {
            assert!(kind(known).is_some(), "{known}");
            assert_eq!(kind_of_file(&format!("{known}#3")), kind(known));
        }
        let foreign = [
            "thesis.tex",
            "job.json.bak",
            "job.json#old",
            "lives/notes",
            "lives/0000001",
            "lives/000000012",
            "lives/+0000012",
            "lives/4294967296",
            "exponents/00000000",
            "exponents/000000000.json",
            "hardware/0.json",
            "hardware/000000000.json",
            "hardware.json",
            "packages/1.json",
            "packages/000003.json",
            "packages/00003.json/x",
            "parts/mine.safetensors",
            "conditioning/mine.safetensors",
            "sums/mine.json",
            "sums/mine.safetensors",
            "sums/00000000.json",
            &sums.replace("json", "json.bak"),
            &sums.replace("sums", "parts"),
            &part.replace('a', "A"),
            "other/job.json",
            "parts",
        ];
        for foreign in foreign {
            assert_eq!(kind_of_file(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn what_is_of_kept_grams_is_no_job_state() {
        let gram = format!("grams/{}.safetensors", "0a".repeat(32));
        for known in ["obsdiff-grams.json", "grams.json", &gram] {
            assert!(is_of_grams(known) && is_file_of_grams(&format!("{known}#1")), "{known}");
            assert_eq!(kind(known), None, "{known}");
        }
        for foreign in ["obsdiff.json", "grams", "grams/mine.safetensors", "grams.json.bak", "job.json"] {
            assert!(!is_file_of_grams(foreign), "{foreign}");
        }
    }

    #[test]
    fn the_marker_goes_after_all_and_manifests_from_the_last_on_after_saved_sums() {
        let gram = format!("sums/{}.safetensors", "0a".repeat(32));
        let sums = gram.replace("safetensors", "json");
        let ordered = [
            &sums,
            &gram,
            "packages/00010.json",
            "packages/00000.json",
            "lives/00000000",
            "job.json",
            "obsdiff.json",
        ];
        let mut names = ordered;
        names.reverse();
        names.sort_by_key(|name| kind(name));
        assert_eq!(names, ordered);
    }
}
