//! SGD, Adam and AdamW.

use crate::{close, contexts, floats, program, read, refused, run, within};
use wgrnn::kernel::Data;
use wgrnn::kernels::adam::{self, Adam};
use wgrnn::kernels::clock;
use wgrnn::kernels::sgd::{self, Sgd};
use wgrnn::plan::{BufferId, Builder, Role};
use wgrnn::{Dtype, Program};

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
        program.tensor(dw).unwrap().write_f64(&values).unwrap();
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
