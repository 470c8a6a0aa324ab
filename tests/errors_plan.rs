//! Plans: what is refused while one is made and before it runs, so that it cannot compute with what is not there.

mod common;

use std::time::{Duration, Instant};

use common::refusal;
use wgrnn::cell;
use wgrnn::kernel::Element;
use wgrnn::kernels::copy::{copy, fill};
use wgrnn::kernels::cross_entropy::{CrossEntropy, IGNORE, cross_entropy};
use wgrnn::kernels::dropout::{self, Dropout};
use wgrnn::kernels::gemm::Gemm;
use wgrnn::kernels::mask::{Clear, Mask};
use wgrnn::kernels::pack::Blocks;
use wgrnn::kernels::reduce::{Columns, columns, total_at};
use wgrnn::kernels::sgd::{self, Sgd};
use wgrnn::kernels::state::{Load, MaskRows, unset};
use wgrnn::kernels::transpose::{transpose, transpose_to};
use wgrnn::kernels::{clip, clock, embedding};
use wgrnn::plan::sequence::{self as driver, Ends, LayerSpec, Run, Weights};
use wgrnn::plan::{BufferId, Builder, Matrix, Plan, Portion, Role, Target};
use wgrnn::train::{LanguageModel, ModelSpec};
use wgrnn::{Call, Context, Error, Lstm, Program, Result, Sequence, Size, Tensor};

const SIZE: Size = Size { steps: 3, batch: 2 };

/// The CPU backend, and every adapter.
fn contexts() -> Vec<Context> {
    let mut all = vec![Context::cpu()];
    all.extend(common::adapters());
    all
}

#[track_caller]
fn says<T>(result: Result<T>, words: &[&str]) {
    let e = refusal(result).to_string();
    for word in words {
        assert!(e.contains(word), "{word}: {e}");
    }
}

fn program(b: Builder) -> Result<Program> {
    Program::new(&Context::cpu(), b.finish(), &[])
}

/// A plan of one copy, with the buffers x `[4]` and y `[4]`.
fn copying() -> (Plan, BufferId) {
    let mut b = Builder::new("copying");
    let x = b.float("x", &[4], Role::Input);
    let y = b.float("y", &[4], Role::Output);
    copy(&mut b, (x, 0), (y, 0), 4).unwrap();
    (b.finish(), x)
}

