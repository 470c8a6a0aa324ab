//! The file of certificates: a first line with the format's name, then a line for each verdict with the device, its driver and
//! the version of this crate, the kernel with its constants, the verdict, and its error or reason, separated by tabs.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use super::{Certificates, Verdict};
use crate::error::{Error, Result};
use crate::interop::atomic::write_atomically;

const HEAD: &str = "wgrnn certificates 1";

impl Certificates {
    /// What a file holds; nothing where there is none.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Value`] naming the line that is not of the format.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Self::new()),
            Err(e) => Err(Error::io(path, e)),
        }
    }

    /// Writes everything to a file, which is replaced as a whole.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        write_atomically(path.as_ref(), |out| {
            writeln!(out, "{HEAD}")?;
            for ((device, subject), verdict) in &self.known {
                let (word, more) = match verdict {
                    Verdict::Right { error } => ("right", format!("{error:.4}")),
                    Verdict::Wrong { reason } => ("wrong", clean(reason)),
                    Verdict::Unchecked { reason } => ("unchecked", clean(reason)),
                };
                writeln!(out, "{}\t{}\t{word}\t{more}", clean(device), clean(subject))?;
            }
            Ok(())
        })
    }

    fn parse(text: &str, path: &Path) -> Result<Self> {
        let fail = |number: usize, expected: &str, got: &str| {
            let arg = format!("line {number} of {}", path.display());
            Error::value("Certificates::load", arg, expected, got)
        };
        let mut lines = text.lines().zip(1..);
        match lines.next() {
            Some((HEAD, _)) => {}
            other => return Err(fail(1, HEAD, other.map_or("", |(line, _)| line))),
        }
        let mut all = Self::new();
        for (line, number) in lines {
            let wrong = || fail(number, "device, kernel, verdict and error or reason", line);
            let fields: Vec<&str> = line.split('\t').collect();
            let [device, subject, word, more] = fields[..] else {
                return Err(wrong());
            };
            let reason = more.to_owned();
            let verdict = match word {
                "right" => Verdict::Right {
                    error: more.parse().map_err(|_| wrong())?,
                },
                "wrong" => Verdict::Wrong { reason },
                "unchecked" => Verdict::Unchecked { reason },
                _ => return Err(wrong()),
            };
            let key = (device.to_owned(), subject.to_owned());
            all.known.insert(key, verdict);
        }
        Ok(all)
    }
}

/// One field of a line.
fn clean(text: &str) -> String {
    text.replace(['\t', '\n', '\r'], " ")
}
