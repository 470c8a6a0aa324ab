//! Streams that advance one frame at a time, as audio or sensors deliver them, and not all at once.
//!
//!     cargo run --release --example stream

use std::time::Instant;

use wgrnn::ndarray::Array2;
use wgrnn::{Context, Gru};

fn main() -> wgrnn::Result<()> {
    let context = Context::open("auto")?;
    let gru = Gru::new(40, 128).build(&context)?;
    let streams = gru.streams(8)?;
    let frames = 200;
    let start = Instant::now();
    for frame in 0..frames {
        // Stream 0 has a frame every time, the others have fewer.
        let ready: Vec<usize> = (0..8).filter(|n| frame % (n + 1) == 0).collect();
        let x = Array2::from_shape_fn((ready.len(), 40), |(i, feature)| {
            (frame as f32 * 0.1 + (ready[i] * 40 + feature) as f32).sin()
        });
        let y = streams.step(&ready, x.view())?;
        if frame % 50 == 0 {
            let first = y.row(0);
            println!(
                "frame {frame}: stream 0 has {:.4}, {:.4}, …",
                first[0], first[1]
            );
        }
    }
    let per_frame = start.elapsed() / frames as u32;
    println!("{}: {per_frame:?} per frame", context.name());

    // A state can be kept, given to another stream, or zeroed.
    let kept = streams.state(0)?;
    streams.set_state(7, &kept)?;
    streams.reset(0)
}
