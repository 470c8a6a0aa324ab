//! Clipping by the global norm.

use crate::{close, contexts, floats, read, refused, run};
use wgrnn::Context;
use wgrnn::kernels::clip::clip_by_global_norm;
use wgrnn::kernels::reduce;
use wgrnn::plan::{BufferId, Builder, Role};
use wgrnn::rng::Rng;

/// Norm and factor, and the gradients afterwards.
fn clipped(context: &Context, gradients: &[Vec<f64>], max: f32) -> (Vec<f64>, Vec<Vec<f64>>) {
    let mut b = Builder::new("clip");
    let ids: Vec<BufferId> = gradients
        .iter()
        .map(|g| b.float("gradient", &[g.len()], Role::Gradient))
        .collect();
    let norm = clip_by_global_norm(&mut b, &ids, max).unwrap();
    assert_eq!(b.buffer(norm).unwrap().name, "gradient norm");
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
