use std::sync::Arc;

use candle_core::{DType, Tensor};
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use obsdiff_engine::calibrate::{Conditionings, Encoded};
use obsdiff_engine::device::ComputeDevice;
use obsdiff_engine::pipeline::Conditioning;
use obsdiff_proto::{InputDigest, JobSpec};
use obsdiff_store::{JobStore, StoreError, conditioning_object};
use serde_json::json;
use tokio::runtime::Runtime;

use super::*;
use crate::device::{PartStoreError, WorkError};
use crate::preparation::JobModel;

const ASSET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/assets/shapes-sd3");
const PROMPTS: [&str; 5] = ["a red circle", "on grey", "a ring", "a red circle", "a cross"];

/// A job of three prompts that calibrate and two that are held out, and its store.
struct Setting {
    spec: JobSpec,
    model: JobModel,
    objects: ConditioningObjects,
    bucket: Arc<InMemory>,
    store: JobStore,
    runtime: Runtime,
}

impl Setting {
    fn new(dtype: &str) -> Self {
        let spec: JobSpec = serde_json::from_value(json!({
            "model": { "path": ASSET, "dtype": dtype },
            "sparsity": { "pattern": "2:4" },
            "calibration": { "prompts": "prompts.txt", "count": 3, "shard_size": 2, "max_sequence_length": 24 },
            "output": { "path": "out" },
        }))
        .unwrap();
        let bucket = Arc::new(InMemory::new());
        let (store, runtime) = (JobStore::over(bucket.clone(), "bucket"), Runtime::new().unwrap());
        runtime.block_on(store.claim(&spec)).unwrap();
        Self {
            model: JobModel::open(&spec, ASSET.as_ref(), None).unwrap(),
            objects: objects(&spec, "a"),
            store,
            bucket,
            spec,
            runtime,
        }
    }

    /// Encodes what is missing, and returns the progress that was reported.
    fn encode(&self) -> Vec<(u64, u64)> {
        self.encode_on(&ComputeDevice::Cpu)
    }

    fn encode_on(&self, device: &ComputeDevice) -> Vec<(u64, u64)> {
        let mut reported = Vec::new();
        let place = (&self.store, self.runtime.handle());
        let mut report = |done, all| reported.push((done, all));
        encode_missing(&self.spec, &self.model, &self.objects, &PROMPTS, place, device, &mut report).unwrap();
        reported
    }

    fn open(&self) -> Result<StoredConditionings, StoreError> {
        let (objects, runtime) = (self.objects.clone(), self.runtime.handle().clone());
        StoredConditionings::open(&self.spec, &self.model, objects, &self.store, runtime)
    }

    /// The same of a job with more than memory is to hold.
    fn under_way(&self) -> StoredConditionings {
        let (objects, runtime) = (self.objects.clone(), self.runtime.handle().clone());
        let none = ConditioningObjects { shards: Vec::new(), ..objects.clone() };
        let opened = StoredConditionings::open(&self.spec, &self.model, none, &self.store, runtime);
        let mut opened = opened.unwrap();
        (opened.kept, opened.objects) = (None, objects);
        opened
    }

    /// The place of the object of prompts 0 and 1.
    fn first(&self) -> Path {
        Path::from(conditioning_object(self.objects.shards[0].1))
    }

    fn read(&self, path: &Path) -> Vec<u8> {
        self.runtime.block_on(async { self.bucket.get(path).await.unwrap().bytes().await.unwrap().to_vec() })
    }

    fn put(&self, path: &Path, content: Vec<u8>) {
        self.runtime.block_on(self.bucket.put(path, content.into())).unwrap();
    }

    /// What is said of prompts 0 and 1, when they are opened and when a job under way reads them.
    fn refused(&self) -> String {
        let said = self.open().unwrap_err().to_string();
        let error = self.under_way().read(0..2).unwrap_err();
        let under_way = match WorkError::from(error) {
            WorkError::PartStore(PartStoreError::Damaged(said)) => said,
            other => panic!("{other}"),
        };
        assert_eq!(said, under_way);
        said
    }
}

