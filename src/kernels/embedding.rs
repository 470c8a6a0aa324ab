//! `embedding`: rows of a table by token id, and the table's gradient.

use bytemuck::{Pod, Zeroable};

use super::index;
use crate::error::{Error, Result};
use crate::kernel::{Args, Binding, Data, Kernel, Sample};
use crate::plan::{BufferId, Builder, Cost, Dispatch, Grid, Role};
use crate::real::Real;
use crate::rng::Rng;
use crate::twin;

const WGSL: &str = include_str!("../../shaders/embedding.wgsl");
const WORKGROUP: usize = 64;
/// Rows of a large table that one workgroup of `scatter` owns, since each looks through all ids;
/// of a small one it owns one row, to keep the device busy. A table is large from `LARGE` rows on.
const ROWS: usize = 16;
const LARGE: usize = 1_024;

/// `embedding.gather`: `output[m, :] = table[ids[m], :]`.
pub static GATHER: Kernel = Kernel {
    name: "embedding.gather",
    wgsl: WGSL,
    entry: "gather",
    bindings: &[
        Binding::read("ids").uint(),
        Binding::read("table"),
        Binding::write("output"),
    ],
    params_size: size_of::<Params>(),
    workgroup_size: WORKGROUP as u32,
    workgroup_memory: 0,
    twin: twin!(gather_twin),
    sample: |[tokens, columns, rows], rng| {
        let mut b = Builder::new("gather");
        let ids = b.uint("ids", &[tokens], Role::Input);
        let table = b.float("table", &[rows + 1, columns], Role::Weight);
        let output = b.float("output", &[tokens, columns], Role::Output);
        gather(&mut b, ids, table, output)?;
        Ok(Sample {
            plan: b.finish(),
            data: vec![
                (ids, some_ids(rng, tokens, rows + 1)),
                (table, some_floats(rng, (rows + 1) * columns)),
            ],
        })
    },
};

/// `embedding.scatter`: `dtable[v, :] = Σ doutput[m, :]` over the m with `ids[m] = v`.
pub static SCATTER: Kernel = Kernel {
    name: "embedding.scatter",
    wgsl: WGSL,
    entry: "scatter",
    bindings: &[
        Binding::read("ids").uint(),
        Binding::read("doutput"),
        Binding::write("dtable"),
    ],
    params_size: size_of::<Params>(),
    workgroup_size: WORKGROUP as u32,
    workgroup_memory: ((1 + ROWS) * WORKGROUP * 4) as u32,
    twin: twin!(scatter_twin),
    // One id more than the table has rows, so that some fall outside.
    sample: |[tokens, columns, rows], rng| {
        let mut b = Builder::new("scatter");
        let ids = b.uint("ids", &[tokens], Role::Input);
        let doutput = b.float("doutput", &[tokens, columns], Role::Input);
        let dtable = b.float("dtable", &[rows + 1, columns], Role::Gradient);
        let rows_each = [1, ROWS][rng.below(2) as usize];
        scatter_rows(&mut b, ids, doutput, dtable, rows_each)?;
        Ok(Sample {
            plan: b.finish(),
            data: vec![
                (ids, some_ids(rng, tokens, rows + 2)),
                (doutput, some_floats(rng, tokens * columns)),
            ],
        })
    },
};

fn some_ids(rng: &mut Rng, n: usize, bound: usize) -> Data {
    Data::Uint((0..n).map(|_| rng.below(bound as u32)).collect())
}

fn some_floats(rng: &mut Rng, n: usize) -> Data {
    Data::Float(rng.uniforms(n, -1.0, 1.0))
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    tokens: u32,
    vocabulary: u32,
    columns: u32,
    rows_each: u32,
    nan: f32,
}

/// Adds `output[m, :] = table[ids[m], :]` for a table `[V, E]`, M ids in any shape and M·E outputs.
///
/// An id that is not below V gives a row of NaN: such an id cannot be refused here, since it is in
/// the device's memory, and must not pass in silence.
///
/// # Errors
/// If the table has not two dimensions, or `output` not M·E elements.
pub fn gather(b: &mut Builder, ids: BufferId, table: BufferId, output: BufferId) -> Result<()> {
    let params = sizes(b, &GATHER, ids, ("table", table), ("output", output))?;
    let (m, e) = (params.tokens as usize, params.columns as usize);
    b.push(Dispatch {
        kernel: &GATHER,
        constants: &[],
        bindings: &[ids, table, output],
        params,
        grid: Grid::Flat(m * e),
        cost: Cost {
            flops: 0,
            bytes: 4 * (m + 2 * m * e) as u64,
            length: 1,
        },
    })
}

