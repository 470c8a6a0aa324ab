//! Training runs: they learn, alike on every device, and can be interrupted.
#![cfg(feature = "gpu")]

mod common;

use wgrnn::cell::{self, Cell};
use wgrnn::plan::sequence::LayerSpec;
use wgrnn::train::checkpoint::{self, Description};
use wgrnn::train::text::{Tokens, Vocabulary, tokenize};
use wgrnn::train::{Batches, Evaluator, LanguageModel, ModelSpec, Optimizer, Trainer, TrainerSpec};
use wgrnn::{Context, Error, Result, Size};

const BOOK: &str = include_str!("../examples/data/pride_and_prejudice.txt");
const SIZE: Size = Size {
    steps: 12,
    batch: 8,
};
const STEPS: usize = 300;

struct Corpus {
    ids: Vec<u32>,
    vocabulary: Vocabulary,
}

/// Some 4,000 characters of the book.
fn corpus() -> Corpus {
    let tokens = tokenize(&BOOK[..4_000], Tokens::Chars);
    let vocabulary = Vocabulary::build(&tokens, 1).unwrap();
    Corpus {
        ids: vocabulary.encode_all(&tokens),
        vocabulary,
    }
}

fn model(context: &Context, cell: &'static Cell, corpus: &Corpus) -> LanguageModel {
    let layer = LayerSpec::new(cell, 12, 24);
    let spec = ModelSpec {
        vocabulary: corpus.vocabulary.len(),
        layer,
    };
    LanguageModel::new(context, spec, 5).unwrap()
}

fn trainer(model: &LanguageModel, optimizer: Optimizer, dropout: f32) -> Trainer {
    let spec = TrainerSpec {
        size: SIZE,
        optimizer,
        clip: 1.0,
        dropout,
        seed: 9,
    };
    let trainer = Trainer::new(model, spec).unwrap();
    let rate = match optimizer {
        Optimizer::Sgd { .. } => 0.1,
        Optimizer::Adam { .. } => 0.01,
    };
    trainer.set_learning_rate(rate).unwrap();
    trainer
}

fn run(trainer: &Trainer, corpus: &Corpus, steps: std::ops::Range<usize>) -> Result<Vec<f32>> {
    let batches = Batches::new(&corpus.ids, SIZE)?;
    steps
        .map(|i| {
            trainer.step(&batches.chunk(i))?;
            trainer.loss()
        })
        .collect()
}

fn mean(losses: &[f32]) -> f32 {
    losses.iter().sum::<f32>() / losses.len() as f32
}

/// The curve of a run and the perplexity on its own text afterwards.
fn curve(context: &Context, cell: &'static Cell, optimizer: Optimizer) -> (Vec<f32>, f64) {
    let corpus = corpus();
    let model = model(context, cell, &corpus);
    let losses = run(&trainer(&model, optimizer, 0.1), &corpus, 0..STEPS).unwrap();
    let evaluator = Evaluator::new(&model, SIZE).unwrap();
    (losses, evaluator.perplexity(&corpus.ids).unwrap())
}

/// Characters alone have an entropy of 2.9 nats here, and the first loss is that of a uniform guess,
/// ln V = 3.9. The f32 runs may leave the f64 run as rounding errors grow through 300 updates.
fn learns_alike(cell: &'static Cell, optimizer: Optimizer, bound: f32) {
    let (oracle, oracle_perplexity) = curve(&Context::cpu_f64(), cell, optimizer);
    assert!(oracle[0] > 3.7, "{}", oracle[0]);
    let mut contexts = vec![Context::cpu()];
    contexts.extend(common::kept());
    for context in contexts {
        let (losses, perplexity) = curve(&context, cell, optimizer);
        let end = mean(&losses[STEPS - 30..]);
        assert!(end < bound, "{} {}: {end}", context.name(), cell.name);
        let apart = losses.iter().zip(&oracle).map(|(a, b)| (a - b).abs());
        let apart = apart.fold(0.0, f32::max);
        println!(
            "{:40} {:9} end {end:.3} apart {apart:.2e}",
            context.name(),
            cell.name
        );
        assert!(apart < CURVE, "{} {}: {apart}", context.name(), cell.name);
        let ratio = perplexity / oracle_perplexity;
        assert!(
            (ratio - 1.0).abs() < 0.01,
            "{perplexity} {oracle_perplexity}"
        );
    }
}

/// A loss of 4 has a rounding error of 2e-7; a few of them may gather over 300 steps.
const CURVE: f32 = 1e-5;

#[test]
fn lstm_learns_alike_everywhere() {
    learns_alike(&cell::LSTM, Optimizer::default(), 2.45);
}

#[test]
fn gru_learns_alike_everywhere() {
    learns_alike(&cell::GRU, Optimizer::default(), 2.35);
}

#[test]
fn rnn_learns_alike_everywhere_with_sgd() {
    let optimizer = Optimizer::Sgd {
        momentum: 0.9,
        weight_decay: 0.0,
    };
    learns_alike(&cell::RNN_TANH, optimizer, 2.6);
}

