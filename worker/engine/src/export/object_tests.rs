//! Exports into an object store that fails before or after any of its operations: the next one writes the same pipeline, and until then
//! there is none.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use candle_core::Tensor;
use obsdiff_proto::Digest;

use super::tests::{export_by, pipeline, record};
use super::*;
use crate::checkpoint::Library;

/// Objects in memory, of which so many operations succeed.
#[derive(Default)]
struct Objects {
    objects: Mutex<BTreeMap<String, Vec<u8>>>,
    /// The files that the marker names, while there is one.
    marked: Mutex<Option<Vec<String>>>,
    /// The operations so far, and the one that fails, if any does: before it has an effect, or after.
    operations: Mutex<usize>,
    failing: Option<(usize, bool)>,
}

impl Objects {
    fn operation<T>(&self, act: impl FnOnce() -> T) -> io::Result<T> {
        let number = {
            let mut operations = self.operations.lock().unwrap();
            *operations += 1;
            *operations - 1
        };
        match self.failing {
            Some((last, false)) if number >= last => Err(io::Error::other("the store fails")),
            Some((last, true)) if number >= last => {
                if number == last {
                    act();
                }
                Err(io::Error::other("the answer is lost"))
            }
            _ => Ok(act()),
        }
    }

    /// The same objects, in a store that fails no more.
    fn mended(self) -> Self {
        Self { operations: Mutex::default(), failing: None, ..self }
    }

    fn content(&self) -> BTreeMap<String, Vec<u8>> {
        self.objects.lock().unwrap().clone()
    }
}

impl OutputObjects for Objects {
    fn begin(&self, files: &[String]) -> io::Result<()> {
        self.operation(|| *self.marked.lock().unwrap() = Some(files.to_owned()))
    }

    fn put(&self, file: &str, content: Vec<u8>) -> io::Result<()> {
        self.operation(|| drop(self.objects.lock().unwrap().insert(file.to_owned(), content)))
    }

    fn stream(
        &self,
        file: &str,
        bytes: u64,
        fill: &mut dyn FnMut(&mut dyn Write) -> Result<()>,
    ) -> Result<()> {
        let mut content = Vec::new();
        fill(&mut content)?;
        assert!(content.len() as u64 <= bytes + 4096, "{file}: {} instead of {bytes}", content.len());
        self.put(file, content).map_err(|e| Error::write(file, e))
    }

    fn get(&self, file: &str) -> io::Result<Option<Vec<u8>>> {
        self.operation(|| self.objects.lock().unwrap().get(file).cloned())
    }

    fn finish(&self) -> io::Result<()> {
        self.operation(|| *self.marked.lock().unwrap() = None)
    }
}

const URL: &str = "s3://bucket/out";

fn write(source: &Path, objects: &Objects, scale: f64) -> Result<()> {
    let weights = Weights::open(&source.join("transformer"), Library::Diffusers).unwrap();
    let new = Tensor::new(&[[0f32, 1., 0.], [2., 0., 3.]], &crate::HOST).unwrap().affine(scale, 0.).unwrap();
    let record = record();
    let export = Export {
        source,
        destination: Path::new(URL),
        link: false,
        weights: &weights,
        read: None,
        record: &record,
        documents: &[],
        shrink: None,
    };
    export.write_objects(objects, &|name| Ok((name == "b.weight").then(|| new.clone())))
}

/// Every file below a folder by its path in it, with its content.
pub(super) fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut open: Vec<PathBuf> = vec![folder.to_owned()];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
            files.insert(name, fs::read(&path).unwrap());
        }
    }
    files
}

