//! The least time that a call could take on a device with these measured peaks.
//!
//! ```text
//! step of a level      max(2 N |W| / F, s |W| / B)         W the recurrent weights, of s bytes each
//! product over rows    max(flops / F, bytes / B)           input projection, gradients
//! forward              input products + T steps of every level + L (T + layers - 1)
//! backward             the same steps + gradients of x, W_ih and W + L (T + layers - 1)
//! ```
//!
//! F is the best rate of any product, B the best rate at which as many bytes were read or copied again and
//! again, L the time of one dispatch that waits for the one before. Both directions, and the layers on
//! a diagonal, can share a dispatch, so L counts once for all of them. A kernel that runs many steps in
//! one dispatch, or keeps weights in registers, can go below this floor: [`Floor::work`] is the same
//! without L.

use wgrnn::plan::sequence::LayerSpec;
use wgrnn::{Mode, Precision, Size};

/// What a device did at most, as [`bench`](super::bench) measured it or a user says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Peaks {
    /// F, floating-point operations per second.
    pub(crate) flops: f64,
    /// The rates over working sets of several sizes.
    pub(crate) bandwidths: Vec<Bandwidth>,
    /// L, seconds.
    pub(crate) dispatch: f64,
}

/// How fast a working set is read or copied again and again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Bandwidth {
    /// Its size.
    pub(crate) bytes: f64,
    /// Bytes per second.
    pub(crate) rate: f64,
}

impl Peaks {
    /// B for so many bytes. What a larger set reached holds for a smaller one, which is in the same
    /// memory or a nearer one; past the largest set that was measured its own rate holds.
    pub(crate) fn bandwidth(&self, bytes: f64) -> f64 {
        let largest = self.memory();
        let as_large = self.bandwidths.iter().filter(|b| b.bytes >= bytes);
        as_large.map(|b| b.rate).fold(largest, f64::max)
    }

    /// The rate over the largest set.
    pub(crate) fn memory(&self) -> f64 {
        let largest = self
            .bandwidths
            .iter()
            .max_by(|a, b| a.bytes.total_cmp(&b.bytes));
        largest.map_or(f64::INFINITY, |b| b.rate)
    }

    fn seconds(&self, work: Work) -> f64 {
        (work.flops / self.flops).max(work.bytes / self.bandwidth(work.bytes))
    }
}

/// Operations, and bytes that must be moved for them.
#[derive(Debug, Clone, Copy)]
struct Work {
    flops: f64,
    bytes: f64,
}

impl Work {
    /// The product of an m × k with a k × n matrix, whose elements have so many bytes.
    fn product(m: f64, n: f64, k: f64, size: f64) -> Self {
        Self {
            flops: 2.0 * m * n * k,
            bytes: 4.0 * (m * k + m * n) + size * k * n,
        }
    }

    /// The same with results of so many bytes.
    fn into(self, m: f64, n: f64, size: f64) -> Self {
        Self {
            bytes: self.bytes + (size - 4.0) * m * n,
            ..self
        }
    }
}

/// The floor of a call, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Floor {
    /// Of one dispatch for each step.
    pub(crate) stepwise: f64,
    /// Of the arithmetic and the memory traffic alone.
    pub(crate) work: f64,
}

/// The floor of a layer's calls that store activations so.
pub(crate) fn floor(
    spec: &LayerSpec,
    size: Size,
    mode: Mode,
    activations: Precision,
    peaks: &Peaks,
) -> Floor {
    let (steps, batch) = (size.steps as f64, size.batch as f64);
    let (width, units) = (spec.width() as f64, spec.output_size() as f64);
    let rows = steps * batch;
    let bytes_of = |precision: Precision| precision.element().bytes(2) as f64 / 2.0;
    let size = bytes_of(spec.precision);
    let mut weights = width * units;
    if spec.cell.projected {
        weights += units * spec.hidden_size as f64;
    }
    let step = Work {
        flops: 2.0 * batch * weights,
        bytes: size * weights,
    };
    let mut work = 0.0;
    for level in spec.levels() {
        let input = level.input_size as f64;
        let projection = Work::product(rows, width, input, size);
        work += peaks.seconds(projection.into(rows, width, bytes_of(activations)));
        work += steps * peaks.seconds(step);
        if mode == Mode::Training {
            work += steps * peaks.seconds(step);
            // dx = dgates · W_ih, dW_ih = dgatesᵀ · x, dW = dgatesᵀ · h
            work += peaks.seconds(Work::product(rows, input, width, size));
            work += peaks.seconds(Work::product(width, input, rows, 4.0));
            work += peaks.seconds(Work::product(width, units, rows, 4.0));
        }
    }
    let passes = match mode {
        Mode::Inference => 1.0,
        Mode::Training => 2.0,
    };
    let dispatches = passes * (steps + spec.num_layers as f64 - 1.0);
    Floor {
        stepwise: work + dispatches * peaks.dispatch,
        work,
    }
}

