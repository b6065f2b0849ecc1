//! Without the feature `gloo`, what tests jobs of several processes is left out by the compiler. It is not left out in silence.
#![cfg(not(feature = "gloo"))]

#[test]
fn jobs_of_several_processes() {
    obsdiff_tests::not_tested("`cluster`, `faults` and the collectives of Gloo need --features obsdiff/gloo");
}
