//! How long compute passes take on the device: timestamps that it writes itself at the beginning and
//! the end of each.

use std::time::Duration;

use super::device::Gpu;
use crate::error::{Error, Result};

const OP: &str = "timing on the device";

/// The most passes that one [`Timestamps`] has room for, with two queries each.
pub(crate) const MAX_PASSES: usize = wgpu::QUERY_SET_MAX_QUERIES as usize / 2;

/// Room for the timestamps of some passes.
#[derive(Debug)]
pub(crate) struct Timestamps {
    set: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    passes: usize,
}

/// When a pass began and ended, in the device's ticks.
pub(crate) type Pass = [u64; 2];

impl Timestamps {
    /// Room for `passes`, which are not more than [`MAX_PASSES`].
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the device was opened without timestamps.
    pub(crate) fn new(gpu: &Gpu, passes: usize) -> Result<Self> {
        if !gpu
            .device
            .features()
            .contains(wgpu::Features::TIMESTAMP_QUERY)
        {
            return Err(Error::Unsupported {
                op: OP,
                needs: "an adapter without timestamps (the feature TIMESTAMP_QUERY)".to_owned(),
            });
        }
        let queries = 2 * passes.clamp(1, MAX_PASSES) as u32;
        gpu.checked(OP, || Self {
            set: gpu.device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("wgrnn timestamps"),
                ty: wgpu::QueryType::Timestamp,
                count: queries,
            }),
            resolved: gpu.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("wgrnn timestamps"),
                size: u64::from(queries * wgpu::QUERY_SIZE),
                usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            }),
            passes,
        })
    }

    /// What the descriptor of a pass asks for, by its number.
    pub(crate) fn writes(&self, pass: usize) -> wgpu::ComputePassTimestampWrites<'_> {
        let first = 2 * pass as u32;
        wgpu::ComputePassTimestampWrites {
            query_set: &self.set,
            beginning_of_pass_write_index: Some(first),
            end_of_pass_write_index: Some(first + 1),
        }
    }

    /// Submits the passes that `record` records, of which each writes its timestamps, and waits for them.
    ///
    /// # Errors
    /// If the device fails.
    pub(crate) fn time(
        &self,
        gpu: &Gpu,
        record: impl FnOnce(&mut wgpu::CommandEncoder),
    ) -> Result<Vec<Pass>> {
        gpu.submit(OP, |encoder| {
            record(encoder);
            encoder.resolve_query_set(&self.set, 0..2 * self.passes as u32, &self.resolved, 0);
        })?;
        // Two words for each of the two.
        let words = gpu.download(OP, &self.resolved, 0, 16 * self.passes as u64)?;
        gpu.wait(OP)?;
        let words = pollster::block_on(words)?;
        let tick = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let pass = |w: &[u32]| [tick(w[0], w[1]), tick(w[2], w[3])];
        Ok(words.chunks_exact(4).map(pass).collect())
    }
}

/// From the beginning of the first pass to the end of the last.
pub(crate) fn total(passes: &[Pass], period: f32) -> Duration {
    let begin = passes.first().map_or(0, |p| p[0]);
    let end = passes.last().map_or(0, |p| p[1]);
    duration(begin, end, period)
}

/// How long each pass took. A device may write the beginning of a pass while it still works on the one
/// before, of which this one needs the results: that time is not counted twice.
pub(crate) fn each(passes: &[Pass], period: f32) -> Vec<Duration> {
    let mut before = 0;
    let mut of = |&[begin, end]: &Pass| {
        let begin = begin.max(before);
        before = before.max(end);
        duration(begin, end, period)
    };
    passes.iter().map(&mut of).collect()
}

/// `period` is the nanoseconds of a tick.
fn duration(begin: u64, end: u64, period: f32) -> Duration {
    let ticks = end.saturating_sub(begin);
    Duration::from_nanos((ticks as f64 * f64::from(period)).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_tick_is_counted_twice() {
        let nanos = |passes: &[Pass]| {
            let each = each(passes, 2.0).into_iter();
            (
                each.map(|d| d.as_nanos()).collect::<Vec<_>>(),
                total(passes, 2.0).as_nanos(),
            )
        };
        assert_eq!(nanos(&[]), (vec![], 0));
        assert_eq!(nanos(&[[10, 15], [16, 20]]), (vec![10, 8], 20));
        // The second begins inside the first, the third ends before the second.
        let overlapping = [[10, 20], [12, 30], [13, 29]];
        assert_eq!(nanos(&overlapping), (vec![20, 20, 0], 38));
        // A device that writes nothing.
        assert_eq!(nanos(&[[0, 0]]), (vec![0], 0));
    }
}
