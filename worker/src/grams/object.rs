//! A Gram as a safetensors file: the upper triangle of its sums row after row, with its width, exponent and mass in the metadata.

use std::collections::BTreeMap;
use std::fmt::Display;

use obsdiff_engine::gram::{Gram, GramSums, GramSumsMut};
use obsdiff_proto::{Accumulate, GramPrecision};
use safetensors::{Dtype, SafeTensors};
use serde_json::json;

/// The tensor's name.
const SUMS: &str = "sums";

/// The file of a Gram, of as many bytes as its sums take at this precision and a header.
///
/// # Errors
/// Never for numbers; an error of the JSON writer otherwise.
pub(super) fn write(gram: &Gram, precision: GramPrecision) -> Result<Vec<u8>, serde_json::Error> {
    write_with(gram, precision, None)
}

/// The file of a Gram of saved sums, which differs from those of other saves by its metadata.
///
/// # Errors
/// As [`write`].
pub(crate) fn write_saved(gram: &Gram, save: &str) -> Result<Vec<u8>, serde_json::Error> {
    write_with(gram, GramPrecision::Exact, Some(("save", save.to_owned())))
}

fn write_with(
    gram: &Gram,
    precision: GramPrecision,
    further: Option<(&str, String)>,
) -> Result<Vec<u8>, serde_json::Error> {
    let (dtype, count, size) = match (gram.sums(), precision) {
        (GramSums::Exact(sums), GramPrecision::Exact) => ("I64", sums.len(), size_of::<i64>()),
        (GramSums::Exact(sums), GramPrecision::F32) => ("F32", sums.len(), size_of::<f32>()),
        (GramSums::F32(sums), _) => ("F32", sums.len(), size_of::<f32>()),
    };
    // Sums are in units of 2^-exponent, the mass in units of 2^-24 of a row.
    let mut about = BTreeMap::from([
        ("exponent", gram.exponent().to_string()),
        ("mass", gram.mass_units().to_string()),
        ("width", gram.width().to_string()),
    ]);
    about.extend(further);
    let bytes = count * size;
    let header = json!({
        "__metadata__": about,
        SUMS: { "dtype": dtype, "shape": [count], "data_offsets": [0, bytes] },
    });
    let mut header = serde_json::to_vec(&header)?;
    // The format aligns its data by spaces.
    header.resize(header.len().next_multiple_of(size_of::<u64>()), b' ');
    let mut file = Vec::with_capacity(size_of::<u64>() + header.len() + bytes);
    file.extend((header.len() as u64).to_le_bytes());
    file.extend(header);
    match (gram.sums(), precision) {
        (GramSums::Exact(sums), GramPrecision::Exact) => {
            sums.iter().for_each(|sum| file.extend(sum.to_le_bytes()));
        }
        (GramSums::Exact(sums), GramPrecision::F32) => {
            let unit = (-f64::from(gram.exponent())).exp2();
            sums.iter().for_each(|sum| file.extend(((*sum as f64 * unit) as f32).to_le_bytes()));
        }
        (GramSums::F32(sums), _) => sums.iter().for_each(|sum| file.extend(sum.to_le_bytes())),
    }
    Ok(file)
}

