//! Calls with rows in many places, run by the plain twins and by the fast ones.

mod passes;

use bytemuck::{Zeroable, bytes_of};
use pulp::Arch;

use super::split::Split;
use crate::activation::Function;
use crate::kernel::{Access, Args, Constant, Element, Kernel, MAX_BINDINGS, Slot, Told};
use crate::kernels::gates::{Gates, split};
use crate::kernels::step::StepParams;
use crate::real::Real;
use crate::rng::Rng;

/// Every kind of vectors that this machine has.
pub(super) fn archs() -> Vec<Arch> {
    let mut archs = vec![Arch::new(), Arch::Scalar];
    #[cfg(target_arch = "x86_64")]
    archs.extend(pulp::x86::V3::try_new().map(Arch::V3));
    archs
}

/// Runs a test with each of them.
pub(super) fn everywhere(test: impl Fn(Arch)) {
    archs().into_iter().for_each(test);
}

/// Ways to divide a call.
pub(super) const SPLITS: [Split; 5] = {
    const fn of(groups: usize, workers: usize) -> Split {
        Split { groups, workers }
    }
    [of(1, 1), of(2, 1), of(1, 2), of(3, 1), of(2, 2)]
};

/// A cell that no kernel may change.
pub(super) const GUARD: f32 = 77.0;

/// What a call is like.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    /// G
    pub(super) gates: usize,
    /// Blocks of a row in `gates`, and in `dgates`.
    pub(super) slots: [usize; 2],
    pub(super) hidden: usize,
    /// How many sequences each step has, in running order.
    pub(super) counts: Vec<usize>,
    pub(super) batch_first: bool,
    pub(super) masked: bool,
    /// As a call in training: every step's states have rows of their own.
    pub(super) training: bool,
    pub(super) functions: [Function; 3],
    pub(super) clip: Option<f32>,
    pub(super) cell_clip: Option<f32>,
    pub(super) coupled: bool,
    pub(super) peephole: bool,
}

impl Shape {
    pub(super) fn new(gates: usize, hidden: usize, counts: &[usize]) -> Self {
        Self {
            gates,
            slots: [gates, gates],
            hidden,
            counts: counts.to_vec(),
            batch_first: false,
            masked: false,
            training: true,
            functions: [Function::Sigmoid, Function::Tanh, Function::Tanh],
            clip: None,
            cell_clip: None,
            coupled: false,
            peephole: false,
        }
    }

    pub(super) fn batch(&self) -> usize {
        self.counts.iter().copied().max().unwrap_or(0)
    }

    fn raw(&self) -> bool {
        let plain = |f| matches!(f, Function::Sigmoid | Function::Tanh | Function::Relu);
        self.clip.is_some() || !self.functions.into_iter().all(plain)
    }

    /// A row of a step's first sequence and the distance to the next one's. Packed rows of a step
    /// follow those of the step before.
    fn rows(&self, t: usize) -> [usize; 2] {
        if self.batch_first {
            return [t, self.counts.len()];
        }
        [self.counts[..t].iter().sum(), 1]
    }

    fn all_rows(&self) -> usize {
        match self.batch_first {
            true => self.counts.len() * self.batch(),
            false => self.counts.iter().sum(),
        }
    }

