//! CPU memory of a tensor, in the type that its context computes with.

use std::ops::Range;

use bytemuck::Zeroable;

use crate::context::Dtype;
use crate::error::{Error, Result};
use crate::kernel::Element;

/// Bytes of a cache line, on which tensors begin: a vector register that is loaded from the middle of
/// one touches two.
const LINE: usize = 64;

/// See the [module](self).
#[derive(Debug)]
pub(crate) enum Cells {
    F32(Vec<f32>),
    F64(Vec<f64>),
    Uint(Vec<u32>),
    /// In a buffer of a GPU.
    #[cfg(feature = "gpu")]
    Elsewhere,
}

impl Cells {
    /// Zeros, and where `len` of them begin on a cache line.
    ///
    /// # Errors
    /// [`Error::Device`] if the machine has not that much memory.
    pub(crate) fn zeros(dtype: Dtype, element: Element, len: usize) -> Result<(Self, usize)> {
        Ok(match (element, dtype) {
            (Element::Uint, _) => {
                let (cells, start) = aligned(len)?;
                (Self::Uint(cells), start)
            }
            (Element::Float | Element::Half, Dtype::F32) => {
                let (cells, start) = aligned(len)?;
                (Self::F32(cells), start)
            }
            (Element::Float | Element::Half, Dtype::F64) => {
                let (cells, start) = aligned(len)?;
                (Self::F64(cells), start)
            }
        })
    }

    pub(crate) fn write<T: Copy>(
        &mut self,
        range: Range<usize>,
        values: &[T],
        to_f32: impl Fn(T) -> f32,
        to_f64: impl Fn(T) -> f64,
    ) -> Result<()> {
        match self {
            Self::F32(cells) => {
                for (c, &v) in cells[range].iter_mut().zip(values) {
                    *c = to_f32(v);
                }
            }
            Self::F64(cells) => {
                for (c, &v) in cells[range].iter_mut().zip(values) {
                    *c = to_f64(v);
                }
            }
            other => return Err(wrong_memory("floats", other.kind())),
        }
        Ok(())
    }

    pub(crate) fn read<T>(
        &self,
        range: Range<usize>,
        from_f32: impl Fn(f32) -> T,
        from_f64: impl Fn(f64) -> T,
    ) -> Result<Vec<T>> {
        match self {
            Self::F32(cells) => Ok(cells[range].iter().map(|&v| from_f32(v)).collect()),
            Self::F64(cells) => Ok(cells[range].iter().map(|&v| from_f64(v)).collect()),
            other => Err(wrong_memory("floats", other.kind())),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::F32(_) | Self::F64(_) => "floats",
            Self::Uint(_) => "integers",
            #[cfg(feature = "gpu")]
            Self::Elsewhere => "a buffer of a GPU",
        }
    }

    /// Integers.
    pub(crate) fn uints(&self) -> Result<&[u32]> {
        match self {
            Self::Uint(cells) => Ok(cells),
            other => Err(wrong_memory("integers", other.kind())),
        }
    }

    /// Integers to change.
    pub(crate) fn uints_mut(&mut self) -> Result<&mut [u32]> {
        match self {
            Self::Uint(cells) => Ok(cells),
            other => Err(wrong_memory("integers", other.kind())),
        }
    }
}

/// A vector of at least `len` zeros, and the first of them that begins a cache line. Its memory stays
/// where it is, since nothing makes it grow.
fn aligned<T: Zeroable>(len: usize) -> Result<(Vec<T>, usize)> {
    let most = LINE / size_of::<T>();
    let cells: Vec<T> = zeroed(len.saturating_add(most))?;
    let start = cells.as_ptr().align_offset(LINE);
    // An offset that cannot be had is told as a huge number.
    Ok((cells, if start <= most { start } else { 0 }))
}

/// A vector of zeros, or an error where an ordinary one would end the process. The system gives memory that is
/// zero already, page by page as it is used.
pub(crate) fn zeroed<T: Zeroable>(len: usize) -> Result<Vec<T>> {
    let values = bytemuck::allocation::try_zeroed_slice_box(len);
    values.map(<[T]>::into_vec).map_err(|()| Error::Device {
        op: format!("allocating {len} numbers"),
        reason: "there is no memory for them".to_owned(),
    })
}

/// Memory of another kind than a tensor is used as.
pub(crate) fn wrong_memory(wanted: &str, got: &str) -> Error {
    Error::value("Tensor", "memory", wanted, got)
}
