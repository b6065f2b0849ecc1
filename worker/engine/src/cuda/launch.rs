//! How kernels are launched: blocks, and threads of a block.

/// Threads of a block, where a kernel does not need another number.
const THREADS: u32 = 256;

/// The most blocks of a grid that goes over rows: each takes several of them.
const ROW_BLOCKS: usize = 256;

/// The most blocks of a grid whose threads each take several values.
const STRIDED_BLOCKS: usize = 1024;

/// The same of a grid whose threads each take parts of rows: about four times those that a GPU of 132 multiprocessors runs at a time.
const PART_BLOCKS: usize = 4096;

/// Blocks of a launch, threads of a block, and the bytes of shared memory that a block gets besides what its kernel declares.
#[derive(Clone, Copy, Debug)]
pub(super) struct Launch {
    pub(super) grid: [u32; 3],
    pub(super) block: [u32; 3],
    pub(super) shared: u32,
}

impl Launch {
    /// A thread for each of `count` values.
    pub(super) fn each(count: usize) -> Self {
        Self::blocks(count.div_ceil(THREADS as usize))
    }

    /// So many blocks of 256 threads.
    pub(super) fn blocks(count: usize) -> Self {
        Self { grid: [count.max(1) as u32, 1, 1], block: [THREADS, 1, 1], shared: 0 }
    }

    /// A grid whose x goes over columns, 256 to a block, and whose y goes over rows, each block taking several where there are many.
    pub(super) fn matrix(rows: usize, columns: usize) -> Self {
        let across = columns.div_ceil(THREADS as usize).max(1) as u32;
        Self { grid: [across, rows.clamp(1, ROW_BLOCKS) as u32, 1], block: [THREADS, 1, 1], shared: 0 }
    }

    /// A thread for each of `count` values, or for every so many where there are more than 1024 blocks of them.
    pub(super) fn strided(count: usize) -> Self {
        Self::blocks(count.div_ceil(THREADS as usize).min(STRIDED_BLOCKS))
    }

    /// Blocks of 32 x 8 threads for what is computed number by number. A thread takes up to 8 neighbouring numbers of a row at a time, so a
    /// block takes 256 columns of 8 rows; where there are more of these than 4096, it takes several.
    pub(super) fn row_parts(rows: usize, width: usize) -> Self {
        let across = width.div_ceil(256).clamp(1, PART_BLOCKS);
        let down = rows.div_ceil(8).clamp(1, PART_BLOCKS / across);
        Self { grid: [across as u32, down as u32, 1], block: [32, 8, 1], shared: 0 }
    }

    /// 16 threads for each of `count` rows or heads, which sum over its numbers.
    pub(super) fn row_sums(count: usize) -> Self {
        Self::blocks(count.div_ceil(THREADS as usize / 16))
    }

    /// A warp for each of `count` rows, so many of them to a block of threads.
    pub(super) fn rows(count: usize, of_block: usize) -> Self {
        let grid = [count.div_ceil(of_block).max(1) as u32, 1, 1];
        Self { grid, block: [32 * of_block as u32, 1, 1], shared: 0 }
    }

    /// The same with one row of blocks for each of `parts`.
    pub(super) fn parts(columns: usize, parts: usize) -> Self {
        let across = columns.div_ceil(THREADS as usize).max(1) as u32;
        Self { grid: [across, parts.max(1) as u32, 1], block: [THREADS, 1, 1], shared: 0 }
    }

    /// Blocks of 32 x 8 threads, each with a tile of 32 columns and `height` rows.
    pub(super) fn tiles(rows: usize, columns: usize, height: usize) -> Self {
        let grid = [columns.div_ceil(32).max(1) as u32, rows.div_ceil(height).max(1) as u32, 1];
        Self { grid, block: [32, 8, 1], shared: 0 }
    }

    /// Blocks of 32 warps, which take a tile's parts of 256 columns of a row in turn: `most` of them, or fewer where there is less to do.
    pub(super) fn in_turn(rows: usize, columns: usize, most: usize) -> Self {
        let blocks = (rows * (columns / 256 + 1)).div_ceil(32).clamp(1, most.max(1));
        Self { grid: [blocks as u32, 1, 1], block: [1024, 1, 1], shared: 0 }
    }

    /// 256 threads for 128 queries of each head of so many features, with a tile of keys and one of values in shared memory, as
    /// `attention.cu` lays them out.
    pub(super) fn attention(rows: usize, heads: usize, head: usize) -> Self {
        let grid = [rows.div_ceil(128).max(1) as u32, heads as u32, 1];
        let words = 64 * (head / 2 + 4) + 32 * (head + 8);
        Self { grid, block: [THREADS, 1, 1], shared: (4 * words) as u32 }
    }

    /// The same with so many bytes of shared memory.
    pub(super) fn with_shared(self, bytes: usize) -> Self {
        Self { shared: bytes as u32, ..self }
    }
}
