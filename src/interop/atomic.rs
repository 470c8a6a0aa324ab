//! Writing a file so that its path holds either the old content or the whole new one.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf, is_separator};

use super::temporary::Temporary;
use crate::error::{Error, Result};

/// How many links in a row are followed, as many as Linux follows.
const MAX_LINKS: usize = 40;

/// Writes what `write` produces to `path`, replacing a file that is there only once all of it
/// is on the disk.
///
/// The content goes to a temporary file in the same folder (suffix `.tmp`), is flushed and
/// synced, and is renamed over `path`. Whatever fails, the temporary file is removed and the
/// old file stays as it was; the temporary file of a process that was killed is removed by the next
/// write to the folder. A file that is replaced hands on its permissions; a symbolic link
/// stays and its target is replaced. What is there and is no file (a terminal, a pipe,
/// `/dev/stdout`) is written to directly.
///
/// # Errors
///
/// [`Error::Value`] if `path` does not end in a file name, [`Error::Io`] if `write` or the
/// system fails, if `path` is a folder, or if the file there is read-only.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    prepare(path, write)?.commit()
}

/// Whether [`write_atomically`] could write to `path` now: to be asked before hours of work whose
/// result goes there. Nothing is changed. A pipe or a terminal is not opened, since that waits for a reader, whom closing
/// it again would end: whether one can be written shows when it is.
///
/// # Errors
///
/// As [`write_atomically`].
pub fn check_writable(path: &Path) -> Result<()> {
    check_name(path)?;
    if is_stream(path) {
        return Ok(());
    }
    let opened = Destination::open(path).map(drop);
    opened.map_err(|source| Error::io(path, source))
}

/// [`check_writable`] for what is read back: a file, or nothing yet.
///
/// # Errors
///
/// As [`check_writable`]; [`Error::Format`] if what is there is no file, such as a pipe or a device.
pub fn check_replaceable(path: &Path) -> Result<()> {
    if path.exists() && !path.is_file() {
        return Err(Error::format(path, "it is there and is no file"));
    }
    check_writable(path)
}

/// Whether it is a pipe, or a device such as a terminal.
fn is_stream(path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt as _;
        let kind = fs::metadata(path).map(|there| there.file_type());
        kind.is_ok_and(|kind| kind.is_fifo() || kind.is_char_device())
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        false
    }
}

/// Whether two paths are of one file, or would be once both are written: by links of either kind, by
/// another spelling, by letters of another case where a folder does not tell them apart.
///
/// # Errors
///
/// [`Error::Io`] if the system does not say where a path leads.
pub fn same_file(one: &Path, other: &Path) -> Result<bool> {
    let place = |path| Place::of(path).map_err(|source| Error::io(path, source));
    Ok(place(one)?.is(&place(other)?))
}

/// Where a path leads.
enum Place {
    There(Identity),
    /// Nothing is there; a folder, if there is one, would get a file of this name.
    Free(Option<(Identity, PathBuf)>, OsString),
}

impl Place {
    fn of(path: &Path) -> io::Result<Self> {
        let target = link_target(path)?;
        if let Some(identity) = identity(&target)? {
            return Ok(Self::There(identity));
        }
        let folder = folder_of(&target);
        let name = target.file_name().unwrap_or_default().to_owned();
        let there = identity(folder)?.map(|identity| (identity, folder.to_owned()));
        Ok(Self::Free(there, name))
    }

    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::There(one), Self::There(other)) => one == other,
            (Self::Free(Some((one, folder)), name), Self::Free(Some((other, _)), of_other)) => {
                let alike = || name.eq_ignore_ascii_case(of_other);
                one == other && (name == of_other || (alike() && ignores_case(folder)))
            }
            // Of two names for one file both lead to it, whatever the case of their letters.
            _ => false,
        }
    }
}

/// What a file is known by, whatever its names.
#[cfg(unix)]
type Identity = (u64, u64);
#[cfg(not(unix))]
type Identity = PathBuf;

