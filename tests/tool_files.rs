//! The files that the tool reads and writes: none is lost, whatever the options and whenever it is killed.
#![cfg(feature = "cli")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use wgrnn::Context;
use wgrnn::interop::safetensors;
use wgrnn::train::checkpoint;

const SMALL: &[&str] = &[
    "train",
    "--chars",
    "--hidden=16",
    "--embedding=8",
    "--batch=4",
    "--steps-per-sequence=8",
    "--sentences=1",
    "--device=cpu",
    "--text=text",
];

struct Folder(TempDir);

impl Folder {
    /// With a text of 3,000 characters.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let book = include_str!("../examples/data/pride_and_prejudice.txt");
        fs::write(folder.path().join("text"), &book[..3_000]).unwrap();
        Self(folder)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wgrnn"));
        command.args(args).current_dir(self.0.path());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn train(&self, more: &[&str]) -> Output {
        self.run(&[SMALL, more].concat())
    }

    fn start(&self, more: &[&str]) -> Child {
        let mut command = self.command(&[SMALL, more].concat());
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    /// Every file with its content, and where links lead.
    fn content(&self) -> Vec<(String, Vec<u8>)> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut all: Vec<_> = entries
            .map(|entry| {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                (name, fs::read(&path).unwrap_or_default())
            })
            .collect();
        all.sort();
        all
    }

    /// The optimizer's files of a model.
    fn optimizers(&self, model: &str) -> Vec<String> {
        let start = format!("{model}.optimizer-");
        let names = self.content().into_iter().map(|(name, _)| name);
        names.filter(|name| name.starts_with(&start)).collect()
    }

    fn iteration(&self, model: &str) -> usize {
        let context = Context::cpu();
        let (_, description) = checkpoint::load(&self.at(model), &context).unwrap();
        description.iteration
    }
}

fn refused(output: &Output, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    // Drivers may have their say too.
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

#[test]
fn options_that_lead_to_one_file_are_refused() {
    let folder = Folder::new();
    let trained = folder.train(&["--iterations=2", "--save=m.safetensors"]);
    assert!(trained.status.success(), "{trained:?}");
    let optimizer = &folder.optimizers("m")[0];
    fs::copy(folder.at("text"), folder.at("other")).unwrap();
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("text", folder.at("soft")).unwrap();
        std::os::unix::fs::symlink(optimizer, folder.at("state")).unwrap();
        std::os::unix::fs::symlink("nothing", folder.at("dangling")).unwrap();
        std::os::unix::fs::symlink(".", folder.at("folder")).unwrap();
    }
    fs::hard_link(folder.at("text"), folder.at("hard")).unwrap();
    let before = folder.content();
    let full = fs::canonicalize(folder.at("text")).unwrap();
    let full = full.to_str().unwrap().to_owned();
    let mut pairs: Vec<[String; 2]> = Vec::new();
    for text in ["text", "./text", "hard", &full] {
        for option in ["save", "json", "resume", "validation"] {
            pairs.push(["--text=text".into(), format!("--{option}={text}")]);
        }
        for option in ["save", "json", "resume"] {
            pairs.push(["--validation=other".into(), format!("--{option}=other")]);
        }
    }
    let mut more = |one: &str, other: &str| pairs.push([one.into(), other.into()]);
    more("--save=new", "--json=new");
    more("--save=new", "--json=./new");
    more("--save=m.safetensors", "--resume=m.safetensors");
    more("--json=m.safetensors", "--resume=m.safetensors");
    more("--save=m.safetensors", &format!("--json={optimizer}"));
    more("--save=m.safetensors", &format!("--validation={optimizer}"));
    for option in ["json", "certificate", "save"] {
        let state = format!("--{option}={optimizer}");
        more("--resume=m.safetensors", &state);
    }
    more(
        "--save=new",
        "--json=new.optimizer-0123456789abcdef.safetensors",
    );
    #[cfg(unix)]
    {
        more("--save=soft", "--iterations=4");
        more("--json=soft", "--iterations=4");
        more("--save=folder/text", "--iterations=4");
        more("--save=nothing", "--json=dangling");
        more("--save=new", "--json=folder/new");
        more("--save=m.safetensors", "--json=state");
        more("--save=m.safetensors", "--validation=state");
    }
    for [one, other] in &pairs {
        let output = folder.train(&[one, other]);
        refused(
            &output,
            &["another file than that of --", "leads to the same"],
        );
        let after = folder.content();
        assert!(before == after, "{one} {other} changed a file");
    }
    // What is no file takes from all.
    #[cfg(unix)]
    {
        let output = folder.run(&[
            "bench",
            "--json=/dev/null",
            "--roofline=/dev/null",
            "--only=none",
        ]);
        refused(&output, &["such that a shape is left"]);
    }
}

