//! Every form of a product on every adapter, alone and in whole layers, against the f64 oracle.

mod common;

use common::results::{Values, assert_all_close, fill_inputs, results, write_inputs};
use wgrnn::check::{compare, tolerance};
use wgrnn::kernels::gemm::{Activation, Form, Gemm, Shape};
use wgrnn::plan::sequence::LayerSpec;
use wgrnn::plan::{BufferId, Builder, DeviceKind, Force, Matrix, Plan, Role, Target};
use wgrnn::rng::Rng;
use wgrnn::{Call, Context, Layer, Program, Result, Size, cell};

/// Elements behind every matrix, which are not to be read or written.
const GUARD: usize = 13;

/// One product: its size, and how far apart its rows are beyond their length.
#[derive(Debug, Clone, Copy)]
struct Case {
    size: [usize; 3],
    transposed: [bool; 2],
    pad: usize,
}

/// A plan of one product, with its matrices and bias.
struct Made {
    plan: Plan,
    product: Gemm,
    bias: BufferId,
}

fn plan(context: &Context, case: &Case) -> Result<Made> {
    plan_for(context.target(), case)
}

/// Each kind of product has other options, the same for all sizes, so that few pipelines serve them.
fn plan_for(target: Target, case: &Case) -> Result<Made> {
    let Case {
        size: [m, n, k],
        transposed,
        pad,
    } = *case;
    let mut b = Builder::on("product", target);
    let mut matrix = |name, rows: usize, cols: usize, transposed| {
        let (r, c) = if transposed {
            (cols, rows)
        } else {
            (rows, cols)
        };
        let buffer = b.float(name, &[pad + r * (c + pad) + GUARD], Role::State);
        let dense = Matrix {
            offset: pad,
            row_stride: c + pad,
            ..Matrix::dense(buffer, r, c)
        };
        if transposed { dense.t() } else { dense }
    };
    let a = matrix("a", m, k, transposed[0]);
    let w = matrix("b", k, n, transposed[1]);
    let c = matrix("c", m, n, false);
    let bias = b.float("bias", &[n + GUARD], Role::State);
    let plain = Gemm::new(a, w, c);
    let product = match transposed {
        [false, false] => Gemm {
            bias: Some(bias),
            // Its results are no smaller than the sums behind them, as the tolerance takes them to be.
            alpha: 1.0 / 32.0,
            activation: Activation::Tanh,
            ..plain
        },
        [false, true] => Gemm {
            bias: Some(bias),
            alpha: -0.5,
            beta: 0.25,
            activation: Activation::Relu,
            ..plain
        },
        [true, _] => Gemm { beta: 1.0, ..plain },
    };
    product.push(&mut b)?;
    let plan = b.finish();
    Ok(Made {
        plan,
        product,
        bias,
    })
}

/// Where the elements of a matrix stand.
fn places(matrix: &Matrix) -> impl Iterator<Item = usize> {
    let Matrix {
        offset,
        rows,
        cols,
        row_stride,
        col_stride,
        ..
    } = *matrix;
    (0..rows).flat_map(move |i| (0..cols).map(move |j| offset + i * row_stride + j * col_stride))
}

/// What of a buffer is C.
fn of_c(c: &Matrix, values: &[f64]) -> Vec<f64> {
    places(c).map(|at| values[at]).collect()
}

