//! Changes to messages, by a seed: to their bytes, and to their fields with the lengths around them kept right, so that the changes
//! reach what reads them.

use obsdiff_tests::Prng;

/// A field as it stands on the wire: its key, which says number and kind, and its value.
#[derive(Clone)]
struct Field {
    key: u64,
    value: FieldValue,
}

#[derive(Clone)]
enum FieldValue {
    Varint(u64),
    Fixed(Vec<u8>),
    /// A message, a text, bytes or packed numbers.
    Long(Vec<u8>),
}

/// One of these messages with one to four changes.
pub(crate) fn changed(prng: &mut Prng, messages: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = messages[prng.below(messages.len())].clone();
    for _ in 0..=prng.below(4) {
        bytes = match prng.below(8) {
            0 => change_bytes(prng, bytes),
            _ => change_fields(prng, bytes),
        };
    }
    bytes
}

fn change_bytes(prng: &mut Prng, mut bytes: Vec<u8>) -> Vec<u8> {
    let at = prng.below(bytes.len() + 1);
    let end = (at + prng.below(16)).min(bytes.len());
    match prng.below(5) {
        0 => bytes.truncate(at),
        1 => drop(bytes.drain(at..end)),
        2 => drop(bytes.splice(at..at, bytes[at..end].to_vec())),
        _ if at < bytes.len() => bytes[at] ^= 1 << prng.below(8),
        _ => bytes.push(prng.next() as u8),
    }
    bytes
}

fn change_fields(prng: &mut Prng, bytes: Vec<u8>) -> Vec<u8> {
    let Some(mut fields) = parse(&bytes).filter(|fields| !fields.is_empty()) else {
        return change_bytes(prng, bytes);
    };
    let at = prng.below(fields.len());
    match prng.below(12) {
        0 => drop(fields.remove(at)),
        1 => {
            let twin = fields[at].clone();
            fields.insert(prng.below(fields.len()), twin);
        }
        2 => {
            let other = prng.below(fields.len());
            fields.swap(at, other);
        }
        // The number of another field, and now and then of another kind.
        3 => fields[at].key ^= 8 << prng.below(3),
        _ => {
            let value = std::mem::replace(&mut fields[at].value, FieldValue::Varint(0));
            fields[at].value = change_value(prng, value);
        }
    }
    write(&fields)
}

fn change_value(prng: &mut Prng, value: FieldValue) -> FieldValue {
    match value {
        FieldValue::Varint(number) => FieldValue::Varint(match prng.below(5) {
            0 => number.wrapping_add(1),
            1 => number.wrapping_sub(1),
            2 => [0, 1, u32::MAX.into(), u64::MAX / 2, u64::MAX][prng.below(5)],
            3 => prng.below(8) as u64,
            _ => number ^ (1 << prng.below(64)),
        }),
        FieldValue::Fixed(bytes) => FieldValue::Fixed(bytes.iter().map(|b| b ^ prng.next() as u8).collect()),
        FieldValue::Long(bytes) => FieldValue::Long(change_fields(prng, bytes)),
    }
}

/// The fields of a message; none where the bytes are something else.
fn parse(mut bytes: &[u8]) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let value = match key & 7 {
            0 => FieldValue::Varint(varint(&mut bytes)?),
            1 => FieldValue::Fixed(bytes.split_off(..8)?.to_vec()),
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                FieldValue::Long(bytes.split_off(..length)?.to_vec())
            }
            5 => FieldValue::Fixed(bytes.split_off(..4)?.to_vec()),
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
            FieldValue::Varint(number) => push_varint(&mut bytes, *number),
            FieldValue::Fixed(fixed) => bytes.extend(fixed),
            FieldValue::Long(long) => {
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
