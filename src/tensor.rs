//! A tensor: a shape over a slice of a GPU buffer or of CPU memory.
//!
//! Clones and slices share the memory. Writing goes through the device's queue and is ordered
//! with its submissions; reading waits for them.

#[cfg(feature = "gpu")]
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;

use ndarray::{ArrayD, ArrayView, Dimension, IxDyn};

use crate::context::{Context, Device};
use crate::error::{Error, Result};
#[cfg(feature = "gpu")]
use crate::host::wrong_memory;
use crate::host::{Host, locked};
use crate::kernel::Element;

/// Numbers in the memory of a [`Context`]. See the [module](self).
#[derive(Clone, Debug)]
pub struct Tensor {
    context: Context,
    shape: Vec<usize>,
    element: Element,
    offset: usize,
    storage: Storage,
}

#[derive(Clone, Debug)]
pub(crate) enum Storage {
    Host(Arc<Host>),
    #[cfg(feature = "gpu")]
    Gpu(wgpu::Buffer),
}

impl Tensor {
    /// A tensor of zeros.
    ///
    /// # Errors
    /// [`Error::Limit`] if the device's buffers cannot be that large, [`Error::Device`] if it has
    /// no memory left.
    pub fn zeros(context: &Context, shape: &[usize], element: Element) -> Result<Self> {
        let len = length(shape)?;
        let (storage, offset) = match context.device() {
            Device::Cpu(dtype) => {
                let (host, start) = Host::zeros(*dtype, element, len)?;
                (Storage::Host(Arc::new(host)), start)
            }
            #[cfg(feature = "gpu")]
            Device::Gpu(gpu) => (Storage::Gpu(gpu.buffer(len)?), 0),
        };
        Ok(Self {
            context: context.clone(),
            shape: shape.to_vec(),
            element,
            offset,
            storage,
        })
    }

    /// A tensor with the contents of an array, in row-major order.
    ///
    /// # Errors
    /// As [`Self::zeros`].
    pub fn from_array<D: Dimension>(
        context: &Context,
        array: ArrayView<'_, f32, D>,
    ) -> Result<Self> {
        let tensor = Self::zeros(context, array.shape(), Element::Float)?;
        match array.as_slice() {
            Some(values) => tensor.write(values)?,
            None => tensor.write(&array.iter().copied().collect::<Vec<_>>())?,
        }
        Ok(tensor)
    }

