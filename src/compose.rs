//! The text of a shader: WGSL with imports, constants, alternatives and loops that are written out.
//!
//! | line | becomes |
//! |---|---|
//! | `#import name` | the piece `shaders/shared/name.wgsl`, the first time |
//! | `#if NAME` … `#else` … `#end` | the first lines if the constant `NAME` is not 0, else the others |
//! | `#unroll i COUNT` … `#end` | the lines for each i from 0 to before COUNT, with `{i}` as its number |
//! | `#unroll i FIRST..END` … `#end` | the same from FIRST to before END |
//!
//! After the imports the literals of named constants (`const TILE: u32 = 16u;`) are replaced by the
//! values that a step asks for. A bound is an integer or such a constant. Alternatives let types depend on
//! a constant; directives such as `enable f16;` may stand among them as lines, and move to the front. Loops that are written out
//! give names to variables that must stay in registers, and have
//! no bounds for a driver to check. Both nest. The rest of a file is plain WGSL with defaults in it.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::kernel::Constant;

/// The pieces that shaders import, by name.
pub(crate) const SHARED: &[(&str, &str)] = &[
    (
        "activations",
        include_str!("../shaders/shared/activations.wgsl"),
    ),
    ("blocks", include_str!("../shaders/shared/blocks.wgsl")),
    ("few", include_str!("../shaders/shared/few.wgsl")),
    ("flat", include_str!("../shaders/shared/flat.wgsl")),
    ("gates", include_str!("../shaders/shared/gates.wgsl")),
    ("gemm", include_str!("../shaders/shared/gemm.wgsl")),
    ("half", include_str!("../shaders/shared/half.wgsl")),
    ("philox", include_str!("../shaders/shared/philox.wgsl")),
    ("quads", include_str!("../shaders/shared/quads.wgsl")),
    ("sequence", include_str!("../shaders/shared/sequence.wgsl")),
    ("step", include_str!("../shaders/shared/step.wgsl")),
    ("tile", include_str!("../shaders/shared/tile.wgsl")),
];

/// The complete WGSL of the kernel `name`: its file `wgsl` with `constants` written into it.
///
/// # Errors
/// [`Error::Compose`] if an import is unknown, a constant does not stand in the text exactly once, or
/// an alternative or a loop is not what the table of the module says.
pub fn compose(name: &str, wgsl: &str, constants: &[Constant]) -> Result<String> {
    let written = || {
        let mut text = String::with_capacity(wgsl.len() * 2);
        import(wgsl, &mut text, &mut Vec::new())?;
        for (name, value) in constants {
            let place = literal(&text, name)?;
            text.replace_range(place, &format!("{value}u"));
        }
        let lines: Vec<&str> = text.lines().collect();
        let mut out = String::with_capacity(text.len());
        expand(&text, &lines, &mut out)?;
        // A directive has to stand before everything else.
        let (directives, rest): (Vec<&str>, Vec<&str>) =
            out.lines().partition(|line| line.starts_with("enable "));
        let mut front: Vec<&str> = Vec::new();
        for directive in directives {
            if !front.contains(&directive) {
                front.push(directive);
            }
        }
        match front.is_empty() {
            true => Ok(out),
            false => Ok([&front[..], &rest[..], &[""]].concat().join("\n")),
        }
    };
    written().map_err(|reason| Error::Compose {
        kernel: name.to_owned(),
        reason,
    })
}

/// Copies a text with its imports, each once.
fn import<'a>(wgsl: &'a str, text: &mut String, done: &mut Vec<&'a str>) -> Result<(), String> {
    for line in wgsl.lines() {
        let Some(name) = line.strip_prefix("#import ").map(str::trim) else {
            text.push_str(line);
            text.push('\n');
            continue;
        };
        if done.contains(&name) {
            continue;
        }
        done.push(name);
        let piece = SHARED.iter().find(|(n, _)| *n == name);
        let (_, piece) =
            piece.ok_or_else(|| format!("it imports '{name}', which does not exist"))?;
        import(piece, text, done)?;
    }
    Ok(())
}

/// Where the value of a constant stands.
fn literal(text: &str, name: &str) -> Result<Range<usize>, String> {
    let head = format!("const {name}: u32 = ");
    let mut places = text.match_indices(&head).map(|(at, _)| at + head.len());
    let (Some(start), None) = (places.next(), places.next()) else {
        return Err(format!("'{head}' must stand in its text exactly once"));
    };
    let length = text[start..].find(';');
    let length = length.ok_or_else(|| format!("'{head}' has no end"))?;
    Ok(start..start + length)
}

/// A number, or the value of a constant in the text.
fn number(text: &str, word: &str) -> Result<u32, String> {
    let digits = match word.starts_with(|c: char| c.is_ascii_digit()) {
        true => word,
        false => text[literal(text, word)?].trim_end_matches('u'),
    };
    let parsed = digits.parse();
    parsed.map_err(|_| format!("'{word}' must be a number or a constant with a literal value"))
}