#[test]
fn buffers_of_another_plan() -> Result<()> {
    let (plan, own) = copying();
    let foreign = copying().1;
    let words = ["a buffer of the plan", "buffer 0 of another plan"];
    says(plan.buffer(foreign), &words);
    assert_eq!(plan.buffer(own)?.name, "x");
    // The clone of a plan has its buffers.
    assert_eq!(plan.clone().buffer(own)?.name, "x");
    let cpu = Context::cpu();
    let program = Program::new(&cpu, plan.clone(), &[])?;
    says(program.tensor(foreign), &words);
    assert_eq!(program.tensor(own)?.len(), 4);
    let tensor = Tensor::zeros(&cpu, &[4], Element::Float)?;
    says(
        Program::new(&cpu, plan.clone(), &[(foreign, tensor.clone())]),
        &words,
    );
    let twice = [(own, tensor.clone()), (own, tensor)];
    says(
        Program::new(&cpu, plan, &twice),
        &["bound", "each buffer once", "x"],
    );

    // Whatever is added to a plan: its own buffers in all places but one.
    type Push = fn(&mut Builder, [BufferId; 4]) -> Result<()>;
    let pushes: [(&str, usize, Push); 16] = [
        ("copy", 2, |b, [x, y, ..]| copy(b, (x, 0), (y, 0), 4)),
        ("fill", 1, |b, [x, ..]| fill(b, x, 0.0)),
        ("contents", 1, |b, [x, ..]| b.contents(x, 0, vec![1])),
        ("buffer", 1, |b, [x, ..]| b.buffer(x).map(|_| ())),
        ("transpose", 2, |b, [x, y, ..]| transpose(b, x, y)),
        ("transpose_to", 2, |b, [x, y, ..]| {
            transpose_to(b, x, (y, 0))
        }),
        ("total", 2, |b, [x, number, ..]| {
            total_at(b, x, (number, 0), true)
        }),
        ("columns", 2, |b, [x, y, ..]| {
            columns(b, Matrix::dense(x, 2, 2), (y, 0))
        }),
        ("gemm", 3, |b, [x, y, z, _]| {
            let [a, w, c] = [x, y, z].map(|id| Matrix::dense(id, 2, 2));
            Gemm::new(a, w, c).push(b)
        }),
        ("gemm with a bias", 1, |b, [bias, y, z, _]| {
            let x = b.float("a", &[2, 2], Role::Input);
            let [a, w, c] = [x, y, z].map(|id| Matrix::dense(id, 2, 2));
            Gemm {
                bias: Some(bias),
                ..Gemm::new(a, w, c)
            }
            .push(b)
        }),
        ("gather", 2, |b, [table, output, ..]| {
            let ids = b.uint("ids", &[2], Role::Input);
            embedding::gather(b, ids, table, output)
        }),
        ("scatter", 2, |b, [dtable, doutput, ..]| {
            let ids = b.uint("ids", &[2], Role::Input);
            embedding::scatter(b, ids, doutput, dtable)
        }),
        ("cross entropy", 1, |b, [logits, ..]| {
            let targets = b.uint("targets", &[2], Role::Input);
            let loss = b.float("loss", &[1], Role::Output);
            cross_entropy(
                b,
                CrossEntropy {
                    logits,
                    targets,
                    loss,
                    gradient: true,
                },
            )
        }),
        ("dropout", 1, |b, [values, ..]| {
            let clock = b.uint("clock", &[1], Role::State);
            dropout::apply(
                b,
                Dropout {
                    values,
                    clock,
                    probability: 0.5,
                    seed: 1,
                    stream: 0,
                },
            )
        }),
        ("clip", 2, |b, [x, y, ..]| {
            clip::clip_by_global_norm(b, &[x, y], 1.0).map(|_| ())
        }),
        ("sgd", 3, |b, [weight, gradient, velocity, _]| {
            let rate = b.float("rate", &[1], Role::Input);
            let sgd = Sgd {
                weight,
                gradient,
                velocity,
                rate,
                momentum: 0.5,
                weight_decay: 0.0,
            };
            sgd::step(b, sgd)
        }),
    ];
    for (name, places, push) in pushes {
        for place in 0..places {
            let mut b = Builder::new(name);
            let mut ids = ["w", "x", "y", "z"].map(|n| b.float(n, &[2, 2], Role::Input));
            ids[place] = foreign;
            says(push(&mut b, ids), &["another plan"]);
        }
    }
    let mut b = Builder::new("clock");
    says(clock::advance(&mut b, foreign), &["another plan"]);
    // As large a number in a smaller plan.
    let mut large = Builder::new("large");
    let last = (0..9).map(|_| large.float("x", &[4], Role::Input)).last();
    says(b.buffer(last.unwrap()), &["buffer 8 of another plan"]);
    Ok(())
}

#[test]
fn steps_that_a_plan_has_not() {
    let (plan, _) = copying();
    #[allow(clippy::reversed_empty_ranges, reason = "one of the wrong ranges")]
    for steps in [
        0..2,
        1..2,
        2..2,
        1..0,
        0..usize::MAX,
        usize::MAX..usize::MAX,
    ] {
        let words = [&format!("{steps:?}")[..], "within the plan's 1"];
        says(plan.cost(steps.clone()), &words);
        says(plan.barriers(steps.clone()), &words);
        says(plan.parts(steps.clone(), Portion::default()), &words);
        says(plan.growing_parts(steps, 1, Portion::default()), &words);
    }
    assert_eq!(plan.cost(0..1).unwrap().bytes, 32);
    assert_eq!(plan.barriers(1..1).unwrap(), 0);
}

