//! A cell of one's own: the minimal gated unit (MGU), a GRU whose one gate does the work of two.
//!
//! ```text
//! f  = σ(W_if x + b_if + W_hf h + b_hf)
//! n  = tanh(W_in x + b_in + f ∘ (W_hn h + b_hn))
//! h' = (1 − f) ∘ h + f ∘ n
//! ```
//!
//! G.-B. Zhou, J. Wu, C.-L. Zhang, Z.-H. Zhou, *Minimal gated unit for recurrent neural networks*,
//! International Journal of Automation and Computing 13, 2016. The paper applies f to h before the
//! product, tanh(W_in x + W_hn (f ∘ h) + b): there no unit can begin its product before all units have
//! their f, which takes two kernels a step, as in `src/kernels/gru_before.rs`. With f behind the
//! product, where cuDNN's GRU has its r, one is enough.
//!
//! The whole cell is `mgu.wgsl`, with a step forward and a step back, and the first half of this file:
//! what the kernels bind, what the driver must know ([`MGU`]), and the same kernels on the CPU. Behind
//! it stand a program that uses the cell, and its tests. The driver then has for it all that the
//! crate's own cells have: stacks, directions, lengths, resets, packed input, streams, clips, other
//! activations, training.
//!
//!     cargo run --example mgu      # parity on every device of this machine, then a task to learn
//!     cargo test --example mgu

use wgrnn::cell::{Blocks, Cell, CellOption, Pass};
use wgrnn::check::{Outcome, kernels};
use wgrnn::kernel::{Args, Binding, Kernel};
use wgrnn::kernels::gates::Gates;
use wgrnn::kernels::sample;
use wgrnn::kernels::step::{self, Forward, MASK, Rows, gradient_product};
use wgrnn::plan::sequence::LayerSpec;
use wgrnn::real::Real;
use wgrnn::rng::Rng;
use wgrnn::{Activation, Context, Layer, Result, Size, twin};

const WGSL: &str = include_str!("mgu.wgsl");

/// A step: the entry point `forward` of the shader, and the function of that name below.
static FORWARD: Kernel = step::kernel(
    "mgu.forward",
    WGSL,
    &[
        MASK,
        Binding::update("gates"),
        Binding::read("weight_hh_t"),
        Binding::read("bias_hh"),
        Binding::update("h"),
        Binding::update("y"),
    ],
    twin!(forward),
    |size, rng| sample::forward(&[&MGU], 0, size, rng),
);

/// A step back.
static BACKWARD: Kernel = step::kernel(
    "mgu.backward",
    WGSL,
    &[
        MASK,
        Binding::read("saved_gates"),
        Binding::read("saved_h"),
        Binding::read("weight_hh"),
        Binding::read("dy"),
        Binding::update("dgates"),
        Binding::update("dstate"),
    ],
    twin!(backward),
    |size, rng| sample::backward(&[&MGU], 0, size, rng),
);

/// The cell; gates f, n. It keeps f, n and q = W_hn h + b_hn, and has the gradients df, dn and dq.
static MGU: Cell = Cell {
    name: "mgu",
    gates: 2,
    slots: 3,
    gradient_slots: 3,
    cell_state: false,
    projected: false,
    forward: &[Pass::new(&FORWARD)],
    backward: &[Pass::new(&BACKWARD)],
    sequence: None,
    forms: [None, None],
    side_by_side: false,
    activations: &[Activation::SIGMOID, Activation::TANH],
    options: &[CellOption::Clip],
    // df and dn are the gradients of W_ih x + b_ih; df and dq those of W_hh h + b_hh.
    input_gradient: &[Blocks::new(0, 0, 2)],
    recurrent_gradient: &[
        Blocks::new(0, 0, 1).of_state(),
        Blocks::new(2, 1, 1).of_state(),
    ],
    diagonal: &[],
    // An open f lets go of h: a bias of 1 would make it forget.
    forget_gate: None,
};

fn forward<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let rows = Rows::new(args)?;
    let act = Gates::new(args, &rows.p)?;
    let save = args.constant("SAVE")? != 0;
    let (gates, weight_hh_t, bias_hh) = (args.write(1)?, args.read(2)?, args.read(3)?);
    let (h, y) = (args.write(4)?, args.write(5)?);
    let hidden = rows.p.hidden as usize;
    let products = Forward {
        gates,
        weight_hh_t,
        operand: h,
        size: hidden,
        of_gates: 2,
        wanted: 0..2,
    }
    .products(&rows, |row| rows.h_before(row))?;
    for row in 0..rows.count() {
        if !rows.live(row) {
            rows.hold_state(h, y, row);
            continue;
        }
        let (at, before) = (rows.gates(row), rows.h_before(row));
        let to = rows.hand_on(row);
        for j in 0..hidden {
            let input = |gate| products.input(row, gate, j, || gates[at + gate * hidden + j]);
            let recurrent = |gate| products.recurrent(row, gate, j) + bias_hh[gate * hidden + j];
            let (pre_f, q) = (input(0) + recurrent(0), recurrent(1));
            let f = act.gate(0, pre_f);
            let pre_n = input(1) + f * q;
            let n = act.gate(1, pre_n);
            let value = (R::ONE - f) * h[before + j] + f * n;
            to.store(h, y, j, value);
            if save {
                gates[at + j] = act.kept(pre_f, f);
                gates[at + hidden + j] = act.kept(pre_n, n);
                gates[at + 2 * hidden + j] = q;
            }
        }
    }
    Ok(())
}

