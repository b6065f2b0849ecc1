use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::*;
use crate::pipeline::testing::{asset, copy_folder, edit_json};

const LENGTH: usize = 24;

/// Holds ids against those that transformers gives: 5.24.0 for CLIP, 4.51.3 for T5. The last one stands for the padding after it too.
fn assert_ids(tokenizer: &PromptTokenizer, cases: &[(&str, &[u32])]) {
    for (prompt, expected) in cases {
        let mut expected = expected.to_vec();
        expected.resize(LENGTH, *expected.last().unwrap());
        assert_eq!(tokenizer.encode(prompt).unwrap(), expected, "{prompt:?}");
    }
}

/// Odd texts, such as those that the slow class of transformers 4 read differently.
fn assert_clip_ids(tokenizer: &PromptTokenizer) {
    let cases: &[(&str, &[u32])] = &[
        ("", &[579, 580]),
        ("   ", &[579, 580]),
        ("A Red  CIRCLE,\tand\na blue square!", &[579, 320, 562, 552, 267, 519, 320, 569, 548, 256, 580]),
        (
            "it's the dog's 42 tricks; they'll go...",
            &[
                579, 72, 339, 6, 338, 514, 67, 78, 326, 6, 338, 275, 273, 525, 66, 74, 338, 282, 83, 71, 68,
                344, 6, 580,
            ],
        ),
        (
            "café naïve Ünïcode ﬁ ①",
            &[
                579, 66, 64, 69, 127, 358, 77, 64, 127, 107, 85, 324, 127, 120, 77, 127, 107, 66, 78, 67,
                324, 171, 105, 580,
            ],
        ),
        (
            "cafe\u{301} Ångström",
            &[579, 66, 64, 69, 127, 358, 127, 98, 77, 70, 82, 83, 81, 127, 114, 332, 580],
        ),
        (
            "漢字とかな 한글",
            &[
                579, 162, 120, 95, 161, 255, 245, 159, 223, 101, 159, 223, 233, 159, 223, 359, 169, 243, 250,
                166, 116, 478, 580,
            ],
        ),
        (
            "emoji 🙂\u{200d}↔\u{fe0f} flags 🇫🇷",
            &[
                579, 68, 76, 78, 73, 328, 172, 253, 247, 224, 158, 222, 235, 158, 228, 242, 171, 116, 493,
                69, 75, 64, 70, 580,
            ],
        ),
        (
            "zero\u{200b}width\u{a0}nbsp\u{0}nul\u{7}bell",
            &[
                579, 89, 68, 81, 334, 158, 222, 489, 86, 72, 67, 83, 327, 77, 65, 82, 335, 444, 77, 84, 331,
                451, 65, 580,
            ],
        ),
        (
            "<|endoftext|> in the <|startoftext|>middle <|EndOfText|>",
            &[579, 580, 72, 333, 514, 579, 76, 72, 67, 67, 517, 580],
        ),
        (
            &"a ".repeat(60),
            &[
                579, 320, 320, 320, 320, 320, 320, 320, 320, 320, 320, 320, 320, 320, 320, 320, 320, 320,
                320, 320, 320, 320, 320, 580,
            ],
        ),
        (
            "İstanbul ǅ ΣΑΣ",
            &[579, 328, 136, 485, 82, 83, 515, 65, 84, 331, 131, 484, 139, 225, 138, 109, 139, 481, 580],
        ),
        (
            &"x".repeat(300),
            &[
                579, 87, 87, 87, 87, 87, 87, 87, 87, 87, 87, 87, 87, 87, 87, 87, 87, 87, 87, 87, 87, 87, 87,
                580,
            ],
        ),
        ("</s> and <pad> tags", &[579, 27, 270, 338, 285, 519, 283, 79, 64, 323, 285, 83, 64, 70, 338, 580]),
        (
            "tab\u{85}nel \u{2028}ls \u{3000}ideographic",
            &[579, 83, 64, 321, 77, 68, 331, 75, 338, 72, 67, 68, 78, 70, 81, 64, 79, 529, 322, 580],
        ),
        ("don'T STOP 'S", &[579, 67, 512, 6, 339, 82, 559, 6, 338, 580]),
        ("½ ² ٣ 0.5", &[579, 126, 377, 126, 366, 149, 352, 271, 269, 276, 580]),
    ];
    assert_ids(tokenizer, cases);
}

#[test]
fn clip_reads_odd_texts_as_transformers_does() {
    assert_clip_ids(&PromptTokenizer::clip(&asset("tokenizer"), LENGTH).unwrap());
}

