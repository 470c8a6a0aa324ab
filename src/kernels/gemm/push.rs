//! A product on its way into a plan: its form is chosen and its dispatches are added.

use super::form::{Block, Form};
use super::params::{Product, Vec4, is_vec4};
use super::split::Split;
use super::{GEMM, Gemm, SUM, Shape, choose};
use crate::error::Result;
use crate::kernel::{Constant, Element};
use crate::kernels::{index, times};
use crate::plan::{
    Builder, Cooperative, Cost, DeviceKind, Dispatch, Grid, MAX_GROUPS, Matrix, Role,
};

/// Adds a product that was checked: in two halves where it has more rows than there may be workgroups for.
pub(super) fn push(builder: &mut Builder, product: &Gemm) -> Result<()> {
    let shape = shape_of(builder, product)?;
    let target = *builder.target();
    let (form, why) = choose(&shape, &target);
    let Gemm { a, c, .. } = *product;
    let too_many = |groups: &usize| *groups > MAX_GROUPS as usize;
    let groups = form.grid(&shape);
    if target.kind != DeviceKind::Cpu && c.rows >= 2 * ROWS && groups.iter().any(too_many) {
        let half = (c.rows / 2).next_multiple_of(ROWS);
        return [0..half, half..c.rows].into_iter().try_for_each(|rows| {
            let half = Gemm {
                a: a.row_range(rows.clone()),
                c: c.row_range(rows),
                ..*product
            };
            push(builder, &half)
        });
    }
    builder.chose(&format!("product {shape}"), form.name(), why);
    match Split::of(&shape, &target) {
        Some(split) if form == Form::SplitK => split_k(builder, split, product)?,
        _ => multiply(builder, form, product, None)?,
    }
    if product.beta != 0.0 {
        builder.changed(c.buffer);
    }
    Ok(())
}

/// A multiple of the rows of every tile, so that it is cut at none.
const ROWS: usize = 128;

fn shape_of(builder: &Builder, product: &Gemm) -> Result<Shape> {
    Ok(Shape {
        b_half: builder.buffer(product.b.buffer)?.element == Element::Half,
        ..Shape::of(product)
    })
}

/// The partial products of all parts, then their sum.
fn split_k(builder: &mut Builder, split: Split, product: &Gemm) -> Result<()> {
    let Gemm { a, b, c, .. } = *product;
    let (m, n, parts) = (c.rows, c.cols, split.parts);
    let scratch = builder.float("partial products", &[parts, m, n], Role::Scratch);
    let partial = Gemm::new(a, b, Matrix::dense(scratch, m, n));
    multiply(builder, split.form, &partial, Some(split))?;
    let sums = Gemm {
        a: Matrix::dense(scratch, parts * m, n),
        ..*product
    };
    let name = SUM.name;
    let of_c = builder.buffer(c.buffer)?.element;
    let of_c = of_c.bytes(m * n + read_c(product));
    builder.push(Dispatch {
        kernel: &SUM,
        constants: &[
            ("A_VEC4", Vec4::along_k(&sums.a) as u32),
            ("C_VEC4", u32::from(is_vec4(&c))),
            ("BIAS", u32::from(product.bias.is_some())),
            ("ACTIVATION", product.activation as u32),
        ],
        bindings: &[scratch, product.bias.unwrap_or(scratch), c.buffer],
        params: Product {
            m: index(name, m)?,
            n: index(name, n)?,
            k: index(name, parts)?,
            a: sums.a.indices(name)?,
            b: [0; 3],
            c: c.indices(name)?,
            alpha: product.alpha,
            beta: product.beta,
            chunk: 0,
            c_part: 0,
            width: 0,
        },
        grid: Grid::Flat(m * n.div_ceil(4)),
        cost: Cost {
            flops: times(&[parts, m, n]),
            bytes: times(&[4, parts, m, n]).saturating_add(of_c as u64),
            length: parts,
        },
    })
}

