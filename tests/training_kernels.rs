//! The kernels of training against numbers that were found without them: by hand, by numeric
//! differences, or by a plain loop over the published formula. Each on the CPU in both precisions
//! and on every adapter.

mod common;

use wgrnn::check::{compare, tolerance};
use wgrnn::kernel::{Data, Element};
use wgrnn::kernels::adam::{self, Adam};
use wgrnn::kernels::clip::clip_by_global_norm;
use wgrnn::kernels::cross_entropy::{CrossEntropy, IGNORE, cross_entropy};
use wgrnn::kernels::dropout::{self, Dropout};
use wgrnn::kernels::sgd::{self, Sgd};
use wgrnn::kernels::{clock, embedding, reduce};
use wgrnn::plan::{BufferId, Builder, Role};
use wgrnn::rng::{Rng, philox, unit};
use wgrnn::{Context, Dtype, Error, Program};

fn contexts() -> Vec<Context> {
    let mut all = vec![Context::cpu_f64(), Context::cpu()];
    all.extend(common::adapters());
    all
}

/// A plan with its data on a device. Floats without data start as NaN.
fn program(context: &Context, b: Builder, data: &[(BufferId, Data)]) -> Program {
    let program = Program::new(context, b.finish(), &[]).unwrap();
    for (id, buffer) in program.plan().ids() {
        let tensor = program.tensor(id);
        match data.iter().find(|(d, _)| *d == id).map(|(_, d)| d) {
            Some(Data::Float(values)) => tensor.write(values).unwrap(),
            Some(Data::Uint(values)) => tensor.write_uint(values).unwrap(),
            None if buffer.element == Element::Float => {
                tensor.write(&vec![f32::NAN; buffer.len()]).unwrap();
            }
            None => {}
        }
    }
    program
}

fn run(context: &Context, b: Builder, data: &[(BufferId, Data)]) -> Program {
    let program = program(context, b, data);
    program.run("main").unwrap();
    program
}

fn read(program: &Program, id: BufferId) -> Vec<f64> {
    program.tensor(id).read_f64().unwrap()
}

#[track_caller]
fn close(context: &Context, got: &[f64], want: &[f64], length: usize) {
    within(
        context,
        got,
        want,
        tolerance::kernel(context.dtype(), length),
    );
}

#[track_caller]
fn within(context: &Context, got: &[f64], want: &[f64], limit: f64) {
    let d = compare(got, want);
    assert!(d.error <= limit, "{}: {d:?} > {limit:e}", context.name());
}

fn refused<T: std::fmt::Debug>(result: wgrnn::Result<T>) {
    let e = result.unwrap_err();
    assert!(
        matches!(e, Error::Shape { .. } | Error::Value { .. }),
        "{e}"
    );
}

fn floats(values: &[f64]) -> Data {
    Data::Float(values.iter().map(|&v| v as f32).collect())
}

// --- embedding -------------------------------------------------------------------------------

#[test]
fn gather_gives_nan_outside_the_table() {
    for context in contexts() {
        let mut b = Builder::new("gather");
        let ids = b.uint("ids", &[5, 1], Role::Input);
        let table = b.float("table", &[3, 2], Role::Weight);
        let output = b.float("output", &[5, 1, 2], Role::Output);
        embedding::gather(&mut b, ids, table, output).unwrap();
        let data = [
            (ids, Data::Uint(vec![2, 3, 0, u32::MAX, 2])),
            (table, floats(&[0.5, 1.5, 2.5, 3.5, 4.5, 5.5])),
        ];
        let got = read(&run(&context, b, &data), output);
        let rows: Vec<_> = got.chunks(2).collect();
        assert_eq!(
            [rows[0], rows[2], rows[4]],
            [[4.5, 5.5], [0.5, 1.5], [4.5, 5.5]]
        );
        for row in [rows[1], rows[3]] {
            assert!(
                row.iter().all(|v| v.is_nan()),
                "{}: {got:?}",
                context.name()
            );
        }
    }
}

#[test]
fn scatter_adds_repeated_ids_and_zeroes_the_rest() {
    for context in contexts() {
        let mut b = Builder::new("scatter");
        let ids = b.uint("ids", &[6], Role::Input);
        let doutput = b.float("doutput", &[6, 2], Role::Gradient);
        let dtable = b.float("dtable", &[4, 2], Role::Gradient);
        embedding::scatter(&mut b, ids, doutput, dtable).unwrap();
        let data = [
            (ids, Data::Uint(vec![1, 3, 1, 4, u32::MAX, 1])),
            (
                doutput,
                floats(&[
                    1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0,
                ]),
            ),
        ];
        let got = read(&run(&context, b, &data), dtable);
        assert_eq!(
            got,
            [0.0, 0.0, 17.0, 20.0, 0.0, 0.0, 3.0, 4.0],
            "{}",
            context.name()
        );
    }
}

