//! What is refused, and with which fields; and what a NaN or an infinity does, which are not refused.

mod common;

use common::refusal;
use wgrnn::cell;
use wgrnn::kernel::Element;
use wgrnn::kernels::copy::copy;
use wgrnn::kernels::gemm::Gemm;
use wgrnn::ndarray::Array3;
use wgrnn::plan::sequence::{LayerSpec, StepForm, Strategy};
use wgrnn::plan::{Builder, Force, Matrix, Role};
use wgrnn::rng::Rng;
use wgrnn::train::{Evaluator, LanguageModel, ModelSpec, Optimizer, Trainer, TrainerSpec};
use wgrnn::{Context, Error, Gru, Layer, Lstm, Program, Result, Rnn, Size, State, Tensor};

const SIZE: Size = Size { steps: 3, batch: 2 };

fn value_arg<T>(result: Result<T>) -> String {
    match refusal(result) {
        Error::Value { arg, .. } => arg,
        other => panic!("{other:?}"),
    }
}

fn shape_arg<T>(result: Result<T>) -> String {
    match refusal(result) {
        Error::Shape { arg, .. } => arg,
        other => panic!("{other:?}"),
    }
}

fn unsupported<T>(result: Result<T>) -> String {
    match refusal(result) {
        Error::Unsupported { needs, .. } => needs,
        other => panic!("{other:?}"),
    }
}

#[test]
fn sizes_of_zero() -> Result<()> {
    let cpu = Context::cpu();
    assert_eq!(value_arg(Lstm::new(0, 4).build(&cpu)), "input_size");
    assert_eq!(value_arg(Gru::new(3, 0).build(&cpu)), "hidden_size");
    let layer = Rnn::new(3, 4).build(&cpu)?;
    let size = |steps, batch| Size { steps, batch };
    assert_eq!(value_arg(layer.inference(size(0, 2))), "steps");
    assert_eq!(value_arg(layer.training(size(2, 0))), "batch");
    assert_eq!(value_arg(layer.streams(0)), "count");
    for shape in [(0, 2, 3), (2, 0, 3)] {
        let x = Array3::<f32>::zeros(shape);
        assert!(matches!(
            refusal(layer.forward(x.view(), None)),
            Error::Value { .. }
        ));
    }
    Ok(())
}

#[test]
fn shapes() -> Result<()> {
    let cpu = Context::cpu();
    let layer = Lstm::new(3, 4).build(&cpu)?;
    let x = Array3::<f32>::zeros((2, 2, 5));
    assert_eq!(shape_arg(layer.forward(x.view(), None)), "x");
    let x = Array3::<f32>::zeros((2, 2, 3));
    let state = |rows, cols, c: bool| State {
        h: Array3::zeros((1, rows, cols)),
        c: c.then(|| Array3::zeros((1, rows, cols))),
    };
    for wrong in [state(3, 4, true), state(2, 5, true)] {
        assert_eq!(shape_arg(layer.forward(x.view(), Some(&wrong))), "h");
    }
    let c = State {
        c: Some(Array3::zeros((1, 2, 3))),
        ..state(2, 4, true)
    };
    assert_eq!(shape_arg(layer.forward(x.view(), Some(&c))), "c");
    let without = layer.forward(x.view(), Some(&state(2, 4, false)));
    assert_eq!(value_arg(without), "state");

    let sequence = layer.training(SIZE)?;
    assert_eq!(
        shape_arg(sequence.x().write(&[0.0; 17])),
        "number of values"
    );
    assert_eq!(shape_arg(sequence.dy()?.write_f64(&[])), "number of values");
    assert_eq!(value_arg(sequence.x().write_uint(&[0; 18])), "tensor");
    assert_eq!(value_arg(sequence.x().read_uint()), "tensor");
    assert_eq!(value_arg(sequence.x().rows(1..4)), "rows");
    assert_eq!(shape_arg(sequence.x().reshaped(&[19])), "shape");
    assert_eq!(value_arg(layer.set_weight("weight_ih_l1", &[])), "name");
    assert_eq!(
        shape_arg(layer.set_weight("weight_ih_l0", &[0.0; 3])),
        "number of values"
    );
    assert_eq!(value_arg(sequence.program().run("sideways")), "name");
    assert_eq!(value_arg(sequence.program().named("nothing")), "name");
    Ok(())
}

