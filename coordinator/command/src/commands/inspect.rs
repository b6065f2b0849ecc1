//! `obsdiff inspect DIR`.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::{fs, iter};

use obsdiff_engine::architecture;
use obsdiff_engine::checkpoint::{Library, TensorEntry, Weights};
use obsdiff_engine::export::{PrunedLinear, PruningRecord};
use obsdiff_worker::preparation::not_here;
use obsdiff_worker::stored_model::Extent;
use serde::Serialize;

use crate::cli::InspectArgs;
use crate::context::CommandContext;
use crate::text::{self, Table};
use crate::zeros::{self, Zeros};
use crate::{Error, Result};

/// How the names of files with weights end, and of the indexes of several.
const WHOLE: &str = ".safetensors";
const INDEX: &str = ".safetensors.index.json";

/// Shows the shape and sparsity of every linear of a transformer.
///
/// # Errors
/// When there are no weights, a file is damaged, or standard output is closed.
pub(super) fn inspect(args: &InspectArgs, context: &mut CommandContext<'_>) -> Result<()> {
    let (weights, folder) = open(&context.pipeline(&args.path, Extent::Transformer)?)?;
    let mut found = scan(&args.path, &weights, prunable_names(&folder).as_ref())?;
    let recorded = recorded(&folder);
    for linear in &mut found.linears {
        let known = recorded.get(&linear.name);
        linear.relative_error = known.and_then(|known| known.relative_error);
        linear.cost = known.and_then(|known| known.cost);
    }
    if args.json { context.print_json(&found) } else { print(&found, context) }
}

#[derive(Serialize)]
struct Inspection {
    path: PathBuf,
    linears: Vec<InspectedLinear>,
    /// Whether it is the transformer of a class that obsdiff prunes.
    #[serde(rename = "known_transformer")]
    known: bool,
    /// The linears that obsdiff can prune, together; of a model that it does not know, all weights of rows and columns.
    prunable: Total,
    /// Every tensor of the transformer.
    whole: Total,
}

#[derive(Serialize)]
struct InspectedLinear {
    name: String,
    rows: usize,
    columns: usize,
    dtype: &'static str,
    zeros: u64,
    sparsity: f64,
    pattern: String,
    prunable: bool,
    /// As `pruning.json` beside the transformer has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    relative_error: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<f64>,
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
    if let Some(problem) = not_here(path) {
        return Err(Error::key("the model", problem));
    }
    let kind = fs::metadata(path).map_err(|e| Error::file(path, e))?;
    if kind.is_file() {
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        return Ok((Weights::open_file(path)?, folder));
    }
    let folder =
        if path.join("model_index.json").is_file() { path.join("transformer") } else { path.to_owned() };
    Ok((open_folder(&folder)?, folder))
}

/// The weights in a folder: what diffusers or transformers would read, or else what the one index or file there leads to.
fn open_folder(folder: &Path) -> Result<Weights> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| Error::file(folder, e))? {
        let name = entry.map_err(|e| Error::file(folder, e))?.file_name();
        names.extend(name.into_string().ok().filter(|n| n.ends_with(WHOLE) || n.ends_with(INDEX)));
    }
    names.sort();
    for library in [Library::Diffusers, Library::Transformers] {
        let reads = |name: &String| {
            name.strip_prefix(library.stem()).is_some_and(|end| [WHOLE, INDEX].contains(&end))
        };
        // Other programs may also call a file "model".
        let alone = || names.iter().all(|name| name.starts_with(library.stem()));
        if names.iter().any(reads) && (library == Library::Diffusers || alone()) {
            return Ok(Weights::open(folder, library)?);
        }
    }
    if let Some(index) = names.iter().find(|name| name.ends_with(INDEX)) {
        return Ok(Weights::open_index(&folder.join(index))?);
    }
    match &*names {
        [] => Ok(Weights::open(folder, Library::Diffusers)?),
        [one] => Ok(Weights::open_file(&folder.join(one))?),
        several => {
            let problem =
                format!("holds several models without an index ({}): name one file", several.join(", "));
            Err(Error::content(folder, problem))
        }
    }
}

/// The names of the linears that obsdiff can prune, where the folder has a configuration.
fn prunable_names(folder: &Path) -> Option<HashSet<String>> {
    // A folder of another class, or without a configuration, can be inspected all the same.
    let config = architecture::read_config(folder).ok()?;
    Some(config.inventory().linears.into_iter().map(|linear| linear.name).collect())
}

fn scan(path: &Path, weights: &Weights, prunable: Option<&HashSet<String>>) -> Result<Inspection> {
    let mut found = Inspection {
        path: path.to_owned(),
        known: prunable.is_some(),
        linears: Vec::new(),
        prunable: Total::default(),
        whole: Total::default(),
    };
    let mut entries: Vec<(&str, &TensorEntry)> = weights.entries().collect();
    entries.sort_by_key(|(name, _)| natural(name));
    for (name, entry) in entries {
        let columns = entry.shape().last().copied().unwrap_or(1);
        let zeros = if weights.in_hole(entry)? {
            zeros::all_zero(entry.bytes().len(), entry.dtype(), columns)
        } else {
            zeros::scan(&weights.bytes(name)?, entry.dtype(), columns)
        };
        let Some(zeros) = zeros else { continue };
        found.whole.add(&zeros);
        let (Some(linear), &[rows, columns]) = (name.strip_suffix(".weight"), entry.shape()) else {
            continue;
        };
        let can_be_pruned = prunable.is_none_or(|names| names.contains(linear));
        if can_be_pruned {
            found.prunable.add(&zeros);
        }
        found.linears.push(InspectedLinear {
            name: linear.to_owned(),
            rows,
            columns,
            dtype: entry.dtype().as_str(),
            zeros: zeros.zeros,
            sparsity: zeros.zeros as f64 / zeros.weights.max(1) as f64,
            pattern: zeros.pattern.to_string(),
            prunable: can_be_pruned,
            relative_error: None,
            cost: None,
        });
    }
    Ok(found)
}

