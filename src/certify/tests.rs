use super::inputs::{Swap, long_loops};
use super::*;
use crate::cell::{GRU, GRU_BEFORE, LSTM_PEEPHOLE_PROJECTED};
use crate::kernel::Twin;
use crate::kernels::{gemm, reduce};
use crate::layer::{Layer, Lstm, Sequence};
use crate::plan::Builder;
use crate::plan::sequence::{Call, LayerSpec, Size, streams, weights};
use ndarray::Array3;

/// Adapters, and the CPU.
fn everywhere() -> Vec<Context> {
    Context::all().unwrap()
}

fn plan_of(context: &Context, spec: &LayerSpec, call: &Call) -> Result<Plan> {
    Sequence::plan(spec, call, &context.target())
}

#[test]
fn every_kernel_of_layers_is_compared_and_right() {
    for context in everywhere() {
        let mut certificates = Certificates::new();
        for (spec, call) in [
            (
                LayerSpec {
                    bidirectional: true,
                    ..LayerSpec::new(&GRU, 5, 20)
                },
                Call::training(Size {
                    steps: 40,
                    batch: 6,
                })
                .lengths(),
            ),
            (
                LayerSpec::new(&LSTM_PEEPHOLE_PROJECTED, 5, 12),
                Call::training(Size { steps: 9, batch: 2 }).recompute(4),
            ),
            (
                LayerSpec::new(&GRU_BEFORE, 5, 12),
                Call::inference(Size { steps: 9, batch: 2 }).resets(),
            ),
        ] {
            let plan = plan_of(&context, &spec, &call).unwrap();
            let certificate = certificates.certify(&context, &plan).unwrap();
            assert_eq!(certificate.unchecked().next(), None, "{}", context.name());
            assert_eq!(certificate.wrong().next(), None, "{}", context.name());
            let kernels: Vec<String> = plan
                .steps()
                .iter()
                .map(|s| subject(s.kernel, &s.constants))
                .collect();
            let known = |s: &String| certificate.verdicts.iter().any(|(of, _)| of == s);
            assert!(kernels.iter().all(known));
            assert!(certificate.to_string().ends_with("kernels right"));
        }
        let spec = LayerSpec::new(&GRU, 4, 20);
        let mut b = Builder::on("streams", context.target());
        let weights = weights(&mut b, &spec);
        streams(&mut b, &spec, 9, &weights).unwrap();
        let certificate = certificates.certify(&context, &b.finish()).unwrap();
        assert_eq!(certificate.unchecked().next(), None);
        assert_eq!(certificate.wrong().next(), None);
    }
}

/// A kernel with another text, the twin of which stays.
fn with_text(kernel: &Kernel, from: &str, to: &str) -> &'static Kernel {
    let text = kernel.wgsl.replace(from, to);
    assert_ne!(text, kernel.wgsl, "{}", kernel.name);
    Box::leak(Box::new(Kernel {
        wgsl: Box::leak(text.into_boxed_str()),
        ..with_twin(kernel, kernel.twin)
    }))
}

fn with_twin(kernel: &Kernel, twin: Twin) -> Kernel {
    Kernel {
        name: kernel.name,
        wgsl: kernel.wgsl,
        entry: kernel.entry,
        bindings: kernel.bindings,
        params_size: kernel.params_size,
        workgroup_size: kernel.workgroup_size,
        workgroup_memory: kernel.workgroup_memory,
        rounds: kernel.rounds,
        twin,
        sample: kernel.sample,
    }
}

/// Takes from a context, one after the other, what is wrong with the kernels that are put in the place of its own.
fn without_wrong(
    context: &Context,
    plan: &dyn Fn(&Context) -> Result<Plan>,
    swap: Swap<'_>,
) -> Result<Context> {
    let mut certificates = Certificates::new();
    let mut context = context.clone();
    for _ in 0..ATTEMPTS {
        let certificate = certificates.certify_as(&context, &plan(&context)?, swap)?;
        if certificate.wrong().next().is_none() {
            return Ok(context);
        }
        context = context.trusting(&certificate);
    }
    panic!("still wrong");
}

fn adapters() -> impl Iterator<Item = Context> {
    everywhere().into_iter().filter(Context::is_gpu)
}