#[test]
fn a_cell_without_c() -> Result<()> {
    let layer = Gru::new(3, 4).build(&Context::cpu())?;
    let sequence = layer.training(SIZE)?;
    for tensor in [sequence.c0(), sequence.cn(), sequence.dcn(), sequence.dc0()] {
        assert!(unsupported(tensor).contains('c'));
    }
    let state = State {
        h: Array3::zeros((1, 2, 4)),
        c: Some(Array3::zeros((1, 2, 4))),
    };
    assert_eq!(value_arg(sequence.set_initial(Some(&state))), "state");
    Ok(())
}

#[test]
fn gradients_of_inference() -> Result<()> {
    let sequence = Lstm::new(3, 4).build(&Context::cpu())?.inference(SIZE)?;
    assert!(unsupported(sequence.backward()).contains("gradients"));
    assert!(unsupported(sequence.dy()).contains("gradients"));
    assert!(unsupported(sequence.dx()).contains("gradients"));
    assert!(unsupported(sequence.dh0()).contains("gradients"));
    assert!(unsupported(sequence.gradients()).contains("gradients"));
    Ok(())
}

#[test]
fn memory_of_another_device_or_shape() -> Result<()> {
    let plan = || -> Result<_> {
        let mut b = Builder::new("copy");
        let [x, y] = ["x", "y"].map(|name| b.float(name, &[4], Role::State));
        copy(&mut b, (x, 0), (y, 0), 4)?;
        Ok((b.finish(), x))
    };
    let bound = |tensor: Tensor| {
        let (plan, x) = plan()?;
        Program::new(&Context::cpu(), plan, &[(x, tensor)])
    };
    let tensor =
        |context: &Context, shape: &[usize], element| Tensor::zeros(context, shape, element);
    bound(tensor(&Context::cpu(), &[4], Element::Float)?)?;
    let other = bound(tensor(&Context::cpu_f64(), &[4], Element::Float)?);
    assert_eq!(value_arg(other), "x");
    for wrong in [
        tensor(&Context::cpu(), &[2, 2], Element::Float)?,
        tensor(&Context::cpu(), &[4], Element::Uint)?,
    ] {
        assert_eq!(shape_arg(bound(wrong)), "x");
    }
    Ok(())
}

#[test]
fn no_such_device() {
    match refusal(Context::open("no adapter is called this")) {
        Error::NoAdapter { asked, .. } => assert_eq!(asked, "no adapter is called this"),
        other => panic!("{other:?}"),
    }
}

/// A NaN at one step of one sequence reaches all that depends on it, and nothing else.
fn nan_propagates(context: &Context) -> Result<()> {
    for cell in cell::ALL {
        let spec = LayerSpec::new(cell, 3, 5);
        let Size { steps, batch } = SIZE;
        let sequence = Layer::new(context, spec, 1)?.training(SIZE)?;
        let mut rng = Rng::new(3);
        let mut x = rng.uniforms(steps * batch * 3, -1.0, 1.0);
        x[batch * 3] = f32::NAN; // step 1, sequence 0
        sequence.x().write(&x)?;
        let features = spec.features();
        let dy = rng.uniforms(steps * batch * features, -1.0, 1.0);
        sequence.dy()?.write(&dy)?;
        sequence.forward()?;
        sequence.backward()?;
        let (y, dx) = (sequence.y().read()?, sequence.dx()?.read()?);
        for t in 0..steps {
            for n in 0..batch {
                let (row, name) = (t * batch + n, cell.name);
                let y = &y[row * features..(row + 1) * features];
                let dx = &dx[row * 3..(row + 1) * 3];
                let nan = |values: &[f32]| values.iter().all(|v| v.is_nan());
                let finite = |values: &[f32]| values.iter().all(|v| v.is_finite());
                if n == 0 && t >= 1 {
                    assert!(nan(y), "{name}: y[{t}, {n}] = {y:?}");
                } else {
                    assert!(finite(y), "{name}: y[{t}, {n}] = {y:?}");
                }
                // The slope of max(x, 0) is 0 or 1 whatever x is, so there nothing is lost or gained.
                if n == 0 && name != "rnn_relu" {
                    assert!(nan(dx), "{name}: dx[{t}, {n}] = {dx:?}");
                } else {
                    assert!(finite(dx), "{name}: dx[{t}, {n}] = {dx:?}");
                }
            }
        }
        for (name, gradient) in sequence.gradients()? {
            if name.starts_with("weight_ih") {
                assert!(gradient.read()?.iter().any(|v| v.is_nan()), "{name}");
            }
        }
    }
    Ok(())
}