#[test]
fn an_export_that_ends_at_any_operation_is_done_by_the_next_one() {
    let root = tempfile::tempdir().unwrap();
    let source = pipeline(root.path(), true);
    let out = root.path().join("out");
    export_by(&obsdiff_files::Disk::default(), &source, &out, false, 1.0).unwrap();
    let expected = files(&out);
    let undisturbed = Objects::default();
    write(&source, &undisturbed, 1.0).unwrap();
    assert!(undisturbed.content() == expected, "not what a directory has");
    assert!(undisturbed.marked.lock().unwrap().is_none());
    let operations = *undisturbed.operations.lock().unwrap();
    assert!(operations > expected.len(), "{operations}");
    for failing in (0..operations).flat_map(|last| [(last, false), (last, true)]) {
        let objects = Objects { failing: Some(failing), ..Objects::default() };
        write(&source, &objects, 1.0).unwrap_err();
        let objects = objects.mended();
        let (content, marked) = (objects.content(), objects.marked.lock().unwrap().clone());
        if content.contains_key("model_index.json") {
            assert!(content == expected, "{failing:?}: half a pipeline counts as one");
        } else {
            assert!(read_record(&objects, Path::new(URL)).unwrap().is_none());
        }
        let named = |file: &String| marked.as_ref().is_some_and(|marked| marked.contains(file));
        assert!(content == expected || content.keys().all(named), "{failing:?}: whose objects are they?");
        write(&source, &objects, 1.0).unwrap();
        assert!(objects.content() == expected, "{failing:?}: another pipeline");
        assert!(objects.marked.lock().unwrap().is_none(), "{failing:?}: a marker is left");
    }
}

#[test]
fn a_link_that_is_not_followed_is_refused_before_any_object_is_put() {
    let root = tempfile::tempdir().unwrap();
    let source = pipeline(root.path(), false);
    fs::write(root.path().join("key"), "private").unwrap();
    std::os::unix::fs::symlink("../../key", source.join("vae/notes")).unwrap();
    let objects = Objects::default();
    let error = write(&source, &objects, 1.0).unwrap_err().to_string();
    assert!(error.contains("vae/notes: leads by a symbolic link to "), "{error}");
    assert!(objects.content().is_empty() && objects.marked.lock().unwrap().is_none());
}

#[test]
fn what_was_measured_joins_the_record_and_a_complete_output_stays() {
    let root = tempfile::tempdir().unwrap();
    let (source, url) = (pipeline(root.path(), false), Path::new(URL));
    let objects = Objects::default();
    write(&source, &objects, 1.0).unwrap();
    let measured = PruningRecord {
        measured: Some(Measured {
            held_out: None,
            baseline: None,
            expected_velocity_error: None,
            seconds: 2.5,
            other_seconds: 0.0,
            phases: Vec::new(),
            peak_memory_bytes: None,
            course: None,
        }),
        ..record()
    };
    let document = |text: &str| Document { name: "NOTES.md", text: format!("{DOCUMENT_MARK}\n{text}") };
    for text in ["first", "second"] {
        replace_record(&objects, url, &measured, &[document(text)]).unwrap();
        assert_eq!(objects.content()["NOTES.md"], document(text).text.as_bytes());
    }
    let before = objects.content();
    write(&source, &objects, 2.0).unwrap();
    assert!(objects.content() == before, "an export of the same job writes again");
    let read = read_record(&objects, url).unwrap().unwrap();
    let content = objects.content();
    for file in &read.files {
        assert_eq!(file.sha256, Digest::of(&content[&file.path]).to_string(), "{}", file.path);
    }
    // All but the record and the document.
    assert_eq!(read.files.len(), content.len() - 2);
    assert_eq!(PruningRecord { files: Vec::new(), ..read }, measured);

    let other = PruningRecord { hardware: "another".to_owned(), ..measured.clone() };
    let error = replace_record(&objects, url, &other, &[]).unwrap_err().to_string();
    assert_eq!(
        error,
        "s3://bucket/out/pruning.json: is not what the job has written: move the pipeline away and run the job again"
    );
    objects.put("NOTES.md", b"mine".to_vec()).unwrap();
    let error = replace_record(&objects, url, &measured, &[document("third")]).unwrap_err().to_string();
    assert!(error.starts_with("s3://bucket/out/NOTES.md: was not written by obsdiff"), "{error}");
    assert_eq!(objects.content()["NOTES.md"], b"mine");
}
