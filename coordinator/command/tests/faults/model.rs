//! Models in an object store: jobs that read one give what they give of a folder, and what a store does wrong is reported.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use obsdiff_tests::copy_folder;

use crate::output::{files, until_held};
use crate::process::{ASSETS, Process, of_every_run, result, setting};
use crate::s3::Later;
use crate::store::StoreServer;

const URL: &str = "s3://bucket/models/small";
const WEIGHTS: &str = "models/small/transformer/diffusion_pytorch_model.safetensors";

/// A server that has the model, and where the server keeps it.
fn server() -> (StoreServer, PathBuf) {
    let server = StoreServer::new();
    let place = server.folder.path().join("bucket/models/small");
    copy_folder(&Path::new(ASSETS).join("shapes-sd3"), &place);
    (server, place)
}

/// A folder with a job on the model in the store, and what else of it is replaced.
fn job(replaced: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = setting(2);
    let path = folder.path().join("job.toml");
    let local = format!("path = {:?}", Path::new(ASSETS).join("shapes-sd3"));
    let mut words = fs::read_to_string(&path).unwrap();
    for (from, to) in [(&*local, &*format!("path = {URL:?}"))].iter().chain(replaced) {
        assert!(words.contains(from), "{from} is not in {words}");
        words = words.replace(from, to);
    }
    fs::write(path, words).unwrap();
    folder
}

/// What the same job gives of a folder.
fn expected() -> [Vec<u8>; 2] {
    let folder = setting(2);
    let (code, said) = Process::start(folder.path(), &["run", "job.toml", "--quiet"]).verdict();
    assert_eq!(code, Some(0), "{said}");
    result(folder.path())
}

/// A record as it would be of the model in a folder, with the output there, too.
fn of_a_folder(record: &[u8]) -> String {
    let local = Path::new(ASSETS).join("shapes-sd3").display().to_string();
    let record = String::from_utf8(of_every_run(record)).unwrap();
    record.replace(URL, &local).replace("s3://bucket/some/out", "out")
}

fn run(server: &StoreServer, folder: &Path, more: &[&str]) -> (Option<i32>, String) {
    let args = [&["run", "job.toml", "--quiet", "--cache", "cache"], more].concat();
    server.start(folder, &args).verdict()
}

#[test]
fn a_cluster_with_everything_in_the_store_gives_what_one_process_gives_of_folders() {
    let (server, place) = server();
    let folder = job(&[("path = \"out\"", "path = \"s3://bucket/some/out\"")]);
    let (homes, away) = ([(); 3].map(|()| tempfile::tempdir().unwrap()), tempfile::tempdir().unwrap());
    let caches = homes.each_ref().map(|home| home.path().join("cache").display().to_string());
    let args = ["coordinator", "job.toml", "--quiet", "--listen", "127.0.0.1:0", "--cache", &caches[0]];
    let mut coordinator = server.start(folder.path(), &args);
    let line = coordinator.line(|line| line.starts_with("listening on "));
    let url = line.expect("it does not listen").replace("listening on ", "http://");
    let mut workers = [&caches[1], &caches[2]].map(|cache| {
        server.start(away.path(), &["worker", "--coordinator", &url, "--quiet", "--cache", cache])
    });
    let (code, said) = coordinator.verdict();
    assert_eq!(code, Some(0), "{said}");
    for worker in &mut workers {
        let (code, said) = worker.verdict();
        assert_eq!(code, Some(0), "{said}");
    }
    let written = files(&server.folder.path().join("bucket/some/out"));
    let [weights, record] = expected();
    assert!(written["transformer/diffusion_pytorch_model.safetensors"] == weights, "the weights differ");
    assert_eq!(of_a_folder(&written["pruning.json"]), String::from_utf8(record).unwrap());
    for name in ["text_encoder_3/model.safetensors", "vae/config.json", "tokenizer/vocab.json"] {
        assert!(written[name] == fs::read(place.join(name)).unwrap(), "{name}");
    }
    for cache in &caches {
        assert!(Path::new(cache).join("obsdiff-cache.json").is_file(), "{cache} is not used");
    }
}

