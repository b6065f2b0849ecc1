mod rules;
mod solving;
mod structured;

use obsdiff_proto::{
    Accumulate, CalibrationSpec, Effort, EvaluationSpec, Features, HeadScore, HessianSpec, JobError, Linear,
    LinearId, Method, ModelSpec, OutputLayout, OutputSpec, PackagesSpec, PartKind, Pattern, Site,
    SparsityRule, SparsitySpec, Stream, StreamId, Structure, Target, Unit,
};
use proptest::prelude::*;

use super::*;

const TOKENS: Tokens = Tokens { image: 64, text: 20, branches: 2 };

fn spec() -> JobSpec {
    JobSpec {
        preset: None,
        model: ModelSpec { path: "m".into(), dtype: Default::default() },
        sparsity: SparsitySpec {
            method: Some(Method::Obs),
            pattern: Pattern::Unstructured,
            ratio: Some(0.5),
            allocation: None,
            min_ratio: 0.2,
            max_ratio: 0.9,
            dense: 0.0,
            refine: 0,
            effort: Effort::Fast,
            budget: None,
            budget_by: Default::default(),
            align: 1,
            head_score: HeadScore::Exact,
            fold_bias: true,
            rules: Vec::new(),
        },
        calibration: CalibrationSpec {
            prompts: Some("p.txt".into()),
            column: None,
            conditioning: None,
            grams: None,
            gram_prompts: None,
            count: 10,
            steps: 5,
            guidance: 4.0,
            true_guidance: 1.0,
            height: None,
            width: None,
            max_sequence_length: 16,
            seed: 0,
            shard_size: 4,
        },
        probe: Default::default(),
        hessian: HessianSpec::default(),
        packages: PackagesSpec::default(),
        evaluation: EvaluationSpec::default(),
        workers: Default::default(),
        output: OutputSpec {
            path: "out".into(),
            link: false,
            state: None,
            grams: None,
            gram_prompts: Vec::new(),
            gram_precision: Default::default(),
            layout: OutputLayout::Shrunk,
        },
    }
}

/// Units of one site each, with one linear of `rows` rows named `blocks.N.linear`.
fn inventory(widths_and_rows: &[(usize, usize)]) -> Inventory {
    let ids = || 0..widths_and_rows.len() as u32;
    let name = |i: u32| format!("blocks.{i}.linear");
    let at = |i: u32| widths_and_rows[i as usize];
    Inventory {
        streams: vec![Stream::new("image", 1, false), Stream::new("text", 0, true)],
        units: ids()
            .map(|i| Unit { block: i, name: "ffn-inputs".to_owned(), sites: vec![SiteId(i)] })
            .collect(),
        sites: ids()
            .map(|i| Site {
                name: name(i),
                width: at(i).0,
                stream: StreamId(0),
                joined: Vec::new(),
                linears: vec![LinearId(i)],
            })
            .collect(),
        linears: ids()
            .map(|i| Linear { name: name(i), rows: at(i).1, bias: true, site: SiteId(i) })
            .collect(),
        ..Inventory::default()
    }
}

fn skip(glob: &str) -> SparsityRule {
    SparsityRule { matches: glob.into(), skip: true, pattern: None, ratio: None }
}

/// The key and the problem of a job that cannot be planned.
fn refusal(spec: &JobSpec, inventory: &Inventory) -> String {
    JobError::from(plan(spec, inventory, TOKENS).unwrap_err()).to_string()
}

fn units(plan: &Plan) -> Vec<Range<usize>> {
    plan.packages.iter().map(|p| p.units.clone()).collect()
}

#[test]
fn one_package_is_the_default() {
    let plan = plan(&spec(), &inventory(&[(8, 8); 24]), TOKENS).unwrap();
    assert_eq!((plan.packages.len(), &plan.packages[0].units), (1, &(0..24)));
}

#[test]
fn even_units_are_the_published_ones() {
    let mut spec = spec();
    spec.packages.count = Some(4);
    spec.packages.balance = Balance::Units;
    // As obsdiff_oracle.packages cuts 24 units in 4 and 10 in 4.
    let cut =
        |count: usize, spec: &JobSpec| units(&plan(spec, &inventory(&vec![(8, 8); count]), TOKENS).unwrap());
    assert_eq!(cut(24, &spec), [0..6, 6..12, 12..18, 18..24]);
    assert_eq!(cut(10, &spec), [0..3, 3..6, 6..8, 8..10]);
    assert_eq!(cut(4, &spec), [0..1, 1..2, 2..3, 3..4]);
}