#[test]
fn outputs_of_check_and_bench_keep_their_inputs() {
    let folder = Folder::new();
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/lstm_basic.safetensors");
    fs::copy(case, folder.at("case.safetensors")).unwrap();
    fs::write(folder.at("shapes"), "").unwrap();
    let book = include_str!("../benches/shapes.toml");
    fs::write(folder.at("shapes"), book).unwrap();
    let before = folder.content();
    for args in [
        &["check", "case.safetensors", "--json=case.safetensors"][..],
        &["check", ".", "--json=./case.safetensors"],
        &["bench", "--shapes=shapes", "--json=shapes"],
        &["bench", "--shapes=shapes", "--roofline=shapes"],
        &["bench", "--shapes=shapes", "--tune=shapes"],
        &["bench", "--json=new", "--roofline=./new"],
        &["bench", "--json=new", "--tune=new"],
    ] {
        let output = folder.run(args);
        refused(&output, &["another file than that of", "leads to the same"]);
        assert!(folder.content() == before, "{args:?}");
    }
    // Found out before anything is checked.
    let output = folder.run(&["check", "--backend=cpu", "--json=none/report"]);
    refused(&output, &["none/report"]);
    assert!(output.stdout.is_empty(), "{output:?}");
}

#[cfg(unix)]
#[test]
fn what_is_no_file_is_refused_at_once() {
    let folder = Folder::new();
    let made = Command::new("mkfifo").arg(folder.at("pipe")).status();
    assert!(made.unwrap().success());
    let huge = fs::File::create(folder.at("huge")).unwrap();
    huge.set_len(6 << 30).unwrap();
    for (args, words) in [
        (&["sample", "pipe"][..], ["pipe", "no file"]),
        (&["sample", "huge"], ["huge", "safetensors"]),
        (&["sample", "/dev/zero"], ["/dev/zero", "no file"]),
        (&["check", "pipe", "--backend=cpu"], ["pipe", "no file"]),
        (&["check", "huge", "--backend=cpu"], ["huge", "safetensors"]),
        (&["bench", "--shapes=pipe"], ["pipe", "no file"]),
        (&["bench", "--tune=pipe"], ["pipe", "no file"]),
        (&["bench", "--certificate=pipe"], ["pipe", "no file"]),
        (&["certify", "--certificate=pipe"], ["pipe", "no file"]),
        (&["info", "--certificate=pipe"], ["pipe", "no file"]),
        (&["train", "--certificate=pipe"], ["pipe", "no file"]),
        (
            &["certify", "--certificate=huge", "--adapter=cpu"],
            ["huge", "bytes"],
        ),
        (&["bench", "--shapes=huge"], ["huge", "bytes"]),
        (
            &["bench", "--tune=huge", "--backend=cpu"],
            ["huge", "bytes"],
        ),
        (
            &["train", "--text=pipe", "--device=cpu"],
            ["pipe", "no file"],
        ),
        (&["train", "--text=huge", "--device=cpu"], ["huge", "bytes"]),
        (
            &["train", "--resume=pipe", "--device=cpu"],
            ["pipe", "no file"],
        ),
        (
            &["train", "--resume=huge", "--device=cpu"],
            ["huge", "safetensors"],
        ),
    ] {
        let mut child = folder.command(args);
        let child = child.stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = ended(child.spawn().unwrap(), Duration::from_secs(20));
        refused(&output, &words);
    }
}

