//! Single steps of a layer that carry their state: audio, sensors, characters as they come.

use super::{Layer, Sequence, State};
use crate::error::Result;
use crate::plan::sequence::Size;
use crate::tensor::Tensor;

/// N streams that advance together by one step per call. The same kernels as for a whole sequence
/// run on the same numbers, so the results have the same bits.
#[derive(Debug)]
pub struct Stream {
    sequence: Sequence,
}

impl Stream {
    pub(super) fn new(layer: &Layer, batch: usize) -> Result<Self> {
        let size = Size { steps: 1, batch };
        let sequence = layer.inference(size)?;
        Ok(Self { sequence })
    }

    /// The input of the next step, `[1, N, I]`.
    pub fn x(&self) -> &Tensor {
        self.sequence.x()
    }

    /// h after the latest step, `[N, H]`, which is also the output. To set the state of the streams,
    /// write it; it starts as zeros.
    ///
    /// # Errors
    /// None in a stream that was built.
    pub fn h(&self) -> Result<Tensor> {
        self.sequence.hn()
    }

    /// c after the latest step, `[N, H]`; writable as [`Self::h`].
    ///
    /// # Errors
    /// If the cell has no c.
    pub fn c(&self) -> Result<Tensor> {
        self.sequence.cn()
    }

    /// The plan of a step and its memory.
    pub fn sequence(&self) -> &Sequence {
        &self.sequence
    }

    /// Reads the state after the latest step.
    ///
    /// # Errors
    /// If the device fails.
    pub fn state(&self) -> Result<State> {
        self.sequence.state()
    }

    /// Advances all streams by a step: on the CPU at once, on a GPU by a submission of its own.
    ///
    /// # Errors
    /// If the device fails.
    pub fn step(&self) -> Result<()> {
        self.sequence.carry()?;
        self.sequence.forward()
    }

    /// Records a step into the host's encoder.
    ///
    /// # Errors
    /// If the layer is on the CPU.
    #[cfg(feature = "gpu")]
    pub fn record_step(&self, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        self.sequence.record_carry(encoder)?;
        self.sequence.record_forward(encoder)
    }
}
