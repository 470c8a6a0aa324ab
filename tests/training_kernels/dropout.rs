//! Masks of dropout, and the clock that gives each step its own.

use crate::{contexts, program, refused};
use wgrnn::kernel::Data;
use wgrnn::kernels::clock;
use wgrnn::kernels::dropout::{self, Dropout};
use wgrnn::plan::{BufferId, Builder, Role};
use wgrnn::rng::{philox, unit};
use wgrnn::{Error, Program};

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
    let tensor = program.tensor(id).unwrap();
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
            assert_eq!(program.tensor(clock).unwrap().read_uint().unwrap(), [78]);
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
        program
            .tensor(x)
            .unwrap()
            .write(&[f32::NAN; VALUES])
            .unwrap();
        program.run("forward").unwrap();
        let got = program.tensor(x).unwrap().read().unwrap();
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
            let got = program.tensor(clock).unwrap().read_uint().unwrap();
            assert_eq!(got, [want], "{}", context.name());
        }
    }
}
