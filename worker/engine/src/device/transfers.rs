//! What crosses between the host's memory and a device's own.

use serde::ser::{Serialize, SerializeMap, Serializer};

#[cfg(any(test, feature = "cuda"))]
use std::sync::atomic::{AtomicU64, Ordering};

/// What numbers that cross are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransferKind {
    /// Weights of the model, and of linears that are solved.
    Weights,
    /// What a forward call is given: latents, times and conditioning, or embedded tokens.
    Inputs,
    /// What a forward call computes on its way.
    Activations,
    /// Sums of a Gram, or the square that is made of them.
    Grams,
    /// What a forward call predicts, and weights that are solved.
    Results,
    /// What text encoders make of prompts.
    Encodings,
    /// What decoders make of latents.
    Pictures,
    /// What is said of the others: a few numbers, or a vector of the width of a site or a linear.
    Figures,
}

const KINDS: usize = TransferKind::ALL.len();

impl TransferKind {
    /// All of them, in their order.
    pub const ALL: [Self; 8] = [
        Self::Weights,
        Self::Inputs,
        Self::Activations,
        Self::Grams,
        Self::Results,
        Self::Encodings,
        Self::Pictures,
        Self::Figures,
    ];

    /// Its name, in small letters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Inputs => "inputs",
            Self::Activations => "activations",
            Self::Grams => "grams",
            Self::Results => "results",
            Self::Encodings => "encodings",
            Self::Pictures => "pictures",
            Self::Figures => "figures",
        }
    }
}

/// Copies in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Copies {
    /// How many.
    pub count: u64,
    /// Bytes of all together.
    pub bytes: u64,
}

impl Copies {
    const fn since(self, before: Self) -> Self {
        Self { count: self.count - before.count, bytes: self.bytes - before.bytes }
    }
}

/// What has crossed since a device was opened. As JSON it is an object of an object for each kind, with `to_device` and `to_host`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transfers {
    to_device: [Copies; KINDS],
    to_host: [Copies; KINDS],
}

impl Transfers {
    /// To the device's memory.
    pub const fn to_device(&self, kind: TransferKind) -> Copies {
        self.to_device[kind as usize]
    }

    /// To the host's memory.
    pub const fn to_host(&self, kind: TransferKind) -> Copies {
        self.to_host[kind as usize]
    }

    /// What has crossed since `before`, which was counted earlier of the same device.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let since = |now: &[Copies; KINDS], before: &[Copies; KINDS]| {
            std::array::from_fn(|kind| now[kind].since(before[kind]))
        };
        Self {
            to_device: since(&self.to_device, &before.to_device),
            to_host: since(&self.to_host, &before.to_host),
        }
    }
}

impl Serialize for Transfers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(serde::Serialize)]
        struct Directions {
            to_device: Copies,
            to_host: Copies,
        }
        let mut kinds = serializer.serialize_map(Some(KINDS))?;
        for kind in TransferKind::ALL {
            let directions = Directions { to_device: self.to_device(kind), to_host: self.to_host(kind) };
            kinds.serialize_entry(kind.name(), &directions)?;
        }
        kinds.end()
    }
}

/// Counts what crosses.
#[cfg(any(test, feature = "cuda"))]
#[derive(Debug, Default)]
pub(crate) struct TransferCounter {
    to_device: [CopyCounter; KINDS],
    to_host: [CopyCounter; KINDS],
}

#[cfg(any(test, feature = "cuda"))]
#[derive(Debug, Default)]
struct CopyCounter {
    count: AtomicU64,
    bytes: AtomicU64,
}

#[cfg(any(test, feature = "cuda"))]
impl CopyCounter {
    fn add(&self, bytes: usize) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn copies(&self) -> Copies {
        Copies { count: self.count.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }
}

#[cfg(any(test, feature = "cuda"))]
impl TransferCounter {
    /// Counts a copy to the device's memory.
    pub(crate) fn to_device(&self, kind: TransferKind, bytes: usize) {
        self.to_device[kind as usize].add(bytes);
    }

    /// Counts a copy to the host's memory.
    pub(crate) fn to_host(&self, kind: TransferKind, bytes: usize) {
        self.to_host[kind as usize].add(bytes);
    }

    /// What was counted so far.
    pub(crate) fn so_far(&self) -> Transfers {
        Transfers {
            to_device: self.to_device.each_ref().map(CopyCounter::copies),
            to_host: self.to_host.each_ref().map(CopyCounter::copies),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_counted_by_kind_and_direction() {
        let counter = TransferCounter::default();
        counter.to_device(TransferKind::Weights, 10);
        counter.to_device(TransferKind::Weights, 5);
        counter.to_host(TransferKind::Figures, 7);
        let found = counter.so_far();
        assert_eq!(found.to_device(TransferKind::Weights), Copies { count: 2, bytes: 15 });
        assert_eq!(found.to_host(TransferKind::Figures), Copies { count: 1, bytes: 7 });
        assert_eq!(found.to_host(TransferKind::Weights), Copies::default());
        assert_eq!(found.to_device(TransferKind::Figures), Copies::default());
        counter.to_device(TransferKind::Weights, 1);
        let since = counter.so_far().since(&found);
        assert_eq!(since.to_device(TransferKind::Weights), Copies { count: 1, bytes: 1 });
        assert_eq!(since.to_host(TransferKind::Figures), Copies::default());
    }

    #[test]
    fn copies_are_told_under_the_names_of_their_kinds() {
        for (index, kind) in TransferKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
            assert_eq!(format!("{kind:?}").to_lowercase(), kind.name());
        }
        let counter = TransferCounter::default();
        counter.to_host(TransferKind::Grams, 12);
        let counted = serde_json::to_value(counter.so_far()).unwrap();
        assert_eq!(counted.as_object().unwrap().len(), KINDS);
        let grams = r#"{"to_device":{"bytes":0,"count":0},"to_host":{"bytes":12,"count":1}}"#;
        assert_eq!(counted["grams"].to_string(), grams);
    }
}
