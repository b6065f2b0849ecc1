//! The exponent e of a site: its sums are kept in units of 2^-e.

/// Largest entry of one observation, in units of 2^-e. It leaves a margin of 2 to where rounding through f64 stops being exact.
pub const OBSERVATION_LIMIT: f64 = (1u64 << 50) as f64;

/// Largest entry of a sum, in units of 2^-e. It leaves a margin of 2 to the range of i64.
pub const SUM_LIMIT: f64 = (1u64 << 62) as f64;

/// How much larger than the pilot saw it an energy may turn out without overflow.
const HEADROOM: f64 = 8.0;

/// Largest |e|: 2^e and its reciprocal stay normal f64 numbers for any result of the pilot.
const RANGE: f64 = 900.0;

/// The exponent for a site of which a pilot has seen a part.
///
/// `sum` is the largest weighted column energy (a diagonal entry of alpha X^T X) expected of the whole package, `observation` the
/// largest that one observation brought. The largest e is chosen at which eight times either stays within its limit; an energy
/// of 0 sets no bound.
pub fn exponent_for(sum: f64, observation: f64) -> i32 {
    let bits = |limit: f64, energy: f64| {
        if energy > 0.0 { (limit / HEADROOM).log2() - energy.log2() } else { f64::INFINITY }
    };
    let largest = bits(SUM_LIMIT, sum).min(bits(OBSERVATION_LIMIT, observation)).floor();
    if largest.is_finite() { largest.clamp(-RANGE, RANGE) as i32 } else { 0 }
}
