//! Sums a site's Gram over a group: packed and piece by piece, in the memory of the device where the group reaches it. The ranks' own sums do
//! not change.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use obsdiff_engine::Error;
use obsdiff_engine::device::ComputeDevice;
use obsdiff_engine::gram::{Gram, GramError, PlacedGram, SUM_LIMIT};
use obsdiff_proto::{Accumulate, SiteId, lock};

use super::pieces::{Incoming, Outgoing, ZeroPiece};
use super::{Reducer, WorkError};
use crate::collective::{Buffer, Collective, CollectiveError, Values};

/// Binary digits of the lower limb of a diagonal's sum: over 2^31 ranks fit.
const LIMB: u32 = 31;

/// Grams that arrived and are not dropped yet.
pub(super) type ReceivedGrams = Arc<Mutex<BTreeMap<SiteId, PlacedGram>>>;

/// Those of each group of prompts that are kept besides.
pub(super) type ReceivedGroups = Arc<Mutex<BTreeMap<SiteId, Vec<Arc<Gram>>>>>;

/// Sums the Grams of an open package.
pub(super) struct GramReducer {
    /// The own sums of each group of prompts, and what of them arrived.
    pub(super) of_groups: Vec<BTreeMap<SiteId, Arc<Gram>>>,
    pub(super) received_groups: ReceivedGroups,
    /// This rank's own sums; empty where they do not count.
    pub(super) own: BTreeMap<SiteId, PlacedGram>,
    pub(super) widths: BTreeMap<SiteId, usize>,
    pub(super) accumulate: Accumulate,
    /// The device that sums and solves.
    pub(super) device: ComputeDevice,
    /// What it needs to solve a site; none where it does not solve.
    pub(super) solving: Option<u64>,
    pub(super) received: ReceivedGrams,
}

/// Has no sums, because the device did not give them.
pub(super) struct FailedReducer(pub(super) Option<Error>);

impl Reducer for FailedReducer {
    fn reduce(&mut self, _: SiteId, _: &[usize], _: &mut dyn Collective) -> Result<bool, WorkError> {
        // The first error ends the group.
        Err(WorkError::from(self.0.take().unwrap_or(Error::Interrupted)))
    }
}

impl Reducer for GramReducer {
    fn reduce(
        &mut self,
        site: SiteId,
        roots: &[usize],
        group: &mut dyn Collective,
    ) -> Result<bool, WorkError> {
        let _span = tracing::info_span!("reduce").entered();
        let sum = self.sum(site, self.own.get(&site), self.solving, roots, group)?;
        let mut of_groups = Vec::with_capacity(self.of_groups.len());
        for grams in &self.of_groups {
            let own = grams.get(&site).cloned().map(PlacedGram::from);
            if let Some(sum) = self.sum(site, own.as_ref(), None, roots, group)? {
                of_groups.push(sum.to_host().map_err(|error| unreadable(site, &error))?);
            }
        }
        let Some(sum) = sum else { return Ok(false) };
        lock(&self.received).insert(site, sum);
        if !of_groups.is_empty() {
            lock(&self.received_groups).insert(site, of_groups);
        }
        Ok(true)
    }
}

impl GramReducer {
    /// The sum of a site's Grams over the ranks, at those of `roots`: in the memory of a device that solves with so many bytes more, else in
    /// the host's.
    fn sum(
        &self,
        site: SiteId,
        own: Option<&PlacedGram>,
        solving: Option<u64>,
        roots: &[usize],
        group: &mut dyn Collective,
    ) -> Result<Option<PlacedGram>, WorkError> {
        // In a group of one its own sum is the sum.
        if let (1, Some(own)) = (group.world(), own) {
            return Ok(Some(own.clone()));
        }
        let width = self.widths.get(&site);
        let width =
            *width.ok_or_else(|| Error::Argument(format!("site {site} is not gathered by this plan")))?;
        let device =
            (self.device.gpu().is_some() && self.device.gpu() == group.gpu()).then_some(&self.device);
        let copied = match own {
            Some(own) if device.is_none() => {
                Some(own.to_host().map_err(|error| unreadable(site, &error))?.into())
            }
            _ => None,
        };
        let own = copied.as_ref().or(own);
        reduce(GroupSite { id: site, width, accumulate: self.accumulate, own, device, solving }, roots, group)
    }
}

fn unreadable(site: SiteId, error: &GramError) -> WorkError {
    Error::Argument(format!("the sums of site {site} cannot be used: {error}")).into()
}

/// A site whose Gram a group sums, as one rank sees it.
#[derive(Clone, Copy, Debug)]
struct GroupSite<'a> {
    id: SiteId,
    width: usize,
    accumulate: Accumulate,
    /// The rank's own Gram; absent where it has nothing to add.
    own: Option<&'a PlacedGram>,
    /// The device, where the group reaches its memory.
    device: Option<&'a ComputeDevice>,
    /// What it needs to solve the site; none where the host does.
    solving: Option<u64>,
}

