//! NCCL's functions.
//!
//! NCCL is loaded here and not by cudarc, which looks for other file names than `libnccl.so.2`, and ends the process for a function that
//! an older library lacks. Its types are cudarc's.
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null_mut;

use cudarc::driver::sys::CUstream;
use cudarc::nccl::sys::{ncclComm_t, ncclConfig_t, ncclDataType_t, ncclRedOp_t, ncclResult_t, ncclUniqueId};
use libloading::Library;

use super::{CallError, DeviceMemory, GpuStream};

/// Bytes of a group's unique id.
pub(in crate::collective::nccl) const ID: usize = 128;

/// The oldest version that is used. In those before, a thread of NCCL's own reads the place that `ncclCommInitRankConfig` was given for the
/// communicator when that has long returned.
const OLDEST: i32 = 21800;

type SumFn =
    unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, ncclComm_t, CUstream) -> c_int;
type Reduce = unsafe extern "C" fn(
    *const c_void,
    *mut c_void,
    usize,
    c_int,
    c_int,
    c_int,
    ncclComm_t,
    CUstream,
) -> c_int;
type GatherFn = unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, ncclComm_t, CUstream) -> c_int;
type OnComm = unsafe extern "C" fn(ncclComm_t) -> c_int;

/// NCCL, loaded. Results are integers: a newer library may give some that this code does not know.
pub(in crate::collective::nccl) struct Nccl {
    version: unsafe extern "C" fn(*mut c_int) -> c_int,
    words: unsafe extern "C" fn(c_int) -> *const c_char,
    unique_id: unsafe extern "C" fn(*mut ncclUniqueId) -> c_int,
    init: unsafe extern "C" fn(*mut ncclComm_t, c_int, ncclUniqueId, c_int, *mut ncclConfig_t) -> c_int,
    async_error: unsafe extern "C" fn(ncclComm_t, *mut c_int) -> c_int,
    all_reduce: SumFn,
    reduce: Reduce,
    broadcast: SumFn,
    all_gather: GatherFn,
    finalize: OnComm,
    destroy: OnComm,
    abort: OnComm,
    /// None before NCCL 2.28.
    revoke: Option<unsafe extern "C" fn(ncclComm_t, c_int) -> c_int>,
}

/// A version that NCCL gives as 10000 major + 100 minor + patch, as people write it.
pub(in crate::collective::nccl) fn in_words(version: i32) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

/// Refuses a library that is so.
fn too_old(is: &str) -> String {
    format!("NCCL is too old, as it {is}: install NCCL 2.18 or newer, best 2.28 or newer")
}

/// Whether NCCL has done what it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::collective::nccl) enum Progress {
    /// It is done, or given to the stream.
    Done,
    /// It goes on: ask later.
    Running,
}

impl Nccl {
    /// Loads the library, for the rest of the process's life.
    ///
    /// # Errors
    /// When it is not found, or lacks what groups need; the error is a sentence with the remedy.
    pub(in crate::collective::nccl) fn load() -> Result<&'static Self, String> {
        const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];
        // SAFETY: NCCL's initialisers only set up the library itself.
        let found = NAMES.into_iter().find_map(|name| unsafe { Library::new(name) }.ok());
        let library = found.ok_or_else(|| {
            "NCCL is not found: install it, or name the folder of libnccl.so.2 in LD_LIBRARY_PATH".to_owned()
        })?;
        // NCCL has threads of its own: it is never unloaded.
        let library: &'static Library = Box::leak(Box::new(library));
        fn find<T: Copy>(library: &'static Library, name: &str) -> Result<T, String> {
            // SAFETY: each type below is that of the function's declaration in nccl.h.
            let function = unsafe { library.get::<T>(name.as_bytes()) };
            function.map(|function| *function).map_err(|_| too_old(&format!("lacks {name}")))
        }
        let nccl = Self {
            version: find(library, "ncclGetVersion")?,
            words: find(library, "ncclGetErrorString")?,
            unique_id: find(library, "ncclGetUniqueId")?,
            init: find(library, "ncclCommInitRankConfig")?,
            async_error: find(library, "ncclCommGetAsyncError")?,
            all_reduce: find(library, "ncclAllReduce")?,
            reduce: find(library, "ncclReduce")?,
            broadcast: find(library, "ncclBroadcast")?,
            all_gather: find(library, "ncclAllGather")?,
            finalize: find(library, "ncclCommFinalize")?,
            destroy: find(library, "ncclCommDestroy")?,
            abort: find(library, "ncclCommAbort")?,
            revoke: find(library, "ncclCommRevoke").ok(),
        };
        let version = nccl.version().map_err(|e| e.to_string())?;
        if version < OLDEST {
            return Err(too_old(&format!("is {}", in_words(version))));
        }
        Ok(Box::leak(Box::new(nccl)))
    }

    /// The library's version, for [`in_words`].
    pub(in crate::collective::nccl) fn version(&self) -> Result<i32, CallError> {
        let mut version = 0;
        // SAFETY: it writes one integer.
        let result = unsafe { (self.version)(&mut version) };
        self.check("ncclGetVersion", result).map(|_| version)
    }

    /// A new group's id, for all its ranks.
    pub(in crate::collective::nccl) fn unique_id(&self) -> Result<[u8; ID], CallError> {
        let mut id = ncclUniqueId { internal: [0; ID] };
        // SAFETY: it fills the struct it is given.
        let result = unsafe { (self.unique_id)(&mut id) };
        self.check("ncclGetUniqueId", result)?;
        Ok(id.internal.map(|byte| byte as u8))
    }

    fn check(&self, call: &'static str, result: c_int) -> Result<Progress, CallError> {
        match result {
            result if result == ncclResult_t::ncclSuccess as c_int => Ok(Progress::Done),
            result if result == ncclResult_t::ncclInProgress as c_int => Ok(Progress::Running),
            code => {
                // SAFETY: NCCL gives a static string for every number.
                let words = unsafe { CStr::from_ptr((self.words)(code)) };
                Err(CallError { call, code, words: words.to_string_lossy().into_owned() })
            }
        }
    }
}