#[test]
fn skipped_linears_open_no_site_and_leave_no_empty_package() {
    let mut spec = spec();
    spec.packages = PackagesSpec { count: Some(4), balance: Balance::Units, ..PackagesSpec::default() };
    spec.sparsity.rules = vec![skip("blocks.[0145].*")];
    let plan = plan(&spec, &inventory(&[(8, 8); 8]), TOKENS).unwrap();
    assert_eq!(units(&plan), [0..3, 3..6, 6..7, 7..8]);
    let sites: Vec<_> = plan.packages.iter().flat_map(|p| p.sites.clone()).collect();
    assert_eq!(sites, [2, 3, 6, 7].map(SiteId));
}

#[test]
fn rules_give_linears_their_own_targets() {
    let mut spec = spec();
    spec.sparsity.rules =
        vec![SparsityRule { pattern: Some(Pattern::NToM { n: 2, m: 4 }), skip: false, ..skip("*.1.*") }];
    let plan = plan(&spec, &inventory(&[(8, 8); 2]), TOKENS).unwrap();
    let targets: Vec<_> = plan.packages.iter().flat_map(|p| &p.linears).map(|l| l.target).collect();
    assert_eq!(targets, [Target::Unstructured { ratio: 0.5 }, Target::NToM { n: 2, m: 4 }]);
}

#[test]
fn what_cannot_be_planned_is_refused_by_key() {
    let refuse = |change: fn(&mut JobSpec)| {
        let mut spec = spec();
        change(&mut spec);
        refusal(&spec, &inventory(&[(1024, 64), (2048, 64)]))
    };
    let error = refuse(|s| s.sparsity.rules = vec![skip("*.linear"), skip("transformer_blocks.*")]);
    assert!(
        error.contains(
            "sparsity.rules[1].match: \"transformer_blocks.*\" matches no linear that can be pruned"
        ),
        "{error}"
    );
    assert!(error.contains("`blocks.0.linear`"), "{error}");
    let error = refuse(|s| s.sparsity.rules = vec![skip("*")]);
    assert!(error.contains("nothing to prune"), "{error}");
    let error = refuse(|s| s.packages.memory = Some(ByteSize(5 << 20)));
    assert!(error.contains("packages.memory: is 5.0 MiB, but the Grams of `blocks.1.linear`"), "{error}");
    assert!(error.contains("at least \"17MiB\""), "{error}");
    let error = refuse(|s| s.packages.count = Some(3));
    assert!(error.contains("packages.count: is 3, but 2 units of the model are pruned"), "{error}");
    assert!(error.contains("give 2 or fewer"), "{error}");
}

#[test]
fn the_least_memory_it_names_works_and_a_mebibyte_less_does_not() {
    let mut spec = spec();
    let inventory = inventory(&[(1024, 64), (2048, 64)]);
    spec.packages.memory = Some(ByteSize(17 << 20));
    assert_eq!(plan(&spec, &inventory, TOKENS).unwrap().packages.len(), 2);
    spec.packages.memory = Some(ByteSize(16 << 20));
    assert!(plan(&spec, &inventory, TOKENS).is_err());
    spec.hessian.accumulate = Accumulate::F32;
    assert_eq!(plan(&spec, &inventory, TOKENS).unwrap().packages.len(), 1);
}

#[test]
fn magnitude_needs_no_calibration() {
    let mut spec = spec();
    spec.sparsity.method = Some(Method::Magnitude);
    spec.packages.count = Some(4);
    let inventory = inventory(&[(8, 8); 8]);
    let plain = plan(&spec, &inventory, TOKENS).unwrap();
    assert!(plain.shards.is_empty());
    assert!(plain.packages.iter().all(|p| p.sites.is_empty() && p.linears.len() == 2));
    spec.sparsity.refine = 1;
    let refined = plan(&spec, &inventory, TOKENS).unwrap();
    assert_eq!(refined.shards.len(), 3);
    assert!(refined.packages.iter().all(|p| p.sites.len() == 2));
}

