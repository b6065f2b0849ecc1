//! Symbolic links in a source: which are followed, and that no other brings a file into an output.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use obsdiff_files::Disk;

use super::object_tests::files;
use super::required_bytes;
use super::tests::{export_by, listing, pipeline};
use crate::Result;

fn export(source: &Path, destination: &Path) -> Result<()> {
    export_by(&Disk::default(), source, destination, false, 1.0)
}

/// Holds private files of a user: a key, and a configuration that is no component's.
fn secret(root: &Path) -> PathBuf {
    let folder = root.join("secret");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("key"), "private").unwrap();
    fs::write(folder.join("config.json"), r#"{"auths": {}}"#).unwrap();
    folder
}

/// The export of `source` must be refused because of `link`, before any work and at the end, and leave nothing.
fn assert_refused(root: &Path, source: &Path, link: &str, target: &Path) {
    let before = listing(root);
    let expected = format!(
        "{}: leads by a symbolic link to {}, which obsdiff does not copy",
        source.join(link).display(),
        target.canonicalize().unwrap().display()
    );
    for error in [required_bytes(source).map(drop), export(source, &root.join("refused"))] {
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with(&expected), "{link}: {error}");
        assert!(error.contains("put a copy in the place of the link"), "{link}: {error}");
    }
    assert_eq!(listing(root), before, "{link}");
}

/// Puts the files of a pipeline into a folder of objects, as caches do, and links to them into `folder`, which lies two folders deeper than
/// that one's parent.
fn cache(source: &Path, folder: &Path, objects: &Path) {
    fs::create_dir_all(objects).unwrap();
    for (number, (name, content)) in files(source).into_iter().enumerate() {
        let object = objects.join(format!("{number:040x}"));
        let to_parent = "../".repeat(name.matches('/').count() + 2);
        let link = folder.join(name);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(Path::new(&to_parent).join(object.strip_prefix(objects.parent().unwrap()).unwrap()), link)
            .unwrap();
        fs::write(object, content).unwrap();
    }
}

/// Moves a file or a folder to a place from which a link leads to it.
fn moved(path: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::rename(path, to).unwrap();
    symlink(to, path).unwrap();
}

#[test]
fn a_link_out_of_the_model_or_to_a_folder_is_refused_by_name() {
    for (link, target) in [
        ("NOTES.md", "secret/key"),
        ("NOTES.md", "/dev/zero"),
        ("vae/notes.txt", "secret/key"),
        ("vae/config.json", "secret/config.json"),
        ("vae/model.safetensors", "secret/key"),
        ("vae/model.safetensors.index.json", "secret/config.json"),
        ("transformer/notes.txt", "secret/key"),
        ("vae", "secret"),
        ("vae/cache", "secret"),
        ("vae/deep/again", "dense/vae"),
        ("transformer/vae", "dense/vae"),
    ] {
        let root = tempfile::tempdir().unwrap();
        let source = pipeline(root.path(), false);
        secret(root.path());
        let target = root.path().join(target);
        if source.join(link).is_dir() {
            fs::remove_dir_all(source.join(link)).unwrap();
        }
        symlink(&target, source.join(link)).unwrap();
        assert_refused(root.path(), &source, link, &target);
    }
}

/// Each of them would be followed eight folders deep.
#[test]
fn a_folder_with_many_links_to_itself_is_refused_at_once() {
    let root = tempfile::tempdir().unwrap();
    let source = pipeline(root.path(), false);
    for number in 0..40 {
        symlink(".", source.join(format!("vae/l{number:02}"))).unwrap();
    }
    assert_refused(root.path(), &source, "vae/l00", &source.join("vae"));
}

#[test]
fn a_tree_that_is_too_deep_is_refused_before_any_work() {
    let root = tempfile::tempdir().unwrap();
    let source = pipeline(root.path(), false);
    fs::create_dir_all(source.join("vae/2/3/4/5/6/7/8")).unwrap();
    required_bytes(&source).unwrap();
    fs::create_dir(source.join("vae/2/3/4/5/6/7/8/9")).unwrap();
    let error = required_bytes(&source).unwrap_err().to_string();
    assert!(error.ends_with("vae/2/3/4/5/6/7/8/9: lies more than 8 folders deep"), "{error}");
}