/// Reads a file into a Gram of the same width, exponent and kind; floats into exact sums, too.
///
/// # Errors
/// What does not fit, in words.
pub(crate) fn read(file: &[u8], gram: &mut Gram) -> Result<(), String> {
    let said = |error: &dyn Display| error.to_string();
    let (_, header) = SafeTensors::read_metadata(file).map_err(|e| said(&e))?;
    let about = header.metadata().clone().unwrap_or_default();
    let number = |key: &str| -> Result<i64, String> {
        let text = about.get(key).ok_or_else(|| format!("its metadata lacks `{key}`"))?;
        text.parse().map_err(|_| format!("its metadata has no number in `{key}`"))
    };
    for (key, wanted) in [("width", gram.width() as i64), ("exponent", i64::from(gram.exponent()))] {
        let found = number(key)?;
        if found != wanted {
            return Err(format!("its {key} is {found}, but that of the site is {wanted}"));
        }
    }
    let mass = number("mass")?;
    let tensors = SafeTensors::deserialize(file).map_err(|e| said(&e))?;
    let sums = tensors.tensor(SUMS).map_err(|e| said(&e))?;
    let wanted = match (gram.accumulates(), sums.dtype()) {
        (Accumulate::Exact, Dtype::F32) | (Accumulate::F32, _) => Dtype::F32,
        (Accumulate::Exact, _) => Dtype::I64,
    };
    let entries = gram.width() * (gram.width() + 1) / 2;
    if sums.dtype() != wanted || sums.shape() != [entries] {
        return Err(format!(
            "its sums are {:?} of {:?}, not [{entries}] of {wanted:?}",
            sums.shape(),
            sums.dtype()
        ));
    }
    let units = f64::from(gram.exponent()).exp2();
    let (into, of_mass) = gram.parts_mut();
    *of_mass = mass;
    match into {
        GramSumsMut::Exact(into) if wanted == Dtype::F32 => {
            let values = sums.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
            into.iter_mut()
                .zip(values)
                .for_each(|(sum, value)| *sum = (f64::from(value) * units).round() as i64);
        }
        GramSumsMut::Exact(into) => {
            let values = sums.data().as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes));
            into.iter_mut().zip(values).for_each(|(sum, value)| *sum = value);
        }
        GramSumsMut::F32(into) => {
            let values = sums.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
            into.iter_mut().zip(values).for_each(|(sum, value)| *sum = value);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gram_comes_back_as_it_was() {
        for (accumulate, exponent) in [(Accumulate::Exact, 30), (Accumulate::F32, 0)] {
            let mut gram = Gram::new(3, accumulate, exponent);
            gram.observe(&[1.0, -2.0, 0.5, 4.0, 0.25, -3.0], 0.9).unwrap();
            let file = write(&gram, GramPrecision::Exact).unwrap();
            let mut read_back = Gram::new(3, accumulate, exponent);
            read(&file, &mut read_back).unwrap();
            assert_eq!(read_back, gram);
        }
    }

    #[test]
    fn equal_grams_of_two_saves_have_files_of_their_own_and_come_back() {
        let mut gram = Gram::new(3, Accumulate::Exact, 30);
        gram.observe(&[1.0, -2.0, 0.5], 0.9).unwrap();
        let files = ["1.0", "2.0"].map(|save| write_saved(&gram, save).unwrap());
        assert_ne!(files[0], files[1]);
        for file in files {
            let mut read_back = Gram::new(3, Accumulate::Exact, 30);
            read(&file, &mut read_back).unwrap();
            assert_eq!(read_back, gram);
        }
    }

    #[test]
    fn a_gram_of_another_site_is_refused_in_words() {
        let file = write(&Gram::new(3, Accumulate::Exact, 30), GramPrecision::Exact).unwrap();
        let refused = |width, accumulate, exponent| {
            read(&file, &mut Gram::new(width, accumulate, exponent)).unwrap_err()
        };
        assert_eq!(refused(4, Accumulate::Exact, 30), "its width is 3, but that of the site is 4");
        assert_eq!(refused(3, Accumulate::Exact, 29), "its exponent is 30, but that of the site is 29");
        assert!(read(&file[..20], &mut Gram::new(3, Accumulate::Exact, 30)).is_err());
        let mut other = write(&Gram::new(3, Accumulate::F32, 0), GramPrecision::Exact).unwrap();
        let exact = write(&Gram::new(3, Accumulate::Exact, 0), GramPrecision::Exact).unwrap();
        let problem = read(&exact, &mut Gram::new(3, Accumulate::F32, 0)).unwrap_err();
        assert_eq!(problem, "its sums are [6] of I64, not [6] of F32");
        other.truncate(other.len() - 1);
        assert!(read(&other, &mut Gram::new(3, Accumulate::F32, 0)).is_err());
    }

    #[test]
    fn exact_sums_kept_as_floats_come_back_within_their_rounding_in_half_the_bytes() {
        let mut gram = Gram::new(40, Accumulate::Exact, 40);
        let rows: Vec<f32> = (0..400).map(|i| ((i * i + 7) as f32 * 0.37).sin()).collect();
        gram.observe(&rows, 1.1).unwrap();
        let (exact, floats) =
            (write(&gram, GramPrecision::Exact).unwrap(), write(&gram, GramPrecision::F32).unwrap());
        assert!(floats.len() < exact.len() * 3 / 5, "{} of {} bytes", floats.len(), exact.len());
        let mut read_back = Gram::new(40, Accumulate::Exact, 40);
        read(&floats, &mut read_back).unwrap();
        assert_eq!(read_back.mass_units(), gram.mass_units());
        let (GramSums::Exact(before), GramSums::Exact(after)) = (gram.sums(), read_back.sums()) else {
            panic!("sums are exact")
        };
        assert!(before != after, "floats round");
        let close =
            |(a, b): (&i64, &i64)| (a - b).abs() as f64 <= 1.0 + (*a as f64).abs() * f64::from(f32::EPSILON);
        assert!(before.iter().zip(after).all(close));
    }
}
