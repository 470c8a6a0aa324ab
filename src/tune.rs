//! Tuning: what runs a layer's calls fastest on a device, measured once and kept in a file.
//!
//! The rules of [`plan`](crate::plan) choose from sizes and limits; a device may do better with another
//! choice. [`Tuning::context`] runs a call with each of the choices that its plan can use and gives a
//! context that [forces](crate::Context::forcing) the fastest. Its results differ from the rules' as
//! those of any two choices do, within the tolerance; nothing but the choice depends on a clock.
//!
//! ```
//! # use wgrnn::{Call, Context, Lstm, Size, tune::Tuning};
//! # fn main() -> wgrnn::Result<()> {
//! let mut tuning = Tuning::new();
//! let call = Call::inference(Size { steps: 10, batch: 2 });
//! let context = tuning.context(&Context::cpu(), &Lstm::new(3, 8).spec(), &call)?;
//! let lstm = Lstm::new(3, 8).build(&context)?;
//! // tuning.save("wgrnn-tuning.txt")?;
//! # Ok(())
//! # }
//! ```
//!
//! The file is text: a first line with the format's name, then a line for each call with the device and
//! its driver, the call, the choices and the microseconds that they took, separated by tabs.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::context::Context;
use crate::error::{Error, Result};
use crate::interop::atomic::write_atomically;
use crate::interop::regular::read_text;
use crate::kernel::Constant;
use crate::layer::{Layer, Sequence};
use crate::plan::sequence::{Call, LayerSpec, Mode};
use crate::plan::{Force, Step};

const HEAD: &str = "wgrnn tuning 1";
/// The longest file that is read.
const MOST_BYTES: u64 = 16 << 20;
/// How long a candidate is measured, unless three runs take longer.
const LONG_ENOUGH: Duration = Duration::from_millis(30);
/// A candidate that is not better than this share of the rules' time is not worth leaving them.
const WORTH: f64 = 0.97;

/// Choices that were measured. See the [module](self).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tuning {
    known: BTreeMap<Key, Entry>,
}

/// The device with its driver, and the call.
type Key = (String, String);

#[derive(Debug, Clone, Copy, PartialEq)]
struct Entry {
    force: Force,
    microseconds: f64,
}

impl Tuning {
    /// Nothing measured yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What a file holds; nothing where there is none.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Format`] if it is no text file of at most 16 MiB,
    /// [`Error::Value`] naming the line that is not of the format.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        match read_text(path, MOST_BYTES) {
            Ok(text) => Self::parse(&text, path),
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                Ok(Self::new())
            }
            Err(e) => Err(e),
        }
    }

    /// Writes everything to a file, which is replaced as a whole.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        write_atomically(path.as_ref(), |out| {
            writeln!(out, "{HEAD}")?;
            for ((device, call), entry) in &self.known {
                let (force, time) = (entry.force, entry.microseconds);
                writeln!(out, "{device}\t{call}\t{force}\t{time:.1}")?;
            }
            Ok(())
        })
    }

    /// How many calls have been measured.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// True if none has.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// The device with the choices that are fastest for such calls of such a layer: those in here, or
    /// what is measured now and kept. A layer must be built on it, since its weights are packed for the
    /// choice.
    ///
    /// # Errors
    /// If the layer or the call contradicts itself, the device fails, or it may not block.
    pub fn context(&mut self, context: &Context, spec: &LayerSpec, call: &Call) -> Result<Context> {
        let key = (clean(&context.identity()), clean(&call_name(spec, call)?));
        let entry = match self.known.get(&key) {
            Some(entry) => *entry,
            None => {
                let entry = fastest(context, spec, call)?;
                self.known.insert(key, entry);
                entry
            }
        };
        Ok(context.forcing(entry.force))
    }

    fn parse(text: &str, path: &Path) -> Result<Self> {
        let fail = |number: usize, expected: &str, got: &str| {
            let arg = format!("line {number} of {}", path.display());
            Error::value("Tuning::load", arg, expected, got)
        };
        let mut lines = text.lines().zip(1..);
        match lines.next() {
            Some((HEAD, _)) => {}
            other => return Err(fail(1, HEAD, other.map_or("", |(line, _)| line))),
        }
        let mut known = BTreeMap::new();
        for (line, number) in lines {
            let wrong = || fail(number, "device, call, choices and microseconds", line);
            let fields: Vec<&str> = line.split('\t').collect();
            let [device, call, force, time] = fields[..] else {
                return Err(wrong());
            };
            let entry = Entry {
                force: force.parse().map_err(|_| wrong())?,
                microseconds: time.parse().map_err(|_| wrong())?,
            };
            known.insert((device.to_owned(), call.to_owned()), entry);
        }
        Ok(Self { known })
    }
}

