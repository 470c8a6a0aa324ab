//! Loops whose rounds depend on a size, beyond what Mesa's compiler lets an invocation make: split, or refused.
//!
//! The sizes that kernels are compared at elsewhere are too small to see it. Each size here is one that a loop of some
//! kernel runs over, above 65,535 rounds of it; what each loop is bounded by stands beside the kernel, as `Kernel::rounds`.

mod common;

use wgrnn::check::{Status, kernels};
use wgrnn::kernel::compose;
use wgrnn::kernels::ALL;
use wgrnn::kernels::embedding::scatter;
use wgrnn::kernels::gemm::{Form, Gemm};
use wgrnn::kernels::reduce::columns;
use wgrnn::ndarray::{Array2, Array3};
use wgrnn::plan::{Builder, DeviceKind, Force, Matrix, Plan, Role};
use wgrnn::rng::Rng;
use wgrnn::{Context, Error, Gru, Layer, Lstm, Program, Reset, Result, Rnn, Size};

/// The adapters of which the loops may end early.
fn bounded() -> Vec<Context> {
    let all = common::adapters().into_iter();
    all.filter(|c| c.kind() == DeviceKind::Software).collect()
}

/// Which adapters have such a bound is known by what they are.
#[test]
fn software_adapters_are_bounded() {
    assert_eq!(Context::cpu().target().loop_rounds, u64::MAX);
    for context in common::adapters() {
        let software = context.kind() == DeviceKind::Software;
        assert_eq!(context.target().loop_rounds == 65_535, software);
    }
}

fn set_all(layer: &Layer, value: f32) -> Result<()> {
    for (name, tensor) in layer.weights() {
        layer.set_weight(name, &vec![value; tensor.len()])?;
    }
    layer.prepare()
}

/// The gradients of the weights of an RNN of one unit, whose weights are 0, over so many rows in which x and dy are 1.
#[test]
fn gradients_of_weights_over_many_rows() -> Result<()> {
    let size = Size {
        steps: 33,
        batch: 8_000,
    };
    let rows = size.steps * size.batch;
    for context in [vec![Context::cpu()], bounded()].concat() {
        let layer = Rnn::new(1, 1).build(&context)?;
        set_all(&layer, 0.0)?;
        let call = layer.training(size)?;
        call.x().write(&vec![1.0; rows])?;
        call.forward()?;
        call.dy()?.write(&vec![1.0; rows])?;
        call.backward()?;
        for (name, gradient) in call.gradients()? {
            // h is 0 throughout.
            let expected = match name.contains("weight_hh") {
                true => 0.0,
                false => rows as f32,
            };
            assert_eq!(gradient.read()?, [expected], "{} {name}", context.name());
        }
    }
    Ok(())
}

/// Forms of a product over more k than their kernels' loops may have, forced or by the rules.
#[test]
fn products_over_long_k() -> Result<()> {
    // Beyond 65,535 rounds of 4, of 1 and of 16 values of k; and of 256.
    let mut sizes = vec![
        (None, [2, 3], 270_000),
        (Some(Form::Naive), [2, 3], 70_000),
        (Some(Form::Tile32), [1, 1], 1_100_000),
    ];
    if common::thorough() {
        sizes.push((Some(Form::Rows), [1, 1], 16_800_000));
    }
    for context in bounded() {
        for &(form, [m, n], k) in &sizes {
            let forced = context.forcing(Force {
                gemm: form,
                ..Force::default()
            });
            let mut b = Builder::on("long", forced.target());
            let [a, w] = [("a", m), ("b", n)]
                .map(|(name, rows)| Matrix::dense(b.float(name, &[rows, k], Role::Input), rows, k));
            let c = Matrix::dense(b.float("c", &[m, n], Role::Output), m, n);
            Gemm::new(a, w.t(), c).push(&mut b)?;
            let program = Program::new(&forced, b.finish(), &[])?;
            for matrix in [a, w] {
                let ones = vec![1.0; matrix.rows * k];
                program.tensor(matrix.buffer)?.write(&ones)?;
            }
            program.run("main")?;
            // Whole numbers below 2²⁴ are exact in any order.
            let expected = vec![k as f32; m * n];
            let got = program.tensor(c.buffer)?.read()?;
            assert_eq!(got, expected, "{form:?} {m} x {n} x {k}");
        }
    }
    Ok(())
}

