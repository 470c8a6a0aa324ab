//! The forms that a product can have, and what each needs.

use super::kernels;
use super::shape::Shape;
use crate::kernel::Kernel;
use crate::plan::{DeviceKind, MAX_GROUPS, Target};

/// How a product is computed. The shaders in `shaders/gemm/` say what each does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// The crate `gemm`, which is what every product is on the CPU backend.
    Library,
    /// An invocation for each element of C.
    Naive,
    /// Tiles of 32 × 32 in workgroup memory, 4 × 4 for each of 64 invocations.
    Tile32,
    /// Tiles of 64 × 64, 4 × 4 for each of 256 invocations.
    Tile64,
    /// Tiles of 128 × 128, 8 × 8 for each of 256 invocations.
    Tile128,
    /// Blocks in registers, without workgroup memory.
    Blocks,
}

impl Form {
    /// Every form.
    pub const ALL: [Self; 6] = [
        Self::Library,
        Self::Naive,
        Self::Tile32,
        Self::Tile64,
        Self::Tile128,
        Self::Blocks,
    ];

    /// Its name, as a plan and a tool write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Library => "library",
            Self::Naive => "naive",
            Self::Tile32 => "tile32",
            Self::Tile64 => "tile64",
            Self::Tile128 => "tile128",
            Self::Blocks => "blocks",
        }
    }

    /// The form with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.name() == name)
    }

    /// True if a device can compute this product so.
    pub fn fits(self, shape: &Shape, target: &Target) -> bool {
        let on_cpu = target.kind == DeviceKind::Cpu;
        if on_cpu || self == Self::Library {
            return on_cpu && self == Self::Library;
        }
        let has = |kernel: &Kernel| {
            kernel.workgroup_size <= target.invocations
                && kernel.workgroup_memory <= target.workgroup_memory
                && kernel.bindings.len() as u32 <= target.storage_buffers
        };
        has(self.kernel()) && self.grid(shape).iter().all(|&g| g <= MAX_GROUPS as usize)
    }

    /// The kernel that multiplies.
    pub(super) fn kernel(self) -> &'static Kernel {
        match self {
            Self::Library | Self::Naive => &kernels::GEMM,
            Self::Tile32 => &kernels::TILE32,
            Self::Tile64 => &kernels::TILE64,
            Self::Tile128 => &kernels::TILE128,
            Self::Blocks => &kernels::BLOCKS,
        }
    }

    /// Workgroups in x and y.
    pub(super) fn grid(self, shape: &Shape) -> [usize; 2] {
        let [rows, cols] = match self {
            Self::Library | Self::Naive => [8, 8],
            Self::Tile32 => [32, 32],
            Self::Tile64 => [64, 64],
            Self::Tile128 => [128, 128],
            Self::Blocks => Block::of(shape).tile(),
        };
        [shape.n.div_ceil(cols), shape.m.div_ceil(rows)]
    }
}

/// What an invocation and a workgroup of [`Form::Blocks`] own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    /// Blocks of 4 × 4 along the rows of C, for each invocation.
    pub(super) rows: usize,
    /// And along its columns.
    pub(super) cols: usize,
    /// Invocations along the columns.
    pub(super) width: usize,
}

impl Block {
    /// Large blocks reuse more of what they read; small products have nothing to fill them with.
    pub(super) fn of(shape: &Shape) -> Self {
        let rows = if shape.m <= 4 { 1 } else { 2 };
        let cols = match shape.n {
            0..=4 => 1,
            5..128 => 2,
            _ => 4,
        };
        let most = if shape.m <= 4 * rows { 8 } else { 4 };
        let across = shape.n.div_ceil(4 * cols).next_power_of_two();
        let width = across.min(most);
        Self { rows, cols, width }
    }

    fn tile(self) -> [usize; 2] {
        let height = kernels::BLOCKS.workgroup_size as usize / self.width;
        [4 * self.rows * height, 4 * self.cols * self.width]
    }
}