#[test]
fn t5_reads_odd_texts_as_transformers_does() {
    let tokenizer = PromptTokenizer::t5(&asset("tokenizer_3"), LENGTH).unwrap();
    let cases: &[(&str, &[u32])] = &[
        ("", &[1, 0]),
        ("   ", &[3, 1, 0]),
        (
            "A Red  CIRCLE,\tand\na blue square!",
            &[3, 53, 3, 70, 31, 30, 3, 55, 61, 70, 55, 64, 57, 90, 2, 27, 40, 30, 2, 27, 24, 16, 91, 1],
        ),
        (
            "it's the dog's 42 tricks; they'll go...",
            &[3, 35, 46, 94, 45, 6, 3, 30, 41, 33, 94, 45, 3, 83, 81, 3, 46, 44, 35, 29, 37, 45, 2, 1],
        ),
        (
            "café naïve Ünïcode ﬁ ①",
            &[3, 29, 27, 32, 2, 3, 40, 27, 2, 48, 31, 3, 2, 40, 2, 29, 41, 30, 31, 3, 32, 35, 3, 1],
        ),
        ("cafe\u{301} Ångström", &[3, 29, 27, 32, 2, 3, 2, 40, 33, 45, 46, 44, 2, 39, 1, 0]),
        ("漢字とかな 한글", &[3, 2, 3, 2, 1, 0]),
        (
            "emoji 🙂\u{200d}↔\u{fe0f} flags 🇫🇷",
            &[3, 31, 39, 41, 36, 35, 3, 2, 3, 32, 38, 27, 33, 45, 3, 2, 1, 0],
        ),
        (
            "zero\u{200b}width\u{a0}nbsp\u{0}nul\u{7}bell",
            &[3, 52, 31, 44, 41, 2, 49, 35, 30, 46, 34, 3, 40, 28, 45, 42, 2, 40, 47, 38, 2, 28, 31, 1],
        ),
        (
            "<|endoftext|> in the <|startoftext|>middle <|EndOfText|>",
            &[3, 2, 31, 40, 30, 41, 32, 46, 31, 50, 46, 2, 3, 35, 40, 6, 3, 2, 45, 46, 27, 44, 46, 1],
        ),
        (&"a ".repeat(60), &[5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 1]),
        ("İstanbul ǅ ΣΑΣ", &[3, 2, 45, 46, 27, 40, 28, 47, 38, 3, 56, 2, 3, 2, 1, 0]),
        (
            &"x".repeat(300),
            &[3, 50, 50, 50, 50, 50, 50, 50, 50, 50, 50, 50, 50, 50, 50, 50, 50, 50, 50, 50, 50, 50, 50, 1],
        ),
        ("</s> and <pad> tags", &[1, 7, 3, 0, 3, 46, 27, 33, 45, 1, 0]),
        (
            "tab\u{85}nel \u{2028}ls \u{3000}ideographic",
            &[3, 46, 27, 28, 2, 40, 31, 38, 3, 2, 38, 45, 3, 35, 30, 31, 41, 33, 44, 27, 42, 34, 35, 1],
        ),
        ("don'T STOP 'S", &[3, 30, 41, 40, 94, 72, 3, 71, 72, 67, 68, 3, 94, 71, 1, 0]),
        ("½ ² ٣ 0.5", &[3, 80, 2, 81, 3, 81, 3, 2, 3, 79, 89, 84, 1, 0]),
    ];
    assert_ids(&tokenizer, cases);
}

#[test]
fn clip_is_read_from_a_whole_tokenizer_file_first() {
    let folder = copy_folder("tokenizer");
    let parts = PromptTokenizer::clip(folder.path(), LENGTH).unwrap();
    parts.tokenizer.save(folder.path().join("tokenizer.json"), false).unwrap();
    fs::write(folder.path().join("merges.txt"), "left over").unwrap();
    assert_clip_ids(&PromptTokenizer::clip(folder.path(), LENGTH).unwrap());
    fs::remove_file(folder.path().join("vocab.json")).unwrap();
    assert_clip_ids(&PromptTokenizer::clip(folder.path(), LENGTH).unwrap());
}

/// SD3's second tokenizer pads with "!", which is then found in a text before anything else is.
#[test]
fn a_padding_token_of_its_own_is_honoured() {
    let listed = copy_folder("tokenizer");
    edit_json(&listed.path().join("tokenizer_config.json"), |config| {
        config["pad_token"] = json!("!");
        config["added_tokens_decoder"]["0"] = json!({"content": "!", "normalized": false, "special": true});
    });
    let mapped = copy_folder("tokenizer");
    edit_json(&mapped.path().join("tokenizer_config.json"), |config| {
        config.as_object_mut().unwrap().remove("added_tokens_decoder");
    });
    edit_json(&mapped.path().join("special_tokens_map.json"), |map| map["pad_token"] = json!("!"));
    let cases: &[(&str, &[u32])] = &[
        ("", &[579, 580, 0]),
        ("stop! now", &[579, 82, 559, 0, 77, 78, 342, 580, 0]),
        ("wow!!! really!", &[579, 86, 78, 342, 0, 0, 0, 518, 64, 75, 75, 344, 0, 580, 0]),
    ];
    for folder in [listed, mapped] {
        assert_ids(&PromptTokenizer::clip(folder.path(), LENGTH).unwrap(), cases);
    }
}

