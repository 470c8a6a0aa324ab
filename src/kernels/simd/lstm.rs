//! All steps of an LSTM: equations in `shaders/lstm.wgsl`, without a projection.

use pulp::Simd;

use super::apart::Touched;
use super::forward::{Forward, ForwardArgs, ForwardRow, States};
use super::math::{Decay, sigmoid, sigmoid_decay, tanh, tanh_decay, two_values, value};
use super::pack::Packing;
use super::run::{BUFFERS, Cell, Job, Manner, Tile, Units};
use super::shared::Shared;
use super::split::Split;
use crate::activation::Function;
use crate::kernels::lstm::{Options, peepholes};
use crate::kernels::step::Rows;

/// The arguments that an LSTM has beside those of every cell.
#[derive(Debug)]
pub(crate) struct LstmArgs<'a> {
    pub(crate) options: Options<f32>,
    /// `[3, H]`, read with peepholes.
    pub(crate) weight_p: &'a [f32],
    pub(crate) c: &'a mut [f32],
}

/// `lstm.forward` for all steps.
pub(crate) fn forward(args: ForwardArgs<'_>, own: LstmArgs<'_>) {
    forward_as(args, own, Manner::default());
}

/// The same in a certain manner; returns how the work was divided.
pub(crate) fn forward_as(args: ForwardArgs<'_>, own: LstmArgs<'_>, manner: Manner) -> Split {
    let Some(p) = args.steps.steps.first() else {
        return Split::ALONE;
    };
    let LstmArgs {
        options,
        weight_p,
        c,
    } = own;
    let plain = args
        .act
        .are(&[Function::Sigmoid, Function::Tanh, Function::Tanh])
        && !(options.peephole || options.coupled || options.cell_clip.is_some());
    let cell = LstmForward {
        plain,
        options,
        weight_p,
        c: Shared::new(c),
        shared: Forward {
            hidden: p.hidden as usize,
            save: args.save,
            act: args.act,
            gates: Shared::new(args.gates),
            h: Shared::new(args.h),
            y: Shared::new(args.y),
        },
    };
    let job = Job {
        cell: &cell,
        steps: args.steps,
        packing: Packing::forward(4, p.hidden as usize, p.output as usize),
        weight: args.weight,
        bias: args.bias_hh,
    };
    job.run(manner)
}

struct LstmForward<'a> {
    /// The usual activations and no option.
    plain: bool,
    options: Options<f32>,
    weight_p: &'a [f32],
    c: Shared<'a>,
    shared: Forward<'a>,
}

/// A sequence's rows in a step.
#[derive(Debug, Clone, Copy)]
struct Row {
    shared: ForwardRow,
    c_before: usize,
    c_after: usize,
    /// c starts from zeros.
    reset: bool,
}

impl Cell for LstmForward<'_> {
    type Row = Row;

    fn row(&self, rows: &Rows<'_>, n: usize) -> Row {
        Row {
            shared: self.shared.row(rows, n),
            c_before: rows.c_before(n),
            c_after: rows.c_after(n),
            reset: rows.reset(n),
        }
    }

    fn multiplied(&self, rows: &Rows<'_>) -> usize {
        rows.count()
    }

    #[inline(always)]
    fn operand(&self, row: &Row, to: &mut [f32]) {
        self.shared.h.copy_to(row.shared.h_before, to);
    }

    #[inline(always)]
    fn prefetch(&self, row: &Row, first: usize) {
        self.shared.prefetch(&row.shared, first, 4);
        self.c.prefetch(row.c_before + first);
    }

    #[inline(always)]
    fn finish<S: Simd>(&self, simd: S, tile: &mut Tile<'_, Row>) {
        // Each of the three parts waits for results of the one before: in between others can begin.
        for vector in 0..tile.vectors::<S>() {
            let mut units = tile.units::<S>(vector);
            for row in tile.rows() {
                if !row.shared.to.live {
                    self.hold(simd, tile, row, units);
                } else if !self.plain {
                    self.with_options::<S>(tile, row, units);
                } else if let Some(units) = units.full::<S>() {
                    self.decays(simd, tile, row, units);
                } else {
                    self.decays(simd, tile, row, units);
                }
                tile.next(&mut units);
            }
        }
        if !self.plain {
            return;
        }
        for vector in 0..tile.vectors::<S>() {
            let mut units = tile.units::<S>(vector);
            for row in tile.rows() {
                match units.full::<S>() {
                    _ if !row.shared.to.live => {}
                    Some(units) => self.cell_state(simd, tile, row, units),
                    None => self.cell_state(simd, tile, row, units),
                }
                tile.next(&mut units);
            }
        }
        for vector in 0..tile.vectors::<S>() {
            let mut units = tile.units::<S>(vector);
            for row in tile.rows() {
                let [c, o] = tile.sums(simd, units);
                let b = value(simd, tanh(simd, tanh_decay(simd, c)));
                let h = simd.mul_f32s(o, b);
                match units.full::<S>() {
                    _ if !row.shared.to.live => {}
                    Some(units) => self.shared.hand_on(simd, &row.shared, units, h),
                    None => self.shared.hand_on(simd, &row.shared, units, h),
                }
                tile.next(&mut units);
            }
        }
    }

    fn touched(&self, rows: &Rows<'_>, to: &mut [Touched; BUFFERS]) -> bool {
        let p = &rows.p;
        let slots = match (self.shared.save, self.options.peephole) {
            (true, true) => 6,
            _ => 4,
        };
        let states = States {
            from: p.c_from,
            next: p.c_next,
            row: p.c_row,
            state: p.c_state,
            width: p.hidden,
        };
        states.touched(p, &mut to[3]);
        self.shared.touched(p, slots, to)
    }
}

