//! Lockstep: a right program passes, and of a broken one the first wrong step is named.

mod common;

use wgrnn::cell::{self, Cell};
use wgrnn::check::{Lockstep, Status, lockstep};
use wgrnn::kernel::{Args, Binding, Element, Kernel, Twin, no_loops};
use wgrnn::kernels::copy::copy;
use wgrnn::plan::sequence::LayerSpec;
use wgrnn::plan::{Builder, Cost, Dispatch, Grid, Plan, Role};
use wgrnn::rng::Rng;
use wgrnn::{Call, Context, Layer, Precision, Program, Result, Sequence, Size, Tensor};

/// A training sequence with random input. T · N is above the rows that one reduction sums, so that
/// scratch buffers share memory.
fn sequence(context: &Context, cell: &'static Cell) -> Result<Sequence> {
    in_precision(context, cell, Precision::F32)
}

fn in_precision(context: &Context, cell: &'static Cell, stored: Precision) -> Result<Sequence> {
    let spec = LayerSpec::new(cell, 4, 9);
    let size = Size {
        steps: 24,
        batch: 3,
    };
    let call = Call::training(size).activations(stored);
    let sequence = Layer::new(context, spec, 3)?.sequence(&call)?;
    let mut rng = Rng::new(1);
    // With a gradient of the final state, as otherwise some of the backward pass would work on zeros.
    for tensor in [sequence.x(), sequence.dy()?, sequence.dhn()?] {
        tensor.write(&rng.uniforms(tensor.len(), -1.0, 1.0))?;
    }
    Ok(sequence)
}

fn layers_agree(context: &Context) -> Result<()> {
    for cell in cell::ALL {
        let sequence = sequence(context, cell)?;
        let program = sequence.program();
        let outputs = || -> Result<[Vec<f64>; 2]> {
            Ok([sequence.y().read_f64()?, sequence.dx()?.read_f64()?])
        };
        let mut sections = Vec::new();
        for section in ["forward", "backward"] {
            sections.push(lockstep(program, section)?);
        }
        let stepped = outputs()?;
        program.run("forward")?;
        program.run("backward")?;
        assert_eq!(
            stepped,
            outputs()?,
            "{}: it ran as it does alone",
            cell.name
        );
        sections.push(lockstep(program, "carry")?);
        for report in sections {
            let Lockstep { section, steps, .. } = &report;
            assert_eq!(*steps, program.plan().section(section)?.len());
            assert_eq!(report.first, None, "{} {section}", cell.name);
            let largest = report.largest.as_ref().map(ToString::to_string);
            println!("{:10} {section:9} {}", cell.name, largest.unwrap());
        }
    }
    Ok(())
}

#[test]
fn layers_agree_on_the_cpu() -> Result<()> {
    layers_agree(&Context::cpu())?;
    layers_agree(&Context::cpu_f64())
}

#[cfg(feature = "gpu")]
#[test]
fn layers_agree_on_every_adapter() -> Result<()> {
    common::kept().iter().try_for_each(layers_agree)
}

/// A kernel like another, with another name, text and twin.
#[cfg(feature = "gpu")]
fn altered(kernel: &Kernel, name: &'static str, wgsl: &'static str, twin: Twin) -> &'static Kernel {
    Box::leak(Box::new(Kernel {
        name,
        wgsl,
        entry: kernel.entry,
        bindings: kernel.bindings,
        params_size: kernel.params_size,
        workgroup_size: kernel.workgroup_size,
        workgroup_memory: kernel.workgroup_memory,
        rounds: kernel.rounds,
        twin,
        sample: kernel.sample,
    }))
}

