//! Named arrays in a safetensors file, the format PyTorch state dicts are exchanged in.
//!
//! The header is read through the `safetensors` crate and checked against the file's size before anything
//! else is read. Writing does not go through it: that crate keeps the
//! metadata in a hash map and writes it in another order each time, and equal archives should
//! make equal files. The layout written is the same: 8 bytes little-endian header length, a
//! JSON header padded with spaces to a multiple of 8 bytes, then the arrays in row-major,
//! little-endian order, those with the widest elements first so that all lie aligned.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use ::safetensors::Dtype;
use ::safetensors::tensor::{Metadata, TensorInfo};

use super::archive::elements;
pub use super::archive::{Archive, Array, Data};
use super::atomic::{self, Pending};
use super::regular;
use super::unique::Unique;
use crate::error::{Error, Result};

/// The name under which the format keeps its metadata.
const METADATA: &str = "__metadata__";
/// The longest header that readers of the format accept, in bytes.
const MAX_HEADER: usize = 100_000_000;
/// The bytes before the header, which hold its length.
const LENGTH: u64 = 8;
/// Elements converted to bytes at a time.
const BLOCK: usize = 8192;

/// Reads the archive at `path`.
///
/// # Errors
///
/// [`Error::Io`] if the file cannot be read; [`Error::Format`] if it is no safetensors file, is
/// cut short, is no file but a pipe or a device, has two tensors of one name, or has a tensor of another
/// element type than [`Data`] has (F16 and BF16 among them).
pub fn load(path: &Path) -> Result<Archive> {
    Reader::open(path)?.read()
}

/// An open file whose header is known and fits it; its arrays have not been read.
#[derive(Debug)]
pub(crate) struct Reader {
    path: PathBuf,
    file: File,
    header: Header,
}

impl Reader {
    /// Reads the header of a file.
    ///
    /// # Errors
    ///
    /// As [`load`].
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let (mut file, len) = regular::open(path)?;
        let header = Header::read(&mut file, len).map_err(|e| e.of(path))?;
        let path = path.to_owned();
        Ok(Self { path, file, header })
    }

    /// The strings stored beside the arrays.
    pub(crate) fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    /// Reads the arrays: as many bytes as the header says.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the system refuses, or there is no memory for them.
    pub(crate) fn read(mut self) -> Result<Archive> {
        let read = self.header.data(&mut self.file);
        read.map_err(|e| e.of(&self.path))
    }
}

/// Writes `archive` to `path` as [`atomic::write_atomically`] does: on any failure the file that was
/// there stays whole. Equal archives make equal files.
///
/// # Errors
///
/// [`Error::Shape`] if an array has not as many elements as its shape says; [`Error::Value`] if
/// a tensor has the reserved name `__metadata__`, if names and metadata exceed the format's
/// 100 MB, or if `path` does not end in a file name; [`Error::Io`] if the system refuses.
pub fn save(path: &Path, archive: &Archive) -> Result<()> {
    prepare(path, archive)?.commit()
}

/// The first half of [`save`]: writes the archive beside `path`, where [`Pending::commit`] puts it.
///
/// # Errors
///
/// As [`save`].
pub fn prepare(path: &Path, archive: &Archive) -> Result<Pending> {
    let header = header(archive)?;
    atomic::prepare(path, |out| {
        out.write_all(&header)?;
        in_file_order(archive)
            .into_iter()
            .try_for_each(|(_, array)| write_data(out, &array.data))
    })
}

/// Why a file cannot be read.
enum Failure {
    Io(io::Error),
    Format(String),
}

