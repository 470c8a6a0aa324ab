//! A product on its way into a plan: its form is chosen and its dispatches are added.

use super::form::{Block, Form};
use super::params::{Product, Vec4, is_vec4};
use super::{GEMM, Gemm, Shape, choose};
use crate::error::Result;
use crate::kernels::index;
use crate::plan::{Builder, Cost, Dispatch, Grid};

/// Adds a product that was checked.
pub(super) fn push(builder: &mut Builder, product: &Gemm) -> Result<()> {
    let shape = Shape::of(product);
    let (form, why) = choose(&shape, builder.target());
    builder.chose(&format!("product {shape}"), form.name(), why);
    multiply(builder, form, &shape, product)
}

fn multiply(builder: &mut Builder, form: Form, shape: &Shape, product: &Gemm) -> Result<()> {
    let name = GEMM.name;
    let Gemm { a, b, c, .. } = *product;
    let &Shape { m, n, k, .. } = shape;
    let mut constants = vec![
        ("BIAS", u32::from(product.bias.is_some())),
        ("ACTIVATION", product.activation as u32),
    ];
    if !matches!(form, Form::Library | Form::Naive) {
        constants.extend([
            ("A_VEC4", Vec4::of(&a) as u32),
            ("B_VEC4", Vec4::of(&b.t()) as u32),
            ("C_VEC4", u32::from(is_vec4(&c))),
        ]);
    }
    if form == Form::Blocks {
        let Block { rows, cols, width } = Block::of(shape);
        let block = [("ROWS", rows), ("COLS", cols), ("WIDTH", width)];
        constants.extend(block.map(|(name, value)| (name, value as u32)));
    }
    let [x, y] = form.grid(shape);
    let read_c = if product.beta == 0.0 { 0 } else { m * n };
    builder.push(Dispatch {
        kernel: form.kernel(),
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
            chunk: index(name, k)?,
            c_part: 0,
        },
        grid: Grid::Groups([x, y, 1]),
        cost: Cost {
            flops: 2 * (m * n * k) as u64,
            bytes: 4 * (m * k + k * n + m * n + read_c) as u64,
            length: k,
        },
    })
}
