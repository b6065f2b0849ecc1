//! What one forward call makes and the next one most likely needs again.

use std::sync::{Arc, Mutex};

use obsdiff_proto::lock;

use crate::Result;

/// The value of the last key. Clones share it.
#[derive(Debug)]
pub(crate) struct Kept<K, V>(Arc<Mutex<Option<(K, V)>>>);

impl<K, V> Default for Kept<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K, V> Clone for Kept<K, V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: PartialEq, V: Clone> Kept<K, V> {
    /// The value of this key: what is kept, or else what `make` gives, which replaces it.
    ///
    /// # Errors
    /// As `make`.
    pub(crate) fn get(&self, key: K, make: impl FnOnce() -> Result<V>) -> Result<V> {
        let mut kept = lock(&self.0);
        if let Some((last, value)) = &*kept
            && *last == key
        {
            return Ok(value.clone());
        }
        // The old value goes first: it may be as large.
        *kept = None;
        let value = make()?;
        *kept = Some((key, value.clone()));
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_made_again_only_for_another_key() {
        let kept = Kept::default();
        let get = |key: u32, made: &str| kept.clone().get(key, || Ok(made.to_owned())).unwrap();
        assert_eq!(get(1, "first"), "first");
        assert_eq!(get(1, "second"), "first");
        assert_eq!(get(2, "third"), "third");
        assert_eq!(get(1, "fourth"), "fourth");
    }
}