impl Failure {
    fn of(self, path: &Path) -> Error {
        match self {
            Self::Io(source) => Error::io(path, source),
            Self::Format(reason) => Error::format(path, reason),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(source: io::Error) -> Self {
        Self::Io(source)
    }
}

impl From<String> for Failure {
    fn from(reason: String) -> Self {
        Self::Format(reason)
    }
}

/// What a file says of its arrays: in the order in which they lie one behind the other.
#[derive(Debug)]
struct Header {
    metadata: BTreeMap<String, String>,
    arrays: Vec<(String, TensorInfo)>,
}

impl Header {
    /// Reads the header of a file of so many bytes. All that can be wrong with the file is found here: what
    /// follows the header are just the arrays' bytes.
    fn read(input: &mut impl Read, len: u64) -> Result<Self, Failure> {
        let after = len
            .checked_sub(LENGTH)
            .ok_or("not a safetensors file: it has fewer than 8 bytes".to_owned())?;
        let mut length = [0; LENGTH as usize];
        input.read_exact(&mut length)?;
        let length = u64::from_le_bytes(length);
        if length > after.min(MAX_HEADER as u64) {
            let reason = format!(
                "not a safetensors file: its header would have {length} bytes, of {after} in the file and at most {MAX_HEADER}"
            );
            return Err(reason.into());
        }
        let mut json = Vec::new();
        input.by_ref().take(length).read_to_end(&mut json)?;
        let (metadata, arrays) = header_of(&json)?;
        let header = Self {
            metadata: metadata.into_iter().collect(),
            arrays,
        };
        header.check(after - length)?;
        Ok(header)
    }

    /// Whether the arrays are of known types, have as many bytes as their shapes say, and fill the file.
    fn check(&self, bytes: u64) -> Result<(), String> {
        // Sorted, so that of several unreadable tensors always the same one is named.
        let named = self.arrays.iter().map(|(name, info)| (name, info));
        for (name, info) in named.collect::<BTreeMap<_, _>>() {
            let width = width(info.dtype).ok_or_else(|| {
                format!(
                    "tensor {name:?}: dtype must be F32, F64, I64, U32 or U8, got {}",
                    info.dtype
                )
            })?;
            let (start, end) = info.data_offsets;
            let wanted = elements(&info.shape).and_then(|n| n.checked_mul(width));
            if end.checked_sub(start) != wanted {
                return Err(format!(
                    "tensor {name:?}: shape {:?} does not fit its bytes, {start} to {end}",
                    info.shape
                ));
            }
        }
        let end = self
            .arrays
            .last()
            .map_or(0, |(_, info)| info.data_offsets.1);
        if end as u64 != bytes {
            return Err(format!(
                "not a safetensors file: its arrays have {end} bytes, and {bytes} follow the header"
            ));
        }
        Ok(())
    }

    fn data(&self, input: &mut impl Read) -> Result<Archive, Failure> {
        let mut tensors = BTreeMap::new();
        for (name, info) in &self.arrays {
            let count = elements(&info.shape).unwrap_or_default();
            let data = match info.dtype {
                Dtype::F32 => Data::F32(read_le(input, count, f32::from_le_bytes)?),
                Dtype::F64 => Data::F64(read_le(input, count, f64::from_le_bytes)?),
                Dtype::I64 => Data::I64(read_le(input, count, i64::from_le_bytes)?),
                Dtype::U32 => Data::U32(read_le(input, count, u32::from_le_bytes)?),
                _ => Data::U8(read_le(input, count, u8::from_le_bytes)?),
            };
            let shape = info.shape.clone();
            tensors.insert(name.clone(), Array { shape, data });
        }
        Ok(Archive {
            tensors,
            metadata: self.metadata.clone(),
        })
    }
}

/// Bytes per element of the types that [`Data`] has.
fn width(dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::F64 | Dtype::I64 => Some(8),
        Dtype::F32 | Dtype::U32 => Some(4),
        Dtype::U8 => Some(1),
        _ => None,
    }
}

type Parsed = (HashMap<String, String>, Vec<(String, TensorInfo)>);

/// The metadata of a header's text, and the arrays in the order of their offsets, which touch.
fn header_of(json: &[u8]) -> Result<Parsed, String> {
    if let Some(number) = oversized(json) {
        return Err(format!(
            "the header has a size or offset of at least {number}"
        ));
    }
    // The reader's words may quote a name out of the file.
    let refused = |error: serde_json::Error| {
        format!("not a safetensors file: {error}").replace(char::is_control, " ")
    };
    // The parser would keep the last of two entries of one name.
    serde_json::from_slice::<Unique>(json).map_err(refused)?;
    let layout: Metadata = serde_json::from_slice(json).map_err(refused)?;
    let metadata = layout.metadata().clone().unwrap_or_default();
    let tensors = layout.tensors();
    let mut arrays: Vec<_> = tensors
        .into_iter()
        .map(|(name, info)| (name, info.clone()))
        .collect();
    arrays.sort_by(|(name, a), (other, b)| (a.data_offsets, name).cmp(&(b.data_offsets, other)));
    let mut start = 0;
    for (name, info) in &arrays {
        if info.data_offsets.0 != start {
            return Err(format!(
                "tensor {name:?}: its bytes must begin at {start}, where those before end, got {}",
                info.data_offsets.0
            ));
        }
        start = info.data_offsets.1;
    }
    Ok((metadata, arrays))
}

/// The first number in the header that exceeds what memory can hold. No array or offset in a file can be
/// this large, and sums with others are no concern then.
fn oversized(json: &[u8]) -> Option<usize> {
    let (mut quoted, mut escaped, mut number) = (false, false, 0_usize);
    for &byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'0'..=b'9' => {
                number = number
                    .saturating_mul(10)
                    .saturating_add(usize::from(byte - b'0'));
                if isize::try_from(number).is_err() {
                    return Some(number);
                }
            }
            _ => number = 0,
        }
    }
    None
}