/// Sizes whose products or sums do not fit any number.
#[test]
fn sizes_beyond_all_bounds() -> Result<()> {
    const HUGE: usize = usize::MAX / 2;
    let cpu = Context::cpu();
    for shape in [
        &[HUGE, HUGE][..],
        &[HUGE],
        &[1 << 40, 1 << 40],
        &[usize::MAX, 2, 3],
    ] {
        for role in [Role::Input, Role::Scratch] {
            let mut b = Builder::new("huge");
            let x = b.float("x", shape, role);
            let y = b.uint("y", shape, role);
            says(b.buffer(x), &["'x'", "elements"]);
            says(fill(&mut b, x, 0.0), &["'x'", "elements"]);
            says(transpose(&mut b, x, x), &["'x'", "elements"]);
            says(b.contents(y, usize::MAX, vec![1, 2]), &["'y'"]);
            let plan = b.finish();
            let _ = (plan.bytes(role), plan.layout(), plan.to_string());
            says(Program::new(&cpu, plan, &[]), &["'x'", "elements"]);
        }
    }
    // No element at all, whatever the other sizes are.
    for shape in [[0, HUGE, HUGE], [HUGE, 0, HUGE], [HUGE, HUGE, 0]] {
        let none = Tensor::zeros(&cpu, &shape, Element::Float)?;
        assert_eq!((none.len(), none.read()?.len()), (0, 0));
        says(none.rows(0..shape[0] + 1), &["rows"]);
        if shape[0] == 0 {
            assert_eq!(none.rows(0..0)?.len(), 0);
        }
        assert_eq!(none.reshaped(&[0])?.len(), 0);
    }
    says(
        Tensor::zeros(&cpu, &[HUGE, 3], Element::Float),
        &["shape", "elements"],
    );
    says(Tensor::zeros(&cpu, &[HUGE], Element::Float), &["memory"]);
    let number = Tensor::zeros(&cpu, &[], Element::Float)?;
    assert_eq!(number.len(), 1);
    says(number.rows(0..0), &["rows", "first dimension"]);
    says(number.rows(0..1), &["rows", "first dimension"]);

    let mut b = Builder::new("p");
    let x = b.float("x", &[4, 4], Role::Input);
    let y = b.float("y", &[16], Role::Output);
    let m = b.uint("m", &[4], Role::Input);
    says(b.contents(m, usize::MAX, vec![1]), &["m"]);
    for at in [HUGE, usize::MAX, usize::MAX - 3] {
        says(copy(&mut b, (x, at), (y, 0), 4), &["source"]);
        says(copy(&mut b, (x, 0), (y, at), 4), &["destination"]);
        says(copy(&mut b, (x, 0), (y, 0), at), &["source"]);
        says(transpose_to(&mut b, x, (y, at)), &["destination"]);
        says(total_at(&mut b, x, (y, at), true), &["output"]);
        says(
            columns(&mut b, Matrix::dense(x, 4, 4), (y, at)),
            &["output"],
        );
        // A matrix of one element, or one whose rows all stand in one place.
        let all = |rows, cols| Matrix {
            row_stride: 0,
            col_stride: 0,
            ..Matrix::dense(x, rows, cols)
        };
        let c = Matrix::dense(y, 4, 4);
        says(
            Gemm::new(all(4, at), all(at, 4), c).push(&mut b),
            &["32-bit"],
        );
        says(
            Gemm::new(all(at, 4), all(4, 4), all(at, 4)).push(&mut b),
            &["32-bit"],
        );
        let rows = Matrix {
            row_stride: 0,
            ..Matrix::dense(x, at, 4)
        };
        says(columns(&mut b, rows, (y, 0)), &[]);
        let both = Columns {
            a: rows,
            b: Some(rows),
            output: (y, 0),
            beta: 1.0,
        };
        says(both.push(&mut b), &[]);
        let moved = Matrix::dense(x, 4, 4).row_range(at..at);
        assert_eq!(moved.rows, 0);
        let far = Matrix {
            row_stride: at,
            ..Matrix::dense(x, 4, 4)
        };
        says(columns(&mut b, far.row_range(2..4), (y, 0)), &["a"]);
        let load = Load {
            mask: None,
            count: 4,
            width: 4,
            source: (x, 0),
            state: y,
            to_start: 0,
            to_row: 4,
        };
        for load in [
            Load { count: at, ..load },
            Load { width: at, ..load },
            Load {
                source: (x, at),
                ..load
            },
            Load {
                to_start: at,
                ..load
            },
            Load { to_row: at, ..load },
        ] {
            says(load.push_with(&mut b, m), &["end in"]);
        }
        let rows = |start, row| MaskRows {
            mask: m,
            start,
            row,
        };
        says(unset(&mut b, rows(at, 1), (y, 0), [4, 4]), &["mask"]);
        says(unset(&mut b, rows(0, at), (y, 0), [4, 4]), &["mask"]);
        says(unset(&mut b, rows(0, 1), (y, at), [4, 4]), &["gradient"]);
        says(unset(&mut b, rows(0, 1), (y, 0), [at, at]), &["gradient"]);
        let made = Mask {
            lengths: Some(m),
            resets: None,
            mask: (m, at),
            size: [at, 4],
            rows: [4, 1],
        };
        says(made.push(&mut b), &[]);
        let clear = Clear {
            mask: (m, 0),
            source: Matrix::dense(x, 4, 4),
            destination: (y, 0),
        };
        let many = Matrix {
            rows: at,
            row_stride: 0,
            ..clear.source
        };
        for (clear, arg) in [
            (
                Clear {
                    mask: (m, at),
                    ..clear
                },
                "mask",
            ),
            (
                Clear {
                    destination: (y, at),
                    ..clear
                },
                "destination",
            ),
            (
                Clear {
                    source: many,
                    ..clear
                },
                "mask",
            ),
        ] {
            says(clear.push(&mut b), &[arg]);
        }
        for blocks in [
            Blocks::forward([4, at, 1], 4),
            Blocks::forward([4, 4, at], 4),
            Blocks::backward([at, at, 1], 4),
            Blocks::quads([3, at, at]),
            Blocks::quads_of_input([3, 4, at]),
            Blocks::quads_back([at, 4, 4]),
            Blocks::copy(at),
            Blocks::forward([1, 4, 4], at),
        ] {
            assert!(blocks.len() > 16, "{blocks:?}");
            says(blocks.push(&mut b, x, y), &["pack"]);
            says(blocks.push_to(&mut b, x, (y, at)), &["pack"]);
            says(blocks.push_part(&mut b, x, y, at, at), &["pack"]);
        }
        let fitting = Blocks::forward([1, 4, 4], 4);
        says(fitting.push_part(&mut b, x, y, at, 4), &["terms"]);
        says(fitting.push_to(&mut b, x, (y, at)), &["destination"]);

        let huge = LayerSpec::new(&cell::LSTM_PROJECTED, 3, at);
        for spec in [
            huge,
            LayerSpec {
                bidirectional: true,
                proj_size: at,
                ..huge
            },
            LayerSpec::new(&cell::LSTM, at, at),
        ] {
            // What cannot be is said by the plan's own checks, not by an overflow.
            let mut b = Builder::new("layer");
            let _ = driver::weights(&mut b, &spec);
            let model = ModelSpec {
                vocabulary: 4,
                layer: spec,
            };
            says(LanguageModel::new(&cpu, model, 1), &["elements"]);
        }
    }
    let blocks = Blocks {
        block: 0,
        ..Blocks::forward([1, 4, 4], 1)
    };
    assert_eq!(blocks.len(), 0);
    says(blocks.push(&mut b, x, y), &["block", "at least 1"]);
    // Each fits; their product does not.
    let ids = b.uint("ids", &[1 << 40], Role::Input);
    let table = b.float("table", &[1, 1 << 40], Role::Input);
    says(embedding::gather(&mut b, ids, table, y), &["output"]);
    says(embedding::scatter(&mut b, ids, y, table), &["doutput"]);
    for steps in [HUGE, usize::MAX, 1_000_000_000] {
        let spec = Lstm::new(1, 1).spec();
        for size in [
            Size { steps, batch: 1 },
            Size {
                steps: 1,
                batch: steps,
            },
            Size {
                steps,
                batch: steps,
            },
        ] {
            says(
                Sequence::plan(&spec, &Call::training(size), &Target::default()),
                &[],
            );
        }
    }
    Ok(())
}

