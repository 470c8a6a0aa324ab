//! Random numbers from a counter: Philox-4×32 with ten rounds.
//!
//! J. Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*, SC 2011. The value at
//! (key, counter) needs no state, so a dropout mask can be made again in the backward pass and
//! the GPU and the CPU draw the same bits (`shaders/shared/philox.wgsl` is the same function).

use crate::error::Result;
use crate::host::zeroed;

const ROUNDS: usize = 10;
const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Four random words for one counter under one key.
pub fn philox(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    let mut k = key;
    let mut c = counter;
    for _ in 0..ROUNDS {
        let p0 = u64::from(MULTIPLIER[0]) * u64::from(c[0]);
        let p1 = u64::from(MULTIPLIER[1]) * u64::from(c[2]);
        c = [
            (p1 >> 32) as u32 ^ c[1] ^ k[0],
            p1 as u32,
            (p0 >> 32) as u32 ^ c[3] ^ k[1],
            p0 as u32,
        ];
        k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
    }
    c
}

/// A word as a number in [0, 1): its upper 24 bits, which `f32` holds exactly.
pub fn unit(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// A stream of numbers drawn one after another from [`philox`].
#[derive(Debug, Clone)]
pub struct Rng {
    key: [u32; 2],
    counter: u64,
    block: [u32; 4],
    used: usize,
}

impl Rng {
    /// The stream that belongs to a seed.
    pub fn new(seed: u64) -> Self {
        Self {
            key: [seed as u32, (seed >> 32) as u32],
            counter: 0,
            block: [0; 4],
            used: 4,
        }
    }

    /// The next 32 random bits.
    pub fn word(&mut self) -> u32 {
        if self.used == 4 {
            let c = self.counter;
            self.block = philox(self.key, [c as u32, (c >> 32) as u32, 0, 0]);
            self.counter += 1;
            self.used = 0;
        }
        self.used += 1;
        self.block[self.used - 1]
    }

    /// The next number in [0, 1).
    pub fn unit(&mut self) -> f32 {
        unit(self.word())
    }

    /// The next number in [low, high).
    pub fn uniform(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit()
    }

    /// The next whole number below `bound`, which must not be 0 (0 gives 0).
    pub fn below(&mut self, bound: u32) -> u32 {
        ((u64::from(self.word()) * u64::from(bound)) >> 32) as u32
    }

    /// `n` numbers in [low, high).
    pub fn uniforms(&mut self, n: usize, low: f32, high: f32) -> Vec<f32> {
        (0..n).map(|_| self.uniform(low, high)).collect()
    }

    /// [`Self::uniforms`] for a size that a user chose.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the machine has not that much memory.
    pub fn try_uniforms(&mut self, n: usize, low: f32, high: f32) -> Result<Vec<f32>> {
        let mut values = zeroed(n)?;
        values.fill_with(|| self.uniform(low, high));
        Ok(values)
    }

    /// The next number of a standard normal distribution (Box and Muller).
    pub fn normal(&mut self) -> f32 {
        let radius = (-2.0 * (1.0 - f64::from(self.unit())).ln()).sqrt();
        let angle = std::f64::consts::TAU * f64::from(self.unit());
        (radius * angle.cos()) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers published with Random123 (`kat_vectors`, philox4x32 10).
    #[test]
    fn known_answers() {
        assert_eq!(
            philox([0, 0], [0; 4]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox([!0, !0], [!0; 4]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox(
                [0xa409_3822, 0x299f_31d0],
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn unit_stays_below_one() {
        assert_eq!(unit(0), 0.0);
        assert!(unit(u32::MAX) < 1.0);
    }

    #[test]
    fn moments() {
        let mut rng = Rng::new(7);
        let n = 20_000;
        let (mut mean, mut square) = (0.0, 0.0);
        for _ in 0..n {
            let v = f64::from(rng.normal());
            mean += v / f64::from(n);
            square += v * v / f64::from(n);
        }
        // Standard errors are 0.007 and 0.01.
        assert!(mean.abs() < 0.03, "{mean}");
        assert!((square - 1.0).abs() < 0.05, "{square}");
    }
}