/// A copy of a tokenizer as transformers before 4.34 saved it, with tokens beside the vocabulary.
fn older(component: &str, added: &Value) -> tempfile::TempDir {
    let folder = copy_folder(component);
    edit_json(&folder.path().join("tokenizer_config.json"), |config| {
        config.as_object_mut().unwrap().remove("added_tokens_decoder");
    });
    fs::write(folder.path().join("added_tokens.json"), added.to_string()).unwrap();
    folder
}

/// Ids that transformers 5.24.0 gives.
#[test]
fn tokens_of_the_older_file_are_found_and_those_that_are_special_in_their_own_letters_alone() {
    let added = json!({ "<sks>_1": 582, "<sks>": 581 });
    let folder = older("tokenizer", &added);
    let cases: &[(&str, &[u32])] = &[
        ("a <sks> ring", &[579, 320, 581, 543, 580]),
        ("A <SKS> ring", &[579, 320, 581, 543, 580]),
        ("a<sks>b", &[579, 320, 581, 321, 580]),
        ("a <sks>_1 ring", &[579, 320, 582, 543, 580]),
    ];
    let tokenizer = PromptTokenizer::clip(folder.path(), LENGTH).unwrap();
    assert_ids(&tokenizer, cases);
    assert!(tokenizer.files().contains(&folder.path().join("added_tokens.json")));
    let special: &[(&str, &[u32])] = &[
        ("a <sks> ring", &[579, 320, 581, 543, 580]),
        ("A <SKS> ring", &[579, 320, 283, 82, 74, 338, 285, 543, 580]),
    ];
    for key in ["additional_special_tokens", "extra_special_tokens"] {
        let folder = older("tokenizer", &added);
        edit_json(&folder.path().join("tokenizer_config.json"), |config| config[key] = json!(["<sks>"]));
        assert_ids(&PromptTokenizer::clip(folder.path(), LENGTH).unwrap(), special);
    }
    // A list in the configuration is all that counts.
    let folder = copy_folder("tokenizer");
    fs::write(folder.path().join("added_tokens.json"), added.to_string()).unwrap();
    let listed = PromptTokenizer::clip(folder.path(), LENGTH).unwrap();
    assert_ids(&listed, &[("a <sks> ring", &[579, 320, 283, 82, 74, 338, 285, 543, 580])]);
    assert!(!listed.files().contains(&folder.path().join("added_tokens.json")));
    let folder = older("tokenizer_3", &json!({ "<sks>": 95 }));
    assert_ids(&PromptTokenizer::t5(folder.path(), LENGTH).unwrap(), &[("a<sks>b", &[5, 95, 3, 28, 1, 0])]);
    for (added, said) in [
        (
            json!({ "<sks>": 590 }),
            "gives \"<sks>\" the id 590 in `added_tokens.json`, but the vocabulary another",
        ),
        (json!({ "<sks>": "no" }), "`<sks>` is \"no\", but it must be a token id"),
        (json!({ "x".repeat(513): 581 }), "`added_tokens.json` has a token of 513 bytes"),
    ] {
        let error = PromptTokenizer::clip(older("tokenizer", &added).path(), LENGTH).unwrap_err().to_string();
        assert!(error.contains(said), "{said}: {error}");
    }
}

#[test]
fn a_long_prompt_keeps_its_end_token() {
    let tokenizer = PromptTokenizer::clip(&asset("tokenizer"), 5).unwrap();
    assert_eq!(tokenizer.encode("one two three four").unwrap().last(), Some(&580));
    assert_eq!(tokenizer.length(), 5);
    let error = tokenizer.encode(&"very ".repeat(20_000)).unwrap_err().to_string();
    assert!(error.contains("begins \"very very") && error.contains("100000 bytes"), "{error}");
}

#[test]
fn the_length_comes_from_the_configuration() {
    assert_eq!(max_length(&asset("tokenizer")).unwrap(), 24);
    for (value, message) in
        [(json!(1e30), "`model_max_length` is 1e+30"), (Value::Null, "is null, but this key is needed")]
    {
        let folder = copy_folder("tokenizer");
        edit_json(&folder.path().join("tokenizer_config.json"), |config| {
            config["model_max_length"] = value.clone()
        });
        let error = max_length(folder.path()).unwrap_err().to_string();
        assert!(error.contains("tokenizer_config.json") && error.contains(message), "{error}");
    }
}

