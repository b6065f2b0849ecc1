use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex, mpsc};

use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::runtime::Runtime;

use super::*;

pub(super) const URL: &str = "s3://bucket/model";
pub(super) const ASSET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/assets/shapes-sd3");

/// A model in a store, and a folder for its copy.
pub(super) struct Setting {
    bucket: Arc<InMemory>,
    pub(super) cache: tempfile::TempDir,
    runtime: Runtime,
}

impl Setting {
    /// The small pipeline of the tests.
    pub(super) fn new() -> Self {
        let setting = Self {
            bucket: Arc::new(InMemory::new()),
            cache: tempfile::tempdir().unwrap(),
            runtime: Runtime::new().unwrap(),
        };
        for (name, content) in files(Path::new(ASSET)) {
            setting.put(&name, content);
        }
        setting
    }

    pub(super) fn put(&self, name: &str, content: Vec<u8>) {
        let path = ObjectPath::parse(name).unwrap();
        self.runtime.block_on(self.bucket.put(&path, content.into())).unwrap();
    }

    pub(super) fn open(&self) -> Result<StoredModel> {
        let objects: Arc<dyn ObjectStore> = self.bucket.clone();
        StoredModel::of(ModelStore::over(objects, URL), Some(self.cache.path()), self.runtime.handle())
    }

    fn refusal(&self) -> String {
        self.open().unwrap_err().to_string()
    }

    /// Fetches a model, and gives its folder and the bytes that came.
    pub(super) fn fetch(&self, model: &StoredModel, extent: Extent) -> Result<(PathBuf, u64)> {
        let bytes = Mutex::new(0);
        let count = |event: FetchEvent<'_>| {
            if let FetchEvent::Done(more) = event {
                *bytes.lock().unwrap() += more;
            }
        };
        let folder = model.fetch(extent, self.runtime.handle(), &count)?;
        Ok((folder, bytes.into_inner().unwrap()))
    }

    /// The names of all files of the cache that are not whole.
    fn unfinished(&self) -> Vec<PathBuf> {
        let names = files(self.cache.path()).into_keys().filter(|name| name.ends_with(".unfinished"));
        names.map(|name| self.cache.path().join(name)).collect()
    }
}

/// Every file below a folder by its path in it, with its content.
pub(super) fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
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

pub(super) const WEIGHTS: &str = "transformer/diffusion_pytorch_model.safetensors";

#[test]
fn a_model_is_copied_once_and_as_it_is() {
    let setting = Setting::new();
    let source = files(Path::new(ASSET));
    let (folder, bytes) = setting.fetch(&setting.open().unwrap(), Extent::Whole).unwrap();
    assert!(files(&folder) == source, "not the same files");
    assert_eq!(bytes, source.values().map(|content| content.len() as u64).sum::<u64>());
    assert_eq!(setting.fetch(&setting.open().unwrap(), Extent::Whole).unwrap(), (folder.clone(), 0));
    // What a folder's name stands for is there whatever becomes of the store.
    let other = vec![1; source[WEIGHTS].len()];
    setting.put(WEIGHTS, other.clone());
    let (replaced, bytes) = setting.fetch(&setting.open().unwrap(), Extent::Whole).unwrap();
    assert_eq!(bytes, other.len() as u64, "the rest is here");
    assert!(files(&folder) == source && files(&replaced)[WEIGHTS] == other);
    assert!(setting.unfinished().is_empty());
}

