//! The wheel: the command and the Python module in an environment of their own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;

use obsdiff_proto::lock;
use obsdiff_tests::not_tested;

use crate::{asset, text};

const BUILD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/wheel/build");

/// How deploy/wheel/build ends where it cannot install maturin.
const NO_PACKAGES: i32 = 77;

/// One build at a time: they share a folder.
static BUILDING: Mutex<()> = Mutex::new(());

/// What `deploy/wheel/build` makes with these options, moved to a folder; none where maturin cannot be installed.
fn built(options: &[&str], folder: &Path) -> Option<PathBuf> {
    let _building = lock(&BUILDING);
    let output = Command::new(BUILD).args(options).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.code() == Some(NO_PACKAGES) {
        not_tested(format!(
            "deploy/wheel/build cannot install maturin: {}",
            said.lines().last().unwrap_or("")
        ));
        return None;
    }
    assert!(output.status.success(), "{said}");
    let made = PathBuf::from(text(&output.stdout).trim());
    let moved = folder.join(made.file_name().unwrap());
    fs::copy(made, &moved).unwrap();
    Some(moved)
}

/// The wheel of the command that the tests run.
fn wheel(folder: &Path) -> Option<PathBuf> {
    built(&["--binary", env!("CARGO_BIN_EXE_obsdiff")], folder)
}

/// The source distribution, unpacked.
fn unpacked(folder: &Path) -> Option<PathBuf> {
    let archive = built(&["--sdist"], folder)?;
    succeed(Command::new("tar").arg("-xzf").arg(&archive).current_dir(folder));
    let name = archive.file_name().unwrap().to_str().unwrap();
    Some(folder.join(name.strip_suffix(".tar.gz").unwrap()))
}

/// Runs a program that must succeed.
fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// What Python says of these lines, in the environment alone.
fn python(environment: &Path, code: &str) -> Output {
    Command::new(environment.join("bin/python")).args(["-I", "-c", code]).output().unwrap()
}

/// The last line of the error that these lines end with.
fn refused(environment: &Path, code: &str) -> String {
    let output = python(environment, code);
    assert!(!output.status.success(), "{code}");
    text(&output.stderr).lines().last().unwrap().to_owned()
}

#[test]
fn the_wheel_brings_the_command_and_a_loader_that_says_what_it_needs() {
    let dir = tempfile::tempdir().unwrap();
    let Some(wheel) = wheel(dir.path()) else { return };
    let name = wheel.file_name().unwrap().to_str().unwrap();
    let starts = format!("obsdiff-{}-py3-none-manylinux_2_", env!("CARGO_PKG_VERSION"));
    assert!(name.starts_with(&starts), "{name}");

    let environment = dir.path().join("environment");
    succeed(Command::new("python3").args(["-m", "venv", "--without-pip"]).arg(&environment));
    // pip refuses a wheel whose name asks for a newer glibc than this machine's.
    let pip = ["-m", "pip", "--disable-pip-version-check", "--python"];
    succeed(
        Command::new("python3")
            .args(pip)
            .arg(&environment)
            .args(["install", "--quiet", "--no-index"])
            .arg(&wheel),
    );
    let printed = succeed(Command::new(environment.join("bin/obsdiff")).arg("--version"));
    assert_eq!(printed.trim(), format!("obsdiff {}", env!("CARGO_PKG_VERSION")));

    let output = python(
        &environment,
        "import importlib.metadata as m, obsdiff\nd = m.metadata('obsdiff')\n\
         print(d['Version'], d['License-Expression'], d['License-File'], 'obsdiff.load(' in d.get_payload())",
    );
    let printed = text(&output.stdout);
    assert_eq!(printed.trim(), format!("{} Apache-2.0 LICENSE True", env!("CARGO_PKG_VERSION")));

    let load = |path: &Path| format!("import obsdiff\nobsdiff.load({:?})", path.to_str().unwrap());
    let plain = asset("shapes-sd3");
    assert_eq!(
        refused(&environment, &load(&plain)),
        "ModuleNotFoundError: obsdiff.load needs diffusers, and diffusers is not installed: pip install 'obsdiff[diffusers]'"
    );
    let said = refused(&environment, &load(&plain.join("transformer")));
    assert!(said.contains("has no model_index.json: give the folder that the job names"), "{said}");
    loads_by_the_module_that_an_output_names(&environment, dir.path(), &load);
}

