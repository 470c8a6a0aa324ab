//! Packed sequences: which row of a packed array belongs to which step of which sequence.
//!
//! The layout is that of PyTorch's `PackedSequence`: the sequences sorted by length, the longest
//! first, and of each step the rows of those that still have it.

use ndarray::{Array2, Array3, ArrayView2, ArrayView3};

use crate::error::{Error, Result};
use crate::host::zeroed;

/// How sequences of different lengths are packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packing {
    lengths: Vec<usize>,
    order: Vec<usize>,
    batch_sizes: Vec<usize>,
}

impl Packing {
    /// Sorts sequences by length; of equal ones the first stays first.
    ///
    /// # Errors
    /// If there is no sequence, one has no step, which a packed array cannot say, or all have more than
    /// 32 bits can count.
    pub fn new(lengths: &[usize]) -> Result<Self> {
        const OP: &str = "Packing::new";
        if lengths.is_empty() {
            return Err(Error::value(OP, "lengths", "at least one sequence", "none"));
        }
        if let Some(n) = lengths.iter().position(|&l| l == 0) {
            let arg = format!("lengths[{n}]");
            return Err(Error::value(OP, arg, "at least 1 in packed sequences", 0));
        }
        let tokens = lengths.iter().fold(0usize, |sum, &l| sum.saturating_add(l));
        if tokens > u32::MAX as usize {
            let expected = format!("at most {} steps in all", u32::MAX);
            return Err(Error::value(OP, "lengths", expected, tokens));
        }
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        order.sort_by_key(|&n| std::cmp::Reverse(lengths[n]));
        let mut batch_sizes: Vec<usize> = zeroed(lengths[order[0]])?;
        // The shortest first: the steps between it and the one before have one sequence more.
        let mut done = 0;
        for (rank, &n) in order.iter().enumerate().rev() {
            batch_sizes[done..lengths[n]].fill(rank + 1);
            done = lengths[n];
        }
        Ok(Self {
            lengths: lengths.to_vec(),
            order,
            batch_sizes,
        })
    }

    /// For each step how many sequences have it: what a packed [`Call`](crate::Call) is planned for.
    pub fn batch_sizes(&self) -> &[usize] {
        &self.batch_sizes
    }

    /// The sequences in the order of the packed array, of its states and their gradients.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// How many rows the packed array has.
    pub fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// Every row's step and sequence, in the order of the packed array.
    pub fn rows(&self) -> impl Iterator<Item = (usize, usize)> {
        let sizes = self.batch_sizes.iter().enumerate();
        sizes.flat_map(|(t, &size)| self.order[..size].iter().map(move |&n| (t, n)))
    }

    /// Packs a padded array `[T, N, F]` to `[tokens, F]`.
    ///
    /// # Errors
    /// If it has not the longest sequence's steps at least, or another number of sequences.
    pub fn pack(&self, padded: ArrayView3<'_, f32>) -> Result<Array2<f32>> {
        let (steps, batch, features) = padded.dim();
        let (longest, sequences) = (self.batch_sizes.len(), self.lengths.len());
        if steps < longest || batch != sequences {
            let expected = format!("[{longest} or more, {sequences}, F]");
            let got = format!("{:?}", padded.shape());
            return Err(Error::value("Packing::pack", "padded", expected, got));
        }
        let mut packed = Array2::zeros((self.tokens(), features));
        for (mut row, (t, n)) in packed.outer_iter_mut().zip(self.rows()) {
            row.assign(&padded.slice(ndarray::s![t, n, ..]));
        }
        Ok(packed)
    }

    /// Pads a packed array `[tokens, F]` to `[T, N, F]` with zeros, T being the longest.
    ///
    /// # Errors
    /// If it has another number of rows.
    pub fn unpack(&self, packed: ArrayView2<'_, f32>) -> Result<Array3<f32>> {
        let (rows, features) = packed.dim();
        if rows != self.tokens() {
            let expected = [self.tokens(), features];
            return Err(Error::shape(
                "Packing::unpack",
                "packed",
                expected,
                packed.shape(),
            ));
        }
        let shape = (self.batch_sizes.len(), self.lengths.len(), features);
        let mut padded = Array3::zeros(shape);
        for (row, (t, n)) in packed.outer_iter().zip(self.rows()) {
            padded.slice_mut(ndarray::s![t, n, ..]).assign(&row);
        }
        Ok(padded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_pytorch_packs() {
        let packing = Packing::new(&[2, 4, 1, 2]).unwrap();
        assert_eq!(packing.batch_sizes(), [4, 3, 1, 1]);
        assert_eq!(packing.order(), [1, 0, 3, 2]);
        let rows: Vec<_> = packing.rows().collect();
        let expected = [
            (0, 1),
            (0, 0),
            (0, 3),
            (0, 2),
            (1, 1),
            (1, 0),
            (1, 3),
            (2, 1),
            (3, 1),
        ];
        assert_eq!(rows, expected);
    }

    #[test]
    fn round_trip_and_refusals() {
        let packing = Packing::new(&[1, 3]).unwrap();
        let padded = Array3::from_shape_fn((3, 2, 2), |(t, n, f)| (100 * t + 10 * n + f) as f32);
        let packed = packing.pack(padded.view()).unwrap();
        assert_eq!(packed.dim(), (4, 2));
        let mut expected = padded.clone();
        expected.slice_mut(ndarray::s![1.., 0, ..]).fill(0.0);
        assert_eq!(packing.unpack(packed.view()).unwrap(), expected);
        assert!(
            packing
                .pack(padded.slice(ndarray::s![..2, .., ..]))
                .is_err()
        );
        assert!(packing.unpack(Array2::zeros((3, 2)).view()).is_err());
        assert!(Packing::new(&[]).is_err() && Packing::new(&[1, 0]).is_err());
        assert!(Packing::new(&[usize::MAX, 2]).is_err() && Packing::new(&[1 << 40]).is_err());
    }
}
