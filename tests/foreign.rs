//! What a host hands over that does not fit: buffers of another device, of another instance, mapped or destroyed ones,
//! a queue or an encoder of another device. What wgpu can be asked is an error.
#![cfg(feature = "gpu")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use common::refusal;
use wgrnn::kernel::Element;
use wgrnn::kernels::copy::copy;
use wgrnn::plan::{Builder, Role};
use wgrnn::wgpu::{self, BufferUsages};
use wgrnn::{Context, Error, Layer, Program, Result, Rnn, Size, Tensor};

const LEN: usize = 64;
const SIZE: Size = Size { steps: 1, batch: 1 };
const USAGE: BufferUsages = BufferUsages::STORAGE
    .union(BufferUsages::COPY_SRC)
    .union(BufferUsages::COPY_DST);

/// A device and queue of every adapter of an instance that nobody else has.
fn devices(wanted: wgpu::Features) -> Vec<(wgpu::Device, wgpu::Queue)> {
    // Says so, or fails, where there is none.
    if common::adapters().is_empty() {
        return Vec::new();
    }
    let descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    let instance = wgpu::Instance::new(descriptor);
    let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::VULKAN));
    adapters.iter().map(|a| open(a, wanted)).collect()
}

fn open(adapter: &wgpu::Adapter, wanted: wgpu::Features) -> (wgpu::Device, wgpu::Queue) {
    let opened = adapter.request_device(&wgpu::DeviceDescriptor {
        required_features: adapter.features() & wanted,
        ..Default::default()
    });
    pollster::block_on(opened).unwrap()
}

/// Two devices of one adapter and instance.
fn pairs() -> Vec<[(wgpu::Device, wgpu::Queue); 2]> {
    let none = wgpu::Features::empty();
    common::present()
        .iter()
        .map(|a| [open(a, none), open(a, none)])
        .collect()
}

fn buffer(device: &wgpu::Device, usage: BufferUsages) -> wgpu::Buffer {
    device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("the host's"),
        size: 4 * LEN as u64,
        usage,
        mapped_at_creation: false,
    })
}

fn wrap(context: &Context, buffer: &wgpu::Buffer) -> Result<Tensor> {
    Tensor::from_buffer(context, buffer.clone(), 0, &[LEN], Element::Float)
}

