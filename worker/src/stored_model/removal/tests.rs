use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use obsdiff_files::{Operation, OperationHook};

use super::super::layout::MARKER;
use super::super::tests::{ASSET, Setting, URL, WEIGHTS, files};
use super::super::{CacheContents, Extent, ModelCache};
use super::*;

impl Setting {
    fn contents(&self) -> CacheContents {
        ModelCache::open(self.cache.path()).unwrap().expect("no cache").contents().unwrap()
    }

    /// The one model that is here.
    fn copy(&self) -> CachedCopy {
        let [copy] = <[_; 1]>::try_from(self.contents().models).unwrap();
        copy
    }

    /// Fetches the whole model, without using it any longer.
    fn fetched(&self) -> (PathBuf, u64) {
        self.fetch(&self.open().unwrap(), Extent::Whole).unwrap()
    }

    fn remove(&self, what: ModelRemoval) -> Option<u64> {
        self.copy().remove(what, &Disk::default()).unwrap()
    }
}

#[test]
fn a_model_is_told_and_goes_whole_once_nobody_uses_it() {
    let setting = Setting::new();
    assert!(ModelCache::open(setting.cache.path()).unwrap().is_none());
    let source = files(Path::new(ASSET));
    let model = setting.open().unwrap();
    let (folder, bytes) = setting.fetch(&model, Extent::Whole).unwrap();
    let used = setting.copy();
    assert_eq!((used.url.as_deref(), used.in_use), (Some(URL), Some(true)));
    assert!(used.bytes >= bytes && used.bytes < 2 * bytes, "{} of {bytes}", used.bytes);
    assert_eq!((used.unfinished_bytes, used.replaced_bytes), (0, 0));
    assert_eq!(used.remove(ModelRemoval::Whole, &Disk::default()).unwrap(), None);
    assert!(files(&folder) == source, "it goes while it is read");
    drop(model);
    let unused = setting.copy();
    assert_eq!(unused.in_use, Some(false));
    assert!(unused.last_used >= used.last_used && used.last_used.is_some());
    assert_eq!(unused.remove(ModelRemoval::Whole, &Disk::default()).unwrap(), Some(used.bytes));
    assert_eq!(setting.contents(), CacheContents::default());
    assert_eq!(files(setting.cache.path()).into_keys().collect::<Vec<_>>(), [MARKER]);
    // Nobody minds that it is gone.
    assert_eq!(unused.remove(ModelRemoval::Whole, &Disk::default()).unwrap(), Some(0));
    let (folder, again) = setting.fetched();
    assert!(files(&folder) == source && again == bytes);
}

#[test]
fn only_the_headers_of_a_model_take_little_of_the_disk() {
    let setting = Setting::new();
    setting.fetch(&setting.open().unwrap(), Extent::Headers { with_text: true }).unwrap();
    let headers = setting.copy().bytes;
    setting.fetched();
    assert!(headers < setting.copy().bytes / 2, "{headers} bytes");
}

#[test]
fn what_the_store_has_replaced_goes_and_the_rest_stays() {
    let setting = Setting::new();
    let (before, _) = setting.fetched();
    assert_eq!(setting.remove(ModelRemoval::Replaced), Some(0));
    assert!(before.is_dir());
    let size = before.join(WEIGHTS).metadata().unwrap().len();
    setting.put(WEIGHTS, vec![1; size as usize]);
    let (after, _) = setting.fetched();
    let replaced = setting.copy().replaced_bytes;
    assert!(replaced >= size && replaced < setting.copy().bytes / 2, "{replaced} bytes of {size}");
    assert_eq!(setting.remove(ModelRemoval::Replaced), Some(replaced));
    assert!(!before.exists() && fs::read(after.join(WEIGHTS)).unwrap().iter().all(|byte| *byte == 1));
    assert_eq!(setting.copy().replaced_bytes, 0);
    assert_eq!(setting.fetched(), (after, 0));
}

#[test]
fn beginnings_go_and_whole_objects_stay() {
    let setting = Setting::new();
    let (folder, _) = setting.fetched();
    let object = fs::canonicalize(folder.join(WEIGHTS)).unwrap();
    let begun = [object.with_extension("unfinished"), object.with_extension("headers.7.unfinished")];
    begun.iter().for_each(|path| fs::write(path, vec![1; 10_000]).unwrap());
    let pipeline = folder.with_extension("unfinished");
    fs::create_dir_all(pipeline.join("vae")).unwrap();
    let unfinished = setting.copy().unfinished_bytes;
    assert!(unfinished >= 20_000, "{unfinished}");
    assert_eq!(setting.remove(ModelRemoval::Unfinished), Some(unfinished));
    assert!(begun.iter().all(|path| !path.exists()) && !pipeline.exists());
    assert_eq!(setting.fetched(), (folder, 0));
}

