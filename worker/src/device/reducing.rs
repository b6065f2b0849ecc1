//! Sums a site's Gram over a group: packed and in chunks. The ranks' own sums do not change.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use obsdiff_engine::Error;
use obsdiff_engine::gram::{Gram, GramSums, GramSumsMut, SUM_LIMIT};
use obsdiff_proto::{Accumulate, SiteId, lock};

use super::{Reducer, WorkError};
use crate::collective::{Buffer, Collective, CollectiveError, Result as GroupResult, Values};

/// Sums sent at once: 8 MiB of integers. It bounds what a rank holds besides its own Gram and the one it receives.
pub const CHUNK: usize = 1 << 20;

/// Binary digits of the lower limb of a diagonal's sum: over 2^31 ranks fit.
const LIMB: u32 = 31;

/// Grams that arrived and are not dropped yet.
pub(super) type ReceivedGrams = Arc<Mutex<BTreeMap<SiteId, Arc<Gram>>>>;

/// Those of each group of prompts that are kept besides.
pub(super) type ReceivedGroups = Arc<Mutex<BTreeMap<SiteId, Vec<Arc<Gram>>>>>;

/// Sums the Grams of an open package.
pub(super) struct GramReducer {
    /// The own sums of each group of prompts, and what of them arrived.
    pub(super) of_groups: Vec<BTreeMap<SiteId, Arc<Gram>>>,
    pub(super) received_groups: ReceivedGroups,
    /// This rank's own sums; empty where they do not count.
    pub(super) own: BTreeMap<SiteId, Arc<Gram>>,
    pub(super) widths: BTreeMap<SiteId, usize>,
    pub(super) accumulate: Accumulate,
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
        let sum = self.sum(site, self.own.get(&site), roots, group)?;
        let mut of_groups = Vec::with_capacity(self.of_groups.len());
        for grams in &self.of_groups {
            of_groups.extend(self.sum(site, grams.get(&site), roots, group)?);
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
    /// The sum of a site's Grams over the ranks, at those of `roots`.
    fn sum(
        &self,
        site: SiteId,
        own: Option<&Arc<Gram>>,
        roots: &[usize],
        group: &mut dyn Collective,
    ) -> Result<Option<Arc<Gram>>, WorkError> {
        // In a group of one its own sum is the sum.
        if let (1, Some(own)) = (group.world(), own) {
            return Ok(Some(own.clone()));
        }
        let width = self.widths.get(&site);
        let width =
            *width.ok_or_else(|| Error::Argument(format!("site {site} is not gathered by this plan")))?;
        let own = own.map(|gram| &**gram);
        let sum = reduce(GroupSite { id: site, width, accumulate: self.accumulate, own }, roots, group)?;
        Ok(sum.map(Arc::new))
    }
}

/// A site whose Gram a group sums, as one rank sees it.
#[derive(Clone, Copy, Debug)]
struct GroupSite<'a> {
    id: SiteId,
    width: usize,
    accumulate: Accumulate,
    /// The rank's own Gram; absent where it has nothing to add.
    own: Option<&'a Gram>,
}

/// Sums a site's Gram over the ranks. Those of `roots` receive it: by a reduction where there is one root, else by an all-reduce.
/// n (n + 1) / 2 sums are sent in chunks, after a header of 2 n + 3 numbers.
///
/// # Errors
/// [`WorkError::Overflow`] at every rank alike when the diagonal leaves its range; [`WorkError::Group`].
fn reduce(
    site: GroupSite<'_>,
    roots: &[usize],
    group: &mut dyn Collective,
) -> Result<Option<Gram>, WorkError> {
    let header = Header::exchange(&site, group)?;
    if header.overflows() {
        return Err(WorkError::Overflow { site: site.id, exponent: header.exponent });
    }
    let mut received =
        roots.contains(&group.rank()).then(|| Gram::new(site.width, site.accumulate, header.exponent));
    let sums = received.as_mut().map(|gram| {
        let (sums, mass) = gram.parts_mut();
        *mass = header.mass;
        sums
    });
    let entries = site.width * (site.width + 1) / 2;
    match site.accumulate {
        Accumulate::Exact => send::<i64>(site.own, sums, entries, roots, group)?,
        Accumulate::F32 => send::<f32>(site.own, sums, entries, roots, group)?,
    }
    Ok(received)
}

