//! Structures: parts that need the Grams of several sites, and surveys before anything is pruned.

use std::sync::Arc;

use obsdiff_core::{Command, Job, Order, Outcome, Receipt, Solved};
use obsdiff_proto::{
    Budget, Features, LinearId, LinearTarget, PackageId, PartKind, Plan, SiteId, Structure, Target, WorkerId,
};

use crate::script::{Script, job};

/// One package whose only structure is read by two linears, of a site each.
fn structured() -> Job {
    let mut job = job();
    let structure = Structure {
        name: "attn".to_owned(),
        block: 0,
        kind: PartKind::Heads,
        count: 2,
        outputs: [0, 1].map(|id| Features::whole(LinearId(id), 2)).to_vec(),
        inputs: Vec::new(),
    };
    Arc::make_mut(&mut job.inventory).structures = vec![structure];
    let plan = Arc::make_mut(&mut job.plan);
    plan.packages.truncate(1);
    plan.packages[0].sites = vec![SiteId(0), SiteId(1)];
    let target = |i| LinearTarget { linear: LinearId(i), target: Target::Structured { ratio: Some(0.5) } };
    plan.packages[0].linears = vec![target(0), target(1)];
    job
}

#[test]
fn all_grams_of_a_structure_go_to_the_one_who_solves_it() {
    let mut script = Script::new(structured());
    script.start(1);
    script.start(2);
    let mut groups = Vec::new();
    for _ in 0..20 {
        for worker in [1, 2] {
            groups.extend(script.commands(worker).into_iter().filter_map(|command| match command {
                Command::Form { group, .. } => Some(group),
                _ => None,
            }));
            script.obey(worker, |_| false);
        }
        script.store();
    }
    assert_eq!(script.outcome(), Some(Outcome::Done));
    let group = &groups[0];
    let owners: Vec<WorkerId> = group.owners.values().copied().collect();
    assert_eq!(owners.len(), 1);
    let ways: Vec<_> = group.reductions.iter().map(|r| (r.site, r.roots.clone())).collect();
    assert_eq!(ways, [(SiteId(0), owners.clone()), (SiteId(1), owners)]);
}

#[test]
fn what_was_solved_with_another_exponent_of_any_of_its_sites_does_not_count() {
    for (exponents, counts) in [([12, 12], true), ([12, 8], false), ([8, 12], false)] {
        let mut script = Script::new(structured());
        script.start(1);
        while !script.orders(1).iter().any(|order| matches!(order, Order::Solve { .. })) {
            script.obey(1, |_| false);
        }
        let part = script.commands(1).into_iter().find_map(|command| match command {
            Command::Solve { part, .. } => Some(part),
            _ => None,
        });
        let exponents = [(SiteId(0), exponents[0]), (SiteId(1), exponents[1])].into();
        let solved = Solved { exponents, receipt: Receipt("stored".into()) };
        script.workers.get_mut(&1).unwrap().solved.insert(part.unwrap().id, solved);
        script.report(1);
        assert_eq!(script.store(), counts);
    }
}

/// A job whose package is surveyed first.
fn surveyed() -> Job {
    let mut job = structured();
    let plan = Arc::unwrap_or_clone(job.plan).with_budget(Budget { saving: 1.0, part_flops: vec![1.0] });
    job.plan = Arc::new(plan);
    job
}

#[test]
fn what_was_solved_for_a_survey_does_not_count_for_the_package_that_follows() {
    let mut script = Script::new(surveyed());
    script.start(1);
    script.start(2);
    while script.core.view().committed == 0 {
        for worker in [1, 2] {
            script.obey(worker, |_| false);
        }
        script.store();
    }
    // Both lag: they say what they solved before, and have not applied the survey yet.
    for worker in [1, 2] {
        let status = &script.workers[&worker];
        assert_eq!(status.applied, 0);
        script.report(worker);
    }
    assert!(script.workers.values().any(|status| !status.solved.is_empty()));
    assert_eq!((script.core.view().package, script.core.view().solved), (Some(PackageId(1)), 0));
    assert!(!script.store(), "the package is committed by what was solved for its survey");
    // The sums that they gathered for the survey are the package's, too: no shard is run again.
    let view = script.core.view();
    assert!(view.workers.iter().all(|worker| worker.leased == 0), "{view:?}");
    assert_eq!(view.workers.iter().map(|worker| worker.held).sum::<usize>(), view.shards);
    // No group forms before both have applied the survey.
    script.obey(1, |_| false);
    assert_eq!(script.core.view().epoch, None);
    script.obey(2, |_| false);
    assert!(script.core.view().epoch.is_some());
    assert_eq!(script.core.view().held, script.core.view().shards);
    script.settle();
    assert_eq!(script.outcome(), Some(Outcome::Done));
}

#[test]
fn a_budget_is_surveyed_before_anything_is_pruned() {
    let job = surveyed();
    assert_eq!(job.plan.packages.iter().map(|p| p.survey).collect::<Vec<_>>(), [true, false]);
    let mut script = Script::new(job.clone());
    script.start(1);
    script.settle();
    assert_eq!(script.outcome(), Some(Outcome::Done));

    let mut late = Plan::clone(&job.plan);
    late.packages.swap(0, 1);
    (0..).zip(&mut late.packages).for_each(|(id, package)| package.id.0 = id);
    let refused = obsdiff_core::Core::new(Job { plan: Arc::new(late), ..job }, std::time::Duration::ZERO);
    assert_eq!(refused.unwrap_err().to_string(), "package 2: is surveyed after something was pruned");
}
