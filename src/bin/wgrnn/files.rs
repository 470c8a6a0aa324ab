//! The files that the options of a command name.

use std::path::{Path, PathBuf};

use wgrnn::interop::atomic::same_file;
use wgrnn::{Error, Result};

/// A file and the option that named it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Named<'a> {
    pub(crate) option: &'a str,
    pub(crate) path: &'a Path,
}

impl<'a> Named<'a> {
    pub(crate) fn new(option: &'a str, path: &'a Path) -> Self {
        Self { option, path }
    }

    /// Of an option that may be left out.
    pub(crate) fn given((option, path): (&'a str, &'a Option<PathBuf>)) -> Option<Self> {
        Some(Self::new(option, path.as_deref()?))
    }

    /// Why this cannot be the file of the other option too.
    pub(crate) fn clash(self, op: &'static str, other: Named<'_>) -> Error {
        Error::Value {
            op,
            arg: self.option.to_owned(),
            expected: format!(
                "another file than that of {} ('{}')",
                other.option,
                other.path.display()
            ),
            got: format!("'{}', which leads to the same", self.path.display()),
        }
    }
}

/// Refuses an output that is also read, or the file of another output.
///
/// # Errors
/// [`Error::Value`] naming both; [`Error::Io`] if the system does not say where a path leads.
pub(crate) fn keep(op: &'static str, inputs: &[Named<'_>], outputs: &[Named<'_>]) -> Result<()> {
    for (i, output) in outputs.iter().enumerate() {
        // A terminal or /dev/null takes what comes.
        if output.path.exists() && !output.path.is_file() {
            continue;
        }
        for other in inputs.iter().chain(&outputs[..i]) {
            if same_file(output.path, other.path)? {
                return Err(output.clash(op, *other));
            }
        }
    }
    Ok(())
}