    /// A tensor over part of a buffer that the host made with the usage `STORAGE`, starting
    /// `offset` bytes in. Reading it back needs `COPY_SRC`, writing `COPY_DST`.
    ///
    /// # Errors
    /// If the context is not that GPU, the buffer is too small, or the offset is not a multiple of
    /// the device's `min_storage_buffer_offset_alignment`.
    #[cfg(feature = "gpu")]
    pub fn from_buffer(
        context: &Context,
        buffer: wgpu::Buffer,
        offset: u64,
        shape: &[usize],
        element: Element,
    ) -> Result<Self> {
        const OP: &str = "Tensor::from_buffer";
        let Device::Gpu(gpu) = context.device() else {
            return Err(Error::value(OP, "context", "a GPU", context.name()));
        };
        let align = u64::from(gpu.limits().min_storage_buffer_offset_alignment);
        if !offset.is_multiple_of(align) {
            let expected = format!("a multiple of {align} bytes");
            return Err(Error::value(OP, "offset", expected, offset));
        }
        if !buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
            let usage = format!("{:?}", buffer.usage());
            return Err(Error::value(OP, "buffer", "usable as STORAGE", usage));
        }
        let need = offset.saturating_add((length(shape)? as u64).saturating_mul(4));
        if buffer.size() < need {
            let expected = format!("at least {need} bytes");
            return Err(Error::value(OP, "buffer", expected, buffer.size()));
        }
        Ok(Self {
            context: context.clone(),
            shape: shape.to_vec(),
            element,
            offset: offset as usize / Element::SIZE,
            storage: Storage::Gpu(buffer),
        })
    }

    /// Where it lives.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Its shape, row-major.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// What it holds.
    pub fn element(&self) -> Element {
        self.element
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True if it holds no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn storage(&self) -> &Storage {
        &self.storage
    }

    pub(crate) fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len()
    }

    /// The GPU buffer and the byte where the tensor starts in it, for use in the host's own
    /// commands; `None` on the CPU.
    #[cfg(feature = "gpu")]
    pub fn buffer(&self) -> Option<(&wgpu::Buffer, u64)> {
        match &self.storage {
            Storage::Host(_) => None,
            Storage::Gpu(buffer) => Some((buffer, (self.offset * Element::SIZE) as u64)),
        }
    }

    /// True if both are parts of the same buffer, overlapping or not.
    pub fn shares_memory(&self, other: &Self) -> bool {
        match (&self.storage, &other.storage) {
            (Storage::Host(a), Storage::Host(b)) => Arc::ptr_eq(a, b),
            #[cfg(feature = "gpu")]
            (Storage::Gpu(a), Storage::Gpu(b)) => a == b,
            #[cfg(feature = "gpu")]
            _ => false,
        }
    }

    /// True if they have an element in common.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        let (a, b) = (self.range(), other.range());
        self.shares_memory(other) && a.start < b.end && b.start < a.end
    }

    /// Some of the rows of the first dimension, sharing the memory.
    ///
    /// # Errors
    /// If the range does not lie in the first dimension.
    pub fn rows(&self, rows: Range<usize>) -> Result<Self> {
        let have = self.shape.first().copied().unwrap_or(0);
        if rows.start > rows.end || rows.end > have {
            let expected = format!("within 0..{have}");
            return Err(Error::value(
                "Tensor::rows",
                "rows",
                expected,
                format!("{rows:?}"),
            ));
        }
        let mut part = self.clone();
        part.shape[0] = rows.len();
        part.offset += rows.start * self.shape[1..].iter().product::<usize>();
        Ok(part)
    }

    /// The same elements in another shape.
    ///
    /// # Errors
    /// If the shape has another number of elements.
    pub fn reshaped(&self, shape: &[usize]) -> Result<Self> {
        if length(shape)? != self.len() {
            return Err(Error::shape(
                "Tensor::reshaped",
                "shape",
                &self.shape,
                shape,
            ));
        }
        Ok(Self {
            shape: shape.to_vec(),
            ..self.clone()
        })
    }

    /// Replaces the contents. On the CPU oracle the values are widened.
    ///
    /// # Errors
    /// If the number of values differs, or the tensor does not hold floats.
    pub fn write(&self, values: &[f32]) -> Result<()> {
        self.check("Tensor::write", values.len(), Element::Float)?;
        match &self.storage {
            Storage::Host(host) => host.write(self.range(), values, |v| v, f64::from),
            #[cfg(feature = "gpu")]
            Storage::Gpu(buffer) => self.upload(buffer, bytemuck::cast_slice(values)),
        }
    }

    /// Replaces the contents. On everything but the oracle the values are rounded to `f32`.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_f64(&self, values: &[f64]) -> Result<()> {
        self.check("Tensor::write_f64", values.len(), Element::Float)?;
        match &self.storage {
            Storage::Host(host) => host.write(self.range(), values, |v| v as f32, |v| v),
            #[cfg(feature = "gpu")]
            Storage::Gpu(_) => {
                let narrow: Vec<f32> = values.iter().map(|&v| v as f32).collect();
                self.write(&narrow)
            }
        }
    }

    /// Replaces the contents of a tensor of integers.
    ///
    /// # Errors
    /// If the number of values differs, or the tensor holds floats.
    pub fn write_uint(&self, values: &[u32]) -> Result<()> {
        self.check("Tensor::write_uint", values.len(), Element::Uint)?;
        match &self.storage {
            Storage::Host(host) => match &**host {
                Host::Uint(cells) => {
                    locked(cells.write())?[self.range()].copy_from_slice(values);
                    Ok(())
                }
                Host::F32(_) | Host::F64(_) => Err(self.kind("Tensor::write_uint")),
            },
            #[cfg(feature = "gpu")]
            Storage::Gpu(buffer) => self.upload(buffer, bytemuck::cast_slice(values)),
        }
    }

    /// The contents, waiting for the device. On the CPU oracle they are rounded to `f32`.
    ///
    /// # Errors
    /// If the tensor does not hold floats, or [`Error::Device`] if the device was lost.
    pub fn read(&self) -> Result<Vec<f32>> {
        self.check("Tensor::read", self.len(), Element::Float)?;
        match &self.storage {
            Storage::Host(host) => host.read(self.range(), |v| v, |v| v as f32),
            #[cfg(feature = "gpu")]
            Storage::Gpu(_) => Ok(bytemuck::cast_vec(self.download_now()?)),
        }
    }

    /// The contents in double precision; exact on every device.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_f64(&self) -> Result<Vec<f64>> {
        match &self.storage {
            Storage::Host(host) => {
                self.check("Tensor::read_f64", self.len(), Element::Float)?;
                host.read(self.range(), f64::from, |v| v)
            }
            #[cfg(feature = "gpu")]
            Storage::Gpu(_) => Ok(self.read()?.into_iter().map(f64::from).collect()),
        }
    }

    /// The contents of a tensor of integers, waiting for the device.
    ///
    /// # Errors
    /// If the tensor holds floats, or [`Error::Device`] if the device was lost.
    pub fn read_uint(&self) -> Result<Vec<u32>> {
        self.check("Tensor::read_uint", self.len(), Element::Uint)?;
        match &self.storage {
            Storage::Host(host) => match &**host {
                Host::Uint(cells) => Ok(locked(cells.read())?[self.range()].to_vec()),
                Host::F32(_) | Host::F64(_) => Err(self.kind("Tensor::read_uint")),
            },
            #[cfg(feature = "gpu")]
            Storage::Gpu(_) => self.download_now(),
        }
    }

    /// The contents as an array of the tensor's shape, waiting for the device.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn to_array(&self) -> Result<ArrayD<f32>> {
        ArrayD::from_shape_vec(IxDyn(&self.shape), self.read()?)
            .map_err(|e| Error::shape("Tensor::to_array", "shape", &self.shape, e.to_string()))
    }

    /// The contents without blocking. The copy is submitted by this call; the future resolves
    /// once the host has polled the device past it (a browser does so by itself).
    ///
    /// # Errors
    /// As [`Self::read`].
    #[cfg(feature = "gpu")]
    pub fn read_async(&self) -> impl Future<Output = Result<Vec<f32>>> + use<> {
        let now = match &self.storage {
            Storage::Host(host) => Some(host.read(self.range(), |v| v, |v| v as f32)),
            Storage::Gpu(_) => None,
        };
        let later = self.download();
        let kind = self.check("Tensor::read_async", self.len(), Element::Float);
        async move {
            kind?;
            match (now, later?) {
                (Some(values), _) => values,
                (None, Some(copy)) => Ok(bytemuck::cast_vec(copy.await?)),
                (None, None) => Err(wrong_memory()),
            }
        }
    }

    #[cfg(feature = "gpu")]
    fn download(&self) -> Result<Option<impl Future<Output = Result<Vec<u32>>> + use<>>> {
        let (Device::Gpu(gpu), Storage::Gpu(buffer)) = (self.context.device(), &self.storage)
        else {
            return Ok(None);
        };
        if !buffer.usage().contains(wgpu::BufferUsages::COPY_SRC) {
            let usage = format!("{:?}", buffer.usage());
            return Err(Error::value(
                "Tensor::read",
                "buffer",
                "usable as COPY_SRC",
                usage,
            ));
        }
        Ok(Some(gpu.download(buffer, self.offset, self.len())))
    }

    #[cfg(feature = "gpu")]
    fn download_now(&self) -> Result<Vec<u32>> {
        Context::can_block("reading a GPU tensor", "Tensor::read_async")?;
        let copy = self.download()?.ok_or_else(wrong_memory)?;
        self.context.wait()?;
        pollster::block_on(copy)
    }

    #[cfg(feature = "gpu")]
    fn upload(&self, buffer: &wgpu::Buffer, bytes: &[u8]) -> Result<()> {
        const OP: &str = "Tensor::write";
        if !buffer.usage().contains(wgpu::BufferUsages::COPY_DST) {
            let usage = format!("{:?}", buffer.usage());
            return Err(Error::value(OP, "buffer", "usable as COPY_DST", usage));
        }
        if let Some((_, queue)) = self.context.wgpu() {
            queue.write_buffer(buffer, (self.offset * Element::SIZE) as u64, bytes);
        }
        Ok(())
    }

    fn check(&self, op: &'static str, len: usize, element: Element) -> Result<()> {
        if self.element != element {
            return Err(self.kind(op));
        }
        if len != self.len() {
            return Err(Error::shape(op, "number of values", self.len(), len));
        }
        Ok(())
    }

    fn kind(&self, op: &'static str) -> Error {
        Error::value(
            op,
            "tensor",
            "of the other kind of element",
            format!("{:?}", self.element),
        )
    }
}

/// The number of elements of a shape.
fn length(shape: &[usize]) -> Result<usize> {
    let product = shape.iter().try_fold(1usize, |n, &v| n.checked_mul(v));
    product.ok_or_else(|| Error::Limit {
        what: format!("elements of a tensor {shape:?}"),
        needed: u64::MAX,
        available: usize::MAX as u64,
    })
}