#[test]
fn a_second_job_downloads_nothing_and_a_replaced_object_alone_is_downloaded_again() {
    let (server, place) = server();
    let expected = expected();
    let downloaded = |server: &StoreServer, folder: &Path| {
        server.server().read("");
        let (code, said) = run(server, folder, &[]);
        assert_eq!(code, Some(0), "{said}");
        let [weights, record] = result(folder);
        fs::rename(folder.join("out"), folder.join(format!("out-{}", weights.len()))).ok();
        (server.server().read("models/"), weights, record)
    };
    let folder = job(&[]);
    let (read, weights, record) = downloaded(&server, folder.path());
    assert!(weights == expected[0], "the weights differ");
    assert_eq!(of_a_folder(&record), String::from_utf8_lossy(&expected[1]));
    // Of weights the header is read before, in two pieces.
    let distinct: BTreeSet<&String> = read.iter().collect();
    let weights_read = distinct.iter().filter(|key| key.ends_with(".safetensors")).count();
    assert_eq!((distinct.len(), read.len()), (files(&place).len(), distinct.len() + 2 * weights_read));
    fs::remove_dir_all(folder.path().join(format!("out-{}", weights.len()))).unwrap();
    let (read, weights, _) = downloaded(&server, folder.path());
    assert_eq!((read, weights == expected[0]), (vec![], true));
    fs::remove_dir_all(folder.path().join(format!("out-{}", weights.len()))).unwrap();

    // The same size, and another content.
    let path = place.join("transformer/diffusion_pytorch_model.safetensors");
    let mut other = fs::read(&path).unwrap();
    let last = other.len() - 2;
    other[last] ^= 1;
    fs::write(&path, other).unwrap();
    let (read, weights, _) = downloaded(&server, folder.path());
    assert_eq!(read, [WEIGHTS; 3]);
    assert!(weights != expected[0], "the earlier copy was read");
}

#[test]
fn a_worker_that_is_killed_in_its_download_goes_on_when_it_is_started_again() {
    let (server, place) = server();
    let folder = job(&[]);
    let args = ["coordinator", "job.toml", "--quiet", "--listen", "127.0.0.1:0", "--cache", "cache"];
    let mut coordinator = server.start(folder.path(), &args);
    let line = coordinator.line(|line| line.starts_with("listening on "));
    let url = line.expect("it does not listen").replace("listening on ", "http://");
    let worker = ["worker", "--coordinator", &url, "--quiet", "--cache", "other"];
    server.server().read("");
    server.server().pass_reads("models/", 12, Later::Held);
    let mut killed = server.start(folder.path(), &worker);
    until_held(&server, &mut killed);
    killed.kill();
    server.server().pass_all();
    server.server().read("");
    let cached = files(&folder.path().join("other")).into_keys();
    let (unfinished, whole): (Vec<String>, Vec<String>) =
        cached.filter(|name| name.contains("/objects/")).partition(|name| name.ends_with(".unfinished"));
    assert!((2..=12).contains(&whole.len()) && unfinished.len() <= 1, "{whole:?} {unfinished:?}");
    let mut worker = server.start(folder.path(), &worker);
    let (code, said) = worker.verdict();
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(coordinator.end().code(), Some(0));
    assert!(result(folder.path())[0] == expected()[0], "the weights differ");
    let read = server.server().read("models/");
    // All bytes of the unfinished one may have come.
    let missing = files(&place).len() - whole.len();
    let as_expected = (missing - unfinished.len()..=missing).contains(&read.len());
    assert!(as_expected, "{missing} were missing: {read:?}");
}

#[test]
fn an_object_that_differs_from_the_coordinators_is_refused_by_the_worker() {
    let (server, place) = server();
    let folder = job(&[]);
    let args = ["coordinator", "job.toml", "--quiet", "--listen", "127.0.0.1:0", "--cache", "cache"];
    let mut coordinator = server.start(folder.path(), &args);
    let line = coordinator.line(|line| line.starts_with("listening on "));
    let url = line.expect("it does not listen").replace("listening on ", "http://");
    let path = place.join("vae/diffusion_pytorch_model.safetensors");
    let mut other = fs::read(&path).unwrap();
    let last = other.len() - 2;
    other[last] ^= 1;
    fs::write(&path, other).unwrap();
    let args = ["worker", "--coordinator", &url, "--quiet", "--cache", "cache"];
    let (code, said) = server.start(folder.path(), &args).verdict();
    assert_eq!(code, Some(2), "{said}");
    let says =
        "vae/diffusion_pytorch_model.safetensors: differs from the coordinator's: give both the same model";
    assert!(said.contains(says), "{said}");
    coordinator.kill();
}