#[test]
fn nan_propagates_on_the_cpu() -> Result<()> {
    nan_propagates(&Context::cpu())?;
    nan_propagates(&Context::cpu_f64())
}

/// An infinite last unit or last weight makes a sum infinite, and no NaN, though kernels read it again where there is
/// nothing to be read.
fn infinity_stays(context: &Context) -> Result<()> {
    let size = Size {
        steps: 1,
        batch: 20,
    };
    let forms = StepForm::ALL.map(|form| (Strategy::Steps, Some(form)));
    for (strategy, step) in forms.into_iter().chain([(Strategy::Sequence, None)]) {
        let forced = context.forcing(Force {
            strategy: Some(strategy),
            step,
            ..Force::default()
        });
        for (unit, weight) in [(f32::INFINITY, 0.5), (0.5, f32::INFINITY)] {
            let hidden = 13;
            let layer = Layer::new(&forced, LayerSpec::new(&cell::RNN_RELU, 3, hidden), 1)?;
            let last = |value: f32, other: f32| {
                let row = (0..hidden).map(move |j| if j + 1 == hidden { value } else { other });
                row.collect::<Vec<f32>>()
            };
            layer.set_weight("weight_hh_l0", &last(weight, 0.5).repeat(hidden))?;
            layer.prepare()?;
            let sequence = layer.inference(size)?;
            sequence.h0().write(&last(unit, 0.0).repeat(size.batch))?;
            sequence.forward()?;
            let y = sequence.y().read()?;
            let what = format!("{}: {strategy:?} {step:?} {unit} {weight}", context.name());
            assert!(y.iter().all(|&v| v == f32::INFINITY), "{what}: {y:?}");
        }
    }
    Ok(())
}

#[test]
fn infinity_stays_everywhere() -> Result<()> {
    infinity_stays(&Context::cpu())?;
    infinity_stays(&Context::cpu_f64())?;
    common::adapters().iter().try_for_each(infinity_stays)
}

#[cfg(feature = "gpu")]
mod gpu {
    use super::*;
    use wgrnn::Reset;
    use wgrnn::wgpu::{self, Limits};

    #[test]
    fn nan_propagates_on_every_adapter() -> Result<()> {
        common::adapters().iter().try_for_each(nan_propagates)
    }

    #[test]
    fn recording_on_the_cpu() -> Result<()> {
        let Some(context) = common::adapters().into_iter().next() else {
            return Ok(());
        };
        let (device, _) = context.wgpu().unwrap();
        let mut encoder = device.create_command_encoder(&Default::default());
        let layer = Lstm::new(3, 4).build(&Context::cpu())?;
        let sequence = layer.training(SIZE)?;
        assert!(unsupported(sequence.record_forward(&mut encoder)).contains("recording"));
        assert!(unsupported(sequence.record_backward(&mut encoder)).contains("recording"));
        assert!(unsupported(layer.record_prepare(&mut encoder)).contains("recording"));
        let on_gpu = Lstm::new(3, 4).build(&context)?.inference(SIZE)?;
        assert!(unsupported(on_gpu.record_backward(&mut encoder)).contains("gradients"));
        Ok(())
    }

    #[test]
    fn tensors_of_a_gpu_and_of_the_cpu() -> Result<()> {
        for context in common::adapters() {
            let mut b = Builder::new("copy");
            let [x, y] = ["x", "y"].map(|name| b.float(name, &[4], Role::State));
            copy(&mut b, (x, 0), (y, 0), 4)?;
            let plan = b.finish();
            let on_cpu = Tensor::zeros(&Context::cpu(), &[4], Element::Float)?;
            let on_gpu = Tensor::zeros(&context, &[4], Element::Float)?;
            let bind = |context: &Context, tensor: &Tensor| {
                Program::new(context, plan.clone(), &[(x, tensor.clone())])
            };
            assert_eq!(value_arg(bind(&context, &on_cpu)), "x");
            assert_eq!(value_arg(bind(&Context::cpu(), &on_gpu)), "x");
            bind(&context, &on_gpu)?;
        }
        Ok(())
    }

