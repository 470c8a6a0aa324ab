//! Inside a host: its own device and queue, its own encoder with its own commands around ours, one
//! submission.
#![cfg(feature = "gpu")]

mod common;

use wgrnn::check::{compare, tolerance};
use wgrnn::kernel::Element;
use wgrnn::kernels::gemm::Gemm;
use wgrnn::plan::sequence::Strategy;
use wgrnn::plan::{Builder, Force, Matrix, Portion, Role};
use wgrnn::rng::Rng;
use wgrnn::wgpu::{self, BufferUsages};
use wgrnn::{Context, Dtype, Layer, Lstm, Program, Result, Size, Tensor};

const SIZE: Size = Size { steps: 6, batch: 3 };
const INPUT: usize = 5;
const HIDDEN: usize = 20;

/// A program that owns a device, made with the limits that every WebGPU device has.
struct Host {
    device: wgpu::Device,
    queue: wgpu::Queue,
    context: Context,
}

fn hosts() -> Vec<Host> {
    let host = |(device, queue): (wgpu::Device, wgpu::Queue)| Host {
        context: Context::from_wgpu(device.clone(), queue.clone()),
        device,
        queue,
    };
    common::portable_devices().into_iter().map(host).collect()
}

impl Host {
    fn buffer(&self, len: usize, usage: BufferUsages) -> wgpu::Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("the host's"),
            size: 4 * len as u64,
            usage,
            mapped_at_creation: false,
        })
    }

    /// A buffer of the host with these values, to copy from.
    fn filled(&self, values: &[f32]) -> wgpu::Buffer {
        let buffer = self.buffer(
            values.len(),
            BufferUsages::COPY_SRC | BufferUsages::COPY_DST,
        );
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.queue.write_buffer(&buffer, 0, &bytes);
        buffer
    }

    fn encoder(&self) -> wgpu::CommandEncoder {
        self.device.create_command_encoder(&Default::default())
    }

    /// Copies a tensor into a new buffer of the host that can be mapped.
    fn copy_out(&self, encoder: &mut wgpu::CommandEncoder, tensor: &Tensor) -> wgpu::Buffer {
        let to = self.buffer(
            tensor.len(),
            BufferUsages::MAP_READ | BufferUsages::COPY_DST,
        );
        let (from, offset) = tensor.buffer().unwrap();
        encoder.copy_buffer_to_buffer(from, offset, &to, 0, to.size());
        to
    }

    fn mapped(&self, buffer: &wgpu::Buffer) -> Vec<f64> {
        buffer.map_async(wgpu::MapMode::Read, .., |mapped| mapped.unwrap());
        self.device
            .poll(wgpu::PollType::wait_indefinitely())
            .unwrap();
        let view = buffer.get_mapped_range(..).unwrap();
        let words = view.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
        words.map(|b| f64::from(f32::from_le_bytes(b))).collect()
    }
}

fn copy_in(encoder: &mut wgpu::CommandEncoder, from: &wgpu::Buffer, tensor: &Tensor) {
    let (to, offset) = tensor.buffer().unwrap();
    encoder.copy_buffer_to_buffer(from, 0, to, offset, from.size());
}

/// The inputs of two calls.
struct Inputs {
    x: [Vec<f32>; 2],
    h0: Vec<f32>,
    dy: Vec<f32>,
}

fn inputs() -> Inputs {
    let mut rng = Rng::new(4);
    let rows = SIZE.steps * SIZE.batch;
    let mut draw = |len| rng.uniforms(len, -1.0, 1.0);
    Inputs {
        x: [draw(rows * INPUT), draw(rows * INPUT)],
        h0: draw(SIZE.batch * HIDDEN),
        dy: draw(rows * HIDDEN),
    }
}

fn layer(context: &Context) -> Result<Layer> {
    Lstm::new(INPUT, HIDDEN).seed(9).build(context)
}