/// The buffer of C after the product. What no matrix holds is NaN, or in C a number.
fn run(context: &Context, made: Made) -> Result<Vec<f64>> {
    let Made {
        plan,
        product,
        bias,
    } = made;
    let Gemm {
        a, b: w, c, beta, ..
    } = product;
    let program = Program::new(context, plan, &[])?;
    let mut rng = Rng::new(7);
    for matrix in [a, w] {
        let mut values = vec![f32::NAN; program.tensor(matrix.buffer).unwrap().len()];
        places(&matrix).for_each(|at| values[at] = rng.uniform(-1.0, 1.0));
        program.tensor(matrix.buffer)?.write(&values)?;
    }
    let of_c = program.tensor(c.buffer).unwrap();
    let mut values = vec![-77.5; of_c.len()];
    // An old C that does not count may be NaN.
    places(&c).for_each(|at| {
        values[at] = if beta != 0.0 {
            rng.uniform(-1.0, 1.0)
        } else {
            f32::NAN
        }
    });
    of_c.write(&values)?;
    let of_bias = program.tensor(bias).unwrap();
    let mut values = rng.uniforms(of_bias.len(), -1.0, 1.0);
    values[c.cols..].fill(f32::NAN);
    of_bias.write(&values)?;
    program.run("main")?;
    of_c.read_f64()
}

fn forcing(context: &Context, form: Form) -> Context {
    context.forcing(Force {
        gemm: Some(form),
        ..Force::default()
    })
}

/// Sizes around the edges of a form's tiles, 0, 1, and primes; and whole fours.
fn sizes(form: Form) -> Vec<[usize; 3]> {
    let t = match form {
        Form::Naive => 8,
        Form::Tile64 => 64,
        Form::Tile128 => 128,
        _ => 32,
    };
    let mut sizes = vec![
        [0, 5, 7],
        [5, 0, 7],
        [5, 7, 0],
        [1, 1, 1],
        [t - 1, t, t + 1],
        [t, t + 1, t - 1],
        [t + 1, t - 1, t],
        [13, 2 * t + 3, 17],
        [37, 53, 71],
        [4, 4, 4],
        [t, t, t],
        [t + 4, t - 4, 2 * t + 4],
    ];
    if matches!(form, Form::Rows | Form::RowsSubgroups) {
        for few in 1..=8 {
            sizes.extend([[few, 37, 255 + few], [65, few, 31 * few], [few, 36, 512]]);
        }
    }
    if form == Form::SplitK {
        sizes.extend([
            [3, 5, 5],
            [7, 9, 257],
            [9, 8, 1000],
            [70, 3, 129],
            [1, 1, 4099],
        ]);
    }
    sizes
}

/// Of these, where not everything runs, as many as have every kind of rows, and one of whole tiles.
fn some_sizes(form: Form) -> Vec<[usize; 3]> {
    let all = sizes(form);
    if common::thorough() {
        return all;
    }
    let t = all[5][0];
    let chosen = |(nth, size): &(usize, [usize; 3])| nth.is_multiple_of(4) || *size == [t; 3];
    let some = all.into_iter().enumerate().filter(chosen);
    some.map(|(_, size)| size).collect()
}

/// All but the one that rounds what it multiplies; see `tests/cooperative.rs`.
fn exact() -> impl Iterator<Item = Form> {
    Form::ALL.into_iter().filter(|&f| f != Form::Cooperative)
}

#[test]
fn every_form() -> Result<()> {
    let forms: Vec<Form> = exact().filter(|&f| f != Form::Library).collect();
    let done = common::spread(&forms, |forms| forms.into_iter().try_for_each(one_form));
    done.into_iter().collect()
}

fn one_form(form: Form) -> Result<()> {
    for context in common::kept() {
        let forced = forcing(&context, form);
        let mut used = 0;
        for size in some_sizes(form) {
            for (kind, pad) in (0..3).flat_map(|kind| [0, 1, 4].map(|pad| (kind, pad))) {
                let transposed = [kind == 2, kind == 1];
                let case = Case {
                    size,
                    transposed,
                    pad,
                };
                // Not all of them for every size: the three kinds of rows take turns.
                if (size[0] + size[1] + size[2] + kind) % 3 != pad % 3 {
                    continue;
                }
                used += usize::from(agrees(&forced, form, &case)?);
            }
        }
        let least = if common::thorough() { 20 } else { 8 };
        assert!(used > least, "{form:?} was used {used} times");
    }
    Ok(())
}

