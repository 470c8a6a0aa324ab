//! A device that is lost: every call says so with the reason, whoever lost it and when, and the way back.
#![cfg(feature = "gpu")]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use common::refusal;
use ndarray::{Array2, Array3};
use wgrnn::kernel::Element;
use wgrnn::rng::Rng;
use wgrnn::{Context, Error, Layer, Result, Rnn, Size, Tensor, ndarray, wgpu};

const SIZE: Size = Size { steps: 2, batch: 1 };

fn layer(context: &Context) -> Result<Layer> {
    Rnn::new(2, 3).seed(5).build(context)
}

/// A device of each adapter as this crate opens it, and one as a host does.
fn contexts() -> Vec<Context> {
    let portable = common::portable_devices().into_iter();
    let hosts = portable.map(|(device, queue)| Context::from_wgpu(device, queue));
    common::adapters().into_iter().chain(hosts).collect()
}

fn destroy(context: &Context) {
    context.wgpu().unwrap().0.destroy();
}

#[track_caller]
fn assert_lost<T>(what: &str, result: Result<T>) {
    match result {
        Err(Error::Device { reason, .. }) if reason.contains("destroyed") => {}
        Err(e) => panic!("{what}: {e}"),
        Ok(_) => panic!("{what}: it was accepted"),
    }
}

#[test]
fn every_call_says_so() -> Result<()> {
    for context in contexts() {
        let layer = layer(&context)?;
        let (call, streams) = (layer.training(SIZE)?, layer.streams(2)?);
        let archive = layer.to_archive()?;
        let x = Array3::<f32>::ones((2, 1, 2));
        layer.forward(x.view(), None)?;
        call.forward()?;
        let state = call.state()?;
        streams.advance(&[0])?;
        let pending = call.y().read_async();
        destroy(&context);

        assert_lost("an earlier read_async", {
            context
                .wgpu()
                .unwrap()
                .0
                .poll(wgpu::PollType::wait_indefinitely())
                .unwrap();
            let _ = pollster::block_on(pending);
            context.wait()
        });
        assert_lost("write", call.x().write(&[1.0; 4]));
        assert_lost("read", call.y().read());
        assert_lost("read_async", pollster::block_on(call.y().read_async()));
        assert_lost("to_array", call.y().to_array());
        assert_lost("forward", call.forward());
        assert_lost("backward", call.backward());
        assert_lost("carry", call.carry());
        assert_lost("state", call.state());
        assert_lost("set_initial", call.set_initial(Some(&state)));
        assert_lost("zero_gradients", call.zero_gradients());
        assert_lost("run_step", streams.run_step());
        let one = Array2::<f32>::zeros((1, 2));
        assert_lost("step", streams.step(&[1], one.view()));
        assert_lost("advance", streams.advance(&[1]));
        assert_lost("stream state", streams.state(0));
        assert_lost("reset", streams.reset(0));
        assert_lost("streams prepare", streams.prepare());
        assert_lost("to_archive", layer.to_archive());
        assert_lost("load", layer.load(&archive));
        assert_lost("set_weight", layer.set_weight("bias_ih_l0", &[0.0; 3]));
        assert_lost("prepare", layer.prepare());
        assert_lost("initialise", layer.initialise(1));
        assert_lost("Layer::forward", layer.forward(x.view(), None));
        let longer = Array3::<f32>::ones((3, 1, 2));
        assert_lost(
            "Layer::forward of another size",
            layer.forward(longer.view(), None),
        );
        assert_lost("inference", layer.inference(SIZE));
        assert_lost("training", layer.training(SIZE));
        assert_lost("streams", layer.streams(1));
        assert_lost("build", self::layer(&context));
        assert_lost("zeros", Tensor::zeros(&context, &[4], Element::Float));
        assert_lost("wait", context.wait());
        let (device, _) = context.wgpu().unwrap();
        if device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            assert_lost("run_timed", call.program().run_timed(&["forward"]));
            assert_lost("profile", call.program().profile("forward"));
        }
        let buffer = device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 16,
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        });
        let wrapped = Tensor::from_buffer(&context, buffer, 0, &[4], Element::Float);
        assert_lost("from_buffer", wrapped);
    }
    Ok(())
}

/// Recording into a host's encoder asks nothing of the device, but what is known to be lost is not recorded.
#[test]
fn recording_says_so_once_it_is_known() -> Result<()> {
    for context in contexts() {
        let layer = layer(&context)?;
        let (call, (device, queue)) = (layer.inference(SIZE)?, context.wgpu().unwrap());
        let mut before = device.create_command_encoder(&Default::default());
        destroy(&context);
        let mut after = device.create_command_encoder(&Default::default());
        for encoder in [&mut before, &mut after] {
            // Either is right; a panic is not.
            let _ = call.record_forward(encoder);
        }
        queue.submit([before.finish(), after.finish()]);
        assert_lost("wait", context.wait());
        let mut encoder = device.create_command_encoder(&Default::default());
        assert_lost("record_forward", call.record_forward(&mut encoder));
        assert_lost("record_prepare", layer.record_prepare(&mut encoder));
    }
    Ok(())
}

