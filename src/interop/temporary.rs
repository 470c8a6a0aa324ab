//! Temporary files that end with their process.
//!
//! A process holds a lock on each of its temporary files for as long as it needs it. The system lets go of
//! the lock when the process ends, however it ends: a temporary file that can be locked was left behind,
//! and is removed by the next process that makes one in the same folder. Numbers of processes would not
//! do, as two containers or machines may share a folder.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// How many taken names are passed over.
const MAX_NAMES: usize = 1000;
const PREFIX: &str = ".wgrnn-";
const SUFFIX: &str = ".tmp";

/// A file that is removed again unless it has been renamed.
#[derive(Debug)]
pub(super) struct Temporary {
    path: PathBuf,
    file: File,
    renamed: bool,
}

impl Temporary {
    /// An empty file in a folder, after those of dead processes have been removed from it.
    pub(super) fn create(folder: &Path) -> io::Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        sweep(folder);
        for _ in 0..MAX_NAMES {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            // Not made from the target's name, which may already be as long as names can be.
            let name = format!("{PREFIX}{}-{count}{SUFFIX}", std::process::id());
            let path = folder.join(name);
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                // Between its making and its lock another process may have taken it for left behind.
                Ok(file) if is_taken(&file) || !path.exists() => {}
                Ok(file) => {
                    let renamed = false;
                    return Ok(Self {
                        path,
                        file,
                        renamed,
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// The file, to be written.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Puts the file in the place of another; if that fails it is removed.
    pub(super) fn rename(mut self, target: &Path) -> io::Result<()> {
        fs::rename(&self.path, target)?;
        self.renamed = true;
        Ok(())
    }

    /// Whether the folder takes names that differ in case alone for the same.
    pub(super) fn ignores_case(&self) -> bool {
        let name = self.path.file_name().and_then(|n| n.to_str());
        name.is_some_and(|n| self.path.with_file_name(n.to_uppercase()).exists())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.renamed {
            // The failure that led here is the one worth reporting.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether another holds the file's lock; takes it if none does. Where files have no locks none is taken.
fn is_taken(file: &File) -> bool {
    matches!(file.try_lock(), Err(TryLockError::WouldBlock))
}

/// Removes what dead processes have left. What cannot be asked or removed stays.
fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let ours = name.to_str().is_some_and(is_ours);
        // What is no file might block when it is opened.
        if !ours || !entry.file_type().is_ok_and(|t| t.is_file()) {
            continue;
        }
        let path = entry.path();
        let opened = OpenOptions::new().write(true).open(&path);
        if opened.is_ok_and(|file| file.try_lock().is_ok()) {
            let _ = fs::remove_file(&path);
        }
    }
}

/// Whether a name is one that [`Temporary::create`] gives.
fn is_ours(name: &str) -> bool {
    let middle = name
        .strip_prefix(PREFIX)
        .and_then(|n| n.strip_suffix(SUFFIX));
    let Some((process, count)) = middle.and_then(|m| m.split_once('-')) else {
        return false;
    };
    process.parse::<u32>().is_ok() && count.parse::<u64>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn names_that_are_taken_are_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let first = Temporary::create(folder.path()).unwrap();
        let taken = first.path.file_name().unwrap().to_str().unwrap();
        let count: u64 = taken.rsplit(['-', '.']).nth(1).unwrap().parse().unwrap();
        let held = (count + 1..count + 50).map(|next| {
            let name = format!(".wgrnn-{}-{next}.tmp", std::process::id());
            let file = File::create(folder.path().join(name)).unwrap();
            file.lock().unwrap();
            file
        });
        let held: Vec<_> = held.collect();
        let next = Temporary::create(folder.path()).unwrap();
        assert!(next.path.exists());
        drop(next);
        assert_eq!(names(folder.path()).len(), 1 + held.len());
    }

    #[test]
    fn what_nobody_holds_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        // Of a dead process with another number, and of one with the number of this process.
        let own = format!(".wgrnn-{}-987654.tmp", std::process::id());
        for left in [".wgrnn-1-0.tmp", &own] {
            fs::write(at(left), "half of a model").unwrap();
        }
        let held = File::create(at(".wgrnn-2-0.tmp")).unwrap();
        held.lock().unwrap();
        let others = [
            ".wgrnn-2-0.tmp",
            ".wgrnn-1-0.tmp.safetensors",
            ".wgrnn-a-0.tmp",
            ".wgrnn-1.tmp",
            "notes.tmp",
        ];
        for other in &others[1..] {
            fs::write(at(other), "").unwrap();
        }
        drop(Temporary::create(folder.path()).unwrap());
        let mut want: Vec<_> = others.map(str::to_owned).into();
        want.sort();
        assert_eq!(names(folder.path()), want);
        drop(held);
        drop(Temporary::create(folder.path()).unwrap());
        assert!(!at(".wgrnn-2-0.tmp").exists());
    }

    #[test]
    fn threads_do_not_remove_each_others() {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let folder = folder.path();
                scope.spawn(move || {
                    for _ in 0..50 {
                        let file = Temporary::create(folder).unwrap();
                        file.rename(&folder.join(format!("{thread}"))).unwrap();
                    }
                });
            }
        });
        assert_eq!(names(folder.path()), ["0", "1", "2", "3"]);
    }
}