#[test]
fn forward_over_many_inputs() -> Result<()> {
    let input = 300_000;
    let x = Array3::<f32>::ones((1, 1, input));
    for context in bounded() {
        let layer = Rnn::new(input, 1).build(&context)?;
        set_all(&layer, 0.0)?;
        layer.set_weight("weight_ih_l0", &vec![1.0 / input as f32; input])?;
        layer.prepare()?;
        let y = layer.forward(x.view(), None)?.y[[0, 0, 0]];
        assert!((y - 1f32.tanh()).abs() < 1e-4, "{y}");
    }
    Ok(())
}

/// One id, as often as no loop may go round.
#[test]
fn an_embedding_of_one_id() -> Result<()> {
    let tokens = 140_000;
    for context in [vec![Context::cpu()], bounded()].concat() {
        let mut b = Builder::on("scatter", context.target());
        let ids = b.uint("ids", &[tokens], Role::Input);
        let doutput = b.float("doutput", &[tokens, 2], Role::Input);
        let dtable = b.float("dtable", &[3, 2], Role::Gradient);
        scatter(&mut b, ids, doutput, dtable)?;
        let program = Program::new(&context, b.finish(), &[])?;
        program.tensor(ids)?.write_uint(&vec![1; tokens])?;
        program.tensor(doutput)?.write(&vec![1.0; 2 * tokens])?;
        // Twice, since the first part writes and the others add.
        for _ in 0..2 {
            program.run("main")?;
            let sum = tokens as f32;
            let expected = [0.0, 0.0, sum, sum, 0.0, 0.0];
            assert_eq!(
                program.tensor(dtable)?.read()?,
                expected,
                "{}",
                context.name()
            );
        }
    }
    Ok(())
}

/// More steps of a dispatch than its loop may have rounds, with what a host asks for as the only other bound.
#[test]
fn all_steps_in_one_dispatch() -> Result<()> {
    let steps = 70_000;
    let x = Array3::from_shape_fn((steps, 1, 2), |(t, _, i)| {
        ((t * 7 + i * 3) % 11) as f32 / 11.0
    });
    for context in bounded() {
        let layer = |context: &Context| Lstm::new(2, 4).seed(5).build(context);
        let want = layer(&Context::cpu())?.forward(x.view(), None)?.y;
        let got = layer(&context.dispatching(1_000_000))?
            .forward(x.view(), None)?
            .y;
        let worst = (&got - &want)
            .mapv(f32::abs)
            .into_iter()
            .fold(0.0, f32::max);
        assert!(worst < 1e-4, "{worst}");
    }
    Ok(())
}

/// Steps whose sums run over more inputs or units than a loop may have rounds are refused, with the numbers.
#[test]
fn what_cannot_be_split_is_refused() -> Result<()> {
    let refused = |result: Result<()>, kernel: &str, least: u64| match result {
        Err(Error::Limit {
            what,
            needed,
            available,
        }) => {
            assert!(
                what.starts_with(kernel) && what.contains("rounds"),
                "{what}"
            );
            assert!(
                needed > least && available == 65_535,
                "{needed} {available}"
            );
        }
        other => panic!("{kernel}: {other:?}"),
    };
    for context in bounded() {
        let gru = Gru::new(70_000, 1).reset(Reset::Before).build(&context)?;
        refused(gru.streams(1).map(drop), "gru_before.reset_gate", 70_000);
        // Eight or four inputs at a time are few enough.
        let lstm = Lstm::new(70_000, 1).build(&context)?;
        set_all(&lstm, 0.0)?;
        lstm.set_weight(
            "weight_ih_l0",
            &[vec![0.0; 140_000], vec![1e-5; 70_000], vec![0.0; 70_000]].concat(),
        )?;
        let streams = lstm.streams(1)?;
        let y = streams.step(&[0], Array2::ones((1, 70_000)).view())?[[0, 0]];
        let g = 0.7f32.tanh();
        assert!((y - 0.5 * (0.5 * g).tanh()).abs() < 1e-4, "{y}");
        let projected = Lstm::new(1, 70_000).projection(1).build(&context)?;
        let size = Size { steps: 1, batch: 1 };
        refused(
            projected.inference(size).map(drop),
            "project.forward",
            70_000,
        );
    }
    Ok(())
}

