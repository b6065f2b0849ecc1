//! Reading `transformer/config.json`.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// No known model comes near; larger sizes would only overflow.
const MAX_SIZE: usize = 1 << 16;

/// What a configuration may hold.
pub(in crate::architecture) struct Format {
    /// The class of transformers as published.
    pub(in crate::architecture) class: &'static str,
    /// The class of transformers whose blocks differ.
    pub(in crate::architecture) pruned_class: &'static str,
    /// Keys whose values are whole numbers.
    pub(in crate::architecture) sizes: &'static [&'static str],
    /// Keys of other values.
    pub(in crate::architecture) others: &'static [&'static str],
    /// Keys of the sizes of blocks that differ.
    pub(in crate::architecture) block_sizes: &'static [&'static str],
}

impl Format {
    /// The configuration of these keys; what is wrong with them in words.
    pub(in crate::architecture) fn read<T: DeserializeOwned>(
        &self,
        keys: Map<String, Value>,
    ) -> Result<T, String> {
        let class = self.class;
        match keys.get("_class_name").and_then(Value::as_str) {
            Some(found) if found == class || found == self.pruned_class => {}
            Some(other) => {
                return Err(format!("`_class_name` is \"{other}\", but only \"{class}\" is supported here"));
            }
            None => return Err(format!("lacks `_class_name`, which should be \"{class}\"")),
        }
        // Names that start with an underscore are diffusers' notes.
        let own = || keys.iter().filter(|(key, _)| !key.starts_with('_'));
        let known =
            |key: &str| [self.sizes, self.others, self.block_sizes].iter().any(|keys| keys.contains(&key));
        if let Some((key, value)) = own().find(|(key, _)| !known(key)) {
            return Err(format!("key `{key}` = {value} is not known, and might change the arithmetic"));
        }
        let wrong = |key: &str, value: &Value| self.sizes.contains(&key) && !value.is_u64();
        if let Some((key, value)) = own().find(|(key, value)| wrong(key, value)) {
            return Err(format!("`{key}` is {value}, but must be a whole number"));
        }
        serde_json::from_value(Value::Object(keys)).map_err(|e| format!("is not usable: {e}"))
    }
}

/// What is wrong with sizes that no such model can have, or with the width of so many `heads` of so many `features`.
pub(in crate::architecture) fn sizes_problem(
    sizes: &[(&str, usize)],
    heads: usize,
    features: usize,
) -> Option<String> {
    if let Some((key, value)) = sizes.iter().find(|(_, value)| !(1..=MAX_SIZE).contains(value)) {
        return Some(format!("`{key}` is {value}, but must lie within 1..={MAX_SIZE}"));
    }
    (heads * features > MAX_SIZE).then(|| {
        format!("`num_attention_heads` {heads} times `attention_head_dim` {features} is above {MAX_SIZE}")
    })
}
