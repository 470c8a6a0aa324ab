//! The tool's `train` and `sample`: what they write, what they refuse, and in what state they leave files.
#![cfg(feature = "cli")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;
use wgrnn::train::text::{Tokens, Vocabulary, tokenize};
use wgrnn::train::{Evaluator, checkpoint, ngram};
use wgrnn::{Context, Size};

const SMALL: &[&str] = &[
    "--chars",
    "--hidden=16",
    "--embedding=8",
    "--batch=4",
    "--steps-per-sequence=8",
    "--sentences=1",
    "--device=cpu",
];

/// A folder with a text of 3,000 characters.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let book = include_str!("../examples/data/pride_and_prejudice.txt");
    fs::write(folder.path().join("text"), &book[..3_000]).unwrap();
    folder
}

fn wgrnn(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_wgrnn"))
        .args(args)
        .current_dir(folder)
        .output()
        .unwrap()
}

fn train(folder: &Path, more: &[&str]) -> Output {
    let args = [&["train"], SMALL, &["--text=text", "--iterations=20"], more].concat();
    wgrnn(folder, &args)
}

fn refused(output: &Output, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<_> = stderr
        .lines()
        .filter(|l| l.starts_with("wgrnn: "))
        .collect();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert_eq!(lines.len(), 1, "{stderr}");
    for word in words {
        assert!(lines[0].contains(word), "{word}: {stderr}");
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn losses(run: &Value) -> Vec<(u64, f64)> {
    let points = run["iterations"].as_array().unwrap().iter();
    points
        .map(|p| {
            (
                p["iteration"].as_u64().unwrap(),
                p["loss"].as_f64().unwrap(),
            )
        })
        .collect()
}

#[test]
fn a_run_writes_weights_and_its_course() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let output = train(folder.path(), &["--save=m.safetensors", "--json=run.json"]);
    assert!(output.status.success(), "{output:?}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    for word in [
        "validation perplexity",
        "unigram",
        "bigram",
        "tokens/s",
        "\n> ",
    ] {
        assert!(stdout.contains(word), "{word}: {stdout}");
    }
    let run = json(&at("run.json"));
    assert_eq!(run["device"], "CPU f32");
    let course = losses(&run);
    assert_eq!(course.len(), 20);
    assert_eq!((course[0].0, course[19].0), (1, 20));
    assert!(course[19].1 < course[0].1, "{course:?}");
    for name in [
        "validation_perplexity",
        "unigram_perplexity",
        "bigram_perplexity",
        "tokens_per_s",
    ] {
        assert!(run[name].as_f64().unwrap() > 1.0, "{name}");
    }
    assert!(run["iterations"][3]["grad_norm"].as_f64().unwrap() > 0.0);

    let sample = [
        "sample",
        "m.safetensors",
        "--sentences=2",
        "--prompt=It is ",
        "--device=cpu",
    ];
    let output = wgrnn(folder.path(), &sample);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.matches("It is ").count(), 2, "{text}");
    // The same seed writes the same.
    let again = wgrnn(folder.path(), &sample);
    assert_eq!(text.as_bytes(), again.stdout);
}

#[test]
fn a_resumed_run_goes_on_with_the_same_bits() {
    resumed(&[]);
}

#[test]
fn so_does_one_of_projected_layers_with_dropout_between_them() {
    resumed(&["--layers=3", "--cell=lstm_projected", "--dropout=0.3"]);
}

fn resumed(model: &[&str]) {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let lr = |iterations: &str| [iterations.to_owned(), "--lr=0.01".to_owned()];
    let run = |iterations: &str, more: &[&str]| {
        let schedule = lr(iterations);
        let args = [
            schedule.each_ref().map(String::as_str).as_slice(),
            model,
            more,
        ]
        .concat();
        let output = wgrnn(
            folder.path(),
            &[&["train"], SMALL, &["--text=text"], args.as_slice()].concat(),
        );
        assert!(output.status.success(), "{output:?}");
    };
    run(
        "--iterations=20",
        &["--json=whole.json", "--save=whole.safetensors"],
    );
    // Stopped half-way, as the learning rate has its end at 20 in both.
    run(
        "--iterations=20",
        &[
            "--stop-after=9",
            "--save=half.safetensors",
            "--json=first.json",
        ],
    );
    run(
        "--iterations=20",
        &[
            "--resume=half.safetensors",
            "--save=rest.safetensors",
            "--json=second.json",
        ],
    );
    let joined = [
        losses(&json(&at("first.json"))),
        losses(&json(&at("second.json"))),
    ]
    .concat();
    assert_eq!(joined, losses(&json(&at("whole.json"))));
    assert_eq!(
        fs::read(at("whole.safetensors")).unwrap(),
        fs::read(at("rest.safetensors")).unwrap()
    );
}

#[test]
fn texts_that_cannot_be_learnt() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("one"), "word word word word").unwrap();
    fs::write(at("empty"), "").unwrap();
    fs::write(at("short"), "to be or not").unwrap();
    fs::write(at("bytes"), [0xff, 0xfe, 0x00]).unwrap();
    let words = |text: &str| {
        wgrnn(
            folder.path(),
            &[
                "train",
                text,
                "--min-count=1",
                "--device=cpu",
                "--iterations=2",
            ],
        )
    };
    refused(&words("--text=one"), &["2 distinct tokens", "got 1"]);
    refused(&words("--text=empty"), &["2 distinct tokens", "got 0"]);
    refused(&words("--text=short"), &["tokens"]);
    refused(&words("--text=bytes"), &["bytes", "UTF-8"]);
    refused(&words("--text=missing"), &["missing", "No such file"]);
}

