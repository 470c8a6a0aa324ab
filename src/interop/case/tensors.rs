//! Whether a case's tensors are the ones that its description asks for.

use std::collections::BTreeSet;
use std::iter;

use super::super::safetensors::Array;
use super::{Case, CaseCell};

impl Case {
    /// Every tensor that the case must have: name, shape and element type.
    fn required(&self) -> impl Iterator<Item = (String, Vec<usize>, &'static str)> {
        let (steps, batch) = (self.steps, self.batch);
        let states = self.num_layers * self.directions();
        let y = vec![steps, batch, self.directions() * self.output_size()];
        let h = vec![states, batch, self.output_size()];
        let c = vec![states, batch, self.hidden_size];
        let lstm = self.cell == CaseCell::Lstm;
        let of_lstm = move |name: &str| lstm || !matches!(name, "c0" | "dcn" | "out.cn");

        let states = [("h0", h.clone()), ("c0", c.clone())];
        let x = ("x", vec![steps, batch, self.input_size]);
        let inputs = iter::once(x)
            .chain(states)
            .filter(move |(name, _)| of_lstm(name))
            .map(|(name, shape)| (name.to_owned(), shape))
            .chain(self.weights());
        let losses = [("dy", y.clone()), ("dhn", h.clone()), ("dcn", c.clone())];
        let outputs = [("out.y", y), ("out.hn", h), ("out.cn", c)];
        let with_dtype = move |dtype: &'static str| {
            move |(name, shape): (&str, Vec<usize>)| {
                of_lstm(name).then(|| (name.to_owned(), shape, dtype))
            }
        };
        inputs
            .flat_map(|(name, shape)| {
                let gradient = (format!("grad.{name}"), shape.clone(), "F64");
                [(name, shape, "F32"), gradient]
            })
            .chain(losses.into_iter().filter_map(with_dtype("F32")))
            .chain(outputs.into_iter().filter_map(with_dtype("F64")))
    }

    pub(super) fn check_tensors(&self) -> Result<(), String> {
        let mut known = BTreeSet::new();
        for (name, shape, dtype) in self.required() {
            let array = self
                .tensors
                .get(&name)
                .ok_or_else(|| format!("tensor {name:?} is missing"))?;
            check_array(&name, array, &shape, dtype)?;
            known.insert(name);
        }
        for (name, array) in &self.tensors {
            match name.as_str() {
                "lengths" => check_array(name, array, &[self.batch], "I64")?,
                "reset" => check_array(name, array, &[self.steps, self.batch], "U8")?,
                _ if known.contains(name) => {}
                _ => return Err(format!("tensor {name:?} does not belong to this layer")),
            }
        }
        let valid = |&length: &i64| usize::try_from(length).is_ok_and(|n| n <= self.steps);
        if let Some(bad) = find_invalid(self.lengths(), valid) {
            let steps = self.steps;
            return Err(format!(
                "tensor \"lengths\": values must be 0 to {steps}, got {bad}"
            ));
        }
        if let Some(bad) = find_invalid(self.resets(), |&mark: &u8| mark <= 1) {
            return Err(format!(
                "tensor \"reset\": values must be 0 or 1, got {bad}"
            ));
        }
        Ok(())
    }
}

fn find_invalid<T: Copy>(values: Option<&[T]>, valid: impl Fn(&T) -> bool) -> Option<T> {
    values?.iter().copied().find(|value| !valid(value))
}

fn check_array(name: &str, array: &Array, shape: &[usize], dtype: &str) -> Result<(), String> {
    if array.data.dtype() != dtype {
        let got = array.data.dtype();
        return Err(format!("tensor {name:?}: dtype must be {dtype}, got {got}"));
    }
    if array.shape != shape {
        let got = &array.shape;
        return Err(format!(
            "tensor {name:?}: shape must be {shape:?}, got {got:?}"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::safetensors::Data;
    use super::super::tests::{archive, refusal};

    #[test]
    fn every_tensor_is_needed() {
        for case in ["lstm_peephole_proj_clip", "gru_bi", "rnn_two_layers_bi"] {
            for name in archive(case).tensors.keys() {
                let reason = refusal(case, |a| drop(a.tensors.remove(name)));
                assert_eq!(reason, format!("tensor {name:?} is missing"));
            }
        }
    }

    #[test]
    fn every_shape_and_element_type_is_checked() {
        for case in ["lstm_proj", "gru_resets_lengths"] {
            for (name, array) in archive(case).tensors {
                let reason = refusal(case, |a| {
                    a.tensors.get_mut(&name).unwrap().shape.push(1);
                });
                assert!(
                    reason.starts_with(&format!("tensor {name:?}: shape")),
                    "{reason}"
                );
                let reason = refusal(case, |a| {
                    let data = Data::U32(vec![0; array.data.len()]);
                    a.tensors.get_mut(&name).unwrap().data = data;
                });
                assert!(
                    reason.starts_with(&format!("tensor {name:?}: dtype")),
                    "{reason}"
                );
            }
        }
    }

    #[test]
    fn surplus_tensors_are_refused() {
        for (case, name) in [
            ("gru_basic", "c0"),
            ("gru_basic", "y"),
            ("lstm_nobias", "bias_ih_l0"),
        ] {
            let reason = refusal(case, |a| {
                let x = a.tensors["x"].clone();
                a.tensors.insert(name.to_owned(), x);
            });
            assert_eq!(
                reason,
                format!("tensor {name:?} does not belong to this layer")
            );
        }
    }

    #[test]
    fn lengths_and_resets_are_checked() {
        for bad in [-1, 8, i64::MAX] {
            let reason = refusal("lstm_lengths", |a| {
                a.tensors.get_mut("lengths").unwrap().data = Data::I64(vec![7, 0, bad, 1]);
            });
            assert!(
                reason.contains("\"lengths\": values must be 0 to 7"),
                "{reason}"
            );
        }
        let reason = refusal("rnn_resets", |a| {
            a.tensors.get_mut("reset").unwrap().data = Data::U8(vec![2; 36]);
        });
        assert!(
            reason.contains("\"reset\": values must be 0 or 1, got 2"),
            "{reason}"
        );
    }
}
