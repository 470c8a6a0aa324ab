use super::inputs::{Long, Swap, affordable, in_lockstep, least, long_loops};
use super::*;
use crate::cell::{Cell, GRU, GRU_BEFORE, LSTM_PEEPHOLE_PROJECTED, Pass, RNN_TANH};
use crate::kernel::Sample;
use crate::kernel::Twin;
use crate::kernels::gemm::{Form, Gemm};
use crate::kernels::{copy, gemm, pack, reduce};
use crate::layer::{Layer, Lstm, Sequence};
use crate::plan::sequence::{Call, LayerSpec, Size, streams, weights};
use crate::plan::{Amount, Builder};
use crate::plan::{Force, Matrix, Role, Target};
use crate::rng::Rng;
use ndarray::Array3;

#[path = "../../tests/common/absence.rs"]
mod absence;

/// Whether everything is to run.
fn thorough() -> bool {
    std::env::var("WGRNN_TESTS").as_deref() == Ok("all")
}

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
        let layers = [
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
        ];
        // An adapter compiles each.
        let all = !context.is_gpu() || thorough();
        for (spec, call) in &layers[..if all { layers.len() } else { 1 }] {
            let plan = plan_of(&context, spec, call).unwrap();
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

/// The adapters. Where there is none the test is noted as one that ran on none, and fails if `WGRNN_REQUIRE_GPU=1`.
fn adapters() -> Vec<Context> {
    let mut all = everywhere();
    all.retain(Context::is_gpu);
    if all.is_empty() && cfg!(feature = "gpu") {
        assert!(
            std::env::var("WGRNN_REQUIRE_GPU").as_deref() != Ok("1"),
            "WGRNN_REQUIRE_GPU=1, and this machine has no adapter"
        );
    }
    if all.is_empty() {
        absence::note("there is no adapter");
    }
    all
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
    let adapters = adapters().into_iter();
    for context in adapters.filter(|c| c.kind() == crate::plan::DeviceKind::Software) {
        let plan =
            |context: &Context| plan_of(context, &Lstm::new(3, 8).spec(), &Call::training(size));
        let after = plan(&without_wrong(&context, &plan, &swap).unwrap()).unwrap();
        assert!(after.steps().iter().all(|s| s.kernel.name != "gemm.blocks"));
        let why = "the rule's choice computes wrongly here";
        assert!(after.choices().iter().any(|c| c.why == why));
    }
}

/// A sequence for inference finds its weights packed by the layer, whose kernels are those of its certificate too.
#[test]
fn a_broken_packing_is_found_for_inference() {
    let text = "destination[place(index)] = packed(index);";
    let other = with_text(&pack::PACK, text, "destination[place(index)] = 0.0;");
    let swap = |kernel: &'static Kernel| match std::ptr::eq(kernel, &pack::PACK) {
        true => other,
        false => kernel,
    };
    let size = Size { steps: 6, batch: 3 };
    for context in adapters() {
        let (lstm, call) = (Lstm::new(3, 8), Call::inference(size));
        let plan = plan_of(&context, &lstm.spec(), &call).unwrap();
        let mut certificates = Certificates::new();
        let certificate = certificates.certify_as(&context, &plan, &swap).unwrap();
        let wrong: Vec<&str> = certificate.wrong().map(|(subject, _)| subject).collect();
        assert!(
            wrong.iter().any(|subject| subject.starts_with("pack ")),
            "{certificate}"
        );
    }
}

fn idle<R: crate::real::Real>(_: &mut crate::kernel::Args<'_, R>) -> Result<()> {
    Ok(())
}

