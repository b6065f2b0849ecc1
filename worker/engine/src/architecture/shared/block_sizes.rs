//! Blocks that differ: how many heads and neurons each one has kept.

use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::checkpoint::read_json;
use crate::{Error, Result};

/// A key of a configuration, and the numbers it holds: one for each block of some kind.
pub(in crate::architecture) type List<'a> = (&'static str, &'a Vec<usize>);

/// What is wrong with lists of sizes, where `dense` has those of the whole model. `layers` names the key that says how many blocks a
/// list is of. Empty lists: all blocks have the same sizes.
pub(in crate::architecture) fn problem<const N: usize>(
    lists: [List<'_>; N],
    dense: [List<'_>; N],
    layers: impl Fn(&str) -> &'static str,
) -> Option<String> {
    if lists.iter().all(|(_, list)| list.is_empty()) {
        return None;
    }
    let both = || lists.iter().zip(dense).map(|((key, list), (_, most))| (*key, *list, most));
    if let Some((key, list, most)) = both().find(|(_, list, most)| list.len() != most.len()) {
        let (found, layers, expected) = (list.len(), layers(key), most.len());
        return Some(format!("`{key}` has {found} numbers, but `{layers}` is {expected}"));
    }
    both().find_map(|(key, list, most)| {
        let sizes = list.iter().zip(most).enumerate();
        let wrong =
            |(_, (found, most)): &(usize, (&usize, &usize))| found > most || (**found == 0 && **most > 0);
        let (block, (found, most)) = { sizes }.find(wrong)?;
        let least = usize::from(*most > 0);
        Some(format!("`{key}` is {found} in block {block}, but must lie within {least}..={most}"))
    })
}

/// `config.json` of a model that lost heads and neurons: that in the `source` folder with the `sizes` of each block, the class that
/// knows them, and the Python file where diffusers finds it.
///
/// # Errors
/// When the source's cannot be read.
pub(in crate::architecture) fn pruned_json(
    source: &Path,
    sizes: &impl Serialize,
    class: &str,
    file: &str,
) -> Result<Vec<u8>> {
    let path = source.join("config.json");
    let mut keys: Map<String, Value> = read_json(&path)?;
    let unwritable = |e: serde_json::Error| Error::content(&path, format!("cannot be written again: {e}"));
    if let Value::Object(sizes) = serde_json::to_value(sizes).map_err(unwritable)? {
        keys.extend(sizes);
    }
    let module = file.trim_end_matches(".py");
    keys.insert("_class_name".to_owned(), json!(class));
    keys.insert("auto_map".to_owned(), json!({ "AutoModel": format!("{module}.{class}") }));
    serde_json::to_vec_pretty(&keys).map_err(unwritable)
}