/// A pipe is opened once, by what is written to it: a reader that sees it closed is gone.
#[cfg(unix)]
#[test]
fn reports_go_through_a_pipe() {
    let folder = Folder::new();
    let made = Command::new("mkfifo").arg(folder.at("pipe")).status();
    assert!(made.unwrap().success());
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/lstm_basic.safetensors");
    fs::copy(case, folder.at("case.safetensors")).unwrap();
    let shapes = include_str!("../benches/shapes.toml");
    fs::write(folder.at("shapes"), shapes).unwrap();
    let check = ["check", "case.safetensors", "--backend=cpu", "--json=pipe"];
    // Two rows, after each of which a file would be written.
    let bench = [
        "bench",
        "--shapes=shapes",
        "--only=^rnnoise-stream$|^silero-vad-stream$",
        "--min-time=0",
        "--budget=0.1",
        "--backend=cpu",
        "--json=pipe",
    ];
    for (args, member) in [(&check[..], "results"), (&bench, "results")] {
        let reader = Command::new("cat")
            .arg(folder.at("pipe"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut child = folder.command(args);
        let child = child.stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = ended(child.spawn().unwrap(), Duration::from_secs(60));
        assert!(output.status.success(), "{output:?}");
        let read = ended(reader, Duration::from_secs(20));
        let report: Value = serde_json::from_slice(&read.stdout).unwrap();
        assert!(report[member].as_array().unwrap().len() >= 2, "{report}");
    }
}

/// Waits for a process, which is killed if it takes too long.
fn ended(mut child: Child, most: Duration) -> Output {
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > most {
            child.kill().unwrap();
            panic!(
                "still running after {most:?}: {:?}",
                child.wait_with_output()
            );
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

/// Killed at any moment, a training leaves a whole file, from which it goes on with the same bits.
#[test]
fn kills_lose_no_more_than_the_latest_iterations() {
    let folder = Folder::new();
    let end = "--iterations=120";
    let output = folder.train(&[end, "--save=whole.safetensors"]);
    assert!(output.status.success(), "{output:?}");
    // Two names in turns, as a model is not resumed from the file that it is saved to.
    let names = ["a.safetensors", "b.safetensors"];
    let mut from: Option<usize> = None;
    let mut done = 0;
    let mut kills = 0;
    let mut state = 1_u64;
    while done < 120 {
        let to = from.map_or(0, |from| 1 - from);
        let mut args = vec![end.to_owned(), "--save-every=1".to_owned()];
        args.push(format!("--save={}", names[to]));
        args.extend(from.map(|from| format!("--resume={}", names[from])));
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let _ = fs::remove_file(folder.at(names[to]));
        let mut child = folder.start(&args);
        // Some are killed before the first save, and most between some of them.
        let start = Instant::now();
        while !folder.at(names[to]).exists() && start.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(1));
        }
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let more = Duration::from_micros((state >> 33) % 60_000);
        std::thread::sleep(more);
        let ended = child.try_wait().unwrap();
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        match ended {
            Some(status) => assert!(status.success(), "{output:?}"),
            None => kills += 1,
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.is_empty(), "the optimizer was lost: {stderr}");
        let iteration = folder.iteration(names[to]);
        assert!(iteration > done, "{iteration} after {done}");
        done = iteration;
        from = Some(to);
    }
    assert!(kills >= 3, "{kills}");
    let last = names[from.unwrap()];
    assert_eq!(
        fs::read(folder.at("whole.safetensors")).unwrap(),
        fs::read(folder.at(last)).unwrap()
    );
    // What the dead have left is gone with the next save.
    let output = folder.train(&["--iterations=1", "--save=a.safetensors"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(folder.optimizers("a").len(), 1);
    let names = folder.content();
    assert!(!names.iter().any(|(name, _)| name.ends_with(".tmp")));
}

/// What is on the disk between the steps of a save: both states beside the old weights, or the new ones.
#[test]
fn every_moment_of_a_save_can_be_resumed_from() {
    let folder = Folder::new();
    let train = |more: &[&str]| {
        let output = folder.train(more);
        assert!(output.status.success(), "{output:?}");
        assert!(
            output.stderr.is_empty(),
            "the optimizer was lost: {output:?}"
        );
    };
    train(&["--iterations=20", "--stop-after=2", "--save=m.safetensors"]);
    let old: Vec<_> = folder.content();
    let old = old.into_iter().filter(|(name, _)| name.starts_with("m."));
    let old: Vec<_> = old.collect();
    assert_eq!(old.len(), 2);
    train(&["--iterations=20", "--stop-after=4", "--save=m.safetensors"]);
    let new = fs::read(folder.at("m.safetensors")).unwrap();
    assert_eq!(folder.optimizers("m").len(), 1, "the old one is gone");
    for (name, content) in &old {
        fs::write(folder.at(name), content).unwrap();
    }
    assert_eq!(folder.optimizers("m").len(), 2);
    let resume = [
        "--iterations=20",
        "--stop-after=6",
        "--resume=m.safetensors",
    ];
    train(&[&resume[..], &["--save=from_old.safetensors"]].concat());
    fs::write(folder.at("m.safetensors"), new).unwrap();
    train(&[&resume[..], &["--save=from_new.safetensors"]].concat());
    train(&[
        "--iterations=20",
        "--stop-after=6",
        "--save=whole.safetensors",
    ]);
    let read = |name: &str| fs::read(folder.at(name)).unwrap();
    assert!(read("from_old.safetensors") == read("whole.safetensors"));
    assert!(read("from_new.safetensors") == read("whole.safetensors"));
}

#[cfg(unix)]
#[test]
fn a_signal_lets_a_training_save() {
    let folder = Folder::new();
    let schedule = "--iterations=100000";
    for (signal, status) in [("INT", 130), ("TERM", 143)] {
        let mut child = folder.start(&[
            schedule,
            "--save-every=1",
            "--save=m.safetensors",
            "--json=run",
        ]);
        let start = Instant::now();
        while !folder.at("m.safetensors").exists() {
            assert!(child.try_wait().unwrap().is_none());
            assert!(start.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(2));
        }
        let sent = Command::new("kill")
            .args([&format!("-{signal}"), &child.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
        let output = ended(child, Duration::from_secs(20));
        assert_eq!(output.status.code(), Some(status), "{output:?}");
        let iteration = folder.iteration("m.safetensors");
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(
            stdout.contains(&format!(
                "saved m.safetensors after iteration {iteration}\n"
            )),
            "{stdout}"
        );
        let run: Value = serde_json::from_slice(&fs::read(folder.at("run")).unwrap()).unwrap();
        assert_eq!(run["iterations"].as_array().unwrap().len(), iteration);
        assert!(run["validation_perplexity"].is_null());
        // As a run that was told to stop there.
        let stop = format!("--stop-after={iteration}");
        let output = folder.train(&[schedule, &stop, "--save=stopped.safetensors"]);
        assert!(output.status.success(), "{output:?}");
        let read = |name: &str| fs::read(folder.at(name)).unwrap();
        assert!(read("m.safetensors") == read("stopped.safetensors"));
        fs::remove_file(folder.at("m.safetensors")).unwrap();
    }
}

/// What was learnt is there whatever becomes of the validation, which the first signal ends.
#[cfg(unix)]
#[test]
fn a_signal_ends_a_validation() {
    let folder = Folder::new();
    let book = include_str!("../examples/data/pride_and_prejudice.txt");
    fs::write(folder.at("long"), book.repeat(8)).unwrap();
    let mut child = folder.start(&[
        "--iterations=2",
        "--validation=long",
        "--save=m.safetensors",
        "--json=run",
    ]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let learnt = lines.find(|line| line.as_ref().unwrap().starts_with("2 iterations, "));
    assert!(learnt.is_some());
    // It takes some seconds.
    std::thread::sleep(Duration::from_millis(300));
    let sent = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(sent.unwrap().success());
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    let output = ended(child, Duration::from_secs(20));
    assert_eq!(output.status.code(), Some(130), "{rest:?} {output:?}");
    assert_eq!(folder.iteration("m.safetensors"), 2);
    let run: Value = serde_json::from_slice(&fs::read(folder.at("run")).unwrap()).unwrap();
    assert_eq!(run["iterations"].as_array().unwrap().len(), 2);
    assert!(run["validation_perplexity"].is_null(), "{run}");
}

/// `m` and `m.safetensors` have their optimizers under names of one kind.
#[test]
fn neighbours_keep_their_optimizers() {
    let folder = Folder::new();
    let train = |more: &[&str]| {
        let output = folder.train(&[&["--iterations=9"], more].concat());
        assert!(output.status.success(), "{output:?}");
        assert!(
            output.stderr.is_empty(),
            "the optimizer was lost: {output:?}"
        );
    };
    train(&["--stop-after=2", "--save=m.safetensors"]);
    train(&["--stop-after=3", "--save=m"]);
    assert_eq!(folder.optimizers("m").len(), 2);
    train(&["--stop-after=4", "--resume=m.safetensors"]);
    train(&["--stop-after=4", "--resume=m"]);
    // Its own former one goes, and no other.
    train(&["--stop-after=5", "--save=m"]);
    assert_eq!(folder.optimizers("m").len(), 2);
    train(&["--stop-after=6", "--resume=m.safetensors"]);
}

#[test]
fn an_optimizer_that_was_changed_is_not_used() {
    let folder = Folder::new();
    let saved = folder.train(&["--iterations=2", "--save=m.safetensors"]);
    assert!(saved.status.success(), "{saved:?}");
    let optimizer = folder.at(&folder.optimizers("m")[0]);
    let mut state = safetensors::load(&optimizer).unwrap();
    let safetensors::Data::U32(clock) = &mut state.tensors.get_mut("clock").unwrap().data else {
        panic!("a clock of another kind");
    };
    clock[0] += 1;
    safetensors::save(&optimizer, &state).unwrap();
    let resume = ["--iterations=3", "--resume=m.safetensors"];
    refused(&folder.train(&resume), &["m.optimizer-", "changed"]);
    fs::remove_file(&optimizer).unwrap();
    let output = folder.train(&resume);
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("starts anew"));
    let output = folder.train(&["--save-every=2"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("--save "));
}
