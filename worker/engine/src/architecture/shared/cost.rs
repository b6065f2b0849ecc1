//! What the linears of a forward call cost, from the inventory alone.

use obsdiff_proto::Inventory;

/// Operations of each block's linears that `computed` holds for, by name, on `[pictures, image tokens, text tokens]`.
pub(in crate::architecture) fn linear_flops(
    inventory: &Inventory,
    [batch, image, text]: [usize; 3],
    computed: impl Fn(&str) -> bool,
) -> Vec<f64> {
    let mut blocks = Vec::new();
    for unit in &inventory.units {
        let block = unit.block as usize;
        blocks.resize(blocks.len().max(block + 1), 0.0);
        for site in unit.sites.iter().map(|site| inventory.site(*site)) {
            let tokens = inventory.stream(site.stream).tokens(image as u64, text as u64);
            let linears = site.linears.iter().map(|linear| inventory.linear(*linear));
            let rows: usize = linears.filter(|linear| computed(&linear.name)).map(|linear| linear.rows).sum();
            blocks[block] += 2.0 * batch as f64 * tokens as f64 * site.width as f64 * rows as f64;
        }
    }
    blocks
}