fn backward<R: Real>(args: &mut Args<'_, R>) -> Result<()> {
    let rows = Rows::new(args)?;
    let act = Gates::new(args, &rows.p)?;
    let (saved_gates, saved_h, weight_hh) = (args.read(1)?, args.read(2)?, args.read(3)?);
    let (dy, dgates, dstate) = (args.read(4)?, args.write(5)?, args.write(6)?);
    let hidden = rows.p.hidden as usize;
    let product = gradient_product(&rows, dgates, weight_hh, MGU.recurrent_blocks())?;
    for row in 0..rows.count() {
        let (at, to) = (rows.gates(row), rows.dgates(row));
        let (live, before) = (rows.live(row), rows.h_before(row));
        let gradient = rows.state_gradient(row);
        for j in 0..hidden {
            let unit = row * hidden + j;
            let dh = gradient.of(dstate, dy, j, product[unit]);
            let (mut gradients, mut stays) = ([R::ZERO; 3], dh);
            if live {
                let [kept_f, kept_n, q] = [0, 1, 2].map(|slot| saved_gates[at + slot * hidden + j]);
                let (f, n) = (act.value(0, kept_f), act.value(1, kept_n));
                let dn = dh * f * act.gate_slope(1, kept_n, n);
                let df = dh * (n - saved_h[before + j]) + dn * q;
                gradients = [df * act.gate_slope(0, kept_f, f), dn, dn * f];
                stays = dh * (R::ONE - f);
            }
            for (slot, gradient) in gradients.into_iter().enumerate() {
                dgates[to + slot * hidden + j] = gradient;
            }
            dstate[unit] = stays;
        }
    }
    Ok(())
}

/// A kernel on a device against its twin in double precision, over many sizes and options.
fn parity(context: &Context, kernel: &'static Kernel) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    for &size in kernels::SIZES {
        outcomes.extend(kernels::check(context, kernel, size)?);
    }
    Ok(outcomes)
}