/// y and dx of the first call, y of the second, which goes on from the first; in double precision.
fn expected(inputs: &Inputs) -> Result<[Vec<f64>; 3]> {
    let sequence = layer(&Context::cpu_f64())?.training(SIZE)?;
    sequence.x().write(&inputs.x[0])?;
    sequence.h0().write(&inputs.h0)?;
    sequence.dy()?.write(&inputs.dy)?;
    sequence.forward()?;
    sequence.backward()?;
    let first = [sequence.y().read_f64()?, sequence.dx()?.read_f64()?];
    sequence.carry()?;
    sequence.x().write(&inputs.x[1])?;
    sequence.forward()?;
    let [y, dx] = first;
    Ok([y, dx, sequence.y().read_f64()?])
}

fn assert_close(got: &[f64], want: &[f64], what: &str) {
    let d = compare(got, want);
    let limit = tolerance::layer(Dtype::F32, HIDDEN, 0.0);
    assert!(
        d.error <= limit,
        "{what}[{}] is {}, expected {}",
        d.at,
        d.got,
        d.want
    );
}

#[test]
fn one_submission_of_the_host() -> Result<()> {
    let inputs = inputs();
    let [y1, dx, y2] = expected(&inputs)?;
    for host in hosts() {
        let sequence = layer(&host.context)?.training(SIZE)?;
        let x = inputs.x.each_ref().map(|x| host.filled(x));
        let (h0, dy) = (host.filled(&inputs.h0), host.filled(&inputs.dy));

        let mut encoder = host.encoder();
        copy_in(&mut encoder, &x[0], sequence.x());
        copy_in(&mut encoder, &h0, sequence.h0());
        copy_in(&mut encoder, &dy, sequence.dy()?);
        sequence.record_forward(&mut encoder)?;
        let got_y1 = host.copy_out(&mut encoder, sequence.y());
        sequence.record_backward(&mut encoder)?;
        let got_dx = host.copy_out(&mut encoder, sequence.dx()?);
        // The same plan once more in the same encoder.
        copy_in(&mut encoder, &x[1], sequence.x());
        sequence.record_carry(&mut encoder)?;
        sequence.record_forward(&mut encoder)?;
        let got_y2 = host.copy_out(&mut encoder, sequence.y());

        // Recording has run nothing.
        for tensor in [sequence.x(), sequence.y(), sequence.dx()?] {
            assert!(
                tensor.read()?.iter().all(|v| *v == 0.0),
                "before the submission"
            );
        }
        host.queue.submit([encoder.finish()]);
        assert_close(&host.mapped(&got_y1), &y1, "y");
        assert_close(&host.mapped(&got_dx), &dx, "dx");
        assert_close(&host.mapped(&got_y2), &y2, "y of the second call");
    }
    Ok(())
}

#[test]
fn what_is_never_submitted_never_runs() -> Result<()> {
    let inputs = inputs();
    for host in hosts() {
        let sequence = layer(&host.context)?.training(SIZE)?;
        sequence.x().write(&inputs.x[0])?;
        sequence.forward()?;
        let before = sequence.y().read()?;
        sequence.x().write(&inputs.x[1])?;
        let mut encoder = host.encoder();
        sequence.record_forward(&mut encoder)?;
        drop(encoder.finish());
        host.context.wait()?;
        assert_eq!(sequence.y().read()?, before);
    }
    Ok(())
}

/// A section in several submissions, and one kernel's steps in several dispatches, leave the same bits.
#[test]
fn cut_into_parts() -> Result<()> {
    let inputs = inputs();
    for host in hosts() {
        for strategy in Strategy::ALL {
            let force = Force {
                strategy: Some(strategy),
                ..Force::default()
            };
            let context = host.context.forcing(force);
            let whole = layer(&context)?.inference(SIZE)?;
            whole.x().write(&inputs.x[0])?;
            whole.forward()?;

            let sequence = layer(&context.dispatching(4))?.inference(SIZE)?;
            let program = sequence.program();
            let plan = program.plan();
            let portion = Portion {
                dispatches: 2,
                ..Portion::default()
            };
            let parts = plan.parts(plan.section("forward")?, portion)?;
            assert!(parts.len() > 2, "{strategy:?}: {parts:?}");
            sequence.x().write(&inputs.x[0])?;
            for part in parts {
                let mut encoder = host.encoder();
                program.record_steps(&mut encoder, part)?;
                host.queue.submit([encoder.finish()]);
            }
            assert_eq!(sequence.y().read()?, whole.y().read()?, "{strategy:?}");
            let beyond = plan.steps().len() + 1;
            let mut encoder = host.encoder();
            common::refusal(program.record_steps(&mut encoder, 0..beyond));
        }
    }
    Ok(())
}

