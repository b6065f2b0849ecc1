//! What the GPU of `OBSDIFF_DEVICE` does with what the suites of devices never give it. Without that variable these tests run in a child, whose
//! libraries lie in host memory.

mod grams;

use std::env;
use std::process::Command;

use super::CudaDevice;
use super::factorised::Factorised;
use super::matrix::NumberType;
use super::products::{Operand, ProductBatch, ProductSizes};
use crate::device::transfers::TransferKind;
use crate::export::output_of;

/// What [`a_gpu_is_refused_in_these_words`] is to hear.
const REFUSAL: &str = "EXPECTED_REFUSAL";

/// The GPU; none where a child is to have one.
fn device() -> Option<CudaDevice> {
    let name = env::var("OBSDIFF_DEVICE").ok()?;
    let ordinal = name.strip_prefix("cuda")?.trim_start_matches(':').parse().unwrap_or(0);
    Some(CudaDevice::open(ordinal).unwrap())
}

#[test]
fn these_tests_pass_on_a_gpu_in_host_memory() {
    if env::var_os("OBSDIFF_DEVICE").is_some() {
        return;
    }
    // Streams beside the first one begin as late as they may, or at once.
    for (tests, last, sides_first) in [
        ("cuda::tests::", "a_square_that_is_not_finite_has_no_factor", "0"),
        ("cuda::tests::grams::", "panels_of_an_odd_width_add_what_the_processor_adds", "1"),
    ] {
        let mut child = Command::new(env::current_exe().unwrap());
        child.env("LD_LIBRARY_PATH", obsdiff_tests::fake_cuda()).env("OBSDIFF_DEVICE", "cuda");
        let output = output_of(child.env("FAKE_CUDA_SIDES_FIRST", sides_first).arg(tests)).unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
        assert!(said.contains(&format!("{last} ... ok")), "{said}");
    }
}

#[test]
fn a_gpu_is_refused_in_these_words() {
    if let Ok(expected) = env::var(REFUSAL) {
        assert_eq!(CudaDevice::open(0).unwrap_err().to_string(), expected);
    }
}

#[test]
fn libraries_that_would_give_other_results_are_refused_in_host_memory() {
    if env::var_os("OBSDIFF_DEVICE").is_some() {
        return;
    }
    let old = |found: &str| {
        format!(
            "cuBLAS {found} was found, but obsdiff needs 13.0 or newer: install CUDA 13, or `pip install nvidia-cublas`, and put its \
             folder first in LD_LIBRARY_PATH"
        )
    };
    let set = |variable: &str| {
        format!(
            "the environment sets {variable}=1, by which NVIDIA's libraries round products otherwise, so that results would differ: \
             unset it, or set it to 0"
        )
    };
    let mut cases =
        vec![("FAKE_CUBLAS_VERSION", "120803", old("12.8")), ("FAKE_CUBLAS_VERSION", "129999", old("12.99"))];
    for variable in
        ["NVIDIA_TF32_OVERRIDE", "CUBLAS_EMULATE_SINGLE_PRECISION", "CUBLAS_EMULATE_DOUBLE_PRECISION"]
    {
        cases.push((variable, "1", set(variable)));
    }
    for (variable, value, expected) in cases {
        let mut child = Command::new(env::current_exe().unwrap());
        child.env("LD_LIBRARY_PATH", obsdiff_tests::fake_cuda()).env("OBSDIFF_DEVICE", "cuda");
        child.env(variable, value).env(REFUSAL, expected);
        let output =
            output_of(child.args(["--exact", "cuda::tests::a_gpu_is_refused_in_these_words"])).unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }
}

#[test]
fn a_kind_names_the_libraries_of_products_and_of_inverses() {
    let Some(device) = device() else { return };
    let kind = device.kind();
    let (products, inverses) = kind.split_once(" and cuSOLVER ").unwrap();
    let (name, products) = products.split_once(" with cuBLAS ").unwrap();
    assert_eq!(name, device.name());
    let versions = [products, inverses].map(|version| version.parse::<i32>().unwrap());
    assert!(versions[0] >= 130_000 && versions[1] >= 12_000, "{kind}");
}

