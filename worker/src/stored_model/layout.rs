//! The names of what the cache holds. What has another name is not obsdiff's.
//!
//! | file | content |
//! |---|---|
//! | `obsdiff-cache.json` | the marker: the folder is obsdiff's. Written first |
//! | `models/URL/about.json` | the URL of a model, whose digest `URL` is |
//! | `models/URL/users` | held, together with others, by each process that uses the model: what it reads is not removed meanwhile |
//! | `models/URL/lock` | held by the process that downloads |
//! | `models/URL/listing.json` | the objects that the store had when it was listed last |
//! | `models/URL/objects/OBJECT` | a whole object. `OBJECT` is the digest of its name, its size and its tag, so that what the store replaces is another file here |
//! | `models/URL/objects/OBJECT.headers` | of safetensors, the headers alone; the rest is a hole |
//! | `models/URL/objects/*.unfinished` | the first bytes of an object. The next process goes on from there |
//! | `models/URL/pipelines/FILES/...` | a pipeline: symbolic links to its objects. `FILES` is the digest of their names and objects |
//! | `models/URL/pipelines/FILES.unfinished/...` | a pipeline that is being made or removed |
//!
//! What has its name is whole and is never changed, and is removed only while no process uses the model. So processes read it without
//! waiting for each other.

use obsdiff_proto::Hasher;

/// Marks a folder as obsdiff's cache.
pub(super) const MARKER: &str = "obsdiff-cache.json";
/// The folder of models.
pub(super) const MODELS: &str = "models";
/// The URL of a model.
pub(super) const ABOUT: &str = "about.json";
/// The lock of processes that use a model.
pub(super) const USERS: &str = "users";
/// The lock of the process that downloads a model.
pub(super) const LOCK: &str = "lock";
/// The objects of a model as they were listed last.
pub(super) const LISTING: &str = "listing.json";
/// The folder of objects.
pub(super) const OBJECTS: &str = "objects";
/// The folder of pipelines.
pub(super) const PIPELINES: &str = "pipelines";
/// How the names of files end of which the headers alone are there.
pub(super) const HEADERS: &str = "headers";
/// How the names of files and folders end that are not whole.
pub(super) const UNFINISHED: &str = "unfinished";
/// Hexadecimal digits of a name: enough that no two are the same.
const DIGITS: usize = 32;

/// A name for these texts together.
pub(super) fn digest<'t>(texts: impl IntoIterator<Item = &'t [u8]>) -> String {
    let mut hasher = Hasher::default();
    for text in texts {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text);
    }
    hasher.finish().to_string().chars().take(DIGITS).collect()
}

/// The folder of the model at a URL.
pub(super) fn model(url: &str) -> String {
    digest([url.as_bytes()])
}

/// Whether a name is one that [`digest`] gives.
pub(super) fn is_digest(name: &str) -> bool {
    name.len() == DIGITS && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// A file of the folder of objects, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ObjectName<'n> {
    /// The object's digest.
    pub(super) digest: &'n str,
    /// Whether the file has what its name says.
    pub(super) is_whole: bool,
}

/// What a name in the folder of objects stands for; none where obsdiff gives no file such a name.
pub(super) fn object(name: &str) -> Option<ObjectName<'_>> {
    let (name, is_whole) = match without_end(name, UNFINISHED) {
        None => (name, true),
        // Where nothing keeps other processes away, each has files of its own.
        Some(begun) => match begun.rsplit_once('.') {
            Some((object, process)) if is_number(process) => (object, false),
            _ => (begun, false),
        },
    };
    let digest = without_end(name, HEADERS).unwrap_or(name);
    is_digest(digest).then_some(ObjectName { digest, is_whole })
}

/// Whether a name is that of a listing that is being written.
pub(super) fn is_begun_listing(name: &str) -> bool {
    let process =
        without_end(name, UNFINISHED).and_then(|begun| begun.strip_prefix(LISTING)?.strip_prefix('.'));
    process.is_some_and(is_number)
}

/// The digest of a pipeline by its folder's name, and whether the folder is a whole one.
pub(super) fn pipeline(name: &str) -> Option<(&str, bool)> {
    let begun = without_end(name, UNFINISHED);
    let digest = begun.unwrap_or(name);
    is_digest(digest).then_some((digest, begun.is_none()))
}

fn without_end<'n>(name: &'n str, end: &str) -> Option<&'n str> {
    name.strip_suffix(end)?.strip_suffix('.')
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_obsdiffs_in_these_forms_alone() {
        let digest = model("s3://bucket/model");
        let of = |end: &str| format!("{digest}{end}");
        for (end, is_whole) in [
            ("", true),
            (".headers", true),
            (".unfinished", false),
            (".headers.unfinished", false),
            (".12.unfinished", false),
            (".headers.12.unfinished", false),
        ] {
            assert_eq!(object(&of(end)), Some(ObjectName { digest: &digest, is_whole }), "{end}");
        }
        for end in [".", "0", ".tar", ".unfinished.", ".headers.headers", ".x.unfinished", "..unfinished"] {
            assert_eq!(object(&of(end)), None, "{end}");
        }
        for name in ["", "thesis.tex", &digest.to_uppercase(), &digest[1..], ".unfinished"] {
            assert_eq!((object(name), pipeline(name)), (None, None), "{name}");
        }
        assert_eq!(pipeline(&digest), Some((&*digest, true)));
        assert_eq!(pipeline(&of(".unfinished")), Some((&*digest, false)));
        assert_eq!(pipeline(&of(".12.unfinished")), None);
        assert!(is_begun_listing("listing.json.12.unfinished"));
        assert!(!is_begun_listing("listing.json") && !is_begun_listing("listing.json..unfinished"));
    }
}
