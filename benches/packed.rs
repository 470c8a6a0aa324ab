//! What padding costs: the same sequences padded with lengths, and packed, per real step.
//!
//! The layer is that of pyannote.audio's speaker segmentation (PyanNet: 60 features, two
//! bidirectional layers of 128 units, 59 frames a second). The lengths are those of turns in
//! speech: log-normal around two seconds, of 0.2 to 10 s. A third row packs sequences of one length, where
//! there is nothing to gain: it must not be slower than padding them.
//!
//!     cargo bench --bench packed

mod common;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use wgrnn::check::{compare, tolerance};
use wgrnn::rng::Rng;
use wgrnn::{Call, Dtype, Layer, Lstm, Mode, Packing, Result, Sequence, Size};

const FEATURES: usize = 60;
/// The longest turn.
const SECONDS: f64 = 10.0;

/// The durations of turns, in frames; the longest has `longest` of them.
fn lengths(batch: usize, longest: usize) -> Vec<usize> {
    let mut rng = Rng::new(7);
    let draw = |_| {
        let seconds = (2.0f64.ln() + 0.9 * f64::from(rng.normal())).exp();
        let part = seconds.clamp(0.2, SECONDS) / SECONDS;
        (part * longest as f64).ceil() as usize
    };
    let mut lengths: Vec<usize> = (0..batch).map(draw).collect();
    // A batch is padded to its longest sequence.
    lengths[0] = longest;
    lengths
}

/// A training step of the layer: forward and backward.
fn step(sequence: &Sequence) -> Result<()> {
    sequence.forward()?;
    sequence.backward()?;
    sequence.program().context().wait()
}

fn padded(layer: &Layer, lengths: &[usize], x: &[f32]) -> Result<Sequence> {
    let size = Size {
        steps: lengths.iter().copied().max().unwrap_or(1),
        batch: lengths.len(),
    };
    let sequence = layer.sequence(&Call::training(size).lengths())?;
    let lengths: Vec<i64> = lengths.iter().map(|&l| l as i64).collect();
    sequence.set_lengths(&lengths)?;
    sequence.x().write(x)?;
    let dy = vec![0.01; sequence.dy()?.len()];
    sequence.dy()?.write(&dy)?;
    Ok(sequence)
}

fn packed(layer: &Layer, packing: &Packing, x: &[f32], batch: usize) -> Result<Sequence> {
    let sequence = layer.sequence(&Call::packed(packing.batch_sizes(), Mode::Training))?;
    let rows: Vec<f32> = packing
        .rows()
        .flat_map(|(t, n)| {
            let row = (t * batch + n) * FEATURES;
            x[row..row + FEATURES].iter().copied()
        })
        .collect();
    sequence.x().write(&rows)?;
    let dy = vec![0.01; sequence.dy()?.len()];
    sequence.dy()?.write(&dy)?;
    Ok(sequence)
}

/// The largest difference of the weights' gradients, in units of the tolerance.
fn difference(a: &Sequence, b: &Sequence, sum: usize) -> Result<f64> {
    let mut worst = 0.0f64;
    for ((_, a), (_, b)) in a.gradients()?.iter().zip(b.gradients()?) {
        let error = compare(&a.read_f64()?, &b.read_f64()?).error;
        worst = worst.max(error / tolerance::layer(Dtype::F32, sum, 0.0));
    }
    Ok(worst)
}

fn bench(c: &mut Criterion) {
    for context in common::contexts() {
        // A software adapter shows the ratio with less.
        let (batch, longest) = if context.is_gpu() { (8, 59) } else { (32, 590) };
        let layer = Lstm::new(FEATURES, 128)
            .num_layers(2)
            .bidirectional(true)
            .build(&context)
            .expect("the layer");
        let mut rng = Rng::new(1);
        let x = rng.uniforms(longest * batch * FEATURES, -1.0, 1.0);
        let mut group = c.benchmark_group(context.name());
        group.sample_size(10);
        let speech = lengths(batch, longest);
        let tokens: usize = speech.iter().sum();
        println!(
            "{}: {tokens} steps in {batch} sequences, {:.1} % of the {} padded ones",
            context.name(),
            100.0 * tokens as f64 / (batch * longest) as f64,
            batch * longest
        );
        for (name, lengths) in [("speech", speech), ("equal", vec![longest / 2; batch])] {
            let packing = Packing::new(&lengths).expect("lengths");
            let with_padding = padded(&layer, &lengths, &x[..padded_len(&lengths)]);
            let with_padding = with_padding.expect("padded");
            let without = packed(&layer, &packing, &x, batch).expect("packed");
            step(&with_padding)
                .and_then(|()| step(&without))
                .expect(name);
            let units = difference(&with_padding, &without, packing.tokens()).expect(name);
            assert!(units <= 1.0, "{name}: {units} of the tolerance");
            group.throughput(Throughput::Elements(packing.tokens() as u64));
            for (way, sequence) in [("padded", &with_padding), ("packed", &without)] {
                group.bench_function(format!("{name}, {way}"), |b| {
                    b.iter(|| step(sequence).expect(way));
                });
            }
            group.bench_function(format!("{name}, packed and planned anew"), |b| {
                b.iter(|| {
                    let sequence = packed(&layer, &packing, &x, batch).expect(name);
                    step(&sequence).expect(name);
                });
            });
        }
        group.finish();
    }
}

fn padded_len(lengths: &[usize]) -> usize {
    lengths.iter().copied().max().unwrap_or(1) * lengths.len() * FEATURES
}

criterion_group!(benches, bench);
criterion_main!(benches);
