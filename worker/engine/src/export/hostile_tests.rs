//! What others do to the files around an export.

use std::fs;
use std::os::unix::fs::symlink;

use super::tests::{export, left, listing, pipeline, record};
use super::*;
use crate::checkpoint::{Library, SourceFiles};

#[test]
fn a_source_that_is_changed_while_it_is_read_gives_no_output() {
    let root = tempfile::tempdir().unwrap();
    let source = pipeline(root.path(), true);
    let weights = Weights::open(&source.join("transformer"), Library::Diffusers).unwrap();
    let read = SourceFiles::open(weights.paths().map(Path::to_owned)).unwrap();
    let (record, destination) = (record(), root.path().join("out"));
    let export = Export {
        source: &source,
        destination: &destination,
        link: false,
        weights: &weights,
        read: Some(&read),
        record: &record,
        documents: &[],
        shrink: None,
    };
    let changed = source.join("transformer/diffusion_pytorch_model-00002-of-00002.safetensors");
    let bytes = fs::read(&changed).unwrap();
    let error = export.write(&Disk::default(), &|_| {
        fs::write(&changed, &bytes[..bytes.len() - 1]).unwrap();
        fs::write(&changed, &bytes).unwrap();
        Ok(None)
    });
    assert!(matches!(error, Err(Error::Changed { path }) if path == changed));
    assert_eq!(listing(root.path()), ["dense"]);
}

#[test]
fn what_a_link_in_a_directory_that_was_left_leads_to_is_not_removed() {
    let root = tempfile::tempdir().unwrap();
    let source = pipeline(root.path(), false);
    let others = root.path().join("others");
    fs::create_dir(&others).unwrap();
    fs::write(others.join("thesis.tex"), "mine").unwrap();
    let folder = left(root.path(), 1, "out");
    fs::remove_dir_all(folder.join("pipeline")).unwrap();
    symlink(&others, folder.join("pipeline")).unwrap();
    let of_marker = left(root.path(), 2, "out");
    fs::rename(of_marker.join("obsdiff.json"), root.path().join("marker")).unwrap();
    symlink(root.path().join("marker"), of_marker.join("obsdiff.json")).unwrap();
    let before = listing(root.path());
    export(&source, &root.path().join("out"), false, 1.0).unwrap();
    let after: Vec<_> = listing(root.path()).into_iter().filter(|name| name != "out").collect();
    assert_eq!(after, before);
    assert_eq!(fs::read_to_string(others.join("thesis.tex")).unwrap(), "mine");
    assert!(of_marker.join("pipeline/vae/half").exists());
}