#[test]
fn the_fewest_packages_that_fit_are_found() {
    let spec = spec();
    let inventory = inventory(&[(8, 8); 6]);
    let unit = gram_bytes(8, Accumulate::Exact);
    let fewest = |limit| fewest_packages(&spec, &inventory, TOKENS, ByteSize(limit)).unwrap();
    assert_eq!(fewest(6 * unit), Some(1));
    assert_eq!(fewest(6 * unit - 1), Some(2));
    assert_eq!(fewest(2 * unit), Some(3));
    assert_eq!(fewest(unit), Some(6));
    assert_eq!(fewest(unit - 1), None);
}

#[test]
fn the_last_shard_takes_what_is_left() {
    let plan = plan(&spec(), &inventory(&[(8, 8)]), TOKENS).unwrap();
    let shards: Vec<_> = plan.shards.iter().map(|s| s.prompts.clone()).collect();
    assert_eq!(shards, [0..4, 4..8, 8..10]);
}

/// The least that the heaviest of `count` runs can weigh, by trying every split.
fn brute_force(work: &[u32], count: usize) -> u32 {
    if count == 1 {
        return work.iter().sum();
    }
    let splits = 1..=work.len() - (count - 1);
    splits
        .map(|first| work[..first].iter().sum::<u32>().max(brute_force(&work[first..], count - 1)))
        .min()
        .unwrap()
}

fn heaviest(work: &[u32], ends: &[usize]) -> u32 {
    runs(ends).map(|run| work[run].iter().sum()).max().unwrap()
}

proptest! {
    #[test]
    fn balanced_work_is_optimal(work in prop::collection::vec(0u32..50, 1..9), count in 1usize..9) {
        let count = count.min(work.len());
        let float: Vec<f64> = work.iter().map(|w| f64::from(*w)).collect();
        let ends = partition::balanced(&float, count, |_| true).unwrap();
        prop_assert_eq!(ends.len(), count);
        prop_assert!(runs(&ends).all(|run| !run.is_empty()));
        prop_assert_eq!(heaviest(&work, &ends), brute_force(&work, count));
    }

    #[test]
    fn every_plan_covers_each_unit_once_in_order(
        // At least two weights a linear, so that half of them are some.
        units in prop::collection::vec((1usize..40, 2usize..40, any::<bool>()), 1..24),
        count in 1u32..30,
        memory in prop::option::of(0u64..40_000),
        balance in prop::sample::select(vec![Balance::Work, Balance::Units]),
    ) {
        let shapes: Vec<_> = units.iter().map(|(n, rows, _)| (*n, *rows)).collect();
        let inventory = inventory(&shapes);
        let mut spec = spec();
        spec.packages = PackagesSpec {
            count: memory.is_none().then_some(count),
            memory: memory.map(ByteSize),
            balance,
            ..PackagesSpec::default()
        };
        let kept = |i: usize| units[i].2;
        spec.sparsity.rules =
            (0..units.len()).filter(|i| !kept(*i)).map(|i| skip(&format!("blocks.{i}.linear"))).collect();
        let active: Vec<u32> = (0..units.len()).filter(|i| kept(*i)).map(|i| i as u32).collect();
        let bytes = |i: u32| gram_bytes(shapes[i as usize].0, Accumulate::Exact);
        let largest = active.iter().map(|i| bytes(*i)).max();
        let plan = match plan(&spec, &inventory, TOKENS) {
            Ok(plan) => plan,
            Err(PlanError::TooManyPackages { most, .. }) => {
                prop_assert_eq!(most as usize, active.len());
                prop_assert!(memory.is_none() && count as usize > active.len());
                return Ok(());
            }
            Err(PlanError::NothingToPrune) => { prop_assert!(active.is_empty()); return Ok(()); }
            Err(PlanError::UnitTooLarge { needed, .. }) => {
                prop_assert_eq!(Some(needed.0), largest);
                prop_assert!(needed.0 > memory.unwrap());
                return Ok(());
            }
            Err(other) => return Err(TestCaseError::fail(other.to_string())),
        };
        let mut at = 0;
        for (package, id) in plan.packages.iter().zip(0..) {
            prop_assert_eq!(package.id, PackageId(id));
            prop_assert_eq!(package.units.start, at);
            prop_assert!(!package.linears.is_empty());
            prop_assert!(package.sites.iter().all(|s| package.units.contains(&(s.0 as usize))));
            if let Some(memory) = memory {
                prop_assert!(package.sites.iter().map(|s| bytes(s.0)).sum::<u64>() <= memory);
            }
            at = package.units.end;
        }
        prop_assert_eq!(at, units.len());
        let linears: Vec<u32> = plan.packages.iter().flat_map(|p| &p.linears).map(|l| l.linear.0).collect();
        prop_assert_eq!(&linears, &active);
        if memory.is_none() {
            prop_assert_eq!(plan.packages.len(), count as usize);
        }
    }

    #[test]
    fn the_fewest_packages_fit_and_one_fewer_do_not(
        // At least two weights a linear, so that half of them are some.
        shapes in prop::collection::vec((1usize..40, 2usize..400), 1..12),
        limit in 8u64..40_000,
    ) {
        let inventory = inventory(&shapes);
        let mut spec = spec();
        let fewest = fewest_packages(&spec, &inventory, TOKENS, ByteSize(limit)).unwrap();
        let bytes = |site: &SiteId| gram_bytes(inventory.site(*site).width, Accumulate::Exact);
        let mut fits = |count| {
            spec.packages.count = Some(count);
            let plan = plan(&spec, &inventory, TOKENS).unwrap();
            plan.packages.iter().all(|p| p.sites.iter().map(bytes).sum::<u64>() <= limit)
        };
        match fewest {
            Some(count) => prop_assert!(fits(count) && (1..count).all(|fewer| !fits(fewer))),
            None => prop_assert!(!fits(shapes.len() as u32)),
        }
    }

    #[test]
    fn no_fewer_packages_fit_in_the_memory(sizes in prop::collection::vec(1u64..20, 1..9), limit in 20u64..60) {
        let count = partition::fewest(&sizes, limit);
        let fits = |run: Range<usize>| sizes[run].iter().sum::<u64>() <= limit;
        let work: Vec<f64> = sizes.iter().map(|s| *s as f64).collect();
        prop_assert!(partition::balanced(&work, count, fits).is_some());
        prop_assert!(count == 1 || partition::balanced(&work, count - 1, fits).is_none());
    }
}

