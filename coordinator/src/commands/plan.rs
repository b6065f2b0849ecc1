//! `obsdiff plan JOB`.

use obsdiff_core::{MemoryNeeds, PackageCost, PlanCost};
use obsdiff_proto::{ByteSize, JobSpec, Method, Pattern, Plan};

use crate::Result;
use crate::cli::PlanArgs;
use crate::described::Described;
use crate::prompts::JobPrompts;
use crate::session::Session;
use crate::text::{self, Table};

/// Shows what a job would do and cost.
///
/// # Errors
/// Whatever `run` would refuse before its work.
pub(super) fn plan(args: &PlanArgs, session: &mut Session<'_>) -> Result<()> {
    let job = session.job(&args.job)?;
    let prompts = JobPrompts::load(&job)?;
    let described = Described::read(&job)?;
    let spec = &job.spec;
    let plan =
        obsdiff_core::plan(spec, &described.inventory, described.tokens).map_err(|e| job.unplanned(e))?;
    let cost = PlanCost::new(&plan, &described.inventory, spec.hessian.accumulate, &described.workload(spec));
    write!(session.out, "{}\n{}\n", summary(spec, &described), table(&plan, &cost))?;
    write!(session.out, "{}", memory(&described.memory(spec, &plan), &cost))?;
    let total = cost.total();
    writeln!(
        session.out,
        "Traffic of each worker past the first: {} of Grams sent, {} of weights taken",
        ByteSize(total.gram_bytes),
        ByteSize(total.weights * 4)
    )?;
    if let Some(note) = prompts.note {
        writeln!(session.out, "Note: {note}")?;
    }
    Ok(())
}

fn summary(spec: &JobSpec, described: &Described) -> String {
    let c = &spec.calibration;
    let method = match spec.sparsity.method {
        Method::Obs => "obs",
        Method::Magnitude => "magnitude",
        Method::Wanda => "wanda",
    };
    let share = match (spec.sparsity.pattern, spec.sparsity.ratio) {
        (Pattern::Unstructured, Some(ratio)) => format!("{}% unstructured", ratio * 100.0),
        (pattern, _) => pattern.to_string(),
    };
    let inventory = &described.inventory;
    let tokens = described.tokens;
    let calibration = match spec.sparsity.method {
        Method::Magnitude => "none, magnitude needs no activations".to_owned(),
        Method::Obs | Method::Wanda => format!(
            "{} prompts x {} steps at guidance {}, {} image and {} text tokens",
            c.count, c.steps, c.guidance, tokens.image, tokens.text
        ),
    };
    format!(
        "model        {} ({} parameters, {} units, {} linears)\nsparsity     {share} by {method}\ncalibration  {calibration}\n",
        spec.model.path,
        text::count(inventory.parameters),
        inventory.units.len(),
        inventory.linears.len(),
    )
}

fn table(plan: &Plan, cost: &PlanCost) -> Table {
    let header = [
        "package",
        "units",
        "sites",
        "linears",
        "weights",
        "Grams",
        "passes",
        "forward",
        "Gram work",
        "solving",
    ];
    let mut table = Table::new(header);
    let row = |name: String, units: String, c: &PackageCost, grams: u64| {
        [
            name,
            units,
            c.sites.to_string(),
            c.linears.to_string(),
            text::count(c.weights),
            ByteSize(grams).to_string(),
            c.passes.to_string(),
            text::flops(c.forward_flops),
            text::flops(c.gram_flops),
            text::flops(c.solve_flops),
        ]
    };
    for (package, cost) in plan.packages.iter().zip(&cost.packages) {
        // People count units from 1, and both ends.
        let units = match package.units.len() {
            1 => package.units.end.to_string(),
            _ => format!("{}-{}", package.units.start + 1, package.units.end),
        };
        table.row(row((package.id.0 + 1).to_string(), units, cost, cost.gram_bytes));
    }
    table.rule();
    let units = plan.packages.last().map_or(0, |package| package.units.end);
    table.row(row("all".to_owned(), units.to_string(), &cost.total(), cost.largest_grams()));
    table
}

fn memory(needs: &MemoryNeeds, cost: &PlanCost) -> String {
    let (what, buffers) = match needs.activations >= needs.solver {
        true => ("activations", needs.activations),
        false => ("solver", needs.solver),
    };
    let parts = [
        (needs.model, "transformer"),
        (needs.text, "encoded prompts"),
        (cost.largest_grams(), "Grams of the largest package"),
        (buffers, what),
        (needs.base, "program"),
    ];
    let parts = parts.map(|(bytes, what)| format!("{} {what}", ByteSize(bytes)));
    format!("Peak memory, predicted: {}\n  ({})\n", ByteSize(needs.peak(cost)), parts.join(", "))
}