#[test]
fn weights_that_the_host_writes() -> Result<()> {
    let inputs = inputs();
    let weight = Rng::new(8).uniforms(4 * HIDDEN * HIDDEN, -0.5, 0.5);
    let on_cpu = layer(&Context::cpu_f64())?;
    on_cpu.set_weight("weight_hh_l0", &weight)?;
    on_cpu.prepare()?;
    let reference = on_cpu.inference(SIZE)?;
    reference.x().write(&inputs.x[0])?;
    reference.forward()?;
    let want = reference.y().read_f64()?;
    for host in hosts() {
        let layer = layer(&host.context)?;
        let sequence = layer.inference(SIZE)?;
        let (new, x) = (host.filled(&weight), host.filled(&inputs.x[0]));
        let mut encoder = host.encoder();
        copy_in(&mut encoder, &new, layer.weight("weight_hh_l0")?);
        layer.record_prepare(&mut encoder)?;
        copy_in(&mut encoder, &x, sequence.x());
        sequence.record_forward(&mut encoder)?;
        let y = host.copy_out(&mut encoder, sequence.y());
        host.queue.submit([encoder.finish()]);
        assert_close(&host.mapped(&y), &want, "y");
    }
    Ok(())
}

#[test]
fn tensors_in_buffers_of_the_host() -> Result<()> {
    let (m, n, k) = (7, 9, 11);
    let mut rng = Rng::new(6);
    let (a, w) = (
        rng.uniforms(m * k, -1.0, 1.0),
        rng.uniforms(k * n, -1.0, 1.0),
    );
    let mut b = Builder::new("product");
    let a_id = b.float("a", &[m, k], Role::Input);
    let w_id = b.float("w", &[k, n], Role::Input);
    let c_id = b.float("c", &[m, n], Role::Output);
    Gemm::new(
        Matrix::dense(a_id, m, k),
        Matrix::dense(w_id, k, n),
        Matrix::dense(c_id, m, n),
    )
    .push(&mut b)?;
    let plan = b.finish();
    let oracle = Program::new(&Context::cpu_f64(), plan.clone(), &[])?;
    oracle.tensor(a_id)?.write(&a)?;
    oracle.tensor(w_id)?.write(&w)?;
    oracle.run("main")?;
    let want = oracle.tensor(c_id)?.read_f64()?;
    for host in hosts() {
        // Inputs side by side in one buffer, the second at the largest alignment a device asks for.
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_DST | BufferUsages::COPY_SRC;
        let inputs = host.buffer(1024, usage);
        let output = host.buffer(m * n, usage);
        let tensor = |buffer: &wgpu::Buffer, offset, shape: &[usize]| {
            Tensor::from_buffer(&host.context, buffer.clone(), offset, shape, Element::Float)
        };
        let bound = [
            (a_id, tensor(&inputs, 512, &[m, k])?),
            (w_id, tensor(&inputs, 1024, &[k, n])?),
            (c_id, tensor(&output, 0, &[m, n])?),
        ];
        let program = Program::new(&host.context, plan.clone(), &bound)?;
        let (a, w) = (host.filled(&a), host.filled(&w));
        let mut encoder = host.encoder();
        encoder.copy_buffer_to_buffer(&a, 0, &inputs, 512, a.size());
        encoder.copy_buffer_to_buffer(&w, 0, &inputs, 1024, w.size());
        program.record(&mut encoder, "main")?;
        let c = host.copy_out(&mut encoder, program.tensor(c_id).unwrap());
        host.queue.submit([encoder.finish()]);
        assert_close(&host.mapped(&c), &want, "c");
    }
    Ok(())
}