fn read_le<T, const N: usize>(
    input: &mut impl Read,
    count: usize,
    value: impl Fn([u8; N]) -> T,
) -> io::Result<Vec<T>> {
    let mut values = Vec::new();
    values
        .try_reserve_exact(count)
        .map_err(|_| io::ErrorKind::OutOfMemory)?;
    let mut block = vec![0; N * BLOCK.min(count)];
    while values.len() < count {
        let bytes = &mut block[..N * BLOCK.min(count - values.len())];
        input.read_exact(bytes)?;
        values.extend(bytes.as_chunks().0.iter().map(|&chunk| value(chunk)));
    }
    Ok(values)
}

fn in_file_order(archive: &Archive) -> Vec<(&String, &Array)> {
    let mut tensors: Vec<_> = archive.tensors.iter().collect();
    // Stable: equal widths stay in order of their names.
    tensors.sort_by_key(|(_, array)| Reverse(array.data.width()));
    tensors
}

/// The header with its length before it and its padding behind.
fn header(archive: &Archive) -> Result<Vec<u8>> {
    let mut entries = Vec::new();
    if !archive.metadata.is_empty() {
        let strings: Vec<_> = archive
            .metadata
            .iter()
            .map(|(key, value)| format!("{}:{}", quoted(key), quoted(value)))
            .collect();
        entries.push(format!("\"{METADATA}\":{{{}}}", strings.join(",")));
    }
    let mut start = 0;
    for (name, Array { shape, data }) in in_file_order(archive) {
        if name == METADATA {
            return Err(Error::value(
                "safetensors::save",
                "a tensor's name",
                format!("other than {METADATA}"),
                name,
            ));
        }
        if elements(shape) != Some(data.len()) {
            let got = format!("{} elements", data.len());
            return Err(Error::Shape {
                op: "safetensors::save",
                arg: name.clone(),
                expected: format!("the product of its shape {shape:?}"),
                got,
            });
        }
        let end = start + data.len() * data.width();
        entries.push(format!(
            "{}:{{\"dtype\":\"{}\",\"shape\":{shape:?},\"data_offsets\":[{start},{end}]}}",
            quoted(name),
            data.dtype(),
        ));
        start = end;
    }
    let mut json = format!("{{{}}}", entries.join(",")).into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    if json.len() > MAX_HEADER {
        return Err(Error::value(
            "safetensors::save",
            "archive",
            format!("names and metadata of at most {MAX_HEADER} bytes"),
            json.len(),
        ));
    }
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut json);
    Ok(bytes)
}

