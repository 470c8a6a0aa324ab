//! A GRU that gets one frame at a time, as audio or sensors deliver them.
//!
//!     cargo run --release --example stream

use std::time::Instant;

use wgrnn::{Context, Gru};

fn main() -> wgrnn::Result<()> {
    let context = Context::open("auto")?;
    let gru = Gru::new(40, 128).build(&context)?;
    let stream = gru.stream(1)?;
    let frames = 200;
    let start = Instant::now();
    for frame in 0..frames {
        let x: Vec<f32> = (0..40)
            .map(|i| (frame as f32 * 0.1 + i as f32).sin())
            .collect();
        stream.x().write(&x)?;
        stream.step()?;
        let h = stream.h()?.read()?;
        if frame % 50 == 0 {
            println!("frame {frame}: h starts {:.4?}", &h[..4]);
        }
    }
    let per_frame = start.elapsed() / frames;
    println!(
        "{}: {per_frame:?} per frame, reading included",
        context.name()
    );
    Ok(())
}