/// True if the form was used, as it must be where it fits.
fn agrees(context: &Context, form: Form, case: &Case) -> Result<bool> {
    let made = plan(context, case)?;
    let choice = made.plan.choices()[0].clone();
    let fits = form.fits(&Shape::of(&made.product), &context.target());
    assert_eq!(choice.chosen == form.name(), fits, "{case:?}: {choice:?}");
    assert_eq!(choice.why.contains("cannot"), !fits, "{case:?}: {choice:?}");
    let c = made.product.c;
    let got = run(context, made)?;
    let oracle = Context::cpu_f64();
    let want = run(&oracle, plan(&oracle, case)?)?;
    let what = format!("{}: {form:?} {case:?}", context.name());

    let mut inside = vec![false; got.len()];
    places(&c).for_each(|at| inside[at] = true);
    for at in (0..got.len()).filter(|&at| !inside[at]) {
        assert_eq!(got[at], -77.5, "{what}: element {at} is none of C");
    }
    let d = compare(&of_c(&c, &got), &of_c(&c, &want));
    let limit = tolerance::kernel(context.dtype(), case.size[2]);
    assert!(d.error <= limit, "{what}: {d:?} > {limit:e}");
    Ok(fits)
}

/// A dimension of a dispatch has at most 65,535 workgroups, of 64 rows here: the rest is another dispatch, or all is in
/// workgroups that are folded over two dimensions.
#[test]
fn more_rows_than_workgroups() -> Result<()> {
    for context in common::kept() {
        // What takes the place of a form that cannot do it, on a GPU rows, which are folded.
        let cut = match context.target().kind {
            DeviceKind::Gpu => 1,
            _ => 2,
        };
        for (form, rows, dispatches) in [
            (Form::Tile64, 64 * 65_535, 1),
            (Form::Tile64, 64 * 65_535 + 1, cut),
            (Form::Rows, 64 * 65_535 + 1, 1),
        ] {
            let forced = forcing(&context, form);
            let case = Case {
                size: [rows, 3, 2],
                transposed: [false, true],
                pad: 0,
            };
            let made = plan(&forced, &case)?;
            let c = made.product.c;
            assert_eq!(made.plan.steps().len(), dispatches, "{form:?} {rows}");
            // Four million rows take a software adapter most of a minute.
            if !common::thorough() {
                continue;
            }
            let got = run(&context, made)?;
            let oracle = Context::cpu_f64();
            let want = run(&oracle, plan(&oracle, &case)?)?;
            let d = compare(&of_c(&c, &got), &of_c(&c, &want));
            assert!(d.error <= tolerance::kernel(context.dtype(), 2), "{d:?}");
        }
    }
    Ok(())
}

/// On a GPU a product that is not of few columns is cut as well.
#[test]
fn more_rows_than_a_gpu_has_workgroups() -> Result<()> {
    for (rows, dispatches) in [(128 * 65_535, 1), (128 * 65_535 + 1, 2)] {
        let case = Case {
            size: [rows, 100, 2],
            transposed: [false, true],
            pad: 0,
        };
        let steps = plan_for(Target::portable(DeviceKind::Gpu), &case)?.plan;
        assert_eq!(steps.steps().len(), dispatches, "{rows}");
    }
    Ok(())
}

/// What a GPU with few multiprocessors would run: k in parts of tiles of 128 x 128.
#[test]
fn parts_of_large_tiles() -> Result<()> {
    for context in common::kept() {
        let all = vec![
            ([127, 250, 4_700], [false; 2], 9),
            ([128, 128, 5_121], [true, false], 5),
        ];
        for (size, transposed, groups) in common::share(all, 0, 2) {
            let case = Case {
                size,
                transposed,
                pad: 1,
            };
            let target = Target {
                kind: DeviceKind::Gpu,
                groups,
                ..context.target()
            };
            let made = plan_for(target, &case)?;
            let c = made.product.c;
            let kernels: Vec<_> = made.plan.steps().iter().map(|s| s.kernel.name).collect();
            assert_eq!(kernels, ["gemm.tile128", "gemm.sum"], "{case:?}");
            let got = run(&context, made)?;
            let oracle = Context::cpu_f64();
            let want = run(&oracle, plan(&oracle, &case)?)?;
            let d = compare(&of_c(&c, &got), &of_c(&c, &want));
            let limit = tolerance::kernel(context.dtype(), size[2]);
            assert!(d.error <= limit, "{case:?}: {d:?}");
        }
    }
    Ok(())
}