impl CallError {
    /// Whether NCCL says that the fault lies with a peer or the way to it.
    pub(in crate::collective::nccl) fn remote(&self) -> bool {
        self.code == ncclResult_t::ncclRemoteError as c_int
    }
}

/// A rank's end of a group of NCCL. It is left by [`Communicator::destroy`] or [`Communicator::abort`], which may block: dropping it
/// does neither.
pub(in crate::collective::nccl) struct Communicator {
    raw: ncclComm_t,
    nccl: &'static Nccl,
}

// SAFETY: a communicator may be used from any thread, by one at a time: all calls but `progress` need `&mut` or ownership, and no
// reference is shared between threads.
unsafe impl Send for Communicator {}

/// What all ranks do with numbers in a device's memory.
#[derive(Clone, Copy, Debug)]
pub(in crate::collective::nccl) enum Operation {
    AllReduce,
    Reduce { root: usize },
    Broadcast { root: usize },
}

impl Operation {
    fn call(self) -> &'static str {
        match self {
            Self::AllReduce => "ncclAllReduce",
            Self::Reduce { .. } => "ncclReduce",
            Self::Broadcast { .. } => "ncclBroadcast",
        }
    }
}

/// The numbers that NCCL adds.
#[derive(Clone, Copy, Debug)]
pub(in crate::collective::nccl) enum Number {
    I64,
    F32,
}

impl Number {
    pub(in crate::collective::nccl) fn bytes(self) -> usize {
        match self {
            Self::I64 => size_of::<i64>(),
            Self::F32 => size_of::<f32>(),
        }
    }

    fn nccl(self) -> c_int {
        match self {
            Self::I64 => ncclDataType_t::ncclInt64 as c_int,
            Self::F32 => ncclDataType_t::ncclFloat32 as c_int,
        }
    }
}

impl Communicator {
    /// Begins to join a group: done when [`Communicator::progress`] says so. The context of the GPU must be current.
    pub(in crate::collective::nccl) fn begin(
        nccl: &'static Nccl,
        id: [u8; ID],
        rank: usize,
        world: usize,
    ) -> Result<Self, CallError> {
        /// Leaves a setting as the library has it (NCCL_CONFIG_UNDEF_INT of nccl.h).
        const UNSET: c_int = c_int::MIN;
        // NCCL_CONFIG_INITIALIZER of nccl.h 2.28.9, but not blocking. Older libraries read as much as they know.
        let mut config = ncclConfig_t {
            size: size_of::<ncclConfig_t>(),
            magic: 0xcafe_beef,
            version: 22809,
            blocking: 0,
            cgaClusterSize: UNSET,
            minCTAs: UNSET,
            maxCTAs: UNSET,
            netName: std::ptr::null(),
            splitShare: UNSET,
            trafficClass: UNSET,
            commName: std::ptr::null(),
            collnetEnable: UNSET,
            CTAPolicy: UNSET,
            shrinkShare: UNSET,
            nvlsCTAs: UNSET,
            nChannelsPerNetPeer: UNSET,
            nvlinkCentricSched: UNSET,
        };
        let id = ncclUniqueId { internal: id.map(|byte| byte as c_char) };
        let mut raw = null_mut();
        // SAFETY: all pointers are of this frame, and NCCL copies what it needs before it returns.
        let result = unsafe { (nccl.init)(&mut raw, world as c_int, id, rank as c_int, &mut config) };
        nccl.check("ncclCommInitRankConfig", result).map(|_| Self { raw, nccl })
    }