/// A plan for another device is refused by the device that cannot run it.
#[test]
fn a_plan_for_another_device_is_refused() -> Result<()> {
    for context in bounded() {
        let mut b = Builder::new("for any GPU");
        let a = b.float("a", &[1, 70_000], Role::Input);
        let output = b.float("output", &[1], Role::Output);
        let matrix = Matrix::dense(a, 70_000, 1);
        columns(&mut b, matrix, (output, 0))?;
        // Grouped, so that no sum is long.
        assert!(Program::new(&context, b.finish(), &[]).is_ok());
        let mut b = Builder::on("for any GPU", Builder::new("").target().to_owned());
        let ids = b.uint("ids", &[140_000], Role::Input);
        let doutput = b.float("doutput", &[140_000, 1], Role::Input);
        let dtable = b.float("dtable", &[1, 1], Role::Gradient);
        scatter(&mut b, ids, doutput, dtable)?;
        let error = Program::new(&context, b.finish(), &[])
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("embedding.scatter: rounds of an invocation's loops: needs 15"),
            "{error}"
        );
    }
    Ok(())
}

/// Whether the entry point of a kernel, or a function that it calls, has a loop.
fn has_loops(module: &naga::Module, entry: &str) -> bool {
    let point = module.entry_points.iter().find(|p| p.name == entry);
    in_block(module, &point.expect(entry).function.body)
}

fn in_block(module: &naga::Module, block: &naga::Block) -> bool {
    use naga::Statement;
    block.iter().any(|statement| match statement {
        Statement::Loop { .. } => true,
        Statement::Block(block) => in_block(module, block),
        Statement::If { accept, reject, .. } => {
            in_block(module, accept) || in_block(module, reject)
        }
        Statement::Switch { cases, .. } => cases.iter().any(|c| in_block(module, &c.body)),
        Statement::Call { function, .. } => in_block(module, &module.functions[*function].body),
        _ => false,
    })
}

fn sample_of(kernel: &wgrnn::kernel::Kernel, size: [usize; 3]) -> Plan {
    let sample = (kernel.sample)(size, &mut Rng::new(7));
    sample.expect(kernel.name).plan
}

/// The rounds of the step of a sample that runs its kernel.
fn rounds_of(plan: &Plan, kernel: &str) -> u64 {
    let steps = plan.steps().iter().enumerate();
    let own = steps.filter(|(_, step)| step.kernel.name == kernel);
    own.map(|(at, _)| plan.rounds(at).unwrap())
        .max()
        .expect(kernel)
}

/// A kernel says that it has no rounds where its text has no loop, and nowhere else.
#[test]
fn every_loop_is_counted() {
    for kernel in ALL {
        for size in [[3, 24, 2], [5, 63, 9]] {
            let plan = sample_of(kernel, size);
            let step = plan.steps().iter().find(|s| s.kernel.name == kernel.name);
            let step = step.expect(kernel.name);
            let text = compose(kernel.name, kernel.wgsl, &step.constants).unwrap();
            // Directives that naga takes with a feature of a device alone.
            let text = text.replace("enable wgpu_cooperative_matrix;", "");
            let Ok(module) = naga::front::wgsl::parse_str(&text) else {
                assert_eq!(kernel.name, "gemm.cooperative");
                continue;
            };
            let rounds = rounds_of(&plan, kernel.name);
            assert_eq!(
                rounds > 0,
                has_loops(&module, kernel.entry),
                "{}",
                kernel.name
            );
        }
    }
}