/// An LSTM whose shader exchanges the gates i and f while its twin is right.
#[cfg(feature = "gpu")]
#[test]
fn a_wrong_gate_order_is_named() -> Result<()> {
    let pass = cell::LSTM.forward[0];
    let right = pass.kernel;
    let wgsl = right
        .wgsl
        .replace("let pre_i = pre.x", "let pre_i = pre.PLACE")
        .replace("let pre_f = pre.y", "let pre_f = pre.x")
        .replace("pre.PLACE", "pre.y");
    assert_ne!(wgsl, right.wgsl);
    let forward = altered(
        right,
        "lstm.forward with f, i, g, o",
        Box::leak(wgsl.into_boxed_str()),
        right.twin,
    );
    let broken: &'static Cell = Box::leak(Box::new(Cell {
        name: "broken",
        forward: Box::leak(Box::new([cell::Pass {
            kernel: forward,
            ..pass
        }])),
        sequence: None,
        forms: [None, None],
        ..cell::LSTM
    }));
    for context in common::kept() {
        let sequence = sequence(&context, broken)?;
        let report = lockstep(sequence.program(), "forward")?;
        let plan = sequence.program().plan();
        let first = report.first.expect("it is broken");
        println!("{first}");
        assert_eq!(first.kernel, forward.name);
        // carry, transpose, loads and gemm stand before the first step.
        let index = plan
            .steps()
            .iter()
            .position(|s| std::ptr::eq(s.kernel, forward))
            .unwrap();
        assert_eq!(first.step, index);
        assert_eq!(first.buffer, "gates_l0");
        // The backward pass starts from the same numbers on both sides: it is not to blame.
        assert_eq!(lockstep(sequence.program(), "backward")?.first, None);
    }
    Ok(())
}

/// Numbers that are almost the same may be rounded up and down.
#[test]
fn activations_in_16_bits_agree() -> Result<()> {
    for context in common::results::everywhere() {
        if !context.target().f16 && context.is_gpu() {
            continue;
        }
        for cell in [&cell::LSTM_PEEPHOLE, &cell::GRU, &cell::RNN_TANH] {
            let sequence = in_precision(&context, cell, Precision::F16)?;
            for section in ["forward", "backward"] {
                let report = lockstep(sequence.program(), section)?;
                assert_eq!(report.first, None, "{} {section}", cell.name);
            }
        }
    }
    Ok(())
}

/// A host's kernel with the name of ours, on the same device: each has its own pipeline.
#[cfg(feature = "gpu")]
#[test]
fn kernels_of_one_name_are_kept_apart() -> Result<()> {
    let pass = cell::RNN_TANH.forward[0];
    let right = pass.kernel;
    let wgsl = right.wgsl.replace("= input + product", "= input - product");
    assert_ne!(wgsl, right.wgsl);
    let text = Box::leak(wgsl.into_boxed_str());
    let forward = altered(right, right.name, text, right.twin);
    let broken: &'static Cell = Box::leak(Box::new(Cell {
        forward: Box::leak(Box::new([cell::Pass {
            kernel: forward,
            ..pass
        }])),
        sequence: None,
        forms: [None, None],
        ..cell::RNN_TANH
    }));
    for context in common::kept() {
        for (cell, differs) in [
            (&cell::RNN_TANH, false),
            (broken, true),
            (&cell::RNN_TANH, false),
        ] {
            let sequence = sequence(&context, cell)?;
            let first = lockstep(sequence.program(), "forward")?.first;
            assert_eq!(first.is_some(), differs, "{first:?}");
        }
    }
    Ok(())
}

static DOUBLE: Kernel = Kernel {
    name: "double",
    wgsl: "",
    entry: "",
    bindings: &[Binding::read("source"), Binding::write("destination")],
    params_size: size_of::<u32>(),
    workgroup_size: 64,
    workgroup_memory: 0,
    rounds: no_loops,
    twin: Twin {
        f32: |args| double(args, |v| if v == 5.0 { 10.5 } else { 2.0 * v }),
        f64: |args| double(args, |v| 2.0 * v),
    },
    sample: |_, _| unreachable!("it is not among the crate's kernels"),
};