/// Whether a square is factorised, and its factor inverted.
fn inverted<T: Factorised>(device: &CudaDevice, square: &[T], n: usize) -> [bool; 2] {
    let (driver, factoriser) = (device.driver(), device.factoriser());
    let mut square = driver.upload(TransferKind::Grams, square).unwrap();
    let factorised = factoriser.factorise(driver, &mut square, n).unwrap();
    [factorised, factorised && factoriser.invert(driver, &mut square, n).unwrap()]
}

#[test]
fn a_square_that_is_not_finite_has_no_factor() {
    let Some(device) = device() else { return };
    let n = 40;
    let square = |at: usize, value: f64| {
        let mut square: Vec<f64> = (0..n * n).map(|at| f64::from(u8::from(at % (n + 1) == 0))).collect();
        square[at] = value;
        square
    };
    // A pivot, what a pivot is made of, and an infinite one, which others are not made of.
    for (at, value) in
        [(0, f64::NAN), (7 * n + 20, f64::NAN), (n * n - 1, f64::NAN), (5 * (n + 1), f64::INFINITY)]
    {
        let square = square(at, value);
        let narrow: Vec<f32> = square.iter().map(|x| *x as f32).collect();
        assert_eq!(inverted(&device, &square, n), [false; 2], "{value} at {at}");
        assert_eq!(inverted(&device, &narrow, n), [false; 2], "{value} at {at}");
    }
    // Of a pivot this small an inverse is infinite, if it is not taken for 0.
    let narrow: Vec<f32> = square(0, 1e-39).iter().map(|x| *x as f32).collect();
    assert!(!inverted(&device, &narrow, n)[1]);
    assert_eq!(inverted(&device, &square(0, 4.0), n), [true; 2]);
}

#[test]
fn a_product_that_sums_nothing_leaves_all_of_what_was_there_or_is_refused() {
    let Some(device) = device() else { return };
    let (driver, products) = (device.driver(), device.products());
    let (narrow, wide) = (driver.zeros::<f32>(1).unwrap(), driver.zeros::<f64>(1).unwrap());
    let mut out = driver.upload(TransferKind::Figures, &[7.0f32; 16]).unwrap();
    let mut wide_out = driver.upload(TransferKind::Figures, &[7.0f64; 6]).unwrap();
    let sizes = ProductSizes { rows: 2, columns: 3, inner: 0, stride: 3 };
    let factor = Operand { values: narrow.input(), stride: 1, transposed: false };
    let wide_factor = Operand { values: wide.input(), stride: 1, transposed: false };
    let refused = Err("a product failed: 2 x 0 by 0 x 3 sums nothing".to_owned());
    for (keep, expected) in [(1.0, Ok(())), (0.0, refused.clone()), (0.5, refused.clone())] {
        let done = products.multiply(sizes, 2.0, factor, factor, keep, out.output());
        assert_eq!(done.map_err(|error| error.to_string()), expected, "{keep}");
        let keep = f64::from(keep);
        let done = products.multiply_f64(sizes, 2.0, wide_factor, wide_factor, keep, wide_out.output());
        assert_eq!(done.map_err(|error| error.to_string()), expected, "{keep}, in f64");
    }
    let any = factor.of_any_type();
    for count in [1, 2] {
        let product =
            ProductBatch { numbers: NumberType::F32, sizes, left: any, right: any, steps: [0, 0, 6], count };
        products.add_product(product, out.output().bytes()).unwrap();
        let done = products.multiply_to_f32(product, out.output().bytes());
        assert_eq!(done.map_err(|error| error.to_string()), refused, "{count}");
        let nowhere = ProductBatch { sizes: ProductSizes { rows: 0, ..sizes }, ..product };
        products.multiply_to_f32(nowhere, out.output().bytes()).unwrap();
    }
    let (mut found, mut wide_found) = ([0.0f32; 16], [0.0f64; 6]);
    driver.read(TransferKind::Figures, &out, &mut found).unwrap();
    driver.read(TransferKind::Figures, &wide_out, &mut wide_found).unwrap();
    assert!(found == [7.0; 16] && wide_found == [7.0; 6], "{found:?} {wide_found:?}");
}
