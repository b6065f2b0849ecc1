//! Plans of jobs that remove heads and neurons.

use super::*;

#[test]
fn structured_takes_the_readers_of_all_but_the_ends() {
    let inventory = with_structures();
    let plan = plan(&structured(), &inventory, TOKENS).unwrap();
    let of =
        |p: &Plan| -> Vec<u32> { p.packages.iter().flat_map(|p| &p.linears).map(|t| t.linear.0).collect() };
    assert_eq!(of(&plan), [9, 10, 11, 15, 16, 17]);
    assert!(plan.packages.iter().all(Package::is_structured));
    let sites: Vec<u32> = plan.packages.iter().flat_map(|p| &p.sites).map(|s| s.0).collect();
    assert_eq!(sites, [5, 6, 7, 9, 10, 11]);
    assert_eq!(plan.packages[0].gram_width(inventory.site(SiteId(5))), 9);
}

#[test]
fn ends_alone_leave_nothing_to_prune() {
    let mut inventory = with_structures();
    inventory.structures.retain(|s| s.block == 0 || s.block == 3);
    assert_eq!(plan(&structured(), &inventory, TOKENS), Err(PlanError::OnlyEnds));
    let mut spec = structured();
    spec.sparsity.rules = vec![SparsityRule {
        matches: "blocks.3.*".into(),
        skip: false,
        pattern: Some(Pattern::Structured),
        ratio: None,
    }];
    assert!(plan(&spec, &inventory, TOKENS).is_ok());
}
