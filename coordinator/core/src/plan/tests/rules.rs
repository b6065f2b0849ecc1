//! Rules and targets that would do nothing.

use obsdiff_proto::{JobSpec, Method, Pattern, SparsityRule, Target};

use super::{TOKENS, inventory, refusal, skip, spec, structured, with_structures};
use crate::plan::plan;

#[test]
fn a_rule_that_others_decide_before_is_refused_with_them() {
    let mut spec = spec();
    let inventory = inventory(&[(8, 8); 3]);
    spec.sparsity.rules = vec![skip("*.0.*"), skip("*.1.*"), skip("blocks.[01].*")];
    let error = refusal(&spec, &inventory);
    assert!(error.contains("sparsity.rules[2].match: \"blocks.[01].*\" decides nothing: it matches 2 linears such as `blocks.0.linear`"), "{error}");
    assert!(error.contains("sparsity.rules[0] or sparsity.rules[1] before it decides for each"), "{error}");
    // A rule that decides for one is no slip.
    spec.sparsity.rules = vec![skip("*.0.*"), skip("blocks.[01].*")];
    assert!(plan(&spec, &inventory, TOKENS).is_ok());
}

#[test]
fn a_target_that_would_leave_a_linear_dense_is_refused_by_name() {
    // Shapes are columns and rows.
    let inventory = inventory(&[(2048, 64), (128, 64), (96, 1)]);
    type Case<'a> = (Method, Pattern, Option<f64>, Option<&'a str>);
    let n_to_m = |n, m| Pattern::NToM { n, m };
    let cases: [Case<'_>; 12] = [
        (
            Method::Obs,
            n_to_m(1, 500),
            None,
            Some(
                "sparsity.pattern: leaves `blocks.1.linear` (and 1 others like it) as it is: floor(1 * 128 / 500) = 0 of its 128 columns would go. Give a pattern \"1:M\" with M at most 128, or",
            ),
        ),
        (
            Method::Magnitude,
            n_to_m(1, 100),
            None,
            Some("sparsity.pattern: leaves `blocks.2.linear` as it is: "),
        ),
        (Method::Obs, n_to_m(1, 96), None, None),
        // A group that is wider than a linear still prunes its share of the tail.
        (Method::Obs, n_to_m(250, 500), None, None),
        // Asked for nothing.
        (Method::Obs, n_to_m(0, 4), None, None),
        (Method::Obs, Pattern::Unstructured, Some(0.0), None),
        (Method::Obs, Pattern::Unstructured, Some(0.02), None),
        (
            Method::Obs,
            Pattern::Unstructured,
            Some(0.01),
            Some(
                "sparsity.ratio: leaves `blocks.2.linear` as it is: floor(0.01 * 96) = 0 of the weights of a block of columns",
            ),
        ),
        (Method::Obs, Pattern::Unstructured, Some(1e-9), Some("(and 2 others like it)")),
        (Method::Wanda, Pattern::Unstructured, Some(0.01), Some("`blocks.2.linear`")),
        (Method::Wanda, Pattern::Unstructured, Some(0.01), Some("weights of a row")),
        (Method::Wanda, Pattern::Unstructured, Some(0.011), None),
    ];
    for (method, pattern, ratio, says) in cases {
        let mut spec = spec();
        (spec.sparsity.method, spec.sparsity.pattern, spec.sparsity.ratio) = (Some(method), pattern, ratio);
        match says {
            Some(says) => {
                assert!(refusal(&spec, &inventory).contains(says), "{}", refusal(&spec, &inventory))
            }
            None => assert!(plan(&spec, &inventory, TOKENS).is_ok(), "{method:?} {pattern} {ratio:?}"),
        }
    }
    let mut spec = spec();
    spec.sparsity.rules =
        vec![skip("*.0.*"), SparsityRule { pattern: Some(n_to_m(1, 200)), skip: false, ..skip("*.1.*") }];
    let error = refusal(&spec, &inventory);
    assert!(error.contains("sparsity.rules[1].pattern: leaves `blocks.1.linear` as it is"), "{error}");
}

#[test]
fn a_share_of_heads_that_is_none_is_refused() {
    let mut spec = structured();
    let with = |spec: &JobSpec| plan(spec, &with_structures(), TOKENS);
    // Three quarters of a neuron, of which it takes one, and half a head, of which it takes none.
    spec.sparsity.ratio = Some(0.125);
    let error = refusal(&spec, &with_structures());
    assert!(
        error.contains("sparsity.ratio: leaves `blocks.1.out` (and 1 others like it) as it is"),
        "{error}"
    );
    assert!(error.contains("round(0.125 * 4) = 0 of its 4 heads would go. Give more than 0.125"), "{error}");
    spec.sparsity.ratio = Some(0.13);
    assert!(with(&spec).is_ok());
    spec.sparsity.ratio = Some(0.0);
    assert!(with(&spec).is_ok());
}

#[test]
fn neurons_are_kept_in_multiples_of_what_a_network_has() {
    let mut spec = structured();
    (spec.sparsity.ratio, spec.sparsity.align) = (Some(0.5), 4);
    assert!(plan(&spec, &with_structures(), TOKENS).is_ok());
    spec.sparsity.align = 7;
    let error = refusal(&spec, &with_structures());
    assert!(
        error.starts_with("sparsity.align: is 7, but `") && error.contains("has 6 neurons: give at most 6"),
        "{error}"
    );
    // 0.3 takes one of four heads, but less than half of six neurons, all of which go together.
    (spec.sparsity.ratio, spec.sparsity.align) = (Some(0.3), 6);
    let error = refusal(&spec, &with_structures());
    assert!(
        error.contains("0.3 * 6 is less than half of sparsity.align = 6, so none of its 6 neurons would go"),
        "{error}"
    );
}

#[test]
fn a_rule_decides_for_a_structure_by_its_first_reader() {
    let inventory = with_structures();
    let rule = |glob: &str, ratio| SparsityRule { matches: glob.into(), skip: false, pattern: None, ratio };
    let mut spec = structured();
    spec.sparsity.rules = vec![rule("blocks.0.out", Some(0.25)), skip("blocks.1.*")];
    let plan = plan(&spec, &inventory, TOKENS).unwrap();
    let of: Vec<_> = plan.packages.iter().flat_map(|p| &p.linears).map(|t| (t.linear.0, t.target)).collect();
    let target = |ratio| Target::Structured { ratio: Some(ratio) };
    assert_eq!(of[..2], [(3, target(0.25)), (4, target(0.25))]);
    assert_eq!(of[2..].iter().map(|t| t.0).collect::<Vec<_>>(), [15, 16, 17]);
    spec.sparsity.rules = vec![skip("blocks.*.q")];
    let error = refusal(&spec, &inventory);
    assert!(
        error.contains("sparsity.rules[0].match: \"blocks.*.q\" decides nothing: it matches 4 linears"),
        "{error}"
    );
    assert!(error.contains("such as `blocks.0.q`, but heads and neurons go by the first linear"), "{error}");
    assert!(error.contains("such as `blocks.0.out`"), "{error}");
}

#[test]
fn what_needs_no_activations_opens_no_site() {
    let mut spec = structured();
    spec.sparsity.method = Some(Method::L1);
    let plan = plan(&spec, &with_structures(), TOKENS).unwrap();
    assert!(plan.shards.is_empty() && plan.packages.iter().all(|p| p.sites.is_empty()));
}
