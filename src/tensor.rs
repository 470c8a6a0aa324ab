//! A tensor: a shape over a slice of a GPU buffer or of CPU memory.
//!
//! Clones and slices share the memory. Writing goes through the device's queue and is ordered with its submissions;
//! reading waits for them. What is written to a GPU is copied to it by the next submission, of whomever, or when 16
//! MiB wait.
//! Any thread may read and write at any time: it waits for calls that use the memory, and they for it.

#[cfg(feature = "gpu")]
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;

#[cfg(feature = "gpu")]
use half::f16;
use ndarray::{ArrayD, ArrayView, Dimension, IxDyn};

use crate::context::{Context, Device};
use crate::error::{Error, Result};
use crate::host::Cells;
#[cfg(feature = "gpu")]
use crate::host::wrong_memory;
use crate::kernel::Element;
use crate::memory::{Held, Memory, Uses};
use crate::real::Real;

/// What a failed copy to the host is reported under.
#[cfg(feature = "gpu")]
const READ: &str = "Tensor::read";

/// Numbers in the memory of a [`Context`]. See the [module](self).
#[derive(Clone, Debug)]
pub struct Tensor {
    context: Context,
    shape: Vec<usize>,
    element: Element,
    offset: usize,
    memory: Arc<Memory>,
    storage: Storage,
    /// Which integers may be written, if they are token ids.
    ids: Option<Ids>,
}

/// Which token ids a buffer may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ids {
    /// They are below this.
    pub(crate) vocabulary: usize,
    /// But this one is allowed too.
    pub(crate) except: Option<u32>,
}

