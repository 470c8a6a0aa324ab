//! An LSTM inside an app that owns its GPU: the app's device, queue, encoder and submission.
//!
//!     cargo run --release --example host

use wgrnn::{Context, Lstm, Size, wgpu};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // What the app has already.
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let request = wgpu::RequestAdapterOptions::default();
    let adapter = match pollster::block_on(instance.request_adapter(&request)) {
        Ok(adapter) => adapter,
        Err(e) => {
            println!("this machine has no adapter: {e}");
            return Ok(());
        }
    };
    let descriptor = wgpu::DeviceDescriptor::default();
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))?;

    // Once: the layer, its plan and its memory.
    let context = Context::from_wgpu(device.clone(), queue.clone());
    let lstm = Lstm::new(32, 64).seed(7).build(&context)?;
    let call = lstm.inference(Size {
        steps: 50,
        batch: 4,
    })?;

    // Every frame: the app's own commands may fill x and use y in the same submission.
    call.x().write(&vec![0.5; 50 * 4 * 32])?;
    let mut encoder = device.create_command_encoder(&Default::default());
    call.record_forward(&mut encoder)?;
    queue.submit([encoder.finish()]);

    let y = call.y().to_array()?;
    println!("{}: y has the shape {:?}", context.name(), y.shape());
    println!(
        "h of the first sequence after the last step starts {:.4?}",
        &call.hn().read()?[..4]
    );
    Ok(())
}