/// An LSTM of which every step forward but the plain one exchanges two gates.
#[test]
fn a_broken_step_is_replaced_by_another() {
    let broken: Vec<(&'static Kernel, &'static Kernel)> = ALL
        .iter()
        .filter(|k| k.name.starts_with("lstm.") && k.name.contains("forward_"))
        .chain(ALL.iter().filter(|k| k.name == "lstm.sequence_forward"))
        .map(|k| (*k, with_text(k, "let pre_i = pre.x", "let pre_i = pre.y")))
        .collect();
    assert!(broken.len() >= 4);
    let swap = |kernel: &'static Kernel| {
        let found = broken.iter().find(|(own, _)| std::ptr::eq(*own, kernel));
        found.map_or(kernel, |(_, other)| other)
    };
    let size = Size { steps: 6, batch: 3 };
    let (lstm, call) = (Lstm::new(3, 8), Call::inference(size));
    for context in adapters() {
        let plan = |context: &Context| plan_of(context, &lstm.spec(), &call);
        let before = plan(&context).unwrap();
        assert!(
            before
                .steps()
                .iter()
                .any(|s| s.kernel.name != "lstm.forward" && s.kernel.name.starts_with("lstm."))
        );
        let context = without_wrong(&context, &plan, &swap).unwrap();
        let after = plan(&context).unwrap();
        let lstms = after
            .steps()
            .iter()
            .map(|s| s.kernel.name)
            .filter(|n| n.starts_with("lstm."));
        assert!(lstms.clone().count() > 0 && lstms.into_iter().all(|n| n == "lstm.forward"));
        let reasons: Vec<&str> = after.choices().iter().map(|c| c.why.as_str()).collect();
        assert!(
            reasons
                .iter()
                .any(|why| why.contains("computes wrongly here")),
            "{reasons:?}"
        );
        // And the layer on it runs.
        let x = Array3::<f32>::ones((6, 3, 3));
        let of = |context: &Context| {
            lstm.build(context)
                .unwrap()
                .forward(x.view(), None)
                .unwrap()
                .y
        };
        let worst = (of(&context) - of(&Context::cpu()))
            .mapv(f32::abs)
            .into_iter()
            .fold(0.0, f32::max);
        assert!(worst < 1e-5, "{worst}");
        // Where nothing is left the plan is refused.
        let plain = ALL.iter().find(|k| k.name == "lstm.forward").unwrap();
        let none = context.without(Denied::NONE.with(plain), u64::MAX);
        let error = Layer::new(&none, lstm.spec(), 1)
            .and_then(|l| l.sequence(&call))
            .unwrap_err();
        assert!(
            matches!(
                error,
                Error::Denied {
                    kernel: "lstm.forward"
                }
            ),
            "{error}"
        );
    }
}

#[test]
fn a_broken_product_is_replaced_by_another() {
    let other = with_text(
        &gemm::BLOCKS,
        "let end = end_of(group.z);",
        "let end = max(end_of(group.z), 1u) - 1u;",
    );
    let swap = |kernel: &'static Kernel| match std::ptr::eq(kernel, &gemm::BLOCKS) {
        true => other,
        false => kernel,
    };
    let size = Size { steps: 6, batch: 3 };
    for context in adapters().filter(|c| c.kind() == crate::plan::DeviceKind::Software) {
        let plan =
            |context: &Context| plan_of(context, &Lstm::new(3, 8).spec(), &Call::training(size));
        let after = plan(&without_wrong(&context, &plan, &swap).unwrap()).unwrap();
        assert!(after.steps().iter().all(|s| s.kernel.name != "gemm.blocks"));
        let why = "the rule's choice computes wrongly here";
        assert!(after.choices().iter().any(|c| c.why == why));
    }
}

fn few_rows<R: crate::real::Real>(args: &mut crate::kernel::Args<'_, R>) -> Result<()> {
    args.write(1)?.fill(R::ZERO);
    Ok(())
}

/// A device that ends long loops keeps its kernels, in shorter parts.
#[test]
fn long_loops_bound_what_a_dispatch_may_have() {
    let context = Context::cpu();
    let verdict = long_loops(&context, &reduce::COLUMNS, &|kernel| kernel).unwrap();
    assert!(
        matches!(verdict, Some(Verdict::Right { .. })),
        "{verdict:?}"
    );
    let wrong = Box::leak(Box::new(with_twin(
        &reduce::COLUMNS,
        Twin {
            f32: few_rows::<f32>,
            f64: reduce::COLUMNS.twin.f64,
        },
    )));
    let verdict = long_loops(&context, &reduce::COLUMNS, &|_| wrong)
        .unwrap()
        .unwrap();
    assert!(matches!(verdict, Verdict::Wrong { .. }), "{verdict:?}");
    let certificate = Certificate {
        device: String::new(),
        verdicts: vec![(format!("reduce.columns {LONG}"), verdict)],
    };
    let target = context.trusting(&certificate).target();
    assert_eq!((target.loop_rounds, target.denied), (65_535, Denied::NONE));
}

#[test]
fn kept_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("certificates.txt");
    let context = Context::cpu();
    let mut certificates = Certificates::load(&path).unwrap();
    assert!(certificates.is_empty());
    let call = Call::inference(Size { steps: 4, batch: 2 });
    let plan = |context: &Context| plan_of(context, &Lstm::new(3, 8).spec(), &call);
    certificates.context(&context, plan).unwrap();
    let key = (device(&context), "gemm.tile64 k=1".to_owned());
    let reason = "a\ttab".to_owned();
    certificates.known.insert(key, Verdict::Wrong { reason });
    certificates.save(&path).unwrap();
    let known = Certificates::load(&path).unwrap();
    assert_eq!(known.len(), certificates.len());
    // What is known to be wrong is denied before anything is planned.
    let denied = known
        .clone()
        .context(&context, plan)
        .unwrap()
        .target()
        .denied;
    assert!(denied.has(&gemm::TILE64) && !denied.has(&gemm::TILE32));
    let of_other = known.of(&Context::cpu_f64());
    assert!(of_other.verdicts.is_empty());
    for (text, line) in [
        ("", "line 1"),
        ("wgrnn certificates 1\na\tb\n", "line 2"),
        ("wgrnn certificates 1\na\tb\tright\tx\n", "line 2"),
        ("wgrnn certificates 1\na\tb\tgood\t1\n", "line 2"),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = Certificates::load(&path).unwrap_err().to_string();
        assert!(error.contains(line), "{error}");
    }
}
