use serde_json::{Value, json};

use super::*;

/// Blocks of a list, with what went of a linear in each.
type List<'a> = (&'a str, usize);

fn linear(name: String, zeros: u64, error: f64, structured: bool) -> Value {
    let target = if structured {
        json!({"structured": {"ratio": 0.3}})
    } else {
        json!({"unstructured": {"ratio": 0.5}})
    };
    let error = (!structured).then_some(error);
    json!({"name": name, "shape": [100, 10], "target": target, "package": 0, "zeros": zeros, "damping": 0.01,
        "gram_trace": 1.0, "unrefined_error": null, "relative_error": error, "cost": error.map(|e| 0.01 / e)})
}

/// What a pipeline can do without.
const WITHOUT_T5: [&str; 2] = ["text_encoder_3", "tokenizer_3"];

/// A job with everything that a summary can show, on so many blocks.
fn summary(lists: &[List<'_>], structured: bool) -> Summary {
    let blocks: Vec<String> =
        lists.iter().flat_map(|(list, count)| (0..*count).map(move |i| format!("{list}.{i}"))).collect();
    let linears: Vec<Value> = (0u64..)
        .zip(&blocks)
        .map(|(i, block)| {
            linear(format!("{block}.attn.to_q"), 200 + 10 * i, 0.001 * (i + 1) as f64, structured)
        })
        .collect();
    let structures: Vec<Value> = blocks
        .iter()
        .filter(|_| structured)
        .flat_map(|block| {
            [
                json!({"name": format!("{block}.attn"), "package": 0, "heads": true, "of": 24, "kept": 17, "error": 0.02}),
                json!({"name": format!("{block}.ff"), "package": 0, "heads": false, "of": 6144, "kept": 4301, "error": 0.01}),
            ]
        })
        .collect();
    let sparsity = if structured {
        json!({"pattern": "structured", "ratio": 0.3})
    } else {
        json!({"pattern": "unstructured", "ratio": 0.5})
    };
    let held_out = json!({"relative_error": 0.05427, "prompt_relative_errors": [0.05, 0.06],
        "pictures": {"count": 2, "mean_psnr_decibels": 31.2}});
    let phase = |name: &str, seconds: f64| json!({"phase": name, "calls": 1, "seconds": seconds, "beside_seconds": 0.0});
    let phases = ["held-out prompts", "encode text", "forward", "solve", "gram", "store"]
        .map(|name| phase(name, 15.0));
    let record = json!({
        "obsdiff": "0.1.0", "inputs": [], "linears": linears, "structures": structures,
        "sizes": structured.then(|| json!({"parameters": [2_028_000_000u64, 1_530_000_000], "forward_flops": [4.0, 3.0]})),
        "job": {"model": {"path": "m"}, "sparsity": sparsity, "calibration": {"prompts": "p"}, "output": {"path": "out"}},
        "measured": {"held_out": held_out, "baseline": {"method": "magnitude", "weights": 8, "zeros": 4, "held_out": held_out},
            "expected_velocity_error": 0.0412, "seconds": 100.0, "other_seconds": 10.0, "phases": phases,
            "peak_memory_bytes": 74 << 20},
    });
    let (spans, predicted) = (SpanReport::default(), ByteSize(86 << 20));
    Summary::of_any_source(serde_json::from_value(record).unwrap(), spans, predicted)
}

#[test]
fn a_summary_is_one_screen_of_80_columns_whatever_the_model() {
    let models: [&[List<'_>]; 6] = [
        &[("transformer_blocks", 1)],
        &[("transformer_blocks", 4)],
        &[("transformer_blocks", 6)],
        &[("transformer_blocks", 24)],
        &[("transformer_blocks", 38)],
        &[("transformer_blocks", 19), ("single_transformer_blocks", 38)],
    ];
    for model in models {
        for (structured, absent) in
            [(false, vec![]), (true, vec![]), (false, WITHOUT_T5.to_vec()), (true, WITHOUT_T5.to_vec())]
        {
            let text = Summary { absent_text: absent, ..summary(model, structured) }.to_string();
            assert!(text.lines().count() < HEIGHT, "{} lines:\n{text}", text.lines().count());
            let widest = text.lines().map(|line| line.chars().count()).max();
            assert!(widest <= Some(WIDTH), "{widest:?} columns:\n{text}");
        }
    }
}

#[test]
fn a_screen_tells_what_went_by_block_and_the_worst_linears() {
    let text = summary(&[("transformer_blocks", 2)], false).to_string();
    let screen = "\
Pruned 20.50% of 2.00 K weights in 2 linears: unstructured, admm, global
error     final latents differ by 0.0543 (L2, relative) on 2 held-out prompts
pictures  PSNR 31.20 dB on these prompts (colours 7.0 of 255 levels off)
baseline  magnitude pruning (50.00% of the weights): error 0.0543, PSNR 31.20 dB
expected  velocity differs from the source's by 0.0412
time      1 min 40 s: held-out prompts 15%, encode text 15%, forward 15%
memory    peak 74.0 MiB (86.0 MiB predicted)
written   out (see report.html there)
block                  zeros
transformer_blocks.0  20.00%  ████████
transformer_blocks.1  21.00%  ████████▍
moving the velocity most         zeros    error  moves it by
transformer_blocks.1.attn.to_q  21.00%  0.00200       0.1000
transformer_blocks.0.attn.to_q  20.00%  0.00100       0.1000
load it in Python:
  pipeline = diffusers.DiffusionPipeline.from_pretrained(
      \"out\", torch_dtype=torch.bfloat16)";
    assert_eq!(text, screen);
}

#[test]
fn a_structured_job_tells_heads_and_neurons_and_never_zeros() {
    let text = summary(&[("transformer_blocks", 2)], true).to_string();
    assert!(
        text.starts_with("Removed 14 of 48 heads and 3686 of 12288 neurons: structured, obs\n"),
        "{text}"
    );
    assert!(
        text.contains("size      2.03 B -> 1.53 B parameters, 25.0% less arithmetic a forward call\n"),
        "{text}"
    );
    let of = |start: &str| {
        text.lines().find(|line| line.starts_with(start)).unwrap().split_whitespace().collect::<Vec<_>>()
    };
    assert_eq!(of("transformer_blocks.1  ")[1..7], ["17", "of", "24", "4301", "of", "6144"]);
    assert_eq!(
        of("transformer_blocks.0.attn"),
        ["transformer_blocks.0.attn", "17", "of", "24", "heads", "0.02000"]
    );
    assert!(
        text.contains("(diffusers 0.36 or later: AutoModel, DiffusionPipeline):\n")
            && text.contains("AutoModel.from_pretrained(\"out/transformer\", trust_remote_code=True)")
            && text.ends_with("DiffusionPipeline.from_pretrained(\"out\", transformer=t).to(t.dtype)"),
        "{text}"
    );
    assert!(!text.contains("zeros") && !text.contains(" - "), "{text}");
}

#[test]
fn diffusers_is_told_what_a_pipeline_does_without() {
    for (structured, end) in [
        (
            false,
            "from_pretrained(\n      \"out\", torch_dtype=torch.bfloat16,\n      text_encoder_3=None, tokenizer_3=None)",
        ),
        (
            true,
            "from_pretrained(\"out\", transformer=t,\n      text_encoder_3=None, tokenizer_3=None).to(t.dtype)",
        ),
    ] {
        let summary = summary(&[("transformer_blocks", 2)], structured);
        let text = Summary { absent_text: WITHOUT_T5.to_vec(), ..summary }.to_string();
        assert!(text.ends_with(end), "{text}");
    }
}

#[test]
fn many_blocks_are_columns_side_by_side() {
    let text = summary(&[("transformer_blocks", 19), ("single_transformer_blocks", 38)], false).to_string();
    let at =
        text.lines().position(|line| line == "zeros of each block, 20% to 76% (the highest)").expect(&text);
    let lines: Vec<&str> = text.lines().skip(at + 1).take(4).collect();
    assert_eq!(lines[3], "transformer_blocks.0 to 18, single_transformer_blocks.0 to 37");
    // Of the highest all three rows are full; between the lists there is a gap.
    assert_eq!(lines[2].chars().count(), 58);
    assert!(lines[..3].iter().all(|line| line.ends_with('█')), "{text}");
    assert_eq!(lines[2].chars().nth(19), Some(' '));
}

#[test]
fn the_bars_of_blocks_fit_a_narrow_terminal() {
    let blocks = |columns: usize, count: usize, structured: bool| -> Vec<String> {
        let text = summary(&[("transformer_blocks", count)], structured).fitted(columns);
        let of_blocks =
            text.lines().skip_while(|line| !line.starts_with("block") && !line.contains("of each block"));
        of_blocks.take(count.min(2) + 1).map(str::to_owned).collect()
    };
    assert_eq!(
        blocks(40, 2, false),
        [
            "block                  zeros",
            "transformer_blocks.0  20.00%  ██",
            "transformer_blocks.1  21.00%  ██▏"
        ]
    );
    // Where there is no room for bars, only figures are shown.
    let bare =
        ["block                  zeros", "transformer_blocks.0  20.00%", "transformer_blocks.1  21.00%"];
    assert_eq!(blocks(30, 2, false), bare);
    assert!(blocks(80, 2, true)[1].contains('█'));
    assert!(!blocks(40, 2, true)[1].contains('█'));
    // Side by side they are as narrow as they can be.
    assert!(blocks(40, 38, false)[2].chars().count() <= 40);
    assert!(blocks(80, 38, false)[2].chars().count() > 40);
}

#[test]
fn what_is_not_known_is_left_out() {
    let mut summary = summary(&[("transformer_blocks", 1)], false);
    summary.record.measured = None;
    summary.held_out = None;
    summary.record.linears[0].relative_error = None;
    let text = summary.to_string();
    let starts: Vec<&str> = text.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(
        starts,
        ["Pruned", "written", "block", "transformer_blocks.0", "load", "pipeline", "\"out\","]
    );
}

#[test]
fn what_was_shrunk_before_is_loaded_as_what_is_shrunk_now() {
    let dense = summary(&[("transformer_blocks", 2)], false);
    assert!(!dense.to_string().contains("trust_remote_code"));
    let text = Summary { source_is_shrunk: true, ..dense }.to_string();
    assert!(
        text.contains("AutoModel.from_pretrained(\"out/transformer\", trust_remote_code=True)"),
        "{text}"
    );
}
