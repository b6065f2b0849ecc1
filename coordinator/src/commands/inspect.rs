//! `obsdiff inspect DIR`.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use obsdiff_engine::checkpoint::{Entry, Weights};
use obsdiff_engine::model::sd3::Sd3Config;
use serde::Serialize;

use crate::cli::InspectArgs;
use crate::session::Session;
use crate::text::{self, Table};
use crate::zeros::{self, Zeros};
use crate::{Error, Result};

/// The stem of a transformer's weights as diffusers saves them.
const DIFFUSERS_STEM: &str = "diffusion_pytorch_model";

/// Shows the shape and sparsity of every linear of a transformer.
///
/// # Errors
/// When there are no weights, a file is damaged, or standard output is closed.
pub(super) fn inspect(args: &InspectArgs, session: &mut Session<'_>) -> Result<()> {
    let (weights, folder) = open(&args.path)?;
    let found = scan(&args.path, &weights, prunable_names(&folder).as_ref())?;
    match args.json {
        true => {
            serde_json::to_writer_pretty(&mut session.out, &found).map_err(std::io::Error::from)?;
            writeln!(session.out)?;
        }
        false => print(&found, session)?,
    }
    Ok(())
}

#[derive(Serialize)]
struct Found {
    path: PathBuf,
    linears: Vec<LinearFound>,
    /// The linears that obsdiff can prune, together.
    prunable: Total,
    /// Every tensor of the transformer.
    whole: Total,
}

#[derive(Serialize)]
struct LinearFound {
    name: String,
    rows: usize,
    columns: usize,
    dtype: &'static str,
    zeros: u64,
    sparsity: f64,
    pattern: String,
    prunable: bool,
}

#[derive(Default, Serialize)]
struct Total {
    tensors: usize,
    weights: u64,
    zeros: u64,
}

impl Total {
    fn add(&mut self, zeros: &Zeros) {
        self.tensors += 1;
        self.weights += zeros.weights;
        self.zeros += zeros.zeros;
    }
}

/// The weights of a pipeline's transformer, of a folder or of a file, and the folder they lie in.
fn open(path: &Path) -> Result<(Weights, PathBuf)> {
    let kind = fs::metadata(path).map_err(|e| Error::file(path, e))?;
    if kind.is_file() {
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        return Ok((Weights::open_file(path)?, folder));
    }
    let folder = match path.join("model_index.json").is_file() {
        true => path.join("transformer"),
        false => path.to_owned(),
    };
    let stem = stem(&folder)?;
    Ok((Weights::open(&folder, &stem)?, folder))
}

/// The stem of the weights in a folder: diffusers' own, or that of the one index or file there is.
fn stem(folder: &Path) -> Result<String> {
    let mut stems = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| Error::file(folder, e))? {
        let name = entry.map_err(|e| Error::file(folder, e))?.file_name();
        let whole = |name: &OsStr, end| name.to_str().and_then(|n| n.strip_suffix(end)).map(str::to_owned);
        if let Some(stem) = whole(&name, ".safetensors.index.json").or_else(|| whole(&name, ".safetensors")) {
            stems.push(stem);
        }
    }
    let indexed = |stem: &&String| folder.join(format!("{stem}.safetensors.index.json")).is_file();
    let stem = match stems.iter().find(|stem| *stem == DIFFUSERS_STEM).or_else(|| stems.iter().find(indexed))
    {
        Some(stem) => stem,
        None if stems.len() > 1 => {
            stems.sort();
            let problem =
                format!("holds several models without an index ({}): name one file", stems.join(", "));
            return Err(Error::content(folder, problem));
        }
        None => match stems.first() {
            Some(stem) => stem,
            None => DIFFUSERS_STEM,
        },
    };
    Ok(stem.to_owned())
}

/// The names of the linears that obsdiff can prune, where the folder's configuration tells.
fn prunable_names(folder: &Path) -> Option<HashSet<String>> {
    // A folder of another class, or without a configuration, can be inspected all the same.
    let config = Sd3Config::read(folder).ok()?;
    Some(config.inventory().linears.into_iter().map(|linear| linear.name).collect())
}

fn scan(path: &Path, weights: &Weights, prunable: Option<&HashSet<String>>) -> Result<Found> {
    let mut found = Found {
        path: path.to_owned(),
        linears: Vec::new(),
        prunable: Total::default(),
        whole: Total::default(),
    };
    let mut entries: Vec<(&str, &Entry)> = weights.entries().collect();
    entries.sort_by_key(|(name, _)| natural(name));
    for (name, entry) in entries {
        let columns = entry.shape().last().copied().unwrap_or(1);
        let Some(zeros) = zeros::scan(weights.bytes(name)?, entry.dtype(), columns) else { continue };
        found.whole.add(&zeros);
        let (Some(linear), &[rows, columns]) = (name.strip_suffix(".weight"), entry.shape()) else {
            continue;
        };
        let can_be_pruned = prunable.is_none_or(|names| names.contains(linear));
        if can_be_pruned {
            found.prunable.add(&zeros);
        }
        found.linears.push(LinearFound {
            name: linear.to_owned(),
            rows,
            columns,
            dtype: entry.dtype().as_str(),
            zeros: zeros.zeros,
            sparsity: zeros.zeros as f64 / zeros.weights.max(1) as f64,
            pattern: zeros.pattern.to_string(),
            prunable: can_be_pruned,
        });
    }
    Ok(found)
}

/// A name cut at its dots, with numbers as numbers: block 2 comes before block 10.
fn natural(name: &str) -> Vec<(Option<u64>, String)> {
    name.split('.').map(|part| (part.parse().ok(), part.to_owned())).collect()
}

fn print(found: &Found, session: &mut Session<'_>) -> Result<()> {
    let mut table = Table::new(["linear", "shape", "type", "zeros", "sparsity", "pattern"]);
    for l in &found.linears {
        let sparsity = text::percent(l.zeros, l.rows as u64 * l.columns as u64);
        let shape = format!("{} x {}", l.rows, l.columns);
        let pattern = if l.prunable { l.pattern.clone() } else { format!("({})", l.pattern) };
        table.row([l.name.clone(), shape, l.dtype.to_owned(), l.zeros.to_string(), sparsity, pattern]);
    }
    table.rule();
    for (what, total) in [("linears to prune", &found.prunable), ("all tensors", &found.whole)] {
        let name = format!("{what} ({})", total.tensors);
        let sparsity = text::percent(total.zeros, total.weights);
        table.row([
            name,
            text::count(total.weights),
            String::new(),
            total.zeros.to_string(),
            sparsity,
            String::new(),
        ]);
    }
    write!(session.out, "{table}")?;
    if found.linears.iter().any(|linear| !linear.prunable) {
        writeln!(
            session.out,
            "\nobsdiff never prunes what is in brackets: modulation, embedders and the final projection."
        )?;
    }
    Ok(())
}