fn objects(spec: &JobSpec, encoder: &str) -> ConditioningObjects {
    let made_by = [InputDigest { path: "text_encoder".to_owned(), sha256: encoder.to_owned() }];
    let texts: Vec<String> = PROMPTS.iter().map(|prompt| (*prompt).to_owned()).collect();
    ConditioningObjects::new(spec, &made_by, &texts[..3], &texts[3..]).unwrap()
}

fn numbers(one: &Conditioning) -> Vec<f32> {
    let flat = |t: &Tensor| t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    [flat(&one.text), flat(&one.pooled)].concat()
}

#[test]
fn what_is_read_is_what_this_process_would_encode_by_itself() {
    for (dtype, kind) in [("f32", DType::F32), ("bf16", DType::BF16)] {
        let setting = Setting::new(dtype);
        setting.encode();
        let encoders = setting.model.pipeline.text_encoders(24).unwrap();
        let folder = std::env::temp_dir();
        let own = Encoded::new(&encoders, &PROMPTS, kind, &folder, &mut |_, _| {}).unwrap();
        for stored in [setting.open().unwrap(), setting.under_way()] {
            assert_eq!((stored.prompts(), stored.negative().text.dtype()), (5, kind));
            assert_eq!(numbers(stored.negative()), numbers(own.negative()));
            for batch in [0..2, 2..3, 3..5, 1..4, 0..5, 4..4] {
                let of = |from: &dyn Conditionings| -> Vec<_> {
                    from.read(batch.clone()).unwrap().iter().map(numbers).collect()
                };
                assert!(of(&stored) == of(&own), "{batch:?}");
            }
            assert!(stored.read(4..6).is_err());
        }
    }
}

#[test]
fn a_prompt_is_encoded_once_and_what_is_lost_is_encoded_again_alone() {
    let setting = Setting::new("f32");
    let reported = setting.encode();
    let (last, all) = *reported.last().unwrap();
    assert!(last == all && reported.iter().all(|(_, of)| *of == all), "{reported:?}");
    assert!(reported.len() >= PROMPTS.len() && reported.is_sorted(), "{reported:?}");
    let encoded = |reported: &[(u64, u64)]| reported.iter().any(|(done, _)| *done > 0);
    assert!(!encoded(&setting.encode()), "all are there");

    let before = setting.read(&setting.first());
    setting.runtime.block_on(setting.bucket.delete(&setting.first())).unwrap();
    let again = setting.encode();
    // Two prompts of six, the empty one among them.
    assert_eq!(again.last().unwrap().1 * 3, all);
    assert!(setting.read(&setting.first()) == before);
}

#[test]
fn a_damaged_object_is_named_with_what_to_do() {
    let setting = Setting::new("f32");
    setting.encode();
    let (path, good) = (setting.first(), setting.read(&setting.first()));
    let second = setting.read(&Path::from(conditioning_object(setting.objects.shards[2].1)));
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let cut = good[..good.len() - 1].to_vec();
    for (content, problem) in [
        (flipped, "its tensors have the digest "),
        (cut, "it cannot be read: "),
        (Vec::new(), "it cannot be read: "),
        (second, "it is the conditioning of other prompts or by other encoders, "),
    ] {
        setting.put(&path, content);
        let said = setting.refused();
        assert!(said.starts_with(&format!("bucket: {path} is damaged: {problem}")), "{said}");
        assert!(said.ends_with("; the same command makes it again"), "{said}");
        setting.encode();
        assert!(setting.read(&path) == good, "it is not made again");
    }
    setting.runtime.block_on(setting.bucket.delete(&path)).unwrap();
    assert_eq!(setting.refused(), format!("bucket: {path} is missing"));
    setting.encode();
    assert!(setting.read(&path) == good && setting.under_way().read(0..2).is_ok());
}