/// The value that was refused, as it was named.
#[track_caller]
fn refused<T>(result: Result<T>) -> (String, String) {
    match refusal(result) {
        Error::Value { arg, got, .. } => (arg, got),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn assert_failed<T>(result: Result<T>, why: &str) {
    match refusal(result) {
        Error::Device { reason, .. } => assert!(reason.contains(why), "{reason}"),
        other => panic!("{other:?}"),
    }
}

/// A program that copies one tensor to another.
fn copies(context: &Context, from: &Tensor, to: &Tensor) -> Result<Program> {
    let mut b = Builder::new("copies");
    let ids = [
        b.float("from", &[LEN], Role::Input),
        b.float("to", &[LEN], Role::Output),
    ];
    copy(&mut b, (ids[0], 0), (ids[1], 0), LEN)?;
    let bound = [(ids[0], from.clone()), (ids[1], to.clone())];
    Program::new(context, b.finish(), &bound)
}

fn layer(context: &Context) -> Result<Layer> {
    Rnn::new(2, 3).build(context)
}

#[test]
fn a_buffer_of_another_device() -> Result<()> {
    for [(device, queue), (other, _)] in pairs() {
        let context = Context::from_wgpu(device.clone(), queue);
        let (arg, got) = refused(wrap(&context, &buffer(&other, USAGE)));
        assert_eq!(arg, "buffer");
        assert!(got.contains("doesn't match"), "{got}");
        let own = wrap(&context, &buffer(&device, USAGE))?;
        own.write(&[2.5; LEN])?;
        assert_eq!(own.read()?, [2.5; LEN]);
    }
    Ok(())
}

/// Two instances count their objects alike, so that a buffer of one has the number of one of the other, or of none.
#[test]
fn a_buffer_of_another_instance() -> Result<()> {
    let none = wgpu::Features::empty();
    for ((device, queue), (other, other_queue)) in devices(none).into_iter().zip(devices(none)) {
        let context = Context::from_wgpu(device.clone(), queue);
        let own: Vec<_> = (0..6).map(|_| buffer(&device, USAGE)).collect();
        let others: Vec<_> = (0..8).map(|_| buffer(&other, USAGE)).collect();
        let told = Arc::new(AtomicUsize::new(0));
        for (nth, theirs) in others.iter().enumerate() {
            if nth == 1 {
                // From here on the other device has a handler of its host's, and does not panic.
                let told = told.clone();
                other.on_uncaptured_error(Arc::new(move |_| {
                    told.fetch_add(1, Ordering::SeqCst);
                }));
            }
            let (arg, got) = refused(wrap(&context, theirs));
            assert_eq!(
                (arg.as_str(), got.as_str()),
                ("buffer", "a buffer of another device")
            );
        }
        assert!(told.load(Ordering::SeqCst) > 0, "no number was the same");
        // Both still work.
        for ours in &own {
            let tensor = wrap(&context, ours)?;
            tensor.write(&[1.0; LEN])?;
            assert_eq!(tensor.read()?, [1.0; LEN]);
        }
        let there = Context::from_wgpu(other, other_queue);
        for theirs in &others {
            let tensor = wrap(&there, theirs)?;
            tensor.write(&[3.0; LEN])?;
            assert_eq!(tensor.read()?, [3.0; LEN]);
        }
    }
    Ok(())
}

#[test]
fn a_buffer_that_is_mapped() -> Result<()> {
    for (device, queue) in devices(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS) {
        let context = Context::from_wgpu(device.clone(), queue);
        let mapped = device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 4 * LEN as u64,
            usage: USAGE,
            mapped_at_creation: true,
        });
        {
            let mut view = mapped.get_mapped_range_mut(..).unwrap();
            let (arg, got) = refused(wrap(&context, &mapped));
            assert_eq!(
                (arg.as_str(), got.as_str()),
                ("buffer", "one that is mapped")
            );
            view.slice(..).copy_from_slice(&[0; 4 * LEN]);
        }
        mapped.unmap();
        assert_eq!(wrap(&context, &mapped)?.read()?, [0.0; LEN]);

        // Mapped later, which takes a device that can map what kernels use.
        if !device
            .features()
            .contains(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS)
        {
            continue;
        }
        let mappable = buffer(&device, USAGE | BufferUsages::MAP_READ);
        let tensor = wrap(&context, &mappable)?;
        let to = Tensor::zeros(&context, &[LEN], Element::Float)?;
        let program = copies(&context, &tensor, &to)?;
        tensor.write(&[4.0; LEN])?;
        mappable.map_async(wgpu::MapMode::Read, .., |mapped| mapped.unwrap());
        context.wait()?;
        assert_failed(tensor.read(), "still mapped");
        assert_failed(tensor.write(&[5.0; LEN]), "mapped");
        assert_failed(program.run("main"), "still mapped");
        assert_failed(pollster::block_on(tensor.read_async()), "still mapped");
        mappable.unmap();
        program.run("main")?;
        assert_eq!(to.read()?, [4.0; LEN]);
    }
    Ok(())
}

#[test]
fn a_buffer_that_is_destroyed() -> Result<()> {
    for (device, queue) in devices(wgpu::Features::TIMESTAMP_QUERY) {
        let context = Context::from_wgpu(device.clone(), queue);
        let gone = buffer(&device, USAGE);
        gone.destroy();
        let (arg, got) = refused(wrap(&context, &gone));
        assert_eq!(arg, "buffer");
        assert!(got.contains("destroyed"), "{got}");

        let later = buffer(&device, USAGE);
        let tensor = wrap(&context, &later)?;
        let to = Tensor::zeros(&context, &[LEN], Element::Float)?;
        let program = copies(&context, &tensor, &to)?;
        later.destroy();
        assert_failed(tensor.read(), "destroyed");
        assert_failed(tensor.write(&[5.0; LEN]), "destroyed");
        assert_failed(program.run("main"), "destroyed");
        if device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            assert_failed(program.run_timed(&["main"]), "destroyed");
            assert_failed(program.profile("main"), "destroyed");
        }
        assert_failed(copies(&context, &tensor, &to), "destroyed");
        assert_eq!(to.read()?, [0.0; LEN]);

        // The x of a layer's call, after which the layer makes another.
        let layer = layer(&context)?;
        let call = layer.inference(SIZE)?;
        call.forward()?;
        let y = call.y().read()?;
        call.x().buffer().unwrap().0.destroy();
        assert_failed(call.forward(), "destroyed");
        assert_eq!(call.y().read()?, y);
        assert_eq!(context.lost(), None);
        let anew = layer.inference(SIZE)?;
        anew.forward()?;
        assert_eq!(anew.y().read()?, y);
    }
    Ok(())
}

