//! The steps of a sequence: for every block of units and every tile of rows the product, then what
//! the cell makes of it.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::apart::Touched;
use super::pack::{LANES, PANELS, Packing};
use super::product::{Product, ROWS, rows_at_once};
use super::split::{Split, Work, share};
use super::team::Team;
use super::tile::{BUFFERS, Cell, Tile};
use crate::kernels::step::{Rows, StepParams};
use crate::threads;

/// The steps of a call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Steps<'a> {
    /// In the order in which they run.
    pub(crate) steps: &'a [StepParams],
    /// See [`Rows`].
    pub(crate) mask: &'a [u32],
    /// Whether it is to be read.
    pub(crate) masked: bool,
    /// Whether there is one step of streams, which the mask lists.
    pub(crate) stream: bool,
}

impl<'a> Steps<'a> {
    fn rows(&self, step: usize) -> Rows<'a> {
        Rows::of_step(self, self.steps[step])
    }

    /// N: the most sequences that a step has.
    fn sequences(&self) -> usize {
        let counts = (0..self.steps.len()).map(|step| self.rows(step).count());
        counts.max().unwrap_or(0)
    }
}

/// How to run a call, where that is not to be chosen.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Manner {
    pub(crate) arch: Option<Arch>,
    /// Used if the workers' cells can be told apart.
    pub(crate) split: Option<Split>,
}

/// What all workers of a call have in common.
pub(crate) struct Job<'a, C> {
    pub(crate) cell: &'a C,
    pub(crate) steps: Steps<'a>,
    pub(crate) packing: Packing,
    /// As `packing` says.
    pub(crate) weight: &'a [f32],
    /// What the products start from, `[gates, units]`; zeros if it is empty.
    pub(crate) bias: &'a [f32],
    /// For streams x `[N, I]`, which is multiplied too, with a 1 behind it, before h.
    pub(crate) input: Option<&'a [f32]>,
}

impl<C: Cell> Job<'_, C> {
    /// Runs the steps; returns how they were divided.
    pub(crate) fn run(&self, manner: Manner) -> Split {
        let arch = manner.arch.unwrap_or_default();
        let split = manner.split.unwrap_or_else(|| self.split());
        let alone = split == Split::ALONE || !self.apart();
        let split = if alone { Split::ALONE } else { split };
        let start = self.start();
        let teams: Vec<Team> = (0..split.groups)
            .map(|_| Team::new(split.workers, split.workers))
            .collect();
        let worker = |group: usize, number: usize| {
            arch.dispatch(Worker {
                job: self,
                start: &start,
                team: &teams[group],
                number,
                sequences: split.sequences(group, self.steps.sequences()),
            });
        };
        threads::crew(split.groups * split.workers, |number| {
            worker(number / split.workers, number % split.workers);
        });
        split
    }

    /// As many threads as the work is worth.
    fn split(&self) -> Split {
        let work = Work {
            sequences: self.steps.sequences(),
            blocks: self.packing.blocks(),
            weights: self.packing.len(),
            steps: self.steps.steps.len(),
        };
        match work.is_small() {
            true => Split::ALONE,
            false => Split::new(work, rayon::current_num_threads()),
        }
    }

    /// What the sums of every block start from: `[blocks, panels]`.
    fn start(&self) -> Vec<[f32; LANES]> {
        let Packing {
            units,
            gates,
            block,
            ..
        } = self.packing;
        let mut start = vec![[0.0; LANES]; self.packing.blocks() * self.packing.width() / LANES];
        if self.bias.is_empty() {
            return start;
        }
        let gate_of_blocks = start.as_flattened_mut().chunks_exact_mut(block);
        for (nth, to) in gate_of_blocks.enumerate() {
            let (first, gate) = (nth / gates * block, nth % gates);
            let count = block.min(units - first);
            to[..count].copy_from_slice(&self.bias[gate * units + first..][..count]);
        }
        start
    }

    fn apart(&self) -> bool {
        let mut touched = [(); BUFFERS].map(|()| Touched::default());
        if self.steps.stream && self.steps.steps.len() == 1 {
            // The states of streams stand where the list says.
            let rows = self.steps.rows(0);
            self.cell.touched(&rows, &mut touched);
            let [gates, _, y, _] = touched;
            return rows.distinct_streams() && gates.are_apart() && y.are_apart();
        }
        let mut distinct = true;
        for step in 0..self.steps.steps.len() {
            distinct &= self.cell.touched(&self.steps.rows(step), &mut touched);
        }
        distinct && touched.into_iter().all(Touched::are_apart)
    }
}

struct Worker<'a, C> {
    job: &'a Job<'a, C>,
    /// See [`Job::start`].
    start: &'a [[f32; LANES]],
    team: &'a Team,
    number: usize,
    sequences: Range<usize>,
}