/// One field of a line.
fn clean(text: &str) -> String {
    text.replace(['\t', '\n', '\r'], " ")
}

fn call_name(spec: &LayerSpec, call: &Call) -> Result<String> {
    let plan = Sequence::plan(spec, call, &crate::plan::Target::default())?;
    // What the name of the plan leaves out.
    let mut name = plan.name().to_owned();
    let training = call.mode == Mode::Training;
    for (used, text) in [
        (training, "training"),
        (call.lengths, "lengths"),
        (call.resets, "resets"),
        (!spec.bias, "no bias"),
    ] {
        if used {
            name.push(' ');
            name.push_str(text);
        }
    }
    Ok(name)
}

/// Measures one choice after another, each on top of the best so far.
fn fastest(context: &Context, spec: &LayerSpec, call: &Call) -> Result<Entry> {
    let mut best = Entry {
        force: Force::default(),
        microseconds: measure(context, spec, call)?,
    };
    let mut measured = vec![dispatches(spec, call, context)?];
    for change in Force::changes() {
        let force = change(best.force);
        let candidate = context.forcing(force);
        // What cannot be used leaves a plan that was measured before.
        let plan = dispatches(spec, call, &candidate)?;
        if measured.contains(&plan) {
            continue;
        }
        measured.push(plan);
        let microseconds = measure(&candidate, spec, call)?;
        if microseconds < WORTH * best.microseconds {
            best = Entry {
                force,
                microseconds,
            };
        }
    }
    Ok(best)
}

/// A kernel, its constants and its grid.
type Dispatched = (usize, Vec<Constant>, [u32; 3]);

/// What a plan dispatches.
fn dispatches(spec: &LayerSpec, call: &Call, context: &Context) -> Result<Vec<Dispatched>> {
    let plan = Sequence::plan(spec, call, &context.target())?;
    let step = |s: &Step| {
        let kernel = std::ptr::from_ref(s.kernel).addr();
        (kernel, s.constants.clone(), s.grid)
    };
    Ok(plan.steps().iter().map(step).collect())
}

/// The least microseconds of a call.
fn measure(context: &Context, spec: &LayerSpec, call: &Call) -> Result<f64> {
    let sequence = Layer::new(context, *spec, 1)?.sequence(call)?;
    let run = || -> Result<()> {
        sequence.forward()?;
        if call.mode == Mode::Training {
            sequence.backward()?;
        }
        context.wait()
    };
    // Pipelines and memory are set up by the first.
    run()?;
    let (start, mut least) = (Instant::now(), f64::INFINITY);
    for nth in 0.. {
        let at = Instant::now();
        run()?;
        least = least.min(at.elapsed().as_secs_f64());
        if nth >= 2 && start.elapsed() > LONG_ENOUGH {
            break;
        }
    }
    Ok(1e6 * least)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::layer::Lstm;
    use crate::plan::sequence::{Size, Strategy};

    #[test]
    fn measured_once_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tuning.txt");
        let mut tuning = Tuning::load(&path).unwrap();
        assert!(tuning.is_empty());
        let spec = Lstm::new(3, 8).spec();
        let call = Call::training(Size { steps: 4, batch: 2 });
        let context = tuning.context(&Context::cpu(), &spec, &call).unwrap();
        tuning.save(&path).unwrap();
        assert_eq!(Tuning::load(&path).unwrap().len(), 1);
        // A known entry is taken as it is, however wrong.
        let text = fs::read_to_string(&path).unwrap();
        let (before, time) = text.trim_end().rsplit_once('\t').unwrap();
        let (before, _) = before.rsplit_once('\t').unwrap();
        let forged = Force {
            strategy: Some(Strategy::Steps),
            ..Force::default()
        };
        fs::write(&path, format!("{before}\t{forged}\t{time}\n")).unwrap();
        let mut known = Tuning::load(&path).unwrap();
        let again = known.context(&Context::cpu(), &spec, &call).unwrap();
        assert_eq!(again.target().force, forged);
        assert!(again.same(&context));
        // Another call is another entry.
        let inference = Call::inference(Size { steps: 4, batch: 2 });
        known.context(&Context::cpu(), &spec, &inference).unwrap();
        assert_eq!(known.len(), 2);
    }

    #[test]
    fn other_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tuning.txt");
        for (text, line) in [
            ("", "line 1"),
            ("something\n", "line 1"),
            ("wgrnn tuning 1\na\tb\n", "line 2"),
            (
                "wgrnn tuning 1\na\tb\trules\t1.0\na\tb\tx=y\t1.0\n",
                "line 3",
            ),
            ("wgrnn tuning 1\na\tb\trules\tfast\n", "line 2"),
        ] {
            fs::write(&path, text).unwrap();
            let error = Tuning::load(&path).unwrap_err().to_string();
            assert!(error.contains(line), "{error}");
        }
    }
}