#[test]
fn names_that_a_plan_has_not() -> Result<()> {
    let call = Lstm::new(3, 4)
        .num_layers(20)
        .build(&Context::cpu())?
        .inference(SIZE)?;
    let plan = call.program().plan();
    says(
        plan.find("weight_hh_17"),
        &[
            "name",
            "one of 'weight_hh_l",
            "'weight_hh_l17', ",
            " more, got 'weight_hh_17'",
        ],
    );
    says(call.program().named("features"), &["'features'"]);
    says(Builder::new("empty").finish().find("x"), &["none", "'x'"]);
    Ok(())
}

#[test]
fn scratch_that_nothing_has_written() -> Result<()> {
    let start = || {
        let mut b = Builder::new("p");
        let x = b.float("x", &[4], Role::Input);
        let s = b.float("s", &[4], Role::Scratch);
        let y = b.float("y", &[4], Role::Output);
        (b, x, s, y)
    };
    let (mut b, x, s, y) = start();
    copy(&mut b, (s, 0), (y, 0), 4)?;
    copy(&mut b, (x, 0), (s, 0), 4)?;
    says(
        program(b),
        &["'s'", "section 'main'", "step 0", "copy.copy"],
    );

    // It is dead after the section that wrote it.
    let (mut b, x, s, y) = start();
    b.section("first");
    copy(&mut b, (x, 0), (s, 0), 4)?;
    b.section("second");
    copy(&mut b, (x, 0), (y, 0), 4)?;
    copy(&mut b, (s, 0), (y, 0), 4)?;
    says(program(b), &["'s'", "section 'second'", "step 1"]);

    // A dispatch of nothing writes nothing, and reads nothing.
    let (mut b, x, s, y) = start();
    copy(&mut b, (x, 0), (s, 0), 0)?;
    copy(&mut b, (s, 0), (y, 0), 4)?;
    says(program(b), &["'s'", "step 1"]);
    let (mut b, _, s, y) = start();
    copy(&mut b, (s, 0), (y, 0), 0)?;
    program(b)?.run("main")?;

    // What a step changes must be there.
    let (mut b, _, s, y) = start();
    clip::clip_by_global_norm(&mut b, &[y], 1.0)?;
    fill(&mut b, y, 1.0)?;
    let _ = s;
    program(b)?.run("main")?;
    let (mut b, _, s, _) = start();
    let clock = b.uint("clock", &[1], Role::State);
    dropout::apply(
        &mut b,
        Dropout {
            values: s,
            clock,
            probability: 0.5,
            seed: 1,
            stream: 0,
        },
    )?;
    says(program(b), &["'s'", "dropout"]);
    let (mut b, x, s, _) = start();
    let [a, w] = [x, x].map(|id| Matrix::dense(id, 2, 2));
    let added = Gemm {
        beta: 1.0,
        ..Gemm::new(a, w, Matrix::dense(s, 2, 2))
    };
    added.push(&mut b)?;
    says(program(b), &["'s'", "gemm"]);
    let (mut b, x, s, _) = start();
    let sums = Columns {
        a: Matrix::dense(x, 2, 2),
        b: None,
        output: (s, 0),
        beta: 0.5,
    };
    sums.push(&mut b)?;
    says(program(b), &["'s'", "reduce.columns"]);

    // Written first, or bound, all of it is fine.
    let (mut b, x, s, y) = start();
    fill(&mut b, s, 0.0)?;
    Gemm {
        beta: 1.0,
        ..Gemm::new(a_of(x), a_of(x), a_of(s))
    }
    .push(&mut b)?;
    copy(&mut b, (s, 0), (y, 0), 4)?;
    program(b)?.run("main")?;
    let (mut b, _, s, y) = start();
    copy(&mut b, (s, 0), (y, 0), 4)?;
    let cpu = Context::cpu();
    let given = Tensor::zeros(&cpu, &[4], Element::Float)?;
    Program::new(&cpu, b.finish(), &[(s, given)])?.run("main")
}

