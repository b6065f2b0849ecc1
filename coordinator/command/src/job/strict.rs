//! Reads a merged configuration into a typed specification, strictly: no unknown key, no silent conversion, and every refusal
//! names its key. Only text from the environment or a flag, which has no type of its own, is read as the type that is asked for.

use std::fmt;

use config::{Value, ValueKind};
use serde::de::{self, DeserializeSeed, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

use super::closest;

/// What is said of a name that is no key of its table.
const NO_KEY: &str = "is not a key";

/// Why a value was refused.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Refusal {
    /// The key as a path.
    pub(super) key: String,
    /// What is wrong, and what would be right.
    pub(super) problem: String,
    /// Whether the path starts at the root of the job; serde's own refusals do not know where they are.
    rooted: bool,
}

impl Refusal {
    fn at(key: String, problem: String) -> Self {
        Self { key, problem, rooted: true }
    }

    /// Whether it is the key that is refused, not its value.
    pub(super) fn names_no_key(&self) -> bool {
        self.problem.starts_with(NO_KEY)
    }

    fn root_at(self, base: &str) -> Self {
        if self.rooted { self } else { Self::at(join(base, &self.key), self.problem) }
    }
}

fn join(base: &str, name: &str) -> String {
    let dot = if base.is_empty() || name.is_empty() { "" } else { "." };
    format!("{base}{dot}{name}")
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.problem)
    }
}

impl std::error::Error for Refusal {}

impl de::Error for Refusal {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { key: String::new(), problem: message.to_string(), rooted: false }
    }

    fn missing_field(field: &'static str) -> Self {
        Self {
            key: field.to_owned(),
            problem: "is missing: give it in the job file, or by --set".to_owned(),
            rooted: false,
        }
    }
}

/// A value and the path to it.
pub(super) struct Node<'a> {
    pub(super) value: &'a Value,
    pub(super) key: String,
    /// Whether this value was given as text without a type.
    pub(super) untyped: fn(&Value) -> bool,
}

impl<'a> Node<'a> {
    fn child(&self, value: &'a Value, name: &str) -> Self {
        Node { value, key: join(&self.key, name), untyped: self.untyped }
    }

    fn expects(&self, expected: &str) -> Refusal {
        let problem = match &self.value.kind {
            ValueKind::Nil => format!("is missing: {expected} is expected"),
            kind => format!("is {}, but {expected} is expected", shown(kind)),
        };
        Refusal::at(self.key.clone(), problem)
    }

    fn text(&self) -> Option<&'a str> {
        match &self.value.kind {
            ValueKind::String(text) => Some(text),
            _ => None,
        }
    }

    fn untyped_text(&self) -> Option<&'a str> {
        self.text().filter(|_| (self.untyped)(self.value)).map(str::trim)
    }

    fn whole(&self, most: u64) -> Result<u64, Refusal> {
        let number = match &self.value.kind {
            ValueKind::I64(n) => u64::try_from(*n).ok(),
            ValueKind::U64(n) => Some(*n),
            _ => self.untyped_text().and_then(|text| text.parse().ok()),
        };
        number.filter(|n| *n <= most).ok_or_else(|| self.expects(&format!("a whole number from 0 to {most}")))
    }

    fn real(&self) -> Result<f64, Refusal> {
        match &self.value.kind {
            ValueKind::Float(x) => Ok(*x),
            ValueKind::I64(n) => Ok(*n as f64),
            _ => self.untyped_text().and_then(|t| t.parse().ok()).ok_or_else(|| self.expects("a number")),
        }
    }

    fn flag(&self) -> Result<bool, Refusal> {
        match &self.value.kind {
            ValueKind::Boolean(b) => Ok(*b),
            _ => {
                self.untyped_text().and_then(|t| t.parse().ok()).ok_or_else(|| self.expects("true or false"))
            }
        }
    }
}