/// `text` as a JSON string.
fn quoted(text: &str) -> String {
    let mut json = String::with_capacity(text.len() + 2);
    json.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => json.extend(['\\', c]),
            // Writing to a string cannot fail.
            '\0'..='\u{1f}' => drop(write!(json, "\\u{:04x}", u32::from(c))),
            _ => json.push(c),
        }
    }
    json.push('"');
    json
}

fn write_data(out: &mut dyn Write, data: &Data) -> io::Result<()> {
    match data {
        Data::F32(values) => write_le(out, values, f32::to_le_bytes),
        Data::F64(values) => write_le(out, values, f64::to_le_bytes),
        Data::I64(values) => write_le(out, values, i64::to_le_bytes),
        Data::U32(values) => write_le(out, values, u32::to_le_bytes),
        Data::U8(values) => out.write_all(values),
    }
}

fn write_le<T: Copy, const N: usize>(
    out: &mut dyn Write,
    values: &[T],
    bytes: impl Fn(T) -> [u8; N],
) -> io::Result<()> {
    let mut block = Vec::with_capacity(N * BLOCK.min(values.len()));
    for values in values.chunks(BLOCK) {
        block.clear();
        for &value in values {
            block.extend_from_slice(&bytes(value));
        }
        out.write_all(&block)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn parse(mut bytes: &[u8]) -> Result<Archive, String> {
        let reason = |failure| match failure {
            Failure::Io(error) => error.to_string(),
            Failure::Format(reason) => reason,
        };
        let len = bytes.len() as u64;
        let header = Header::read(&mut bytes, len).map_err(reason)?;
        header.data(&mut bytes).map_err(reason)
    }

    fn array(shape: &[usize], data: Data) -> Array {
        Array {
            shape: shape.to_vec(),
            data,
        }
    }

    fn sample() -> Archive {
        let nan = f32::from_bits(0x7fc1_2345);
        let tensors = [
            (
                "f32",
                array(&[2, 2], Data::F32(vec![1.5, -0.0, nan, 1e-45])),
            ),
            (
                "f64",
                array(&[1], Data::F64(vec![f64::from_bits(0xfff8_0000_0000_0abc)])),
            ),
            ("i64", array(&[2, 1], Data::I64(vec![i64::MIN, 7]))),
            ("u32", array(&[], Data::U32(vec![u32::MAX]))),
            ("u8", array(&[3], Data::U8(vec![0, 1, 255]))),
            ("none", array(&[0, 4], Data::F32(Vec::new()))),
            (
                "odd \"name\n\\ 99999999999999999999 é",
                array(&[1], Data::U8(vec![9])),
            ),
        ];
        let metadata = [
            ("format", "pt"),
            ("vocabulary", "a\nb\t\"c\"\\\u{1}\u{7f}é\u{1f600}"),
            ("", ""),
        ];
        Archive {
            tensors: tensors.map(|(n, a)| (n.to_owned(), a)).into(),
            metadata: metadata.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        }
    }

    /// Every element's bits, so that NaN equals itself and -0 differs from 0.
    fn bits(archive: &Archive) -> Vec<(String, Vec<usize>, &'static str, Vec<u8>)> {
        let of = |(name, array): (&String, &Array)| {
            let mut raw = Vec::new();
            write_data(&mut raw, &array.data).unwrap();
            (name.clone(), array.shape.clone(), array.data.dtype(), raw)
        };
        archive.tensors.iter().map(of).collect()
    }

    fn saved(archive: &Archive) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        save(&path, archive).unwrap();
        fs::read(&path).unwrap()
    }

    /// A file of this header and this many data bytes.
    fn file(json: &str, data: usize) -> Vec<u8> {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    #[test]
    fn a_round_trip_keeps_every_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        save(&path, &sample()).unwrap();
        let loaded = load(&path).unwrap();
        assert_eq!(bits(&loaded), bits(&sample()));
        assert_eq!(loaded.metadata, sample().metadata);
    }

    #[test]
    fn more_than_a_block_and_nothing_at_all_survive() {
        let values: Vec<f32> = (0..BLOCK as u16 * 2 + 3).map(f32::from).collect();
        let mut archive = Archive::default();
        assert_eq!(parse(&saved(&archive)).unwrap(), archive);
        let shape = [values.len()];
        archive
            .tensors
            .insert("x".into(), array(&shape, Data::F32(values)));
        assert_eq!(parse(&saved(&archive)).unwrap(), archive);
        archive = Archive {
            metadata: sample().metadata,
            ..Archive::default()
        };
        assert_eq!(parse(&saved(&archive)).unwrap(), archive);
    }

    #[test]
    fn the_bytes_are_the_formats() {
        let mut archive = Archive::default();
        archive
            .tensors
            .insert("a".into(), array(&[1], Data::U8(vec![5])));
        archive
            .tensors
            .insert("b".into(), array(&[1, 1], Data::F32(vec![1.0])));
        archive.metadata.insert("k".into(), "v".into());
        let header = concat!(
            r#"{"__metadata__":{"k":"v"},"#,
            r#""b":{"dtype":"F32","shape":[1, 1],"data_offsets":[0,4]},"#,
            r#""a":{"dtype":"U8","shape":[1],"data_offsets":[4,5]}}"#,
        );
        let padded = header.len().next_multiple_of(8);
        let mut expected = file(&format!("{header:padded$}"), 0);
        expected.extend([0, 0, 0x80, 0x3f, 5]);
        assert_eq!(saved(&archive), expected);
    }

    #[test]
    fn the_crates_own_files_are_read() {
        let values: Vec<u8> = [1.0_f32, 2.0]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        let view = ::safetensors::tensor::TensorView::new(Dtype::F32, vec![2], &values).unwrap();
        let bytes = ::safetensors::serialize([("w", view)], None).unwrap();
        let archive = parse(&bytes).unwrap();
        assert_eq!(archive.tensors["w"].as_f32(), Some(&[1.0, 2.0][..]));
        assert!(archive.metadata.is_empty());
    }

    #[test]
    fn every_prefix_of_a_file_is_refused() {
        let bytes = saved(&sample());
        for length in 0..bytes.len() {
            assert!(
                parse(&bytes[..length]).is_err(),
                "{length} of {}",
                bytes.len()
            );
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(parse(&longer).is_err());
    }

    #[test]
    fn a_damaged_header_never_panics() {
        let bytes = saved(&sample());
        // The arrays take 16 + 8 + 16 + 4 + 3 + 1 bytes.
        let header = bytes.len() - 48;
        let mut state = 1_u64;
        let mut refused = 0;
        for _ in 0..20_000 {
            let mut damaged = bytes.clone();
            for _ in 0..3 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let at = (state >> 33) as usize % header;
                damaged[at] = (state >> 24) as u8;
            }
            if let Err(reason) = parse(&damaged) {
                assert!(!reason.contains('\n'), "{reason}");
                refused += 1;
            }
        }
        assert!(refused > 10_000, "{refused}");
    }

    #[test]
    fn a_name_that_comes_twice_is_refused() {
        let entry =
            |name: &str| format!(r#""{name}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#);
        let one = format!("{{{}}}", entry("w"));
        assert_eq!(parse(&file(&one, 1)).unwrap().tensors.len(), 1);
        let metadata = |keys: &str| format!(r#"{{"__metadata__":{{{keys}}},{}}}"#, entry("w"));
        let twice = [
            format!("{{{},{}}}", entry("w"), entry("w")),
            format!(r"{{{},{}}}", entry("w"), entry(r"\u0077")),
            metadata(r#""a":"1","b":"2","a":"3""#),
            format!(
                r#"{{"__metadata__":{{}},"__metadata__":{{}},{}}}"#,
                entry("w")
            ),
            r#"{"w":{"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]}}"#.to_owned(),
        ];
        for json in twice {
            let reason = parse(&file(&json, 1)).unwrap_err();
            assert!(reason.contains("twice"), "{json}: {reason}");
        }
    }

    /// Nothing of it is read that the header does not speak of.
    #[test]
    fn a_huge_file_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("huge.safetensors");
        let header = r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
        for (start, word) in [
            (file(header, 1), "follow the header"),
            (vec![0; 8], "not a safetensors file"),
            ((6_u64 << 30).to_le_bytes().to_vec(), "header would have"),
        ] {
            fs::write(&path, start).unwrap();
            let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(64 << 30).unwrap();
            let error = load(&path).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn offsets_that_would_overflow_are_refused() {
        // Together these reach the end of the address space; the reader would add 8 to that.
        let part = 1_u64 << 61;
        let mut entries = Vec::new();
        for n in 0..7 {
            let (from, to) = (n * part, (n + 1) * part);
            entries.push(format!(
                r#""t{n}":{{"dtype":"U8","shape":[{part}],"data_offsets":[{from},{to}]}}"#
            ));
        }
        entries.push(format!(
            r#""t7":{{"dtype":"U8","shape":[{}],"data_offsets":[{},{}]}}"#,
            part - 1,
            7 * part,
            u64::MAX
        ));
        let reason = parse(&file(&format!("{{{}}}", entries.join(",")), 0)).unwrap_err();
        assert!(reason.contains("offset"), "{reason}");
    }

    #[test]
    fn other_element_types_are_refused_by_tensor_and_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("half.safetensors");
        for dtype in ["F16", "BF16"] {
            let json = format!(
                r#"{{"ok":{{"dtype":"U8","shape":[2],"data_offsets":[0,2]}},"w_hh":{{"dtype":"{dtype}","shape":[1],"data_offsets":[2,4]}}}}"#
            );
            fs::write(&path, file(&json, 4)).unwrap();
            let error = load(&path).unwrap_err();
            assert!(matches!(error, Error::Format { .. }), "{error}");
            let text = error.to_string();
            assert!(
                text.contains("\"w_hh\"") && text.contains(&format!("got {dtype}")),
                "{text}"
            );
        }
    }

    #[test]
    fn reasons_are_one_line() {
        let json = "{\"a\\nb\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[1,4]}}";
        let reason = parse(&file(json, 4)).unwrap_err();
        assert!(reason.contains("a b"), "{reason}");
    }

    #[test]
    fn a_missing_file_is_an_io_error() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path().join("none"), folder.path().to_path_buf()] {
            let error = load(&path).unwrap_err();
            assert!(matches!(error, Error::Io { .. }), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_read_back_is_not_saved_and_the_old_file_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "old").unwrap();
        let refused = |name: &str, array: Array| {
            let mut archive = sample();
            archive.tensors.insert(name.to_owned(), array);
            let error = save(&path, &archive).unwrap_err();
            assert_eq!(fs::read(&path).unwrap(), b"old");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
            error
        };
        let good = array(&[1], Data::U8(vec![1]));
        assert!(matches!(refused(METADATA, good), Error::Value { .. }));
        for shape in [vec![2], vec![usize::MAX, 2]] {
            let error = refused("w", array(&shape, Data::U8(vec![1])));
            assert!(
                matches!(&error, Error::Shape { arg, .. } if arg == "w"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_save_the_system_refuses_is_an_io_error() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing").join("a");
        for path in [&missing, &folder.path().to_path_buf()] {
            let error = save(path, &sample()).unwrap_err();
            assert!(matches!(error, Error::Io { .. }), "{error}");
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