/// What obsdiff said of each linear when it pruned the pipeline whose transformer lies in `folder`; nothing of other pipelines.
fn recorded(folder: &Path) -> HashMap<String, PrunedLinear> {
    // A record that cannot be read says nothing here.
    let record = folder.parent().and_then(|pipeline| PruningRecord::read(pipeline).ok().flatten());
    let linears = record.into_iter().flat_map(|record| record.linears);
    linears.map(|linear| (linear.name.clone(), linear)).collect()
}

/// The block that a linear lies in, and its name there: what comes before and after the first number, or else the last dot.
fn block_of(name: &str) -> (&str, &str) {
    let dots: Vec<usize> = name.match_indices('.').map(|(at, _)| at).collect();
    let starts = iter::once(0).chain(dots.iter().map(|at| at + 1));
    let is_number = |start: usize, end: usize| {
        let part = name.get(start..end).unwrap_or_default();
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit())
    };
    let numbered = starts.zip(&dots).find(|&(start, &end)| is_number(start, end)).map(|(_, end)| *end);
    let cut = numbered.or(dots.last().copied());
    cut.and_then(|at| Some((name.get(..at)?, name.get(at + 1..)?))).unwrap_or(("", name))
}

/// The end of a name that is longer than so many characters.
fn end_of(name: &str, most: usize) -> String {
    let more = name.chars().count().saturating_sub(most);
    if more == 0 {
        name.to_owned()
    } else {
        format!("...{}", name.chars().skip(more + 3).collect::<String>())
    }
}

/// A name cut at its dots, with numbers as numbers: block 2 comes before block 10.
fn natural(name: &str) -> Vec<(Option<u64>, String)> {
    name.split('.').map(|part| (part.parse().ok(), part.to_owned())).collect()
}

/// The most characters of a linear's name: what other columns leave of 80 where no error is known. Names of known transformers are shorter.
const NAME_CHARACTERS: usize = 39;

fn print(found: &Inspection, context: &mut CommandContext<'_>) -> Result<()> {
    let columns = [
        found.linears.iter().any(|linear| linear.relative_error.is_some()).then_some("error"),
        found.linears.iter().any(|linear| linear.cost.is_some()).then_some("cost"),
    ];
    let header = ["linear", "shape", "zeros", "pattern"];
    let mut table = Table::new(header.into_iter().chain(columns.into_iter().flatten()));
    for block in found.linears.chunk_by(|a, b| block_of(&a.name).0 == block_of(&b.name).0) {
        let (name, _) = block.first().map_or(("", ""), |linear| block_of(&linear.name));
        let types: BTreeSet<&str> = block.iter().map(|linear| linear.dtype).collect();
        let types = types.into_iter().collect::<Vec<_>>().join(", ");
        let name = if name.is_empty() { "top level" } else { name };
        table.heading(format!("{name} ({types})"));
        for l in block {
            let sparsity = text::percent(l.zeros, l.rows as u64 * l.columns as u64);
            let shape = format!("{} x {}", l.rows, l.columns);
            let pattern = if l.prunable { l.pattern.clone() } else { format!("({})", l.pattern) };
            let number = |number: Option<f64>, digits: usize| {
                number.map_or("-".to_owned(), |number| format!("{number:.digits$}"))
            };
            let recorded = columns.iter().zip([number(l.relative_error, 5), number(l.cost, 4)]);
            let recorded = recorded.filter(|(column, _)| column.is_some()).map(|(_, known)| known);
            let name = format!("  {}", end_of(block_of(&l.name).1, NAME_CHARACTERS - 2));
            table.row([name, shape, sparsity, pattern].into_iter().chain(recorded));
        }
    }
    writeln!(context.out, "{table}")?;
    let kind = if found.known { "linears that obsdiff prunes" } else { "weights of rows and columns" };
    for (what, total) in [(kind, &found.prunable), ("all tensors", &found.whole)] {
        let (sparsity, weights) = (text::percent(total.zeros, total.weights), text::count(total.weights));
        writeln!(context.out, "{what} ({}): {sparsity} of {weights} weights are zeros", total.tensors)?;
    }
    if !found.known {
        writeln!(
            context.out,
            "\nThis is no transformer that obsdiff prunes (`obsdiff models` lists those): it can only be looked at."
        )?;
    }
    if found.linears.iter().any(|linear| !linear.prunable) {
        writeln!(
            context.out,
            "\nLinears whose pattern is in brackets are never pruned: modulation, embedders\nand the final projection."
        )?;
    }
    Ok(())
}