/// More ids than a workgroup looks through at a time, more columns than it owns, one row for each
/// workgroup and several; the order of the sums is part of the contract, so in single precision
/// every bit is known.
#[test]
fn scatter_adds_in_ascending_order() {
    let contexts = contexts();
    let (tokens, columns) = (5_003, 65);
    for vocabulary in [7, 1_030] {
        let mut rng = Rng::new(5);
        // Ids from the lower half come up several times, also in the large table.
        let id: Vec<u32> = (0..tokens)
            .map(|_| rng.below(vocabulary) >> (rng.below(2) * 2))
            .collect();
        let values = rng.uniforms(tokens * columns, -1.0, 1.0);
        let mut want = vec![0.0f32; vocabulary as usize * columns];
        for (m, &v) in id.iter().enumerate() {
            for e in 0..columns {
                want[v as usize * columns + e] += values[m * columns + e];
            }
        }
        for context in &contexts {
            let mut b = Builder::new("scatter");
            let ids = b.uint("ids", &[tokens], Role::Input);
            let doutput = b.float("doutput", &[tokens, columns], Role::Gradient);
            let dtable = b.float("dtable", &[vocabulary as usize, columns], Role::Gradient);
            embedding::scatter(&mut b, ids, doutput, dtable).unwrap();
            let data = [
                (ids, Data::Uint(id.clone())),
                (doutput, Data::Float(values.clone())),
            ];
            let program = run(context, b, &data);
            if context.dtype() == Dtype::F32 {
                let got = program.tensor(dtable).read().unwrap();
                assert!(got == want, "{}: {vocabulary}", context.name());
            } else {
                let want: Vec<f64> = want.iter().map(|&v| f64::from(v)).collect();
                within(context, &read(&program, dtable), &want, 1e-5);
            }
        }
    }
}