/// What a worker computes with.
struct Scratch<Row> {
    /// The step that `rows` and `operand` belong to.
    step: Option<usize>,
    /// One for each of the worker's sequences that has the step.
    rows: Vec<Row>,
    /// What the step multiplies, likewise.
    operand: Vec<f32>,
    /// How many of them have a product.
    multiplied: usize,
    /// For each of the worker's sequences, or for [`ROWS`] sequences and blocks.
    sums: Vec<[f32; LANES]>,
}

/// Rows of weights that a core's own cache keeps while all rows of the operand go by, beside those that are fetched
/// ahead: 64 KiB. With 256 KiB a core of an AMD EPYC with 512 KiB multiplied 16 x 1024 by 1024 x 4096 at 48 GFLOP/s, so
/// at 61; where all weights are near it makes no difference.
const KEPT_ROWS: usize = 1 << 10;

/// Numbers of weights that stay in a core's own cache while it goes through them again and again:
/// 1 MiB.
const KEPT: usize = 1 << 18;

impl<C: Cell> WithSimd for Worker<'_, C> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Job { steps, packing, .. } = self.job;
        let mut scratch = Scratch {
            step: None,
            rows: Vec::with_capacity(self.sequences.len()),
            operand: vec![0.0; self.sequences.len() * packing.depth],
            multiplied: 0,
            sums: vec![[0.0; LANES]; self.sequences.len().max(ROWS) * PANELS],
        };
        let parts = self.team.parts();
        for (step, part) in self.team.shift(self.number, steps.steps.len()) {
            if scratch.step != Some(step) {
                self.begin(step, &mut scratch);
            }
            let blocks = share(packing.blocks(), part, parts);
            let at_once = match scratch.multiplied {
                0 => 1,
                // Enough to have many vectors in flight.
                rows => (ROWS / rows).max(1),
            };
            let groups = blocks.len().div_ceil(at_once);
            let group = |nth: usize| {
                // There and back again: what a step ends with is still in the cache.
                let nth = if step % 2 == 0 { nth } else { groups - 1 - nth };
                let first = blocks.start + nth * at_once;
                first..(first + at_once).min(blocks.end)
            };
            // Weights that do not all stay there are fetched ahead.
            let fetch = packing.place(blocks.clone()).len() > KEPT;
            for nth in 0..groups {
                let next = match fetch && nth + 1 < groups {
                    true => Some(group(nth + 1)),
                    false => None,
                };
                self.blocks(simd, group(nth), next, fetch, &mut scratch);
            }
        }
    }
}

