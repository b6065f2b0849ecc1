//! The seeds of these tests.

/// Takes the place of a test's own seeds. `OBSDIFF_...` would be keys of a job.
const SEED: &str = "SEED";

/// The seeds that a test runs with, printed: its own, or the one of the environment.
pub(crate) fn seeds<const N: usize>(own: [u64; N]) -> Vec<u64> {
    let seeds = match std::env::var(SEED) {
        Ok(seed) => {
            vec![seed.parse().unwrap_or_else(|_| panic!("{SEED} is {seed:?}, but a number is expected"))]
        }
        Err(_) => own.to_vec(),
    };
    println!("seeds {seeds:?}; one alone by {SEED}=...");
    seeds
}
