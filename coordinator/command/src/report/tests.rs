use obsdiff_proto::JobSpec;
use obsdiff_tests::Prng;

use super::*;

/// Text that a page must not take for its own.
const HOSTILE: &str = "<script>alert(1)</script> \"&' </style> ```";

fn picture(colour: u8) -> Picture {
    Picture { width: 8, height: 8, rgb: vec![colour; 8 * 8 * 3] }
}

fn sample(prompt: &str) -> Sample {
    let (dense, pruned) = (picture(100), picture(110));
    Sample { prompt: Some(prompt.to_owned()), seed: 7, dense, pruned, relative_error: 0.25 }
}

/// A record of so many blocks of two linears.
fn record(blocks: usize, pattern: &str, path: &str) -> PruningRecord {
    let job = serde_json::json!({
        "model": { "path": path }, "sparsity": { "pattern": pattern, "ratio": if pattern == "2:4" { None } else { Some(0.5) } },
        "calibration": { "prompts": path }, "output": { "path": path }
    });
    let job: JobSpec = serde_json::from_value(job).unwrap();
    let linears: Vec<_> = (0..blocks)
        .flat_map(|block| ["attn.to_q", "ff.net.2"].map(|name| (block, name)))
        .map(|(block, name)| {
            serde_json::json!({
                "name": format!("transformer_blocks.{block}.{name}"), "shape": [8, 16],
                "target": { "unstructured": { "ratio": 0.5 } }, "package": 0, "zeros": 10 + block % 100,
                "damping": if block == 1 { 0.5 } else { 0.01 }, "gram_trace": 1.0, "unrefined_error": 0.02,
                "relative_error": 0.01 * (block + 1) as f64, "cost": 0.5
            })
        })
        .collect();
    let record = serde_json::json!({ "obsdiff": "0.1.0", "job": job, "inputs": [], "linears": linears });
    serde_json::from_value(record).unwrap()
}

fn loading(path: &str) -> Loading {
    let pipeline_class = "StableDiffusion3Pipeline".to_owned();
    Loading { path: path.to_owned(), url: None, pipeline_class, module: None, absent_text: Vec::new() }
}

fn report<'a>(record: &'a PruningRecord, samples: Vec<Sample>) -> ReportPage<'a> {
    let path = &record.job.output.path;
    ReportPage {
        name: name_of(path),
        record: Some(record),
        comparison: None,
        samples,
        per_step: &[0.01, 0.02, 0.04],
        loading: Some(loading(path)),
    }
}

#[test]
fn prompts_and_paths_are_text_whatever_they_hold() {
    let record = record(2, "unstructured", HOSTILE);
    let page = report(&record, vec![sample(HOSTILE)]).html();
    // The page's own script is its only one, and its own style ends once.
    assert_eq!((page.matches("<script").count(), page.matches("</style").count()), (1, 1));
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt; &quot;&amp;' &lt;/style&gt;"));
    let card = card::text(&record, &loading(HOSTILE), &card::Licence::of(std::path::Path::new("absent")));
    let outside: String = card.split("````").step_by(2).collect();
    assert!(!outside.contains("<script"), "{outside}");
}

#[test]
fn a_page_tells_what_the_record_and_the_pictures_hold() {
    let record = record(3, "unstructured", "out");
    let page = report(&record, vec![sample("a red circle")]).html();
    for says in [
        "<!DOCTYPE html><!-- written by obsdiff --><html lang=\"en\">",
        "alt=\"a red circle: by the pruned model\"",
        "Seed 7, PSNR 28.13 dB, latent error 0.2500.",
        "From 0.0100 after step 1 to 0.0400 after step 3.",
        "transformer_blocks.2.ff.net.2: 0.03",
        "2 linears needed more damping than the job asks for",
        "StableDiffusion3Pipeline.from_pretrained(&quot;out&quot;, torch_dtype=torch.bfloat16)",
    ] {
        assert!(page.contains(says), "{says} is not in {page}");
    }
    // Each heading of a section is reached from the top, and nothing is loaded from elsewhere.
    for id in page.split("<h2 id=\"").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(page.contains(&format!("<a href=\"#{id}\">")), "{id}");
    }
    assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("url("));
    assert!(!page.contains("to_sparse_semi_structured"));
}

#[test]
fn speed_of_two_to_four_is_told_where_it_is_the_pattern() {
    let record = record(2, "2:4", "out");
    let page = report(&record, Vec::new()).html();
    let card = card::text(&record, &loading("out"), &card::Licence::of(std::path::Path::new("absent")));
    for text in [&page, &card] {
        assert!(text.contains("to_sparse(weight)") && text.contains("--sparsity=enable"), "{text}");
    }
    assert!(
        card.starts_with(
            "---\nlibrary_name: diffusers\npipeline_tag: text-to-image\nbase_model: \"absent\"\n"
        ),
        "{card}"
    );
    assert!(card.contains("- \"2:4-sparsity\"\n---\n<!-- written by obsdiff -->\n\n# out\n"), "{card}");
    assert!(card.contains("pattern = \"2:4\""), "{card}");
}