/// A cell of a host, with a kernel of its own for the step forward.
fn cell_with(forward: &'static Kernel) -> &'static Cell {
    let pass = Pass {
        kernel: forward,
        ..RNN_TANH.forward[0]
    };
    Box::leak(Box::new(Cell {
        forward: Box::leak(Box::new([pass])),
        sequence: None,
        forms: [None, None],
        ..RNN_TANH
    }))
}

/// Whatever a kernel of a host is called, it is another than this crate's, and than one with another text.
#[test]
fn kernels_of_a_host_are_their_own() {
    let own = RNN_TANH.forward[0].kernel;
    let right = with_text(own, "= input + product", "= 1.0 * input + product");
    let wrong = with_text(own, "= input + product", "= input - product");
    // Wrong on the CPU too.
    let twin = Twin {
        f32: idle::<f32>,
        ..own.twin
    };
    let wrong = Box::leak(Box::new(with_twin(wrong, twin)));
    let size = Size { steps: 3, batch: 2 };
    for context in everywhere() {
        let plan = |forward: &'static Kernel| {
            let spec = LayerSpec::new(cell_with(forward), 3, 8);
            plan_of(&context, &spec, &Call::inference(size))
        };
        let mut certificates = Certificates::new();
        let mut verdict = |forward| {
            let certificate = certificates.certify(&context, &plan(forward).unwrap());
            let verdicts = certificate.unwrap().verdicts.into_iter();
            let mut of_step = verdicts.filter(|(subject, _)| subject.starts_with(own.name));
            of_step.next().unwrap()
        };
        // In either order.
        let [(of_wrong, bad), (of_own, good), (of_right, fine)] =
            [wrong, own, right].map(&mut verdict);
        assert!(matches!(bad, Verdict::Wrong { .. }), "{bad:?}");
        assert!(matches!(good, Verdict::Right { .. }), "{good:?}");
        assert!(matches!(fine, Verdict::Right { .. }), "{fine:?}");
        assert!(of_own != of_right && of_right != of_wrong && of_wrong != of_own);
        // It is refused, and denies nothing of this crate.
        let known = certificates.of(&context);
        assert_eq!(context.trusting(&known).target().denied, Denied::NONE);
        let error = certificates.context(&context, |_| plan(wrong)).unwrap_err();
        assert!(error.to_string().contains(&of_wrong), "{error}");
        certificates.context(&context, |_| plan(right)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("certificates");
        certificates.save(&path).unwrap();
        assert!(
            Certificates::load(&path)
                .unwrap()
                .context(&context, |_| plan(wrong))
                .is_err()
        );
    }
}

/// Where neither side writes anything, nothing was compared.
#[test]
fn nothing_is_right_unseen() {
    let nothing = Twin {
        f32: idle::<f32>,
        f64: idle::<f64>,
    };
    let other = Box::leak(Box::new(with_twin(&copy::COPY, nothing)));
    let swap = |kernel: &'static Kernel| match std::ptr::eq(kernel, &copy::COPY) {
        true => &*other,
        false => kernel,
    };
    let context = Context::cpu();
    let call = Call::inference(Size { steps: 4, batch: 2 });
    let plan = plan_of(&context, &Lstm::new(3, 8).spec(), &call).unwrap();
    let certificate = Certificates::new()
        .certify_as(&context, &plan, &swap)
        .unwrap();
    let mut of_copy = certificate
        .verdicts
        .iter()
        .filter(|(subject, _)| subject.starts_with("copy.copy"));
    let (_, verdict) = of_copy.next().unwrap();
    assert!(!matches!(verdict, Verdict::Right { .. }), "{verdict:?}");
}

/// What a kernel should have written is not taken for written where it is 0.
#[test]
fn zeros_that_are_not_written_are_found() {
    let lazy = Twin {
        f32: idle::<f32>,
        ..copy::FILL.twin
    };
    let other = Box::leak(Box::new(with_twin(&copy::FILL, lazy)));
    for (swap, is_right) in [(&copy::FILL, true), (&*other, false)] {
        let mut b = Builder::new("zeros");
        let y = b.float("y", &[5], Role::Scratch);
        copy::fill(&mut b, y, 0.0).unwrap();
        let (plan, data) = (b.finish(), Vec::new());
        let mut found = BTreeMap::new();
        let sample = Sample { plan, data };
        in_lockstep(&Context::cpu(), sample, &|_| swap, &mut found).unwrap();
        let (_, verdict) = found.pop_first().unwrap();
        assert_eq!(
            matches!(verdict, Verdict::Right { .. }),
            is_right,
            "{verdict:?}"
        );
    }
}

/// A product of which fewer columns are computed leaves what stands in the others.
#[test]
fn wide_products_are_right() {
    for context in everywhere() {
        let mut b = Builder::on("wide", context.target());
        let [m, n, k] = [300, 512, 200];
        let mut matrix =
            |name, rows, cols, role| Matrix::dense(b.float(name, &[rows, cols], role), rows, cols);
        let [a, w] = [("a", m, k), ("b", k, n)].map(|(name, r, c)| matrix(name, r, c, Role::Input));
        let c = matrix("c", m, n, Role::Output);
        Gemm::new(a, w, c).push(&mut b).unwrap();
        let certificate = context.certify(&b.finish()).unwrap();
        assert!(
            certificate.to_string().ends_with("1 kernels right"),
            "{certificate}"
        );
    }
}

/// Of a product with k in many parts two are computed: the second finds its own numbers and has a C of its own.
#[test]
fn parts_of_a_product_are_compared() {
    let mut b = Builder::on(
        "parts",
        Target {
            force: Force {
                gemm: Some(Form::SplitK),
                ..Force::default()
            },
            ..Target::default()
        },
    );
    let [m, n, k] = [40, 36, 1003];
    let mut matrix =
        |name, rows, cols, role| Matrix::dense(b.float(name, &[rows, cols], role), rows, cols);
    let [a, w] = [("a", m, k), ("b", k, n)].map(|(name, r, c)| matrix(name, r, c, Role::Input));
    let c = matrix("c", m, n, Role::Output);
    Gemm::new(a, w, c).push(&mut b).unwrap();
    let plan = b.finish();
    let step = &plan.steps()[0];
    assert!(step.grid[2] > 2, "{step:?}");
    let like = gemm::like(&plan, step, &mut Rng::new(1)).unwrap().unwrap();
    assert_eq!(like.plan.steps()[0].grid[2], 2);
    let other = with_text(step.kernel, "group.z * product.chunk", "0u * product.chunk");
    let swap = |kernel: &'static Kernel| match std::ptr::eq(kernel, step.kernel) {
        true => other,
        false => kernel,
    };
    for context in everywhere() {
        let certificate = context.certify(&plan).unwrap();
        assert_eq!(certificate.wrong().next(), None);
        assert_eq!(certificate.unchecked().next(), None);
    }
    for context in adapters() {
        let mut certificates = Certificates::new();
        let certificate = certificates.certify_as(&context, &plan, &swap).unwrap();
        let (wrong, _) = certificate.wrong().next().unwrap();
        assert!(wrong.starts_with(step.kernel.name), "{wrong}");
    }
}

