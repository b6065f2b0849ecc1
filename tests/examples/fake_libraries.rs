//! Prints the folder of the CUDA libraries that work in host memory, which it compiles where they are not there yet.

fn main() {
    println!("{}", obsdiff_tests::fake_cuda().display());
}