fn resumes(context: &Context) {
    let corpus = corpus();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let whole = {
        let model = model(context, &cell::LSTM, &corpus);
        run(&trainer(&model, Optimizer::default(), 0.3), &corpus, 0..20).unwrap()
    };
    let first = {
        let model = model(context, &cell::LSTM, &corpus);
        let trainer = trainer(&model, Optimizer::default(), 0.3);
        let losses = run(&trainer, &corpus, 0..11).unwrap();
        let description = Description {
            cell: &cell::LSTM,
            unit: Tokens::Chars,
            vocabulary: corpus.vocabulary.clone(),
            iteration: 11,
        };
        checkpoint::save(&path, &model, &trainer, &description).unwrap();
        losses
    };
    let (model, description) = checkpoint::load(&path, context).unwrap();
    assert_eq!(description.iteration, 11);
    assert_eq!(description.vocabulary.len(), corpus.vocabulary.len());
    let trainer = trainer(&model, Optimizer::default(), 0.3);
    assert!(checkpoint::resume(&path, &trainer, &model).unwrap());
    let second = run(&trainer, &corpus, 11..20).unwrap();
    let joined: Vec<f32> = first.into_iter().chain(second).collect();
    assert_eq!(joined, whole, "{}", context.name());

    // By now the weights are others, and the saved state is not theirs.
    assert!(!checkpoint::resume(&path, &trainer, &model).unwrap());
}

#[test]
fn an_interrupted_run_has_the_same_bits() {
    resumes(&Context::cpu());
    common::kept().iter().for_each(resumes);
}

#[test]
fn weights_have_the_names_and_shapes_of_a_pytorch_module() {
    let corpus = corpus();
    let model = model(&Context::cpu(), &cell::GRU, &corpus);
    let v = corpus.vocabulary.len();
    let archive = model.to_archive().unwrap();
    let shapes: Vec<_> = archive
        .tensors
        .iter()
        .map(|(name, array)| (name.as_str(), array.shape.clone()))
        .collect();
    assert_eq!(
        shapes,
        [
            ("embedding.weight", vec![v, 12]),
            ("linear.bias", vec![v]),
            ("linear.weight", vec![v, 24]),
            ("rnn.bias_hh_l0", vec![72]),
            ("rnn.bias_ih_l0", vec![72]),
            ("rnn.weight_hh_l0", vec![72, 24]),
            ("rnn.weight_ih_l0", vec![72, 12]),
        ]
    );
}

#[test]
fn weights_of_another_model_are_refused_whole() {
    let corpus = corpus();
    let lstm = model(&Context::cpu(), &cell::LSTM, &corpus);
    let gru = model(&Context::cpu(), &cell::GRU, &corpus);
    let before = gru.to_archive().unwrap();
    let e = gru.load(&lstm.to_archive().unwrap()).unwrap_err();
    assert!(matches!(e, Error::Weights { .. }), "{e}");
    let mut missing = before.clone();
    missing.tensors.remove("linear.bias");
    assert!(
        gru.load(&missing)
            .unwrap_err()
            .to_string()
            .contains("'linear.bias' is missing")
    );
    let mut surplus = before.clone();
    let bias = surplus.tensors["linear.bias"].clone();
    surplus.tensors.insert("other".to_owned(), bias);
    assert!(
        gru.load(&surplus)
            .unwrap_err()
            .to_string()
            .contains("'other' is surplus")
    );
    assert_eq!(gru.to_archive().unwrap().tensors, before.tensors);
}

#[test]
fn ids_outside_the_vocabulary_are_refused() {
    let corpus = corpus();
    let model = model(&Context::cpu(), &cell::LSTM, &corpus);
    let trainer = trainer(&model, Optimizer::default(), 0.0);
    let mut chunk = Batches::new(&corpus.ids, SIZE).unwrap().chunk(0);
    chunk.inputs[7] = corpus.vocabulary.len() as u32;
    let e = trainer.step(&chunk).unwrap_err();
    assert!(matches!(e, Error::Token { position: 7, .. }), "{e}");
    let evaluator = Evaluator::new(&model, Size { steps: 2, batch: 1 }).unwrap();
    let e = evaluator.perplexity(&[0, 1, u32::MAX, 2]).unwrap_err();
    assert!(matches!(e, Error::Token { position: 2, .. }), "{e}");
}

#[test]
fn options_out_of_range_are_refused() {
    let corpus = corpus();
    let model = model(&Context::cpu(), &cell::LSTM, &corpus);
    let spec = TrainerSpec {
        size: SIZE,
        optimizer: Optimizer::default(),
        clip: 1.0,
        dropout: 0.0,
        seed: 0,
    };
    for bad in [
        TrainerSpec { clip: 0.0, ..spec },
        TrainerSpec {
            clip: f32::NAN,
            ..spec
        },
        TrainerSpec {
            dropout: 1.0,
            ..spec
        },
        TrainerSpec {
            dropout: -0.1,
            ..spec
        },
        TrainerSpec {
            dropout: f32::NAN,
            ..spec
        },
        TrainerSpec {
            size: Size { steps: 0, batch: 2 },
            ..spec
        },
    ] {
        assert!(Trainer::new(&model, bad).is_err(), "{bad:?}");
    }
}

#[test]
fn nan_in_a_weight_reaches_the_loss() {
    let corpus = corpus();
    let mut contexts = vec![Context::cpu()];
    contexts.extend(common::kept());
    for context in contexts {
        let model = model(&context, &cell::LSTM, &corpus);
        let weight = model.layer().weight("weight_hh_l0").unwrap();
        let mut values = weight.read().unwrap();
        values[17] = f32::NAN;
        weight.write(&values).unwrap();
        let losses = run(&trainer(&model, Optimizer::default(), 0.0), &corpus, 0..1).unwrap();
        assert!(losses[0].is_nan(), "{}", context.name());
    }
}