fn a_of(id: BufferId) -> Matrix {
    Matrix::dense(id, 2, 2)
}

#[test]
fn weights_that_nothing_fills() -> Result<()> {
    let mut b = Builder::new("p");
    let w = b.float("w", &[4], Role::Weight);
    let y = b.float("y", &[4], Role::Output);
    // One that no step reads.
    b.float("unused", &[4], Role::Weight);
    copy(&mut b, (w, 0), (y, 0), 4)?;
    let plan = b.finish();
    for context in contexts() {
        says(
            Program::new(&context, plan.clone(), &[]),
            &["'w'", "bound", "neither"],
        );
        let given = Tensor::zeros(&context, &[4], Element::Float)?;
        given.write(&[1.0, 2.0, 3.0, 4.0])?;
        let program = Program::new(&context, plan.clone(), &[(w, given)])?;
        program.run("main")?;
        assert_eq!(program.tensor(y)?.read()?, [1.0, 2.0, 3.0, 4.0]);
    }
    // A step that changes it does not fill it.
    let mut b = Builder::new("p");
    let w = b.float("w", &[4], Role::Weight);
    let [gradient, velocity] = ["g", "v"].map(|n| b.float(n, &[4], Role::State));
    let rate = b.float("rate", &[1], Role::Input);
    let sgd = Sgd {
        weight: w,
        gradient,
        velocity,
        rate,
        momentum: 0.5,
        weight_decay: 0.0,
    };
    sgd::step(&mut b, sgd)?;
    says(program(b), &["'w'", "neither"]);
    Ok(())
}