/// Four blocks, each an attention of two streams with 4 heads of 2 features, and a network of 6 neurons.
fn with_structures() -> Inventory {
    let mut inventory = inventory(&[]);
    for block in 0..4 {
        let mut site = |stream, width, names: &[&str]| {
            let id = SiteId(inventory.sites.len() as u32);
            let linears: Vec<_> = names
                .iter()
                .map(|name| {
                    inventory.linears.push(Linear {
                        name: format!("blocks.{block}.{name}"),
                        rows: 8,
                        bias: true,
                        site: id,
                    });
                    LinearId(inventory.linears.len() as u32 - 1)
                })
                .collect();
            let stream = StreamId(stream);
            inventory.sites.push(Site { name: String::new(), width, stream, joined: Vec::new(), linears });
            id
        };
        let units = [
            ("attention-inputs", vec![site(0, 8, &["q", "k", "v"])]),
            ("attention-outputs", vec![site(0, 8, &["out"]), site(1, 8, &["add_out"])]),
            ("ffn-hidden", vec![site(0, 6, &["down"])]),
        ];
        inventory.units.extend(units.map(|(name, sites)| Unit { block, name: name.to_owned(), sites }));
        let at = |i: u32| LinearId(block * 6 + i);
        let structure = |kind, size, count, outputs: &[u32], inputs: &[u32]| Structure {
            name: String::new(),
            block,
            kind,
            count,
            outputs: outputs.iter().map(|i| Features::whole(at(*i), size)).collect(),
            inputs: inputs.iter().map(|i| Features::whole(at(*i), size)).collect(),
        };
        inventory.structures.push(structure(PartKind::Heads, 2, 4, &[3, 4], &[0, 1, 2]));
        inventory.structures.push(structure(PartKind::Neurons, 1, 6, &[5], &[]));
    }
    inventory
}

fn structured() -> JobSpec {
    let mut spec = spec();
    spec.sparsity.pattern = Pattern::Structured;
    spec
}