fn main() -> Result<()> {
    for context in Context::all()? {
        for kernel in [&FORWARD, &BACKWARD] {
            let outcomes = parity(&context, kernel)?;
            let worst = outcomes.iter().map(|o| o.error / o.tolerance);
            let worst = worst.fold(0.0, f64::max);
            println!(
                "{} on {}: {worst:.2} of the tolerance",
                kernel.name,
                context.name()
            );
        }
    }

    // The first two units learn to repeat two inputs a step later.
    let (steps, batch, hidden) = (12, 16, 24);
    let layer = Layer::new(&Context::open("auto")?, LayerSpec::new(&MGU, 2, hidden), 7)?;
    let call = layer.training(Size { steps, batch })?;
    let mut rng = Rng::new(1);
    for pass in 0..=600 {
        let x = rng.uniforms(steps * batch * 2, -0.5, 0.5);
        call.x().write(&x)?;
        call.forward()?;
        let y = call.y().read()?;
        let mut dy = vec![0.0; y.len()];
        let mut loss = 0.0;
        for row in batch..steps * batch {
            for unit in 0..2 {
                let error = y[row * hidden + unit] - x[(row - batch) * 2 + unit];
                dy[row * hidden + unit] = error / batch as f32;
                loss += error * error / x.len() as f32;
            }
        }
        call.dy()?.write(&dy)?;
        call.backward()?;
        for (name, gradient) in call.gradients()? {
            let old = layer.weight(&name)?.read()?;
            let new = old.iter().zip(gradient.read()?).map(|(w, g)| w - 0.3 * g);
            layer.set_weight(&name, &new.collect::<Vec<_>>())?;
        }
        if pass % 200 == 0 {
            println!("after {pass} steps the squared error is {loss:.4}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use wgrnn::check::{Status, compare, lockstep, tolerance};
    use wgrnn::ndarray::{ArrayD, Axis};
    use wgrnn::plan::sequence::{Call, Mode};
    use wgrnn::{Function, Sequence, Tensor};

    use super::*;

    /// The CPU and every adapter; a machine without one must say so.
    fn contexts() -> Result<Vec<Context>> {
        let contexts = Context::all()?;
        if !contexts.iter().any(Context::is_gpu) {
            let required = std::env::var("WGRNN_REQUIRE_GPU").as_deref() == Ok("1");
            assert!(!(required && cfg!(feature = "gpu")), "no adapter here");
            eprintln!("no adapter on this machine, so nothing ran on a GPU");
        }
        Ok(contexts)
    }

    /// Layers and calls of three sequences that between them use every option of the cell.
    fn cases(hidden: usize) -> Vec<(LayerSpec, Call)> {
        let plain = LayerSpec::new(&MGU, 2, hidden);
        let mut stack = plain;
        (stack.num_layers, stack.bidirectional) = (2, true);
        let mut other = plain;
        (other.clip, other.bias) = (Some(0.4), false);
        other.activations[1] = Activation::new(Function::Softsign);
        let padded = Call::training(Size { steps: 4, batch: 3 });
        let packed = Call::packed(&[3, 3, 2, 1], Mode::Training);
        vec![
            (stack, padded.clone().lengths()),
            (plain, padded.batch_first().recompute(2).lengths().resets()),
            (other, packed.clone()),
            (stack, packed.resets()),
        ]
    }

    /// A sequence with numbers in it; name, value and gradient of each of its inputs.
    struct Trial {
        sequence: Sequence,
        inputs: Vec<(String, Tensor, Tensor)>,
    }

    impl Trial {
        fn new(context: &Context, (spec, call): &(LayerSpec, Call)) -> Result<Self> {
            let layer = Layer::new(context, *spec, 5)?;
            let s = layer.sequence(call)?;
            let mut rng = Rng::new(1);
            for tensor in [s.x(), s.h0(), s.dy()?, s.dhn()?] {
                tensor.write(&rng.uniforms(tensor.len(), -1.0, 1.0))?;
            }
            if call.lengths {
                s.set_lengths(&[4, 0, 2])?;
            }
            if call.resets {
                let rows = &s.x().shape()[..s.x().shape().len() - 1];
                let resets = ArrayD::from_shape_fn(rows, |_| rng.below(3) == 0);
                s.set_resets(resets.view())?;
            }
            let input = |name: &str, value: &Tensor, gradient: &Tensor| {
                (name.to_owned(), value.clone(), gradient.clone())
            };
            let mut inputs = vec![input("x", s.x(), s.dx()?), input("h0", s.h0(), s.dh0()?)];
            for (name, gradient) in s.gradients()? {
                inputs.push(input(&name, layer.weight(&name)?, &gradient));
            }
            let sequence = s;
            Ok(Self { sequence, inputs })
        }

        /// The loss whose gradients dy and dhn are.
        fn loss(&self) -> Result<f64> {
            let s = &self.sequence;
            s.forward()?;
            let mut loss = 0.0;
            for (value, weight) in [(s.y(), s.dy()?), (s.hn(), s.dhn()?)] {
                let pairs = value.read_f64()?.into_iter().zip(weight.read_f64()?);
                loss += pairs.map(|(v, w)| v * w).sum::<f64>();
            }
            Ok(loss)
        }

        /// Everything that a run leaves.
        fn results(&self) -> Result<Vec<(String, Vec<f64>)>> {
            let s = &self.sequence;
            s.forward()?;
            s.backward()?;
            let gradients = self.inputs.iter().map(|(name, _, g)| (name.as_str(), g));
            let all = [("y", s.y()), ("hn", s.hn())].into_iter().chain(gradients);
            all.map(|(name, t)| Ok((name.to_owned(), t.read_f64()?)))
                .collect()
        }
    }

    /// The equations at the top of this file, written out once more.
    #[test]
    fn it_is_the_minimal_gated_unit() -> Result<()> {
        let hidden = 4;
        let layer = Layer::new(&Context::cpu_f64(), LayerSpec::new(&MGU, 1, hidden), 5)?;
        let call = layer.inference(Size { steps: 3, batch: 1 })?;
        call.x().write(&[0.75, -1.5, 0.25])?;
        call.h0().write(&[0.5, -0.25, 0.75, -1.0])?;
        call.forward()?;
        let weight = |name| layer.weight(name)?.read_f64();
        let (w_i, w_h) = (weight("weight_ih_l0")?, weight("weight_hh_l0")?);
        let (b_i, b_h) = (weight("bias_ih_l0")?, weight("bias_hh_l0")?);
        let (mut h, mut want) = (call.h0().read_f64()?, Vec::new());
        for x in call.x().read_f64()? {
            let input = |row: usize| w_i[row] * x + b_i[row];
            let recurrent = |row: usize| {
                let products = h.iter().zip(&w_h[row * hidden..]).map(|(h, w)| h * w);
                products.sum::<f64>() + b_h[row]
            };
            let unit = |j: usize| {
                let f = 1.0 / (1.0 + (-input(j) - recurrent(j)).exp());
                let n = (input(hidden + j) + f * recurrent(hidden + j)).tanh();
                (1.0 - f) * h[j] + f * n
            };
            h = (0..hidden).map(unit).collect();
            want.extend(&h);
        }
        let d = compare(&call.y().read_f64()?, &want);
        assert!(d.error < 1e-14, "{d:?}");
        Ok(())
    }

    #[test]
    fn forward_is_its_twin() -> Result<()> {
        is_its_twin(&FORWARD)
    }

    #[test]
    fn backward_is_its_twin() -> Result<()> {
        is_its_twin(&BACKWARD)
    }

    fn is_its_twin(kernel: &'static Kernel) -> Result<()> {
        for context in contexts()? {
            for outcome in parity(&context, kernel)? {
                assert_eq!(outcome.status, Status::Pass, "{outcome:?}");
            }
        }
        Ok(())
    }

    /// The error of a central difference is STEP² f''' / 6 + u |f| / STEP, about 1e-9 here.
    #[test]
    fn gradients_are_differences() -> Result<()> {
        const STEP: f64 = 1.0 / (1 << 17) as f64;
        for case in cases(3) {
            let trial = Trial::new(&Context::cpu_f64(), &case)?;
            // y and hn stand before the gradients.
            for ((name, input, _), (_, got)) in trial.inputs.iter().zip(&trial.results()?[2..]) {
                let values = input.read_f64()?;
                let mut want = Vec::new();
                for i in 0..values.len() {
                    let loss_at = |moved: f64| {
                        let mut values = values.clone();
                        values[i] += moved;
                        input.write_f64(&values)?;
                        trial.loss()
                    };
                    want.push((loss_at(STEP)? - loss_at(-STEP)?) / (2.0 * STEP));
                }
                input.write_f64(&values)?;
                let d = compare(got, &want);
                assert!(d.error < 1e-8, "{name} of {case:?}: {d:?}");
            }
        }
        Ok(())
    }

    #[test]
    fn devices_agree_on_sequences() -> Result<()> {
        for case in cases(70) {
            let want = Trial::new(&Context::cpu_f64(), &case)?.results()?;
            for context in contexts()? {
                let got = Trial::new(&context, &case)?.results()?;
                let limit = tolerance::layer(context.dtype(), 2 * 70, 0.0);
                for ((name, got), (_, want)) in got.iter().zip(&want) {
                    let d = compare(got, want);
                    let on = context.name();
                    assert!(d.error < limit, "{name} of {case:?} on {on}: {d:?}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn every_step_is_its_twin() -> Result<()> {
        for context in contexts()? {
            for case in cases(9) {
                let trial = Trial::new(&context, &case)?;
                for section in ["forward", "backward"] {
                    let report = lockstep(trial.sequence.program(), section)?;
                    assert_eq!(report.first, None, "{section} of {case:?}");
                }
            }
        }
        Ok(())
    }

    /// Streams that advance in two groups leave what the whole sequence does.
    #[test]
    fn streams_are_sequences() -> Result<()> {
        let mut spec = LayerSpec::new(&MGU, 2, 70);
        spec.num_layers = 2;
        let x = Rng::new(1).uniforms(5 * 3 * 2, -1.0, 1.0);
        let x = ArrayD::from_shape_vec(vec![5, 3, 2], x).expect("as many as the shape has");
        let x = x.into_dimensionality().expect("three axes");
        for context in contexts()? {
            let layer = Layer::new(&context, spec, 5)?;
            let whole = layer.forward(x.view(), None)?.y;
            let streams = layer.streams(3)?;
            for (x, want) in x.outer_iter().zip(whole.outer_iter()) {
                for some in [&[2, 0][..], &[1]] {
                    let got = streams.step(some, x.select(Axis(0), some).view())?;
                    let wide = |v: &f32| f64::from(*v);
                    let got: Vec<f64> = got.iter().map(wide).collect();
                    let want = want.select(Axis(0), some);
                    let want: Vec<f64> = want.iter().map(wide).collect();
                    let d = compare(&got, &want);
                    assert!(
                        d.error < tolerance::layer(context.dtype(), 70, 0.0),
                        "{d:?}"
                    );
                }
            }
        }
        Ok(())
    }

    /// What the README shows of this file stands in it.
    #[test]
    fn the_readme_shows_this_file() {
        let (file, readme) = (include_str!("main.rs"), include_str!("../../README.md"));
        let section = readme.split("## Write your own cell").nth(1);
        let code = section.and_then(|s| s.split("```rust").nth(1)?.split("```").next());
        let lines = code.expect("the README has the section").lines().skip(1);
        for line in lines.map(str::trim).filter(|line| *line != "// …") {
            assert!(file.lines().any(|l| l.trim() == line), "{line}");
        }
    }
}