    /// A device of each adapter that was opened with less than the adapter has.
    fn with_limits(lower: impl Fn(&mut Limits)) -> Vec<Context> {
        let opened = common::present().into_iter().map(|adapter| {
            let mut required_limits = adapter.limits();
            lower(&mut required_limits);
            let (device, queue) =
                pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
                    required_limits,
                    ..Default::default()
                }))
                .unwrap();
            Context::from_wgpu(device, queue)
        });
        opened.collect()
    }

    fn limit<T>(result: Result<T>) -> (String, u64, u64) {
        match refusal(result) {
            Error::Limit {
                what,
                needed,
                available,
            } => (what, needed, available),
            other => panic!("{other:?}"),
        }
    }

    /// A layer that wants W_hh transposed.
    fn reset_before() -> Gru {
        Gru::new(3, 4).reset(Reset::Before)
    }

    #[test]
    fn too_few_invocations() -> Result<()> {
        for context in with_limits(|l| l.max_compute_invocations_per_workgroup = 64) {
            let (what, needed, available) = limit(reset_before().build(&context));
            assert_eq!(what, "transpose: invocations per workgroup");
            assert_eq!((needed, available), (256, 64));
            // There is another way for others.
            Lstm::new(3, 4).build(&context)?.training(SIZE)?;
        }
        Ok(())
    }

    #[test]
    fn too_little_workgroup_memory() -> Result<()> {
        for context in with_limits(|l| l.max_compute_workgroup_storage_size = 1024) {
            let (what, needed, available) = limit(reset_before().build(&context));
            assert_eq!(what, "transpose: bytes of workgroup memory");
            assert_eq!((needed, available), (1088, 1024));
        }
        // Products have a form without any.
        for context in with_limits(|l| l.max_compute_workgroup_storage_size = 2048) {
            Lstm::new(3, 4).build(&context)?.training(SIZE)?;
        }
        Ok(())
    }

    #[test]
    fn too_few_storage_buffers() -> Result<()> {
        for context in with_limits(|l| l.max_storage_buffers_per_shader_stage = 6) {
            // GRU's forward kernel binds six buffers, LSTM's eight.
            Gru::new(3, 4).build(&context)?.inference(SIZE)?;
            let (what, needed, available) = limit(Lstm::new(3, 4).build(&context)?.inference(SIZE));
            // Whichever kernel the device's kind gets.
            assert!(
                what.starts_with("lstm.") && what.ends_with("storage buffers per stage"),
                "{what}"
            );
            assert_eq!((needed, available), (8, 6));
        }
        Ok(())
    }

    #[test]
    fn too_small_bindings() -> Result<()> {
        for context in with_limits(|l| l.max_storage_buffer_binding_size = 1 << 16) {
            let layer = Lstm::new(3, 16).build(&context)?;
            layer.training(SIZE)?;
            let (what, needed, available) = limit(Lstm::new(3, 128).build(&context));
            assert_eq!(what, "bytes of one buffer");
            assert_eq!((needed, available), (4 * 128 * 128 * 4, 1 << 16));
            let long = Size {
                steps: 2000,
                batch: 1,
            };
            assert_eq!(limit(layer.training(long)).2, 1 << 16);
        }
        Ok(())
    }

    #[test]
    fn too_few_workgroups() -> Result<()> {
        for context in with_limits(|l| l.max_compute_workgroups_per_dimension = 8) {
            let layer = Rnn::new(3, 16).build(&context)?;
            layer.training(SIZE)?;
            let (what, needed, available) = limit(layer.training(Size {
                steps: 2,
                batch: 4 * 9,
            }));
            // 36 sequences of 16 units are 9 workgroups of the first kernel, which carries the state.
            assert_eq!(what, "copy.copy: workgroups per dimension");
            assert_eq!((needed, available), (9, 8));
        }
        Ok(())
    }

    #[test]
    fn buffers_of_the_host() {
        for context in common::adapters() {
            let (device, _) = context.wgpu().unwrap();
            let buffer = |usage| {
                device.create_buffer(&wgpu::BufferDescriptor {
                    label: None,
                    size: 1024,
                    usage,
                    mapped_at_creation: false,
                })
            };
            let tensor = |buffer, offset, len| {
                Tensor::from_buffer(&context, buffer, offset, &[len], Element::Float)
            };
            use wgpu::BufferUsages as Usage;
            assert_eq!(value_arg(tensor(buffer(Usage::COPY_DST), 0, 4)), "buffer");
            let storage = buffer(Usage::STORAGE);
            assert_eq!(value_arg(tensor(storage.clone(), 0, 257)), "buffer");
            assert_eq!(value_arg(tensor(storage.clone(), 256, 193)), "buffer");
            assert_eq!(value_arg(tensor(storage.clone(), 4, 4)), "offset");
            let read_only = tensor(storage.clone(), 256, 192).unwrap();
            assert_eq!(value_arg(read_only.write(&[0.0; 192])), "buffer");
            let cpu = Tensor::from_buffer(&Context::cpu(), storage, 0, &[4], Element::Float);
            assert_eq!(value_arg(cpu), "context");
        }
    }
}