impl<C: Cell> Worker<'_, C> {
    /// Looks up where a step's rows stand, and takes what it multiplies.
    #[inline(always)]
    fn begin(&self, step: usize, scratch: &mut Scratch<C::Row>) {
        let (cell, rows) = (self.job.cell, self.job.steps.rows(step));
        let Range { start, end } = self.sequences;
        scratch.step = Some(step);
        scratch.rows.clear();
        for n in start..end.min(rows.count()) {
            scratch.rows.push(cell.row(&rows, n));
        }
        scratch.multiplied = cell
            .multiplied(&rows)
            .saturating_sub(start)
            .min(scratch.rows.len());
        let operand = scratch.operand.chunks_exact_mut(self.job.packing.depth);
        for (n, (row, to)) in (start..).zip(scratch.rows[..scratch.multiplied].iter().zip(operand))
        {
            let (before, to) = to.split_at_mut(self.before());
            if let (Some(x), Some((one, to))) = (self.job.input, before.split_last_mut()) {
                to.copy_from_slice(&x[n * to.len()..][..to.len()]);
                *one = 1.0;
            }
            cell.operand(row, to);
        }
    }

    /// How many terms come before those of h.
    fn before(&self) -> usize {
        match (self.job.input, self.job.steps.steps) {
            (Some(_), [p, ..]) => p.input as usize + 1,
            _ => 0,
        }
    }

    /// Multiplies the terms before those of h for a tile, and has the sums put where the cell wants them.
    #[inline(always)]
    fn input<S: Simd>(&self, simd: S, blocks: &Range<usize>, tile: &mut Tile<'_, C::Row>) {
        let Packing {
            gates,
            block: units,
            units: all,
            depth,
            ..
        } = self.job.packing;
        let (panels, rows, terms) = (tile.panels, tile.rows, 0..self.before());
        let zeros = [[0.0; LANES]; PANELS];
        for block in blocks.clone() {
            let sums = &mut tile.sums[..rows.len() * panels];
            let mut product = Product {
                operand: tile.operand,
                depth,
                rows: rows.len(),
                panels,
                weights: self.weights(block, terms.clone()),
                terms: terms.clone(),
                start: Some(&zeros[..panels]),
                sums,
                ahead: &[],
            };
            product.multiply(simd);
            let own = block * units..((block + 1) * units).min(all);
            for (row, sums) in rows.iter().zip(sums.chunks_exact(panels)) {
                let of_gates = sums.as_flattened().chunks_exact(units).take(gates);
                for (gate, sums) in of_gates.enumerate() {
                    self.job
                        .cell
                        .put(row, gate, own.clone(), &sums[..own.len()]);
                }
            }
        }
    }

    /// A step of the units of some blocks; with `fetch` weights that come next are asked for, at the
    /// end those of `next`.
    #[inline(always)]
    fn blocks<S: Simd>(
        &self,
        simd: S,
        blocks: Range<usize>,
        next: Option<Range<usize>>,
        fetch: bool,
        scratch: &mut Scratch<C::Row>,
    ) {
        let Job { cell, packing, .. } = self.job;
        let (depth, panels) = (packing.depth, packing.width() / LANES);
        let (rows, others) = scratch.rows.split_at(scratch.multiplied);
        let tiles = rows.len().div_ceil(rows_at_once::<S>(panels));
        // A single tile reads its weights once, whatever their order.
        let chunks = match tiles {
            0 | 1 => 1,
            _ => (depth * panels).div_ceil(KEPT_ROWS),
        };
        for chunk in 0..chunks {
            let last = chunk + 1 == chunks;
            let ahead = match &next {
                _ if !fetch => &[],
                _ if !last => self.weights(blocks.start, self.terms(chunk + 1, chunks)),
                Some(next) => self.weights(next.start, self.terms(0, chunks)),
                None => &[],
            };
            for nth in 0..tiles {
                let range = share(rows.len(), nth, tiles);
                let operand = &scratch.operand[range.start * depth..range.end * depth];
                let sums = &mut scratch.sums[range.start * blocks.len() * panels..];
                let mut tile = self.tile(&blocks, &rows[range], operand, sums);
                if chunk == 0 {
                    for row in tile.rows {
                        cell.prefetch(row, tile.first..tile.end);
                    }
                    if C::INPUT_APART && self.before() > 0 {
                        self.input(simd, &blocks, &mut tile);
                    }
                }
                let sums = tile.sums.chunks_exact_mut(tile.rows.len() * panels);
                for (block, sums) in blocks.clone().zip(sums) {
                    let terms = self.terms(chunk, chunks);
                    let start = &self.start[block * panels..(block + 1) * panels];
                    let mut product = Product {
                        operand: tile.operand,
                        depth,
                        rows: tile.rows.len(),
                        panels,
                        weights: self.weights(block, terms.clone()),
                        terms,
                        start: (chunk == 0).then_some(start),
                        sums,
                        // A single tile waits for its own weights already.
                        ahead: match tiles {
                            1 => &[],
                            _ => &ahead[share(ahead.len(), nth, tiles)],
                        },
                    };
                    product.multiply(simd);
                }
                if last {
                    cell.finish(simd, &mut tile);
                }
            }
        }
        for rows in others.chunks((ROWS / blocks.len()).max(1)) {
            let mut tile = self.tile(&blocks, rows, &[], &mut scratch.sums);
            let starts = blocks.clone().flat_map(|block| {
                let start = &self.start[block * panels..(block + 1) * panels];
                std::iter::repeat_n(start, rows.len()).flatten()
            });
            for (sums, start) in tile.sums.iter_mut().zip(starts) {
                *sums = *start;
            }
            cell.finish(simd, &mut tile);
        }
    }

    #[inline(always)]
    fn tile<'b>(
        &self,
        blocks: &Range<usize>,
        rows: &'b [C::Row],
        operand: &'b [f32],
        sums: &'b mut [[f32; LANES]],
    ) -> Tile<'b, C::Row> {
        let packing = &self.job.packing;
        Tile {
            rows,
            first: blocks.start * packing.block,
            end: (blocks.end * packing.block).min(packing.units),
            gates: packing.gates,
            panels: packing.width() / LANES,
            sums,
            operand,
            depth: packing.depth,
            before: self.before(),
        }
    }

    /// The terms of a chunk of the sums.
    #[inline(always)]
    fn terms(&self, chunk: usize, chunks: usize) -> Range<usize> {
        let first = if C::INPUT_APART { self.before() } else { 0 };
        let terms = share(self.job.packing.depth - first, chunk, chunks);
        first + terms.start..first + terms.end
    }

    /// The weights of some terms of a block.
    #[inline(always)]
    fn weights(&self, block: usize, terms: Range<usize>) -> &[[f32; LANES]] {
        let Job {
            packing, weight, ..
        } = self.job;
        let (all, panels) = (packing.place(block..block + 1), packing.width() / LANES);
        &weight[all].as_chunks().0[terms.start * panels..terms.end * panels]
    }
}
