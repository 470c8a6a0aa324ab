//! Writing text with a model: one token at a time, each drawn from the model's distribution.

use super::feed::check_tokens;
use super::model::LanguageModel;

use crate::error::{Error, Result};
use crate::plan::sequence::{self as driver, Mode, Size};
use crate::plan::{BufferId, Builder, Role};
use crate::program::Program;
use crate::rng::Rng;

/// A model that reads and draws one token per step.
#[derive(Debug)]
pub struct Sampler {
    program: Program,
    vocabulary: usize,
    input: BufferId,
    logits: BufferId,
    rng: Rng,
    temperature: f32,
}

impl Sampler {
    /// Plans single steps of the model. Logits are divided by `temperature`: below 1 the likely
    /// tokens are drawn more often, at 0 only the likeliest.
    ///
    /// # Errors
    /// If the temperature is negative or not a number, or the device cannot hold the step.
    pub fn new(model: &LanguageModel, temperature: f32, seed: u64) -> Result<Self> {
        if !(temperature >= 0.0 && temperature.is_finite()) {
            let expected = "at least 0 and finite";
            return Err(Error::value(
                "Sampler::new",
                "temperature",
                expected,
                temperature,
            ));
        }
        let spec = *model.spec();
        let run = spec.run(
            Size { steps: 1, batch: 1 },
            Mode::Inference,
            &model.context().target(),
        )?;
        let mut b = Builder::on("sample", model.context().target());
        let input = b.uint("input", &[1, 1], Role::Input);
        let weights = spec.weights(&mut b);
        let states = driver::states(&mut b, &run);
        b.section("step");
        driver::carry_states(&mut b, &states)?;
        let out = spec.forward(&mut b, &run, input, &weights, &states, None)?;
        Ok(Self {
            program: model.program(b.finish(), &weights)?,
            vocabulary: spec.vocabulary,
            input,
            logits: out.logits,
            rng: Rng::new(seed),
            temperature,
        })
    }

    /// The plan and its memory; its section is `step`.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Reads one token and draws the next; `never` is not drawn.
    ///
    /// # Errors
    /// [`Error::Token`] for an id outside the vocabulary, [`Error::Value`] if the model's output is
    /// not a number, or if the device fails.
    pub fn next(&mut self, token: u32, never: Option<u32>) -> Result<u32> {
        check_tokens(&[token], self.vocabulary, None)?;
        self.program.own(self.input).write_uint(&[token])?;
        self.program.run("step")?;
        let mut logits = self.program.own(self.logits).read()?;
        if logits.iter().any(|v| v.is_nan()) {
            return Err(Error::value("Sampler::next", "logits", "numbers", "NaN"));
        }
        if let Some(cell) = never.and_then(|id| logits.get_mut(id as usize)) {
            *cell = f32::NEG_INFINITY;
        }
        Ok(draw(&logits, self.temperature, self.rng.unit()))
    }
}

/// The index at which the cumulated softmax of `logits` passes `unit`.
fn draw(logits: &[f32], temperature: f32, unit: f32) -> u32 {
    let best = logits
        .iter()
        .enumerate()
        .max_by(|a, b| a.1.total_cmp(b.1))
        .map_or(0, |(i, _)| i);
    if temperature == 0.0 {
        return best as u32;
    }
    let weight = |v: f32| (f64::from(v - logits[best]) / f64::from(temperature)).exp();
    let total: f64 = logits.iter().map(|&v| weight(v)).sum();
    let mut left = f64::from(unit) * total;
    for (i, &v) in logits.iter().enumerate() {
        left -= weight(v);
        if left < 0.0 {
            return i as u32;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_the_softmax() {
        let logits = [0.0, 2.0f32.ln(), f32::NEG_INFINITY, 5.0f32.ln()];
        let mut counts = [0u32; 4];
        for i in 0..8_000 {
            counts[draw(&logits, 1.0, i as f32 / 8_000.0) as usize] += 1;
        }
        // 1 : 2 : 0 : 5
        for (got, want) in counts.into_iter().zip([1_000u32, 2_000, 0, 5_000]) {
            assert!(got.abs_diff(want) <= 2, "{counts:?}");
        }
        assert_eq!(draw(&logits, 0.0, 0.3), 3);
        assert_eq!(draw(&[1.0, f32::NEG_INFINITY], 1.0, 0.999_999_9), 0);
    }
}