/// Sums over all ranks that are exchanged before a site's Gram is sent.
struct Header {
    exponent: i32,
    mass: i64,
    /// The diagonal of the sum in two limbs, which no sum over ranks overflows; empty for f32 sums.
    low: Vec<i64>,
    high: Vec<i64>,
}

impl Header {
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
            let diagonal = gram.diagonal_units().unwrap_or_default();
            for (j, value) in diagonal.into_iter().enumerate() {
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

/// Numbers that a collective adds.
trait CollectiveNumber: Copy + Default + Sized {
    fn values(values: &[Self]) -> Values<'_>;
    fn buffer(values: &mut [Self]) -> Buffer<'_>;
    /// The sums of a Gram; none where they are numbers of the other kind.
    fn sums(sums: &GramSums) -> Option<&[Self]>;
    /// The same for sums that are written.
    fn sums_mut(sums: GramSumsMut<'_>) -> Option<&mut [Self]>;
}

impl CollectiveNumber for i64 {
    fn values(values: &[Self]) -> Values<'_> {
        Values::I64(values)
    }
    fn buffer(values: &mut [Self]) -> Buffer<'_> {
        Buffer::I64(values)
    }
    fn sums(sums: &GramSums) -> Option<&[Self]> {
        if let GramSums::Exact(sums) = sums { Some(sums) } else { None }
    }
    fn sums_mut(sums: GramSumsMut<'_>) -> Option<&mut [Self]> {
        if let GramSumsMut::Exact(sums) = sums { Some(sums) } else { None }
    }
}

impl CollectiveNumber for f32 {
    fn values(values: &[Self]) -> Values<'_> {
        Values::F32(values)
    }
    fn buffer(values: &mut [Self]) -> Buffer<'_> {
        Buffer::F32(values)
    }
    fn sums(sums: &GramSums) -> Option<&[Self]> {
        if let GramSums::F32(sums) = sums { Some(sums) } else { None }
    }
    fn sums_mut(sums: GramSumsMut<'_>) -> Option<&mut [Self]> {
        if let GramSumsMut::F32(sums) = sums { Some(sums) } else { None }
    }
}

/// Sums `entries` numbers over the ranks in chunks. A rank without a Gram of its own sends zeros; a rank of `roots` receives the sums in
/// `into`.
fn send<T: CollectiveNumber>(
    own: Option<&Gram>,
    into: Option<GramSumsMut<'_>>,
    entries: usize,
    roots: &[usize],
    group: &mut dyn Collective,
) -> GroupResult<()> {
    let own = own.and_then(|gram| T::sums(gram.sums()));
    let mut into = into.and_then(T::sums_mut);
    let zeros = vec![T::default(); if own.is_none() { CHUNK.min(entries) } else { 0 }];
    let unwanted = roots.len() > 1 && into.is_none();
    let mut scratch = vec![T::default(); if unwanted { CHUNK.min(entries) } else { 0 }];
    for start in (0..entries).step_by(CHUNK) {
        let end = entries.min(start + CHUNK);
        let send = T::values(match own {
            Some(own) => &own[start..end],
            None => &zeros[..end - start],
        });
        let receive = into.as_mut().map(|into| T::buffer(&mut into[start..end]));
        match (roots, receive) {
            ([root], receive) => group.reduce(*root, send, receive)?,
            (_, Some(receive)) => group.all_reduce(send, receive)?,
            (_, None) => group.all_reduce(send, T::buffer(&mut scratch[..end - start]))?,
        }
    }
    Ok(())
}