    /// The steps' parameters in forward order. Rows of `gates` and `y` have a gap behind them.
    pub(super) fn steps(&self) -> Vec<StepParams> {
        let steps = self.counts.len();
        let (hidden, batch) = (self.hidden, self.batch());
        let state = |t: usize| {
            let [start, row] = self.rows(t);
            [(batch + start) * hidden, row * hidden]
        };
        let by_turns = |t: usize| (1 + t % 2) * batch * hidden;
        let of = |t: usize| {
            let ([start, row], last) = (self.rows(t), t + 1 == steps);
            let mut p: StepParams = Zeroable::zeroed();
            let next_start = if last { 0 } else { self.rows(t + 1)[0] };
            let [wide, gradients] = self.slots.map(|slots| slots * hidden + 3);
            for (to, v) in [
                (&mut p.count, self.counts[t]),
                (&mut p.hidden, hidden),
                (&mut p.output, hidden),
                (
                    &mut p.next_count,
                    if last {
                        0
                    } else {
                        self.counts[t + 1].min(self.counts[t])
                    },
                ),
                (&mut p.gates_start, 2 + start * wide),
                (&mut p.gates_row, row * wide),
                (&mut p.dgates_start, start * gradients),
                (&mut p.dgates_row, row * gradients),
                (&mut p.dgates_next, next_start * gradients),
                (&mut p.y_start, 1 + start * (hidden + 5)),
                (&mut p.y_row, row * (hidden + 5)),
                (&mut p.mask_start, start),
                (&mut p.mask_next, next_start),
                (&mut p.mask_row, row),
                (&mut p.dc_start, batch * hidden),
            ] {
                *to = v as u32;
            }
            let next = |state: &dyn Fn(usize) -> usize| if last { 0 } else { state(t + 1) };
            let (h, c) = match self.training {
                true => {
                    let states = [state(t)[0], next(&|t| state(t)[0]), state(t)[1]];
                    (states, states)
                }
                false => ([by_turns(t), next(&by_turns), hidden], [0, 0, hidden]),
            };
            [p.h_from, p.h_next, p.h_row] = h.map(|v| v as u32);
            [p.c_from, p.c_next, p.c_row] = c.map(|v| v as u32);
            for to in &mut p.activations {
                *to = [0.7, 0.0, 0.3, 0.0];
            }
            p.clip = split(self.clip.unwrap_or_default().into());
            p.cell_clip = split(self.cell_clip.unwrap_or_default().into());
            p
        };
        (0..steps).map(of).collect()
    }

    fn constants(&self) -> Vec<Constant> {
        let [a, b, c] = self.functions.map(|f| f as u32);
        vec![
            ("SAVE", u32::from(self.training)),
            ("MASKED", u32::from(self.masked)),
            ("STREAM", 0),
            ("BESIDE", 0),
            ("ACTIVATION_0", a),
            ("ACTIVATION_1", b),
            ("ACTIVATION_2", c),
            ("RAW", u32::from(self.raw())),
            ("CLIP", u32::from(self.clip.is_some())),
            ("CELL_CLIP", u32::from(self.cell_clip.is_some())),
            ("COUPLED", u32::from(self.coupled)),
            ("PEEPHOLE", u32::from(self.peephole)),
            ("PROJECTED", 0),
        ]
    }

    /// The activations of the steps' kernels.
    pub(super) fn act(&self, kernel: &'static Kernel) -> Gates<f32> {
        let args = Args {
            told: Told {
                kernel,
                params: &[],
                constants: &self.constants(),
            },
            slots: [(); MAX_BINDINGS].map(|()| Slot::Taken),
        };
        Gates::new(&args, &self.steps()[0]).unwrap()
    }

