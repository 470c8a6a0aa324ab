//! The file of certificates: a first line with the format's name, then a line for each verdict with the device, its driver and
//! the version of this crate, the kernel with its constants, the verdict, and its error or reason, separated by tabs. What
//! was not compared is not in it, nor what was found on a device of which the driver is not known.

use std::io::ErrorKind;
use std::path::Path;

use super::{Certificates, Verdict};
use crate::error::{Error, Result};
use crate::interop::atomic::write_atomically;
use crate::interop::regular::read_text;

const HEAD: &str = "wgrnn certificates 1";
/// The longest file that is read.
const MOST_BYTES: u64 = 16 << 20;

impl Certificates {
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

    /// Writes what is to last to a file, which is replaced as a whole: no verdicts of devices of which the driver is not known
    /// ([`Self::keeps`]), and none of kernels that could not be compared, which are tried again the next time.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        write_atomically(path.as_ref(), |out| {
            writeln!(out, "{HEAD}")?;
            let known = self.known.iter();
            for ((device, subject), verdict) in
                known.filter(|((d, _), _)| !self.fleeting.contains(d))
            {
                let (word, more) = match verdict {
                    Verdict::Right { error } => ("right", format!("{error:.4}")),
                    Verdict::Wrong { reason } => ("wrong", clean(reason)),
                    Verdict::Unchecked { .. } => continue,
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
                // Kept by earlier versions.
                "unchecked" => continue,
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