/// Kernels at sizes at which a loop makes about as many rounds as it may, each against its twin: where one made more than it
/// says, the device would end it. The others' loops run over units and gates, of which no square weights that fit a buffer
/// have as many (`forward_blocks`, `forward_few`, `forward_tile` and those back, the steps of LSTM, GRU and RNN; a stream's
/// step also over its inputs, which [`forward_over_many_inputs`] has), over ids, of which a
/// dispatch has no more than fit ([`an_embedding_of_one_id`]), or over steps likewise ([`all_steps_in_one_dispatch`]).
const AT_THE_BOUND: &[(&str, [usize; 3])] = &[
    // Over k, one and four at a time.
    ("gemm", [2, 1, 65_520]),
    ("gemm.blocks", [3, 2, 262_100]),
    // Over the rows of a group.
    ("reduce.columns", [65_530, 1, 0]),
    // Over sums of squares.
    ("clip.factor", [65_530, 1, 0]),
];

/// Those of which that many rounds take more numbers.
const FAR: &[(&str, [usize; 3])] = &[
    // Over k, 32 and 256 at a time by several invocations, and the depth of a tile.
    ("gemm.across_k", [9, 1, 2_096_000]),
    ("gemm.tile32", [1, 1, 1_048_000]),
    ("gemm.tile64", [1, 1, 2_096_000]),
    ("gemm.tile128", [1, 1, 1_048_000]),
    // Over every 128th target, and every 128th logit.
    ("cross_entropy.count", [8_380_000, 1, 0]),
    ("cross_entropy.rows", [1, 2_790_000, 0]),
    // Over every 64th of a third of the elements.
    ("reduce.total", [12_570_000, 1, 0]),
];

#[test]
fn kernels_at_the_bound() -> Result<()> {
    let all = common::thorough();
    let sizes = AT_THE_BOUND.iter().chain(FAR.iter().filter(|_| all));
    for (name, size) in sizes {
        let kernel = ALL.iter().find(|k| k.name == *name).expect(name);
        let rounds = rounds_of(&sample_of(kernel, *size), name);
        assert!(
            (60_000..=65_535).contains(&rounds),
            "{name} {size:?}: {rounds}"
        );
        for context in bounded() {
            for o in kernels::check(&context, kernel, *size)? {
                assert_eq!(
                    o.status,
                    Status::Pass,
                    "{name} {size:?} {}: {}",
                    o.tensor,
                    o.error
                );
            }
        }
    }
    Ok(())
}

/// Steps whose sums are as long as a loop may be: over inputs of a stream, and over the units of a projection.
#[test]
fn steps_at_the_bound() -> Result<()> {
    for context in bounded() {
        let of = |context: &Context| -> Result<[Vec<f32>; 2]> {
            let gru = Gru::new(65_500, 1)
                .reset(Reset::Before)
                .seed(3)
                .build(context)?;
            let x = Array2::from_shape_fn((1, 65_500), |(_, i)| (i % 7) as f32 - 3.0);
            let stream = gru.streams(1)?.step(&[0], x.view())?;
            let projected = Lstm::new(1, 65_500).projection(1).seed(3).build(context)?;
            let y = projected.forward(Array3::ones((1, 1, 1)).view(), None)?.y;
            Ok([stream.into_iter().collect(), y.into_iter().collect()])
        };
        for (got, want) in of(&context)?
            .iter()
            .flatten()
            .zip(of(&Context::cpu())?.iter().flatten())
        {
            assert!((got - want).abs() < 1e-3, "{got} {want}");
        }
    }
    Ok(())
}