/// Two parts of one buffer, of which a step writes one.
fn parts_of_one_buffer(context: &Context) -> Result<()> {
    let mut b = Builder::new("parts");
    let from = b.float("from", &[64], Role::Input);
    let to = b.float("to", &[64], Role::Output);
    copy(&mut b, (from, 0), (to, 0), 64)?;
    let plan = b.finish();
    let both = Tensor::zeros(context, &[128], Element::Float)?;
    let (one, two) = (both.rows(0..64)?, both.rows(64..128)?);
    let bound = [(from, one.clone()), (to, two)];
    let e = Program::new(context, plan.clone(), &bound).unwrap_err();
    assert!(
        matches!(&e, Error::Value { arg, .. } if arg == "destination"),
        "{e}"
    );
    Program::new(context, plan, &[(from, one)])?.run("main")
}

#[test]
fn parts_of_one_buffer_on_the_cpu() -> Result<()> {
    parts_of_one_buffer(&Context::cpu())
}

#[cfg(feature = "gpu")]
#[test]
fn parts_of_one_buffer_on_every_adapter() -> Result<()> {
    common::adapters().iter().try_for_each(parts_of_one_buffer)
}

#[test]
fn sizes_whose_products_overflow() {
    let context = Context::cpu();
    let huge = usize::MAX;
    assert!(Tensor::zeros(&context, &[huge, 2], Element::Float).is_err());
    for (steps, batch) in [(huge, 2), (2, huge), (huge, huge)] {
        let layer = Rnn::new(3, 4).build(&context).unwrap();
        assert!(layer.training(Size { steps, batch }).is_err());
        let spec = ModelSpec {
            vocabulary: 5,
            layer: *layer.spec(),
        };
        let model = LanguageModel::new(&context, spec, 0).unwrap();
        let spec = TrainerSpec {
            size: Size { steps, batch },
            optimizer: Optimizer::default(),
            clip: 1.0,
            dropout: 0.0,
            seed: 0,
        };
        assert!(Trainer::new(&model, spec).is_err());
        assert!(Evaluator::new(&model, spec.size).is_err());
    }
    let mut b = Builder::new("overflow");
    let x = b.float("x", &[4], Role::Input);
    let y = b.float("y", &[4], Role::Output);
    assert!(copy(&mut b, (x, huge), (y, 0), 2).is_err());
    assert!(copy(&mut b, (x, 0), (y, 1), huge).is_err());
}

#[test]
fn a_product_whose_result_overlaps() {
    let mut b = Builder::new("overlap");
    let a = b.float("a", &[16], Role::Input);
    let w = b.float("w", &[16], Role::Input);
    let c = b.float("c", &[16], Role::Output);
    let [a, w, c] = [a, w, c].map(|id| Matrix::dense(id, 4, 4));
    for (row_stride, col_stride) in [(0, 1), (1, 0), (3, 1), (1, 1)] {
        let c = Matrix {
            row_stride,
            col_stride,
            ..c
        };
        assert!(
            Gemm::new(a, w, c).push(&mut b).is_err(),
            "{row_stride} {col_stride}"
        );
    }
    Gemm::new(a, w, c.t()).push(&mut b).unwrap();
}
