//! Recomputation between kept states, and what it saves.

use crate::common::results::{
    Values, assert_close, assert_same, everywhere, fill_inputs, latest, results,
};
use crate::{DROPOUT, LENGTH, LENGTHS, SIZE, STEPS, cells, resets, spec};
use wgrnn::cell;
use wgrnn::plan::{Plan, Role, Target};
use wgrnn::{Call, Context, Layer, LayerSpec, Order, Result, Sequence, Size};

fn recompute(context: &Context, spec: LayerSpec, options: impl Fn(Call) -> Call) -> Result<()> {
    let layer = Layer::new(context, spec, 3)?;
    let run = |k: Option<usize>| -> Result<Values> {
        let call = Call {
            recompute: k,
            ..options(Call::training(SIZE))
        };
        let sequence = layer.sequence(&call)?;
        if call.lengths {
            sequence.set_lengths(&LENGTHS)?;
        }
        if call.resets {
            let resets = resets();
            sequence.set_resets(match call.input {
                Order::TimeFirst => resets.view(),
                Order::BatchFirst => resets.t(),
            })?;
        }
        fill_inputs(&sequence, 1)?;
        // All draw the same mask.
        if let Some(clock) = sequence.dropout_clock() {
            clock.write_uint(&[0])?;
        }
        let got = results(&sequence)?;
        sequence.backward()?;
        for (name, again) in latest(&sequence)? {
            assert_same(context, &format!("{name} again"), &again, &got[&name]);
        }
        Ok(got)
    };
    let want = run(None)?;
    for k in [1, 3, STEPS, STEPS + 5] {
        let got = run(Some(k))?;
        for (name, want) in &want {
            let what = format!("{} every {k}: {name}", spec.cell.name);
            // A single segment is the plan without. More of them take the products for fewer rows at
            // once, which our shaders, unlike the CPU's kernels, sum in the same order. Gradients are
            // summed in parts.
            let forward = ["y", "hn", "cn"].contains(&name.as_str());
            if k >= STEPS || forward && context.is_gpu() {
                assert_same(context, &what, &got[name], want);
            } else {
                assert_close(context, &what, &got[name], want, LENGTH);
            }
        }
    }
    Ok(())
}

#[test]
fn recomputation_changes_nothing() -> Result<()> {
    for context in everywhere() {
        for cell in cells(&context, 0) {
            let two = LayerSpec {
                bidirectional: true,
                dropout: DROPOUT,
                ..spec(cell, 2)
            };
            recompute(&context, spec(cell, 1), |call| call)?;
            recompute(&context, two, |call| {
                call.lengths()
                    .resets()
                    .orders(Order::BatchFirst, Order::TimeFirst)
            })?;
        }
    }
    Ok(())
}

/// Bytes of everything that is kept: of every `k` steps of each level the rows of one segment and the
/// states before it.
fn kept_bytes(spec: &LayerSpec, size: Size, k: usize) -> u64 {
    let (hidden, output) = (spec.hidden_size, spec.output_size());
    let states = output + hidden * usize::from(spec.cell.cell_state);
    let inner = hidden * usize::from(spec.cell.hands_on());
    let row = spec.cell.slots * hidden + states + inner;
    // The states after the last step have rows of their own; several segments keep those before each.
    let segments = match size.steps.div_ceil(k) {
        1 => 0,
        several => several,
    };
    let level = k.min(size.steps) * row + states + segments * states;
    let levels = spec.num_layers * spec.directions();
    let between = (spec.num_layers - 1) * size.steps * spec.features();
    (4 * size.batch * (levels * level + between)) as u64
}

#[test]
fn recomputation_keeps_the_states_between_segments() -> Result<()> {
    let size = Size {
        steps: 100,
        batch: 3,
    };
    for cell in cell::ALL {
        let spec = LayerSpec {
            bidirectional: true,
            ..spec(cell, 2)
        };
        let saved = |call: &Call| -> Result<u64> {
            Ok(Sequence::plan(&spec, call, &Target::default())?.bytes(Role::Saved))
        };
        let all = saved(&Call::training(size))?;
        assert_eq!(all, kept_bytes(&spec, size, size.steps), "{}", cell.name);
        for k in [1, 3, 10, 100, 105] {
            let some = saved(&Call::training(size).recompute(k))?;
            assert_eq!(some, kept_bytes(&spec, size, k), "{} every {k}", cell.name);
        }
        let tenth = saved(&Call::training(size).recompute(10))?;
        assert!(3 * tenth < all, "{}: {tenth} of {all}", cell.name);
    }
    Ok(())
}

/// The bytes that a plan's text says on its line of this name.
fn printed(plan: &Plan, name: &str) -> f64 {
    let text = plan.to_string();
    let mut lines = text
        .lines()
        .map(|l| l.split_whitespace().collect::<Vec<_>>());
    let line = lines.find(|l| l.len() > 2 && l[0] == name).unwrap();
    let prefix = match line[2] {
        "B" => 1.0,
        "kB" => 1e3,
        "MB" => 1e6,
        other => panic!("{other}"),
    };
    line[1].parse::<f64>().unwrap() * prefix
}

#[test]
fn the_plan_says_what_recomputation_saves() -> Result<()> {
    let size = Size {
        steps: 200,
        batch: 8,
    };
    let spec = LayerSpec::new(&cell::LSTM, 16, 16);
    let all = Sequence::plan(&spec, &Call::training(size), &Target::default())?;
    let some = Sequence::plan(
        &spec,
        &Call::training(size).recompute(14),
        &Target::default(),
    )?;
    assert!(some.name().contains("recompute 14"), "{}", some.name());
    for (name, role) in [("saved", Role::Saved), ("scratch", Role::Scratch)] {
        for plan in [&all, &some] {
            let (text, bytes) = (printed(plan, name), plan.bytes(role) as f64);
            assert!((text - bytes).abs() <= 0.01 * bytes, "{text} {bytes}");
        }
        assert!(4.0 * printed(&some, name) < printed(&all, name), "{name}");
    }
    assert!(printed(&some, "total") < 0.5 * printed(&all, "total"));
    Ok(())
}