#[test]
fn a_queue_of_another_instance() {
    let none = wgpu::Features::empty();
    for ((device, _), (_, queue)) in devices(none).into_iter().zip(devices(none)) {
        let wrong = Context::from_wgpu(device, queue);
        assert_eq!(
            refused(Tensor::zeros(&wrong, &[LEN], Element::Float)).0,
            "queue"
        );
    }
}

#[test]
fn a_queue_of_another_device() -> Result<()> {
    for [(device, queue), (other, other_queue)] in pairs() {
        for (device, queue) in [(&device, &other_queue), (&other, &queue)] {
            let wrong = Context::from_wgpu(device.clone(), queue.clone());
            let (arg, got) = refused(Tensor::zeros(&wrong, &[LEN], Element::Float));
            assert_eq!(
                (arg.as_str(), got.as_str()),
                ("queue", "one of another device")
            );
            assert_eq!(refused(layer(&wrong)).0, "queue");
            assert_eq!(refused(wrap(&wrong, &buffer(device, USAGE))).0, "queue");
        }
        // Right ones are taken while other threads poll.
        let done = AtomicUsize::new(0);
        thread::scope(|scope| {
            for polled in [&device, &other] {
                let done = &done;
                scope.spawn(move || {
                    while done.load(Ordering::SeqCst) == 0 {
                        polled.poll(wgpu::PollType::Poll).unwrap();
                    }
                });
            }
            let taken = (0..20).try_for_each(|_| {
                let context = Context::from_wgpu(device.clone(), queue.clone());
                Tensor::zeros(&context, &[LEN], Element::Float).map(drop)
            });
            done.store(1, Ordering::SeqCst);
            taken
        })?;
    }
    Ok(())
}

type Record<'a> = &'a dyn Fn(&mut wgpu::CommandEncoder) -> Result<()>;

/// An encoder does not say whose it is: wgpu refuses what was recorded where the host finishes it.
#[test]
fn an_encoder_of_another_device() -> Result<()> {
    for [(device, queue), (other, _)] in pairs() {
        let context = Context::from_wgpu(device, queue);
        let layer = layer(&context)?;
        let (call, streams) = (layer.inference(SIZE)?, layer.streams(1)?);
        streams.advance(&[0])?;
        let record: [Record; 3] = [
            &|encoder| call.record_forward(encoder),
            &|encoder| streams.record_step(encoder),
            &|encoder| layer.record_prepare(encoder),
        ];
        for record in record {
            let mut encoder = other.create_command_encoder(&Default::default());
            record(&mut encoder)?;
            let scope = other.push_error_scope(wgpu::ErrorFilter::Validation);
            drop(encoder.finish());
            let error = pollster::block_on(scope.pop()).unwrap().to_string();
            assert!(error.contains("doesn't match"), "{error}");
        }
        call.forward()?;
        assert_eq!(call.y().read()?.len(), 3);
    }
    Ok(())
}

