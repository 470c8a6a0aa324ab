//! `wgrnn certify`, and the file that it, `bench`, `train` and `info` share.
#![cfg(feature = "cli")]

use std::process::{Command, Output};

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
    let kept = std::fs::read_to_string(&path).unwrap();
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
    std::fs::write(&path, wrong + "\n").unwrap();
    let again = wgrnn(&certify);
    assert_eq!(again.status.code(), Some(1), "{}", text(&again));
    let info = text(&wgrnn(&["info", "--certificate", file]));
    assert!(info.contains("wrong: lstm.sequence_forward"), "{info}");

    let lines = "she walked to the house and he walked to the hill\n".repeat(40);
    let book = folder.path().join("text.txt");
    std::fs::write(&book, lines).unwrap();
    let train = wgrnn(&[
        "train",
        "--device",
        "cpu",
        "--text",
        book.to_str().unwrap(),
        "--certificate",
        file,
        "--hidden",
        "8",
        "--embedding",
        "4",
        "--batch",
        "2",
        "--steps-per-sequence",
        "4",
        "--iterations",
        "3",
        "--sentences",
        "0",
    ]);
    assert!(train.status.success(), "{}", text(&train));
    assert!(text(&train).contains("certificate: "), "{}", text(&train));

    let clash = wgrnn(&["train", "--certificate", file, "--save", file]);
    assert_eq!(clash.status.code(), Some(2), "{}", text(&clash));
    std::fs::write(&path, "something else\n").unwrap();
    let other = wgrnn(&certify);
    assert_eq!(other.status.code(), Some(2), "{}", text(&other));
    assert!(text(&other).contains("line 1"), "{}", text(&other));
}
