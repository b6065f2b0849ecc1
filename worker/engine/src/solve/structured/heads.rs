//! Attention heads, which all streams of an attention lose together.

use super::super::SolveError;
use super::{Columns, Removal, Score, StructuredLayer};

/// k of reciprocal rank fusion, as the published code has it.
const FUSION: f64 = 60.0;

/// Removes `count` of the heads that lie at `columns` of each of the `streams`, one at a time from all of them: the lowest-scoring one
/// goes, the others are scored again. Ties go to the lower index.
///
/// A head scores the sum over streams of tr(W_D [H^-1_DD]^-1 W_D^T), each divided by its stream's output energy.
///
/// # Errors
/// When widths do not fit the heads, or a part of H^-1 is not positive definite.
pub fn heads<L: StructuredLayer>(
    streams: &mut [L],
    columns: &[Columns],
    count: usize,
    score: Score,
) -> Result<Vec<Removal>, SolveError> {
    let Some(heads) = columns.first().map(|columns| columns.count) else { return Ok(Vec::new()) };
    if let Some(odd) = columns.iter().find(|c| c.count != heads) {
        return Err(SolveError::Size { rows: heads, columns: odd.size, found: odd.count });
    }
    if streams.len() != columns.len() {
        return Err(SolveError::Size { rows: streams.len(), columns: heads, found: columns.len() });
    }
    streams.iter().zip(columns).try_for_each(|(stream, columns)| columns.check(stream))?;
    let mut left: Vec<usize> = (0..heads).collect();
    let mut steps = Vec::new();
    for _ in 0..count.min(left.len()) {
        let scores = match score {
            Score::Exact => exact(streams, columns, &left)?,
            Score::Published => published(streams, columns, &left)?,
        };
        let Some(at) = (0..left.len()).min_by(|a, b| scores[*a].total_cmp(&scores[*b])) else { break };
        let part = left.remove(at);
        let mut error = 0.0;
        for (stream, columns) in streams.iter_mut().zip(columns) {
            let brought = stream.remove(&columns.of(part).collect::<Vec<_>>())?;
            error += stream.relative(brought);
        }
        steps.push(Removal { part, error });
    }
    Ok(steps)
}

fn exact<L: StructuredLayer>(
    streams: &[L],
    columns: &[Columns],
    left: &[usize],
) -> Result<Vec<f64>, SolveError> {
    let mut scores = vec![0.0; left.len()];
    for (stream, columns) in streams.iter().zip(columns) {
        let errors = stream.removal_errors(&columns.ranges(left))?;
        scores.iter_mut().zip(errors).for_each(|(score, error)| *score += stream.relative(error));
    }
    Ok(scores)
}

/// Lower is fused rank: the negative of the sum over streams of 1 / (k + rank), rank 1 being the lowest score of the stream. Of equal
/// ones the first in the first stream's order goes, which is a little added to it.
fn published<L: StructuredLayer>(
    streams: &[L],
    columns: &[Columns],
    left: &[usize],
) -> Result<Vec<f64>, SolveError> {
    let mut fused = vec![0.0; left.len()];
    for (s, (stream, parts)) in streams.iter().zip(columns).enumerate() {
        let scores = stream.diagonal_scores(&parts.ranges(left))?;
        let mut order: Vec<usize> = (0..left.len()).collect();
        order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
        for (rank, at) in order.into_iter().enumerate() {
            let rank = rank as f64 + 1.0;
            fused[at] -= 1.0 / (FUSION + rank);
            fused[at] += if s == 0 { rank * 1e-12 } else { 0.0 };
        }
    }
    Ok(fused)
}