#[test]
fn links_within_a_model_and_into_the_cache_that_it_is_in_are_followed() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    let source = pipeline(root.path(), true);
    symlink("../LICENSE", source.join("vae/LICENSE")).unwrap();
    let bytes = required_bytes(&source).unwrap();
    export(&source, &path("out")).unwrap();
    let expected = files(&path("out"));
    assert_eq!(expected["vae/LICENSE"], b"free");
    let (model, digest) = ("0123456789abcdef".repeat(2), "f".repeat(32));
    for (number, (folder, objects)) in [
        ("hub/models--owner--name/snapshots/revision".to_owned(), "hub/models--owner--name/blobs".to_owned()),
        (format!("models/{model}/pipelines/{digest}"), format!("models/{model}/objects")),
    ]
    .into_iter()
    .enumerate()
    {
        let out = path(&format!("out-{number}"));
        cache(&source, &path(&folder), &path(&objects));
        assert_eq!(required_bytes(&path(&folder)).unwrap(), bytes, "{folder}");
        // By a link to the folder too, whose name says nothing.
        symlink(path(&folder), path(&format!("link-{number}"))).unwrap();
        export(&path(&format!("link-{number}")), &out).unwrap();
        assert!(files(&out) == expected, "{folder}: another pipeline");
    }
}

#[test]
fn what_only_looks_like_a_cache_opens_no_other_folder() {
    let root = tempfile::tempdir().unwrap();
    let secret = secret(root.path());
    let hub = root.path().join("models--owner--name");
    let source = hub.join("snapshots/revision");
    fs::create_dir_all(hub.join("snapshots")).unwrap();
    fs::rename(pipeline(root.path(), false), &source).unwrap();
    let notes = source.join("NOTES.md");

    // The folder of objects is a link.
    symlink(&secret, hub.join("blobs")).unwrap();
    symlink("../../blobs/key", &notes).unwrap();
    assert_refused(root.path(), &source, "NOTES.md", &secret.join("key"));

    // An object is a link.
    fs::remove_file(hub.join("blobs")).unwrap();
    fs::create_dir(hub.join("blobs")).unwrap();
    symlink(secret.join("key"), hub.join("blobs/key")).unwrap();
    assert_refused(root.path(), &source, "NOTES.md", &secret.join("key"));

    // The object is another model's.
    let other = root.path().join("models--owner--other/blobs");
    fs::create_dir_all(&other).unwrap();
    fs::write(other.join("key"), "private").unwrap();
    fs::remove_file(&notes).unwrap();
    symlink(other.join("key"), &notes).unwrap();
    assert_refused(root.path(), &source, "NOTES.md", &other.join("key"));

    // Files of the same folder, which is a model's place by itself.
    fs::remove_file(&notes).unwrap();
    symlink("LICENSE", &notes).unwrap();
    export(&source, &root.path().join("out")).unwrap();
    assert_eq!(fs::read_to_string(root.path().join("out/NOTES.md")).unwrap(), "free");
}

#[test]
fn weights_and_components_that_models_share_are_copied_from_anywhere() {
    let root = tempfile::tempdir().unwrap();
    let source = pipeline(root.path(), true);
    let shared = root.path().join("shared");
    fs::remove_dir_all(source.join("vae/deep")).unwrap();
    fs::write(source.join("vae/config.json"), r#"{"_class_name": "AutoencoderKL"}"#).unwrap();
    let shard = "transformer/diffusion_pytorch_model-00001-of-00002.safetensors";
    fs::copy(source.join(shard), source.join("vae/model.safetensors")).unwrap();
    let index = "diffusion_pytorch_model.safetensors.index.json";
    fs::copy(source.join("transformer").join(index), source.join("vae").join(index)).unwrap();
    let exported = |out: &str| {
        export(&source, &root.path().join(out)).unwrap();
        files(&root.path().join(out))
    };
    let expected = exported("out");

    // Weights and indexes alone: the transformer's, which are written anew, and another component's.
    for name in listing(&source.join("transformer")).iter().filter(|name| name.contains("-of-")) {
        moved(&source.join("transformer").join(name), &shared.join(name));
    }
    moved(&source.join("transformer").join(index), &shared.join(index));
    moved(&source.join("vae/model.safetensors"), &shared.join("model.safetensors"));
    moved(&source.join("vae").join(index), &shared.join("vae-index.json"));
    assert!(exported("weights") == expected);

    // The whole component, with a link to its weights.
    moved(&source.join("vae"), &shared.join("vae"));
    required_bytes(&source).unwrap();
    assert!(exported("component") == expected);

    // What is beside it is not known to belong to it.
    fs::write(shared.join("vae/notes.txt"), "private").unwrap();
    assert_refused(root.path(), &source, "vae/notes.txt", &shared.join("vae/notes.txt"));
    fs::remove_file(shared.join("vae/notes.txt")).unwrap();
    fs::create_dir(shared.join("vae/more")).unwrap();
    assert_refused(root.path(), &source, "vae/more", &shared.join("vae/more"));
    fs::remove_dir(shared.join("vae/more")).unwrap();

    // A component of another model in a cache.
    let hub = root.path().join("hub/models--owner--vae");
    cache(&shared.join("vae"), &hub.join("snapshots/revision"), &hub.join("blobs"));
    fs::remove_file(source.join("vae")).unwrap();
    symlink(hub.join("snapshots/revision"), source.join("vae")).unwrap();
    assert!(exported("cached") == expected);
}