/// A value as messages show it.
pub(super) fn shown(kind: &ValueKind) -> String {
    match kind {
        ValueKind::Table(_) => "a table".to_owned(),
        ValueKind::Array(_) => "a list".to_owned(),
        ValueKind::String(text) => format!("{text:?}"),
        // With its point, where a whole number is expected.
        ValueKind::Float(number) => format!("{number:?}"),
        other => other.to_string(),
    }
}

macro_rules! whole {
    ($($method:ident $visit:ident $type:ty),*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
            let number = self.whole(<$type>::MAX as u64)?;
            visitor.$visit(number as $type)
        })*
    };
}

impl<'de> de::Deserializer<'de> for Node<'_> {
    type Error = Refusal;

    whole!(deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16, deserialize_u32 visit_u32 u32, deserialize_u64 visit_u64 u64);

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Refusal> {
        Err(Refusal::at(self.key, "has a type that a job file cannot hold".to_owned()))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        visitor.visit_bool(self.flag()?)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        visitor.visit_f64(self.real()?)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        let text = self.text().ok_or_else(|| self.expects("text in quotes"))?;
        visitor.visit_str(text)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        match self.value.kind {
            ValueKind::Nil => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        let ValueKind::Array(items) = &self.value.kind else { return Err(self.expects("a list")) };
        visitor.visit_seq(Items { node: &self, items: items.iter().enumerate() })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        let ValueKind::Table(table) = &self.value.kind else { return Err(self.expects("a table")) };
        let mut strangers: Vec<&String> =
            table.keys().filter(|key| !fields.contains(&key.as_str())).collect();
        strangers.sort();
        if let Some(stranger) = strangers.first() {
            let problem = format!("{NO_KEY}; {}", closest(stranger, fields));
            return Err(Refusal::at(join(&self.key, stranger), problem));
        }
        // A key that was unset counts as absent.
        let set = |field: &&'static str| table.get(*field).filter(|value| value.kind != ValueKind::Nil);
        let entries = fields.iter().filter_map(|field| Some((*field, set(field)?)));
        let entries = Entries { node: &self, entries: entries.collect::<Vec<_>>().into_iter(), value: None };
        visitor.visit_map(entries).map_err(|refusal| refusal.root_at(&self.key))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        let text = self.text().ok_or_else(|| self.expects("text in quotes"))?;
        if !variants.contains(&text) {
            let problem = format!("is {text:?}; {}", closest(text, variants));
            return Err(Refusal::at(self.key, problem));
        }
        visitor.visit_enum(text.into_deserializer())
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u128 f32 char bytes byte_buf unit unit_struct tuple tuple_struct map identifier ignored_any
    }
}

struct Items<'n, 'a> {
    node: &'n Node<'a>,
    items: std::iter::Enumerate<std::slice::Iter<'a, Value>>,
}

impl<'de> de::SeqAccess<'de> for Items<'_, '_> {
    type Error = Refusal;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Refusal> {
        let Some((i, value)) = self.items.next() else { return Ok(None) };
        let key = format!("{}[{i}]", self.node.key);
        let item = Node { value, key: key.clone(), untyped: self.node.untyped };
        seed.deserialize(item).map(Some).map_err(|refusal| refusal.root_at(&key))
    }
}

struct Entries<'n, 'a> {
    node: &'n Node<'a>,
    entries: std::vec::IntoIter<(&'static str, &'a Value)>,
    value: Option<(&'static str, &'a Value)>,
}

impl<'de> de::MapAccess<'de> for Entries<'_, '_> {
    type Error = Refusal;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Refusal> {
        self.value = self.entries.next();
        self.value.map(|(name, _)| seed.deserialize(name.into_deserializer())).transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Refusal> {
        let (name, value) =
            self.value.take().ok_or_else(|| de::Error::custom("a value was asked for before its key"))?;
        let child = self.node.child(value, name);
        let key = child.key.clone();
        seed.deserialize(child).map_err(|refusal| refusal.root_at(&key))
    }
}