/// Where the steps of a layer have much to compute there are two of them, before they are left out.
#[test]
fn large_layers_are_compared_over_fewer_steps() {
    let context = Context::cpu();
    let size = Size {
        steps: 100,
        batch: 64,
    };
    let spec = LayerSpec::new(&GRU, 64, 640);
    let plan = plan_of(&context, &spec, &Call::training(size)).unwrap();
    let (small, sample) = (&plan.small[0], least(&plan).unwrap().remove(0));
    let of = |plan: &Plan| {
        let x = plan.buffer(plan.find("x").unwrap()).unwrap();
        (x.shape[0], x.shape[1])
    };
    assert_eq!(
        of(&affordable(small, sample, false).unwrap().unwrap().plan),
        (5, 3)
    );
    let all = Amount {
        brief: false,
        all_sequences: true,
    };
    let sample = small.make(all, &mut Rng::new(1)).unwrap();
    assert_eq!(of(&sample.plan), (5, 64));
    assert_eq!(
        of(&affordable(small, sample, true).unwrap().unwrap().plan),
        (2, 64)
    );
}

/// Kernels with loops that are not compared beyond 65,535 rounds, and why.
const SHORT: &[(&[&str], &str)] = &[
    (
        &["dropout.apply"],
        "it makes as many rounds whatever the sizes",
    ),
    (
        &["gemm.along_k", "gemm.subgroups.along_k"],
        "16.8 million values of k, in the nine rows at least that it is for, are 600 MB",
    ),
    (
        &["gemm.sum"],
        "it makes a round for each part, of which a grid has no more",
    ),
    (
        &[
            "backward",
            "back_update",
            "back_reset",
            "backward_blocks",
            "backward_few",
            "backward_tile",
        ],
        "it sums over the gates of all units: 16,384 have weights of 4 GiB",
    ),
    (
        &["forward_blocks", "forward_few", "forward_tile"],
        "it takes four terms at least in a round: 262,144 inputs of streams, or units with weights of 1 TiB",
    ),
];

/// Every kernel has its loops compared beyond 65,535 rounds, or a reason.
#[test]
fn long_loops_of_all_kernels() {
    let target = Target::portable(crate::plan::DeviceKind::Gpu);
    for &kernel in ALL {
        let mut sizes = crate::check::kernels::SIZES.iter();
        let has_loops = sizes.any(|&size| {
            let sample = (kernel.sample)(size, &mut Rng::new(1)).unwrap();
            let steps = sample.plan.steps().len();
            (0..steps).any(|step| sample.plan.rounds(step).unwrap() > 0)
        });
        let is = |names: &[&str]| {
            let (_, entry) = kernel.name.split_once('.').unwrap_or_default();
            names.iter().any(|n| *n == kernel.name || *n == entry)
        };
        let excepted = SHORT.iter().find(|(names, _)| is(names));
        let long = Long::of(kernel).and_then(|long| long.make(kernel, &target).unwrap());
        let states = (has_loops, long.is_some(), excepted.is_some());
        assert!(
            matches!(
                states,
                (true, true, false) | (true, false, true) | (false, false, false)
            ),
            "{}: {states:?}",
            kernel.name
        );
    }
}

/// Those that run all steps, and steps of streams, of which no other test has as many rounds: of GRUs, and of every cell
/// with `WGRNN_TESTS=all`.
#[test]
fn long_loops_of_steps_are_right() {
    let context = Context::cpu();
    let wanted = ALL
        .iter()
        .filter(|k| thorough() || k.name.starts_with("gru"));
    for &kernel in wanted {
        if let Some(Long::Steps(_) | Long::Inputs(_)) = Long::of(kernel) {
            let verdict = long_loops(&context, kernel, &|kernel| kernel).unwrap();
            let is_right = !matches!(verdict, Some(Verdict::Wrong { .. }));
            assert!(is_right, "{}: {verdict:?}", kernel.name);
        }
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
    // What was not compared is tried again.
    let key = (device(&context), "adam.step".to_owned());
    let reason = "there was no input".to_owned();
    let unchecked = Verdict::Unchecked { reason };
    certificates.known.insert(key, unchecked);
    certificates.save(&path).unwrap();
    assert_eq!(Certificates::load(&path).unwrap(), known);
    // And so is everything where the driver is not known.
    assert!(Certificates::keeps(&context));
    certificates.fleeting.insert(device(&context));
    let other = folder.path().join("other");
    certificates.save(&other).unwrap();
    assert!(Certificates::load(&other).unwrap().is_empty());
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