/// A host's own plan of a layer: the buffers, then the steps.
fn of_layer(
    context: &Context,
    steps: impl Fn(&mut Builder, &Weights, &dyn Fn(&mut Builder) -> Result<()>) -> Result<()>,
) -> Result<(Plan, Weights, BufferId)> {
    let spec = Lstm::new(3, 4).spec();
    let target = context.target();
    let run = Run::new(&spec, &Call::inference(SIZE), &target)?;
    let mut b = Builder::on("host", target);
    let x = b.float("x", &[3, 2, 3], Role::Input);
    let y = b.float("y", &[3, 2, 4], Role::Output);
    let weights = driver::weights(&mut b, &spec);
    let states = driver::states(&mut b, &run);
    let ends = Ends {
        x: Matrix::dense(x, 6, 3),
        y,
        clock: None,
    };
    let forward = |b: &mut Builder| driver::forward(b, &run, ends, &weights, &states);
    steps(&mut b, &weights, &forward)?;
    Ok((b.finish(), weights, y))
}

#[test]
fn packed_weights_that_go_stale() -> Result<()> {
    let cpu = Context::cpu();
    let layer = Lstm::new(3, 4).build(&cpu)?;
    // Only the layer's own weights are bound: what is packed of them is not there.
    let (plan, weights, _) = of_layer(&cpu, |b, _, forward| forward(b))?;
    layer.program(plan.clone(), &weights, &[])?;
    says(
        Program::new(&cpu, plan, &layer.bind(&weights)?),
        &[
            "'weight_hh_t_l0'",
            "'weight_hh_l0'",
            "sequence::prepare",
            "neither",
        ],
    );
    // A step changes them, and none packs them again.
    let change = |b: &mut Builder, weights: &Weights| {
        let weight = weights.levels[0].weight_hh;
        let [gradient, velocity] = ["g", "v"].map(|n| b.float(n, &[16, 4], Role::State));
        let rate = b.float("rate", &[1], Role::Input);
        let sgd = Sgd {
            weight,
            gradient,
            velocity,
            rate,
            momentum: 0.5,
            weight_decay: 0.0,
        };
        sgd::step(b, sgd)
    };
    type Steps<'a> =
        &'a dyn Fn(&mut Builder, &Weights, &dyn Fn(&mut Builder) -> Result<()>) -> Result<()>;
    let nowhere: Steps<'_> = &|b, weights, forward| {
        forward(b)?;
        change(b, weights)
    };
    let too_late: Steps<'_> = &|b, weights, forward| {
        forward(b)?;
        driver::prepare(b, weights)?;
        change(b, weights)
    };
    let elsewhere: Steps<'_> = &|b, weights, forward| {
        b.section("train");
        driver::prepare(b, weights)?;
        forward(b)?;
        change(b, weights)?;
        b.section("evaluate");
        forward(b)
    };
    for (steps, section) in [
        (nowhere, "main"),
        (too_late, "main"),
        (elsewhere, "evaluate"),
    ] {
        let (plan, weights, _) = of_layer(&cpu, steps)?;
        let wanted = [
            "'weight_hh_t_l0'",
            section,
            "change 'weight_hh_l0'",
            "sequence::prepare",
        ];
        says(layer.program(plan, &weights, &[]), &wanted);
    }
    // Through a buffer of its own.
    let own = std::cell::Cell::new(None);
    let (plan, weights, _) = of_layer(&cpu, |b, _, forward| {
        forward(b)?;
        let to = b.float("own", &[16, 4], Role::Output);
        let from = b.float("zeros", &[16, 4], Role::Input);
        own.set(Some(to));
        copy(b, (from, 0), (to, 0), 64)
    })?;
    let bound = own
        .get()
        .map(|id| Ok((id, layer.weight("weight_hh_l0")?.clone())));
    let bound: Vec<_> = bound.into_iter().collect::<Result<_>>()?;
    says(
        layer.program(plan, &weights, &bound),
        &["weights", "sequence::prepare"],
    );
    let (plan, weights, _) = of_layer(&cpu, |b, weights, forward| {
        driver::prepare(b, weights)?;
        forward(b)?;
        change(b, weights)
    })?;
    Program::new(&cpu, plan, &layer.bind(&weights)?)?.run("main")
}