/// Sums a site's Gram over the ranks. Those of `roots` receive it: by a reduction where there is one root, else by an all-reduce.
/// n (n + 1) / 2 sums are sent piece by piece, after a header of 2 n + 4 numbers.
///
/// # Errors
/// [`WorkError::Overflow`] at every rank when the diagonal leaves its range; [`WorkError::Group`].
fn reduce(
    site: GroupSite<'_>,
    roots: &[usize],
    group: &mut dyn Collective,
) -> Result<Option<PlacedGram>, WorkError> {
    let header = SiteTotals::exchange(&site, group)?;
    if header.overflows() {
        return Err(WorkError::Overflow { site: site.id, exponent: header.exponent });
    }
    if !roots.contains(&group.rank()) {
        send(&site, None, roots, group)?;
        return Ok(None);
    }
    let on_device = match (site.device, site.solving) {
        (Some(device), Some(solving)) => {
            let of_sum = (header.exponent, header.mass);
            let gram = device.gram_to_receive(site.width, site.accumulate, of_sum, solving);
            gram.map_err(|error| unreadable(site.id, &error))?
        }
        _ => None,
    };
    if let Some(gram) = on_device {
        send(&site, gram.numbers().map(Incoming::Device), roots, group)?;
        return Ok(Some(gram));
    }
    let mut gram = Gram::new(site.width, site.accumulate, header.exponent);
    *gram.parts_mut().1 = header.mass;
    send(&site, Some(Incoming::of(&mut gram)), roots, group)?;
    Ok(Some(gram.into()))
}

/// Sums the numbers of a Gram over the ranks, piece by piece. A rank without a Gram of its own sends zeros; a rank of `roots` receives the
/// sums in `into`.
fn send(
    site: &GroupSite<'_>,
    mut into: Option<Incoming<'_>>,
    roots: &[usize],
    group: &mut dyn Collective,
) -> Result<(), WorkError> {
    let (entries, piece) = (Gram::entries(site.width), group.piece());
    let zeros = |needed: bool| {
        let count = if needed { piece.min(entries) } else { 0 };
        let device = site.device.filter(|_| needed);
        ZeroPiece::new(count, site.accumulate, device).map_err(|error| unreadable(site.id, &error))
    };
    let nothing = zeros(site.own.is_none())?;
    let own = site.own.map_or_else(|| nothing.outgoing(), Outgoing::of);
    let mut unwanted = zeros(roots.len() > 1 && into.is_none())?;
    for start in (0..entries).step_by(piece) {
        let range = start..entries.min(start + piece);
        let from_start = 0..range.len();
        let sent = if site.own.is_some() { range.clone() } else { from_start.clone() };
        own.with(sent, |send| match (roots, &mut into) {
            ([root], Some(into)) => into.with(range, |receive| group.reduce(*root, send, Some(receive))),
            ([root], None) => group.reduce(*root, send, None),
            (_, Some(into)) => into.with(range, |receive| group.all_reduce(send, receive)),
            (_, None) => unwanted.incoming().with(from_start, |receive| group.all_reduce(send, receive)),
        })?;
    }
    Ok(())
}

/// Sums over all ranks that are exchanged before a site's Gram is sent.
struct SiteTotals {
    exponent: i32,
    mass: i64,
    /// The diagonal of the sum in two limbs, which no sum over ranks overflows; empty for f32 sums.
    low: Vec<i64>,
    high: Vec<i64>,
}

impl SiteTotals {
    /// Exchanges the headers of all ranks. Where their Grams have different exponents, every rank gets an error.
    fn exchange(site: &GroupSite<'_>, group: &mut dyn Collective) -> Result<Self, WorkError> {
        let width = match site.accumulate {
            Accumulate::Exact => site.width,
            Accumulate::F32 => 0,
        };
        let mut own = vec![0; 4 + 2 * width];
        if let Some(gram) = site.own {
            let exponent = i64::from(gram.exponent());
            own[..4].copy_from_slice(&[1, exponent, exponent * exponent, gram.mass_units()]);
            let diagonal = gram.diagonal_units().map_err(|error| unreadable(site.id, &error))?;
            for (j, value) in diagonal.unwrap_or_default().into_iter().enumerate() {
                own[4 + j] = value & ((1 << LIMB) - 1);
                own[4 + width + j] = value >> LIMB;
            }
        }
        let mut sum = vec![0; own.len()];
        group.all_reduce(Values::I64(&own), Buffer::I64(&mut sum))?;
        let [ranks, exponents, squares, mass] = [sum[0], sum[1], sum[2], sum[3]];
        // By Cauchy and Schwarz the two agree only where all exponents are the same.
        if ranks.saturating_mul(squares) != exponents.saturating_mul(exponents) {
            let problem = format!("ranks bring Grams of site {} with different exponents", site.id);
            return Err(CollectiveError::Transport(problem).into());
        }
        Ok(Self {
            exponent: i32::try_from(exponents / ranks.max(1)).unwrap_or(0),
            mass,
            low: sum[4..4 + width].to_vec(),
            high: sum[4 + width..].to_vec(),
        })
    }

    /// Whether an entry of the diagonal exceeds the limit. No other entry is larger.
    fn overflows(&self) -> bool {
        let whole = |(low, high): (&i64, &i64)| (i128::from(*high) << LIMB) + i128::from(*low);
        self.low.iter().zip(&self.high).map(whole).any(|sum| sum as f64 >= SUM_LIMIT)
    }
}

#[cfg(test)]
mod tests;
