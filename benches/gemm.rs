//! Products in every form that a device can have them in, on the CPU backend and on each adapter. Each
//! result is compared with the f64 oracle before it is timed; what is chosen without a word is `chosen`.
//!
//!     cargo bench --bench gemm -- '512x512x512'

mod common;

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use wgrnn::check::{compare, tolerance};
use wgrnn::kernels::gemm::{Form, Gemm, Shape};
use wgrnn::plan::{BufferId, Builder, Force, Matrix, Role};
use wgrnn::rng::Rng;
use wgrnn::{Context, Dtype, Program, Result};

/// A square; a layer's input projection, of few rows too, and weight gradient; a step of one sequence and of eight.
const SHAPES: [(usize, usize, usize, &str); 10] = [
    (512, 512, 512, "NN"),
    (50, 4096, 1024, "NT"),
    (75, 2048, 512, "NT"),
    (400, 2048, 512, "NT"),
    (2048, 512, 3200, "TN"),
    (512, 128, 3200, "TN"),
    (1, 2048, 512, "NT"),
    (1, 512, 2048, "NN"),
    (8, 2048, 512, "NT"),
    (8, 512, 2048, "NN"),
];
/// FLOPs of one measurement at least, in as many products as that takes, which write the same C.
const FLOPS: u64 = 1 << 26;

/// A program of some products, its C, and the FLOPs.
fn program(context: &Context, (m, n, k, kind): Product) -> Result<(Program, BufferId, u64)> {
    let mut b = Builder::on("product", context.target());
    let mut matrix = |name, rows, cols, transposed| {
        let (r, c) = if transposed {
            (cols, rows)
        } else {
            (rows, cols)
        };
        let dense = Matrix::dense(b.float(name, &[r, c], Role::Input), r, c);
        if transposed { dense.t() } else { dense }
    };
    let x = matrix("a", m, k, kind.starts_with('T'));
    let w = matrix("b", k, n, kind.ends_with('T'));
    let c = matrix("c", m, n, false);
    let bias = b.float("bias", &[n], Role::Input);
    let flops = 2 * (m * n * k) as u64;
    let count = FLOPS.div_ceil(flops);
    for _ in 0..count {
        Gemm {
            bias: Some(bias),
            ..Gemm::new(x, w, c)
        }
        .push(&mut b)?;
    }
    let program = Program::new(context, b.finish(), &[])?;
    let mut rng = Rng::new(1);
    for id in [x.buffer, w.buffer, bias] {
        let tensor = program.tensor(id).unwrap();
        tensor.write(&rng.uniforms(tensor.len(), -1.0, 1.0))?;
    }
    program.run("main")?;
    Ok((program, c.buffer, flops * count))
}

type Product = (usize, usize, usize, &'static str);

fn bench(c: &mut Criterion) {
    for product in SHAPES {
        let (m, n, k, kind) = product;
        let shape = Shape {
            a_along_k: kind.starts_with('N'),
            b_along_k: kind.ends_with('T'),
            ..Shape::new(m, n, k)
        };
        let oracle = program(&Context::cpu_f64(), product).expect(kind);
        let want = oracle.0.tensor(oracle.1).unwrap().read_f64().expect(kind);
        let mut group = c.benchmark_group(shape.to_string());
        group
            .sample_size(10)
            .warm_up_time(Duration::from_millis(200))
            .measurement_time(Duration::from_secs(1));
        for context in common::contexts() {
            let able = Form::ALL
                .into_iter()
                .filter(|f| f.fits(&shape, &context.target()))
                // Which rounds what it multiplies.
                .filter(|f| *f != Form::Cooperative);
            for form in [None].into_iter().chain(able.map(Some)) {
                let context = context.forcing(Force {
                    gemm: form,
                    ..Force::default()
                });
                let (program, c, flops) = program(&context, product).expect(kind);
                let name = form.map_or("chosen", Form::name);
                let got = program.tensor(c).unwrap().read_f64().expect(name);
                let (error, limit) = (compare(&got, &want).error, tolerance::kernel(Dtype::F32, k));
                assert!(error <= limit, "{shape} {name}: {error:e} > {limit:e}");
                group.throughput(Throughput::Elements(flops));
                group.bench_function(format!("{} {name}", context.name()), |b| {
                    b.iter(|| {
                        program.run("main").expect(name);
                        context.wait().expect(name);
                    });
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
