//! Which form a product has: plain rules over its shape and the device.
//!
//! The rules for GPUs follow from how many workgroups fill one and how often a form reads what it
//! multiplies. On an NVIDIA H200 forcing another form for all products of a call was faster by more than 3 % in 3 of
//! 30 calls of layers, each time with tiles of 128 x 128: training of LSTM 2048 x 64 by 9 %, LSTM 256 x 64 with two
//! directions by 5 %, LSTM 1024 x 16 by 3 %. There large products reach 29 to 44 TFLOP/s
//! in tiles of 128 x 128 and up to 31 in those of 64 x 64. On software Vulkan everything
//! is in blocks: see the shader for the figures.

use super::form::Form;
use super::shape::Shape;
use super::split::Split;
use crate::plan::{DeviceKind, Target};

/// Multiplications below which a product is a matter of latency alone.
const TINY: usize = 4096;

/// Values of k that are worth a part of a tile of 128 x 128.
const LONG: usize = 512;

/// The form of a product on a device, and why.
pub fn choose(shape: &Shape, target: &Target) -> (Form, &'static str) {
    match target.force.gemm {
        _ if target.kind == DeviceKind::Cpu => by_rule(shape, target),
        Some(form) if form.fits(shape, target) && form.ends(shape, target) => (form, "forced"),
        Some(_) => (by_rule(shape, target).0, "the forced form cannot do it"),
        None => by_rule(shape, target),
    }
}

fn by_rule(shape: &Shape, target: &Target) -> (Form, &'static str) {
    let (form, why) = match target.kind {
        DeviceKind::Cpu => (Form::Library, "the CPU backend"),
        DeviceKind::Software => (Form::Blocks, "a CPU has no workgroup memory"),
        DeviceKind::Gpu => on_gpu(shape, target),
    };
    match within_limits(form, shape, target) {
        fits if !fits.ends(shape, target) => {
            (Form::SplitK, "k is longer than the device's loops may be")
        }
        fits if fits == form => (form, why),
        other if form.denied(shape, target) => (other, "the rule's choice computes wrongly here"),
        other => (other, "a limit of the device is too low for others"),
    }
}

/// The form, or the best of the others where a limit is too low for it.
fn within_limits(form: Form, shape: &Shape, target: &Target) -> Form {
    let others = [Form::Tile64, Form::Tile32, Form::Blocks, Form::Naive];
    let mut order = [form].into_iter().chain(others);
    order.find(|f| f.fits(shape, target)).unwrap_or(form)
}

fn on_gpu(shape: &Shape, target: &Target) -> (Form, &'static str) {
    let &Shape { m, n, k, .. } = shape;
    let groups = |form: Form| form.grid(shape).iter().product::<usize>();
    if m.saturating_mul(n).saturating_mul(k) <= TINY && k <= 64 {
        return (Form::Naive, "tiny");
    }
    if Split::helps(shape, target) {
        return (
            Form::SplitK,
            "k is long, and without parts much of a GPU idle",
        );
    }
    match whole(shape, target) {
        Form::Rows => (Form::Rows, "at most 8 rows or columns"),
        Form::RowsSubgroups => (Form::RowsSubgroups, "at most 8 rows or columns along k"),
        _ if groups(Form::Tile128) >= 2 * target.groups && m.min(n) > 96 => {
            (Form::Tile128, "enough tiles of 128 x 128 to fill a GPU")
        }
        Form::Tile64 if groups(Form::Tile64) >= target.groups => {
            (Form::Tile64, "enough tiles of 64 x 64 to fill a GPU")
        }
        _ => (Form::Tile32, "larger tiles would be too few, or half empty"),
    }
}

/// Whether k is to be divided, and tiles of 128 x 128 that cover little more than those of 64 x 64 fill a GPU with parts
/// that are still long.
///
/// On an NVIDIA H200, microseconds in parts of tiles of 64 x 64 and so, each with the sum of the parts: 768 x 384 x
/// 25,600 612 and 495; 512 x 128 x 93,440 405 and 310; 512 x 256 x 16,384 178 and 147. The partial sums take about 17 MB
/// instead of 4.
fn fills_in_parts(shape: &Shape, target: &Target) -> bool {
    let tiles = |form: Form| form.grid(shape).iter().product::<usize>();
    let parts = tiles(Form::Tile128).saturating_mul(shape.k / LONG);
    // One is four of the others: a seventh more at most.
    let close = 7 * tiles(Form::Tile128) <= 2 * tiles(Form::Tile64);
    shape.m.min(shape.n) > 96
        && close
        && tiles(Form::Tile64) < target.groups
        && parts >= 2 * target.groups
}