#[test]
fn token_ids_outside_the_vocabulary() -> Result<()> {
    for context in contexts() {
        let mut b = Builder::new("p");
        let [ids, other] = ["ids", "other"].map(|n| b.uint(n, &[3], Role::Input));
        let targets = b.uint("targets", &[3], Role::Input);
        let table = b.float("table", &[5, 2], Role::Input);
        let small = b.float("small", &[4, 2], Role::Input);
        let logits = b.float("logits", &[3, 2], Role::Output);
        embedding::gather(&mut b, ids, table, logits)?;
        embedding::gather(&mut b, other, table, logits)?;
        embedding::gather(&mut b, other, small, logits)?;
        let loss = b.float("loss", &[1], Role::Output);
        cross_entropy(
            &mut b,
            CrossEntropy {
                logits,
                targets,
                loss,
                gradient: true,
            },
        )?;
        let given = Tensor::zeros(&context, &[3], Element::Uint)?;
        let program = Program::new(&context, b.finish(), &[(other, given.clone())])?;
        let check = |id, values: [u32; 3], wrong: Option<(usize, usize)>| -> Result<()> {
            let tensor = program.tensor(id)?;
            let before = tensor.read_uint()?;
            match (tensor.write_uint(&values), wrong) {
                (Ok(()), None) => assert_eq!(tensor.read_uint()?, values),
                (
                    Err(Error::Token {
                        position,
                        id,
                        vocabulary,
                        ..
                    }),
                    Some(wrong),
                ) => {
                    assert_eq!((position, vocabulary), wrong);
                    assert_eq!(id, values[position]);
                    assert_eq!(tensor.read_uint()?, before);
                }
                (other, wrong) => panic!("{values:?}: {other:?}, not {wrong:?}"),
            }
            Ok(())
        };
        check(ids, [0, 4, 1], None)?;
        check(ids, [0, 5, 9], Some((1, 5)))?;
        check(ids, [0, 1, IGNORE], Some((2, 5)))?;
        // The smaller of two tables counts, also through memory that was bound.
        check(other, [0, 3, 1], None)?;
        check(other, [4, 3, 1], Some((0, 4)))?;
        check(targets, [1, IGNORE, 0], None)?;
        check(targets, [1, IGNORE, 2], Some((2, 2)))?;
        let part = program.tensor(ids)?.rows(1..2)?;
        assert!(matches!(
            part.write_uint(&[7]),
            Err(Error::Token { position: 0, .. })
        ));
        program.run("main")?;
        assert!(program.tensor(loss)?.read()?[0].is_finite());
        // The caller's own handle is the caller's own.
        given.write_uint(&[0, 0, 9])?;

        let mut b = Builder::new("with contents");
        let ids = b.uint("ids", &[3], Role::Input);
        let [table, rows] =
            [("table", 5), ("rows", 3)].map(|(n, r)| b.float(n, &[r, 2], Role::Input));
        b.contents(ids, 1, vec![4, 5])?;
        embedding::gather(&mut b, ids, table, rows)?;
        let refused = Program::new(&context, b.finish(), &[]);
        assert!(matches!(
            refusal(refused),
            Error::Token {
                position: 1,
                id: 5,
                ..
            }
        ));
    }
    Ok(())
}

