//! The parameters of a step kernel, and what of them differs from step to step.

use bytemuck::{Pod, Zeroable};

/// `Step` in `shaders/shared/step.wgsl`; starts and distances count elements.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct StepParams {
    /// α and β of the activations, each with what double precision has beyond it.
    pub activations: [[f32; 4]; 3],
    /// The bound of pre-activations, likewise.
    pub clip: [f32; 2],
    /// The bound of c, likewise.
    pub cell_clip: [f32; 2],
    /// Sequences that have this step; they are the first ones of the batch.
    pub count: u32,
    /// H
    pub hidden: u32,
    /// P: units of h.
    pub output: u32,
    /// How many of the sequences go on to another step in the same buffers.
    pub next_count: u32,
    /// This step's row of the first sequence in `gates`.
    pub gates_start: u32,
    /// From one sequence to the next there.
    pub gates_row: u32,
    /// This step's row of the first sequence in `dgates`.
    pub dgates_start: u32,
    /// From one sequence to the next there.
    pub dgates_row: u32,
    /// The next step's row of the first sequence there.
    pub dgates_next: u32,
    /// h before the step.
    pub h_from: u32,
    /// h after it where the sequence goes on.
    pub h_next: u32,
    /// From one sequence to the next in both.
    pub h_row: u32,
    /// As `h_from`.
    pub c_from: u32,
    /// As `h_next`.
    pub c_next: u32,
    /// As `h_row`.
    pub c_row: u32,
    /// This step's row of the first sequence in `y` or `dy`.
    pub y_start: u32,
    /// From one sequence to the next there.
    pub y_row: u32,
    /// This step's row of the first sequence in `mask`.
    pub mask_start: u32,
    /// The next step's.
    pub mask_next: u32,
    /// From one sequence to the next there.
    pub mask_row: u32,
    /// Rows of H that pass from one kernel of a step to another.
    pub inner_start: u32,
    /// From one sequence to the next there.
    pub inner_row: u32,
    /// Rows of P that do.
    pub outer_start: u32,
    /// From one sequence to the next there.
    pub outer_row: u32,
    /// Where the gradients of c start in the lane's part of `dstate`.
    pub dc_start: u32,
    /// How many streams there are.
    pub streams: u32,
    /// I, for streams.
    pub input: u32,
    /// Where the steps of a kernel that runs them all, or several lanes, stand in `mask`: a [`Moment`]
    /// for each.
    pub table: u32,
    /// How many steps it runs.
    pub steps: u32,
    /// The lane; see [`Rows::lanes`](super::Rows::lanes).
    pub lane: u32,
    /// From one lane's table to the next.
    pub lane_table: u32,
    /// From one lane to the next in `h`, whose part begins with h after the last step.
    pub lane_h: u32,
    /// The same in `c`.
    pub lane_c: u32,
    /// From one lane to the next in `dstate`.
    pub lane_dstate: u32,
    /// And in the recurrent weights.
    pub lane_weights: u32,
    /// And in `bias_hh`.
    pub lane_bias: u32,
    /// And in `weight_p`.
    pub lane_diagonal: u32,
    /// How many lanes run, where levels are side by side.
    pub lanes: u32,
    /// The shader's struct has a size of whole `vec4`s.
    pub padding: [u32; 2],
}

/// What differs from step to step in [`StepParams`]: an entry of the table that the kernels of all
/// steps read.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Moment {
    /// As in [`StepParams`], like all that follow.
    pub count: u32,
    #[allow(missing_docs, reason = "see above")]
    pub next_count: u32,
    #[allow(missing_docs, reason = "see above")]
    pub gates_start: u32,
    #[allow(missing_docs, reason = "see above")]
    pub dgates_start: u32,
    #[allow(missing_docs, reason = "see above")]
    pub dgates_next: u32,
    #[allow(missing_docs, reason = "see above")]
    pub h_from: u32,
    #[allow(missing_docs, reason = "see above")]
    pub h_next: u32,
    #[allow(missing_docs, reason = "see above")]
    pub c_from: u32,
    #[allow(missing_docs, reason = "see above")]
    pub c_next: u32,
    #[allow(missing_docs, reason = "see above")]
    pub y_start: u32,
    #[allow(missing_docs, reason = "see above")]
    pub mask_start: u32,
    #[allow(missing_docs, reason = "see above")]
    pub mask_next: u32,
}

impl Moment {
    /// Words of an entry.
    pub const WORDS: usize = size_of::<Self>() / 4;
}

impl StepParams {
    /// What differs from step to step.
    pub fn moment(&self) -> Moment {
        Moment {
            count: self.count,
            next_count: self.next_count,
            gates_start: self.gates_start,
            dgates_start: self.dgates_start,
            dgates_next: self.dgates_next,
            h_from: self.h_from,
            h_next: self.h_next,
            c_from: self.c_from,
            c_next: self.c_next,
            y_start: self.y_start,
            mask_start: self.mask_start,
            mask_next: self.mask_next,
        }
    }

    /// Where h of sequences that do not go on starts.
    pub fn h_state(&self) -> u32 {
        self.lane * self.lane_h
    }

    /// And c.
    pub fn c_state(&self) -> u32 {
        self.lane * self.lane_c
    }

    /// The parameters of another step of the same kernel.
    #[must_use]
    pub fn at(&self, m: &Moment) -> Self {
        Self {
            count: m.count,
            next_count: m.next_count,
            gates_start: m.gates_start,
            dgates_start: m.dgates_start,
            dgates_next: m.dgates_next,
            h_from: m.h_from,
            h_next: m.h_next,
            c_from: m.c_from,
            c_next: m.c_next,
            y_start: m.y_start,
            mask_start: m.mask_start,
            mask_next: m.mask_next,
            ..*self
        }
    }
}