/// The sums of the parts are joined in their order: the same bits as in a loop over them.
#[test]
fn parts_are_joined_in_order() -> Result<()> {
    for context in common::kept() {
        let context = forcing(&context, Form::SplitK);
        let (m, n, k) = (5, 12, 2000);
        let mut b = Builder::on("product", context.target());
        let [a, w, c] = [("a", m, k), ("b", k, n), ("c", m, n)]
            .map(|(name, r, c)| Matrix::dense(b.float(name, &[r, c], Role::State), r, c));
        Gemm::new(a, w, c).push(&mut b)?;
        let program = Program::new(&context, b.finish(), &[])?;
        let mut rng = Rng::new(3);
        for matrix in [a, w] {
            let tensor = program.tensor(matrix.buffer).unwrap();
            tensor.write(&rng.uniforms(tensor.len(), -1.0, 1.0))?;
        }
        program.run("main")?;
        let parts = program.named("partial products")?.read()?;
        let count = parts.len() / (m * n);
        assert!(count > 3, "{count} parts");
        let result = program.tensor(c.buffer)?.read()?;
        for (at, &got) in result.iter().enumerate() {
            let own = parts.iter().skip(at).step_by(m * n);
            let want = own.fold(0.0f32, |sum, v| sum + v);
            assert_eq!(got.to_bits(), want.to_bits(), "{at}: {got:e}, not {want:e}");
        }
        program.run("main")?;
        assert_eq!(program.tensor(c.buffer)?.read()?, result);
    }
    Ok(())
}

/// Everything that layers put out and all their gradients, with every product in one form.
#[test]
fn layers_in_every_form() -> Result<()> {
    let even = (
        LayerSpec::new(&cell::LSTM, 8, 36),
        Call::training(Size { steps: 9, batch: 8 }),
    );
    let odd = (
        LayerSpec {
            num_layers: 2,
            bidirectional: true,
            ..LayerSpec::new(&cell::GRU, 3, 17)
        },
        Call::training(Size { steps: 7, batch: 5 }).recompute(3),
    );
    for (nth, (spec, call)) in [even, odd].into_iter().enumerate() {
        let oracle = Layer::new(&Context::cpu_f64(), spec, 5)?.sequence(&call)?;
        let inputs: Values = fill_inputs(&oracle, 6)?;
        let want = results(&oracle)?;
        for context in common::kept() {
            for form in common::share(exact().collect(), nth, 4) {
                let context = forcing(&context, form);
                let sequence = Layer::new(&context, spec, 5)?.sequence(&call)?;
                write_inputs(&sequence, &inputs)?;
                let choices = sequence.program().plan().choices();
                let used = choices.iter().any(|c| c.chosen == form.name());
                assert_eq!(used, form != Form::Library, "{form:?}: {choices:?}");
                let got = results(&sequence)?;
                // T · N and G · H are no longer.
                assert_all_close(&context, form.name(), &got, &want, 144);
            }
        }
    }
    Ok(())
}

#[test]
fn on_the_cpu_all_is_the_library() -> Result<()> {
    let context = forcing(&Context::cpu(), Form::Tile64);
    let spec = LayerSpec::new(&cell::LSTM, 8, 36);
    let sequence = Layer::new(&context, spec, 5)?.training(Size { steps: 3, batch: 2 })?;
    let choices = sequence.program().plan().choices();
    let products = choices.iter().filter(|c| c.what.starts_with("product"));
    assert!(products.clone().count() > 3);
    for choice in products {
        assert_eq!(choice.chosen, "library", "{choice:?}");
    }
    Ok(())
}
