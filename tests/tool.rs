//! The tool as a user runs it: exit statuses, messages, the JSON.
#![cfg(feature = "cli")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use wgrnn::Context;
use wgrnn::interop::safetensors::{self, Data};
use wgrnn::kernels::ALL;
use wgrnn::wgpu;

fn wgrnn(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wgrnn"));
    command.args(args).stdin(Stdio::null());
    command
}

/// Runs it and checks the status and that an error is one line.
fn run(args: &[&str], status: i32) -> Output {
    expect(wgrnn(args), status)
}

fn expect(mut command: Command, status: i32) -> Output {
    let out = command.output().unwrap();
    let (stdout, stderr) = (text(&out.stdout), text(&out.stderr));
    let shown = format!("{command:?}\n{stdout}\n{stderr}");
    assert_eq!(out.status.code(), Some(status), "{shown}");
    let errors = stderr.lines().filter(|l| l.starts_with("wgrnn: ")).count();
    // clap's own, over several lines.
    let usage = stderr.contains("--help");
    assert_eq!(
        errors + usize::from(usage),
        usize::from(status == 2),
        "{shown}"
    );
    assert!(!stderr.contains("panicked"), "{shown}");
    out
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn data(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let path = folder.join(format!("{name}.safetensors"));
    path.to_str().unwrap().to_owned()
}

/// A case with one of its arrays changed.
fn altered(folder: &Path, name: &str, array: &str, change: impl Fn(&mut Data)) -> PathBuf {
    let mut archive = safetensors::load(Path::new(&data(name))).unwrap();
    change(&mut archive.tensors.get_mut(array).unwrap().data);
    let path = folder.join(format!("{name}_altered.safetensors"));
    safetensors::save(&path, &archive).unwrap();
    path
}

/// A case of no steps, which no layer runs.
fn without_steps(folder: &Path) -> String {
    let mut archive = safetensors::load(Path::new(&data("rnn_tanh_basic"))).unwrap();
    for name in ["x", "dy", "out.y", "grad.x"] {
        let array = archive.tensors.get_mut(name).unwrap();
        array.shape[0] = 0;
        match &mut array.data {
            Data::F32(values) => values.clear(),
            Data::F64(values) => values.clear(),
            other => panic!("{other:?}"),
        }
    }
    let path = folder.join("no_steps.safetensors");
    safetensors::save(&path, &archive).unwrap();
    path.to_str().unwrap().to_owned()
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The schema: every field of every result, and counts that add up.
fn assert_schema(value: &Value) -> [u64; 3] {
    let results = value["results"].as_array().unwrap();
    let fields = [
        "adapter",
        "backend",
        "case",
        "dtype",
        "error",
        "status",
        "tensor",
        "tolerance",
    ];
    for result in results {
        let object = result.as_object().unwrap();
        let mut keys: Vec<_> = object.keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(keys, fields, "{result}");
        for key in ["adapter", "backend", "case", "dtype", "status", "tensor"] {
            assert!(result[key].is_string(), "{result}");
        }
        assert!(["cpu", "gpu"].contains(&result["backend"].as_str().unwrap()));
        assert!(["f32", "f64"].contains(&result["dtype"].as_str().unwrap()));
        let (error, tolerance) = (&result["error"], &result["tolerance"]);
        match result["status"].as_str().unwrap() {
            "pass" => assert!(
                error.as_f64().unwrap() <= tolerance.as_f64().unwrap(),
                "{result}"
            ),
            "fail" => assert!(
                error.is_null() || error.as_f64() > tolerance.as_f64(),
                "{result}"
            ),
            "unsupported" => assert!(error.is_null() && tolerance.is_null(), "{result}"),
            _ => panic!("{result}"),
        }
    }
    let counts = ["passed", "failed", "unsupported"].map(|key| value[key].as_u64().unwrap());
    let of = |status| results.iter().filter(|r| r["status"] == status).count() as u64;
    assert_eq!(counts, ["pass", "fail", "unsupported"].map(of));
    counts
}

#[test]
fn usage() {
    assert!(text(&run(&["--help"], 0).stdout).contains("check"));
    run(&["--version"], 0);
    run(&[], 2);
    run(&["chekc"], 2);
    run(&["check", "--backend", "tpu"], 2);
    run(&["check", "--locksteps"], 2);
    run(&["plan", "--cell", "transformer"], 2);
    run(&["plan", "--hidden", "-1"], 2);
    run(&["info", "--nothing"], 2);
}

#[test]
fn kernels_on_the_cpu() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.json");
    let out = run(
        &[
            "check",
            "--backend",
            "cpu",
            "--json",
            path.to_str().unwrap(),
        ],
        0,
    );
    let stdout = text(&out.stdout);
    for kernel in ALL {
        assert!(stdout.contains(kernel.name), "{stdout}");
    }
    let value = json(&path);
    let [passed, failed, unsupported] = assert_schema(&value);
    assert!(passed as usize >= ALL.len() && failed == 0 && unsupported == 0);
}

#[test]
fn a_case_that_passes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.json");
    let case = data("lstm_basic");
    let json_path = path.to_str().unwrap();
    run(
        &["check", &case, "--backend", "cpu", "--json", json_path],
        0,
    );
    let value = json(&path);
    assert_eq!(assert_schema(&value)[1..], [0, 0]);
    let results = value["results"].as_array().unwrap();
    let has = |dtype: &str, tensor: &str| {
        results
            .iter()
            .any(|r| r["dtype"] == dtype && r["tensor"] == tensor && r["case"] == "lstm_basic")
    };
    for dtype in ["f32", "f64"] {
        for tensor in [
            "out.y",
            "out.cn (inference)",
            "out.y (streams)",
            "grad.c0",
            "grad.bias_hh_l0",
        ] {
            assert!(has(dtype, tensor), "{dtype} {tensor}");
        }
    }
}

