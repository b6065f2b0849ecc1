//! Exponents and Grams.

use super::*;

fn case(hessian: Value) -> Case {
    Case::new(json!({ "pattern": "unstructured", "ratio": 0.5 }), hessian)
}

#[test]
fn an_exponent_leaves_room_for_all_shards() {
    let case = case(json!({}));
    let exponent = |shards: usize| {
        let sites = case.package.sites.iter().copied();
        case.pruner.pilot(&case.shards[0], sites, shards, &mut |_| Ok(())).unwrap()[&case.site()]
    };
    // Few shards leave the largest observation to decide.
    let [one, many, more] = [1, 1 << 20, 1 << 25].map(exponent);
    assert!(many < one, "{one} {many}");
    assert_eq!(more, many - 5);
}

#[test]
fn a_shard_that_was_read_is_not_taken_for_another() {
    let mut case = case(json!({}));
    let mut gathered = |read: Option<usize>, shard: usize| {
        case.open(20);
        if let Some(read) = read {
            case.pruner.read(&case.shards[read]).unwrap();
        }
        case.calibrate(shard).unwrap();
        case.pruner.gram(case.site()).unwrap().clone()
    };
    let alone = gathered(None, 1);
    assert!(gathered(Some(0), 1) == alone);
    assert!(gathered(Some(1), 1) == alone);
    assert!(gathered(Some(0), 0) != alone);
}

#[test]
fn an_overflow_names_its_site() {
    let mut case = case(json!({}));
    case.open(80);
    let error = case.calibrate(0).unwrap_err();
    assert!(matches!(error, Error::Overflow { site, .. } if site == case.site()), "{error}");
}

#[test]
fn an_overflow_of_f32_sums_is_none_that_a_lower_exponent_mends() {
    let mut case = case(json!({ "accumulate": "f32" }));
    case.pruner.alphas.fill(1e38);
    case.open(0);
    let error = case.calibrate(0).unwrap_err();
    let Error::Site { problem, .. } = &error else { panic!("{error}") };
    assert!(problem.contains("hessian.low and hessian.high"), "{problem}");
}