/// Copies lines with their alternatives and loops; `text` is where constants are looked up.
fn expand(text: &str, mut lines: &[&str], out: &mut String) -> Result<(), String> {
    while let Some((line, rest)) = lines.split_first() {
        lines = rest;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["#if", name] => {
                let [then, otherwise] = block(line, &mut lines)?;
                let taken = if number(text, name)? != 0 {
                    then
                } else {
                    otherwise
                };
                expand(text, taken, out)?;
            }
            ["#unroll", name, range] => {
                let [body, _] = block(line, &mut lines)?;
                let (first, end) = range.split_once("..").unwrap_or(("0", range));
                let mut inner = String::new();
                expand(text, body, &mut inner)?;
                for i in number(text, first)?..number(text, end)? {
                    out.push_str(&inner.replace(&format!("{{{name}}}"), &i.to_string()));
                }
            }
            [word, ..] if word.starts_with('#') => return Err(format!("it has a stray '{line}'")),
            _ => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    Ok(())
}

/// The lines up to the `#else` of a block and from there up to its `#end`, which are taken off `lines`.
fn block<'a, 'b>(head: &str, lines: &mut &'a [&'b str]) -> Result<[&'a [&'b str]; 2], String> {
    let (mut depth, mut middle) = (0, None);
    for (at, line) in lines.iter().enumerate() {
        match line.split_whitespace().next() {
            Some("#if" | "#unroll") => depth += 1,
            Some("#end") if depth > 0 => depth -= 1,
            Some("#else") if depth == 0 && head.trim_start().starts_with("#if") => {
                middle = middle.or(Some(at));
            }
            Some("#end") => {
                let otherwise = middle.map_or(at, |m| m + 1);
                let parts = [&lines[..middle.unwrap_or(at)], &lines[otherwise..at]];
                *lines = &lines[at + 1..];
                return Ok(parts);
            }
            _ => {}
        }
    }
    Err(format!("'{head}' has no '#end'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_and_imports() {
        let wgsl = "#import flat\n#import flat\nconst TILE: u32 = 16u;\nconst A: u32 = TILE;\n";
        let text = compose("k", wgsl, &[("TILE", 8)]).unwrap();
        assert!(
            text.contains("const TILE: u32 = 8u;\nconst A: u32 = TILE;"),
            "{text}"
        );
        assert_eq!(text.matches("fn flat_index").count(), 1);
    }

    #[test]
    fn directives_move_to_the_front() {
        let wgsl = "const A: u32 = 0u;\n#if A\nenable f16;\nenable f16;\n#end\n// enable f16;\nfn f() {}\n";
        let with = compose("k", wgsl, &[("A", 1)]).unwrap();
        assert_eq!(
            with,
            "enable f16;\nconst A: u32 = 1u;\n// enable f16;\nfn f() {}\n"
        );
        let without = compose("k", wgsl, &[]).unwrap();
        assert_eq!(without, "const A: u32 = 0u;\n// enable f16;\nfn f() {}\n");
    }

    #[test]
    fn alternatives_and_loops() {
        let wgsl = "\
const N: u32 = 1u;
const WIDE: u32 = 0u;
#if WIDE
wide
#else
narrow
#end
#unroll i 0..N
  #unroll j 2
  c{i}{j} = {k};
  #end
  #if WIDE
  w{i}
  #end
#end
";
        let of = |constants: &[Constant]| {
            let text = compose("k", wgsl, constants).unwrap();
            text.lines().skip(2).collect::<Vec<_>>().join("\n")
        };
        assert_eq!(of(&[]), "narrow\n  c00 = {k};\n  c01 = {k};");
        assert_eq!(of(&[("N", 0)]), "narrow");
        assert_eq!(
            of(&[("N", 2), ("WIDE", 1)]),
            "wide\n  c00 = {k};\n  c01 = {k};\n  w0\n  c10 = {k};\n  c11 = {k};\n  w1"
        );
    }

    #[test]
    fn refusals() {
        assert!(compose("k", "const TILE: u32 = 1u;", &[("TILES", 8)]).is_err());
        for wgsl in [
            "#import nothing",
            "const T: u32 = 1u;\nconst T: u32 = 1u;\n#if T\n#end",
            "#if T\n#end",
            "const T: u32 = 1u;\n#if T",
            "const T: u32 = 2u * 3u;\n#if T\n#end",
            "#unroll i 2\na\n#else\nb\n#end",
            "#unroll i N\n#end",
            "#unroll i\n#end",
            "#unroll i 0..\n#end",
            "#unroll i 0..1..2\n#end",
            "#unroll i 2\n",
            "#end",
            "#other",
        ] {
            assert!(compose("k", wgsl, &[]).is_err(), "{wgsl}");
        }
    }
}