/// Adds the gradient of [`gather`]'s table, `dtable[v, :] = Σ doutput[m, :]` over the m with
/// `ids[m] = v`, added up in ascending m.
///
/// Every row of `dtable` is written, with zeros where no id points. An id that is not below V
/// belongs to no row and adds nothing.
///
/// # Errors
/// If `dtable` has not two dimensions, or `doutput` not M·E elements.
pub fn scatter(b: &mut Builder, ids: BufferId, doutput: BufferId, dtable: BufferId) -> Result<()> {
    let large = b.buffer(dtable).shape.first() >= Some(&LARGE);
    let rows_each = if large { ROWS } else { 1 };
    scatter_rows(b, ids, doutput, dtable, rows_each)
}

fn scatter_rows(
    b: &mut Builder,
    ids: BufferId,
    doutput: BufferId,
    dtable: BufferId,
    rows_each: usize,
) -> Result<()> {
    let params = sizes(b, &SCATTER, ids, ("dtable", dtable), ("doutput", doutput))?;
    let [m, v, e] = [params.tokens, params.vocabulary, params.columns].map(|v| v as usize);
    b.push(Dispatch {
        kernel: &SCATTER,
        constants: &[],
        bindings: &[ids, doutput, dtable],
        params: Params {
            rows_each: index(SCATTER.name, rows_each)?,
            ..params
        },
        // A workgroup for so many rows and 64 columns.
        grid: Grid::Flat(v.div_ceil(rows_each) * e.div_ceil(WORKGROUP) * WORKGROUP),
        cost: Cost {
            flops: (m * e) as u64,
            bytes: 4 * (m + m * e + v * e) as u64,
            // All ids may be the same.
            length: m,
        },
    })
}

fn sizes(
    b: &Builder,
    kernel: &'static Kernel,
    ids: BufferId,
    (table_name, table): (&'static str, BufferId),
    (rows_name, rows): (&'static str, BufferId),
) -> Result<Params> {
    let name = kernel.name;
    let &[vocabulary, columns] = b.buffer(table).shape.as_slice() else {
        let expected = "two dimensions";
        return Err(Error::shape(
            name,
            table_name,
            expected,
            &b.buffer(table).shape,
        ));
    };
    let tokens = b.buffer(ids).len();
    if b.buffer(rows).len() != tokens * columns {
        let expected = [tokens, columns];
        return Err(Error::shape(
            name,
            rows_name,
            expected,
            &b.buffer(rows).shape,
        ));
    }
    // Every index that the shader forms is below one of these.
    index(name, tokens * columns)?;
    index(name, vocabulary * columns)?;
    Ok(Params {
        tokens: index(name, tokens)?,
        vocabulary: index(name, vocabulary)?,
        columns: index(name, columns)?,
        rows_each: 1,
        nan: f32::NAN,
    })
}

fn gather_twin<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let p: Params = args.params()?;
    let (ids, table, output) = (args.read_uint(0)?, args.read(1)?, args.write(2)?);
    let (tokens, columns) = (p.tokens as usize, p.columns as usize);
    for (m, &id) in ids[..tokens].iter().enumerate() {
        let to = &mut output[m * columns..(m + 1) * columns];
        if id < p.vocabulary {
            let from = id as usize * columns;
            to.copy_from_slice(&table[from..from + columns]);
        } else {
            to.fill(R::from_f32(p.nan));
        }
    }
    Ok(())
}

fn scatter_twin<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let p: Params = args.params()?;
    let (ids, doutput, dtable) = (args.read_uint(0)?, args.read(1)?, args.write(2)?);
    let [tokens, vocabulary, columns] = [p.tokens, p.vocabulary, p.columns].map(|v| v as usize);
    dtable[..vocabulary * columns].fill(R::ZERO);
    for (m, &id) in ids[..tokens].iter().enumerate() {
        if id < p.vocabulary {
            let at = id as usize * columns;
            let row = &mut dtable[at..at + columns];
            for (d, &g) in row.iter_mut().zip(&doutput[m * columns..]) {
                *d += g;
            }
        }
    }
    Ok(())
}
