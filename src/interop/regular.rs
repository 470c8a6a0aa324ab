//! Reading files, and nothing else: a pipe would wait for a writer that may never come, and a device may
//! have no end.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use crate::error::{Error, Result};

/// Opens a file for reading and says how many bytes it has.
///
/// # Errors
/// [`Error::Format`] for what is no file, such as a pipe or a device; [`Error::Io`] if the system refuses.
pub(crate) fn open(path: &Path) -> Result<(File, u64)> {
    let io = |source| Error::io(path, source);
    // Asked before it is opened: opening a pipe waits.
    let there = fs::metadata(path).map_err(io)?;
    if there.is_dir() {
        return Err(io(io::ErrorKind::IsADirectory.into()));
    }
    if !there.is_file() {
        return Err(Error::format(path, "it is no file but a pipe or a device"));
    }
    let file = File::open(path).map_err(io)?;
    let len = file.metadata().map_err(io)?.len();
    Ok((file, len))
}

/// Reads a text of at most so many bytes.
///
/// # Errors
/// [`Error::Format`] for what is no file, is longer, or is no UTF-8; [`Error::Io`] if the system refuses.
pub fn read_text(path: &Path, most: u64) -> Result<String> {
    let (file, len) = open(path)?;
    if len > most {
        let reason = format!("it has {len} bytes, and a text of at most {most} is expected");
        return Err(Error::format(path, reason));
    }
    let mut bytes = Vec::new();
    // A file that grows meanwhile is read up to where it ended.
    let read = file.take(len).read_to_end(&mut bytes);
    read.map_err(|source| Error::io(path, source))?;
    String::from_utf8(bytes).map_err(|e| Error::format(path, format!("it is not UTF-8 text: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_files_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text");
        fs::write(&path, "wörter").unwrap();
        assert_eq!(read_text(&path, 7).unwrap(), "wörter");
        let refused = |path: &Path, most: u64, word: &str| {
            let e = read_text(path, most).unwrap_err().to_string();
            assert!(e.contains(word), "{e}");
        };
        refused(&path, 6, "7 bytes");
        fs::write(&path, [0xff]).unwrap();
        refused(&path, 7, "UTF-8");
        refused(folder.path(), 7, "directory");
        refused(&folder.path().join("none"), 7, "No such file");
        #[cfg(unix)]
        {
            refused(Path::new("/dev/zero"), 7, "no file");
            // A socket stands for whatever has a name and no content.
            let path = folder.path().join("socket");
            let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
            refused(&path, 7, "no file");
        }
    }
}