#[test]
fn lockstep() {
    let case = data("gru_basic");
    let out = run(&["check", &case, "--backend", "cpu", "--lockstep"], 0);
    assert!(text(&out.stdout).contains("no step differs"));
}

#[test]
fn an_unsupported_case_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.json");
    let (good, other) = (data("gru_basic"), without_steps(folder.path()));
    let json_path = path.to_str().unwrap();
    let out = run(
        &[
            "check",
            &good,
            &other,
            "--backend",
            "cpu",
            "--json",
            json_path,
        ],
        3,
    );
    let line = "not supported: an empty sequence";
    assert!(text(&out.stdout).contains(line));
    let [passed, failed, unsupported] = assert_schema(&json(&path));
    assert!(passed > 0);
    assert_eq!((failed, unsupported), (0, 2), "one for each precision");
}

#[test]
fn a_wrong_result_fails() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.json");
    let case = altered(folder.path(), "gru_basic", "out.y", |data| match data {
        Data::F64(values) => values[7] += 1e-3,
        other => panic!("{other:?}"),
    });
    let args = [
        "check",
        case.to_str().unwrap(),
        "--backend",
        "cpu",
        "--json",
    ];
    let out = run(&[&args[..], &[path.to_str().unwrap()]].concat(), 1);
    assert!(text(&out.stdout).contains("FAIL"));
    let value = json(&path);
    let [_, failed, _] = assert_schema(&value);
    assert_eq!(failed, 18, "y in nine ways and two precisions");
    // An unsupported case beside it does not hide it.
    run(
        &[
            "check",
            case.to_str().unwrap(),
            &without_steps(folder.path()),
            "--backend",
            "cpu",
        ],
        1,
    );
}

#[test]
fn a_nan_in_the_input_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.json");
    let case = altered(folder.path(), "lstm_basic", "x", |data| match data {
        Data::F32(values) => values[0] = f32::NAN,
        other => panic!("{other:?}"),
    });
    let args = [
        "check",
        case.to_str().unwrap(),
        "--backend",
        "cpu",
        "--json",
    ];
    run(&[&args[..], &[path.to_str().unwrap()]].concat(), 1);
    let value = json(&path);
    assert!(assert_schema(&value)[1] > 0);
    let infinite =
        |r: &Value| r["tensor"] == "out.y" && r["status"] == "fail" && r["error"].is_null();
    assert!(value["results"].as_array().unwrap().iter().any(infinite));
}