fn double<R: wgrnn::real::Real>(args: &mut Args<'_, R>, f: fn(R) -> R) -> Result<()> {
    let len = args.params::<u32>()? as usize;
    let (source, destination) = (args.read(0)?, args.write(1)?);
    for i in 0..len {
        destination[i] = f(source[i]);
    }
    Ok(())
}

/// x -> a -> b = 2 a -> c = 2 b -> y, in which the first doubling is wrong for 5.
fn doubling(role: Role) -> Result<Plan> {
    let mut b = Builder::new("doubling");
    let x = b.float("x", &[8], Role::Input);
    let [a, twice, four] = ["a", "twice", "four"].map(|name| b.float(name, &[8], role));
    let y = b.float("y", &[8], Role::Output);
    copy(&mut b, (x, 0), (a, 0), 8)?;
    for (from, to) in [(a, twice), (twice, four)] {
        b.push(Dispatch {
            kernel: &DOUBLE,
            constants: &[],
            bindings: &[from, to],
            params: 8u32,
            grid: Grid::Flat(8),
            cost: Cost {
                length: 1,
                ..Cost::default()
            },
        })?;
    }
    copy(&mut b, (four, 0), (y, 0), 8)?;
    Ok(b.finish())
}

#[test]
fn the_element_is_named() -> Result<()> {
    // a and four share memory as scratch.
    for role in [Role::Scratch, Role::Saved] {
        let program = Program::new(&Context::cpu(), doubling(role)?, &[])?;
        let x: Vec<f32> = (0..8).map(|v| v as f32).collect();
        program.named("x")?.write(&x)?;
        let report = lockstep(&program, "main")?;
        let first = report.first.clone().expect("it is broken");
        assert_eq!((first.step, first.kernel), (1, "double"));
        assert_eq!((first.buffer.as_str(), first.element), ("twice", 5));
        assert_eq!((first.got, first.want), (10.5, 10.0));
        assert_eq!(report.largest, report.first);
        assert_eq!(first.error, 0.5 / 14.0);
        let outcome = report.outcome(program.context(), "doubling");
        assert_eq!(outcome.tensor, "lockstep main: step 1 double twice[5]");
        assert_eq!(outcome.status, Status::Fail);
        // The program has run as it would have alone.
        let y = program.named("y")?.read()?;
        assert_eq!(y, [0.0, 4.0, 8.0, 12.0, 16.0, 21.0, 24.0, 28.0]);
    }
    Ok(())
}

#[test]
fn memory_bound_to_two_buffers_is_followed() -> Result<()> {
    let context = Context::cpu();
    let mut b = Builder::new("aliases");
    let [x, a, alias, y] = ["x", "a", "alias", "y"].map(|name| b.float(name, &[4], Role::State));
    copy(&mut b, (alias, 0), (y, 0), 4)?;
    copy(&mut b, (x, 0), (a, 0), 4)?;
    copy(&mut b, (alias, 0), (y, 0), 4)?;
    let shared = Tensor::zeros(&context, &[4], Element::Float)?;
    let bound = [(a, shared.clone()), (alias, shared)];
    let program = Program::new(&context, b.finish(), &bound)?;
    program.named("x")?.write(&[1.0, 2.0, 3.0, 4.0])?;
    assert_eq!(lockstep(&program, "main")?.first, None);
    assert_eq!(program.named("y")?.read()?, [1.0, 2.0, 3.0, 4.0]);
    Ok(())
}

#[test]
fn a_nan_agrees_with_nothing() -> Result<()> {
    let sequence = sequence(&Context::cpu(), &cell::GRU)?;
    sequence.x().write(&vec![f32::NAN; sequence.x().len()])?;
    let first = lockstep(sequence.program(), "forward")?.first;
    assert_eq!(
        first.map(|f| (f.kernel, f.error)),
        Some(("gemm", f64::INFINITY))
    );
    assert!(lockstep(sequence.program(), "nothing").is_err());
    Ok(())
}
