//! The wheel: the command and the Python module in an environment of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use obsdiff_tests::not_tested;

use crate::{asset, text};

const BUILD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/wheel/build");

/// How deploy/wheel/build ends where it cannot install maturin.
const NO_PACKAGES: i32 = 77;

/// The wheel of the command that the tests run, built anew; none where maturin cannot be installed.
fn wheel() -> Option<PathBuf> {
    let output = Command::new(BUILD).args(["--binary", env!("CARGO_BIN_EXE_obsdiff")]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.code() == Some(NO_PACKAGES) {
        not_tested(format!(
            "deploy/wheel/build cannot install maturin: {}",
            said.lines().last().unwrap_or("")
        ));
        return None;
    }
    assert!(output.status.success(), "{said}");
    Some(text(&output.stdout).trim().into())
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
    let Some(wheel) = wheel() else { return };
    let name = wheel.file_name().unwrap().to_str().unwrap();
    let starts = format!("obsdiff-{}-py3-none-manylinux_2_", env!("CARGO_PKG_VERSION"));
    assert!(name.starts_with(&starts), "{name}");

    let dir = tempfile::tempdir().unwrap();
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
    let told = succeed(Command::new(environment.join("bin/obsdiff")).arg("--version"));
    assert_eq!(told.trim(), format!("obsdiff {}", env!("CARGO_PKG_VERSION")));

    let output = python(
        &environment,
        "import importlib.metadata as m, obsdiff\nd = m.metadata('obsdiff')\n\
         print(d['Version'], d['License-Expression'], d['License-File'], 'obsdiff.load(' in d.get_payload())",
    );
    let told = text(&output.stdout);
    assert_eq!(told.trim(), format!("{} Apache-2.0 LICENSE True", env!("CARGO_PKG_VERSION")));

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
             class DiffusionPipeline:\n    @staticmethod\n    def from_pretrained(path, **given):\n        print(given)\n"
        );
        for (file, code) in [
            ("diffusers/__init__.py", code.as_str()),
            ("diffusers/configuration_utils.py", "def register_to_config(init):\n    return init\n"),
            ("torch/__init__.py", ""),
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
    assert_eq!(given(load(&pipeline("plain", "{}"))), "{}");
    let newer = pipeline("newer", r#"{"auto_map": {"AutoModel": "modeling_pruned_new.PrunedNew"}}"#);
    let said = refused(environment, &load(&newer));
    assert!(said.contains("needs the module modeling_pruned_new, which obsdiff 0."), "{said}");
}
