//! How tests hold CUDA kernels to this crate's own functions without a GPU: a header, `shim.h`, under which g++ compiles them for the
//! processor.

mod tests;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use obsdiff_tests::hash;

use crate::export::output_of;

/// Seeds of the orders in which a launch's threads and blocks run: ascending, descending, and two random ones.
pub(crate) const SEEDS: [u32; 4] = [0, 1, 2, 3];

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cuda");

/// How g++ compiles kernels: products and sums are rounded one by one, as nvcc does by `--fmad=false`.
const FLAGS: [&str; 7] =
    ["-std=c++17", "-g", "-ffp-contract=off", "-pthread", "-Wall", "-Wextra", "-Wno-unknown-pragmas"];

/// Fibers, one at a time. What some systems fortify by default refuses jumps between their stacks. The program ends, as a GPU does, where
/// numbers, or several at once, are read or written at an address that is no multiple of their size.
const ONE_BY_ONE: [&str; 6] = [
    "-O2",
    "-U_FORTIFY_SOURCE",
    "-fsanitize=alignment",
    "-fno-sanitize-recover=alignment",
    "-Wno-clobbered",
    "-Werror",
];

/// Threads of the system, watched by ThreadSanitizer.
const SANITIZED: [&str; 3] = ["-O1", "-DSHIM_REAL_THREADS", "-fsanitize=thread"];

/// A buffer of a [`Device`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buffer(usize);

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Argument {
    Buffer(Buffer),
    U32(u32),
    F32(f32),
    F64(f64),
    /// A null pointer.
    None,
}

impl Argument {
    fn encoded(self) -> (u8, u64) {
        match self {
            Self::Buffer(Buffer(number)) => (0, number as u64),
            Self::U32(x) => (1, u64::from(x)),
            Self::F32(x) => (3, u64::from(x.to_bits())),
            Self::F64(x) => (4, x.to_bits()),
            Self::None => (5, 0),
        }
    }
}

macro_rules! argument {
    ($($from:ty => $variant:ident),*) => {
        $(impl From<$from> for Argument {
            fn from(x: $from) -> Self {
                Self::$variant(x)
            }
        })*
    };
}
argument!(Buffer => Buffer, u32 => U32, f32 => F32, f64 => F64);

impl From<usize> for Argument {
    fn from(x: usize) -> Self {
        Self::U32(u32::try_from(x).unwrap())
    }
}

/// The arguments of a kernel, in order: buffers and numbers.
macro_rules! arguments {
    ($($argument:expr),* $(,)?) => {
        &[$($crate::cuda::shim::Argument::from($argument)),*]
    };
}
pub(crate) use arguments;

/// Blocks of a launch, threads of a block, and the bytes of shared memory that a block gets besides what its kernel declares.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared: u32,
}

impl Shape {
    /// Blocks and their threads in a row.
    pub(crate) fn line(blocks: usize, threads: u32) -> Self {
        Self { grid: [blocks as u32, 1, 1], block: [threads, 1, 1], shared: 0 }
    }

    /// Blocks and their threads in a plane: (x, y) each.
    pub(crate) fn plane(blocks: [usize; 2], threads: [u32; 2]) -> Self {
        Self { grid: [blocks[0] as u32, blocks[1] as u32, 1], block: [threads[0], threads[1], 1], shared: 0 }
    }

    /// The same with so many bytes of shared memory.
    pub(crate) fn with_shared(self, bytes: usize) -> Self {
        Self { shared: bytes as u32, ..self }
    }
}

/// Buffers and launches, to be run by a program of g++'s.
#[derive(Clone, Debug, Default)]
pub(crate) struct Device {
    buffers: Vec<Vec<u8>>,
    launches: Vec<u8>,
    count: u32,
}

impl Device {
    /// A buffer that holds these values at first.
    pub(crate) fn buffer<T: bytemuck::NoUninit>(&mut self, values: &[T]) -> Buffer {
        self.buffers.push(bytemuck::cast_slice(values).to_vec());
        Buffer(self.buffers.len() - 1)
    }

