//! What went of each block, as bars.

use console::measure_text_width;
use obsdiff_engine::export::PruningRecord;

use super::weights;
use crate::text::{Table, percent};

/// Marks of the longest bar.
const BAR: usize = 40;
/// The fewest marks of the longest bar that still show something.
const LEAST_BAR: usize = 4;
/// Rows of a chart with a column for each block, where there is room.
const ROWS: usize = 3;
/// Marks of an eighth to eight eighths of a character: bars to the right, and columns upwards.
const RIGHT: [char; 8] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉', '█'];
const UP: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// What went of one block.
struct Block<'a> {
    /// The list of blocks that it is in, and its name.
    list: &'a str,
    name: &'a str,
    /// Weights that went, and all that its pruned linears had.
    gone: u64,
    all: u64,
    /// Heads and neurons that stay, of how many.
    heads: [usize; 2],
    neurons: [usize; 2],
}

impl Block<'_> {
    fn share(&self) -> f64 {
        if self.all == 0 { 0.0 } else { self.gone as f64 / self.all as f64 }
    }
}

/// The block that a linear is in, by the name of its module: a list of blocks and a place in it.
fn block_of(module: &str) -> [&str; 2] {
    let mut dots = module.match_indices('.').map(|(at, _)| at);
    let list = dots.next().map_or(module, |end| &module[..end]);
    [list, dots.next().map_or(module, |end| &module[..end])]
}

fn blocks(record: &PruningRecord) -> Vec<Block<'_>> {
    let mut blocks: Vec<Block<'_>> = Vec::new();
    for linear in &record.linears {
        let [list, name] = block_of(&linear.name);
        let at = blocks.iter().position(|block| block.name == name).unwrap_or_else(|| {
            blocks.push(Block { list, name, gone: 0, all: 0, heads: [0; 2], neurons: [0; 2] });
            blocks.len() - 1
        });
        blocks[at].gone += linear.zeros;
        blocks[at].all += weights(linear);
    }
    for structure in &record.structures {
        let [_, name] = block_of(&structure.name);
        if let Some(block) = blocks.iter_mut().find(|block| block.name == name) {
            let parts = if structure.heads { &mut block.heads } else { &mut block.neurons };
            parts[0] += structure.kept;
            parts[1] += structure.of;
        }
    }
    blocks
}

/// A bar for each block, in at most `room` lines of so many columns: to the right, one below the other, where they fit, else upwards, side
/// by side.
pub(super) fn lines(record: &PruningRecord, room: usize, columns: usize) -> Vec<String> {
    let blocks = blocks(record);
    let structured = !record.structures.is_empty();
    if blocks.is_empty() {
        Vec::new()
    } else if blocks.len() < room {
        let table = if structured { kept_parts(&blocks, columns) } else { zeros(&blocks, columns) };
        table.to_string().lines().map(str::to_owned).collect()
    } else {
        // Beside a title and names.
        chart(&blocks, structured, room.saturating_sub(2).clamp(1, ROWS), columns)
    }
}

fn zeros(blocks: &[Block<'_>], columns: usize) -> Table {
    let cells = |block: &Block<'_>| vec![block.name.to_owned(), percent(block.gone, block.all)];
    with_bars(["block", "zeros"], "", blocks, cells, BAR, columns)
}

fn kept_parts(blocks: &[Block<'_>], columns: usize) -> Table {
    let kept = |[kept, of]: [usize; 2]| if of == 0 { String::new() } else { format!("{kept} of {of}") };
    let cells = |block: &Block<'_>| vec![block.name.to_owned(), kept(block.heads), kept(block.neurons)];
    // Half of the bar, since there are more columns.
    with_bars(["block", "heads kept", "neurons kept"], "went", blocks, cells, BAR / 2, columns)
}

/// A row for each block: its `cells`, and a bar of at most so many `marks`, or of those that the other columns leave of the whole width.
fn with_bars<const N: usize>(
    header: [&str; N],
    bars: &str,
    blocks: &[Block<'_>],
    cells: impl Fn(&Block<'_>) -> Vec<String>,
    marks: usize,
    columns: usize,
) -> Table {
    let rows: Vec<Vec<String>> = blocks.iter().map(cells).collect();
    let widest = |(column, name): (usize, &&str)| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(String::as_str);
        cells.chain([*name]).map(measure_text_width).max().unwrap_or(0)
    };
    // Each is two columns from the next.
    let taken: usize = header.iter().enumerate().map(widest).map(|width| width + 2).sum();
    let marks = marks.min(columns.saturating_sub(taken));
    if marks < LEAST_BAR {
        let mut table = Table::plain(header);
        rows.into_iter().for_each(|row| table.row(row));
        return table;
    }
    let mut table = Table::plain(header.into_iter().chain([bars])).left_from(N);
    for (block, row) in blocks.iter().zip(rows) {
        table.row(row.into_iter().chain([bar(block.share(), marks)]));
    }
    table
}

/// A bar for a share of 1, of so many marks, to eighths of a character.
fn bar(share: f64, marks: usize) -> String {
    let eighths = (share.clamp(0.0, 1.0) * (8 * marks) as f64).round() as usize;
    let mut bar = "█".repeat(eighths / 8);
    bar.extend((!eighths.is_multiple_of(8)).then(|| RIGHT[eighths % 8 - 1]));
    bar
}

/// A column for each block, as wide as all of them fit, of so many rows. The highest reaches the top.
fn chart(blocks: &[Block<'_>], structured: bool, rows: usize, columns: usize) -> Vec<String> {
    let shares = || blocks.iter().map(Block::share);
    let (least, most) = (shares().fold(f64::INFINITY, f64::min), shares().fold(0.0, f64::max));
    let mut lists: Vec<Vec<&Block<'_>>> = Vec::new();
    for block in blocks {
        match lists.last_mut().filter(|list| list[0].list == block.list) {
            Some(list) => list.push(block),
            None => lists.push(vec![block]),
        }
    }
    let width = (columns.saturating_sub(lists.len()) / blocks.len()).clamp(1, 4);
    let what = if structured { "weights gone" } else { "zeros" };
    let mut lines =
        vec![format!("{what} of each block, {:.0}% to {:.0}% (the highest)", 100.0 * least, 100.0 * most)];
    for row in (0..rows).rev() {
        let column = |block: &&Block<'_>| {
            let height = if most == 0.0 { 0.0 } else { block.share() / most };
            let eighths = ((height * (8 * rows) as f64).round() as usize).saturating_sub(8 * row).min(8);
            let mark = if eighths == 0 { ' ' } else { UP[eighths - 1] };
            // A gap between columns that are wide enough to leave one.
            let marks = if width > 1 { width - 1 } else { 1 };
            format!("{:<width$}", mark.to_string().repeat(marks))
        };
        let line: Vec<String> = lists.iter().map(|list| list.iter().map(column).collect()).collect();
        lines.push(line.join(" ").trim_end().to_owned());
    }
    let names = lists.iter().map(|list| match &**list {
        [first, .., last] => {
            let number = last.name.rsplit('.').next().unwrap_or(last.name);
            format!("{} to {number}", first.name)
        }
        _ => list[0].name.to_owned(),
    });
    lines.push(names.collect::<Vec<_>>().join(", "));
    lines
}