/// The form that makes most of each workgroup, however few there are: that of the parts where k is split.
pub(super) fn whole(shape: &Shape, target: &Target) -> Form {
    let form = match target.kind {
        DeviceKind::Cpu => Form::Library,
        DeviceKind::Software => Form::Blocks,
        DeviceKind::Gpu if Form::RowsSubgroups.fits(shape, target) => Form::RowsSubgroups,
        DeviceKind::Gpu if shape.few().is_some() => Form::Rows,
        DeviceKind::Gpu if fills_in_parts(shape, target) => Form::Tile128,
        DeviceKind::Gpu if shape.m.min(shape.n) > 32 => Form::Tile64,
        DeviceKind::Gpu => Form::Tile32,
    };
    within_limits(form, shape, target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Cooperative, Force};

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
            (1, 2048, 512, Form::SplitK),
            (1, 8192, 512, Form::Rows),
            (8192, 8, 512, Form::Rows),
            (64, 64, 64, Form::Tile32),
            (512, 512, 512, Form::Tile32),
            (400, 2048, 512, Form::Tile64),
            (4096, 4096, 64, Form::Tile128),
            (512, 128, 3200, Form::SplitK),
            (2048, 512, 3200, Form::Tile64),
            (1, 1, 4096, Form::SplitK),
        ] {
            let shape = Shape::new(m, n, k);
            assert_eq!(choose(&shape, &gpu).0, want, "{shape}");
            let of = |kind| choose(&shape, &Target::portable(kind)).0;
            assert_eq!(of(DeviceKind::Software), Form::Blocks);
            assert_eq!(of(DeviceKind::Cpu), Form::Library);
        }
    }

    /// They cannot be A, which the transpose would make of them.
    #[test]
    fn sixteen_bit_weights_have_few_rows_but_not_few_columns() {
        let of = |m, n, force| {
            let shape = Shape {
                b_half: true,
                ..Shape::new(m, n, 512)
            };
            choose(&shape, &forced(DeviceKind::Gpu, force)).0
        };
        assert_eq!(of(8, 512, Form::Rows), Form::Rows);
        assert_eq!(of(8, 8, Form::Rows), Form::Rows);
        for rows in [9, 512] {
            let chosen = of(rows, 8, Form::Rows);
            assert!(
                !matches!(chosen, Form::Rows | Form::RowsSubgroups),
                "{chosen:?}"
            );
        }
    }

    #[test]
    fn subgroups_serve_rows_along_k() {
        let target = Target {
            subgroup_size: 4,
            ..Target::default()
        };
        let across = Shape::new(1, 8192, 512);
        let along = Shape {
            b_along_k: true,
            ..across
        };
        assert_eq!(choose(&along, &target).0, Form::RowsSubgroups);
        assert_eq!(choose(&along, &Target::default()).0, Form::Rows);
        assert_eq!(choose(&across, &target).0, Form::Rows);
    }

    #[test]
    fn a_forced_form_is_used_where_it_can_be() {
        let all = Shape {
            b_along_k: true,
            ..Shape::new(8, 512, 512)
        };
        for kind in [DeviceKind::Gpu, DeviceKind::Software] {
            let target = |form| Target {
                subgroup_size: 4,
                cooperative: Some(Cooperative::default()),
                ..forced(kind, form)
            };
            // Which no rule takes.
            let without = forced(kind, Form::Cooperative);
            assert_ne!(choose(&all, &without).0, Form::Cooperative);
            for form in Form::ALL.into_iter().filter(|&f| f != Form::Library) {
                assert_eq!(choose(&all, &target(form)), (form, "forced"));
            }
            let none = Shape {
                b_along_k: false,
                ..Shape::new(512, 512, 4)
            };
            for form in [Form::Library, Form::Rows, Form::RowsSubgroups, Form::SplitK] {
                let (chosen, why) = choose(&none, &target(form));
                assert_eq!(chosen, choose(&none, &Target::portable(kind)).0);
                assert!(why.contains("cannot"), "{form:?}: {why}");
            }
        }
        let on_cpu = choose(&all, &forced(DeviceKind::Cpu, Form::Tile64));
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