    /// Whether NCCL has finished what it was asked for last; an error of any time since.
    pub(in crate::collective::nccl) fn progress(&self) -> Result<Progress, CallError> {
        let mut state = 0;
        // SAFETY: the communicator lives, and an integer is written.
        let result = unsafe { (self.nccl.async_error)(self.raw, &mut state) };
        self.nccl.check("ncclCommGetAsyncError", result)?;
        self.nccl.check("NCCL", state)
    }

    /// Gives the stream an operation on `count` numbers, from `send` to `receive`, which may be the same memory. What it works in has to last until
    /// the stream is done, or the communicator has ended.
    pub(in crate::collective::nccl) fn enqueue(
        &mut self,
        operation: Operation,
        (send, receive): (DeviceMemory<'_>, DeviceMemory<'_>),
        count: usize,
        number: Number,
        stream: &GpuStream,
    ) -> Result<Progress, CallError> {
        send.holds(count * number.bytes())?;
        receive.holds(count * number.bytes())?;
        let (from, kind) = (send.address() as *const c_void, number.nccl());
        let to = receive.address() as *mut c_void;
        let (raw, sum, stream) = (self.raw, ncclRedOp_t::ncclSum as c_int, stream.raw());
        // SAFETY: the memory holds so many numbers, and lives until the stream is done: a group keeps it until then, or until the
        // communicator has ended.
        let result = unsafe {
            match operation {
                Operation::AllReduce => (self.nccl.all_reduce)(from, to, count, kind, sum, raw, stream),
                Operation::Reduce { root } => {
                    (self.nccl.reduce)(from, to, count, kind, sum, root as c_int, raw, stream)
                }
                Operation::Broadcast { root } => {
                    (self.nccl.broadcast)(from, to, count, kind, root as c_int, raw, stream)
                }
            }
        };
        self.nccl.check(operation.call(), result)
    }

    /// Gives the stream the exchange of `count` integers of each rank: those of rank r lie at r * count, this rank's before, all after it.
    pub(in crate::collective::nccl) fn gather(
        &mut self,
        (rank, world): (usize, usize),
        memory: DeviceMemory<'_>,
        count: usize,
        stream: &GpuStream,
    ) -> Result<Progress, CallError> {
        let part = count * Number::I64.bytes();
        memory.holds(world * part)?;
        let own = (memory.address() + (rank * part) as u64) as *const c_void;
        let (all, kind) = (memory.address() as *mut c_void, Number::I64.nccl());
        // SAFETY: as in `enqueue`.
        let result = unsafe { (self.nccl.all_gather)(own, all, count, kind, self.raw, stream.raw()) };
        self.nccl.check("ncclAllGather", result)
    }

    /// Stops what runs. Nothing is done where the library cannot. May block.
    pub(in crate::collective::nccl) fn revoke(&mut self) -> Result<Progress, CallError> {
        let Some(revoke) = self.nccl.revoke else { return Ok(Progress::Done) };
        // SAFETY: the communicator lives; 0 is the default of the flags.
        let result = unsafe { revoke(self.raw, 0) };
        self.nccl.check("ncclCommRevoke", result)
    }

    /// Stops what runs, and frees the communicator. May block.
    pub(in crate::collective::nccl) fn abort(self) -> Result<Progress, CallError> {
        // SAFETY: the communicator lives, and is not used again.
        let result = unsafe { (self.nccl.abort)(self.raw) };
        self.nccl.check("ncclCommAbort", result)
    }

    /// Begins to finish what runs in good order: done when [`Communicator::progress`] says so.
    pub(in crate::collective::nccl) fn finalize(&mut self) -> Result<Progress, CallError> {
        // SAFETY: the communicator lives.
        let result = unsafe { (self.nccl.finalize)(self.raw) };
        self.nccl.check("ncclCommFinalize", result)
    }

    /// Frees a communicator that is finalized. May block.
    pub(in crate::collective::nccl) fn destroy(self) -> Result<Progress, CallError> {
        // SAFETY: the communicator lives, and is not used again.
        let result = unsafe { (self.nccl.destroy)(self.raw) };
        self.nccl.check("ncclCommDestroy", result)
    }
}
