//! Changes to messages, by a seed: to their bytes, and to their fields with the lengths around them kept right, so that the changes
//! reach what reads them.

/// A generator of pseudo-random numbers (splitmix64).
pub(crate) struct Prng(pub(crate) u64);

/// A field as it stands on the wire: its key, which says number and kind, and its value.
#[derive(Clone)]
struct Field {
    key: u64,
    value: Value,
}

#[derive(Clone)]
enum Value {
    Varint(u64),
    Fixed(Vec<u8>),
    /// A message, a text, bytes or packed numbers.
    Long(Vec<u8>),
}

impl Prng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// One of these messages with one to four changes.
    pub(crate) fn changed(&mut self, messages: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = messages[self.below(messages.len())].clone();
        for _ in 0..=self.below(4) {
            bytes = match self.below(8) {
                0 => self.change_bytes(bytes),
                _ => self.change_fields(bytes),
            };
        }
        bytes
    }

    fn change_bytes(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        let at = self.below(bytes.len() + 1);
        let end = (at + self.below(16)).min(bytes.len());
        match self.below(5) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => drop(bytes.splice(at..at, bytes[at..end].to_vec())),
            _ if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
            _ => bytes.push(self.next() as u8),
        }
        bytes
    }

    fn change_fields(&mut self, bytes: Vec<u8>) -> Vec<u8> {
        let Some(mut fields) = parse(&bytes).filter(|fields| !fields.is_empty()) else {
            return self.change_bytes(bytes);
        };
        let at = self.below(fields.len());
        match self.below(12) {
            0 => drop(fields.remove(at)),
            1 => {
                let twin = fields[at].clone();
                fields.insert(self.below(fields.len()), twin);
            }
            2 => {
                let other = self.below(fields.len());
                fields.swap(at, other);
            }
            // The number of another field, and now and then of another kind.
            3 => fields[at].key ^= 8 << self.below(3),
            _ => {
                let value = std::mem::replace(&mut fields[at].value, Value::Varint(0));
                fields[at].value = self.change_value(value);
            }
        }
        write(&fields)
    }

    fn change_value(&mut self, value: Value) -> Value {
        match value {
            Value::Varint(number) => Value::Varint(match self.below(5) {
                0 => number.wrapping_add(1),
                1 => number.wrapping_sub(1),
                2 => [0, 1, u32::MAX.into(), u64::MAX / 2, u64::MAX][self.below(5)],
                3 => self.below(8) as u64,
                _ => number ^ (1 << self.below(64)),
            }),
            Value::Fixed(bytes) => Value::Fixed(bytes.iter().map(|b| b ^ self.next() as u8).collect()),
            Value::Long(bytes) => Value::Long(self.change_fields(bytes)),
        }
    }
}

/// The fields of a message; none where the bytes are something else.
fn parse(mut bytes: &[u8]) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let value = match key & 7 {
            0 => Value::Varint(varint(&mut bytes)?),
            1 => Value::Fixed(bytes.split_off(..8)?.to_vec()),
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                Value::Long(bytes.split_off(..length)?.to_vec())
            }
            5 => Value::Fixed(bytes.split_off(..4)?.to_vec()),
            _ => return None,
        };
        fields.push(Field { key, value });
    }
    Some(fields)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.split_off_first()?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

fn write(fields: &[Field]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for Field { key, value } in fields {
        push_varint(&mut bytes, *key);
        match value {
            Value::Varint(number) => push_varint(&mut bytes, *number),
            Value::Fixed(fixed) => bytes.extend(fixed),
            Value::Long(long) => {
                push_varint(&mut bytes, long.len() as u64);
                bytes.extend(long);
            }
        }
    }
    bytes
}

fn push_varint(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}