/// Nothing is allocated, and no shader compiled, for what cannot be held.
#[test]
fn plans_that_exceed_the_memory_are_refused_at_once() -> Result<()> {
    for context in contexts() {
        let layer = Lstm::new(64, 64).num_layers(64).build(&context)?;
        // 1 TB of gates alone; a device of which the memory is not known has its limits of a buffer.
        for size in [
            Size {
                steps: 4_000_000,
                batch: 4,
            },
            Size {
                steps: 1000,
                batch: 16_000,
            },
        ] {
            let start = Instant::now();
            let e = refusal(layer.training(size));
            let took = start.elapsed();
            assert!(matches!(e, Error::Limit { .. }), "{}: {e}", context.name());
            assert!(
                took < Duration::from_secs(5),
                "{}: {took:?}",
                context.name()
            );
        }
        let mut b = Builder::on("large", context.target());
        let parts: Vec<_> = (0..20_000)
            .map(|n| b.float(&format!("part {n}"), &[1 << 24], Role::State))
            .collect();
        fill(&mut b, parts[0], 0.0)?;
        if context.kind() != wgrnn::plan::DeviceKind::Gpu {
            let e = refusal(Program::new(&context, b.finish(), &[]));
            assert!(matches!(e, Error::Limit { .. }), "{}: {e}", context.name());
            assert!(
                e.to_string()
                    .contains("bytes of memory for the plan 'large'"),
                "{e}"
            );
        }
    }
    Ok(())
}

/// As many choices and buffers as layers have taken no longer each: 16 times the layers of a plan that takes a
/// moment take no minutes.
#[test]
fn planning_is_linear_in_layers() -> Result<()> {
    let plan = |layers| {
        let spec = Lstm::new(4, 4).num_layers(layers).spec();
        let start = Instant::now();
        Sequence::plan(&spec, &Call::training(SIZE), &Target::default())?;
        Ok::<_, Error>(start.elapsed())
    };
    let (few, many) = (plan(128)?, plan(2048)?);
    assert!(
        many < 60 * few.max(Duration::from_millis(5)),
        "{few:?} {many:?}"
    );
    Ok(())
}