#[test]
fn whatever_decides_a_conditioning_decides_its_name() {
    let Setting { spec, objects: first, .. } = Setting::new("f32");
    assert_eq!(objects(&spec, "a"), first);
    let mut other = spec.clone();
    other.calibration.max_sequence_length += 1;
    let changed = [objects(&spec, "b"), objects(&other, "a"), objects(&Setting::new("bf16").spec, "a")];
    for changed in changed {
        let all =
            |of: &ConditioningObjects| [vec![of.negative], of.shards.iter().map(|s| s.1).collect()].concat();
        assert!(all(&changed).iter().all(|key| !all(&first).contains(key)));
    }
    // A prompt that comes twice stands in two shards, which differ in the others.
    assert_eq!(first.shards.iter().map(|(ids, _)| ids.clone()).collect::<Vec<_>>(), [0..2, 2..3, 3..5]);
}

/// On a GPU of a fake driver, in host memory. Nothing here has a GPU.
#[cfg(feature = "cuda")]
mod gpu {
    use std::process::Command;

    use obsdiff_engine::device::DeviceName;
    use obsdiff_engine::device::transfers::TransferKind;
    use obsdiff_tests::fake_cuda;

    use super::*;

    /// Starts a test of this module again in a process with the fake libraries; true in that process.
    fn in_child(test: &str) -> bool {
        const FOUND: &str = "FAKE_CUDA_FOUND";
        if std::env::var_os(FOUND).is_some() {
            return true;
        }
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("conditioning::tests::gpu::{test}"), "--nocapture"])
            .env(FOUND, "1")
            .env("LD_LIBRARY_PATH", fake_cuda())
            .output()
            .unwrap();
        let [said, errors] = [&child.stdout, &child.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        assert!(child.status.success() && said.contains("1 passed"), "{said}{errors}");
        false
    }

    #[test]
    fn a_gpu_encodes_what_is_missing_and_has_its_memory_back() {
        if !in_child("a_gpu_encodes_what_is_missing_and_has_its_memory_back") {
            return;
        }
        let device = ComputeDevice::open(DeviceName::Cuda(0)).unwrap();
        let free = device.memory().unwrap().unwrap().free;
        for (dtype, within) in [("f32", 1e-5), ("bf16", 0.03)] {
            let [on_gpu, on_processor] = [dtype, "f32"].map(Setting::new);
            let before = device.transfers().to_host(TransferKind::Encodings).count;
            on_gpu.encode_on(&device);
            // Of five distinct texts what three encoders make of tokens, and two of all of them.
            assert_eq!(device.transfers().to_host(TransferKind::Encodings).count - before, 5 * 5);
            assert_eq!(device.memory().unwrap().unwrap().free, free);
            on_processor.encode();
            let [found, wanted] = [&on_gpu, &on_processor].map(|setting| setting.open().unwrap());
            let all = |of: &StoredConditionings| of.read(0..5).unwrap().iter().flat_map(numbers).collect();
            let [found, wanted]: [Vec<f32>; 2] = [all(&found), all(&wanted)];
            let square = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>().sqrt();
            let off = square(&mut found.iter().zip(&wanted).map(|(a, b)| a - b));
            let off = off / square(&mut wanted.iter().copied());
            assert!(off > 0.0 && off < within, "{dtype}: off by {off}");
            // What is there is read, and not encoded again.
            let before = device.transfers();
            on_gpu.encode_on(&device);
            assert_eq!(device.transfers(), before);
        }
    }

    #[test]
    fn what_a_gpu_encodes_has_the_same_bytes_whoever_begins_and_whoever_goes_on() {
        if !in_child("what_a_gpu_encodes_has_the_same_bytes_whoever_begins_and_whoever_goes_on") {
            return;
        }
        let [first, second] = [0, 1].map(|_| ComputeDevice::open(DeviceName::Cuda(0)).unwrap());
        let [alone, shared] = ["bf16", "bf16"].map(Setting::new);
        alone.encode_on(&first);
        shared.encode_on(&second);
        // A worker was lost after it had put the other objects.
        shared.runtime.block_on(shared.bucket.delete(&shared.first())).unwrap();
        shared.encode_on(&first);
        let objects = |setting: &Setting| {
            let keys = setting.objects.shards.iter().map(|(_, key)| *key).chain([setting.objects.negative]);
            keys.map(|key| setting.read(&Path::from(conditioning_object(key)))).collect::<Vec<_>>()
        };
        assert!(objects(&alone) == objects(&shared));
    }
}
