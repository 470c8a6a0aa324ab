//! The descriptors of all kernels of a product.

use super::form::Form;
use super::params::Product;
use super::rounds::Rounds;
use super::sample::{few, sample};
use super::twins::{multiply, multiply_rounded, sum};
use crate::kernel::{Binding, Kernel};
use crate::twin;

/// The text of a tile's kernel with its `SIDE`, `BLOCKS` and `DEPTH`, and whether its arrays are `NESTED`.
macro_rules! tile {
    ($side:literal, $blocks:literal, $depth:literal, $nested:literal) => {
        concat!(
            "const SIDE: u32 = ",
            $side,
            "u;\n",
            "const BLOCKS: u32 = ",
            $blocks,
            "u;\n",
            "const DEPTH: u32 = ",
            $depth,
            "u;\n",
            "const NESTED: u32 = ",
            $nested,
            "u;\n",
            include_str!("../../../shaders/gemm/tile.wgsl"),
        )
    };
}

/// The text of the kernels for few rows, with subgroups or without.
macro_rules! rows {
    ($subgroups:literal) => {
        concat!(
            "const SUBGROUPS: u32 = ",
            $subgroups,
            "u;\n",
            include_str!("../../../shaders/gemm/rows.wgsl"),
        )
    };
}

const BINDINGS: &[Binding] = &[
    Binding::read("a_buffer"),
    Binding::read("bias"),
    Binding::update("c_buffer").or_f16("C_HALF"),
    Binding::read("b_buffer").or_half("B_HALF"),
];

/// The kernel of [`Form::Naive`], and the step of every product on the CPU, where its twin runs.
pub static GEMM: Kernel = Kernel {
    name: "gemm",
    wgsl: include_str!("../../../shaders/gemm/naive.wgsl"),
    entry: "gemm",
    workgroup_size: 64,
    rounds: |told| Rounds::NAIVE.of_told(told),
    sample: |size, rng| sample(Form::Naive, size, rng),
    ..MULTIPLIES
};

/// The kernel of [`Form::Tile32`].
pub static TILE32: Kernel = Kernel {
    name: "gemm.tile32",
    wgsl: tile!(8, 1, 16, 0),
    workgroup_size: 8 * 8,
    workgroup_memory: tile_memory(32, 16),
    rounds: |told| Rounds::TILE32.of_told(told),
    sample: |size, rng| sample(Form::Tile32, size, rng),
    ..TILE
};

/// The kernel of [`Form::Tile64`].
pub static TILE64: Kernel = Kernel {
    name: "gemm.tile64",
    wgsl: tile!(16, 1, 32, 0),
    workgroup_size: 16 * 16,
    workgroup_memory: tile_memory(64, 32),
    rounds: |told| Rounds::TILE64.of_told(told),
    sample: |size, rng| sample(Form::Tile64, size, rng),
    ..TILE
};

/// The kernel of [`Form::Tile128`].
pub static TILE128: Kernel = Kernel {
    name: "gemm.tile128",
    wgsl: tile!(16, 2, 16, 1),
    workgroup_size: 16 * 16,
    workgroup_memory: tile_memory(128, 16),
    rounds: |told| Rounds::TILE128.of_told(told),
    sample: |size, rng| sample(Form::Tile128, size, rng),
    ..TILE
};

/// The kernel of [`Form::Rows`] against a matrix in which neighbours along k are neighbours.
pub static ALONG_K: Kernel = Kernel {
    name: "gemm.along_k",
    wgsl: rows!(0),
    entry: "along_k",
    rounds: |told| Rounds::ALONG_K.of_told(told),
    sample: |size, rng| few(Form::Rows, true, size, rng),
    ..ROWS
};

/// The kernel of [`Form::RowsSubgroups`].
pub static ALONG_K_SUBGROUPS: Kernel = Kernel {
    name: "gemm.subgroups.along_k",
    wgsl: rows!(1),
    entry: "along_k",
    rounds: |told| Rounds::ALONG_K.of_told(told),
    sample: |size, rng| few(Form::RowsSubgroups, true, size, rng),
    ..ROWS
};

/// The kernel of [`Form::Rows`] against other matrices.
pub static ACROSS_K: Kernel = Kernel {
    name: "gemm.across_k",
    wgsl: rows!(0),
    entry: "across_k",
    rounds: |told| Rounds::ACROSS_K.of_told(told),
    sample: |size, rng| few(Form::Rows, false, size, rng),
    ..ROWS
};

/// The second kernel of [`Form::SplitK`].
pub static SUM: Kernel = Kernel {
    name: "gemm.sum",
    wgsl: include_str!("../../../shaders/gemm/sum.wgsl"),
    entry: "sum",
    bindings: BINDINGS.split_at(3).0,
    workgroup_size: 64,
    // Over the parts.
    rounds: |told| Ok(u64::from(told.params::<Product>()?.k) + 1),
    twin: twin!(sum),
    sample: |size, rng| sample(Form::SplitK, size, rng),
    ..MULTIPLIES
};

/// The kernel of [`Form::Blocks`].
pub static BLOCKS: Kernel = Kernel {
    name: "gemm.blocks",
    wgsl: include_str!("../../../shaders/gemm/blocks.wgsl"),
    entry: "blocks",
    workgroup_size: 8,
    rounds: |told| Rounds::BLOCKS.of_told(told),
    sample: |size, rng| sample(Form::Blocks, size, rng),
    ..MULTIPLIES
};

/// The kernel of [`Form::Cooperative`].
pub static COOPERATIVE: Kernel = Kernel {
    name: "gemm.cooperative",
    wgsl: include_str!("../../../shaders/gemm/cooperative.wgsl"),
    entry: "cooperative",
    // `THREADS` says how many there are.
    workgroup_size: 32,
    // Two times 32 x 16 factors of two bytes, and 32 x 32 sums.
    workgroup_memory: 2 * 32 * 16 * 2 + 32 * 32 * 4,
    twin: twin!(multiply_rounded),
    rounds: |told| Rounds::COOPERATIVE.of_told(told),
    sample: |size, rng| sample(Form::Cooperative, size, rng),
    ..MULTIPLIES
};

/// What all that multiply have in common.
const MULTIPLIES: Kernel = Kernel {
    name: "",
    wgsl: "",
    entry: "",
    bindings: BINDINGS,
    params_size: size_of::<Product>(),
    workgroup_size: 0,
    workgroup_memory: 0,
    rounds: |told| Rounds::NAIVE.of_told(told),
    twin: twin!(multiply),
    sample: |size, rng| sample(Form::Library, size, rng),
};

const TILE: Kernel = Kernel {
    entry: "tile",
    ..MULTIPLIES
};

const ROWS: Kernel = Kernel {
    workgroup_size: 64,
    // That of 8 rows; `WORKGROUP_FLOATS` says what fewer take.
    workgroup_memory: 8 * 64 * 16,
    ..MULTIPLIES
};

/// `DEPTH` values of k of a tile's rows and columns.
const fn tile_memory(tile: u32, depth: u32) -> u32 {
    2 * tile * depth * 4
}
