//! A plan as text: what it dispatches, what that costs, and the memory it takes.
//!
//! For each section one line per run of equal kernels, with the grid of the first of them and the
//! constants that are not 0; FLOPs
//! and bytes are those of [`Cost`](super::Cost), counted from the equations.

use std::fmt::{self, Display, Formatter};
use std::ops::Range;

use super::{Choice, Cost, Plan, Role, Step};

impl Display for Plan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.name)?;
        self.choices_text(f)?;
        for section in &self.sections {
            self.section_text(f, section.name, section.steps.clone())?;
        }
        self.memory_text(f)
    }
}

impl Plan {
    fn choices_text(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.choices.is_empty() {
            return Ok(());
        }
        writeln!(f, "\nchoices")?;
        for Choice {
            what,
            chosen,
            why,
            count,
        } in &self.choices
        {
            writeln!(f, "{count:>6} x {what:<23} {chosen:<15} {why}")?;
        }
        Ok(())
    }

    fn section_text(&self, f: &mut Formatter<'_>, name: &str, steps: Range<usize>) -> fmt::Result {
        let dispatches = self.steps[steps.clone()]
            .iter()
            .filter(|s| !s.grid.contains(&0))
            .count();
        let cost = Cost::total(&self.steps[steps.clone()]);
        let barriers = self.barriers(steps.clone()).map_err(|_| fmt::Error)?;
        writeln!(
            f,
            "\n{name}: {} steps, {dispatches} dispatches, {barriers} barriers, {}, {}",
            steps.len(),
            scaled(cost.flops, "FLOP"),
            scaled(cost.bytes, "B"),
        )?;
        let mut start = steps.start;
        while start < steps.end {
            let first = &self.steps[start];
            let same =
                |s: &&Step| std::ptr::eq(s.kernel, first.kernel) && s.constants == first.constants;
            let rest = &self.steps[start..steps.end];
            let count = rest.iter().take_while(same).count();
            let cost = Cost::total(&rest[..count]);
            let [x, y, z] = first.grid;
            let constants: Vec<_> = first
                .constants
                .iter()
                .filter(|(_, value)| *value != 0)
                .map(|(name, value)| format!("{name} {value}"))
                .collect();
            let line = format!(
                "{count:>6} x {:<24}{:<16}{:>12}{:>12}  {}",
                first.kernel.name,
                format!("[{x}, {y}, {z}]"),
                scaled(cost.flops, "FLOP"),
                scaled(cost.bytes, "B"),
                constants.join(", "),
            );
            writeln!(f, "{}", line.trim_end())?;
            start += count;
        }
        Ok(())
    }

    fn memory_text(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut total = 0;
        writeln!(f, "\nmemory")?;
        for role in Role::ALL {
            let bytes = self.bytes(role);
            total = u64::saturating_add(total, bytes);
            let count = self.buffers.iter().filter(|b| b.role == role).count();
            if count > 0 {
                let name = format!("{role:?}").to_lowercase();
                let buffers = if count == 1 { "buffer" } else { "buffers" };
                write!(
                    f,
                    "  {name:<10}{:>12}  {count} {buffers}",
                    scaled(bytes, "B")
                )?;
                let apart = self.scratch_apart();
                if role == Role::Scratch && apart > bytes {
                    let saved = scaled(apart - bytes, "B");
                    write!(f, "; sharing saves {saved} of {}", scaled(apart, "B"))?;
                }
                writeln!(f)?;
            }
        }
        writeln!(f, "  {:<10}{:>12}", "total", scaled(total, "B"))
    }

    /// Bytes of scratch if no two buffers shared memory.
    fn scratch_apart(&self) -> u64 {
        let scratch = self.buffers.iter().filter(|b| b.role == Role::Scratch);
        let bytes = scratch.map(|b| b.bytes() as u64);
        bytes.fold(0, u64::saturating_add)
    }
}