/// The files below a folder, by their paths in it, without what only tests read and what is built.
fn sources(folder: &Path, below: &str, found: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(folder.join(below)).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let path = format!("{below}/{name}");
        if !folder.join(&path).is_dir() {
            found.insert(path.clone(), fs::read(folder.join(&path)).unwrap());
        } else if !["target", "assets", "python", "__pycache__"].contains(&name.as_str()) {
            sources(folder, &path, found);
        }
    }
}

#[test]
fn the_source_distribution_has_all_that_the_command_is_compiled_from() {
    let dir = tempfile::tempdir().unwrap();
    let Some(unpacked) = unpacked(dir.path()) else { return };
    let checkout = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let all = |folder: &Path| {
        let mut found = BTreeMap::new();
        for below in ["proto", "coordinator", "worker", "tests/src"] {
            sources(folder, below, &mut found);
        }
        // What maturin writes itself: in an archive no file is a link to another one.
        found.retain(|path, _| !path.ends_with("Cargo.toml"));
        found
    };
    let (here, there) = (all(checkout), all(&unpacked));
    let lacking: Vec<_> = here.iter().filter(|(path, content)| there.get(*path) != Some(content)).collect();
    let lacking: Vec<_> = lacking.into_iter().map(|(path, _)| path).collect();
    assert!(here.len() > 400 && lacking.is_empty(), "{} are there, but not {lacking:?}", there.len());
    assert_eq!(
        fs::read(unpacked.join("Cargo.lock")).unwrap(),
        fs::read(checkout.join("Cargo.lock")).unwrap()
    );

    // Cargo takes what maturin asks of it, as far as it can find out without compiling.
    let features = ["--features", "gloo,cuda", "--manifest-path", "coordinator/command/Cargo.toml"];
    let cargo =
        |args: &[&str]| succeed(Command::new(env!("CARGO")).args(args).args(features).current_dir(&unpacked));
    let resolved = cargo(&["metadata", "--offline", "--locked", "--format-version", "1"]);
    let resolved: serde_json::Value = serde_json::from_str(&resolved).unwrap();
    let members = resolved["workspace_members"].as_array().unwrap();
    assert_eq!(members.len(), 10, "{members:?}");
    let packages = resolved["packages"].as_array().unwrap().iter();
    let own = packages.filter(|package| members.contains(&package["id"]));
    for target in own.flat_map(|package| package["targets"].as_array().unwrap()) {
        let path = Path::new(target["src_path"].as_str().unwrap());
        assert!(path.starts_with(&unpacked) && path.is_file(), "{} is not there", path.display());
    }
    let description = fs::read_to_string(unpacked.join("pyproject.toml")).unwrap();
    assert!(description.contains("build-backend = \"maturin\"") && !description.contains("backend-path"));
    assert!(unpacked.join("python/obsdiff/loaders").is_dir() && unpacked.join("LICENSE").is_file());
}