    /// Launches a kernel after those before it.
    pub(crate) fn launch(&mut self, kernel: &str, shape: Shape, arguments: &[Argument]) {
        let words = [kernel.len() as u32];
        self.launches.extend_from_slice(bytemuck::cast_slice(&words));
        self.launches.extend_from_slice(kernel.as_bytes());
        let numbers = shape.grid.into_iter().chain(shape.block).chain([shape.shared, arguments.len() as u32]);
        numbers.for_each(|number| self.launches.extend_from_slice(&number.to_le_bytes()));
        for argument in arguments {
            let (kind, value) = argument.encoded();
            self.launches.push(kind);
            self.launches.extend_from_slice(&value.to_le_bytes());
        }
        self.count += 1;
    }

    /// Runs all launches with threads and blocks in the order of a seed.
    pub(crate) fn run(&self, seed: u32) -> Memory {
        let (output, memory) = self.attempt(program(), seed);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}", output.status);
        memory.unwrap()
    }

    /// Runs all launches in the order of each of the [`SEEDS`]. All must give the same bytes.
    pub(crate) fn run_in_any_order(&self) -> Memory {
        let memory = self.run(SEEDS[0]);
        for seed in &SEEDS[1..] {
            assert!(memory.0 == self.run(*seed).0, "the result depends on the order of threads, seed {seed}");
        }
        memory
    }

    /// Runs all launches by threads of the system. ThreadSanitizer must find no race.
    pub(crate) fn run_sanitized(&self) -> Memory {
        static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
        let (output, memory) = self.attempt(PROGRAM.get_or_init(|| compiled(&SANITIZED)), 0);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{}: {said}", output.status);
        memory.unwrap()
    }

    /// What the program said, and what it left in its buffers, if it did its work.
    fn attempt(&self, program: &Path, seed: u32) -> (Output, Option<Memory>) {
        let folder = tempfile::tempdir().unwrap();
        let [input, output] = ["input", "output"].map(|name| folder.path().join(name));
        let mut bytes = (self.buffers.len() as u32).to_le_bytes().to_vec();
        for buffer in &self.buffers {
            bytes.extend_from_slice(&(buffer.len() as u64).to_le_bytes());
            bytes.extend_from_slice(buffer);
        }
        bytes.extend_from_slice(&self.count.to_le_bytes());
        bytes.extend_from_slice(&self.launches);
        fs::write(&input, bytes).unwrap();
        let ran = output_of(Command::new(program).arg(&input).arg(&output).arg(seed.to_string())).unwrap();
        let memory = fs::read(&output).ok().filter(|_| ran.status.success()).map(|bytes| {
            let mut rest = bytes.as_slice();
            let mut take = |buffer: &Vec<u8>| rest.split_off(..buffer.len()).unwrap().to_vec();
            Memory(self.buffers.iter().map(&mut take).collect())
        });
        (ran, memory)
    }
}

/// What launches left in the buffers.
#[derive(Debug)]
pub(crate) struct Memory(Vec<Vec<u8>>);

impl Memory {
    /// The values of a buffer.
    pub(crate) fn values<T: bytemuck::AnyBitPattern>(&self, buffer: Buffer) -> Vec<T> {
        self.0[buffer.0].chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
    }
}

fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| compiled(&ONE_BY_ONE))
}

/// The program of these sources and flags, beside the test's own. It is compiled once.
fn compiled(flags: &[&str]) -> PathBuf {
    let flags: Vec<&str> = FLAGS.iter().chain(flags).copied().collect();
    let mut text = flags.join(" ");
    for folder in ["kernels", "shim"] {
        let files = fs::read_dir(Path::new(FOLDER).join(folder)).unwrap();
        let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
        files.sort();
        files.iter().for_each(|file| text += &fs::read_to_string(file).unwrap());
    }
    let test = std::env::current_exe().unwrap();
    let program = test.with_file_name(format!("cuda-kernels-{:016x}", hash(&text)));
    if !program.exists() {
        // Others may compile it at the same time: what is there is whole.
        let folder = tempfile::tempdir_in(test.parent().unwrap()).unwrap();
        let new = folder.path().join("program");
        let source = Path::new(FOLDER).join("shim/program.cpp");
        let compiler = output_of(Command::new("g++").args(flags).arg("-o").arg(&new).arg(source));
        let output =
            compiler.unwrap_or_else(|e| panic!("the tests of CUDA kernels need g++ (Debian's g++): {e}"));
        assert!(output.status.success(), "g++: {}", String::from_utf8_lossy(&output.stderr));
        fs::rename(new, &program).unwrap();
    }
    program
}
