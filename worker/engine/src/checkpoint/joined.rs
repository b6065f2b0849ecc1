//! Tensors of a checkpoint in another layout, each made of rows of the tensors in this one.

/// Rows of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorRows {
    /// All of them.
    All,
    /// The first half.
    FirstHalf,
    /// The second half.
    SecondHalf,
}

/// A tensor of another layout: rows of tensors of this one, those of the first part on top.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinedTensor {
    /// Its name in the other layout.
    pub name: String,
    /// The names of its parts in this layout, and which rows of them it takes.
    pub parts: Vec<(String, TensorRows)>,
}

/// What becomes of a module, or of a single tensor, in another layout.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MovedModule {
    /// Its name in this layout.
    pub(crate) from: &'static str,
    /// Its name in the other layout.
    pub(crate) to: &'static str,
    /// Where its rows come among those of others that go to the same name.
    pub(crate) order: usize,
    /// Whether the halves of its rows change places.
    pub(crate) swapped: bool,
}

/// A module that is alone at its new name.
pub(crate) const fn renamed(from: &'static str, to: &'static str) -> MovedModule {
    MovedModule { from, to, order: 0, swapped: false }
}

/// A module whose rows come as number `order` of those at its new name.
pub(crate) const fn stacked(from: &'static str, to: &'static str, order: usize) -> MovedModule {
    MovedModule { from, to, order, swapped: false }
}

/// A module of shifts and scales, which the two layouts have in opposite order.
pub(crate) const fn swapped(from: &'static str, to: &'static str) -> MovedModule {
    MovedModule { from, to, order: 0, swapped: true }
}

impl MovedModule {
    /// What becomes of a tensor, by the first of these places that it belongs to: its new name.
    fn of<'a>(places: impl IntoIterator<Item = &'a Self>, tensor: &str) -> Option<(&'a Self, String)> {
        places.into_iter().find_map(|place| {
            let rest = tensor.strip_prefix(place.from)?;
            // A whole tensor, or the weight or bias of a module.
            (rest.is_empty() || rest.starts_with('.')).then(|| (place, format!("{}{rest}", place.to)))
        })
    }
}

/// A list of blocks, whose modules have their places in each of them.
pub(crate) struct MovedBlocks<'a> {
    /// The list in this layout, and in the other one.
    pub(crate) lists: [&'static str; 2],
    /// The places of block i.
    pub(crate) of: &'a dyn Fn(usize) -> Vec<MovedModule>,
}

/// A tensor that goes to another layout, with its place there.
struct MovedTensor {
    order: usize,
    tensor: String,
    swapped: bool,
}

/// The tensors of another layout, in the order in which those of this layout first go into them; the name of a tensor that has no place
/// there, if any.
pub(crate) fn joined<'a>(
    tensors: impl IntoIterator<Item = &'a str>,
    top: &[MovedModule],
    blocks: &[MovedBlocks<'_>],
) -> Result<Vec<JoinedTensor>, String> {
    let mut joined: Vec<(String, Vec<MovedTensor>)> = Vec::new();
    for tensor in tensors {
        let of_block = |list: &MovedBlocks<'_>| {
            let rest = tensor.strip_prefix(list.lists[0])?.strip_prefix('.')?;
            let (block, name) = rest.split_once('.')?;
            let places = (list.of)(block.parse().ok()?);
            let (place, to) = MovedModule::of(&places, name)?;
            Some((*place, format!("{}.{block}.{to}", list.lists[1])))
        };
        let at_top = || MovedModule::of(top, tensor).map(|(place, to)| (*place, to));
        let Some((place, to)) = blocks.iter().find_map(of_block).or_else(at_top) else {
            return Err(tensor.to_owned());
        };
        let part = MovedTensor { order: place.order, tensor: tensor.to_owned(), swapped: place.swapped };
        match joined.iter_mut().find(|(name, _)| *name == to) {
            Some((_, parts)) => parts.push(part),
            None => joined.push((to, vec![part])),
        }
    }
    let whole = |(name, mut parts): (String, Vec<MovedTensor>)| {
        parts.sort_by_key(|part| part.order);
        let rows = |MovedTensor { tensor, swapped, .. }: MovedTensor| {
            if swapped {
                vec![(tensor.clone(), TensorRows::SecondHalf), (tensor, TensorRows::FirstHalf)]
            } else {
                vec![(tensor, TensorRows::All)]
            }
        };
        JoinedTensor { name, parts: parts.into_iter().flat_map(rows).collect() }
    };
    Ok(joined.into_iter().map(whole).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_stacked_in_order_and_halves_change_places() {
        let top = [swapped("out.linear", "final.mod"), renamed("in.scale.weight", "first.scale")];
        let of = |_: usize| vec![stacked("q", "qkv", 0), stacked("k", "qkv", 1), renamed("out", "proj")];
        let blocks = [MovedBlocks { lists: ["blocks", "layers"], of: &of }];
        let tensors = [
            "blocks.10.k.bias",
            "blocks.10.out.weight",
            "blocks.10.q.bias",
            "out.linear.weight",
            "in.scale.weight",
        ];
        let found = joined(tensors, &top, &blocks).unwrap();
        let all = |names: &[&str]| names.iter().map(|name| (name.to_string(), TensorRows::All)).collect();
        let expected: [(&str, Vec<(String, TensorRows)>); 4] = [
            ("layers.10.qkv.bias", all(&["blocks.10.q.bias", "blocks.10.k.bias"])),
            ("layers.10.proj.weight", all(&["blocks.10.out.weight"])),
            (
                "final.mod.weight",
                [TensorRows::SecondHalf, TensorRows::FirstHalf]
                    .map(|rows| ("out.linear.weight".to_owned(), rows))
                    .to_vec(),
            ),
            ("first.scale", all(&["in.scale.weight"])),
        ];
        for (found, (name, parts)) in found.iter().zip(expected) {
            assert_eq!((found.name.as_str(), &found.parts), (name, &parts));
        }
        assert_eq!(joined(["blocks.0.other.weight"], &top, &blocks).unwrap_err(), "blocks.0.other.weight");
        assert!(joined(["outer.weight", "in.scale"], &top, &blocks).is_err());
    }
}
