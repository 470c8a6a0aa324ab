//! A buffer that several workers read and write at once, each its own cells.
//!
//! The rows of a worker's sequences lie between those of others, so that no split of the slice gives
//! each its part. Every access is checked against the length and copies numbers; no reference to
//! the cells leaves this module.

#![allow(
    unsafe_code,
    reason = "the cells of a worker are no slice of the buffer"
)]

use std::marker::PhantomData;
use std::slice;

use pulp::Simd;

use super::pack::LANES;

/// See the [module](self).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shared<'a> {
    first: *mut f32,
    len: usize,
    cells: PhantomData<&'a mut [f32]>,
}

impl<'a> Shared<'a> {
    pub(crate) fn new(cells: &'a mut [f32]) -> Self {
        Self {
            first: cells.as_mut_ptr(),
            len: cells.len(),
            cells: PhantomData,
        }
    }

    /// Panics if the cells are not inside.
    #[inline(always)]
    fn place(&self, at: usize, count: usize) -> *mut f32 {
        assert!(
            at <= self.len && count <= self.len - at,
            "{count} cells from {at} on of {}",
            self.len
        );
        // SAFETY: the offset lies inside the slice, as just checked.
        unsafe { self.first.add(at) }
    }

    /// Takes `count` numbers, at most a vector, of each of several blocks that are `pitch` cells long.
    #[inline(always)]
    pub(crate) fn load_blocks<S: Simd, const B: usize>(
        &self,
        simd: S,
        at: usize,
        pitch: usize,
        count: usize,
    ) -> [S::f32s; B] {
        let first = self.places(at, pitch, B, count);
        let mut values = [simd.splat_f32s(0.0); B];
        for (block, value) in values.iter_mut().enumerate() {
            // SAFETY: the cells of every block lie inside the slice (`places`), and nobody writes them
            // meanwhile: a thread alone does not, and workers are apart. Vectors of f32 may have any
            // bits.
            *value = unsafe {
                let place = first.add(block * pitch);
                if count == S::F32_LANES {
                    place.cast::<S::f32s>().read_unaligned()
                } else {
                    simd.partial_load_f32s(slice::from_raw_parts(place, count))
                }
            };
        }
        values
    }

    /// Puts the first `count` numbers of vectors into as many blocks.
    #[inline(always)]
    pub(crate) fn store_blocks<S: Simd, const B: usize>(
        &self,
        simd: S,
        at: usize,
        pitch: usize,
        count: usize,
        values: [S::f32s; B],
    ) {
        let first = self.places(at, pitch, B, count);
        for (block, value) in values.into_iter().enumerate() {
            // SAFETY: as for `load_blocks`; here nobody reads or writes the cells meanwhile.
            unsafe {
                let place = first.add(block * pitch);
                if count == S::F32_LANES {
                    place.cast::<S::f32s>().write_unaligned(value);
                } else {
                    simd.partial_store_f32s(slice::from_raw_parts_mut(place, count), value);
                }
            }
        }
    }

    #[inline(always)]
    fn places(&self, at: usize, pitch: usize, blocks: usize, count: usize) -> *mut f32 {
        // Neither sum can overflow: a slice of f32 has fewer than 2⁶¹ cells, and parameters 32 bits.
        assert!(
            at <= self.len && pitch <= self.len,
            "row {at} with blocks of {pitch} cells of {}",
            self.len
        );
        self.place(at, (blocks - 1) * pitch + count)
    }

    /// Takes out `count` numbers, at most a vector.
    #[inline(always)]
    pub(crate) fn load<S: Simd>(&self, simd: S, at: usize, count: usize) -> S::f32s {
        let [values] = self.load_blocks(simd, at, 0, count);
        values
    }

    /// Puts in the first `count` numbers of a vector.
    #[inline(always)]
    pub(crate) fn store<S: Simd>(&self, simd: S, at: usize, count: usize, values: S::f32s) {
        self.store_blocks(simd, at, 0, count, [values]);
    }

    /// Asks for the cache line of a cell, which is to be read soon.
    #[inline(always)]
    pub(crate) fn prefetch(&self, at: usize) {
        prefetch::<true>(self.first.wrapping_add(at));
    }

    /// Copies cells out.
    #[inline(always)]
    pub(crate) fn copy_to(&self, at: usize, to: &mut [f32]) {
        let place = self.place(at, to.len());
        // SAFETY: as for `load_blocks`.
        to.copy_from_slice(unsafe { slice::from_raw_parts(place, to.len()) });
    }

    /// One number.
    #[inline(always)]
    pub(crate) fn get(&self, at: usize) -> f32 {
        // SAFETY: as for `load_blocks`.
        unsafe { self.place(at, 1).read() }
    }

    /// Writes one number.
    #[inline(always)]
    pub(crate) fn set(&self, at: usize, value: f32) {
        // SAFETY: as for `store_blocks`.
        unsafe { self.place(at, 1).write(value) }
    }
}

/// Asks for the cache line of a number that is to be read soon.
#[inline(always)]
pub(crate) fn prefetch_soon(from: &[f32], at: usize) {
    prefetch::<true>(from.as_ptr().wrapping_add(at));
}

/// Asks for a line of numbers that are to be read in a while.
#[inline(always)]
pub(crate) fn prefetch_later(from: &[[f32; LANES]], line: usize) {
    prefetch::<false>(from.as_ptr().wrapping_add(line).cast());
}

/// To the innermost cache, or to the one behind it.
#[inline(always)]
fn prefetch<const SOON: bool>(place: *const f32) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        // SAFETY: every processor of this architecture has the instruction, which is a hint: wherever
        // it points, it neither faults nor reads.
        unsafe {
            if SOON {
                _mm_prefetch::<_MM_HINT_T0>(place.cast());
            } else {
                _mm_prefetch::<_MM_HINT_T1>(place.cast());
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

// SAFETY: the cells behind a `Shared` are borrowed for as long as it lives, so that no one but its
// users can touch them.
unsafe impl Send for Shared<'_> {}
// SAFETY: `Shared` is only ever used by several threads through a driver that holds an `Apart`: then
// no two sequences share a cell, two units of a sequence have different cells, and a cell that is
// written in a step is read by other workers in no step but a later one, to which `Team` hands over.
unsafe impl Sync for Shared<'_> {}
