//! `wgrnn certify`, and the file that it, `bench`, `train` and `info` share.
#![cfg(feature = "cli")]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use wgrnn::kernels::ALL;

fn wgrnn(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_wgrnn"))
        .args(args)
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&both).into_owned()
}

#[test]
fn a_file_of_certificates_serves_all_commands() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("certificates.txt");
    let file = path.to_str().unwrap();
    let layer = [
        "--input", "3", "--hidden", "8", "--steps", "4", "--batch", "2", "--train",
    ];
    let certify = [
        &["certify", "--adapter", "cpu", "--certificate", file][..],
        &layer,
    ]
    .concat();
    let first = wgrnn(&certify);
    assert!(first.status.success(), "{}", text(&first));
    let said = text(&first);
    assert!(
        said.contains("lstm.sequence_backward") && said.contains("kernels right, in "),
        "{said}"
    );
    let kept = fs::read_to_string(&path).unwrap();
    assert!(kept.starts_with("wgrnn certificates 1\nCPU f32"), "{kept}");

    // What the file calls wrong is not used.
    let wrong = kept
        .lines()
        .map(|line| match line.contains("\tlstm.sequence_forward") {
            true => line.replace("\tright\t", "\twrong\t"),
            false => line.to_owned(),
        })
        .collect::<Vec<_>>()
        .join("\n");
    assert_ne!(wrong, kept.trim_end());
    fs::write(&path, wrong + "\n").unwrap();
    let again = wgrnn(&certify);
    assert_eq!(again.status.code(), Some(1), "{}", text(&again));
    let info = text(&wgrnn(&["info", "--certificate", file]));
    assert!(info.contains("wrong: lstm.sequence_forward"), "{info}");

    let clash = wgrnn(&["train", "--certificate", file, "--save", file]);
    assert_eq!(clash.status.code(), Some(2), "{}", text(&clash));
    fs::write(&path, "something else\n").unwrap();
    let other = wgrnn(&certify);
    assert_eq!(other.status.code(), Some(2), "{}", text(&other));
    assert!(text(&other).contains("line 1"), "{}", text(&other));
}

/// A folder with a text, shapes for `bench`, and the file of certificates that is to come.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        let lines = "she walked to the house and he walked to the hill\n".repeat(40);
        fs::write(folder.at("text"), lines).unwrap();
        let shapes = r#"
[[shape]]
name = "stream"
source = "here"
cell = "lstm"
input = 3
hidden = 8
layers = 1
bidirectional = false
proj = 0
batch = 2
steps = 1
mode = ["infer"]
group = "stream"
"#;
        fs::write(folder.at("shapes"), shapes).unwrap();
        folder
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, command: &str, more: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_wgrnn"))
            .arg(command)
            .args(more)
            .arg("--certificate=certificates")
            .current_dir(self.0.path())
            .output()
            .unwrap()
    }

    fn train(&self, more: &[&str]) -> Output {
        let small = [
            "--device=cpu",
            "--text=text",
            "--hidden=8",
            "--embedding=4",
            "--batch=2",
            "--steps-per-sequence=4",
            "--iterations=3",
            "--sentences=1",
        ];
        self.run("train", &[&small, more].concat())
    }

    fn bench(&self) -> Output {
        let short = [
            "--backend=cpu",
            "--shapes=shapes",
            "--min-time=0",
            "--budget=0.1",
        ];
        self.run("bench", &short)
    }

    /// The kernels in the file, with their constants.
    fn subjects(&self) -> Vec<String> {
        let kept = fs::read_to_string(self.at("certificates")).unwrap();
        let fields = kept.lines().skip(1).map(|line| line.split('\t').nth(1));
        fields.map(|subject| subject.unwrap().to_owned()).collect()
    }

    /// Says of every kernel of an LSTM that it computes wrongly.
    fn doubt_lstms(&self) {
        let kept = fs::read_to_string(self.at("certificates")).unwrap();
        let device = kept.lines().nth(1).unwrap().split('\t').next().unwrap();
        let lstms = ALL.iter().filter(|k| k.name.starts_with("lstm."));
        let wrong = lstms.map(|k| format!("{device}\t{} X=1\twrong\tso it is said\n", k.name));
        let head = kept.lines().next().unwrap();
        let doubts = format!("{head}\n{}", wrong.collect::<String>());
        fs::write(self.at("certificates"), doubts).unwrap();
    }
}

/// What trains, what validates and what writes sentences are three plans.
#[test]
fn train_compares_all_that_it_runs_and_obeys() {
    let folder = Folder::new();
    let output = folder.train(&[]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("certificate: "), "{}", text(&output));
    let subjects = folder.subjects();
    for part in ["GRADIENT=1", "GRADIENT=0", "SAVE=1", "SAVE=0", "adam.step"] {
        let found = subjects.iter().any(|subject| subject.contains(part));
        assert!(found, "{part}: {subjects:?}");
    }
    folder.doubt_lstms();
    let output = folder.train(&["--save=m.safetensors"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("lstm.forward"), "{}", text(&output));
    assert!(!folder.at("m.safetensors").exists());
}

#[test]
fn bench_compares_what_it_times_and_obeys() {
    let folder = Folder::new();
    let output = folder.bench();
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("certificate: "), "{}", text(&output));
    let subjects = folder.subjects();
    let streams = subjects.iter().any(|s| s.contains("STREAM=1"));
    assert!(streams, "{subjects:?}");
    folder.doubt_lstms();
    let output = folder.bench();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("lstm."), "{}", text(&output));
}