/// What was told to the callbacks of [`Context::on_lost`].
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    fn listen(&self, context: &Context) {
        let told = self.0.clone();
        context.on_lost(move |reason| told.lock().unwrap().push(reason.to_owned()));
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

#[test]
fn a_device_of_our_own_calls_back_when_it_is_polled() -> Result<()> {
    for context in common::adapters() {
        let told = Told::default();
        told.listen(&context);
        assert_eq!(context.lost(), None);
        layer(&context)?;
        assert!(told.all().is_empty());
        destroy(&context);
        // As any frame of a host would.
        let (device, _) = context.wgpu().unwrap();
        device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
        assert_eq!(told.all(), ["it was destroyed"]);
        assert_eq!(context.lost().as_deref(), Some("it was destroyed"));
        told.listen(&context.clone());
        assert_eq!(told.all().len(), 2, "the late listener is told at once");
    }
    assert_eq!(Context::cpu().lost(), None);
    Ok(())
}

/// A host's device has one place for a callback, which stays the host's.
#[test]
fn a_hosts_callback_stays() -> Result<()> {
    for (device, queue) in common::portable_devices() {
        let calls = Arc::new(AtomicUsize::new(0));
        let hosts = calls.clone();
        device.set_device_lost_callback(move |_, _| {
            hosts.fetch_add(1, Ordering::SeqCst);
        });
        let (context, told) = (Context::from_wgpu(device.clone(), queue), Told::default());
        told.listen(&context);
        layer(&context)?;
        device.destroy();
        device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
        assert_eq!(calls.load(Ordering::SeqCst), 1, "the host is called");
        assert!(told.all().is_empty(), "nobody has told the context");
        assert_lost("zeros", Tensor::zeros(&context, &[1], Element::Float));
        assert_eq!(told.all(), ["it was lost or destroyed"]);
        assert_eq!(context.lost().as_deref(), Some("it was lost or destroyed"));
    }
    Ok(())
}

#[test]
fn a_host_passes_the_news_on() -> Result<()> {
    for (device, queue) in common::portable_devices() {
        let (context, told) = (Context::from_wgpu(device.clone(), queue), Told::default());
        told.listen(&context);
        let pass_on = context.lost_handler();
        device.set_device_lost_callback(move |reason, message| {
            pass_on(reason, format!("{message}the host is told as well"));
        });
        device.destroy();
        device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
        let reason = "it was destroyed: the host is told as well";
        assert_eq!(told.all(), [reason]);
        match refusal(context.wait()) {
            Error::Device { reason: got, .. } => assert_eq!(got, reason),
            other => panic!("{other:?}"),
        }
    }
    Ok(())
}

/// The device goes while another thread is in the middle of whatever it does.
#[test]
fn lost_in_the_middle() -> Result<()> {
    let rounds = if common::thorough() { 60 } else { 8 };
    for (nth, adapter) in common::present().iter().enumerate() {
        let mut rng = Rng::new(nth as u64 + 1);
        for round in 0..rounds {
            let context = pollster::block_on(Context::from_adapter(adapter))?;
            if round % 2 == 1 {
                // With pipelines at hand the threads are in their calls, else mostly in building them.
                train(&context)?;
            }
            let pause = Duration::from_micros(rng.uniforms(1, 0.0, 40_000.0)[0] as u64);
            let ended = AtomicUsize::new(0);
            thread::scope(|scope| {
                let works = [
                    scope.spawn(|| until_lost(&context, build)),
                    scope.spawn(|| until_lost(&context, train)),
                ];
                // A host that polls frees what a lost device had, in the middle of calls.
                scope.spawn(|| {
                    let (device, _) = context.wgpu().unwrap();
                    while ended.load(Ordering::SeqCst) == 0 {
                        device.poll(wgpu::PollType::Poll).unwrap();
                        thread::sleep(Duration::from_micros(200));
                    }
                });
                thread::sleep(pause);
                destroy(&context);
                let ends = works.map(thread::ScopedJoinHandle::join);
                ended.store(1, Ordering::SeqCst);
                for end in ends {
                    match end.expect("no panic") {
                        Error::Device { reason, .. } => {
                            assert!(reason.contains("destroyed"), "round {round}: {reason}");
                        }
                        other => panic!("round {round}: {other}"),
                    }
                }
            });
        }
    }
    Ok(())
}

/// The error with which `work` ends, again and again.
fn until_lost(context: &Context, work: impl Fn(&Context) -> Result<()>) -> Error {
    loop {
        if let Err(e) = work(context) {
            return e;
        }
    }
}

fn build(context: &Context) -> Result<()> {
    let layer = layer(context)?;
    let x = Array3::<f32>::ones((2, 1, 2));
    layer.forward(x.view(), None)?;
    layer.load(&layer.to_archive()?)
}

fn train(context: &Context) -> Result<()> {
    let (layer, one) = (layer(context)?, Array2::<f32>::zeros((1, 2)));
    let (call, streams) = (layer.training(SIZE)?, layer.streams(1)?);
    for _ in 0..20 {
        call.x().write(&[1.0; 4])?;
        call.forward()?;
        call.backward()?;
        call.state()?;
        streams.step(&[0], one.view())?;
        pollster::block_on(async {
            let copy = call.dx()?.read_async();
            context.wait()?;
            copy.await
        })?;
    }
    Ok(())
}

/// Weights that were kept go on, on a new device.
#[test]
fn the_way_back() -> Result<()> {
    for adapter in common::present() {
        let open = || pollster::block_on(Context::from_adapter(&adapter));
        let x = Array3::from_shape_fn((2, 1, 2), |(t, _, i)| (t + 2 * i) as f32 / 4.0);
        let layer = layer(&open()?)?;
        let (kept, want) = (layer.to_archive()?, layer.forward(x.view(), None)?);
        destroy(layer.context());
        assert_lost("forward", layer.forward(x.view(), None));

        assert!(layer.context().lost().is_some());
        let context = open()?;
        let anew = Layer::new(&context, *layer.spec(), 0)?;
        anew.load(&kept)?;
        assert_eq!(anew.forward(x.view(), None)?, want);
        assert_eq!(context.lost(), None);
    }
    Ok(())
}