#[test]
fn a_model_that_cannot_be_used_is_refused_in_words() {
    let (server, place) = server();
    let folder = job(&[]);
    let refused = |more: &[&str], says: &str| {
        let (code, said) = run(&server, folder.path(), more);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(says), "{said}");
    };
    refused(
        &["--set", "model.path=s3://bucket/none"],
        "--set model.path: is s3://bucket/none, which holds no model_index.json",
    );
    refused(&["--set", "model.path=s3://nowhere/none"], "which is in no bucket or container that is there");
    refused(
        &["--set", "output.link=true"],
        "output.link: is true, but model.path is s3://bucket/models/small",
    );
    refused(&["--set", "output.path=cache/out"], "output.path: is cache/out, which lies in --cache, cache");
    refused(
        &["--set", "output.path=s3://bucket/models/small/out"],
        "which lies in model.path, s3://bucket/models/small",
    );
    fs::create_dir(folder.path().join("theirs")).unwrap();
    fs::write(folder.path().join("theirs/thesis.tex"), "mine").unwrap();
    let theirs = ["run", "job.toml", "--quiet", "--cache", "theirs"];
    let (code, said) = server.start(folder.path(), &theirs).verdict();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("the cache theirs holds thesis.tex, but no obsdiff-cache.json"), "{said}");
    // A job that is refused for other reasons has downloaded no weights.
    server.server().read("");
    refused(&["--set", "calibration.count=7000"], "calibration.");
    let read = server.server().read(WEIGHTS);
    assert!(read.len() <= 2, "more than a header: {read:?}");
    let path = place.join("text_encoder/model.safetensors");
    fs::rename(&path, path.with_file_name("pytorch_model.bin")).unwrap();
    refused(&[], "text_encoder: holds pickled weights only, which obsdiff never reads");
}

/// What a command prints in a folder.
fn printed(server: &StoreServer, folder: &Path, args: &[&str]) -> String {
    let mut process = server.start(folder, &[args, &["--quiet", "--cache", "cache"]].concat());
    let mut printed = String::new();
    while let Some(line) = process.line(|_| true) {
        printed += &line;
        printed.push('\n');
    }
    let (code, said) = process.verdict();
    assert_eq!(code, Some(0), "{args:?}: {said}");
    printed
}

#[test]
fn every_command_takes_the_url_of_a_model_and_says_of_it_what_it_says_of_a_folder() {
    let (server, place) = server();
    let (folder, local) = (job(&[]), place.to_str().unwrap());
    let here = folder.path();
    let both = |command: &dyn Fn(&str) -> String| assert_eq!(command(URL), command(local));
    both(&|model| printed(&server, here, &["inspect", model]));
    let read = server.server().read("models/");
    assert!(read.iter().all(|key| !key.contains("/text_encoder") && !key.contains("/vae/")), "{read:?}");
    // Of a plan numbers alone are held against each other: it measures the machine.
    let plan = |model: &str| {
        let set = format!("model.path={model}");
        let plan = printed(&server, here, &["plan", "job.toml", "--json", "--set", &set]);
        let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
        (plan["packages"].clone(), plan["total"].clone())
    };
    server.server().read("");
    assert_eq!(plan(URL), plan(local));
    let read = server.server().read("models/small/text_encoder_3/model.safetensors");
    assert_eq!(read.len(), 2, "a plan reads more than a header");
    let written = |name: &str, model: &str, args: &[&str]| {
        let file = here.join(format!("{}-{name}", if model == URL { "url" } else { "folder" }));
        printed(&server, here, &[args, &[file.to_str().unwrap()]].concat());
        fs::read(file).unwrap()
    };
    let same = |name: &str, args: &dyn Fn(&str) -> Vec<String>| {
        let [url, folder] = [URL, local].map(|model| {
            let args = args(model);
            written(name, model, &args.iter().map(String::as_str).collect::<Vec<_>>())
        });
        assert!(url == folder, "{name} differs");
    };
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    same("one.safetensors", &|model| words(&["export", model, "--single-file"]));
    same("sample.png", &|model| words(&["sample", model, "--prompt", "a fox", "--steps", "1", "--out"]));
    same("compare.png", &|model| {
        words(&["compare", model, model, "--prompt", "a fox", "--steps", "1", "--out"])
    });
    same("prompts.safetensors", &|model| {
        words(&["encode", "job.toml", "--set", &format!("model.path={model}"), "--out"])
    });
    let text = String::from_utf8(written("job.toml", URL, &["init", URL, "--out"])).unwrap();
    assert!(text.contains(&format!("path = {URL:?}")) && text.contains("small-pruned"), "{text}");
    printed(&server, here, &["plan", "url-job.toml"]);
}

