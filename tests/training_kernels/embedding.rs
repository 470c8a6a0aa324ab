//! Rows of a table, and the gradient of the table.

use crate::{contexts, floats, read, refused, run, within};
use wgrnn::kernel::Data;
use wgrnn::kernels::embedding;
use wgrnn::plan::{Builder, Role};
use wgrnn::rng::Rng;
use wgrnn::{Dtype, Program};

#[test]
fn gather_gives_nan_outside_the_table() {
    for context in contexts() {
        let mut b = Builder::new("gather");
        let ids = b.uint("ids", &[5, 1], Role::Input);
        let table = b.float("table", &[3, 2], Role::Weight);
        let output = b.float("output", &[5, 1, 2], Role::Output);
        embedding::gather(&mut b, ids, table, output).unwrap();
        let data = [
            (ids, Data::Uint(vec![2, 3, 0, u32::MAX, 2])),
            (table, floats(&[0.5, 1.5, 2.5, 3.5, 4.5, 5.5])),
        ];
        let got = read(&run(&context, b, &data), output);
        let rows: Vec<_> = got.chunks(2).collect();
        assert_eq!(
            [rows[0], rows[2], rows[4]],
            [[4.5, 5.5], [0.5, 1.5], [4.5, 5.5]]
        );
        for row in [rows[1], rows[3]] {
            assert!(
                row.iter().all(|v| v.is_nan()),
                "{}: {got:?}",
                context.name()
            );
        }
    }
}

#[test]
fn scatter_adds_repeated_ids_and_zeroes_the_rest() {
    for context in contexts() {
        let mut b = Builder::new("scatter");
        let ids = b.uint("ids", &[6], Role::Input);
        let doutput = b.float("doutput", &[6, 2], Role::Gradient);
        let dtable = b.float("dtable", &[4, 2], Role::Gradient);
        embedding::scatter(&mut b, ids, doutput, dtable).unwrap();
        let data = [
            (ids, Data::Uint(vec![1, 3, 1, 4, u32::MAX, 1])),
            (
                doutput,
                floats(&[
                    1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0,
                ]),
            ),
        ];
        let got = read(&run(&context, b, &data), dtable);
        assert_eq!(
            got,
            [0.0, 0.0, 17.0, 20.0, 0.0, 0.0, 3.0, 4.0],
            "{}",
            context.name()
        );
    }
}

/// More ids than a workgroup looks through at a time, more columns than it owns, one row for each
/// workgroup and several; the order of the sums is part of the contract, so in single precision
/// every bit is known.
#[test]
fn scatter_adds_in_ascending_order() {
    let contexts = contexts();
    let (tokens, columns) = (5_003, 65);
    for vocabulary in [7, 1_030] {
        let mut rng = Rng::new(5);
        // Ids from the lower half come up several times, also in the large table.
        let id: Vec<u32> = (0..tokens)
            .map(|_| rng.below(vocabulary) >> (rng.below(2) * 2))
            .collect();
        let values = rng.uniforms(tokens * columns, -1.0, 1.0);
        let mut want = vec![0.0f32; vocabulary as usize * columns];
        for (m, &v) in id.iter().enumerate() {
            for e in 0..columns {
                want[v as usize * columns + e] += values[m * columns + e];
            }
        }
        for context in &contexts {
            let mut b = Builder::new("scatter");
            let ids = b.uint("ids", &[tokens], Role::Input);
            let doutput = b.float("doutput", &[tokens, columns], Role::Gradient);
            let dtable = b.float("dtable", &[vocabulary as usize, columns], Role::Gradient);
            embedding::scatter(&mut b, ids, doutput, dtable).unwrap();
            let data = [
                (ids, Data::Uint(id.clone())),
                (doutput, Data::Float(values.clone())),
            ];
            let program = run(context, b, &data);
            if context.dtype() == Dtype::F32 {
                let got = program.tensor(dtable).unwrap().read().unwrap();
                assert!(got == want, "{}: {vocabulary}", context.name());
            } else {
                let want: Vec<f64> = want.iter().map(|&v| f64::from(v)).collect();
                within(context, &read(&program, dtable), &want, 1e-5);
            }
        }
    }
}

#[test]
fn scatter_folds_a_large_vocabulary() {
    // 65,535 workgroups of 16 rows, and some.
    let vocabulary = 1_049_003;
    for context in contexts() {
        let mut b = Builder::new("scatter");
        let ids = b.uint("ids", &[5], Role::Input);
        let doutput = b.float("doutput", &[5, 1], Role::Gradient);
        let dtable = b.float("dtable", &[vocabulary, 1], Role::Gradient);
        embedding::scatter(&mut b, ids, doutput, dtable).unwrap();
        let plan = b.finish();
        assert_eq!(plan.steps()[0].grid[1], 2);
        let program = Program::new(&context, plan, &[]).unwrap();
        let write = |id, values: &[u32]| program.tensor(id).unwrap().write_uint(values).unwrap();
        write(ids, &[1_049_002, 1_048_560, 524_511, 524_512, 1_049_002]);
        let doutput = program.tensor(doutput).unwrap();
        doutput.write(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        let nan = vec![f32::NAN; vocabulary];
        program.tensor(dtable).unwrap().write(&nan).unwrap();
        program.run("main").unwrap();
        let mut want = vec![0.0; vocabulary];
        want[1_049_002] = 6.0;
        want[1_048_560] = 2.0;
        want[524_511] = 3.0;
        want[524_512] = 4.0;
        assert!(read(&program, dtable) == want, "{}", context.name());
    }
}

#[test]
fn embedding_refuses_shapes() {
    let mut b = Builder::new("embedding");
    let ids = b.uint("ids", &[5], Role::Input);
    let table = b.float("table", &[3, 2], Role::Weight);
    let flat = b.float("flat", &[6], Role::Weight);
    let short = b.float("short", &[4, 2], Role::Output);
    refused(embedding::gather(&mut b, ids, table, short));
    refused(embedding::gather(&mut b, ids, flat, short));
    refused(embedding::gather(&mut b, table, table, short));
    refused(embedding::scatter(&mut b, ids, short, table));
    refused(embedding::scatter(&mut b, ids, short, flat));
}