/// Three digits or more with a decimal prefix: 1234 FLOP are 1.23 kFLOP.
fn scaled(value: u64, unit: &str) -> String {
    let mut scaled = value as f64;
    for prefix in ["", "k", "M", "G", "T"] {
        // 999.5 would be printed as 1000.
        if scaled < 999.5 || prefix == "T" {
            let digits = match scaled {
                _ if prefix.is_empty() => 0,
                s if s < 9.995 => 2,
                s if s < 99.95 => 1,
                _ => 0,
            };
            return format!("{scaled:.digits$} {prefix}{unit}");
        }
        scaled /= 1000.0;
    }
    format!("{value} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::copy::copy;
    use crate::layer::{Lstm, Sequence};
    use crate::plan::sequence::{Call, Size};
    use crate::plan::{Builder, Target};

    #[test]
    fn units() {
        let of = |v| scaled(v, "B");
        assert_eq!(of(0), "0 B");
        assert_eq!(of(999), "999 B");
        assert_eq!(of(1_000), "1.00 kB");
        assert_eq!(of(12_345), "12.3 kB");
        assert_eq!(of(999_499), "999 kB");
        assert_eq!(of(999_500), "1.00 MB");
        assert_eq!(of(u64::MAX), "18446744 TB");
    }

    #[test]
    fn a_small_lstm() {
        let spec = Lstm::new(3, 96).spec();
        let size = Size {
            steps: 40,
            batch: 2,
        };
        let plan = Sequence::plan(&spec, &Call::training(size), &Target::default()).unwrap();
        let text = plan.to_string();
        assert_eq!(text, SMALL_LSTM, "\n{text}");
    }

    const SMALL_LSTM: &str = "\
lstm I 3 H 96 T 40 N 2

choices
     1 x steps of the layer      steps           H 96: an invocation would have 160 registers of weights, more than 128
     1 x product 80x384x3 NT     tile32          larger tiles would be too few, or half empty
    40 x step                    few             at most 8 sequences: the time is that of reading the weights
    40 x step back               few             at most 8 sequences: the time is that of reading the weights
     1 x product 2x96x384 NN     rows            at most 8 rows or columns
     1 x product 384x3x80 TN     rows            at most 8 rows or columns
     1 x product 384x96x80 TN    tile32          larger tiles would be too few, or half empty
     1 x product 80x3x384 NN     rows            at most 8 rows or columns

carry: 2 steps, 2 dispatches, 0 barriers, 0 FLOP, 3.07 kB
     2 x copy.copy               [3, 1, 1]             0 FLOP     3.07 kB

forward: 46 steps, 46 dispatches, 41 barriers, 6.39 MFLOP, 6.88 MB
     1 x pack                    [576, 1, 1]           0 FLOP      295 kB
     2 x state.load              [3, 1, 1]             0 FLOP     3.07 kB
     1 x gemm.tile32             [12, 3, 1]         184 kFLOP      128 kB  BIAS 1, C_VEC4 1, REST 1
    40 x lstm.forward_few        [96, 1, 1]        6.21 MFLOP     6.45 MB  SAVE 1, ACTIVATION_1 1, ACTIVATION_2 1, SEQUENCES 2, THREADS 32, WORKGROUP_FLOATS 256
     2 x copy.copy               [3, 1, 1]             0 FLOP     3.07 kB

backward: 53 steps, 53 dispatches, 44 barriers, 12.7 MFLOP, 7.66 MB
     1 x pack                    [576, 1, 1]           0 FLOP      295 kB
     2 x copy.copy               [3, 1, 1]             0 FLOP     3.07 kB
    40 x lstm.backward_few       [24, 1, 1]        6.21 MFLOP     6.51 MB  SAVE 1, ACTIVATION_1 1, ACTIVATION_2 1, BACK 1, SEQUENCES 2, THREADS 128, WORKGROUP_FLOATS 1024
     1 x gemm.across_k           [3, 1, 1]          147 kFLOP      152 kB  B_VEC4 2, C_VEC4 1, FEW 2, WORKGROUP_FLOATS 512
     1 x gemm.across_k           [12, 1, 1]         184 kFLOP      128 kB  B_VEC4 2, FEW 3, WORKGROUP_FLOATS 768
     1 x gemm.tile32             [3, 12, 1]        5.90 MFLOP      301 kB  A_VEC4 2, B_VEC4 2, C_VEC4 1
     2 x reduce.columns          [6, 2, 1]         31.5 kFLOP      131 kB
     1 x gemm.along_k            [20, 1, 1]         184 kFLOP      128 kB  B_VEC4 1, FEW 3, WORKGROUP_FLOATS 768
     2 x reduce.columns          [6, 1, 1]           768 FLOP     6.14 kB
     2 x copy.copy               [3, 1, 1]             0 FLOP     3.07 kB

memory
  input          33.2 kB  5 buffers
  weight          303 kB  5 buffers
  output         30.7 kB  1 buffer
  gradient        158 kB  7 buffers
  state          3.07 kB  4 buffers
  saved           186 kB  3 buffers
  scratch         273 kB  5 buffers; sharing saves 3.07 kB of 276 kB
  total           986 kB
";

    #[test]
    fn shared_scratch_and_empty_grids() {
        let mut b = Builder::new("chain");
        let x = b.float("x", &[8], Role::Input);
        let s = [8, 4, 6].map(|n| b.float("s", &[n], Role::Scratch));
        copy(&mut b, (x, 0), (s[0], 0), 8).unwrap();
        copy(&mut b, (s[0], 0), (s[1], 0), 4).unwrap();
        copy(&mut b, (s[1], 0), (s[2], 0), 0).unwrap();
        let text = b.finish().to_string();
        let scratch = "scratch           48 B  3 buffers; sharing saves 24 B of 72 B\n";
        assert!(text.contains(scratch), "\n{text}");
        let section = "main: 3 steps, 2 dispatches, 2 barriers, 0 FLOP, 96 B\n";
        assert!(text.contains(section), "\n{text}");
    }
}