#[test]
fn scatter_folds_a_large_vocabulary() {
    // 65,535 workgroups of 16 rows, and some.
    let vocabulary = 1_049_003;
    for context in contexts() {
        let mut b = Builder::new("scatter");
        let ids = b.uint("ids", &[5], Role::Input);
        let doutput = b.float("doutput", &[5, 1], Role::Gradient);
        let dtable = b.float("dtable", &[vocabulary, 1], Role::Gradient);
        embedding::scatter(&mut b, ids, doutput, dtable).unwrap();
        let plan = b.finish();
        assert_eq!(plan.steps()[0].grid[1], 2);
        let program = Program::new(&context, plan, &[]).unwrap();
        let write = |id, values: &[u32]| program.tensor(id).write_uint(values).unwrap();
        write(ids, &[1_049_002, 1_048_560, 524_511, 524_512, 1_049_002]);
        let doutput = program.tensor(doutput);
        doutput.write(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        let nan = vec![f32::NAN; vocabulary];
        program.tensor(dtable).write(&nan).unwrap();
        program.run("main").unwrap();
        let mut want = vec![0.0; vocabulary];
        want[1_049_002] = 6.0;
        want[1_048_560] = 2.0;
        want[524_511] = 3.0;
        want[524_512] = 4.0;
        assert!(read(&program, dtable) == want, "{}", context.name());
    }
}

#[test]
fn embedding_refuses_shapes() {
    let mut b = Builder::new("embedding");
    let ids = b.uint("ids", &[5], Role::Input);
    let table = b.float("table", &[3, 2], Role::Weight);
    let flat = b.float("flat", &[6], Role::Weight);
    let short = b.float("short", &[4, 2], Role::Output);
    refused(embedding::gather(&mut b, ids, table, short));
    refused(embedding::gather(&mut b, ids, flat, short));
    refused(embedding::gather(&mut b, table, table, short));
    refused(embedding::scatter(&mut b, ids, short, table));
    refused(embedding::scatter(&mut b, ids, short, flat));
}

// --- cross-entropy ---------------------------------------------------------------------------

/// The loss, and the logits afterwards.
fn loss_of(
    context: &Context,
    vocabulary: usize,
    logits: &[f64],
    targets: &[u32],
    gradient: bool,
) -> (f64, Vec<f64>) {
    let mut b = Builder::new("loss");
    let x = b.float("logits", &[targets.len(), vocabulary], Role::Saved);
    let t = b.uint("targets", &[targets.len()], Role::Input);
    let loss = b.float("loss", &[1], Role::Output);
    let args = CrossEntropy {
        logits: x,
        targets: t,
        loss,
        gradient,
    };
    cross_entropy(&mut b, args).unwrap();
    let program = program(context, b, &[(t, Data::Uint(targets.to_vec()))]);
    program.tensor(x).write_f64(logits).unwrap();
    program.run("main").unwrap();
    (read(&program, loss)[0], read(&program, x))
}

/// log(1 + e⁻¹ + e⁻²) and log 3; softmax of (1, 2, 3).
const LOSSES: [f64; 2] = [0.407_605_964_444_380_3, 1.098_612_288_668_109_8];
const SOFTMAX: [f64; 3] = [
    0.090_030_573_170_380_46,
    0.244_728_471_054_797_64,
    0.665_240_955_774_821_9,
];

#[test]
fn cross_entropy_by_hand() {
    let logits = [1.0, 2.0, 3.0, 1.0, 1.0, 1.0];
    let third = 1.0 / 6.0;
    let want = [
        SOFTMAX[0] / 2.0,
        SOFTMAX[1] / 2.0,
        (SOFTMAX[2] - 1.0) / 2.0,
        third - 0.5,
        third,
        third,
    ];
    for context in contexts() {
        let (loss, same) = loss_of(&context, 3, &logits, &[2, 0], false);
        close(&context, &[loss], &[(LOSSES[0] + LOSSES[1]) / 2.0], 3);
        assert_eq!(same, logits, "{}", context.name());
        let (loss, gradient) = loss_of(&context, 3, &logits, &[2, 0], true);
        close(&context, &[loss], &[(LOSSES[0] + LOSSES[1]) / 2.0], 3);
        close(&context, &gradient, &want, 3);
    }
}

#[test]
fn cross_entropy_does_not_overflow() {
    for context in contexts() {
        for shift in [1e4, -1e4, 1e6] {
            let logits = [1.0, 2.0, 3.0].map(|v| v + shift);
            let (loss, gradient) = loss_of(&context, 3, &logits, &[2], true);
            close(&context, &[loss], &[LOSSES[0]], 3);
            close(
                &context,
                &gradient,
                &[SOFTMAX[0], SOFTMAX[1], SOFTMAX[2] - 1.0],
                3,
            );
        }
        // A loss as large as the logits' difference, and one that vanishes.
        let (loss, _) = loss_of(&context, 2, &[-1e4, 1e4], &[0], false);
        close(&context, &[loss], &[2e4], 2);
        let (loss, gradient) = loss_of(&context, 2, &[-1e4, 1e4], &[1], true);
        close(&context, &[loss, gradient[0], gradient[1]], &[0.0; 3], 2);
    }
}

#[test]
fn cross_entropy_ignores() {
    let nan = f64::NAN;
    let logits = [1.0, 2.0, 3.0, nan, 7.0, 1.0, 1.0, 2.0, 3.0];
    for context in contexts() {
        let (loss, gradient) = loss_of(&context, 3, &logits, &[2, IGNORE, 0], true);
        close(&context, &[loss], &[LOSSES[0] + 1.0], 3);
        assert_eq!(gradient[3..6], [0.0; 3], "{}", context.name());
        let half = SOFTMAX.map(|p| p / 2.0);
        close(
            &context,
            &gradient[..3],
            &[half[0], half[1], half[2] - 0.5],
            3,
        );
        close(
            &context,
            &gradient[6..],
            &[half[0] - 0.5, half[1], half[2]],
            3,
        );

        let (loss, gradient) = loss_of(&context, 3, &logits, &[IGNORE; 3], true);
        assert_eq!((loss, gradient), (0.0, vec![0.0; 9]), "{}", context.name());
        let (loss, gradient) = loss_of(&context, 3, &[], &[], true);
        assert_eq!((loss, gradient), (0.0, vec![]), "{}", context.name());
    }
}

#[test]
fn cross_entropy_shows_what_is_wrong() {
    for context in contexts() {
        let name = context.name();
        let logits = [1.0, 2.0, 3.0, 1.0, 2.0, 3.0];
        for target in [3, IGNORE - 1] {
            let (loss, gradient) = loss_of(&context, 3, &logits, &[target, 2], true);
            assert!(loss.is_nan(), "{name}: {loss}");
            assert!(
                gradient[..3].iter().all(|g| g.is_nan()),
                "{name}: {gradient:?}"
            );
            let half = SOFTMAX.map(|p| p / 2.0);
            close(
                &context,
                &gradient[3..],
                &[half[0], half[1], half[2] - 0.5],
                3,
            );
        }
        // Wherever the NaN is; its row's target is elsewhere.
        for at in 0..3 {
            let mut logits = logits;
            logits[at] = f64::NAN;
            let target = (at as u32 + 1) % 3;
            let (loss, gradient) = loss_of(&context, 3, &logits, &[target, 0], true);
            assert!(loss.is_nan(), "{name}: {loss}");
            assert!(
                gradient[..3].iter().all(|g| g.is_nan()),
                "{name}: {gradient:?}"
            );
            assert!(
                gradient[3..].iter().all(|g| g.is_finite()),
                "{name}: {gradient:?}"
            );
        }
    }
}

/// The gradient against central differences of the loss, in double precision; then every device's
/// gradient against that one.
#[test]
fn cross_entropy_gradient() {
    let (rows, vocabulary) = (4, 131);
    let mut rng = Rng::new(11);
    let values = rng.uniforms(rows * vocabulary, -3.0, 3.0);
    let logits: Vec<f64> = values.iter().map(|&v| f64::from(v)).collect();
    let targets = [130, 0, IGNORE, 64];
    let oracle = Context::cpu_f64();
    let (_, want) = loss_of(&oracle, vocabulary, &logits, &targets, true);
    let h = 1e-4;
    for at in 0..logits.len() {
        let shifted = |by: f64| {
            let mut logits = logits.clone();
            logits[at] += by;
            loss_of(&oracle, vocabulary, &logits, &targets, false).0
        };
        let numeric = (shifted(h) - shifted(-h)) / (2.0 * h);
        assert!(
            (numeric - want[at]).abs() < 1e-9,
            "{at}: {numeric} and {}",
            want[at]
        );
    }
    for context in contexts() {
        let (_, got) = loss_of(&context, vocabulary, &logits, &targets, true);
        close(&context, &got, &want, vocabulary);
    }
}

#[test]
fn cross_entropy_folds_many_rows() {
    let rows = 70_003;
    let logits: Vec<f64> = (0..2 * rows).map(|i| f64::from(i as u32 % 5)).collect();
    let targets: Vec<u32> = (0..rows as u32).map(|m| m % 2).collect();
    let (mut sum, mut want) = (0.0, vec![0.0; 2 * rows]);
    for (m, &t) in targets.iter().enumerate() {
        let (a, b) = (logits[2 * m], logits[2 * m + 1]);
        let total = a.exp() + b.exp();
        sum += total.ln() - [a, b][t as usize];
        want[2 * m] = a.exp() / total;
        want[2 * m + 1] = b.exp() / total;
        want[2 * m + t as usize] -= 1.0;
    }
    let want: Vec<f64> = want.iter().map(|g| g / rows as f64).collect();
    for context in contexts() {
        let (loss, gradient) = loss_of(&context, 2, &logits, &targets, true);
        close(&context, &[loss], &[sum / rows as f64], 1_100);
        close(&context, &gradient, &want, 2);
    }
}

#[test]
fn cross_entropy_refuses_shapes() {
    let mut b = Builder::new("loss");
    let logits = b.float("logits", &[4, 3], Role::Saved);
    let targets = b.uint("targets", &[5], Role::Input);
    let four = b.uint("targets", &[2, 2], Role::Input);
    let loss = b.float("loss", &[1], Role::Output);
    let mut push = |logits, targets, loss| {
        cross_entropy(
            &mut b,
            CrossEntropy {
                logits,
                targets,
                loss,
                gradient: false,
            },
        )
    };
    refused(push(logits, targets, loss));
    refused(push(logits, four, logits));
    refused(push(loss, four, loss));
    push(logits, four, loss).unwrap();
}

// --- clipping --------------------------------------------------------------------------------

/// Norm and factor, and the gradients afterwards.
fn clipped(context: &Context, gradients: &[Vec<f64>], max: f32) -> (Vec<f64>, Vec<Vec<f64>>) {
    let mut b = Builder::new("clip");
    let ids: Vec<BufferId> = gradients
        .iter()
        .map(|g| b.float("gradient", &[g.len()], Role::Gradient))
        .collect();
    let norm = clip_by_global_norm(&mut b, &ids, max).unwrap();
    assert_eq!(b.buffer(norm).name, "gradient norm");
    let data: Vec<_> = ids
        .iter()
        .zip(gradients)
        .map(|(&id, g)| (id, floats(g)))
        .collect();
    let program = run(context, b, &data);
    let after = ids.iter().map(|&id| read(&program, id)).collect();
    (read(&program, norm), after)
}

#[test]
fn clip_by_definition() {
    let gradients = [vec![3.0, 0.0], vec![], vec![0.0, 4.0, 0.0]];
    for context in contexts() {
        let name = context.name();
        let (norm, after) = clipped(&context, &gradients, 1.0);
        let factor = 1.0 / (5.0 + 1e-6);
        close(&context, &norm, &[5.0, factor], 1);
        close(
            &context,
            &after.concat(),
            &[3.0 * factor, 0.0, 0.0, 4.0 * factor, 0.0],
            1,
        );
        for limit in [10.0, f32::INFINITY] {
            let (norm, after) = clipped(&context, &gradients, limit);
            close(&context, &norm, &[5.0, 1.0], 1);
            assert_eq!(after, gradients, "{name}");
        }
        // The guard beside the norm is not small here.
        let small = 1.0 / 1_048_576.0;
        let (norm, _) = clipped(&context, &[vec![small]], small as f32);
        close(&context, &norm[1..], &[small / (small + 1e-6)], 1);
        let (norm, after) = clipped(&context, &[vec![0.0; 3]], 0.5);
        assert_eq!(
            (norm, after),
            (vec![0.0, 1.0], vec![vec![0.0; 3]]),
            "{name}"
        );
        let (norm, _) = clipped(&context, &[], 0.5);
        assert_eq!(norm, [0.0, 1.0], "{name}");
    }
}

#[test]
fn clip_shows_nan() {
    for context in contexts() {
        for limit in [0.5, f32::INFINITY] {
            let gradients = [vec![1.0, 2.0], vec![3.0, f64::NAN]];
            let (norm, after) = clipped(&context, &gradients, limit);
            assert!(
                norm.iter().all(|v| v.is_nan()),
                "{}: {norm:?}",
                context.name()
            );
            if limit.is_finite() {
                let all = after.concat();
                assert!(
                    all.iter().all(|v| v.is_nan()),
                    "{}: {all:?}",
                    context.name()
                );
            }
        }
    }
}

/// Tensors whose squares are summed in two dispatches, beside ones that take one.
#[test]
fn clip_many_gradients() {
    let mut rng = Rng::new(3);
    let gradients: Vec<Vec<f64>> = [1, 20_011, 255, 257, 0, 1_000]
        .iter()
        .map(|&n| {
            rng.uniforms(n, -1.0, 1.0)
                .into_iter()
                .map(f64::from)
                .collect()
        })
        .collect();
    let norm = gradients.concat().iter().map(|g| g * g).sum::<f64>().sqrt();
    let factor = 2.0 / (norm + 1e-6);
    let want: Vec<f64> = gradients.concat().iter().map(|g| g * factor).collect();
    for context in contexts() {
        let (got, after) = clipped(&context, &gradients, 2.0);
        close(&context, &got[..1], &[norm], 64);
        close(&context, &got[1..], &[factor], 64);
        close(&context, &after.concat(), &want, 64);
    }
}

#[test]
fn clip_refuses() {
    let mut b = Builder::new("clip");
    let g = b.float("g", &[4], Role::Gradient);
    let ids = b.uint("ids", &[4], Role::Input);
    for limit in [0.0, -1.0, f32::NAN, f32::NEG_INFINITY] {
        refused(clip_by_global_norm(&mut b, &[g], limit));
    }
    refused(clip_by_global_norm(&mut b, &[g, g], 1.0));
    refused(clip_by_global_norm(&mut b, &[ids], 1.0));
    refused(reduce::total_at(&mut b, g, (g, 0), false));
    let two = b.float("two", &[2], Role::Output);
    refused(reduce::total(&mut b, g, two, false));
    refused(reduce::total_at(&mut b, g, (two, 2), false));
}

// --- optimizers ------------------------------------------------------------------------------

const WEIGHTS: [f64; 5] = [1.0, -0.5, 0.25, 2.0, -1.5];

/// The gradient of element i in step t: both signs, several sizes, sometimes 0.
fn gradient(t: usize, i: usize) -> f64 {
    let scale = [1.0, 0.25, 0.001, 4.0, 0.5][i];
    scale * [1.0, -0.5, 0.0, 0.75, 1.25, -1.0][(t + i) % 6]
}

/// Runs a plan once per step with the gradients above; the weights after each step.
fn trajectory(program: &Program, weight: BufferId, dw: BufferId, steps: usize) -> Vec<f64> {
    let mut all = Vec::new();
    for t in 0..steps {
        let values: Vec<f64> = (0..5).map(|i| gradient(t, i)).collect();
        program.tensor(dw).write_f64(&values).unwrap();
        program.run("main").unwrap();
        all.extend(read(program, weight));
    }
    all
}

#[test]
fn sgd_follows_its_formula() {
    let contexts = contexts();
    for (momentum, decay) in [(0.0, 0.0), (0.5, 0.0), (0.0, 0.25), (0.75, 0.125)] {
        let rate = 0.125;
        let (mut w, mut v, mut want) = (WEIGHTS, [0.0; 5], Vec::new());
        for t in 0..7 {
            for i in 0..5 {
                let g = gradient(t, i) + decay * w[i];
                v[i] = momentum * v[i] + g;
                w[i] -= rate * v[i];
            }
            want.extend(w);
        }
        for context in &contexts {
            let mut b = Builder::new("sgd");
            let args = Sgd {
                weight: b.float("weight", &[5], Role::Weight),
                gradient: b.float("gradient", &[5], Role::Gradient),
                velocity: b.float("velocity", &[5], Role::State),
                rate: b.float("rate", &[1], Role::Input),
                momentum: momentum as f32,
                weight_decay: decay as f32,
            };
            sgd::step(&mut b, args).unwrap();
            let data = [
                (args.weight, floats(&WEIGHTS)),
                (args.velocity, floats(&[0.0; 5])),
                (args.rate, floats(&[rate])),
            ];
            let program = program(context, b, &data);
            let got = trajectory(&program, args.weight, args.gradient, 7);
            close(context, &got, &want, 7);
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct AdamCase {
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    decay: f64,
    decoupled: bool,
    /// Relative to the largest weight, in double precision.
    limit: f64,
}

fn adam_plan(case: AdamCase, shape: &[usize]) -> (Builder, Adam) {
    let mut b = Builder::new("adam");
    let args = Adam {
        weight: b.float("weight", shape, Role::Weight),
        gradient: b.float("gradient", shape, Role::Gradient),
        m: b.float("m", shape, Role::State),
        v: b.float("v", shape, Role::State),
        rate: b.float("rate", &[1], Role::Input),
        clock: b.uint("clock", &[1], Role::State),
        beta1: case.beta1,
        beta2: case.beta2,
        epsilon: case.epsilon as f32,
        weight_decay: case.decay as f32,
        decoupled: case.decoupled,
    };
    clock::advance(&mut b, args.clock).unwrap();
    adam::step(&mut b, args).unwrap();
    (b, args)
}

/// Kingma and Ba's algorithm 1, and Loshchilov and Hutter's algorithm 2 with both the step and the
/// decay times the learning rate, written as they stand there.
fn adam_by_the_papers(case: AdamCase, rate: f64, steps: usize) -> Vec<f64> {
    let AdamCase {
        beta1,
        beta2,
        epsilon,
        decay,
        decoupled,
        ..
    } = case;
    let (mut theta, mut m, mut v) = (WEIGHTS, [0.0; 5], [0.0; 5]);
    let mut all = Vec::new();
    for t in 1..=steps {
        for i in 0..5 {
            let l2 = if decoupled { 0.0 } else { decay * theta[i] };
            let g = gradient(t - 1, i) + l2;
            m[i] = beta1 * m[i] + (1.0 - beta1) * g;
            v[i] = beta2 * v[i] + (1.0 - beta2) * g.powi(2);
            let m_hat = m[i] / (1.0 - beta1.powi(t as i32));
            let v_hat = v[i] / (1.0 - beta2.powi(t as i32));
            let separate = if decoupled { decay * theta[i] } else { 0.0 };
            theta[i] -= rate * (m_hat / (v_hat.sqrt() + epsilon) + separate);
        }
        all.extend(theta);
    }
    all
}

#[test]
fn adam_follows_its_papers() {
    // The parameters of a kernel are single precision, so the oracle is only exact for those that
    // single precision holds.
    let dyadic = AdamCase {
        beta1: 0.875,
        beta2: 1.0 - 1.0 / 1_024.0,
        epsilon: 1.0 / 65_536.0,
        decay: 0.0,
        decoupled: false,
        limit: 1e-12,
    };
    let usual = AdamCase {
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        limit: 1e-6,
        ..dyadic
    };
    let cases = [dyadic, usual].into_iter().flat_map(|case| {
        let decay = AdamCase {
            decay: 0.25,
            ..case
        };
        let decoupled = AdamCase {
            decoupled: true,
            ..decay
        };
        [case, decay, decoupled]
    });
    let (rate, steps) = (0.125, 12);
    let contexts = contexts();
    for case in cases {
        let want = adam_by_the_papers(case, rate, steps);
        for context in &contexts {
            let (b, args) = adam_plan(case, &[5]);
            let data = [
                (args.weight, floats(&WEIGHTS)),
                (args.m, floats(&[0.0; 5])),
                (args.v, floats(&[0.0; 5])),
                (args.rate, floats(&[rate])),
                (args.clock, Data::Uint(vec![0])),
            ];
            let program = program(context, b, &data);
            let got = trajectory(&program, args.weight, args.gradient, steps);
            let limit = match context.dtype() {
                Dtype::F64 => case.limit,
                Dtype::F32 => 2e-6,
            };
            within(context, &got, &want, limit);
        }
    }
}

/// From zero moments, with gradient 1, rate 1 and no ε, a step is the corrections alone:
/// −(1 − β₁) / c₁ · √(c₂ / (1 − β₂)).
#[test]
fn adam_corrects_biases_at_every_age() {
    let contexts = contexts();
    for (beta1, beta2) in [(0.9, 0.999), (0.0, 0.99999), (0.5, 0.5), (0.99, 0.9)] {
        let case = AdamCase {
            beta1,
            beta2,
            epsilon: 0.0,
            decay: 0.0,
            decoupled: false,
            limit: 0.0,
        };
        for t in [1, 2, 9, 10, 100, 999, 1_001, 100_000, 20_000_000, u32::MAX] {
            let correction = |beta: f64| -(f64::from(t) * beta.ln()).exp_m1();
            let (c1, c2) = (correction(beta1), correction(beta2));
            let want = -(1.0 - beta1) / c1 * (c2 / (1.0 - beta2)).sqrt();
            for context in &contexts {
                let (b, args) = adam_plan(case, &[1]);
                let data = [
                    (args.weight, floats(&[0.0])),
                    (args.gradient, floats(&[1.0])),
                    (args.m, floats(&[0.0])),
                    (args.v, floats(&[0.0])),
                    (args.rate, floats(&[1.0])),
                    (args.clock, Data::Uint(vec![t - 1])),
                ];
                let got = read(&run(context, b, &data), args.weight);
                within(context, &got, &[want], 1e-6);
            }
        }
    }
}

#[test]
fn optimizers_refuse() {
    let mut b = Builder::new("refuse");
    let weight = b.float("weight", &[2, 3], Role::Weight);
    let gradient = b.float("gradient", &[2, 3], Role::Gradient);
    let other = b.float("other", &[3, 2], Role::Gradient);
    let [m, v] = ["m", "v"].map(|n| b.float(n, &[2, 3], Role::State));
    let rate = b.float("rate", &[1], Role::Input);
    let clock = b.uint("clock", &[1], Role::State);
    let plain = Sgd {
        weight,
        gradient,
        velocity: v,
        rate,
        momentum: 0.9,
        weight_decay: 0.0,
    };
    sgd::step(&mut b, plain).unwrap();
    for bad in [
        Sgd {
            gradient: other,
            ..plain
        },
        Sgd {
            velocity: other,
            ..plain
        },
        Sgd { rate: m, ..plain },
        Sgd {
            rate: clock,
            ..plain
        },
        Sgd {
            momentum: -0.1,
            ..plain
        },
        Sgd {
            weight_decay: f32::NAN,
            ..plain
        },
        Sgd {
            velocity: weight,
            ..plain
        },
    ] {
        refused(sgd::step(&mut b, bad));
    }
    let adam = Adam {
        weight,
        gradient,
        m,
        v,
        rate,
        clock,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.0,
        decoupled: true,
    };
    adam::step(&mut b, adam).unwrap();
    for bad in [
        Adam { beta1: 1.0, ..adam },
        Adam {
            beta2: -0.1,
            ..adam
        },
        Adam {
            beta2: f64::NAN,
            ..adam
        },
        Adam {
            epsilon: -1.0,
            ..adam
        },
        Adam {
            weight_decay: f32::INFINITY,
            ..adam
        },
        Adam { m: other, ..adam },
        Adam { v: m, ..adam },
        Adam { rate: m, ..adam },
        Adam {
            clock: rate,
            ..adam
        },
    ] {
        refused(adam::step(&mut b, bad));
    }
}

// --- dropout and the clock -------------------------------------------------------------------

const VALUES: usize = 10_007;

/// Sections `forward`, `backward` and `tick` over one place of dropout.
fn dropout_plan(probability: f32, seed: u64, stream: u32) -> (Builder, [BufferId; 3]) {
    let mut b = Builder::new("dropout");
    let x = b.float("x", &[VALUES], Role::Saved);
    let dx = b.float("dx", &[VALUES], Role::Gradient);
    let clock = b.uint("clock", &[1], Role::State);
    for (section, values) in [("forward", x), ("backward", dx)] {
        b.section(section);
        let args = Dropout {
            values,
            clock,
            probability,
            seed,
            stream,
        };
        dropout::apply(&mut b, args).unwrap();
    }
    b.section("tick");
    clock::advance(&mut b, clock).unwrap();
    (b, [x, dx, clock])
}

fn mask(program: &Program, id: BufferId, section: &str) -> Vec<f32> {
    let tensor = program.tensor(id);
    tensor.write(&[1.0; VALUES]).unwrap();
    program.run(section).unwrap();
    tensor.read().unwrap()
}

fn differing(a: &[f32], b: &[f32]) -> f64 {
    let n = a
        .iter()
        .zip(b)
        .filter(|(a, b)| (**a == 0.0) != (**b == 0.0));
    n.count() as f64 / VALUES as f64
}

#[test]
fn dropout_masks() {
    let seed = 0x1234_5678_9abc_def0;
    for context in contexts() {
        let name = context.name();
        for p in [0.3, 0.5, 0.9] {
            let start = |seed, stream| {
                let (b, ids) = dropout_plan(p, seed, stream);
                (program(&context, b, &[(ids[2], Data::Uint(vec![77]))]), ids)
            };
            let (program, [x, dx, clock]) = start(seed, 3);
            let forward = mask(&program, x, "forward");
            for (i, &v) in forward.iter().enumerate() {
                let words = philox([0x9abc_def0, 0x1234_5678], [i as u32 / 4, 3, 77, 0]);
                let want = if unit(words[i % 4]) >= p {
                    1.0 / (1.0 - p)
                } else {
                    0.0
                };
                assert!(
                    (v - want).abs() <= 1e-6 * want,
                    "{name}: {i}: {v} and {want}"
                );
            }
            // Four standard errors.
            let (p, n) = (f64::from(p), VALUES as f64);
            let kept = forward.iter().filter(|v| **v != 0.0).count() as f64 / n;
            let error = 4.0 * (p * (1.0 - p) / n).sqrt();
            assert!((kept - (1.0 - p)).abs() < error, "{name}: {kept}");
            let mean = forward.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
            assert!((mean - 1.0).abs() < error / (1.0 - p), "{name}: {mean}");

            assert!(mask(&program, dx, "backward") == forward, "{name}");
            assert!(mask(&program, x, "forward") == forward, "{name}");
            program.run("tick").unwrap();
            assert_eq!(program.tensor(clock).read_uint().unwrap(), [78]);
            let next = mask(&program, x, "forward");
            let others = [start(seed, 4), start(seed ^ 1, 3), start(seed ^ 1 << 63, 3)];
            let mut masks = vec![next];
            masks.extend(others.iter().map(|(p, ids)| mask(p, ids[0], "forward")));
            for other in masks {
                // Independent masks differ where exactly one of them keeps.
                let share = differing(&forward, &other);
                assert!(
                    (share - 2.0 * p * (1.0 - p)).abs() < 0.02,
                    "{name}: {share}"
                );
            }
        }
    }
}

#[test]
fn dropout_without_effect_and_of_nan() {
    for context in contexts() {
        let name = context.name();
        let (b, [x, _, clock]) = dropout_plan(0.0, 1, 0);
        let program_0 = program(&context, b, &[(clock, Data::Uint(vec![1]))]);
        assert!(mask(&program_0, x, "forward") == [1.0; VALUES], "{name}");

        let (b, [x, dx, clock]) = dropout_plan(0.5, 1, 0);
        let program = program(&context, b, &[(clock, Data::Uint(vec![1]))]);
        let kept = mask(&program, dx, "backward");
        program.tensor(x).write(&[f32::NAN; VALUES]).unwrap();
        program.run("forward").unwrap();
        let got = program.tensor(x).read().unwrap();
        for (v, k) in got.iter().zip(&kept) {
            assert!(
                if *k == 0.0 { *v == 0.0 } else { v.is_nan() },
                "{name}: {v}"
            );
        }
    }
}

#[test]
fn dropout_refuses() {
    let mut b = Builder::new("dropout");
    let values = b.float("values", &[4], Role::Saved);
    let clock = b.uint("clock", &[1], Role::State);
    let two = b.uint("two", &[2], Role::State);
    let args = Dropout {
        values,
        clock,
        probability: 0.5,
        seed: 0,
        stream: 0,
    };
    for probability in [1.0, -0.1, 1.5, f32::NAN, f32::INFINITY] {
        let args = Dropout {
            probability,
            ..args
        };
        assert!(matches!(
            dropout::apply(&mut b, args),
            Err(Error::Value { .. })
        ));
    }
    refused(dropout::apply(&mut b, Dropout { clock: two, ..args }));
    refused(clock::advance(&mut b, two));
    refused(clock::advance(&mut b, values));
}

#[test]
fn clock_counts_and_wraps() {
    for context in contexts() {
        let mut b = Builder::new("clock");
        let clock = b.uint("clock", &[1], Role::State);
        clock::advance(&mut b, clock).unwrap();
        let program = program(&context, b, &[(clock, Data::Uint(vec![u32::MAX - 1]))]);
        for want in [u32::MAX, 0, 1] {
            program.run("main").unwrap();
            let got = program.tensor(clock).read_uint().unwrap();
            assert_eq!(got, [want], "{}", context.name());
        }
    }
}
