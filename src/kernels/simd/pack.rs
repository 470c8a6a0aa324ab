//! The order in which the fast kernels read recurrent weights: once, from the first number to the
//! last, a row of lanes for each k of the product's sum.
//!
//! With U units to a block, G gates and the product's length K:
//!
//! ```text
//! packed [⌈units / U⌉, K, G, U]      packed(block, k, gate, lane) = W(gate, block U + lane, k)
//! ```
//!
//! and zeros for the units that the last block lacks. A cell with several gates has blocks of 16
//! units. With one gate, and in the backward pass, where the gates are the sum, a block is up to
//! four times as wide: as many units as make all blocks equally wide.

use std::ops::Range;

/// Neighbouring lanes of a gate: the widest vector of `f32`.
pub(crate) const LANES: usize = 16;
/// Rows of [`LANES`] that a block has at most.
pub(crate) const PANELS: usize = 4;

/// Where the weights of a product stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packing {
    /// What the product has for each gate.
    pub(crate) units: usize,
    /// G
    pub(crate) gates: usize,
    /// K
    pub(crate) depth: usize,
    /// U
    pub(crate) block: usize,
}

impl Packing {
    /// That of W_hh `[G·H, P]` as the forward pass multiplies it with h.
    pub(crate) fn forward(gates: usize, hidden: usize, output: usize) -> Self {
        Self {
            units: hidden,
            gates,
            depth: output,
            block: block(gates, hidden),
        }
    }

    /// That of W_hh `[G·H, P]` as the backward pass multiplies it with the gates' gradients.
    pub(crate) fn backward(gates: usize, hidden: usize, output: usize) -> Self {
        Self {
            units: output,
            gates: 1,
            depth: gates * hidden,
            block: block(1, output),
        }
    }

    /// How many blocks there are.
    pub(crate) fn blocks(&self) -> usize {
        self.units.div_ceil(self.block)
    }

    /// Numbers in a row of lanes.
    pub(crate) fn width(&self) -> usize {
        self.gates * self.block
    }

    /// How many numbers the packed weights have.
    pub(crate) fn len(&self) -> usize {
        self.blocks() * self.depth * self.width()
    }

    /// Where the numbers of some blocks stand.
    pub(crate) fn place(&self, blocks: Range<usize>) -> Range<usize> {
        let block = self.depth * self.width();
        blocks.start * block..blocks.end * block
    }

    /// What stands at a place: (gate, unit, k), where the unit may be one that the last block lacks.
    fn source(&self, at: usize) -> (usize, usize, usize) {
        let (row, lane) = (at / self.width(), at % self.width());
        let (block, k) = (row / self.depth, row % self.depth);
        let unit = block * self.block + lane % self.block;
        (lane / self.block, unit, k)
    }

    fn fill<R: Copy + Default>(&self, to: &mut [R], weight: impl Fn(usize, usize, usize) -> R) {
        for (at, to) in to.iter_mut().enumerate().take(self.len()) {
            let (gate, unit, k) = self.source(at);
            *to = if unit < self.units {
                weight(gate, unit, k)
            } else {
                R::default()
            };
        }
    }
}

/// U
fn block(gates: usize, units: usize) -> usize {
    if gates > 1 {
        return LANES;
    }
    let panels = units.div_ceil(LANES).max(1);
    panels.div_ceil(panels.div_ceil(PANELS)) * LANES
}

/// Packs W_hh `[G·H, P]` for the forward pass: `packed` as [`Packing::forward`] says.
pub(crate) fn pack_forward<R: Copy + Default>(packing: &Packing, weight_hh: &[R], to: &mut [R]) {
    let Packing { units, depth, .. } = *packing;
    packing.fill(to, |gate, unit, k| {
        weight_hh[(gate * units + unit) * depth + k]
    });
}

/// Packs W_hh `[G·H, P]` for the backward pass: `packed` as [`Packing::backward`] says.
pub(crate) fn pack_backward<R: Copy + Default>(packing: &Packing, weight_hh: &[R], to: &mut [R]) {
    packing.fill(to, |_, unit, k| weight_hh[k * packing.units + unit]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_equally_wide() {
        let widths = [1, 16, 17, 64, 65, 80, 128, 129, 1760].map(|units| block(1, units));
        assert_eq!(widths, [16, 16, 32, 64, 48, 48, 64, 48, 64]);
        assert_eq!(block(4, 1760), 16);
        assert_eq!(block(3, 5), 16);
    }

    #[test]
    fn every_weight_has_one_place() {
        for (gates, hidden, output) in [(4, 19, 7), (3, 16, 5), (1, 70, 70), (2, 1, 1)] {
            let len = gates * hidden * output;
            let weight: Vec<u32> = (1..=len as u32).collect();
            for (packing, pack) in [
                (
                    Packing::forward(gates, hidden, output),
                    pack_forward::<u32> as fn(&Packing, &[u32], &mut [u32]),
                ),
                (Packing::backward(gates, hidden, output), pack_backward),
            ] {
                let mut packed = vec![u32::MAX; packing.len()];
                pack(&packing, &weight, &mut packed);
                packed.sort_unstable();
                let zeros = packing.len() - len;
                assert!(packed[..zeros].iter().all(|&v| v == 0), "{packing:?}");
                assert_eq!(packed[zeros..], weight, "{packing:?}");
            }
        }
    }

    #[test]
    fn places_are_those_of_the_formula() {
        // H = 18, P = 3: the second block has two units.
        let weight: Vec<u32> = (0..4 * 18 * 3).collect();
        let packing = Packing::forward(4, 18, 3);
        let mut packed = vec![0; packing.len()];
        pack_forward(&packing, &weight, &mut packed);
        let (block, k, gate, lane) = (1, 2, 3, 1);
        let at = ((block * 3 + k) * 4 + gate) * 16 + lane;
        assert_eq!(packed[at], (gate as u32 * 18 + 17) * 3 + 2);
        let packing = Packing::backward(4, 18, 3);
        let mut packed = vec![0; packing.len()];
        pack_backward(&packing, &weight, &mut packed);
        assert_eq!(packed[40 * 16 + 2], 40 * 3 + 2);
    }
}