impl LstmForward<'_> {
    #[inline(always)]
    fn c_old<S: Simd>(&self, simd: S, row: &Row, units: Units) -> S::f32s {
        match row.reset {
            true => simd.splat_f32s(0.0),
            false => self.c.load(simd, row.c_before + units.first, units.count),
        }
    }

    /// The longer half of the gates.
    #[inline(always)]
    fn decays<S: Simd>(&self, simd: S, tile: &mut Tile<'_, Row>, row: &Row, units: Units) {
        let [x_i, x_f, x_g, x_o] = self.shared.gates(simd, &row.shared, units);
        let [i, f, g, o] = tile.sums(simd, units);
        let decays = [
            sigmoid_decay(simd, simd.add_f32s(x_i, i)).0,
            sigmoid_decay(simd, simd.add_f32s(x_f, f)).0,
            tanh_decay(simd, simd.add_f32s(x_g, g)).0,
            sigmoid_decay(simd, simd.add_f32s(x_o, o)).0,
        ];
        tile.put(simd, units, decays);
    }

    /// The gates and c, which the tile takes with o.
    #[inline(always)]
    fn cell_state<S: Simd>(&self, simd: S, tile: &mut Tile<'_, Row>, row: &Row, units: Units) {
        let [i, f, g, o] = tile.sums(simd, units);
        let (i, f) = (sigmoid(simd, Decay(i)), sigmoid(simd, Decay(f)));
        let (g, o) = (tanh(simd, Decay(g)), sigmoid(simd, Decay(o)));
        let [i, f] = two_values(simd, i, f);
        let [g, o] = two_values(simd, g, o);
        let c_old = self.c_old(simd, row, units);
        let c = simd.mul_add_e_f32s(f, c_old, simd.mul_f32s(i, g));
        self.c
            .store(simd, row.c_after + units.first, units.count, c);
        tile.put(simd, units, [c, o]);
        if self.shared.save {
            self.shared.keep(simd, &row.shared, units, 0, [i, f, g, o]);
        }
    }

    /// Past its length a sequence keeps its state.
    #[inline(always)]
    fn hold<S: Simd>(&self, simd: S, tile: &Tile<'_, Row>, row: &Row, units: Units) {
        let c = self.c_old(simd, row, units);
        self.c
            .store(simd, row.c_after + units.first, units.count, c);
        let h = tile.operand(simd, units);
        self.shared.hand_on(simd, &row.shared, units, h);
        // As the step's kernel does for the peepholes' gradients.
        if self.shared.save && self.options.peephole {
            self.shared.keep(simd, &row.shared, units, 4, [c, c]);
        }
    }

    /// Other activations, and what an LSTM may have more.
    fn with_options<S: Simd>(&self, tile: &Tile<'_, Row>, row: &Row, units: Units) {
        let (shared, hidden, to) = (&self.shared, self.shared.hidden, row.shared.to);
        let at = row.shared.gates;
        for j in units.all() {
            let c_old = if row.reset {
                0.0
            } else {
                self.c.get(row.c_before + j)
            };
            let pre = [0, 1, 2, 3].map(|gate| {
                let unit = gate * hidden + j;
                shared.gates.get(at + unit) + tile.sum::<S>(units, gate, j)
            });
            let p = peepholes(self.weight_p, hidden, j, self.options.peephole);
            let unit = self.options.forward(&shared.act, pre, p, c_old);
            self.c.set(row.c_after + j, unit.c);
            shared.h.set(to.h + j, if to.zeroed { 0.0 } else { unit.h });
            shared.y.set(to.y + j, unit.h);
            if !shared.save {
                continue;
            }
            let more = [unit.c, c_old];
            let more = if self.options.peephole {
                &more[..]
            } else {
                &[]
            };
            for (slot, value) in unit.kept.iter().chain(more).enumerate() {
                shared.gates.set(at + slot * hidden + j, *value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::lstm::FORWARD;
    use crate::kernels::simd::pack::pack_forward;
    use crate::kernels::simd::tests::{Buffers, SPLITS, Shape, everywhere, shapes};
    use crate::rng::Rng;
    use pulp::Arch;

    fn options(shape: &Shape) -> Options<f32> {
        Options {
            peephole: shape.peephole,
            coupled: shape.coupled,
            projected: false,
            cell_clip: shape.cell_clip,
        }
    }

    fn run_forward(shape: &Shape, buffers: &mut Buffers, arch: Arch, split: Split) {
        let packing = Packing::forward(4, shape.hidden, shape.hidden);
        let mut weight = vec![f32::NAN; packing.len()];
        pack_forward(&packing, &buffers.weight_hh, &mut weight);
        let (steps, mask) = (shape.steps(), buffers.mask.clone());
        let args = ForwardArgs {
            steps: super::super::run::Steps {
                steps: &steps,
                mask: &mask,
                masked: shape.masked,
            },
            save: shape.training,
            act: shape.act(&FORWARD),
            weight: &weight,
            bias_hh: &buffers.bias_hh,
            gates: &mut buffers.gates,
            h: &mut buffers.h,
            y: &mut buffers.y,
        };
        let own = LstmArgs {
            options: options(shape),
            weight_p: &buffers.weight_p,
            c: &mut buffers.c,
        };
        let manner = Manner {
            arch: Some(arch),
            split: Some(split),
        };
        assert_eq!(forward_as(args, own, manner), split, "{shape:?}");
    }

    fn check_forward(shape: &Shape, seed: u64) {
        let before = shape.buffers(&mut Rng::new(seed));
        let want = before.plain(shape, &FORWARD, FORWARD.twin.f64);
        everywhere(|arch| {
            let mut alone = None;
            for split in SPLITS {
                let mut after = before.clone();
                run_forward(shape, &mut after, arch, split);
                let what = format!("{arch:?} {split:?} {shape:?}");
                after.compare(&want, shape.hidden, shape.counts.len(), &what);
                let bits = after.bits();
                let first = alone.get_or_insert_with(|| bits.clone());
                assert!(*first == bits, "{what}: other bits than alone");
            }
        });
    }

    #[test]
    fn forward_of_every_size() {
        for (seed, shape) in shapes(4).into_iter().enumerate() {
            check_forward(&shape, seed as u64);
        }
    }

    #[test]
    fn forward_with_options() {
        use Function::{Elu, HardSigmoid, Relu, Sigmoid, Softsign, Tanh};
        for hidden in [7, 32] {
            for masked in [false, true] {
                let mut plain = Shape::new(4, hidden, &[5, 5, 3]);
                plain.masked = masked;
                for functions in [[Sigmoid, Tanh, Relu], [HardSigmoid, Elu, Softsign]] {
                    check_forward(
                        &Shape {
                            functions,
                            ..plain.clone()
                        },
                        1,
                    );
                }
                let clip = Some(0.4);
                check_forward(
                    &Shape {
                        clip,
                        ..plain.clone()
                    },
                    2,
                );
                let cell_clip = Some(0.3);
                check_forward(
                    &Shape {
                        cell_clip,
                        ..plain.clone()
                    },
                    3,
                );
                check_forward(
                    &Shape {
                        coupled: true,
                        ..plain.clone()
                    },
                    4,
                );
                let slots = [6, 4];
                check_forward(
                    &Shape {
                        peephole: true,
                        slots,
                        ..plain.clone()
                    },
                    5,
                );
                check_forward(
                    &Shape {
                        peephole: true,
                        slots: [4, 4],
                        training: false,
                        ..plain.clone()
                    },
                    6,
                );
            }
        }
    }
}
