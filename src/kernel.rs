//! What a kernel is: one descriptor with its WGSL, its bindings, its CPU twin and its test inputs.
//!
//! The text of a shader is put together by [`compose`]: `#import name` lines are replaced by the
//! pieces in `shaders/shared/`, and the literals of named constants (`const TILE: u32 = 16u;`) by
//! the values a step asks for. What stands between `#unroll i COUNT` and `#end` is written out for each
//! i from 0 to before COUNT, an integer or such a constant, with `{i}` as its number: names of variables
//! that must stay in registers, and loops whose bounds no driver has to check. The file itself stays
//! plain WGSL but for these lines.

use std::fmt;

use crate::error::{Error, Result};
use crate::plan::BufferId;
use crate::plan::Plan;
use crate::real::Real;
use crate::rng::Rng;

/// The most storage buffers one kernel binds: what every WebGPU device offers.
pub const MAX_BINDINGS: usize = 8;

/// A kernel, described once: everything that records, checks, tests and times it reads this.
pub struct Kernel {
    /// `stem.entry`, such as `lstm.forward`: also the pipeline's label and the test's name.
    pub name: &'static str,
    /// The shader's text, with its imports unresolved.
    pub wgsl: &'static str,
    /// The entry point in `wgsl`.
    pub entry: &'static str,
    /// Storage buffers in the order of `@binding(1)`, `@binding(2)`, …
    pub bindings: &'static [Binding],
    /// Bytes of the parameter struct at `@binding(0)`.
    pub params_size: usize,
    /// Invocations per workgroup.
    pub workgroup_size: u32,
    /// Bytes of workgroup memory.
    pub workgroup_memory: u32,
    /// The same computation on the CPU.
    pub twin: Twin,
    /// Makes a one-step plan and its data for tests and benchmarks.
    pub sample: fn(size: [usize; 3], rng: &mut Rng) -> Result<Sample>,
}

impl Kernel {
    /// Invocations per workgroup with these constants: `THREADS`, where the kernel has it.
    pub fn threads(&self, constants: &[Constant]) -> u32 {
        of(constants, "THREADS").unwrap_or(self.workgroup_size)
    }

    /// Bytes of workgroup memory with these constants: `WORKGROUP_FLOATS`, where the kernel has it.
    pub fn shared_bytes(&self, constants: &[Constant]) -> u32 {
        of(constants, "WORKGROUP_FLOATS").map_or(self.workgroup_memory, |floats| 4 * floats)
    }
}

fn of(constants: &[Constant], name: &str) -> Option<u32> {
    let found = constants.iter().find(|(n, _)| *n == name);
    found.map(|(_, value)| *value)
}

/// Its name alone, not its text.
impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kernel({})", self.name)
    }
}

/// One storage buffer of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// The variable's name in the shader.
    pub name: &'static str,
    /// What the kernel does with it.
    pub access: Access,
    /// What it holds.
    pub element: Element,
}

impl Binding {
    /// A buffer of floats that is read only.
    pub const fn read(name: &'static str) -> Self {
        Self {
            name,
            access: Access::Read,
            element: Element::Float,
        }
    }

    /// A buffer of floats whose old contents matter and which is changed.
    pub const fn update(name: &'static str) -> Self {
        Self {
            name,
            access: Access::ReadWrite,
            element: Element::Float,
        }
    }

    /// A buffer of floats that is written without being read.
    pub const fn write(name: &'static str) -> Self {
        Self {
            name,
            access: Access::Write,
            element: Element::Float,
        }
    }

    /// The same binding over unsigned integers.
    pub const fn uint(self) -> Self {
        Self {
            name: self.name,
            access: self.access,
            element: Element::Uint,
        }
    }
}

/// What a kernel does with a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Only reads it.
    Read,
    /// Reads what was there and changes some of it.
    ReadWrite,
    /// Writes it without looking at what was there; tests fill it with NaN first.
    Write,
}

/// What a buffer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// `f32` on a GPU, the context's own type on the CPU.
    Float,
    /// `u32`: token ids, counters.
    Uint,
}

impl Element {
    /// Bytes of one element on a GPU.
    pub const SIZE: usize = 4;
}

