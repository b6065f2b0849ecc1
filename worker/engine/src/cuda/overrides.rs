//! Variables of the environment by which NVIDIA's libraries would compute otherwise than obsdiff says.

use std::ffi::OsString;

use super::CudaError;

/// cuBLAS 13 reads these, and they count for more than what its handle is told: f32 in TF32, f32 made of bf16, f64 made of integers.
/// cuSOLVER computes by cuBLAS. The first is documented for 0 alone, which turns TF32 off; by the others 1 turns an emulation on.
const VARIABLES: [&str; 3] =
    ["NVIDIA_TF32_OVERRIDE", "CUBLAS_EMULATE_SINGLE_PRECISION", "CUBLAS_EMULATE_DOUBLE_PRECISION"];

/// Refuses an environment in which one of them is set to anything but nothing or 0. `value` gives the value of a variable.
pub(super) fn refuse_overrides(value: impl Fn(&'static str) -> Option<OsString>) -> Result<(), CudaError> {
    for variable in VARIABLES {
        if let Some(value) = value(variable)
            && !value.is_empty()
            && value != "0"
        {
            return Err(CudaError::Override { variable, value: value.to_string_lossy().into_owned() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_turns_a_variable_on_is_refused_and_what_turns_it_off_is_not() {
        for variable in VARIABLES {
            let set_to = |value: &str| refuse_overrides(|name| (name == variable).then(|| value.into()));
            assert_eq!((set_to(""), set_to("0")), (Ok(()), Ok(())));
            for value in ["1", "2", "true"] {
                let said = set_to(value).unwrap_err().to_string();
                assert!(said.contains(&format!("{variable}={value}, ")), "{said}");
                assert!(said.ends_with(": unset it, or set it to 0") && !said.contains('\n'), "{said}");
            }
        }
        assert_eq!(refuse_overrides(|_| None), Ok(()));
    }
}