impl Ids {
    /// Refuses ids that a kernel has no row for.
    pub(crate) fn check(&self, op: &'static str, ids: &[u32]) -> Result<()> {
        let outside = |&id: &u32| id as usize >= self.vocabulary && Some(id) != self.except;
        match ids.iter().position(outside) {
            None => Ok(()),
            Some(position) => Err(Error::Token {
                op,
                position,
                id: ids[position],
                vocabulary: self.vocabulary,
            }),
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Storage {
    /// In its [`Memory`] itself.
    Host,
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
        let (cells, storage, offset) = match context.device() {
            Device::Cpu(dtype) => {
                let (cells, start) = Cells::zeros(*dtype, element, len)?;
                (cells, Storage::Host, start)
            }
            #[cfg(feature = "gpu")]
            Device::Gpu(gpu) => {
                let buffer = gpu.buffer(element.bytes(len))?;
                (Cells::Elsewhere, Storage::Gpu(buffer), 0)
            }
        };
        Ok(Self {
            context: context.clone(),
            shape: shape.to_vec(),
            element,
            offset,
            memory: Memory::new(cells),
            storage,
            ids: None,
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
    /// A buffer of another device is refused. One of another wgpu *instance* is told apart by unmapping it in vain,
    /// which its own device's handler of uncaptured errors hears of; where that is wgpu's default one, which panics,
    /// the panic is caught here, after its message. Not told apart are buffers of another instance that can be mapped
    /// (`MAPPABLE_PRIMARY_BUFFERS`), and in a browser, where errors come later, no buffers at all.
    ///
    /// A buffer that the host maps or destroys later is an error of the calls that use it
    /// ([`Error::Device`]), and for commands recorded into the host's encoder one of the host's submission.
    ///
    /// # Errors
    /// If the context is not that GPU, the buffer is too small, mapped, destroyed or of another device, or the offset
    /// is not a multiple of the device's `min_storage_buffer_offset_alignment`.
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
        let elements = length(shape)?.min(usize::MAX / 4);
        let need = offset.saturating_add(element.bytes(elements) as u64);
        if buffer.size() < need {
            let expected = format!("at least {need} bytes");
            return Err(Error::value(OP, "buffer", expected, buffer.size()));
        }
        gpu.check_buffer(OP, &buffer)?;
        Ok(Self {
            context: context.clone(),
            shape: shape.to_vec(),
            element,
            // A whole number of words, and in each as many elements.
            offset: offset as usize / 4 * (8 / element.bytes(2)),
            memory: Memory::new(Cells::Elsewhere),
            storage: Storage::Gpu(buffer),
            ids: None,
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
        if self.shape.contains(&0) {
            return 0;
        }
        self.shape.iter().product()
    }

    /// True if it holds no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[cfg(feature = "gpu")]
    pub(crate) fn storage(&self) -> &Storage {
        &self.storage
    }

    pub(crate) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    pub(crate) fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len()
    }

    /// The GPU buffer and the byte where the tensor starts in it, for use in the host's own
    /// commands; `None` on the CPU.
    #[cfg(feature = "gpu")]
    pub fn buffer(&self) -> Option<(&wgpu::Buffer, u64)> {
        match &self.storage {
            Storage::Host => None,
            Storage::Gpu(buffer) => Some((buffer, self.start())),
        }
    }

    /// The byte where it starts in its GPU buffer.
    #[cfg(feature = "gpu")]
    fn start(&self) -> u64 {
        self.element.bytes(self.offset) as u64
    }

    /// True if both are parts of the same buffer, overlapping or not.
    pub fn shares_memory(&self, other: &Self) -> bool {
        match (&self.storage, &other.storage) {
            // A host may have made several tensors over one buffer.
            #[cfg(feature = "gpu")]
            (Storage::Gpu(a), Storage::Gpu(b)) => a == b,
            _ => Arc::ptr_eq(&self.memory, &other.memory),
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
    /// If the range does not lie in the first dimension, or cuts a word of two 16-bit floats.
    pub fn rows(&self, rows: Range<usize>) -> Result<Self> {
        let Some((&have, of_row)) = self.shape.split_first() else {
            let expected = "of a tensor with a first dimension";
            return Err(Error::value(
                "Tensor::rows",
                "rows",
                expected,
                "a single number's",
            ));
        };
        if rows.start > rows.end || rows.end > have {
            let expected = format!("within 0..{have}");
            return Err(Error::value(
                "Tensor::rows",
                "rows",
                expected,
                format!("{rows:?}"),
            ));
        }
        // Without rows the rest may be of any size, and is nothing.
        let row = if have == 0 { 0 } else { length(of_row)? };
        let cuts = |at: usize| at != have && !(at * row).is_multiple_of(2);
        if self.element == Element::Half && (cuts(rows.start) || cuts(rows.end)) {
            let expected = "such that whole words of two 16-bit floats are in it";
            let got = format!("{rows:?}, of {row} elements each");
            return Err(Error::value("Tensor::rows", "rows", expected, got));
        }
        let mut part = self.clone();
        part.shape[0] = rows.len();
        part.offset += rows.start * row;
        Ok(part)
    }

    /// So many elements from the first on, of as many as there are at most. If a word is cut, what
    /// stands in the rest of it is lost when these are written.
    pub(crate) fn first(&self, len: usize) -> Self {
        Self {
            shape: vec![len.min(self.len())],
            ..self.clone()
        }
    }

    /// The same memory, which takes such token ids alone.
    pub(crate) fn of_ids(self, ids: Ids) -> Self {
        Self {
            ids: Some(ids),
            ..self
        }
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

    /// Replaces the contents. On the CPU oracle the values are widened. A tensor of 16-bit floats takes
    /// each value's nearest.
    ///
    /// # Errors
    /// If the number of values differs, or the tensor does not hold floats; [`Error::Device`] if the device was lost,
    /// or the buffer was destroyed or mapped by the host. wgpu gives a device up, as lost, that has no memory left for
    /// a write.
    pub fn write(&self, values: &[f32]) -> Result<()> {
        self.check_floats("Tensor::write", values.len())?;
        self.check_writable()?;
        self.put(&mut *self.memory.write()?, values)
    }

    /// Replaces the contents in memory that is taken already.
    fn put(&self, cells: &mut Cells, values: &[f32]) -> Result<()> {
        let half = self.element == Element::Half;
        match &self.storage {
            Storage::Host if half => {
                let wide = |v: f32| v.to_half();
                cells.write(self.range(), values, wide, |v| f64::from(wide(v)))
            }
            Storage::Host => cells.write(self.range(), values, |v| v, f64::from),
            #[cfg(feature = "gpu")]
            Storage::Gpu(buffer) if half => {
                self.upload(buffer, bytemuck::cast_slice(&to_words(values)))
            }
            #[cfg(feature = "gpu")]
            Storage::Gpu(buffer) => self.upload(buffer, bytemuck::cast_slice(values)),
        }
    }

    /// [`Self::write`] as a part of a call that has taken the memory.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub(crate) fn write_held(&self, held: &Held<'_>, values: &[f32]) -> Result<()> {
        self.check_floats("Tensor::write", values.len())?;
        self.check_writable()?;
        self.put(&mut *held.write(&self.memory)?, values)
    }

    /// Replaces the contents. On everything but the oracle the values are rounded to `f32`.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_f64(&self, values: &[f64]) -> Result<()> {
        self.check_floats("Tensor::write_f64", values.len())?;
        let (half, range) = (self.element == Element::Half, self.range());
        match &self.storage {
            Storage::Host if half => {
                let mut cells = self.memory.write()?;
                cells.write(range, values, |v| v.to_half() as f32, Real::to_half)
            }
            Storage::Host => {
                let mut cells = self.memory.write()?;
                cells.write(range, values, |v| v as f32, |v| v)
            }
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
    /// If the number of values differs, or the tensor holds floats; [`Error::Token`] if it is the memory of a
    /// [`Program`](crate::Program)'s token ids and one of them is outside the vocabulary.
    pub fn write_uint(&self, values: &[u32]) -> Result<()> {
        self.check("Tensor::write_uint", values.len(), Element::Uint)?;
        if let Some(ids) = self.ids {
            ids.check("Tensor::write_uint", values)?;
        }
        self.check_writable()?;
        self.put_uint(&mut *self.memory.write()?, values)
    }

    fn put_uint(&self, cells: &mut Cells, values: &[u32]) -> Result<()> {
        match &self.storage {
            Storage::Host => {
                cells.uints_mut()?[self.range()].copy_from_slice(values);
                Ok(())
            }
            #[cfg(feature = "gpu")]
            Storage::Gpu(buffer) => self.upload(buffer, bytemuck::cast_slice(values)),
        }
    }

    /// [`Self::write_uint`] as a part of a call that has taken the memory.
    ///
    /// # Errors
    /// As [`Self::write_uint`].
    pub(crate) fn write_uint_held(&self, held: &Held<'_>, values: &[u32]) -> Result<()> {
        self.check("Tensor::write_uint", values.len(), Element::Uint)?;
        if let Some(ids) = self.ids {
            ids.check("Tensor::write_uint", values)?;
        }
        self.check_writable()?;
        self.put_uint(&mut *held.write(&self.memory)?, values)
    }

    /// The contents, waiting for the device. On the CPU oracle they are rounded to `f32`.
    ///
    /// # Errors
    /// If the tensor does not hold floats, or [`Error::Device`] if the device was lost.
    pub fn read(&self) -> Result<Vec<f32>> {
        self.check_floats("Tensor::read", self.len())?;
        match &self.storage {
            Storage::Host => self.memory.read()?.read(self.range(), |v| v, |v| v as f32),
            #[cfg(feature = "gpu")]
            Storage::Gpu(_) => Ok(floats(self.element, self.len(), self.download_now()?)),
        }
    }

    /// The contents in double precision; exact on every device.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_f64(&self) -> Result<Vec<f64>> {
        match &self.storage {
            Storage::Host => {
                self.check_floats("Tensor::read_f64", self.len())?;
                self.memory.read()?.read(self.range(), f64::from, |v| v)
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
            Storage::Host => Ok(self.memory.read()?.uints()?[self.range()].to_vec()),
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
            Storage::Host => Some(self.read()),
            Storage::Gpu(_) => None,
        };
        let later = self.download();
        let kind = self.check_floats("Tensor::read_async", self.len());
        let (element, len) = (self.element, self.len());
        async move {
            kind?;
            match (now, later?) {
                (Some(values), _) => values,
                (None, Some(copy)) => Ok(floats(element, len, copy.await?)),
                (None, None) => Err(not_on_a_gpu()),
            }
        }
    }

    /// Submits a copy of the contents, before or after whatever others send for the buffer.
    #[cfg(feature = "gpu")]
    fn download(&self) -> Result<Option<impl Future<Output = Result<Vec<u32>>> + use<>>> {
        let _taken = self.memory.read()?;
        self.copy_out()
    }

    /// [`Self::download`] where the memory is taken already.
    #[cfg(feature = "gpu")]
    fn copy_out(&self) -> Result<Option<impl Future<Output = Result<Vec<u32>>> + use<>>> {
        let (Device::Gpu(gpu), Storage::Gpu(buffer)) = (self.context.device(), &self.storage)
        else {
            return Ok(None);
        };
        if !buffer.usage().contains(wgpu::BufferUsages::COPY_SRC) {
            let usage = format!("{:?}", buffer.usage());
            return Err(Error::value(READ, "buffer", "usable as COPY_SRC", usage));
        }
        let bytes = self.element.bytes(self.len()) as u64;
        Ok(Some(gpu.download(READ, buffer, self.start(), bytes)?))
    }

    #[cfg(feature = "gpu")]
    fn download_now(&self) -> Result<Vec<u32>> {
        Context::can_block("reading a GPU tensor", "Tensor::read_async")?;
        let copy = self.download()?.ok_or_else(not_on_a_gpu)?;
        if let Device::Gpu(gpu) = self.context.device() {
            gpu.wait(READ)?;
        }
        pollster::block_on(copy)
    }

    #[cfg(feature = "gpu")]
    fn upload(&self, buffer: &wgpu::Buffer, bytes: &[u8]) -> Result<()> {
        match self.context.device() {
            Device::Cpu(_) => Err(not_on_a_gpu()),
            Device::Gpu(gpu) => gpu.write("Tensor::write", buffer, self.start(), bytes),
        }
    }

    /// Refuses a buffer that the host made without the usage.
    fn check_writable(&self) -> Result<()> {
        #[cfg(feature = "gpu")]
        if let Storage::Gpu(buffer) = &self.storage
            && !buffer.usage().contains(wgpu::BufferUsages::COPY_DST)
        {
            const OP: &str = "Tensor::write";
            let usage = format!("{:?}", buffer.usage());
            return Err(Error::value(OP, "buffer", "usable as COPY_DST", usage));
        }
        Ok(())
    }

    fn check_floats(&self, op: &'static str, len: usize) -> Result<()> {
        match self.element {
            Element::Half => self.check(op, len, Element::Half),
            _ => self.check(op, len, Element::Float),
        }
    }

    fn check(&self, op: &'static str, len: usize, element: Element) -> Result<()> {
        if self.element != element {
            return Err(self.kind(op, element));
        }
        if len != self.len() {
            return Err(Error::shape(op, "number of values", self.len(), len));
        }
        Ok(())
    }

    fn kind(&self, op: &'static str, wanted: Element) -> Error {
        let of = |element: Element| format!("of elements that are {element:?}");
        Error::value(op, "tensor", of(wanted), of(self.element))
    }
}

/// Writes tensors as one call: others see all of them written, or none. If one cannot be written, none is.
///
/// # Errors
/// As [`Tensor::write`].
pub(crate) fn write_together(all: &[(&Tensor, &[f32])]) -> Result<()> {
    for (tensor, values) in all {
        tensor.check_floats("Tensor::write", values.len())?;
        tensor.check_writable()?;
    }
    let uses = Uses::new(all.iter().map(|(tensor, _)| (&tensor.memory, true)));
    let held = uses.take()?;
    let mut each = all.iter();
    each.try_for_each(|(tensor, values)| tensor.write_held(&held, values))
}

/// Zeroes tensors of floats as one call.
///
/// # Errors
/// As [`Tensor::write`].
pub(crate) fn zero_together(all: &[&Tensor]) -> Result<()> {
    let zeros = vec![0.0; all.iter().map(|t| t.len()).max().unwrap_or(0)];
    let each: Vec<_> = all.iter().map(|&t| (t, &zeros[..t.len()])).collect();
    write_together(&each)
}

/// Reads tensors of floats as one call, waiting for the device: no other call comes between them.
///
/// # Errors
/// As [`Tensor::read`].
pub(crate) fn read_together(all: &[&Tensor]) -> Result<Vec<Vec<f32>>> {
    for tensor in all {
        tensor.check_floats("Tensor::read", tensor.len())?;
    }
    let uses = Uses::new(all.iter().map(|tensor| (&tensor.memory, false)));
    let held = uses.take()?;
    #[cfg(feature = "gpu")]
    if let Some(context) = all.iter().map(|t| &t.context).find(|c| c.is_gpu()) {
        Context::can_block("reading a GPU tensor", "Tensor::read_async")?;
        let copies: Vec<_> = all.iter().map(|t| t.copy_out()).collect::<Result<_>>()?;
        drop(held);
        if let Device::Gpu(gpu) = context.device() {
            gpu.wait(READ)?;
        }
        let copies = all.iter().zip(copies);
        return copies
            .map(|(tensor, copy)| {
                let words = pollster::block_on(copy.ok_or_else(not_on_a_gpu)?)?;
                Ok(floats(tensor.element, tensor.len(), words))
            })
            .collect();
    }
    let read = |tensor: &&Tensor| {
        let cells = held.read(&tensor.memory)?;
        cells.read(tensor.range(), |v| v, |v| v as f32)
    };
    all.iter().map(read).collect()
}

#[cfg(feature = "gpu")]
fn not_on_a_gpu() -> Error {
    wrong_memory("a buffer of a GPU", "memory of the CPU")
}

/// Values as 16-bit floats, two to a word.
#[cfg(feature = "gpu")]
fn to_words(values: &[f32]) -> Vec<u32> {
    let bits = |v: &f32| u32::from(f16::from_f32(*v).to_bits());
    let word = |pair: &[f32]| bits(&pair[0]) | pair.get(1).map_or(0, bits) << 16;
    values.chunks(2).map(word).collect()
}

/// The floats in words that were read from a GPU.
#[cfg(feature = "gpu")]
fn floats(element: Element, len: usize, words: Vec<u32>) -> Vec<f32> {
    if element != Element::Half {
        return bytemuck::cast_vec(words);
    }
    let both = |word: u32| [word as u16, (word >> 16) as u16];
    let halves = words.into_iter().flat_map(both).take(len);
    halves.map(|bits| f16::from_bits(bits).to_f32()).collect()
}

/// The number of elements of a shape.
fn length(shape: &[usize]) -> Result<usize> {
    if shape.contains(&0) {
        return Ok(0);
    }
    let product = shape.iter().try_fold(1usize, |n, &v| n.checked_mul(v));
    product.ok_or_else(|| {
        let expected = format!("with at most {} elements in all", usize::MAX);
        Error::value("Tensor", "shape", expected, format!("{shape:?}"))
    })
}
