//! Which form a product has: plain rules over its shape and the device.
//!
//! The rules for GPUs follow from how many workgroups fill one and how often a form reads what it
//! multiplies; their numbers are not measured yet on hardware. On software Vulkan everything is in
//! blocks: see the shader for the figures.

use super::form::Form;
use super::shape::Shape;
use crate::plan::{DeviceKind, Target};

/// Workgroups that keep most of a large GPU busy.
const MANY: usize = 128;
/// Multiplications below which a product is a matter of latency alone.
const TINY: usize = 4096;

/// The form of a product on a device, and why.
pub fn choose(shape: &Shape, target: &Target) -> (Form, &'static str) {
    match target.force.gemm {
        _ if target.kind == DeviceKind::Cpu => by_rule(shape, target),
        Some(form) if form.fits(shape, target) => (form, "forced"),
        Some(_) => (by_rule(shape, target).0, "the forced form cannot do it"),
        None => by_rule(shape, target),
    }
}

fn by_rule(shape: &Shape, target: &Target) -> (Form, &'static str) {
    let (form, why) = match target.kind {
        DeviceKind::Cpu => (Form::Library, "the CPU backend"),
        DeviceKind::Software => (Form::Blocks, "a CPU has no workgroup memory"),
        DeviceKind::Gpu => on_gpu(shape),
    };
    if form.fits(shape, target) {
        return (form, why);
    }
    let smaller = [Form::Tile64, Form::Tile32, Form::Blocks, Form::Naive];
    let fits = smaller.into_iter().find(|f| f.fits(shape, target));
    (
        fits.unwrap_or(form),
        "a limit of the device is too low for others",
    )
}

fn on_gpu(shape: &Shape) -> (Form, &'static str) {
    let &Shape { m, n, k, .. } = shape;
    let groups = |form: Form| form.grid(shape).iter().product::<usize>();
    if m * n * k <= TINY && k <= 64 {
        return (Form::Naive, "tiny");
    }
    let narrow = m.min(n);
    if groups(Form::Tile128) >= 2 * MANY && narrow > 96 {
        return (Form::Tile128, "enough tiles of 128 x 128 to fill a GPU");
    }
    if groups(Form::Tile64) >= MANY && narrow > 32 {
        return (Form::Tile64, "enough tiles of 64 x 64 to fill a GPU");
    }
    (Form::Tile32, "larger tiles would be too few, or half empty")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Force;

    fn forced(kind: DeviceKind, form: Form) -> Target {
        Target {
            force: Force {
                gemm: Some(form),
                ..Force::default()
            },
            ..Target::portable(kind)
        }
    }

    #[test]
    fn by_kind_and_size() {
        let gpu = Target::portable(DeviceKind::Gpu);
        for (m, n, k, want) in [
            (0, 5, 7, Form::Naive),
            (64, 64, 0, Form::Naive),
            (16, 16, 16, Form::Naive),
            (1, 1, 4096, Form::Tile32),
            (64, 64, 64, Form::Tile32),
            (400, 2048, 512, Form::Tile64),
            (4096, 4096, 64, Form::Tile128),
        ] {
            let shape = Shape::new(m, n, k);
            assert_eq!(choose(&shape, &gpu).0, want, "{shape}");
            let of = |kind| choose(&shape, &Target::portable(kind)).0;
            assert_eq!(of(DeviceKind::Software), Form::Blocks);
            assert_eq!(of(DeviceKind::Cpu), Form::Library);
        }
    }

    #[test]
    fn a_forced_form_is_used_where_it_can_be() {
        let shape = Shape::new(512, 512, 512);
        for kind in [DeviceKind::Gpu, DeviceKind::Software] {
            for form in Form::ALL.into_iter().filter(|&f| f != Form::Library) {
                assert_eq!(choose(&shape, &forced(kind, form)), (form, "forced"));
            }
            let (form, why) = choose(&shape, &forced(kind, Form::Library));
            assert_eq!(form, choose(&shape, &Target::portable(kind)).0);
            assert!(why.contains("cannot"), "{why}");
        }
        let on_cpu = choose(&shape, &forced(DeviceKind::Cpu, Form::Tile64));
        assert_eq!(on_cpu.0, Form::Library);
    }

    #[test]
    fn limits_are_kept() {
        let shape = Shape::new(4096, 4096, 64);
        let low = |invocations, workgroup_memory| Target {
            invocations,
            workgroup_memory,
            ..Target::default()
        };
        for (target, want) in [
            (low(256, 16 << 10), Form::Tile128),
            (low(256, 8 << 10), Form::Tile32),
            (low(128, 16 << 10), Form::Tile32),
            (low(64, 2 << 10), Form::Blocks),
        ] {
            assert_eq!(choose(&shape, &target).0, want, "{target:?}");
        }
        // 65,535 workgroups of 32 rows are too few for these.
        let long = Shape::new(3 << 20, 9, 9);
        assert_eq!(choose(&long, &Target::default()).0, Form::Tile64);
    }
}
