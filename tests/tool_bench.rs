//! `wgrnn bench` as a user runs it: exit statuses, messages, the JSON, the picture.
#![cfg(feature = "cli")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const TINY: &str = r#"
[[shape]]
name = "tiny-lstm"
source = "here"
cell = "lstm"
input = 3
hidden = 8
layers = 2
bidirectional = true
proj = 5
batch = 2
steps = 6
mode = ["infer", "train"]
group = "small"

[[shape]]
name = "tiny-gru"
source = "here"
cell = "gru"
input = 4
hidden = 20
layers = 1
bidirectional = false
proj = 0
batch = 1
steps = 1
mode = ["infer"]
group = "stream"
"#;

struct Folder {
    folder: tempfile::TempDir,
}

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("shapes.toml"), TINY).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `wgrnn bench` on the shapes here, as quickly as can be.
    fn bench(&self, args: &[&str], status: i32) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wgrnn"));
        command
            .args(["bench", "--min-time", "0", "--budget", "2"])
            .args(["--shapes", "shapes.toml"])
            .args(args)
            .current_dir(self.folder.path())
            .stdin(Stdio::null());
        let out = command.output().unwrap();
        let shown = format!("{command:?}\n{}\n{}", text(&out.stdout), text(&out.stderr));
        assert_eq!(out.status.code(), Some(status), "{shown}");
        assert!(!text(&out.stderr).contains("panicked"), "{shown}");
        out
    }

    /// The one line that says why it was refused.
    fn refused(&self, args: &[&str]) -> String {
        let out = self.bench(args, 2);
        assert!(out.stdout.is_empty(), "{}", text(&out.stdout));
        let stderr = text(&out.stderr);
        assert!(stderr.starts_with("wgrnn: "), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        stderr
    }

    fn json(&self, name: &str) -> Value {
        json(&self.path(name))
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Names and modes of the results.
fn names(report: &Value) -> Vec<(&str, &str)> {
    let results = report["results"].as_array().unwrap().iter();
    results
        .map(|r| (r["name"].as_str().unwrap(), r["mode"].as_str().unwrap()))
        .collect()
}

const TIMES: [&str; 9] = [
    "median_ms",
    "min_ms",
    "cold_ms",
    "us_per_step",
    "gflops",
    "gb_per_s",
    "floor_ms",
    "percent_of_floor",
    "plan_mb",
];

/// What all comparisons read, and what is this tool's own.
fn assert_schema(report: &Value) {
    assert_eq!(report["tool"], "wgrnn");
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert!(report["device"].is_string() && report["dtype"].is_string());
    let peak = &report["settings"]["measured_peak"];
    for result in report["results"].as_array().unwrap() {
        for key in ["name", "mode", "status", "note"] {
            assert!(result[key].is_string(), "{key}: {result}");
        }
        if result["status"] != "ok" {
            for key in TIMES {
                assert!(result[key].is_null(), "{key}: {result}");
            }
            continue;
        }
        for key in TIMES {
            assert!(result[key].as_f64().unwrap() > 0.0, "{key}: {result}");
        }
        assert!(result["samples"].as_u64().unwrap() >= 1, "{result}");
        assert!(result["verified"].as_u64().unwrap() >= 1, "{result}");
        assert!(!result["strategy"].as_str().unwrap().is_empty(), "{result}");
        let of = |key: &str| result[key].as_f64().unwrap();
        assert!(of("min_ms") <= of("median_ms"), "{result}");
        let memory = result["memory_mb"].as_object().unwrap();
        let sum: f64 = memory.values().map(|v| v.as_f64().unwrap()).sum();
        assert!((sum - of("plan_mb")).abs() < 1e-4 * sum, "{result}");
        for key in ["gflops", "dispatch_us"] {
            assert!(peak[key].as_f64().unwrap() >= 0.0, "{peak}");
        }
        assert!(!peak["bandwidth"].as_array().unwrap().is_empty(), "{peak}");
    }
}

fn software() -> Option<&'static str> {
    let adapters = pollster::block_on(wgrnn::Context::adapters());
    if adapters.is_empty() {
        let required = std::env::var("WGRNN_REQUIRE_GPU").as_deref() == Ok("1");
        assert!(
            !required,
            "WGRNN_REQUIRE_GPU=1, and this machine has no adapter"
        );
        eprintln!("no adapter on this machine, so nothing was timed on a GPU");
        return None;
    }
    // All of their names have this.
    Some("(")
}

#[test]
fn all_shapes_on_the_cpu() {
    let folder = Folder::new();
    let out = folder.bench(&["--backend", "cpu", "--json", "out.json"], 0);
    let report = folder.json("out.json");
    assert_schema(&report);
    assert_eq!(report["device"], "CPU f32");
    let all = [
        ("tiny-lstm", "infer"),
        ("tiny-lstm", "train"),
        ("tiny-gru", "infer"),
    ];
    assert_eq!(names(&report), all);
    for result in report["results"].as_array().unwrap() {
        assert_eq!(result["status"], "ok", "{result}");
        assert!(result["device_ms"].is_null() && result["throughput_ms"].is_null());
        assert!(result["profile"].is_null());
        let steps = if result["name"] == "tiny-gru" { 1 } else { 6 };
        assert_eq!(result["verified"], steps);
        let median = result["median_ms"].as_f64().unwrap();
        // 2·T·N·G·H·(I + P) for each direction of each layer.
        let flops = match (
            result["name"].as_str().unwrap(),
            result["mode"].as_str().unwrap(),
        ) {
            ("tiny-gru", _) => 2 * 60 * (4 + 20),
            (_, mode) => {
                let passes = if mode == "train" { 3 } else { 1 };
                passes * 2 * (2 * 6 * 2 * 32) * ((3 + 5) + (10 + 5))
            }
        };
        let gflops = f64::from(flops) / (median * 1e6);
        let got = result["gflops"].as_f64().unwrap();
        assert!((got - gflops).abs() < 1e-4 * gflops, "{gflops} {result}");
    }
    let stdout = text(&out.stdout);
    for part in [
        "CPU f32",
        "measured here:",
        "tiny-lstm",
        "tiny-gru",
        "train",
    ] {
        assert!(stdout.contains(part), "{part}: {stdout}");
    }
}

#[test]
fn on_an_adapter_the_device_is_timed_too() {
    let Some(name) = software() else { return };
    let folder = Folder::new();
    folder.bench(&["--adapter", name, "--json", "out.json"], 0);
    let report = folder.json("out.json");
    assert_schema(&report);
    let adapter = &report["settings"]["adapter"];
    for key in ["name", "backend", "type", "driver"] {
        assert!(adapter[key].is_string(), "{adapter}");
    }
    for result in report["results"].as_array().unwrap() {
        assert_eq!(result["status"], "ok", "{result}");
        assert!(result["throughput_ms"].as_f64().unwrap() > 0.0, "{result}");
        let device = &result["device_ms"];
        assert!(
            device.as_f64().is_some_and(|ms| ms > 0.0)
                || result["note"].as_str().unwrap().contains("timestamps"),
            "{result}"
        );
    }
}

#[test]
fn a_profile_adds_up_and_is_drawn() {
    let folder = Folder::new();
    let mut devices = vec![["--backend", "cpu"]];
    devices.extend(software().map(|name| ["--adapter", name]));
    for device in devices {
        let out = folder.bench(
            &[
                &device[..],
                &["--only", "lstm", "--mode", "train", "--profile"],
            ]
            .concat(),
            0,
        );
        assert!(
            text(&out.stdout).contains(" x lstm"),
            "{}",
            text(&out.stdout)
        );
        let drawn = ["--roofline", "roof.svg", "--json", "out.json"];
        folder.bench(&[&device[..], &["--only", "lstm"], &drawn].concat(), 0);
        let report = folder.json("out.json");
        for result in report["results"].as_array().unwrap() {
            let kernels = result["profile"].as_array().unwrap();
            let named = |k: &Value| k["kernel"].as_str().unwrap().starts_with("gemm");
            assert!(kernels.iter().any(named), "{result}");
            let mut shares = 0.0;
            for kernel in kernels {
                assert!(kernel["count"].as_u64().unwrap() > 0, "{kernel}");
                assert!(kernel["total_ms"].as_f64().unwrap() >= 0.0, "{kernel}");
                shares += kernel["share"].as_f64().unwrap();
            }
            assert!((shares - 1.0).abs() < 1e-3, "{result}");
        }
        let svg = fs::read_to_string(folder.path("roof.svg")).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for part in [
            "GFLOP/s",
            "gemm",
            "tiny-lstm infer",
            "tiny-lstm train",
            "<circle",
        ] {
            assert!(svg.contains(part), "{part}");
        }
    }
}

#[test]
fn shapes_are_selected() {
    let folder = Folder::new();
    let selected = |args: &[&str]| {
        let out = ["--backend", "cpu", "--json", "out.json"];
        folder.bench(&[&out[..], args].concat(), 0);
        let report = folder.json("out.json");
        let names = names(&report).into_iter();
        names.map(|(n, m)| format!("{n} {m}")).collect::<Vec<_>>()
    };
    assert_eq!(selected(&["--only", "^tiny-g"]), ["tiny-gru infer"]);
    assert_eq!(selected(&["--mode", "train"]), ["tiny-lstm train"]);
    assert_eq!(selected(&["--group", "stream"]), ["tiny-gru infer"]);
    let none = folder.refused(&["--only", "gru", "--mode", "train"]);
    assert!(none.contains("such that a shape is left"), "{none}");
    // clap's own, over several lines.
    folder.bench(&["--only", "("], 2);
    folder.bench(&["--min-time", "-1"], 2);
}

#[test]
fn a_forced_strategy() {
    let folder = Folder::new();
    for strategy in ["steps", "sequence"] {
        let args = ["--backend", "cpu", "--only", "gru", "--json", "out.json"];
        folder.bench(&[&args[..], &["--strategy", strategy]].concat(), 0);
        let report = folder.json("out.json");
        let used = report["results"][0]["strategy"].as_str().unwrap();
        assert!(used.starts_with(strategy), "{used}");
        let forced = format!("strategy={strategy}");
        assert_eq!(report["results"][0]["forced"], forced.as_str());
    }
}

#[test]
fn the_rules_for_another_device() {
    let folder = Folder::new();
    let only = ["--only", "gru", "--json", "out.json"];
    let args = ["--backend", "cpu", "--rules", "gpu"];
    folder.bench(&[&only[..], &args].concat(), 0);
    let report = folder.json("out.json");
    assert_eq!(report["device"], "CPU f32, planned for gpu");
    let Some(adapter) = software() else { return };
    let others = ["software", "gpu"].map(|rules| {
        let args = ["--adapter", adapter, "--rules", rules];
        folder.bench(&[&only[..], &args].concat(), 0);
        let report = folder.json("out.json");
        let device = report["device"].as_str().unwrap();
        device.ends_with(&format!(", planned for {rules}"))
    });
    assert_eq!(others.iter().filter(|other| **other).count(), 1);
}

#[test]
fn what_is_fastest_is_measured_and_kept() {
    let folder = Folder::new();
    let args = ["--backend", "cpu", "--only", "gru", "--json", "out.json"];
    let mut kept = Vec::new();
    for _ in 0..2 {
        folder.bench(&[&args[..], &["--tune", "tuning.txt"]].concat(), 0);
        assert!(folder.json("out.json")["results"][0]["forced"].is_string());
        kept.push(fs::read_to_string(folder.path("tuning.txt")).unwrap());
    }
    // Measured once.
    assert_eq!(kept[0], kept[1]);
    assert_eq!(kept[0].lines().count(), 2, "{}", kept[0]);
    fs::write(folder.path("tuning.txt"), "something else").unwrap();
    folder.refused(&["--backend", "cpu", "--tune", "tuning.txt"]);
}

#[test]
fn wrong_files_and_devices_are_refused_in_a_line() {
    let folder = Folder::new();
    fs::write(folder.path("wrong.toml"), TINY.replace("hidden", "hiden")).unwrap();
    let wrong = folder.refused(&["--shapes", "wrong.toml"]);
    assert!(
        wrong.contains("wrong.toml: line 7: unknown field `hiden`"),
        "{wrong}"
    );
    let missing = folder.refused(&["--shapes", "missing.toml"]);
    assert!(missing.contains("missing.toml"), "{missing}");
    for args in [
        ["--backend", "cpu", "--adapter", "any"],
        ["--backend", "gpu", "--adapter", "no such adapter"],
        ["--backend", "gpu", "--adapter", "cpu"],
        ["--backend", "cpu", "--json", "missing/out.json"],
        ["--backend", "cpu", "--roofline", "missing/out.svg"],
    ] {
        folder.refused(&args);
    }
}

#[test]
fn what_is_not_supported_is_status_3() {
    let folder = Folder::new();
    let f16 = [
        "--backend",
        "cpu",
        "--precision",
        "f16",
        "--activations",
        "f16",
        "--json",
        "out.json",
    ];
    let out = folder.bench(&f16, 3);
    assert!(text(&out.stdout).contains("unsupported: "));
    let report = folder.json("out.json");
    assert_schema(&report);
    assert_eq!(report["dtype"], "f16");
    let results = report["results"].as_array().unwrap();
    assert_eq!(results.len(), 3);
    // A projection has no kernels for 16-bit weights; the other layer is timed.
    for result in &results[..2] {
        assert_eq!(result["status"], "unsupported", "{result}");
        assert!(result["note"].as_str().unwrap().contains("f16"), "{result}");
    }
    assert_eq!(results[2]["status"], "ok", "{}", results[2]);
    folder.bench(&[&f16[..], &["--only", "gru"]].concat(), 0);
}

/// Each is refused in a line of its own, within moments and before anything of that size is asked for.
#[test]
fn sizes_that_no_machine_holds() {
    let folder = Folder::new();
    let (shape, _) = TINY.split_once("\n[[shape]]\nname = \"tiny-gru\"").unwrap();
    let huge = "9223372036854775807";
    let sizes = [
        (huge, "2"),
        ("6", huge),
        (huge, huge),
        ("1000000000", "2"),
        ("6", "1000000000"),
        ("1000000000", "1000000000"),
        ("4000000", "65000"),
    ];
    let shapes = sizes.iter().enumerate().map(|(nth, (steps, batch))| {
        shape
            .replace("tiny-lstm", &format!("huge-{nth}"))
            .replace("steps = 6", &format!("steps = {steps}"))
            .replace("batch = 2", &format!("batch = {batch}"))
    });
    fs::write(folder.path("shapes.toml"), shapes.collect::<String>()).unwrap();
    let out = folder.bench(&["--backend=cpu", "--json=report.json"], 1);
    let stdout = text(&out.stdout);
    let report = folder.json("report.json");
    let results = report["results"].as_array().unwrap();
    assert_eq!(results.len(), 2 * sizes.len(), "{stdout}");
    for result in results {
        assert_ne!(result["status"], "ok", "{result}");
    }
}
