//! `obsdiff models`.

use obsdiff_engine::architecture::SUPPORTED;

use crate::Result;
use crate::context::CommandContext;

/// Shows which models can be pruned.
///
/// # Errors
/// When standard output is closed.
pub(super) fn models(context: &mut CommandContext<'_>) -> Result<()> {
    for architecture in SUPPORTED {
        let encoders = architecture.text_encoders.iter().map(|slot| {
            let class = slot.kind.classes().join(" or ");
            if slot.optional { format!("{class} (optional)") } else { class }
        });
        let encoders = encoders.collect::<Vec<_>>().join(", ");
        writeln!(context.out, "{}", architecture.name)?;
        writeln!(context.out, "  pipeline       {}", architecture.pipeline_class)?;
        writeln!(context.out, "  transformer    {}", architecture.transformer_class)?;
        writeln!(context.out, "  text encoders  {encoders}")?;
    }
    Ok(())
}
