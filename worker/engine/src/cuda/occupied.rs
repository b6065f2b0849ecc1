//! What of a GPU's memory is in use, by whomever, as NVML says it: it can be asked before a process has opened the GPU.

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

use super::CudaError;
use super::driver::CudaDriver;

/// The driver's library. Most machines have it by this name alone.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// NVML, and a GPU as it names it.
#[derive(Debug)]
pub(super) struct OccupiedMemory {
    nvml: Nvml,
    /// Of a GPU, or of a part of one.
    names: [String; 2],
}

impl OccupiedMemory {
    /// Of a GPU, counted from 0; none where this machine has no NVML.
    pub(super) fn of(ordinal: usize) -> Result<Option<Self>, CudaError> {
        let id = uuid(CudaDriver::uuid(ordinal)?);
        match Nvml::builder().lib_path(LIBRARY.as_ref()).init() {
            Ok(nvml) => Ok(Some(Self { nvml, names: ["GPU", "MIG"].map(|kind| format!("{kind}-{id}")) })),
            Err(problem) => {
                tracing::debug!(%problem, "NVML cannot be used: what opening a GPU takes is not compared with the plan");
                Ok(None)
            }
        }
    }

    /// Bytes in use; none where NVML does not say.
    pub(super) fn bytes(&self) -> Option<u64> {
        let used = |name: &String| -> Result<u64, NvmlError> {
            Ok(self.nvml.device_by_uuid(name.as_str())?.memory_info()?.used)
        };
        self.names.iter().find_map(|name| used(name).ok())
    }
}

/// A GPU's id as NVML writes it.
fn uuid(bytes: [u8; 16]) -> String {
    let mut text = String::new();
    for (at, byte) in bytes.into_iter().enumerate() {
        if [4, 6, 8, 10].contains(&at) {
            text.push('-');
        }
        text += &format!("{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_written_in_five_groups() {
        let bytes = std::array::from_fn(|at| 16 * (at as u8) + 1);
        assert_eq!(uuid(bytes), "01112131-4151-6171-8191-a1b1c1d1e1f1");
    }
}