/// The identity of what is there, if anything is.
fn identity(path: &Path) -> io::Result<Option<Identity>> {
    #[cfg(unix)]
    let found = {
        use std::os::unix::fs::MetadataExt as _;
        fs::metadata(path).map(|there| (there.dev(), there.ino()))
    };
    #[cfg(not(unix))]
    let found = fs::canonicalize(path);
    match found {
        Ok(identity) => Ok(Some(identity)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a folder takes names that differ in case alone for one; no if it cannot be asked.
fn ignores_case(folder: &Path) -> bool {
    Temporary::create(folder).is_ok_and(|file| file.ignores_case())
}

fn check_name(path: &Path) -> Result<()> {
    if ends_in_a_file_name(path) {
        return Ok(());
    }
    Err(Error::value(
        "write_atomically",
        "path",
        "a path that ends in a file name",
        format!("'{}'", path.display()),
    ))
}

fn ends_in_a_file_name(path: &Path) -> bool {
    // `file_name` alone would take "runs/" for a file called "runs".
    let closed = path
        .as_os_str()
        .as_encoded_bytes()
        .last()
        .is_some_and(|&byte| is_separator(char::from(byte)));
    path.file_name().is_some() && !closed
}

/// Content that is complete and on the disk, but not yet in its place: several files that belong
/// together are prepared first and then committed one after another. Dropped, it leaves no trace.
#[must_use = "nothing is replaced until it is committed"]
#[derive(Debug)]
pub struct Pending {
    path: PathBuf,
    /// `None` for what is no file, which has been written to directly.
    replacement: Option<(Temporary, PathBuf)>,
}

impl Pending {
    /// Puts the content in its place.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the system refuses; the old file is whole then.
    pub fn commit(self) -> Result<()> {
        let Some((temporary, target)) = self.replacement else {
            return Ok(());
        };
        let renamed = temporary.rename(&target);
        renamed.map_err(|source| Error::io(&self.path, source))?;
        sync_folder(folder_of(&target));
        Ok(())
    }
}

/// Writes what `write` produces beside `path`, to be put in its place by [`Pending::commit`]. See
/// [`write_atomically`], which does both.
///
/// # Errors
///
/// As [`write_atomically`].
pub fn prepare(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<Pending> {
    check_name(path)?;
    let replacement = fill_beside(path, write).map_err(|source| Error::io(path, source))?;
    Ok(Pending {
        path: path.to_path_buf(),
        replacement,
    })
}

/// Where the content goes.
enum Destination {
    /// What is no file, and is written to directly.
    Direct(File),
    /// A temporary file that takes the target's place.
    Replacement {
        temporary: Temporary,
        target: PathBuf,
        permissions: Option<fs::Permissions>,
    },
}

impl Destination {
    fn open(path: &Path) -> io::Result<Self> {
        let permissions = match fs::metadata(path) {
            // A rename would put a plain file in the place of a device. A folder does not open.
            Ok(there) if !there.is_file() => {
                return Ok(Self::Direct(OpenOptions::new().write(true).open(path)?));
            }
            // A rename does not ask whether the file it replaces may be written.
            Ok(there) if there.permissions().readonly() => {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            Ok(there) => Some(there.permissions()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let target = link_target(path)?;
        Ok(Self::Replacement {
            temporary: Temporary::create(folder_of(&target))?,
            target,
            permissions,
        })
    }
}

fn fill_beside(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<Option<(Temporary, PathBuf)>> {
    match Destination::open(path)? {
        Destination::Direct(file) => fill(&file, write).map(|()| None),
        Destination::Replacement {
            temporary,
            target,
            permissions,
        } => {
            complete(temporary.file(), permissions, write)?;
            Ok(Some((temporary, target)))
        }
    }
}

/// Fills a file, to the disk.
fn complete(
    file: &File,
    permissions: Option<fs::Permissions>,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    fill(file, write)?;
    if let Some(permissions) = permissions {
        file.set_permissions(permissions)?;
    }
    file.sync_all()
}

/// The folder that a file lies in.
pub(crate) fn folder_of(target: &Path) -> &Path {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn fill(file: &File, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut buffered = BufWriter::new(file);
    write(&mut buffered)?;
    buffered.flush()
}

/// The path behind any number of symbolic links; nothing need be there.
pub(crate) fn link_target(path: &Path) -> io::Result<PathBuf> {
    let mut at = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        match fs::symlink_metadata(&at) {
            Ok(there) if there.is_symlink() => {
                let next = fs::read_link(&at)?;
                // A relative link counts from the folder it lies in.
                at = at.parent().map_or_else(|| next.clone(), |p| p.join(&next));
            }
            Ok(_) => return Ok(at),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(at),
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("too many symbolic links"))
}

/// Makes the rename itself last through a power cut.
fn sync_folder(folder: &Path) {
    // The new file is in place by now, and some file systems cannot sync a folder: failing
    // here would report a write that did happen as one that did not.
    #[cfg(unix)]
    if let Ok(opened) = File::open(folder) {
        let _ = opened.sync_all();
    }
    #[cfg(not(unix))]
    let _ = folder;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn replaces_the_file_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        write_atomically(&path, |out| out.write_all(b"one")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one");
        write_atomically(&path, |out| {
            out.write_all(b"two")?;
            assert_eq!(fs::read(&path)?, b"one", "old content until the end");
            let temporary = names(folder.path());
            assert_eq!(temporary.len(), 2);
            assert!(temporary[0].ends_with(".tmp"), "{temporary:?}");
            out.write_all(b" lines")
        })
        .unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two lines");
        assert_eq!(names(folder.path()), ["a.json"]);
    }

    #[test]
    fn a_failing_writer_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "old").unwrap();
        let error = write_atomically(&path, |out| {
            out.write_all(&[7; 100_000])?;
            Err(io::ErrorKind::StorageFull.into())
        })
        .unwrap_err();
        match &error {
            Error::Io {
                path: named,
                source,
            } => {
                assert_eq!(named, &path);
                assert_eq!(source.kind(), io::ErrorKind::StorageFull);
            }
            other => panic!("{other}"),
        }
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[test]
    fn a_panicking_writer_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "old").unwrap();
        let panicked = std::panic::catch_unwind(|| {
            write_atomically(&path, |out| {
                out.write_all(b"half")?;
                panic!("on purpose")
            })
        });
        assert!(panicked.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[test]
    fn a_folder_or_a_missing_folder_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let missing = folder.path().join("missing").join("a");
        for path in [&inner, &missing] {
            let error = write_atomically(path, |out| out.write_all(b"x")).unwrap_err();
            assert!(matches!(error, Error::Io { .. }), "{error}");
        }
        assert_eq!(names(folder.path()), ["inner"]);
        assert!(names(&inner).is_empty());
    }

    #[test]
    fn a_path_without_a_file_name_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let closed = format!("{}/new/", folder.path().display());
        for path in ["", "/", "..", "a/..", &closed] {
            let error = write_atomically(Path::new(path), |out| out.write_all(b"x")).unwrap_err();
            assert!(matches!(error, Error::Value { .. }), "{path}: {error}");
        }
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn a_read_only_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "old").unwrap();
        let mut permissions = fs::metadata(&path).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(&path, permissions).unwrap();
        let error = write_atomically(&path, |out| out.write_all(b"x")).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }

    #[cfg(unix)]
    mod unix {
        use super::*;
        use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};

        #[test]
        fn links_stay_and_their_targets_are_written() {
            let folder = tempfile::tempdir().unwrap();
            let (here, there) = (folder.path().join("here"), folder.path().join("there"));
            fs::create_dir(&here).unwrap();
            fs::create_dir(&there).unwrap();
            symlink("../there/middle", here.join("link")).unwrap();
            symlink("file", there.join("middle")).unwrap();
            // The first write finds a link to nothing, the second one to a file.
            for content in ["one", "two"] {
                write_atomically(&here.join("link"), |out| out.write_all(content.as_bytes()))
                    .unwrap();
                assert_eq!(fs::read_to_string(there.join("file")).unwrap(), content);
            }
            assert!(here.join("link").is_symlink());
            assert!(there.join("middle").is_symlink());
            assert_eq!(names(&here), ["link"]);
            assert_eq!(names(&there), ["file", "middle"]);
        }

        #[test]
        fn one_file_by_many_names() {
            let folder = tempfile::tempdir().unwrap();
            let at = |name: &str| folder.path().join(name);
            fs::create_dir(at("inner")).unwrap();
            fs::write(at("file"), "").unwrap();
            fs::write(at("other"), "").unwrap();
            symlink("file", at("soft")).unwrap();
            fs::hard_link(at("file"), at("hard")).unwrap();
            symlink("inner", at("folder")).unwrap();
            symlink("inner/free", at("dangling")).unwrap();
            for (one, other) in [
                ("file", "file"),
                ("file", "./inner/../file"),
                ("file", "soft"),
                ("soft", "hard"),
                ("file", "hard"),
                ("inner", "folder"),
                // Nothing is there yet.
                ("free", "inner/../free"),
                ("inner/free", "folder/free"),
                ("inner/free", "dangling"),
            ] {
                assert!(same_file(&at(one), &at(other)).unwrap(), "{one} {other}");
                assert!(same_file(&at(other), &at(one)).unwrap(), "{other} {one}");
            }
            for (one, other) in [
                ("file", "other"),
                ("file", "free"),
                ("free", "inner/free"),
                ("none/free", "none/free"),
            ] {
                assert!(!same_file(&at(one), &at(other)).unwrap(), "{one} {other}");
            }
            // This system tells letters of either case apart; one that does not says so itself.
            let file = Temporary::create(folder.path()).unwrap();
            let same = same_file(&at("free"), &at("FREE")).unwrap();
            assert_eq!(same, file.ignores_case());
        }

        #[test]
        fn a_circle_of_links_is_an_error() {
            let folder = tempfile::tempdir().unwrap();
            symlink("b", folder.path().join("a")).unwrap();
            symlink("a", folder.path().join("b")).unwrap();
            let path = folder.path().join("a");
            assert!(write_atomically(&path, |out| out.write_all(b"x")).is_err());
            assert!(link_target(&path).is_err());
        }

        #[test]
        fn permissions_are_handed_on() {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("a");
            fs::write(&path, "old").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
            write_atomically(&path, |out| out.write_all(b"new")).unwrap();
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o640);
        }

        #[test]
        fn what_is_no_file_is_not_replaced() {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("socket");
            let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
            // A socket cannot be opened like a file, so the write fails; what counts is that
            // it is still a socket.
            assert!(write_atomically(&path, |out| out.write_all(b"x")).is_err());
            assert!(fs::metadata(&path).unwrap().file_type().is_socket());
            assert_eq!(names(folder.path()), ["socket"]);
        }

        #[cfg(target_os = "linux")]
        #[test]
        fn a_full_disk_is_an_error_even_when_the_content_fits_the_buffer() {
            let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
            let error = fill(&full, |out| out.write_all(b"x")).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        }
    }

    #[test]
    fn asking_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model");
        check_writable(&path).unwrap();
        assert!(!path.exists());
        fs::write(&path, "old").unwrap();
        check_writable(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(check_writable(&folder.path().join("missing/model")).is_err());
        assert!(check_writable(folder.path()).is_err());
        assert!(check_writable(Path::new("model/")).is_err());
    }

    #[test]
    fn what_is_read_back_is_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model");
        check_replaceable(&path).unwrap();
        fs::write(&path, "old").unwrap();
        check_replaceable(&path).unwrap();
        let refused = check_replaceable(folder.path()).unwrap_err().to_string();
        assert!(refused.contains("no file"), "{refused}");
        #[cfg(unix)]
        {
            check_writable(Path::new("/dev/null")).unwrap();
            assert!(check_replaceable(Path::new("/dev/null")).is_err());
        }
    }
}
