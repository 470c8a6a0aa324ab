//! What can go wrong, as values: every variant carries what was expected and what came.

use std::path::{Path, PathBuf};

/// A result whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call of this crate was refused or failed. Each prints as one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An array, tensor or size does not fit the others.
    #[error("{op}: {arg} must be {expected}, got {got}")]
    Shape {
        /// The call or kernel that refused.
        op: &'static str,
        /// The argument's name.
        arg: String,
        /// What would have fitted.
        expected: String,
        /// What came.
        got: String,
    },
    /// A value is outside what its argument allows.
    #[error("{op}: {arg} must be {expected}, got {got}")]
    Value {
        /// The call or kernel that refused.
        op: &'static str,
        /// The argument's name.
        arg: String,
        /// What is allowed.
        expected: String,
        /// What came.
        got: String,
    },
    /// A token id is not below the vocabulary's size.
    #[error("{op}: token ids must be below {vocabulary}, got {id} at position {position}")]
    Token {
        /// The call that refused.
        op: &'static str,
        /// Where in the array the first such id stands.
        position: usize,
        /// The id.
        id: u32,
        /// The number of tokens known.
        vocabulary: usize,
    },
    /// The device offers less than the work needs.
    #[error("{what}: needs {needed}, the device has {available}")]
    Limit {
        /// The limit, and for which kernel or buffer.
        what: String,
        /// What the work needs.
        needed: u64,
        /// What the device allows.
        available: u64,
    },
    /// A plan needs a kernel that computes wrongly on the device, and nothing else can take its place.
    #[error(
        "{kernel}: computes wrongly on this device, as its certificate says, and no other kernel can take its place"
    )]
    Denied {
        /// The kernel's name.
        kernel: &'static str,
    },
    /// Something this version does not do.
    #[error("{op} does not support {needs}")]
    Unsupported {
        /// The call that refused.
        op: &'static str,
        /// What it would need to support.
        needs: String,
    },
    /// No adapter has the name that was asked for.
    #[error("no adapter matches '{asked}'; this machine has: {}", listed(.available))]
    NoAdapter {
        /// The name, or part of a name, that was asked for.
        asked: String,
        /// The adapters there are.
        available: Vec<String>,
    },
    /// The device refused, was lost, or ran out of memory.
    #[error("{op}: the device failed: {reason}")]
    Device {
        /// What was being done.
        op: String,
        /// The device's own words.
        reason: String,
    },
    /// A shader's text could not be put together.
    #[error("kernel {kernel}: {reason}")]
    Compose {
        /// The kernel's name.
        kernel: String,
        /// What is wrong with its text.
        reason: String,
    },
    /// A set of weights lacks some, has others, or has them in another shape.
    #[error("{op}: weights do not match the layer: {reason}")]
    Weights {
        /// The call that refused.
        op: &'static str,
        /// Which names are missing or surplus, or whose shape differs.
        reason: String,
    },
    /// A file is not what its reader expects.
    #[error("{}: {reason}", .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The operating system refused a file operation.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's own error.
        source: std::io::Error,
    },
}

impl Error {
    pub(crate) fn shape(
        op: &'static str,
        arg: impl Into<String>,
        expected: impl std::fmt::Debug,
        got: impl std::fmt::Debug,
    ) -> Self {
        Self::Shape {
            op,
            arg: arg.into(),
            expected: format!("{expected:?}"),
            got: format!("{got:?}"),
        }
    }

    pub(crate) fn value(
        op: &'static str,
        arg: impl Into<String>,
        expected: impl Into<String>,
        got: impl std::fmt::Display,
    ) -> Self {
        Self::Value {
            op,
            arg: arg.into(),
            expected: expected.into(),
            got: got.to_string(),
        }
    }

    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn format(path: &Path, reason: impl Into<String>) -> Self {
        Self::Format {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }
}

fn listed(names: &[String]) -> String {
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}
