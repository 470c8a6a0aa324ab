//! Softmax cross-entropy and its gradient.

use crate::{close, contexts, program, read, refused};
use wgrnn::Context;
use wgrnn::kernel::Data;
use wgrnn::kernels::cross_entropy::{CrossEntropy, IGNORE, cross_entropy};
use wgrnn::plan::{Builder, Role};
use wgrnn::rng::Rng;

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
    program.tensor(x).unwrap().write_f64(logits).unwrap();
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