#[test]
fn files_that_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    run(
        &["check", &at("missing.safetensors"), "--backend", "cpu"],
        2,
    );
    run(
        &["check", folder.path().to_str().unwrap(), "--backend", "cpu"],
        2,
    );
    std::fs::write(at("text.safetensors"), "not a tensor").unwrap();
    run(&["check", &at("text.safetensors"), "--backend", "cpu"], 2);
    let whole = std::fs::read(data("gru_basic")).unwrap();
    std::fs::write(at("cut.safetensors"), &whole[..whole.len() - 5]).unwrap();
    run(&["check", &at("cut.safetensors"), "--backend", "cpu"], 2);
    // A good file beside a bad one does not make it good.
    run(
        &[
            "check",
            &data("gru_basic"),
            &at("cut.safetensors"),
            "--backend",
            "cpu",
        ],
        2,
    );
    let case = data("gru_basic");
    let nowhere = at("no such folder/out.json");
    run(&["check", &case, "--backend", "cpu", "--json", &nowhere], 2);
}

#[test]
fn adapters_that_do_not_exist() {
    let case = data("gru_basic");
    let out = run(
        &["check", &case, "--adapter", "no adapter is called this"],
        2,
    );
    assert!(text(&out.stderr).contains("this machine has: "));
    run(&["check", "--backend", "cpu", "--adapter", "any"], 2);
}

#[test]
fn the_rules_for_another_device() {
    let case = data("gru_basic");
    let check = |args: &[&str]| {
        let out = run(&[&["check", case.as_str()], args].concat(), 0);
        text(&out.stdout)
    };
    let out = check(&["--backend", "cpu", "--rules", "gpu"]);
    assert!(out.contains("] CPU f32, planned for gpu\n"), "{out}");
    for adapter in pollster::block_on(Context::adapters()) {
        let name = Context::adapter_name(&adapter);
        for rules in ["software", "gpu"] {
            let out = check(&["--adapter", &name, "--backend", "gpu", "--rules", rules]);
            let own = match adapter.get_info().device_type {
                wgpu::DeviceType::Cpu => "software",
                _ => "gpu",
            };
            let said = out.contains(&format!("] {name}, planned for {rules}\n"));
            assert_eq!(said, own != rules, "{out}");
        }
    }
    for rules in ["cpu", "none"] {
        run(&["check", &case, "--rules", rules], 2);
    }
}

/// The library is built without OpenGL, so asking wgpu for that alone hides every adapter.
fn without_adapters(args: &[&str]) -> Command {
    let mut command = wgrnn(args);
    command.env("WGPU_BACKEND", "gl");
    command
}

#[test]
fn a_machine_without_adapters() {
    let case = data("gru_basic");
    expect(without_adapters(&["check", &case, "--backend", "gpu"]), 2);
    let out = expect(without_adapters(&["check", &case]), 0);
    assert!(text(&out.stdout).contains("no GPU adapter: only the CPU was checked"));
    let out = expect(without_adapters(&["info"]), 0);
    assert!(text(&out.stdout).contains("auto takes CPU f32: there is no adapter"));
}

#[test]
fn info() {
    let stdout = text(&run(&["info"], 0).stdout);
    assert!(stdout.contains("auto takes "), "{stdout}");
    for kernel in ALL {
        assert!(stdout.contains(kernel.name), "{stdout}");
    }
}

