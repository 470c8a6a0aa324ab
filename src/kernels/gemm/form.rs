//! The forms that a product can have, and what each needs.

use super::kernels;
use super::rounds::Rounds;
use super::shape::Shape;
use super::split::Split;
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
    /// At most 8 rows or columns against a large matrix, which is read once for all of them.
    Rows,
    /// The same with sums in subgroups, where neighbours along k are neighbours in that matrix.
    RowsSubgroups,
    /// Parts of k in another form into scratch, then their sum.
    SplitK,
    /// Blocks in registers, without workgroup memory.
    Blocks,
    /// Tiles of 32 × 32 in cooperative matrices, with both factors rounded to 16-bit floats: where it is
    /// forced, with the feature `cooperative`.
    Cooperative,
}

impl Form {
    /// Every form.
    pub const ALL: [Self; 10] = [
        Self::Library,
        Self::Naive,
        Self::Tile32,
        Self::Tile64,
        Self::Tile128,
        Self::Rows,
        Self::RowsSubgroups,
        Self::SplitK,
        Self::Blocks,
        Self::Cooperative,
    ];

    /// Its name, as a plan and a tool write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Library => "library",
            Self::Naive => "naive",
            Self::Tile32 => "tile32",
            Self::Tile64 => "tile64",
            Self::Tile128 => "tile128",
            Self::Rows => "rows",
            Self::RowsSubgroups => "rows-subgroups",
            Self::SplitK => "split-k",
            Self::Blocks => "blocks",
            Self::Cooperative => "cooperative",
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
        let few = shape.few().is_some();
        match self {
            Self::SplitK => !target.denied.has(&kernels::SUM) && Split::of(shape, target).is_some(),
            Self::Cooperative => target.cooperative.is_some() && self.runs(shape, target),
            Self::Rows => few && self.runs(shape, target),
            Self::RowsSubgroups => {
                let along_k = shape.upright().b_along_k;
                few && along_k && target.subgroup_size > 0 && self.runs(shape, target)
            }
            _ => self.runs(shape, target),
        }
    }

    /// True if its kernel computes wrongly on the device.
    pub(super) fn denied(self, shape: &Shape, target: &Target) -> bool {
        target.denied.has(self.kernel(shape))
    }

    /// True if its kernel comes to the end of k within the rounds that a device lets a loop make.
    pub(super) fn ends(self, shape: &Shape, target: &Target) -> bool {
        self == Self::SplitK || shape.k <= Rounds::of(self, shape).longest(target.loop_rounds)
    }

    /// True if its kernel and its grid are within the limits.
    fn runs(self, shape: &Shape, target: &Target) -> bool {
        let kernel = self.kernel(shape);
        !self.denied(shape, target)
            && kernel.workgroup_size <= target.invocations
            && kernel.workgroup_memory <= target.workgroup_memory
            && kernel.bindings.len() as u32 <= target.storage_buffers
            && self.grid(shape).iter().all(|&g| g <= MAX_GROUPS as usize)
    }

    /// The kernel that multiplies, for a form that has one of its own.
    pub(super) fn kernel(self, shape: &Shape) -> &'static Kernel {
        match self {
            Self::Library | Self::Naive | Self::SplitK => &kernels::GEMM,
            Self::Tile32 => &kernels::TILE32,
            Self::Tile64 => &kernels::TILE64,
            Self::Tile128 => &kernels::TILE128,
            Self::Rows if shape.upright().b_along_k => &kernels::ALONG_K,
            Self::Rows => &kernels::ACROSS_K,
            Self::RowsSubgroups => &kernels::ALONG_K_SUBGROUPS,
            Self::Blocks => &kernels::BLOCKS,
            Self::Cooperative => &kernels::COOPERATIVE,
        }
    }

    /// Workgroups in x and y, for a form that has a kernel of its own.
    pub(super) fn grid(self, shape: &Shape) -> [usize; 2] {
        let [rows, cols] = match self {
            // One call of the CPU backend.
            Self::Library => return [1, 1],
            Self::Naive | Self::SplitK => [8, 8],
            Self::Tile32 | Self::Cooperative => [32, 32],
            Self::Tile64 => [64, 64],
            Self::Tile128 => [128, 128],
            Self::Blocks => Block::of(shape).tile(),
            Self::Rows | Self::RowsSubgroups => {
                let Shape { n, b_along_k, .. } = shape.upright();
                let groups = n.div_ceil(if b_along_k { 4 } else { 32 });
                // Folded, since there may be more than a dimension has.
                let y = groups.div_ceil(MAX_GROUPS as usize).max(1);
                return [groups.div_ceil(y), y];
            }
        };
        [shape.n.div_ceil(cols), shape.m.div_ceil(rows)]
    }
}

/// Multiplications of a product that is worth the larger blocks.
const LARGE: usize = 1 << 24;

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
    /// Large blocks reuse more of what they read, and take longer to translate. There are few variants,
    /// since these adapters translate for a second each.
    pub(super) fn of(shape: &Shape) -> Self {
        let &Shape { m, n, k, .. } = shape;
        let rows = if m <= 4 { 1 } else { 2 };
        let large = m.saturating_mul(n).saturating_mul(k) >= LARGE && n >= 128;
        let cols = if large && rows == 2 { 4 } else { 2 };
        let most = if m <= 4 * rows { 8 } else { 4 };
        let across = n.div_ceil(4 * cols).next_power_of_two();
        let width = across.min(most);
        Self { rows, cols, width }
    }

    fn tile(self) -> [usize; 2] {
        let height = kernels::BLOCKS.workgroup_size as usize / self.width;
        [4 * self.rows * height, 4 * self.cols * self.width]
    }
}
