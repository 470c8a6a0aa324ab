//! `embedding`: rows of a table by token id, and the table's gradient.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use super::{index, times};
use crate::error::{Error, Result};
use crate::kernel::{Args, Binding, Data, Kernel, Sample, no_loops};
use crate::plan::{BufferId, Builder, Cost, Dispatch, Grid, Role};
use crate::real::Real;
use crate::rng::Rng;
use crate::tensor::Ids;
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
    rounds: no_loops,
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
        Binding::update("dtable"),
    ],
    params_size: size_of::<Params>(),
    workgroup_size: WORKGROUP as u32,
    workgroup_memory: ((1 + ROWS) * WORKGROUP * 4) as u32,
    rounds: |told| {
        let params: Params = told.params()?;
        Ok(scatter_rounds(u64::from(params.tokens - params.first)))
    },
    twin: twin!(scatter_twin),
    // One id more than the table has rows, so that some fall outside.
    sample: |[tokens, columns, rows], rng| {
        let mut b = Builder::new("scatter");
        let ids = b.uint("ids", &[tokens], Role::Input);
        let doutput = b.float("doutput", &[tokens, columns], Role::Input);
        let dtable = b.float("dtable", &[rows + 1, columns], Role::Gradient);
        let rows_each = [1, ROWS][rng.below(2) as usize];
        // Of all ids, or of the second half of them onto what is there.
        let first = [0, tokens / 2][rng.below(2) as usize];
        let params = sizes(
            &mut b,
            &SCATTER,
            ids,
            ("dtable", dtable),
            ("doutput", doutput),
        )?;
        scatter_part(
            &mut b,
            [ids, doutput, dtable],
            params,
            first..tokens,
            rows_each,
        )?;
        let before = match first {
            0 => Data::Float(vec![f32::NAN; (rows + 1) * columns]),
            _ => some_floats(rng, (rows + 1) * columns),
        };
        Ok(Sample {
            plan: b.finish(),
            data: vec![
                (ids, some_ids(rng, tokens, rows + 2)),
                (doutput, some_floats(rng, tokens * columns)),
                (dtable, before),
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
    first: u32,
    add: u32,
}

/// Ids that a workgroup of `scatter` looks through at a time.
const BLOCK: usize = 32 * WORKGROUP;

/// The rounds of `scatter` over so many ids, all of which may be the same: over the rows before and after; over the blocks of
/// ids, in each over the bits of a word, the words and the ids that are found.
const fn scatter_rounds(tokens: u64) -> u64 {
    let of_rows = 2 * (ROWS as u64 + 1);
    let of_block = 1 + (32 + 1) + (WORKGROUP as u64 + 1) + WORKGROUP as u64;
    of_rows + 1 + tokens.div_ceil(BLOCK as u64) * of_block + tokens
}

/// How many ids one dispatch of `scatter` may look through: whole blocks, at least one.
fn most_tokens(rounds: u64) -> usize {
    let of_block = scatter_rounds(BLOCK as u64) - scatter_rounds(0);
    let blocks = rounds.saturating_sub(scatter_rounds(0)) / of_block;
    usize::try_from(blocks).map_or(usize::MAX, |blocks| blocks.max(1).saturating_mul(BLOCK))
}

/// Adds `output[m, :] = table[ids[m], :]` for a table `[V, E]`, M ids in any shape and M·E outputs.
///
/// Writing an id that is not below V to the buffer of a [`Program`](crate::Program) is an error. One that a
/// host's own commands put into the device's memory gives a row of NaN, as it must not pass in silence.
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
            bytes: times(&[4, m, 1 + 2 * e]),
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
    let large = b.buffer(dtable)?.shape.first() >= Some(&LARGE);
    let rows_each = if large { ROWS } else { 1 };
    let params = sizes(b, &SCATTER, ids, ("dtable", dtable), ("doutput", doutput))?;
    let tokens = params.tokens as usize;
    let most = most_tokens(b.target().loop_rounds);
    // One part of no ids writes the zeros.
    let mut first = 0usize;
    loop {
        let part = first..tokens.min(first.saturating_add(most));
        first = part.end;
        scatter_part(b, [ids, doutput, dtable], params, part, rows_each)?;
        if first >= tokens {
            return Ok(());
        }
    }
}

/// Adds a dispatch for some of the ids; any but the first adds to what is there.
fn scatter_part(
    b: &mut Builder,
    bindings: [BufferId; 3],
    params: Params,
    part: Range<usize>,
    rows_each: usize,
) -> Result<()> {
    let name = SCATTER.name;
    let [v, e] = [params.vocabulary, params.columns].map(|v| v as usize);
    let m = part.len();
    b.push(Dispatch {
        kernel: &SCATTER,
        constants: &[],
        bindings: &bindings,
        params: Params {
            rows_each: index(name, rows_each)?,
            first: index(name, part.start)?,
            tokens: index(name, part.end)?,
            add: u32::from(part.start > 0),
            ..params
        },
        // A workgroup for so many rows and 64 columns.
        grid: Grid::Flat(v.div_ceil(rows_each) * e.div_ceil(WORKGROUP) * WORKGROUP),
        cost: Cost {
            flops: times(&[m, e]),
            bytes: times(&[4, m, 1 + e]).saturating_add(times(&[4, v, e])),
            // All ids may be the same.
            length: m,
        },
    })
}

fn sizes(
    b: &mut Builder,
    kernel: &'static Kernel,
    ids: BufferId,
    (table_name, table): (&'static str, BufferId),
    (rows_name, rows): (&'static str, BufferId),
) -> Result<Params> {
    let name = kernel.name;
    let &[vocabulary, columns] = b.buffer(table)?.shape.as_slice() else {
        let expected = "two dimensions";
        return Err(Error::shape(
            name,
            table_name,
            expected,
            &b.buffer(table)?.shape,
        ));
    };
    let tokens = b.buffer(ids)?.len();
    if b.buffer(rows)?.len() != tokens.saturating_mul(columns) {
        let expected = [tokens, columns];
        return Err(Error::shape(
            name,
            rows_name,
            expected,
            &b.buffer(rows)?.shape,
        ));
    }
    // Every index that the shader forms is below one of these.
    index(name, tokens.saturating_mul(columns))?;
    index(name, vocabulary.saturating_mul(columns))?;
    b.holds_ids(
        ids,
        Ids {
            vocabulary,
            except: None,
        },
    );
    Ok(Params {
        tokens: index(name, tokens)?,
        vocabulary: index(name, vocabulary)?,
        columns: index(name, columns)?,
        rows_each: 1,
        nan: f32::NAN,
        first: 0,
        add: 0,
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
    if p.add == 0 {
        dtable[..vocabulary * columns].fill(R::ZERO);
    }
    for (m, &id) in ids[..tokens].iter().enumerate().skip(p.first as usize) {
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
