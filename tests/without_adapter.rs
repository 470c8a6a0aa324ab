//! Says at the end of a run which tests ran on no adapter, as there was none. It has no harness, which would keep that
//! from view and leave it out where tests are chosen by name, and runs last, as its name comes last.

#[path = "common/absence.rs"]
#[allow(dead_code, reason = "the other programs note, this one reads")]
mod absence;

use std::collections::{BTreeMap, BTreeSet};

/// What the programs of one run noted: the reasons, and the tests of each program.
#[derive(Default)]
struct Noted<'a> {
    reasons: BTreeSet<&'a str>,
    programs: BTreeMap<&'a str, BTreeSet<&'a str>>,
}

impl<'a> Noted<'a> {
    fn new(text: &'a str, run: &str) -> Self {
        let mut noted = Self::default();
        for line in text.lines() {
            let [of, program, test, reason] = line.split('\t').collect::<Vec<_>>()[..] else {
                continue;
            };
            if of == run {
                noted.reasons.insert(reason);
                noted.programs.entry(program).or_default().insert(test);
            }
        }
        noted
    }
}

fn main() {
    // Asked for a list of its tests, it has none.
    if std::env::args().any(|arg| arg == "--list") {
        return;
    }
    let path = absence::path();
    let Ok(text) = std::fs::read_to_string(&path) else {
        return;
    };
    let Noted { reasons, programs } = Noted::new(&text, &absence::run());
    let tests: usize = programs.values().map(BTreeSet::len).sum();
    if tests > 0 {
        let reasons = Vec::from_iter(reasons).join("; ");
        println!("\n{reasons}: {tests} tests ran on no GPU");
        for (program, tests) in programs {
            println!("  {program}: {}", Vec::from_iter(tests).join(", "));
        }
        println!();
    }
    // Of runs that are over.
    let _ = std::fs::remove_file(&path);
}