/// One dispatch of a form that has a kernel of its own, for all of k or for parts of it.
fn multiply(builder: &mut Builder, form: Form, product: &Gemm, split: Option<Split>) -> Result<()> {
    let name = GEMM.name;
    let shape = shape_of(builder, product)?;
    let by_rows = matches!(form, Form::Rows | Form::RowsSubgroups);
    // The transpose has its bias for each row.
    let turned = by_rows && shape.upright() != shape;
    let Gemm { a, b, c, .. } = match turned {
        true => product.turned(),
        false => *product,
    };
    let bias = match (product.bias, turned) {
        (None, _) => 0,
        (_, false) => 1,
        (_, true) => 2,
    };
    let mut constants = vec![("BIAS", bias), ("ACTIVATION", product.activation as u32)];
    let cooperative = builder.target().cooperative;
    constants.extend(of_form(form, &shape, cooperative, [&a, &b, &c]));
    let [x, y] = form.grid(&shape);
    let (m, n, k) = (c.rows, c.cols, a.cols);
    let (parts, chunk) = split.map_or((1, k), |s| (s.parts, s.chunk));
    let c_part = if parts > 1 { m * n } else { 0 };
    // Two elements of each are a whole number of bytes.
    let bytes = |id| -> Result<usize> { Ok(builder.buffer(id)?.element.bytes(2)) };
    let of_b = times(&[k, n, bytes(b.buffer)?]) / 2;
    let of_c = (times(&[parts, m, n]).saturating_add(read_c(product) as u64))
        .saturating_mul(bytes(c.buffer)? as u64)
        / 2;
    builder.push(Dispatch {
        kernel: form.kernel(&shape),
        constants: &constants,
        // Without a bias the binding is not read; A stands in.
        bindings: &[
            a.buffer,
            product.bias.unwrap_or(a.buffer),
            c.buffer,
            b.buffer,
        ],
        params: Product {
            m: index(name, m)?,
            n: index(name, n)?,
            k: index(name, k)?,
            a: a.indices(name)?,
            b: b.indices(name)?,
            c: c.indices(name)?,
            alpha: product.alpha,
            beta: product.beta,
            chunk: index(name, chunk)?,
            c_part: index(name, c_part)?,
            width: Block::of(&shape).width as u32,
        },
        grid: Grid::Groups([x, y, parts]),
        cost: Cost {
            flops: times(&[2, m, n, k]),
            bytes: of_b.saturating_add(of_c).saturating_add(times(&[4, m, k])),
            length: chunk,
        },
    })
}

/// What a form's kernel is specialised to, for these matrices.
fn of_form(
    form: Form,
    shape: &Shape,
    cooperative: Option<Cooperative>,
    [a, b, c]: [&Matrix; 3],
) -> Vec<Constant> {
    let b = &b.t();
    let [a_vec4, b_vec4] = match form {
        Form::Library | Form::Naive | Form::SplitK => return Vec::new(),
        Form::Cooperative => {
            let Cooperative { size, threads } = cooperative.unwrap_or_default();
            return vec![
                ("THREADS", threads),
                ("SIDE", 32 / size),
                ("LARGE", u32::from(size == 16)),
                ("C_VEC4", u32::from(is_vec4(c))),
            ];
        }
        Form::Rows | Form::RowsSubgroups => match shape.upright().b_along_k {
            true => [a, b].map(Vec4::along_k),
            false => [Vec4::None, Vec4::across_k(b)],
        },
        Form::Tile32 | Form::Tile64 | Form::Tile128 | Form::Blocks => [a, b].map(Vec4::of),
    };
    let mut constants = vec![
        ("A_VEC4", a_vec4 as u32),
        ("B_VEC4", b_vec4 as u32),
        // Blocks have few variants; it does not matter there how little is stored.
        ("C_VEC4", u32::from(form != Form::Blocks && is_vec4(c))),
    ];
    match form {
        Form::Tile32 | Form::Tile64 | Form::Tile128 => {
            constants.push(("REST", u32::from(!shape.k.is_multiple_of(4))));
        }
        Form::Rows | Form::RowsSubgroups => {
            let few = c.rows as u32;
            constants.extend([("FEW", few), ("WORKGROUP_FLOATS", 4 * 64 * few)]);
        }
        Form::Blocks => {
            let Block { rows, cols, .. } = Block::of(shape);
            let rest = usize::from(!shape.k.is_multiple_of(4));
            let block = [("ROWS", rows), ("COLS", cols), ("REST", rest)];
            constants.extend(block.map(|(name, value)| (name, value as u32)));
        }
        _ => {}
    }
    constants
}

/// How many elements of the old C are read.
fn read_c(product: &Gemm) -> usize {
    match product.beta {
        0.0 => 0,
        _ => product.c.rows * product.c.cols,
    }
}

impl Gemm {
    /// Its transpose: Cᵀ = Bᵀ Aᵀ.
    fn turned(&self) -> Self {
        Self {
            a: self.b.t(),
            b: self.a.t(),
            c: self.c.t(),
            ..*self
        }
    }
}