    /// Buffers of a call: numbers where its steps read, NaN where they only write, and guards.
    pub(super) fn buffers(&self, rng: &mut Rng) -> Buffers {
        let (hidden, batch, rows) = (self.hidden, self.batch(), self.all_rows());
        let [wide, gradients] = self.slots.map(|slots| slots * hidden + 3);
        let width = self.gates * hidden;
        let bound = 1.0 / (hidden as f32).sqrt();
        let states = match self.training {
            true => (batch + rows) * hidden,
            false => 3 * batch * hidden,
        };
        let mut buffers = Buffers {
            weight_hh: rng.uniforms(width * hidden, -bound, bound),
            bias_hh: rng.uniforms(width, -bound, bound),
            weight_p: rng.uniforms(3 * hidden, -1.0, 1.0),
            gates: vec![GUARD; 2 + rows * wide],
            h: vec![f32::NAN; states],
            c: vec![f32::NAN; states],
            y: vec![GUARD; 1 + rows * (hidden + 5)],
            dgates: vec![GUARD; rows * gradients],
            dstate: rng.uniforms(2 * batch * hidden, -1.0, 1.0),
            mask: (0..rows).map(|_| rng.below(4)).collect(),
        };
        let mut begun = 0;
        for p in self.steps() {
            for n in 0..p.count as usize {
                let row = |start: u32, row: u32| start as usize + n * row as usize;
                let at = row(p.gates_start, p.gates_row);
                let all = self.slots[0] * hidden;
                buffers.gates[at..at + all].fill(f32::NAN);
                buffers.gates[at..at + width].copy_from_slice(&rng.uniforms(width, -1.5, 1.5));
                let at = row(p.y_start, p.y_row);
                buffers.y[at..at + hidden].fill(f32::NAN);
                let at = row(p.dgates_start, p.dgates_row);
                buffers.dgates[at..at + self.slots[1] * hidden].fill(f32::NAN);
                if n < begun {
                    continue;
                }
                // The sequence's first step.
                for (cells, start, pitch) in [
                    (&mut buffers.h, p.h_from, p.h_row),
                    (&mut buffers.c, p.c_from, p.c_row),
                ] {
                    let at = row(start, pitch);
                    cells[at..at + hidden].copy_from_slice(&rng.uniforms(hidden, -1.0, 1.0));
                }
            }
            begun = begun.max(p.count as usize);
        }
        buffers
    }
}

/// The buffers of a call, as the plain kernels have them.
#[derive(Debug, Clone)]
pub(super) struct Buffers {
    pub(super) weight_hh: Vec<f32>,
    pub(super) bias_hh: Vec<f32>,
    pub(super) weight_p: Vec<f32>,
    pub(super) gates: Vec<f32>,
    pub(super) h: Vec<f32>,
    pub(super) c: Vec<f32>,
    pub(super) y: Vec<f32>,
    pub(super) dgates: Vec<f32>,
    pub(super) dstate: Vec<f32>,
    pub(super) mask: Vec<u32>,
}

impl Buffers {
    /// The same with numbers everywhere where a forward pass leaves them, and dy in y.
    pub(super) fn saved(mut self, rng: &mut Rng) -> Self {
        for cells in [&mut self.gates, &mut self.h, &mut self.c, &mut self.y] {
            for cell in cells.iter_mut().filter(|c| **c != GUARD) {
                *cell = rng.uniform(-0.95, 0.95);
            }
        }
        self
    }