/// Compiles the command twice, in an hour at most where nothing of it is compiled yet: so it runs where OBSDIFF_PY_TESTS=1 alone.
#[test]
fn pip_compiles_the_folder_of_the_wheel_and_the_source_distribution() {
    if std::env::var_os("OBSDIFF_PY_TESTS").is_none_or(|asked| asked != "1") {
        not_tested("OBSDIFF_PY_TESTS=1 lets this test compile the wheel from source, by pip");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let Some(archive) = built(&["--sdist"], dir.path()) else { return };
    let folder = Path::new(BUILD).parent().unwrap().to_owned();
    for (number, source) in [folder, archive].iter().enumerate() {
        let environment = dir.path().join(number.to_string());
        succeed(Command::new("python3").args(["-m", "venv"]).arg(&environment));
        let _building = lock(&BUILDING);
        let mut pip = Command::new(environment.join("bin/pip"));
        pip.args(["install", "--quiet", "--no-cache-dir"]).arg(source);
        // Beside what the tests are compiled to, and fast to compile.
        pip.env("CARGO_TARGET_DIR", concat!(env!("CARGO_TARGET_TMPDIR"), "/wheel"));
        pip.envs([("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"), ("CARGO_PROFILE_RELEASE_DEBUG", "0")]);
        succeed(&mut pip);
        let printed = succeed(Command::new(environment.join("bin/obsdiff")).arg("--version"));
        assert_eq!(printed.trim(), format!("obsdiff {}", env!("CARGO_PKG_VERSION")), "{source:?}");
        let output = python(
            &environment,
            "import obsdiff.loaders, os\nprint(os.listdir(obsdiff.loaders.__path__[0]))",
        );
        assert!(text(&output.stdout).contains("modeling_pruned_"), "{source:?}: {}", text(&output.stderr));
    }
}

/// With the names alone of what diffusers has, so that none of PyTorch is needed.
fn loads_by_the_module_that_an_output_names(
    environment: &Path,
    folder: &Path,
    load: &dyn Fn(&Path) -> String,
) {
    let packages = succeed(
        Command::new(environment.join("bin/python"))
            .args(["-c", "import site; print(site.getsitepackages()[0])"]),
    );
    let packages = Path::new(packages.trim());
    let diffusers = |version: &str| {
        let code = format!(
            "__version__ = {version:?}\nclass SD3Transformer2DModel:\n    @classmethod\n    def from_pretrained(cls, path, **given):\n        \
             return cls.__name__, given\n\
             class DiffusionPipeline:\n    @staticmethod\n    def from_pretrained(path, **given):\n        print(given)\n\
             class StableDiffusion3Pipeline:\n    def __init__(self, vae, tokenizer, text_encoder_3, tokenizer_3):\n        pass\n"
        );
        for (file, code) in [
            ("diffusers/__init__.py", code.as_str()),
            ("diffusers/configuration_utils.py", "def register_to_config(init):\n    return init\n"),
            ("torch/__init__.py", "float32 = 'f32'\n"),
            ("torch/nn.py", ""),
        ] {
            fs::create_dir_all(packages.join(file).parent().unwrap()).unwrap();
            fs::write(packages.join(file), code).unwrap();
        }
    };
    let pipeline = |name: &str, config: &str| {
        let pipeline = folder.join(name);
        fs::create_dir_all(pipeline.join("transformer")).unwrap();
        fs::write(pipeline.join("model_index.json"), "{}").unwrap();
        fs::write(pipeline.join("transformer/config.json"), config).unwrap();
        pipeline
    };
    let shrunk = pipeline(
        "shrunk",
        r#"{"auto_map": {"AutoModel": "modeling_pruned_sd3.PrunedSD3Transformer2DModel"}}"#,
    );
    diffusers("0.31.0");
    let said = refused(environment, &load(&shrunk));
    assert!(
        said.starts_with(
            "ImportError: this transformer needs diffusers 0.32.0 or later, and 0.31.0 is installed"
        ),
        "{said}"
    );
    diffusers("0.33.0.dev0");
    let given = |code: String| text(&python(environment, &code).stdout).trim().to_owned();
    assert_eq!(
        given(load(&shrunk).replace("\")", "\", torch_dtype=7, safety_checker=None)")),
        "{'torch_dtype': 7, 'safety_checker': None, 'transformer': ('PrunedSD3Transformer2DModel', {'torch_dtype': 7})}"
    );
    assert_eq!(given(load(&pipeline("plain", "{}"))), "{'torch_dtype': 'f32'}");
    assert_eq!(given(load(&pipeline("plain", "{}")).replace("\")", "\", dtype=7)")), "{'dtype': 7}");
    let bare = pipeline("bare", "{}");
    let index = r#"{"_class_name": "StableDiffusion3Pipeline", "tokenizer": ["a", "B"], "text_encoder_3": [null, null]}"#;
    fs::write(bare.join("model_index.json"), index).unwrap();
    assert_eq!(
        given(load(&bare).replace("\")", "\", torch_dtype=7)")),
        "{'torch_dtype': 7, 'text_encoder_3': None, 'tokenizer_3': None}"
    );
    diffusers("0.40.0");
    assert_eq!(
        given(load(&shrunk)),
        "{'dtype': 'f32', 'transformer': ('PrunedSD3Transformer2DModel', {'dtype': 'f32'})}"
    );
    let newer = pipeline("newer", r#"{"auto_map": {"AutoModel": "modeling_pruned_new.PrunedNew"}}"#);
    let said = refused(environment, &load(&newer));
    assert!(said.contains("needs the module modeling_pruned_new, which obsdiff 0."), "{said}");
}