#[test]
fn text_encoders_that_nobody_reads_are_copied_for_the_output_alone() {
    let (server, place) = server();
    let encoded = setting(2);
    let args = ["encode", "job.toml", "--out", "prompts.safetensors", "--quiet"];
    assert!(Process::start(encoded.path(), &args).end().success());
    let file = encoded.path().join("prompts.safetensors");
    let folder = job(&[("[calibration]\n", &format!("[calibration]\nconditioning = {file:?}\n"))]);
    server.server().pass_reads("models/small/text_encoder", 0, Later::Held);
    let args = ["run", "job.toml", "--quiet", "--cache", "cache"];
    let mut killed = server.start(folder.path(), &args);
    until_held(&server, &mut killed);
    killed.kill();
    assert!(folder.path().join("out.state/packages/00001.json").is_file(), "they are read before the export");
    server.server().pass_all();
    let (code, said) = run(&server, folder.path(), &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(result(folder.path())[0] == expected()[0], "the weights differ");
    let name = "text_encoder_3/model.safetensors";
    assert!(fs::read(folder.path().join("out").join(name)).unwrap() == fs::read(place.join(name)).unwrap());
}

/// A store that lists the small model and these objects besides. Gives its address.
fn hostile(objects: &[(&str, u64)]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let source = files(&Path::new(ASSETS).join("shapes-sd3"));
    let own = source.iter().map(|(name, content)| (format!("models/small/{name}"), content.len() as u64));
    let listed = own.chain(objects.iter().map(|(key, size)| ((*key).to_owned(), *size)));
    let listed = listed.map(|(key, size)| {
        format!(
            "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>\"a\"</ETag>\
             <Size>{size}</Size></Contents>"
        )
    });
    let listing = format!(
        "<?xml version=\"1.0\"?><ListBucketResult><IsTruncated>false</IsTruncated>{}</ListBucketResult>",
        listed.collect::<String>()
    );
    thread::spawn(move || {
        for mut socket in listener.incoming().map_while(Result::ok) {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if socket.read(&mut byte).unwrap_or(0) == 0 {
                    break;
                }
                request.push(byte[0]);
            }
            let request = String::from_utf8_lossy(&request).to_lowercase();
            let path = request.split(' ').nth(1).unwrap_or_default();
            let (status, range, body) =
                match path.strip_prefix("/bucket/models/small/").map(|name| &source[name]) {
                    None => ("200 OK", String::new(), listing.as_bytes()),
                    // No more than one piece is ever asked of such a small file.
                    Some(content) => {
                        let range =
                            format!("Content-Range: bytes 0-{}/{}\r\n", content.len() - 1, content.len());
                        ("206 Partial Content", range, &content[..])
                    }
                };
            let head = format!(
                "HTTP/1.1 {status}\r\n{range}ETag: \"a\"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n\
                 Content-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            let _ = socket.write_all(&[head.as_bytes(), body].concat());
        }
    });
    address
}

#[test]
fn a_hostile_or_a_huge_model_is_refused_before_it_is_downloaded() {
    let folder = job(&[]);
    let no_path = "which lists a name that is no path below it";
    for (key, size, says) in [
        ("models/small/../../.ssh/authorized_keys", 2, no_path),
        ("models/small//etc/passwd", 2, no_path),
        ("/etc/passwd", 2, "which lists etc/passwd, which does not lie below it: do not trust this store"),
        ("models/small/notes.json", 1 << 40, "holds notes.json of 1.0 TiB, but no such file of a pipeline"),
        ("models/small/picture.png", 1 << 60, "free: make room there, or name another folder by --cache"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_obsdiff"));
        let address = hostile(&[(key, size)]);
        let environment = [
            ("AWS_ACCESS_KEY_ID", "a-key"),
            ("AWS_SECRET_ACCESS_KEY", "its-secret"),
            ("AWS_ENDPOINT", &*address),
            ("AWS_ALLOW_HTTP", "true"),
        ];
        command.args(["run", "job.toml", "--quiet", "--cache", "cache"]).envs(environment);
        let (code, said) = Process::spawn(command.current_dir(folder.path())).verdict();
        assert_eq!(code, Some(2), "{key}: {said}");
        assert!(said.contains("s3://bucket/models/small") && said.contains(says), "{key}: {said}");
        let cached = files(&folder.path().join("cache"));
        let objects: Vec<_> = cached.keys().filter(|name| name.contains("/objects/")).collect();
        // To know that it is too large, its index and its configuration are read.
        assert!(objects.len() <= if size == 1 << 60 { 2 } else { 0 }, "{key}: {objects:?}");
    }
}