/// With any few tokens: as many streams validate as have a target each.
#[test]
fn a_short_validation_loses_nothing() {
    let folder = folder();
    for tokens in [2, 3, 10, 19, 23] {
        fs::write(
            folder.path().join("short"),
            &"to be or not to be, that"[..tokens],
        )
        .unwrap();
        let output = train(
            folder.path(),
            &["--validation=short", "--batch=8", "--save=m.safetensors"],
        );
        assert!(output.status.success(), "{tokens}: {output:?}");
        fs::remove_file(folder.path().join("m.safetensors")).unwrap();
    }
}

#[test]
fn options_out_of_range() {
    let folder = folder();
    let run = |more: &[&str]| train(folder.path(), more);
    refused(&run(&["--layers=0"]), &["--layers", "at least 1"]);
    refused(&run(&["--cell=lstn"]), &["--cell", "lstm", "lstn"]);
    refused(&run(&["--lr=NaN"]), &["--lr", "NaN"]);
    refused(&run(&["--lr=-1"]), &["--lr", "-1"]);
    refused(&run(&["--clip=0"]), &["clip"]);
    refused(&run(&["--dropout=1"]), &["dropout"]);
    refused(&run(&["--temperature=-1"]), &["temperature"]);
    refused(&run(&["--device=no such device"]), &["no such device"]);
    for zero in [
        "--batch=0",
        "--steps-per-sequence=0",
        "--hidden=0",
        "--embedding=0",
        "--iterations=0",
    ] {
        let output = wgrnn(
            folder.path(),
            &["train", "--text=text", "--device=cpu", zero],
        );
        refused(&output, &["at least 1", "got 0"]);
    }
}

#[test]
fn a_diverging_run_says_so_and_saves_nothing() {
    let folder = folder();
    let output = train(folder.path(), &["--lr=1e38", "--save=m.safetensors"]);
    refused(&output, &["finite", "nothing was saved"]);
    assert!(!folder.path().join("m.safetensors").exists());
}

#[test]
fn files_that_cannot_be_written_are_refused_before_training() {
    let folder = folder();
    refused(
        &train(folder.path(), &["--save=missing/m.safetensors"]),
        &["missing/m"],
    );
    refused(&train(folder.path(), &["--json=."]), &["file name"]);
    let output = train(folder.path(), &["--save=missing/m.safetensors"]);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(!stdout.contains("iterations"), "{stdout}");
}

#[test]
fn models_that_cannot_be_resumed() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    assert!(
        train(folder.path(), &["--save=m.safetensors"])
            .status
            .success()
    );
    let whole = fs::read(at("m.safetensors")).unwrap();
    let resume =
        |more: &[&str]| train(folder.path(), &[&["--resume=m.safetensors"], more].concat());
    refused(&resume(&[]), &["--iterations", "above the 20", "got 20"]);
    let another = [
        "train",
        "--text=text",
        "--resume=m.safetensors",
        "--iterations=30",
        "--device=cpu",
    ];
    let output = wgrnn(folder.path(), &[&another[..], &["--hidden=17"]].concat());
    refused(&output, &["--hidden", "16", "17"]);

    for cut in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(at("m.safetensors"), &whole[..cut]).unwrap();
        refused(&resume(&["--iterations=30"]), &["m.safetensors"]);
    }
    fs::copy(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/lstm_basic.safetensors"),
        at("m.safetensors"),
    )
    .unwrap();
    refused(&resume(&["--iterations=30"]), &["m.safetensors", "format"]);
}

/// What the tool prints, computed again from the text and the saved model.
#[test]
fn figures_are_of_the_last_tenth_of_the_text() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let output = train(folder.path(), &["--save=m.safetensors", "--json=run.json"]);
    assert!(output.status.success(), "{output:?}");
    let run = json(&at("run.json"));

    let text = fs::read_to_string(at("text")).unwrap();
    let tokens = tokenize(&text, Tokens::Chars);
    let (learnt, held_out) = tokens.split_at(tokens.len() - tokens.len() / 10);
    let vocabulary = Vocabulary::build(learnt, 1).unwrap();
    let [learnt, held_out] = [learnt, held_out].map(|t| vocabulary.encode_all(t));
    let near = |name: &str, want: f64| {
        let got = run[name].as_f64().unwrap();
        assert!((got / want - 1.0).abs() < 1e-9, "{name}: {got}, not {want}");
    };
    let size = vocabulary.len();
    near(
        "unigram_perplexity",
        ngram::unigram_perplexity(&learnt, &held_out, size).unwrap(),
    );
    near(
        "bigram_perplexity",
        ngram::bigram_perplexity(&learnt, &held_out, size).unwrap(),
    );
    let (model, _) = checkpoint::load(&at("m.safetensors"), &Context::cpu()).unwrap();
    let evaluator = Evaluator::new(&model, Size { steps: 8, batch: 4 }).unwrap();
    near(
        "validation_perplexity",
        evaluator.perplexity(&held_out).unwrap(),
    );
    let stdout = String::from_utf8(output.stdout).unwrap();
    let counts = format!(
        "{} training and {} validation",
        learnt.len(),
        held_out.len()
    );
    assert!(stdout.contains(&counts), "{counts}: {stdout}");
}

#[test]
fn the_learning_rate_falls_to_the_end() {
    let folder = folder();
    let run = |iterations: &str| {
        let output = train(
            folder.path(),
            &[iterations, "--stop-after=3", "--json=run.json"],
        );
        assert!(output.status.success(), "{output:?}");
        losses(&json(&folder.path().join("run.json")))
    };
    let (short, long) = (run("--iterations=3"), run("--iterations=1000"));
    // The first update has the full rate in both, the second two thirds of it in the short run.
    assert_eq!(short[..2], long[..2]);
    assert_ne!(short[2], long[2]);
}
