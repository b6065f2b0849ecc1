//! Kernels as the driver compiles them for its GPU. One of six files that call foreign code.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_void};
use std::ptr::{null_mut, without_provenance_mut};
use std::sync::Arc;

use cudarc::driver::result::DriverError;
use cudarc::driver::sys::{CUjit_option, cuModuleLoadDataEx, cuModuleUnload};
use cudarc::driver::{CudaContext, CudaFunction};
use cudarc::nvrtc::Ptx;

use super::CudaError;
use super::driver::failed;
use super::kernels::MODULES;

/// Bytes that are kept of what the driver's compiler says of a module.
const LOG: usize = 4096;

/// All kernels, by name.
pub(super) type Kernels = BTreeMap<&'static str, CudaFunction>;

/// Loads all modules, which the driver compiles for the context's GPU, or takes from where it keeps what it has compiled before.
pub(super) fn loaded(context: &Arc<CudaContext>) -> Result<Kernels, CudaError> {
    let mut functions = Kernels::new();
    for (ptx, kernels) in MODULES {
        let module = context.load_module(Ptx::from_src(*ptx)).map_err(|error| refused(ptx, error))?;
        for kernel in kernels.iter().flat_map(|(names, _)| *names) {
            functions.insert(kernel, module.load_function(kernel).map_err(failed("cuModuleGetFunction"))?);
        }
    }
    Ok(functions)
}

/// A module's error, with what the compiler says of it when it is asked once more. The context is current.
fn refused(ptx: &str, error: DriverError) -> CudaError {
    let mut log = vec![0u8; LOG];
    if let Ok(ptx) = CString::new(ptx) {
        let mut module = null_mut();
        let mut options =
            [CUjit_option::CU_JIT_ERROR_LOG_BUFFER, CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        // The second is a number in a pointer's place.
        let mut values: [*mut c_void; 2] = [log.as_mut_ptr().cast(), without_provenance_mut(LOG)];
        let count = options.len() as u32;
        // SAFETY: the text ends with a zero, the options and their values lie here, and so many bytes are there to be written.
        unsafe {
            let place = (options.as_mut_ptr(), values.as_mut_ptr());
            let loaded = cuModuleLoadDataEx(&raw mut module, ptx.as_ptr().cast(), count, place.0, place.1);
            if loaded.result().is_ok() {
                let _ = cuModuleUnload(module);
            }
        }
    }
    let said = CStr::from_bytes_until_nul(&log).map(|said| said.to_string_lossy().trim().to_owned());
    match (failed("cuModuleLoadData")(error), said) {
        (CudaError::Call { call, problem }, Ok(said)) if !said.is_empty() => {
            CudaError::Call { call, problem: format!("{problem}: {said}") }
        }
        (error, _) => error,
    }
}