#[test]
fn a_card_tells_errors_and_pictures_by_their_numbers() {
    let card = |prompts: usize, pictures: serde_json::Value| {
        let mut record = record(2, "unstructured", "out");
        let measured = serde_json::json!({
            "seconds": 1.0, "other_seconds": 0.0, "phases": [], "peak_memory_bytes": null,
            "held_out": { "relative_error": 0.05, "prompt_relative_errors": vec![0.05; prompts], "pictures": pictures }
        });
        record.measured = Some(serde_json::from_value(measured).unwrap());
        card::text(&record, &loading("out"), &card::Licence::of(std::path::Path::new("absent")))
    };
    let picture = |count: usize| serde_json::json!({ "count": count, "mean_psnr_decibels": 31.2 });
    let equal = serde_json::json!({ "count": 2, "mean_psnr_decibels": null });
    for (prompts, pictures, words) in [
        (1, picture(1), "On 1 prompt that took no part"),
        (1, picture(1), "same noise). The picture has a PSNR of 31.20 dB to the source's."),
        (2, picture(2), "same noise). The pictures have a mean PSNR of 31.20 dB to the source's."),
        (
            8,
            picture(4),
            "same noise). The pictures for 4 of them have a mean PSNR of 31.20 dB to the source's.",
        ),
        (8, equal, "same noise). The pictures for 2 of them equal the source's."),
    ] {
        let card = card(prompts, pictures);
        assert!(card.contains(words), "{card}");
    }
}

/// The linears of FLUX.1: 19 blocks of two streams and 38 of one.
fn linears_of_flux() -> Vec<String> {
    let double = ["to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out"];
    let networks = ["ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"];
    let single = ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "proj_out"];
    let double = double.map(|name| format!("attn.{name}")).into_iter().chain(networks.map(str::to_owned));
    let double: Vec<String> = double.collect();
    let of_double = (0..19).flat_map(|i| double.iter().map(move |n| format!("transformer_blocks.{i}.{n}")));
    let of_single =
        (0..38).flat_map(|i| single.iter().map(move |n| format!("single_transformer_blocks.{i}.{n}")));
    of_double.chain(of_single).collect()
}

/// As many linears as FLUX.1 has, whose figures all differ, and pictures that no format makes small.
#[test]
fn a_page_stays_below_two_megabytes() {
    let mut record = record(209, "unstructured", "out");
    let names = linears_of_flux();
    assert_eq!((names.len(), record.linears.len()), (418, 418));
    for (i, (linear, name)) in record.linears.iter_mut().zip(names).enumerate() {
        (linear.name, linear.cost) = (name, Some(1.0 / (i + 3) as f64));
    }
    let mut random = Prng::new(1);
    let mut noise = || Picture {
        width: 256,
        height: 256,
        rgb: (0..256 * 256 * 3).map(|_| random.next() as u8).collect(),
    };
    let samples = (0..4).map(|_| Sample { dense: noise(), pruned: noise(), ..sample("noise") }).collect();
    let page = report(&record, samples).html();
    assert!(page.len() < 2_000_000, "{} bytes", page.len());
    assert_eq!(page.matches("data:image/jpeg;base64,").count(), 12);
}

#[test]
fn a_page_tells_how_the_job_went_also_when_that_is_known_later() {
    let mut record = record(2, "unstructured", "out");
    let measured = serde_json::json!({
        "held_out": null, "seconds": 12.0, "other_seconds": 0.0, "phases": [], "peak_memory_bytes": 1024
    });
    record.measured = Some(serde_json::from_value(measured).unwrap());
    let before = report(&record, vec![sample("a red circle")]).html();
    assert!(before.contains("Nothing else is recorded.") && !before.contains("of each package"), "{before}");
    let course = serde_json::json!({
        "most_workers": 3, "workers_lost": 1, "groups": 2, "read_bytes": 3072, "written_bytes": 5120,
        "packages": [{
            "package": 0, "load_seconds": 0.0, "calibrate_seconds": 61.0, "reduce_seconds": 0.5, "solve_seconds": 2.0,
            "commit_seconds": 0.25, "gram_bytes": 2048, "sent_gram_bytes": 6144, "stored_bytes": 1024
        }],
        "faults": [{ "seconds": 7.0, "what": "worker 2 left (<gone>)" }], "further_faults": 4
    });
    record.measured.as_mut().unwrap().course = Some(serde_json::from_value(course).unwrap());
    let page = page::with_course(&before, &record).unwrap();
    assert_eq!(page, report(&record, vec![sample("a red circle")]).html());
    for says in [
        "3 workers took part at one time. 2 groups of workers formed to sum Grams.",
        "<td class=\"number\">1 min 1 s</td>",
        "<td>files of the source, read</td><td class=\"number\">3.0 KiB</td>",
        "<td>Grams, sent between workers</td><td class=\"number\">6.0 KiB</td>",
        "<td>pruned weights, written to the job's store</td><td class=\"number\">1.0 KiB</td>",
        "<td>files of the output, written</td><td class=\"number\">5.0 KiB</td>",
        "1 worker left before the end.",
        "<li>after 7.0 s: worker 2 left (&lt;gone&gt;)</li>",
        "<p>And 4 more.</p>",
    ] {
        assert!(page.contains(says), "{says} is not in {page}");
    }
}
