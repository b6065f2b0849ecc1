//! Refuses rules that decide nothing, and targets that would prune nothing.

use obsdiff_proto::{
    Inventory, JobError, JobSpec, LinearTarget, Method, PartKind, Pattern, SparsitySpec, Structure, Target,
    Targets,
};

use super::{PlanError, structured};

/// Columns of a block, of whose weights the share that goes is counted: `BLOCK` of the engine's solvers.
const BLOCK: usize = 128;

/// Refuses a rule that decides for no linear.
pub(super) fn check_rules(
    spec: &SparsitySpec,
    inventory: &Inventory,
    targets: &Targets,
) -> Result<(), PlanError> {
    let all = inventory.linears.iter().map(|linear| linear.name.as_str());
    let deciding: Vec<&str> = match spec.pattern {
        Pattern::Structured => structured::leaders(inventory).map(|linear| linear.name.as_str()).collect(),
        _ => all.clone().collect(),
    };
    let example = || deciding.first().map(|name| (*name).to_owned()).unwrap_or_default();
    for (rule, described) in spec.rules.iter().enumerate() {
        let met: Vec<&str> = deciding.iter().copied().filter(|name| targets.matches(rule, name)).collect();
        let mut deciders: Vec<usize> = met.iter().filter_map(|name| targets.rule_of(name)).collect();
        if deciders.contains(&rule) {
            continue;
        }
        let glob = described.matches.clone();
        if let Some(first) = met.first() {
            deciders.sort_unstable();
            deciders.dedup();
            let before: Vec<_> = deciders.iter().map(|i| format!("sparsity.rules[{i}]")).collect();
            let (count, met, before) = (met.len(), (*first).to_owned(), before.join(" or "));
            return Err(PlanError::ShadowedRule { rule, glob, count, met, before });
        }
        let following: Vec<&str> = all.clone().filter(|name| targets.matches(rule, name)).collect();
        return Err(match following.first() {
            Some(first) => PlanError::FollowingRule {
                rule,
                glob,
                count: following.len(),
                met: (*first).to_owned(),
                example: example(),
            },
            None => PlanError::IdleRule { rule, glob, example: example() },
        });
    }
    Ok(())
}

/// Refuses a target that would leave one of these linears, or a structure that they read, without a single weight less, although it
/// asks for some.
pub(super) fn check_counts(
    spec: &JobSpec,
    inventory: &Inventory,
    targets: &Targets,
    pruned: &[LinearTarget],
) -> Result<(), JobError> {
    let whole = |target: &&LinearTarget| problem(&spec.sparsity, inventory, target).is_some();
    let Some(first) = pruned.iter().find(whole) else { return Ok(()) };
    let name = &inventory.linear(first.linear).name;
    let others = pruned.iter().filter(whole).count() - 1;
    let same = if others == 0 { String::new() } else { format!(" (and {others} others like it)") };
    let problem = problem(&spec.sparsity, inventory, first).unwrap_or_default();
    let key = key(&spec.sparsity, targets, name, first.target);
    Err(JobError::new(
        key,
        format!("leaves `{name}`{same} as it is: {problem}, or leave it dense by a rule with skip = true"),
    ))
}

/// Refuses to keep neurons in multiples of more than a feed-forward network has.
pub(super) fn check_align(
    spec: &JobSpec,
    inventory: &Inventory,
    pruned: &[LinearTarget],
) -> Result<(), JobError> {
    let align = spec.sparsity.align;
    let is_pruned = |structure: &&Structure| pruned.iter().any(|t| Some(t.linear) == structure.leader());
    let mut structures = inventory.structures.iter().filter(is_pruned);
    let Some(narrow) = structures.find(|structure| structure.unit(align) > structure.count) else {
        return Ok(());
    };
    let problem = format!(
        "is {align}, but `{}` has {count} neurons: give at most {count}, or leave it whole by a rule with skip = true",
        narrow.name,
        count = narrow.count
    );
    Err(JobError::new("sparsity.align", problem))
}

/// The key that decides for the linear of this name.
fn key(spec: &SparsitySpec, targets: &Targets, name: &str, target: Target) -> String {
    let by_pattern = matches!(target, Target::NToM { .. });
    match targets.rule_of(name).and_then(|rule| Some((rule, spec.rules.get(rule)?))) {
        Some((rule, own)) if by_pattern && own.pattern.is_some() => format!("sparsity.rules[{rule}].pattern"),
        Some((rule, own)) if !by_pattern && own.ratio.is_some() => format!("sparsity.rules[{rule}].ratio"),
        _ if by_pattern => "sparsity.pattern".to_owned(),
        _ => "sparsity.ratio".to_owned(),
    }
}

/// Why a target prunes nothing although it asks for something, and what would.
fn problem(sparsity: &SparsitySpec, inventory: &Inventory, target: &LinearTarget) -> Option<String> {
    let linear = inventory.linear(target.linear);
    let width = inventory.site(linear.site).width;
    match target.target {
        Target::NToM { n, m } => {
            let groups = (width / m.max(1)) as u128 * n as u128;
            let tail = (width % m.max(1)) as u128 * n as u128 / m.max(1) as u128;
            (n > 0 && groups + tail == 0).then(|| {
                let most = n as u128 * width as u128;
                format!(
                    "floor({n} * {width} / {m}) = 0 of its {width} columns would go. Give a pattern \"{n}:M\" with M at most {most}"
                )
            })
        }
        Target::Unstructured { ratio } => {
            let (counted, what) = match sparsity.method() {
                Method::Wanda => (width, "the weights of a row"),
                _ => (linear.rows * width.min(BLOCK), "the weights of a block of columns"),
            };
            (ratio > 0.0 && (ratio * counted as f64) < 1.0).then(|| {
                format!(
                    "floor({ratio} * {counted}) = 0 of {what} would go. Give at least {}",
                    1.0 / counted as f64
                )
            })
        }
        Target::Structured { ratio } => {
            let ratio = ratio.filter(|ratio| *ratio > 0.0)?;
            let led = inventory.structures.iter().filter(|s| s.leader() == Some(target.linear));
            let stays = |structure: &&Structure| structure.kept_at(ratio, sparsity.align) == structure.count;
            let structure = led.filter(stays).min_by_key(|structure| structure.count)?;
            let (count, unit) = (structure.count, structure.unit(sparsity.align));
            let parts = match structure.kind {
                PartKind::Heads => "heads",
                PartKind::Neurons => "neurons",
            };
            let (least, counted) = if unit > 1 && count.is_multiple_of(unit) {
                let counted =
                    format!("{ratio} * {count} is less than half of sparsity.align = {unit}, so none");
                ((unit / 2) as f64 + 0.5, counted)
            } else {
                (0.5, format!("round({ratio} * {count}) = 0"))
            };
            let enough = least / count as f64;
            Some(format!("{counted} of its {count} {parts} would go. Give more than {enough}"))
        }
    }
}