/// The CPU's version of a kernel, in both precisions.
#[derive(Debug, Clone, Copy)]
pub struct Twin {
    /// In the CPU backend's own precision.
    pub f32: fn(&mut Args<'_, f32>) -> Result<()>,
    /// In the oracle's.
    pub f64: fn(&mut Args<'_, f64>) -> Result<()>,
}

/// Names the two instances of a twin that is generic over [`Real`].
#[macro_export]
macro_rules! twin {
    ($f:ident) => {
        $crate::kernel::Twin {
            f32: $f::<f32>,
            f64: $f::<f64>,
        }
    };
}

/// One buffer as a twin sees it.
#[derive(Debug, Default)]
pub enum Slot<'a, R> {
    /// Floats to read.
    Read(&'a [R]),
    /// Floats to change.
    Write(&'a mut [R]),
    /// Integers to read.
    ReadUint(&'a [u32]),
    /// Integers to change.
    WriteUint(&'a mut [u32]),
    /// Not bound, or already taken.
    #[default]
    Taken,
}

/// What a twin is called with: parameters, constants and buffers, as the shader has them.
#[derive(Debug)]
pub struct Args<'a, R> {
    pub(crate) kernel: &'static Kernel,
    pub(crate) params: &'a [u8],
    pub(crate) constants: &'a [Constant],
    pub(crate) slots: [Slot<'a, R>; MAX_BINDINGS],
}

/// A named constant of a shader and the value it is specialised to.
pub type Constant = (&'static str, u32);

impl<'a, R: Real> Args<'a, R> {
    /// The parameter struct.
    ///
    /// # Errors
    /// If `P` is not as long as the kernel's parameters.
    pub fn params<P: bytemuck::AnyBitPattern>(&self) -> Result<P> {
        bytemuck::try_pod_read_unaligned(self.params).map_err(|e| Error::Compose {
            kernel: self.kernel.name.to_owned(),
            reason: format!("its parameters are {} bytes: {e}", self.params.len()),
        })
    }

    /// The value of a specialised constant.
    ///
    /// # Errors
    /// If the step does not set it.
    pub fn constant(&self, name: &str) -> Result<u32> {
        self.constants
            .iter()
            .find(|(n, _)| *n == name)
            .map(|(_, v)| *v)
            .ok_or_else(|| Error::Compose {
                kernel: self.kernel.name.to_owned(),
                reason: format!("the step sets no constant {name}"),
            })
    }

    /// Floats that the kernel only reads. Each binding can be taken once.
    ///
    /// # Errors
    /// If the binding is of another kind or was taken before.
    pub fn read(&mut self, binding: usize) -> Result<&'a [R]> {
        match self.take(binding) {
            Slot::Read(s) => Ok(s),
            other => Err(self.mismatch(binding, &other)),
        }
    }

    /// Floats that the kernel changes.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn write(&mut self, binding: usize) -> Result<&'a mut [R]> {
        match self.take(binding) {
            Slot::Write(s) => Ok(s),
            other => Err(self.mismatch(binding, &other)),
        }
    }

    /// Integers that the kernel only reads.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_uint(&mut self, binding: usize) -> Result<&'a [u32]> {
        match self.take(binding) {
            Slot::ReadUint(s) => Ok(s),
            other => Err(self.mismatch(binding, &other)),
        }
    }

    /// Integers that the kernel changes.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn write_uint(&mut self, binding: usize) -> Result<&'a mut [u32]> {
        match self.take(binding) {
            Slot::WriteUint(s) => Ok(s),
            other => Err(self.mismatch(binding, &other)),
        }
    }

    fn take(&mut self, binding: usize) -> Slot<'a, R> {
        self.slots
            .get_mut(binding)
            .map(std::mem::take)
            .unwrap_or_default()
    }

    fn mismatch(&self, binding: usize, got: &Slot<'a, R>) -> Error {
        let got = match got {
            Slot::Read(_) => "floats to read",
            Slot::Write(_) => "floats to write",
            Slot::ReadUint(_) => "integers to read",
            Slot::WriteUint(_) => "integers to write",
            Slot::Taken => "nothing (taken before, or not bound)",
        };
        Error::Compose {
            kernel: self.kernel.name.to_owned(),
            reason: format!("its CPU twin asked for binding {binding} and found {got}"),
        }
    }
}

/// A one-step plan with the contents of its buffers: the input of a test or a benchmark.
#[derive(Debug)]
pub struct Sample {
    /// The plan; its only section is the kernel's step.
    pub plan: Plan,
    /// What to write into its buffers before it runs.
    pub data: Vec<(BufferId, Data)>,
}

/// The contents of a buffer.
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    /// For [`Element::Float`].
    Float(Vec<f32>),
    /// For [`Element::Uint`].
    Uint(Vec<u32>),
}

const SHARED: &[(&str, &str)] = &[
    (
        "activations",
        include_str!("../shaders/shared/activations.wgsl"),
    ),
    ("flat", include_str!("../shaders/shared/flat.wgsl")),
    ("gates", include_str!("../shaders/shared/gates.wgsl")),
    ("philox", include_str!("../shaders/shared/philox.wgsl")),
    ("sequence", include_str!("../shaders/shared/sequence.wgsl")),
    ("step", include_str!("../shaders/shared/step.wgsl")),
];