/// The copies that are read and written through need as much memory as the tensor. The limit is for a whole process.
#[cfg(target_os = "linux")]
#[test]
fn no_memory_to_copy() {
    // Says so, or fails, where there is no adapter.
    common::adapters();
    let run = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "in_a_process_of_its_own",
            "--ignored",
            "--nocapture",
        ])
        .output()
        .unwrap();
    let text = [run.stdout, run.stderr].map(|t| String::from_utf8_lossy(&t).into_owned());
    assert!(run.status.success(), "{}", text.join(""));
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "no_memory_to_copy runs it"]
fn in_a_process_of_its_own() -> Result<()> {
    const FLOATS: usize = 16 << 20;
    let limit = |bytes: &str| {
        let pid = std::process::id().to_string();
        let args = ["--pid", &pid, &format!("--as={bytes}:")];
        let set = std::process::Command::new("prlimit").args(args).status();
        set.is_ok_and(|status| status.success())
    };
    for (device, queue) in devices(wgpu::Features::empty()) {
        // Of a GPU the memory is not the process's.
        if device.adapter_info().device_type != wgpu::DeviceType::Cpu || !limit("unlimited") {
            continue;
        }
        let context = Context::from_wgpu(device.clone(), queue);
        device.set_device_lost_callback(context.lost_handler());
        let zeros = |len| Tensor::zeros(&context, &[len], Element::Float);
        let (tensor, values) = (zeros(FLOATS)?, vec![1.0; FLOATS]);
        let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: usize = pages.split(' ').next().unwrap().parse().unwrap();
        assert!(limit(&(4096 * pages + (64 << 20)).to_string()));
        // What wgpu has set aside is used up.
        let mut kept = Vec::new();
        let full = loop {
            match zeros(FLOATS / 4) {
                Ok(tensor) => kept.push(tensor),
                Err(e) => break e,
            }
        };
        let (read, alive) = (tensor.read(), context.lost().is_none());
        // Where a write has no memory, wgpu gives the device up.
        let (written, again) = (tensor.write(&values), tensor.read());
        drop(kept);
        assert!(limit("unlimited"));
        assert_failed::<()>(Err(full), "Memory");
        assert_failed(read, "Memory");
        assert!(alive);
        assert_failed(written, "memory");
        assert_failed(again, "memory");
    }
    Ok(())
}

/// Two contexts of one adapter have one name: the message says what differs.
#[test]
fn a_tensor_of_another_context() -> Result<()> {
    for ([one, two], name) in pairs().into_iter().zip(common::adapters()) {
        let contexts = [&one, &two].map(|(d, q)| Context::from_wgpu(d.clone(), q.clone()));
        let [a, b] = contexts
            .each_ref()
            .map(|c| Tensor::zeros(c, &[LEN], Element::Float));
        let (a, b) = (a?, b?);
        let e = refusal(copies(&contexts[0], &a, &b)).to_string();
        assert!(e.contains("another context") && e.contains("clone"), "{e}");
        let cpu = Tensor::zeros(&Context::cpu(), &[LEN], Element::Float)?;
        let e = refusal(copies(&contexts[0], &a, &cpu)).to_string();
        assert!(
            e.contains(&name.name()) && e.ends_with("got CPU f32"),
            "{e}"
        );
        copies(&contexts[0].clone(), &a, &a.reshaped(&[LEN])?)
            .err()
            .unwrap();
        let c = Tensor::zeros(&contexts[0].clone(), &[LEN], Element::Float)?;
        copies(&contexts[0], &a, &c)?.run("main")?;
    }
    Ok(())
}

/// wgpu keeps a copy of every write until something is submitted.
#[test]
fn writes_do_not_pile_up() -> Result<()> {
    const WRITES: usize = 192;
    const FLOATS: usize = 1 << 18;
    for (device, queue) in devices(wgpu::Features::empty()) {
        let context = Context::from_wgpu(device.clone(), queue);
        let held = || {
            device
                .generate_allocator_report()
                .map(|r| r.total_allocated_bytes)
        };
        let tensor = Tensor::zeros(&context, &[FLOATS], Element::Float)?;
        let Some(before) = held() else {
            eprintln!("{}: does not say how much memory it holds", context.name());
            continue;
        };
        let mut values = vec![0.0; FLOATS];
        let mut most = 0;
        for nth in 0..WRITES {
            values[nth] = nth as f32;
            tensor.write(&values)?;
            most = most.max(held().unwrap_or(0).saturating_sub(before));
        }
        let all = (4 * FLOATS * WRITES) as u64;
        assert!(most < all / 2, "{}: {most} of {all} bytes", context.name());
        assert_eq!(tensor.read()?, values);
    }
    Ok(())
}