    fn named<'a>(&'a self, shape: &Shape) -> Vec<(&'static str, Vec<f32>)> {
        let (width, hidden) = (shape.gates * shape.hidden, shape.hidden);
        let transposed = (0..width * hidden).map(|at| {
            let (k, unit) = (at / width, at % width);
            self.weight_hh[unit * hidden + k]
        });
        let of = |values: &'a [f32]| values.to_vec();
        vec![
            ("weight_hh_t", transposed.collect()),
            ("weight_hh", of(&self.weight_hh)),
            ("bias_hh", of(&self.bias_hh)),
            ("weight_p", of(&self.weight_p)),
            ("gates", of(&self.gates)),
            ("saved_gates", of(&self.gates)),
            ("h", of(&self.h)),
            ("saved_h", of(&self.h)),
            ("c", of(&self.c)),
            ("saved_c", of(&self.c)),
            ("y", of(&self.y)),
            ("dy", of(&self.y)),
            ("dgates", of(&self.dgates)),
            ("dstate", of(&self.dstate)),
        ]
    }

    /// What the plain twin of a step leaves after the steps: every buffer that it changes, by name.
    pub(super) fn plain<R: Real>(
        &self,
        shape: &Shape,
        steps: &[StepParams],
        kernel: &'static Kernel,
        twin: fn(&mut Args<'_, R>) -> crate::Result<()>,
    ) -> Vec<(&'static str, Vec<f64>)> {
        let mut cells: Vec<(&str, Vec<R>)> = self
            .named(shape)
            .into_iter()
            .map(|(name, v)| (name, v.into_iter().map(R::from_f32).collect()))
            .collect();
        let constants = shape.constants();
        for p in steps {
            let mut slots = [(); MAX_BINDINGS].map(|()| Slot::Taken);
            for (name, values) in &mut cells {
                let Some(nth) = kernel.bindings.iter().position(|b| b.name == *name) else {
                    continue;
                };
                slots[nth] = match kernel.bindings[nth].access {
                    Access::Read => Slot::Read(values),
                    _ => Slot::Write(values),
                };
            }
            assert_eq!(kernel.bindings[0].element, Element::Uint);
            slots[0] = Slot::ReadUint(&self.mask);
            let told = Told {
                kernel,
                params: bytes_of(p),
                constants: &constants,
            };
            let mut args = Args { told, slots };
            twin(&mut args).unwrap();
        }
        let written = |name: &&str| {
            let mut bindings = kernel.bindings.iter();
            bindings.any(|b| b.name == *name && !matches!(b.access, Access::Read))
        };
        cells
            .into_iter()
            .filter(|(name, _)| written(name))
            .map(|(name, v)| (name, v.into_iter().map(R::to_f64).collect()))
            .collect()
    }

    /// Compares what a fast twin left with what a plain one did. The sums have `depth` terms and run
    /// through `steps` steps; the factor leaves room for the activations.
    pub(super) fn compare(
        &self,
        want: &[(&str, Vec<f64>)],
        depth: usize,
        steps: usize,
        what: &str,
    ) {
        assert!(!want.is_empty());
        for (name, want) in want {
            let got = match *name {
                "gates" => &self.gates,
                "h" => &self.h,
                "c" => &self.c,
                "y" => &self.y,
                "dgates" => &self.dgates,
                "dstate" => &self.dstate,
                _ => panic!("{name} is not compared"),
            };
            assert_eq!(got.len(), want.len());
            let terms = (depth as f64).sqrt() + 16.0;
            let tolerance = (f64::from(f32::EPSILON) * terms * steps as f64).min(1e-4);
            for (at, (&got, &want)) in got.iter().zip(want).enumerate() {
                let got = f64::from(got);
                let close = (got - want).abs() <= tolerance * want.abs().max(1.0);
                let same = got == want || (got.is_nan() && want.is_nan());
                assert!(close || same, "{what}: {name}[{at}] is {got}, not {want}");
            }
        }
    }

    /// The bits of everything that a fast twin may write.
    pub(super) fn bits(&self) -> Vec<u32> {
        let all = [
            &self.gates,
            &self.h,
            &self.c,
            &self.y,
            &self.dgates,
            &self.dstate,
        ];
        all.into_iter().flatten().map(|v| v.to_bits()).collect()
    }
}

/// Calls of many sizes, with each of the things that a call may have.
pub(super) fn shapes(gates: usize) -> Vec<Shape> {
    let mut shapes = Vec::new();
    for hidden in 1..=70 {
        let n = 1 + hidden * 5 % 9;
        shapes.push(Shape::new(gates, hidden, &vec![n; 1 + hidden % 3]));
    }
    let with = |shape: Shape, change: fn(&mut Shape)| {
        let mut shape = shape;
        change(&mut shape);
        shape
    };
    for hidden in [5, 16, 33, 64] {
        let plain = Shape::new(gates, hidden, &[6, 6, 6, 6, 6]);
        shapes.push(with(plain.clone(), |s| s.batch_first = true));
        shapes.push(with(plain.clone(), |s| s.training = false));
        shapes.push(with(plain.clone(), |s| s.masked = true));
        shapes.push(with(plain.clone(), |s| {
            s.masked = true;
            s.training = false;
        }));
        shapes.push(with(plain, |s| {
            s.masked = true;
            s.batch_first = true;
        }));
        // Packed sequences, forward and in reverse.
        for counts in [[9, 7, 7, 2, 1], [1, 2, 7, 7, 9]] {
            let packed = Shape::new(gates, hidden, &counts);
            shapes.push(with(packed.clone(), |s| s.training = false));
            shapes.push(with(packed.clone(), |s| s.masked = true));
            shapes.push(packed);
        }
    }
    shapes
}