/// The complete WGSL of the kernel `name`: its file `wgsl` with `constants` written into it.
///
/// # Errors
/// [`Error::Compose`] if an import is unknown, or a constant does not stand in the text exactly once.
pub fn compose(name: &str, wgsl: &str, constants: &[Constant]) -> Result<String> {
    let fail = |reason: String| Error::Compose {
        kernel: name.to_owned(),
        reason,
    };
    let mut text = String::with_capacity(wgsl.len() * 2);
    import(wgsl, &mut text, &mut Vec::new())
        .map_err(|name| fail(format!("it imports '{name}', which does not exist")))?;
    for (name, value) in constants {
        let head = format!("const {name}: u32 = ");
        let mut places = text.match_indices(&head).map(|(at, _)| at);
        let (Some(at), None) = (places.next(), places.next()) else {
            return Err(fail(format!(
                "'{head}' must stand in its text exactly once"
            )));
        };
        let start = at + head.len();
        let end = text[start..]
            .find(';')
            .map(|e| start + e)
            .ok_or_else(|| fail(format!("'{head}' has no end")))?;
        text.replace_range(start..end, &format!("{value}u"));
    }
    if text.contains("#unroll ") {
        let lines: Vec<&str> = text.lines().collect();
        text = unroll(&lines, &text).map_err(fail)?;
    }
    Ok(text)
}

/// Writes out the lines between `#unroll` and `#end`, from the outermost to the innermost.
fn unroll(lines: &[&str], whole: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut at = 0;
    while at < lines.len() {
        let Some(head) = lines[at].trim_start().strip_prefix("#unroll ") else {
            out.push_str(lines[at]);
            out.push('\n');
            at += 1;
            continue;
        };
        let (name, count) = head
            .split_once(' ')
            .ok_or_else(|| format!("'#unroll {head}' needs a name and a count"))?;
        let count = count_of(count.trim(), whole)?;
        let end = matching(&lines[at + 1..])
            .map(|end| at + 1 + end)
            .ok_or_else(|| format!("'#unroll {head}' has no end"))?;
        for i in 0..count {
            let number = i.to_string();
            let place = format!("{{{name}}}");
            let replaced = |line: &&str| line.replace(&place, &number);
            let body: Vec<String> = lines[at + 1..end].iter().map(replaced).collect();
            let body: Vec<&str> = body.iter().map(String::as_str).collect();
            out.push_str(&unroll(&body, whole)?);
        }
        at = end + 1;
    }
    Ok(out)
}

/// The line of the `#end` that closes the block that these lines begin.
fn matching(lines: &[&str]) -> Option<usize> {
    let mut depth = 0;
    lines.iter().position(|line| {
        let line = line.trim_start();
        if line.starts_with("#unroll ") {
            depth += 1;
        }
        let end = line == "#end";
        if end {
            depth -= 1;
        }
        end && depth < 0
    })
}

/// An integer, or the value of a constant in the text.
fn count_of(count: &str, whole: &str) -> Result<u32, String> {
    let literal = match whole.split_once(&format!("const {count}: u32 = ")) {
        Some((_, rest)) => rest.split(';').next().unwrap_or_default(),
        None => count,
    };
    let number = literal.strip_suffix('u').unwrap_or(literal);
    let failed = |_| format!("'{count}' is no number of times");
    number.parse().map_err(failed)
}

/// Copies a text with its imports, each once; the error is the name of one that does not exist.
fn import<'a>(wgsl: &'a str, text: &mut String, done: &mut Vec<&'a str>) -> Result<(), &'a str> {
    for line in wgsl.lines() {
        let Some(name) = line.strip_prefix("#import ") else {
            text.push_str(line);
            text.push('\n');
            continue;
        };
        let name = name.trim();
        if done.contains(&name) {
            continue;
        }
        done.push(name);
        let piece = SHARED.iter().find(|(n, _)| *n == name);
        let (_, piece) = piece.ok_or(name)?;
        import(piece, text, done)?;
    }
    Ok(())
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
    fn unrolled() {
        let wgsl = "const N: u32 = 9u;\n#unroll i N\nvar a{i} = f({i});\n  #unroll j 2\n  b{i}{j}\n  #end\n#end\nend";
        let text = compose("k", wgsl, &[("N", 2)]).unwrap();
        let want =
            "const N: u32 = 2u;\nvar a0 = f(0);\n  b00\n  b01\nvar a1 = f(1);\n  b10\n  b11\nend\n";
        assert_eq!(text, want);
        assert_eq!(compose("k", "#unroll i 0\nx\n#end", &[]).unwrap(), "");
        for wrong in ["#unroll i 2\nx", "#unroll i\n#end", "#unroll i M\n#end"] {
            assert!(compose("k", wrong, &[]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn refusals() {
        assert!(compose("k", "#import nothing\n", &[]).is_err());
        assert!(compose("k", "const TILE: u32 = 1u;", &[("TILES", 8)]).is_err());
        let twice = "const T: u32 = 1u;\nconst T: u32 = 1u;";
        assert!(compose("k", twice, &[("T", 8)]).is_err());
    }
}
