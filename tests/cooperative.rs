//! Products in cooperative matrices, on devices that have them: they round both factors to 16-bit floats, no
//! rule takes them, and where they are forced a whole layer is as near as its rounded factors let it be.
#![cfg(feature = "cooperative")]

mod common;

use common::results::{fill_inputs, results};
use wgrnn::check::{compare, tolerance};
use wgrnn::kernels::gemm::Form;
use wgrnn::plan::Force;
use wgrnn::{Call, Context, Layer, Lstm, Result, Size};

#[test]
fn a_layer_over_them() -> Result<()> {
    let spec = Lstm::new(37, 45).spec();
    let size = Size {
        steps: 9,
        batch: 11,
    };
    let run = |context: &Context| {
        let sequence = Layer::new(context, spec, 3)?.sequence(&Call::training(size))?;
        fill_inputs(&sequence, 4)?;
        let plan = sequence.program().plan().to_string();
        Ok::<_, wgrnn::Error>((results(&sequence)?, plan))
    };
    let (want, _) = run(&Context::cpu_f64())?;
    for context in common::adapters() {
        let (_, by_rule) = run(&context)?;
        assert!(!by_rule.contains("gemm.cooperative"), "{by_rule}");
        let forced = context.forcing(Force {
            gemm: Some(Form::Cooperative),
            ..Force::default()
        });
        let (got, plan) = run(&forced)?;
        let has = context.target().cooperative.is_some();
        assert_eq!(plan.contains("gemm.cooperative"), has, "{}", context.name());
        if !has {
            println!("{}: it has no cooperative matrices", context.name());
            continue;
        }
        for (name, want) in &want {
            // Every factor is rounded once.
            let d = compare(&got[name], want);
            assert!(
                d.error <= 4.0 * tolerance::UNIT_F16,
                "{name}: {:.1e}",
                d.error
            );
        }
        let moved = compare(&got["y"], &want["y"]).error;
        assert!(moved > 1e-5, "y moved by {moved:.1e} alone");
    }
    Ok(())
}
