//! Whether workers stay out of each other's cells.
//!
//! A kernel's rows stand where its parameters say. Two workers may run at once if, in every buffer
//! that they write,
//!
//! - a cell belongs to one sequence, whatever the step: then the sequences can be divided;
//! - a cell belongs to one unit of it, whatever the step: then the units can be divided;
//! - no step writes where it reads rows of other units: those that it multiplies.
//!
//! That is so if any two runs of rows are the same rows or have no cell in common, and those that a
//! step multiplies and those that it writes are not the same.

/// A row of `width` cells for each of `count` sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RowRun {
    /// The row of the first sequence of all, whether or not it is among these.
    pub(crate) start: usize,
    /// From one sequence to the next.
    pub(crate) pitch: usize,
    /// So many sequences have the row, counted from the first one of all.
    pub(crate) count: usize,
    pub(crate) width: usize,
}

impl RowRun {
    fn end(&self) -> usize {
        let last = (self.count - 1).saturating_mul(self.pitch);
        self.start.saturating_add(last).saturating_add(self.width)
    }

    /// True if no two of its rows have a cell in common.
    fn is_apart(&self) -> bool {
        self.count < 2 || self.pitch >= self.width
    }

    /// True if they are the rows of the same sequences, as far as both go.
    fn same_rows(&self, other: &Self) -> bool {
        (self.start, self.pitch, self.width) == (other.start, other.pitch, other.width)
    }
}

/// The rows of a buffer that the steps of a call touch.
#[derive(Debug, Default)]
pub(crate) struct Touched(Vec<RowRun>);

impl Touched {
    pub(crate) fn add(&mut self, rows: RowRun) {
        if rows.count > 0 && rows.width > 0 {
            self.0.push(rows);
        }
    }

    /// True if any two runs are the same rows or have no cell in common.
    pub(crate) fn are_apart(mut self) -> bool {
        // The longest of several that start together last, so that it is the one that stays.
        self.0.sort_unstable();
        let mut runs = Vec::<RowRun>::with_capacity(self.0.len());
        for run in self.0 {
            match runs.last_mut() {
                Some(last) if last.same_rows(&run) => *last = run,
                _ => runs.push(run),
            }
        }
        let mut rest = runs.as_slice();
        while let Some(first) = rest.first() {
            let len = cluster(rest);
            let (cluster, behind) = rest.split_at(len);
            let inside = cluster.windows(2).all(|pair| {
                let [a, b] = pair else { return false };
                b.pitch == first.pitch && a.start + a.width <= b.start
            });
            let last = cluster[len - 1];
            let wraps = len > 1 && last.start + last.width > first.start + first.pitch;
            if !inside || wraps || !cluster.iter().all(RowRun::is_apart) {
                return false;
            }
            rest = behind;
        }
        true
    }
}

/// How many runs, sorted by their starts, reach into those before them.
fn cluster(runs: &[RowRun]) -> usize {
    let mut end = 0;
    let reaches = |run: &&RowRun| {
        let inside = end == 0 || run.start < end;
        end = end.max(run.end());
        inside
    };
    runs.iter().take_while(reaches).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apart(runs: &[[usize; 4]]) -> bool {
        let mut touched = Touched::default();
        for &[start, pitch, count, width] in runs {
            touched.add(RowRun {
                start,
                pitch,
                count,
                width,
            });
        }
        touched.are_apart()
    }

    /// The same by looking at every cell: it has one sequence and one place in its row.
    fn each_cell(runs: &[[usize; 4]]) -> bool {
        let mut owners = std::collections::HashMap::new();
        for &[start, pitch, count, width] in runs {
            for n in 0..count {
                for unit in 0..width {
                    let owner = owners.entry(start + n * pitch + unit).or_insert((n, unit));
                    if *owner != (n, unit) {
                        return false;
                    }
                }
            }
        }
        true
    }

    #[test]
    fn rows_of_steps() {
        // Time first with falling counts, batch first, and both behind the states after the last step.
        assert!(apart(&[[0, 3, 4, 3], [12, 3, 4, 3], [24, 3, 2, 3]]));
        assert!(apart(&[[24, 3, 2, 3], [0, 3, 4, 3], [12, 3, 4, 3]]));
        assert!(apart(&[[0, 9, 4, 3], [3, 9, 4, 3], [6, 9, 2, 3]]));
        assert!(apart(&[
            [0, 3, 4, 3],
            [12, 9, 4, 3],
            [15, 9, 4, 3],
            [18, 9, 4, 3]
        ]));
        // By turns.
        assert!(apart(&[[8, 2, 4, 2], [16, 2, 4, 2], [8, 2, 3, 2]]));
        // Packed rows where a step's second sequence stands in the row of another step's first.
        assert!(!apart(&[[0, 3, 2, 3], [3, 3, 2, 3]]));
        assert!(!apart(&[[0, 2, 2, 3]]));
        assert!(!apart(&[[0, 9, 4, 3], [7, 9, 4, 3]]));
        assert!(!apart(&[[0, 9, 4, 3], [2, 9, 4, 3]]));
        assert!(!apart(&[[0, 9, 4, 3], [3, 6, 4, 3]]));
        assert!(apart(&[]));
    }

    #[test]
    fn no_claim_is_wrong() {
        let mut rng = crate::rng::Rng::new(7);
        let mut of = |n: u32| rng.below(n) as usize;
        let (mut yes, mut no) = (0, 0);
        for _ in 0..20_000 {
            let (pitch, width) = (1 + of(6), 1 + of(3));
            let runs: Vec<[usize; 4]> = (0..1 + of(4))
                .map(|_| {
                    [
                        of(24),
                        if of(5) == 0 { 1 + of(6) } else { pitch },
                        of(4),
                        width,
                    ]
                })
                .collect();
            match apart(&runs) {
                true => {
                    assert!(each_cell(&runs), "{runs:?}");
                    yes += 1;
                }
                false => no += 1,
            }
        }
        assert!(yes > 1000 && no > 1000, "{yes} {no}");
    }
}