/// What is done to a CLIP tokenizer's folder, and what the error must say.
type Damage = (fn(PathBuf), &'static str);

#[test]
fn a_damaged_clip_tokenizer_is_refused() {
    let cases: &[Damage] = &[
        (|folder| fs::remove_file(folder.join("vocab.json")).unwrap(), "vocab.json"),
        (|folder| fs::remove_file(folder.join("merges.txt")).unwrap(), "merges.txt"),
        (
            |folder| fs::write(folder.join("vocab.json"), "{\"a\": -1}").unwrap(),
            "vocab.json: is not the JSON",
        ),
        (|folder| fs::write(folder.join("vocab.json"), "{\"a\": 0}").unwrap(), "does not make a tokenizer"),
        (
            |folder| fs::write(folder.join("merges.txt"), "#version\na b c\n").unwrap(),
            "merges.txt: line 2 is not a pair",
        ),
        (
            |folder| {
                let merges = fs::read_to_string(folder.join("merges.txt")).unwrap();
                let (whole, _) = merges.trim().rsplit_once('\n').unwrap();
                fs::write(folder.join("merges.txt"), whole).unwrap();
            },
            "merges.txt: makes no token \"yellow</w>\", which vocab.json has: it is cut off",
        ),
        (|folder| fs::write(folder.join("merges.txt"), "").unwrap(), "merges.txt: makes no token"),
        (|folder| fs::write(folder.join("tokenizer_config.json"), "[]").unwrap(), "tokenizer_config.json"),
        (
            |folder| {
                edit_json(&folder.join("tokenizer_config.json"), |config| {
                    config["pad_token"] = json!("nowhere")
                })
            },
            "no id for the special token \"nowhere\"",
        ),
        (
            |folder| {
                edit_json(&folder.join("tokenizer_config.json"), |config| config["eos_token"] = json!(7))
            },
            "`eos_token` is 7, but it must be a token",
        ),
        (
            |folder| {
                edit_json(&folder.join("tokenizer_config.json"), |config| {
                    config["added_tokens_decoder"]["3"] = json!({"content": "<|endoftext|>"});
                });
            },
            "gives \"<|endoftext|>\" the id 3",
        ),
        (
            |folder| {
                edit_json(&folder.join("tokenizer_config.json"), |config| {
                    config["added_tokens_decoder"] = json!([1])
                })
            },
            "it must map ids to tokens",
        ),
    ];
    for (damage, message) in cases {
        let folder = copy_folder("tokenizer");
        damage(folder.path().to_owned());
        let error = PromptTokenizer::clip(folder.path(), LENGTH).unwrap_err().to_string();
        assert!(error.contains(message), "{message}: {error}");
    }
    let error = PromptTokenizer::clip(&asset("tokenizer"), 2).unwrap_err().to_string();
    assert!(error.contains("2 tokens leave no room for a prompt"), "{error}");
}

#[test]
fn a_damaged_t5_tokenizer_is_refused() {
    type Edit = fn(&mut Value);
    let edits: &[Edit] = &[
        |file| file["model"] = json!(3),
        |file| file["model"]["unk_id"] = json!(1_000_000),
        |file| file["model"]["vocab"] = json!([["a", "b"]]),
        |file| file["model"]["vocab"] = json!([]),
        |file| file["normalizer"] = json!({"type": "Replace", "pattern": {"Regex": "("}, "content": ""}),
        |file| file["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        |file| file["post_processor"]["special_tokens"] = json!({}),
        |file| file["version"] = json!("9"),
    ];
    let refuse = |folder: &Path| PromptTokenizer::t5(folder, LENGTH).unwrap_err().to_string();
    for (i, edit) in edits.iter().enumerate() {
        let folder = copy_folder("tokenizer_3");
        edit_json(&folder.path().join("tokenizer.json"), edit);
        let error = refuse(folder.path());
        let messages = ["tokenizer.json: is not the JSON expected here", "damaged"];
        assert!(messages.iter().any(|message| error.contains(message)), "{i}: {error}");
    }
    let folder = copy_folder("tokenizer_3");
    edit_json(&folder.path().join("tokenizer_config.json"), |config| config["padding_side"] = json!("left"));
    let error = refuse(folder.path());
    assert!(error.contains("`padding_side` is \"left\", but obsdiff supports \"right\""), "{error}");
    let folder = copy_folder("tokenizer_3");
    edit_json(&folder.path().join("tokenizer_config.json"), |config| {
        config["added_tokens_decoder"]["0"]["lstrip"] = json!("no");
    });
    let error = refuse(folder.path());
    assert!(error.contains("`lstrip` of each token must be true or false"), "{error}");
    let folder = copy_folder("tokenizer_3");
    fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    let error = refuse(folder.path());
    assert!(error.contains("has no tokenizer.json"), "{error}");
}