/// A folder in which somebody has given the index of a variant the plain name.
#[test]
fn shards_with_the_names_of_a_variant_come_where_the_plain_index_names_them() {
    let setting = Setting::new();
    let shard = "diffusion_pytorch_model.fp16-00001-of-00001.safetensors";
    let (index, path) = (format!("{WEIGHTS}.index.json"), format!("transformer/{shard}"));
    setting.put(&path, fs::read(Path::new(ASSET).join(WEIGHTS)).unwrap());
    let model = setting.open().unwrap();
    let (folder, _) = setting.fetch(&model, Extent::Whole).unwrap();
    assert!(!files(&folder).contains_key(&path));
    assert_eq!(model.left_out(&folder).unwrap(), [&*path]);
    setting.put(&index, format!(r#"{{"weight_map": {{"proj_out.bias": "{shard}"}}}}"#).into_bytes());
    let model = setting.open().unwrap();
    for extent in
        [Extent::Transformer, Extent::Headers { with_text: false }, Extent::WithoutText, Extent::Whole]
    {
        let (folder, _) = setting.fetch(&model, extent).unwrap();
        assert!(files(&folder).contains_key(&path), "{extent:?}");
        assert_eq!(model.left_out(&folder).unwrap(), [""; 0]);
    }
    let (folder, _) = setting.fetch(&model, Extent::Configuration).unwrap();
    assert!(!files(&folder).contains_key(&index));
}

#[test]
fn no_more_is_copied_than_is_needed() {
    let setting = Setting::new();
    let source = files(Path::new(ASSET));
    let model = setting.open().unwrap();
    let names = |folder: &Path| files(folder).into_keys().collect::<Vec<_>>();
    let (folder, _) = setting.fetch(&model, Extent::Configuration).unwrap();
    assert_eq!(names(&folder), ["model_index.json", "transformer/config.json"]);

    let (folder, bytes) = setting.fetch(&model, Extent::Headers { with_text: true }).unwrap();
    let outline = files(&folder);
    assert!(outline.keys().eq(source.keys()));
    let all: u64 = source.values().map(|content| content.len() as u64).sum();
    assert!(bytes < all / 2, "{bytes} of {all} bytes");
    let (there, whole) = (&outline[WEIGHTS], &source[WEIGHTS]);
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    assert_eq!(there.len(), whole.len());
    assert!(there[..header] == whole[..header] && there[header..].iter().all(|byte| *byte == 0));

    let (folder, _) = setting.fetch(&model, Extent::Transformer).unwrap();
    assert!(names(&folder).iter().all(|name| name.starts_with("transformer/") || name == INDEX_FILE));
    assert!(files(&folder)[WEIGHTS] == source[WEIGHTS], "a hole is taken for the weights");
    for (extent, whole, outlined) in [
        (Extent::TransformerWeights, WEIGHTS, "text_encoder_3/model.safetensors"),
        (Extent::TextWeights, "text_encoder_3/model.safetensors", WEIGHTS),
    ] {
        let found = files(&setting.fetch(&model, extent).unwrap().0);
        assert!(found.keys().eq(source.keys()) && found[whole] == source[whole]);
        assert!(found[outlined] != source[outlined] && found[outlined].len() == source[outlined].len());
    }
    let (folder, _) = setting.fetch(&model, Extent::WithoutText).unwrap();
    let of_text = |name: &String| name.starts_with("text_encoder") || name.starts_with("tokenizer");
    assert!(!names(&folder).iter().any(of_text) && names(&folder).contains(&"vae/config.json".to_owned()));
    let (folder, _) = setting.fetch(&model, Extent::Copied).unwrap();
    assert!(files(&folder) == source);
}

#[test]
fn a_download_goes_on_where_it_was_cut_off() {
    let setting = Setting::new();
    let (folder, _) = setting.fetch(&setting.open().unwrap(), Extent::Whole).unwrap();
    let object = fs::canonicalize(folder.join(WEIGHTS)).unwrap();
    let unfinished = object.with_extension("unfinished");
    let whole = fs::read(&object).unwrap();
    let begin = |begun: &[u8]| {
        fs::remove_file(&object).unwrap();
        fs::write(&unfinished, begun).unwrap();
        let (_, bytes) = setting.fetch(&setting.open().unwrap(), Extent::Whole).unwrap();
        assert!(!unfinished.exists());
        (fs::read(&object).unwrap(), bytes)
    };
    // Other bytes show which of them were not downloaded again.
    let mut begun = whole.clone();
    begun[..100].fill(7);
    let (found, bytes) = begin(&begun[..1000]);
    assert!(found == begun && bytes == whole.len() as u64 - 1000, "{bytes}");
    assert_eq!(begin(&whole), (whole.clone(), 0));
    // What is longer than the object is none of it.
    let longer = [&begun[..], &[0]].concat();
    assert_eq!(begin(&longer), (whole.clone(), whole.len() as u64));
}

#[test]
fn an_object_that_is_replaced_meanwhile_is_told() {
    for other in [vec![1; 10], vec![1; 100_000]] {
        let setting = Setting::new();
        let model = setting.open().unwrap();
        setting.put(WEIGHTS, other);
        let error = setting.fetch(&model, Extent::Whole).unwrap_err().to_string();
        let says = format!("{URL}: {WEIGHTS} was replaced while it was read");
        assert!(error.starts_with(&says), "{error}");
        setting.fetch(&setting.open().unwrap(), Extent::Whole).unwrap();
    }
}

#[test]
fn one_process_waits_for_the_download_of_another() {
    let setting = Setting::new();
    let model = setting.open().unwrap();
    let (waits, waiting) = mpsc::channel();
    let other = CachedModel::open(setting.cache.path(), URL).unwrap();
    let lock = other.lock().unwrap().unwrap();
    std::thread::scope(|scope| {
        let fetching = scope.spawn(|| {
            let waits = Mutex::new(waits);
            let on_event = |event: FetchEvent<'_>| {
                if let FetchEvent::Waits(owner) = event {
                    waits.lock().unwrap().send(owner.to_string()).unwrap();
                }
            };
            model.fetch(Extent::Whole, setting.runtime.handle(), &on_event)
        });
        let owner = waiting.recv().unwrap();
        assert!(owner.starts_with(&format!("process {} on ", std::process::id())), "{owner}");
        drop(lock);
        fetching.join().unwrap().unwrap();
    });
}

#[test]
fn listings_that_no_pipeline_has_are_refused_before_anything_is_downloaded() {
    let many = |setting: &Setting| (0..10_000).for_each(|n| setting.put(&format!("pictures/{n}"), vec![]));
    let long = format!("vae/{}", "a".repeat(256));
    let deep = "a/".repeat(9) + "b";
    type Spoil<'a> = &'a dyn Fn(&Setting);
    let cases: [(Spoil<'_>, &str); 7] = [
        (&many, "holds more than 10000 objects: give the prefix of one diffusers pipeline"),
        (
            &|s| s.put("vae\\..\\config.json", vec![1]),
            "whose name has characters that no file of a pipeline has",
        ),
        (&|s| s.put(&long, vec![1]), "whose name is too long for a file: move that away"),
        (&|s| s.put(&deep, vec![1]), "which lies in more folders than a pipeline has"),
        (&|s| s.put("vae", vec![1]), "holds vae, which is both an object and a folder: move one away"),
        (
            &|s| s.put("vae/config.json", vec![b' '; (64 << 20) + 1]),
            "holds vae/config.json of 64.0 MiB, but no such file of a pipeline is above 64.0 MiB",
        ),
        (
            &|s| s.runtime.block_on(s.bucket.delete(&ObjectPath::parse(INDEX_FILE).unwrap())).unwrap(),
            "holds no model_index.json: give the prefix of a whole diffusers pipeline",
        ),
    ];
    for (spoil, says) in cases {
        let setting = Setting::new();
        spoil(&setting);
        let error = setting.refusal();
        assert!(error.starts_with(URL) && error.contains(says), "{error}");
        assert_eq!(fs::read_dir(setting.cache.path()).unwrap().count(), 0, "{says}");
    }
    // Markers of folders, which consoles of stores make, are none of these.
    let setting = Setting::new();
    setting.put("vae", vec![]);
    let (folder, _) = setting.fetch(&setting.open().unwrap(), Extent::Whole).unwrap();
    assert!(folder.join("vae/config.json").is_file());
}

#[test]
fn a_cache_that_is_not_ours_is_refused_and_left_alone() {
    let setting = Setting::new();
    fs::write(setting.cache.path().join("thesis.tex"), "mine").unwrap();
    let error = setting.refusal();
    let says = "holds thesis.tex, but no obsdiff-cache.json that marks it as obsdiff's: name an empty or a new folder";
    assert!(error.contains(says), "{error}");
    assert_eq!(files(setting.cache.path()).into_keys().collect::<Vec<_>>(), ["thesis.tex"]);
    let objects: Arc<dyn ObjectStore> = setting.bucket.clone();
    let none = StoredModel::of(ModelStore::over(objects, URL), None, setting.runtime.handle());
    let error = none.unwrap_err().to_string();
    assert!(error.contains("needs a folder of this machine to be kept in: name one by --cache"), "{error}");
}

#[test]
fn a_header_that_is_none_is_refused() {
    let setting = Setting::new();
    for content in [vec![1; 7], [&u64::MAX.to_le_bytes()[..], &[0; 8]].concat()] {
        setting.put(WEIGHTS, content);
        let model = setting.open().unwrap();
        let error = setting.fetch(&model, Extent::Headers { with_text: true }).unwrap_err().to_string();
        assert!(error.contains(&format!("holds {WEIGHTS}, which is no whole safetensors file")), "{error}");
    }
}

#[test]
fn what_a_link_in_the_place_of_an_unfinished_pipeline_leads_to_is_not_removed() {
    let setting = Setting::new();
    let (folder, _) = setting.fetch(&setting.open().unwrap(), Extent::Whole).unwrap();
    fs::remove_dir_all(&folder).unwrap();
    let others = tempfile::tempdir().unwrap();
    fs::write(others.path().join("thesis.tex"), "mine").unwrap();
    std::os::unix::fs::symlink(others.path(), folder.with_extension("unfinished")).unwrap();
    assert!(setting.fetch(&setting.open().unwrap(), Extent::Whole).is_err());
    assert_eq!(files(others.path()).into_keys().collect::<Vec<_>>(), ["thesis.tex"]);
}