#[test]
fn plan() {
    let sizes = [
        "--input", "3", "--hidden", "70", "--steps", "40", "--batch", "2",
    ];
    let forward = text(&run(&[&["plan"], &sizes[..]].concat(), 0).stdout);
    assert!(forward.contains("1 x lstm.sequence_forward"), "{forward}");
    assert!(!forward.contains("backward"), "{forward}");
    let args = [&["plan", "--cell", "gru", "--train"], &sizes[..]].concat();
    let both = text(&run(&args, 0).stdout);
    assert!(both.contains("1 x gru.sequence_backward"), "{both}");
    let why = "registers of weights, at most 128";
    assert!(both.contains(why), "{both}");
    assert!(both.contains("total"), "{both}");
    let forced = [&args[..], &["--strategy", "steps"]].concat();
    let forced = text(&run(&forced, 0).stdout);
    assert!(forced.contains("40 x gru.backward"), "{forced}");
    assert!(
        forced.contains("forced; the rule: an invocation has"),
        "{forced}"
    );
    // A device that is here, and the floor: 2 x 40 steps of 1 us, and nothing else counts.
    let args = [
        "plan",
        "--device",
        "cpu",
        "--train",
        "--peaks",
        "1e30,1e30,1",
    ];
    let floor = text(&run(&[&args[..], &sizes[..]].concat(), 0).stdout);
    assert!(
        floor.contains("on the CPU one call runs all steps"),
        "{floor}"
    );
    assert!(
        floor.contains(" 80.0 us with a dispatch for every step"),
        "{floor}"
    );
    for wrong in ["1,2", "1,2,-3", "1,2,nan"] {
        run(&["plan", "--peaks", wrong], 2);
    }
    run(&["plan", "--steps", "0"], 2);
    // More sequences, and more rows, than a dimension of a dispatch has workgroups for.
    for large in [
        ["gpu", "--hidden", "80", "--steps", "4", "--batch", "200000"],
        [
            "gpu", "--hidden", "16", "--steps", "5000", "--batch", "1000",
        ],
        [
            "cpu", "--hidden", "16", "--steps", "5000", "--batch", "1000",
        ],
    ] {
        run(&[&["plan", "--train", "--device"], &large[..]].concat(), 0);
    }
    // Half the bytes of the recurrent weights in each of 40 steps, and of W_ih.
    let half = [&["plan", "--precision", "f16"], &sizes[..]].concat();
    let half = text(&run(&half, 0).stdout);
    assert!(half.starts_with("lstm I 3 H 70 f16 T 40 N 2\n"), "{half}");
    assert!(half.contains("HALF 1"), "{half}");
    let large = ["plan", "--hidden", "1000", "--steps", "500", "--precision"];
    let [half, whole] = ["f16", "f32"].map(|precision| {
        let plan = text(&run(&[&large[..], &[precision]].concat(), 0).stdout);
        let floor = plan.split(" GFLOP of products, ").nth(1).unwrap();
        floor.split(' ').next().unwrap().parse::<f64>().unwrap()
    });
    assert!(half < 0.6 * whole, "{half} GB, {whole} GB");
    run(&["plan", "--precision", "f16", "--cell", "gru_before"], 2);
    let half = [&["plan", "--train", "--activations", "f16"], &sizes[..]].concat();
    let half = text(&run(&half, 0).stdout);
    assert!(half.contains("GATES_HALF 1"), "{half}");
    run(&["plan", "--activations", "f16", "--cell", "gru_before"], 2);
    run(&["plan", "--precision", "f8"], 2);
    for size in ["1000000", "18446744073709551615"] {
        for name in ["--input", "--hidden", "--batch"] {
            run(&["plan", "--train", "--steps", "1000", name, size], 2);
        }
    }
}

#[test]
fn nobody_reads_the_output() {
    for args in [&["check", "--backend", "cpu"][..], &["plan"], &["info"]] {
        let mut child = wgrnn(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let out = child.wait_with_output().unwrap();
        let stderr = text(&out.stderr);
        assert_eq!(out.status.code(), Some(0), "{args:?}: {stderr}");
        assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk() {
    let full = || {
        std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap()
    };
    if full().write_all(b"x").is_ok() {
        println!("a_full_disk: /dev/full takes what is written, so nothing was tested");
        return;
    }
    let mut command = wgrnn(&["plan"]);
    command.stdout(full()).stderr(Stdio::piped());
    let out = command.spawn().unwrap().wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).starts_with("wgrnn: standard output: "));
    run(
        &[
            "check",
            &data("gru_basic"),
            "--backend",
            "cpu",
            "--json",
            "/dev/full",
        ],
        2,
    );
}