#[test]
fn what_obsdiff_did_not_make_stays_and_is_told() {
    let setting = Setting::new();
    let (folder, _) = setting.fetched();
    let model = setting.copy().folder;
    let elsewhere = tempfile::tempdir().unwrap();
    fs::write(elsewhere.path().join("thesis.tex"), "mine").unwrap();
    let link = setting.cache.path().join("models").join("a".repeat(32));
    std::os::unix::fs::symlink(elsewhere.path(), &link).unwrap();
    let own = [
        setting.cache.path().join("notes.txt"),
        setting.cache.path().join("models/notes.txt"),
        model.join("notes.txt"),
        model.join("objects/notes.txt"),
        folder.join("notes.txt"),
    ];
    own.iter().for_each(|path| fs::write(path, "mine").unwrap());
    let mut all: Vec<PathBuf> = own.iter().cloned().chain([link.clone()]).collect();
    all.sort();
    assert_eq!(setting.contents().foreign, all);
    let other = setting.fetch(&setting.open().unwrap(), Extent::Headers { with_text: true }).unwrap().0;
    setting.remove(ModelRemoval::Whole).unwrap();
    assert!(own.iter().all(|path| fs::read_to_string(path).unwrap() == "mine"));
    assert_eq!(fs::read_to_string(link.join("thesis.tex")).unwrap(), "mine");
    assert!(!other.exists(), "a pipeline with nothing else in it stays");
    // The one with a file of somebody else is as it was.
    let source = files(Path::new(ASSET));
    assert!(source.iter().all(|(name, content)| fs::read(folder.join(name)).unwrap() == *content));
    assert_eq!(setting.contents().foreign, all);
    own.iter().for_each(|path| fs::remove_file(path).unwrap());
    setting.remove(ModelRemoval::Whole).unwrap();
    assert_eq!(setting.contents().models, []);
}

#[test]
fn a_folder_that_nothing_marks_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("thesis.tex"), "mine").unwrap();
    let error = ModelCache::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("holds thesis.tex, but no obsdiff-cache.json"), "{error}");
    assert!(ModelCache::open(&folder.path().join("none")).unwrap().is_none());
    // What only looks like a model has another URL's name, or no URL.
    let setting = Setting::new();
    setting.fetched();
    let model = setting.copy().folder;
    fs::write(model.join(ABOUT), "{\"url\": \"s3://bucket/another\"}").unwrap();
    assert_eq!((setting.copy().url, setting.remove(ModelRemoval::Whole)), (None, Some(0)));
    assert_eq!(setting.contents().foreign, [model.join(ABOUT)]);
}

/// A process that is killed before one of its operations.
struct Kill {
    passing: AtomicUsize,
}

impl OperationHook for Kill {
    fn before(&self, _: Operation, _: &Path) -> io::Result<()> {
        match self.passing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |passing| passing.checked_sub(1))
        {
            Ok(_) => Ok(()),
            Err(_) => Err(io::Error::other("killed")),
        }
    }
}

#[test]
fn a_removal_that_is_cut_off_anywhere_leaves_what_the_next_fetch_repairs() {
    let setting = Setting::new();
    let source = files(Path::new(ASSET));
    let mut passing = 0;
    for what in [ModelRemoval::Whole, ModelRemoval::Unfinished] {
        loop {
            let (folder, _) = setting.fetched();
            let objects = folder.join("../../objects");
            fs::write(objects.join(format!("{}.unfinished", "0".repeat(32))), "x").unwrap();
            let disk = Disk::with_hook(Arc::new(Kill { passing: AtomicUsize::new(passing) }));
            let done = setting.copy().remove(what, &disk);
            // What is left can be listed, and no pipeline is whole that lacks an object.
            for copy in setting.contents().models {
                assert_eq!(copy.in_use, Some(false));
                for pipeline in ModelFiles::of(&copy.folder).unwrap().pipelines {
                    let as_stored = |(name, content): (&String, &Vec<u8>)| source.get(name) == Some(content);
                    let whole = || pipeline.links.iter().all(|link| link.exists());
                    let there = || whole() && files(&pipeline.path).iter().all(as_stored);
                    assert!(!pipeline.is_whole || there(), "{passing}");
                }
            }
            if done.is_ok() {
                break;
            }
            // Every other time the removal is asked for again, and otherwise the model is fetched.
            if passing % 2 == 0 {
                for copy in setting.contents().models {
                    copy.remove(ModelRemoval::Whole, &Disk::default()).unwrap();
                }
                assert_eq!(setting.contents(), CacheContents::default(), "{passing}");
            }
            let (folder, _) = setting.fetched();
            assert!(files(&folder) == source, "{passing}");
            passing += 1;
        }
        assert!(passing > 0, "nothing is removed");
        passing = 0;
    }
}