#[cfg(test)]
mod tests {
    use wgrnn::cell::{LSTM, LSTM_PROJECTED};

    use super::*;

    const SIZE: Size = Size {
        steps: 1000,
        batch: 1,
    };

    fn spec() -> LayerSpec {
        LayerSpec::new(&LSTM, 10, 100)
    }

    fn peaks(flops: f64, rate: f64, dispatch: f64) -> Peaks {
        Peaks {
            flops,
            bandwidths: vec![Bandwidth { bytes: 1e3, rate }],
            dispatch,
        }
    }

    fn close(got: f64, want: f64) {
        assert!((got - want).abs() <= 1e-12 * want.abs(), "{got} {want}");
    }

    #[test]
    fn a_small_set_is_as_fast_as_any_larger_one() {
        let at = |bytes, rate| Bandwidth { bytes, rate };
        let peaks = Peaks {
            flops: 1.0,
            // The smallest is slowed down by its dispatches, the largest is in main memory.
            bandwidths: vec![at(64.0, 20.0), at(1.0, 5.0), at(8.0, 90.0), at(512.0, 10.0)],
            dispatch: 0.0,
        };
        let of = |bytes| peaks.bandwidth(bytes);
        assert_eq!((of(0.5), of(1.0), of(8.0)), (90.0, 90.0, 90.0));
        assert_eq!((of(9.0), of(65.0), of(1e9)), (20.0, 10.0, 10.0));
        assert_eq!(peaks.memory(), 10.0);
    }

    #[test]
    fn bound_by_arithmetic() {
        // Memory and dispatches cost nothing: then it is the operations, three times in training.
        let free = peaks(1e9, 1e30, 0.0);
        let once = 2.0 * 1000.0 * 400.0 * (10.0 + 100.0) / 1e9;
        for (mode, times) in [(Mode::Inference, 1.0), (Mode::Training, 3.0)] {
            let floor = floor(&spec(), SIZE, mode, Precision::F32, &free);
            close(floor.work, times * once);
            assert_eq!(floor.stepwise, floor.work);
        }
    }

    #[test]
    fn bound_by_memory() {
        let free = peaks(1e30, 1e9, 0.0);
        // W_hh in every step, and the input product once.
        let (w_hh, gates, x, w_ih) = (400.0 * 100.0, 1000.0 * 400.0, 1000.0 * 10.0, 400.0 * 10.0);
        let forward = 4.0 * (1000.0 * w_hh + gates + x + w_ih) / 1e9;
        close(
            floor(&spec(), SIZE, Mode::Inference, Precision::F32, &free).work,
            forward,
        );
        // Half of it in 16-bit floats, but for x and the gates.
        let half = LayerSpec {
            precision: Precision::F16,
            ..spec()
        };
        let halved = forward - 2.0 * (1000.0 * w_hh + w_ih) / 1e9;
        close(
            floor(&half, SIZE, Mode::Inference, Precision::F32, &free).work,
            halved,
        );
        // And of the gates.
        let stored = floor(&spec(), SIZE, Mode::Inference, Precision::F16, &free);
        close(stored.work, forward - 2.0 * gates / 1e9);
        // A batch reads the weights no more often; only the products over all rows grow.
        let batch = Size { batch: 8, ..SIZE };
        let forward = 4.0 * (1000.0 * w_hh + 8.0 * (gates + x) + w_ih) / 1e9;
        close(
            floor(&spec(), batch, Mode::Inference, Precision::F32, &free).work,
            forward,
        );
    }

    #[test]
    fn bound_by_dispatches() {
        let free = peaks(1e30, 1e30, 1e-6);
        let of = |spec: LayerSpec, mode| floor(&spec, SIZE, mode, Precision::F32, &free).stepwise;
        close(of(spec(), Mode::Inference), 1000e-6);
        close(of(spec(), Mode::Training), 2000e-6);
        let both = LayerSpec {
            bidirectional: true,
            ..spec()
        };
        close(of(both, Mode::Inference), 1000e-6);
        let three = LayerSpec {
            num_layers: 3,
            ..spec()
        };
        close(of(three, Mode::Inference), 1002e-6);
    }

    #[test]
    fn a_projection_has_weights_too() {
        let free = peaks(1e9, 1e30, 0.0);
        let projected = LayerSpec {
            proj_size: 50,
            ..LayerSpec::new(&LSTM_PROJECTED, 10, 100)
        };
        let products = 400.0 * 10.0 + 400.0 * 50.0 + 50.0 * 100.0;
        let work = floor(&projected, SIZE, Mode::Inference, Precision::F32, &free).work;
        close(work, 2.0 * 1000.0 * products / 1e9);
    }
}
