//! `wgrnn train`: trains a next-word or next-character model on a text.

use std::io::IsTerminal as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use wgrnn::cell::Cell;
use wgrnn::interop::atomic::{check_writable, same_file, write_atomically};
use wgrnn::interop::regular::read_text;
use wgrnn::plan::sequence::LayerSpec;
use wgrnn::train::checkpoint::{self, Description};
use wgrnn::train::text::{Tokens, Vocabulary, tokenize};
use wgrnn::train::{
    Batches, Evaluator, LanguageModel, ModelSpec, Optimizer, Sampler, Trainer, TrainerSpec, ngram,
};
use wgrnn::{Context, Error, Program, Result, Size};

use crate::certify::{Certified, summary};
use crate::files::Named;
use crate::sample;
use interrupt::Interrupt;
use saver::Saver;

mod interrupt;
mod saver;

/// The longest text that is learnt from.
const MOST_TEXT: u64 = 1 << 30;

/// *Pride and Prejudice* (Jane Austen, 1813; public domain).
const BOOK: &str = include_str!("../../../../examples/data/pride_and_prejudice.txt");

/// Trains a language model on a text and writes sentences with it.
///
/// Interrupted (Ctrl-C, or SIGTERM), it saves where --save says so and ends with status 130 (143); a second
/// time it ends at once. --resume goes on from there with the same bits.
#[derive(Debug, clap::Args)]
#[command(args_override_self = true, allow_negative_numbers = true)]
pub(crate) struct Args {
    /// The text to learn from; Pride and Prejudice without it
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// A text to validate on; without it the last tenth of the other, which is then not learnt
    #[arg(long, value_name = "FILE")]
    validation: Option<PathBuf>,
    /// Learn characters instead of words
    #[arg(long)]
    chars: bool,
    /// Words seen less often than this in training become <unk> [default: 3, with --chars 1]
    #[arg(long, value_name = "COUNT")]
    min_count: Option<usize>,
    /// lstm, gru, rnn_tanh, rnn_relu or another of the crate's cells [default: lstm]
    #[arg(long)]
    cell: Option<String>,
    /// Hidden units [default: 256]
    #[arg(long)]
    hidden: Option<usize>,
    /// Recurrent layers on top of each other [default: 1]
    #[arg(long)]
    layers: Option<usize>,
    /// Size of a token's embedding [default: 128]
    #[arg(long)]
    embedding: Option<usize>,
    /// Streams trained side by side
    #[arg(long, default_value_t = 32)]
    batch: usize,
    /// Steps of truncated back-propagation through time
    #[arg(long, default_value_t = 32)]
    steps_per_sequence: usize,
    /// Training steps
    #[arg(long, default_value_t = 1200)]
    iterations: usize,
    /// Stop after so many of the --iterations, to go on later with --resume
    #[arg(long, value_name = "COUNT")]
    stop_after: Option<usize>,
    /// Learning rate of AdamW at the start; it falls in a line to 0
    #[arg(long, default_value_t = 4e-3)]
    lr: f32,
    /// Weight decay of AdamW
    #[arg(long, default_value_t = 0.05)]
    weight_decay: f32,
    /// Largest global norm of the gradients
    #[arg(long, default_value_t = 1.0)]
    clip: f32,
    /// Probability of dropping a value before and after the recurrent layer
    #[arg(long, default_value_t = 0.4)]
    dropout: f32,
    /// Seed of the weights, the dropout and the sampling
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// auto, cpu, gpu, or part of an adapter's name
    #[arg(long, default_value = "auto")]
    device: String,
    #[command(flatten)]
    certified: Certified,
    /// Where to save the weights, as safetensors
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Also save after every so many iterations
    #[arg(long, value_name = "COUNT", requires = "save")]
    save_every: Option<usize>,
    /// A saved model to go on with, up to --iterations in all; --save must name another file
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// Where to write the course of the training
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Sentences to write at the end
    #[arg(long, default_value_t = 5)]
    sentences: usize,
    /// Of the sampling: below 1 likely words come more often, at 0 always
    #[arg(long, default_value_t = 0.8)]
    temperature: f32,
}

/// A text as ids, split for training and validation.
struct Corpus {
    train: Vec<u32>,
    validation: Vec<u32>,
    description: Description,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    check(args)?;
    keep_files_apart(args)?;
    // Not at the end, after minutes of work.
    if let Some(path) = &args.save {
        checkpoint::check_writable(path)?;
    }
    if let Some(path) = &args.json {
        check_writable(path)?;
    }
    let context = Context::open(&args.device)?;
    let resumed = match &args.resume {
        Some(path) => Some(load(args, path, &context)?),
        None => None,
    };
    let (model, known) = resumed.map_or((None, None), |(m, d)| (Some(m), Some(d)));
    let corpus = read(args, known)?;
    let size = Size {
        steps: args.steps_per_sequence,
        batch: args.batch,
    };
    let batches = Batches::new(&corpus.train, size)?;
    let vocabulary = corpus.description.vocabulary.len();
    let unigram = ngram::unigram_perplexity(&corpus.train, &corpus.validation, vocabulary)?;
    let bigram = ngram::bigram_perplexity(&corpus.train, &corpus.validation, vocabulary)?;

    let model = match model {
        Some(model) => model,
        None => build(args, &corpus.description, &context)?,
    };
    // A batch of streams is quicker than one; each starts from a zero state.
    let validated = Size {
        batch: Batches::most_streams(corpus.validation.len(), args.batch.min(8)),
        ..size
    };
    let model = certified(args, model, [size, validated])?;
    let context = model.context().clone();
    // Not at the end, when what was learnt depends on it.
    Batches::new(&corpus.validation, validated)?;
    let evaluator = Evaluator::new(&model, validated)?;
    let trainer = Trainer::new(&model, trainer_spec(args, size))?;
    let first = corpus.description.iteration;
    if let Some(path) = &args.resume
        && !checkpoint::resume(path, &trainer, &model)?
    {
        eprintln!(
            "wgrnn: no optimizer state of iteration {first} beside {}: it starts anew",
            path.display()
        );
    }
    let layer = model.spec().layer;
    println!(
        "{} on {}: {vocabulary} tokens, embedding {}, hidden {}; {} training and {} validation tokens",
        layer.cell.name,
        context.name(),
        layer.input_size,
        layer.hidden_size,
        corpus.train.len(),
        corpus.validation.len(),
    );

    let last = args
        .stop_after
        .map_or(args.iterations, |n| n.min(args.iterations));
    let interrupt = Interrupt::listen()?;
    let mut saver = Saver {
        path: args.save.as_deref(),
        every: args.save_every,
        model: &model,
        trainer: &trainer,
        description: corpus.description,
        saved: None,
    };
    let course = learn(
        args,
        &trainer,
        &batches,
        first..last,
        &interrupt,
        &mut saver,
    )?;
    let last = first + course.points.len();
    let mut result = json!({
        "device": context.name(),
        "iterations": course.points,
        "validation_perplexity": null,
        "unigram_perplexity": unigram,
        "bigram_perplexity": bigram,
        "tokens_per_s": course.tokens_per_s,
    });
    let go_on = || interrupt.status().is_none();
    let perplexity = evaluator.perplexity_while(&corpus.validation, go_on);
    match perplexity {
        Ok(Some(perplexity)) if !perplexity.is_finite() => {
            return Err(diverged(
                "validation perplexity",
                perplexity,
                last,
                saver.saved,
            ));
        }
        Ok(Some(perplexity)) => {
            println!("validation perplexity {perplexity:.1}, on text not trained on");
            println!(
                "  for comparison: unigram {unigram:.1}, bigram {bigram:.1} (modified Kneser-Ney)"
            );
            result["validation_perplexity"] = json!(perplexity);
        }
        // What was learnt is saved first.
        Ok(None) | Err(_) => {}
    }
    if last > first {
        saver.save(last)?;
    }
    if let (Some(path), Some(iteration)) = (&args.save, saver.saved) {
        println!("saved {} after iteration {iteration}", path.display());
    }
    if let Some(path) = &args.json {
        write_atomically(path, |w| writeln!(w, "{result:#}"))?;
        println!("wrote {}", path.display());
    }
    perplexity?;
    // From here on nothing can be lost.
    if let Some(status) = interrupt.ended() {
        eprintln!("wgrnn: interrupted after iteration {last}");
        return Ok(status);
    }
    for sentence in sample::sentences(
        &model,
        &saver.description,
        args.sentences,
        args.temperature,
        args.seed,
    )? {
        println!("> {sentence}");
    }
    Ok(ExitCode::SUCCESS)
}

fn check(args: &Args) -> Result<()> {
    let value = |arg: &str, expected: &str, got: String| Error::Value {
        op: "train",
        arg: arg.to_owned(),
        expected: expected.to_owned(),
        got,
    };
    let counts = [
        ("--batch", args.batch),
        ("--steps-per-sequence", args.steps_per_sequence),
        ("--iterations", args.iterations),
        ("--stop-after", args.stop_after.unwrap_or(1)),
        ("--min-count", args.min_count.unwrap_or(1)),
        ("--hidden", args.hidden.unwrap_or(1)),
        ("--layers", args.layers.unwrap_or(1)),
        ("--embedding", args.embedding.unwrap_or(1)),
        ("--save-every", args.save_every.unwrap_or(1)),
    ];
    for (arg, count) in counts {
        if count == 0 {
            return Err(value(arg, "at least 1", count.to_string()));
        }
    }
    if !(args.lr > 0.0 && args.lr.is_finite()) {
        return Err(value("--lr", "above 0", args.lr.to_string()));
    }
    if !(args.temperature >= 0.0 && args.temperature.is_finite()) {
        return Err(value(
            "--temperature",
            "at least 0",
            args.temperature.to_string(),
        ));
    }
    if !(args.weight_decay >= 0.0 && args.weight_decay.is_finite()) {
        return Err(value(
            "--weight-decay",
            "at least 0",
            args.weight_decay.to_string(),
        ));
    }
    Ok(())
}

/// Refuses two options that lead to one file: a text would be overwritten, a course lost.
fn keep_files_apart(args: &Args) -> Result<()> {
    const OP: &str = "train";
    let others = [
        ("--text", &args.text),
        ("--validation", &args.validation),
        ("--resume", &args.resume),
        ("--json", &args.json),
        ("--certificate", args.certified.path()),
    ];
    let others: Vec<_> = others.into_iter().filter_map(Named::given).collect();
    let save = Named::given(("--save", &args.save));
    let resume = Named::given(("--resume", &args.resume));
    // The optimizer's files belong to a model.
    for model in [save, resume].into_iter().flatten() {
        for other in others.iter().chain(&save) {
            if other.option != model.option && checkpoint::touches(model.path, other.path)? {
                return Err(other.clash(OP, model));
            }
        }
    }
    for (i, one) in others.iter().enumerate() {
        for other in &others[..i] {
            if same_file(one.path, other.path)? {
                return Err(one.clash(OP, *other));
            }
        }
    }
    Ok(())
}

fn trainer_spec(args: &Args, size: Size) -> TrainerSpec {
    TrainerSpec {
        size,
        optimizer: Optimizer::Adam {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: args.weight_decay,
            decoupled: true,
        },
        clip: args.clip,
        dropout: args.dropout,
        seed: args.seed,
    }
}

/// The text as ids, by the vocabulary of a resumed model or a new one.
fn read(args: &Args, known: Option<Description>) -> Result<Corpus> {
    let unit = match &known {
        Some(d) => d.unit,
        None if args.chars => Tokens::Chars,
        None => Tokens::Words,
    };
    let text = args.text.as_deref().map_or(Ok(BOOK.to_owned()), file)?;
    let tokens = tokenize(&text, unit);
    let validation_text = args.validation.as_deref().map(file).transpose()?;
    let (train, validation) = match &validation_text {
        Some(text) => (tokens.as_slice(), tokenize(text, unit)),
        None => {
            let (train, rest) = tokens.split_at(tokens.len() - tokens.len() / 10);
            (train, rest.to_vec())
        }
    };
    let description = match known {
        Some(known) => known,
        None => {
            let usual = if args.chars { 1 } else { 3 };
            Description {
                cell: cell(args)?,
                unit,
                vocabulary: Vocabulary::build(train, args.min_count.unwrap_or(usual))?,
                iteration: 0,
            }
        }
    };
    if validation.len() < 2 {
        return Err(Error::Value {
            op: "train",
            arg: "text".to_owned(),
            expected: "long enough to hold back 2 tokens for validation".to_owned(),
            got: format!("{} tokens", tokens.len()),
        });
    }
    Ok(Corpus {
        train: description.vocabulary.encode_all(train),
        validation: description.vocabulary.encode_all(&validation),
        description,
    })
}

fn file(path: &Path) -> Result<String> {
    read_text(path, MOST_TEXT)
}

fn cell(args: &Args) -> Result<&'static Cell> {
    let name = args.cell.as_deref().unwrap_or("lstm");
    Cell::named(name).ok_or_else(|| {
        let names: Vec<_> = wgrnn::cell::ALL.iter().map(|c| c.name).collect();
        Error::Value {
            op: "train",
            arg: "--cell".to_owned(),
            expected: format!("one of {}", names.join(", ")),
            got: name.to_owned(),
        }
    })
}

fn build(args: &Args, description: &Description, context: &Context) -> Result<LanguageModel> {
    let spec = ModelSpec {
        vocabulary: description.vocabulary.len(),
        layer: LayerSpec {
            num_layers: args.layers.unwrap_or(1),
            ..LayerSpec::new(
                description.cell,
                args.embedding.unwrap_or(128),
                args.hidden.unwrap_or(256),
            )
        },
    };
    LanguageModel::new(context, spec, args.seed)
}

/// The model on a device for plans of kernels that compute right there, where a file of certificates was given.
fn certified(
    args: &Args,
    model: LanguageModel,
    [size, validated]: [Size; 2],
) -> Result<LanguageModel> {
    if !args.certified.wanted() {
        return Ok(model);
    }
    let (spec, context) = (*model.spec(), model.context());
    let mut known = args.certified.open()?;
    let plans = |context: &Context| {
        let model = LanguageModel::new(context, spec, args.seed)?;
        let plan = |program: &Program| program.plan().clone();
        Ok(vec![
            plan(Trainer::new(&model, trainer_spec(args, size))?.program()),
            plan(Evaluator::new(&model, validated)?.program()),
            plan(Sampler::new(&model, args.temperature, args.seed)?.program()),
        ])
    };
    let certified = args.certified.context(&mut known, context, plans)?;
    println!("{}", summary(&known, context));
    if certified.target() == context.target() {
        return Ok(model);
    }
    // Its weights are packed for another plan there.
    let other = LanguageModel::new(&certified, spec, args.seed)?;
    other.load(&model.to_archive()?)?;
    Ok(other)
}

/// The model to go on with. Options that would make it another one are refused.
fn load(args: &Args, path: &Path, context: &Context) -> Result<(LanguageModel, Description)> {
    let (model, description) = checkpoint::load(path, context)?;
    let layer = model.spec().layer;
    let same = |arg: &str, given: Option<String>, saved: String| match given {
        Some(given) if given != saved => Err(Error::Value {
            op: "train --resume",
            arg: arg.to_owned(),
            expected: format!("{saved}, as in {}", path.display()),
            got: given,
        }),
        _ => Ok(()),
    };
    same("--cell", args.cell.clone(), layer.cell.name.to_owned())?;
    same(
        "--hidden",
        args.hidden.map(|v| v.to_string()),
        layer.hidden_size.to_string(),
    )?;
    same(
        "--layers",
        args.layers.map(|v| v.to_string()),
        layer.num_layers.to_string(),
    )?;
    same(
        "--embedding",
        args.embedding.map(|v| v.to_string()),
        layer.input_size.to_string(),
    )?;
    if args.chars && description.unit != Tokens::Chars {
        same("--chars", Some("characters".to_owned()), "words".to_owned())?;
    }
    if args.min_count.is_some() {
        let vocabulary = "the vocabulary".to_owned();
        same("--min-count", Some("another".to_owned()), vocabulary)?;
    }
    let (arg, end) = match args.stop_after {
        Some(end) if end < args.iterations => ("--stop-after", end),
        _ => ("--iterations", args.iterations),
    };
    if description.iteration >= end {
        return Err(Error::Value {
            op: "train --resume",
            arg: arg.to_owned(),
            expected: format!("above the {} already done", description.iteration),
            got: end.to_string(),
        });
    }
    Ok((model, description))
}

/// What a training left behind.
struct Course {
    points: Vec<serde_json::Value>,
    tokens_per_s: f64,
}

fn learn(
    args: &Args,
    trainer: &Trainer,
    batches: &Batches,
    iterations: Range<usize>,
    interrupt: &Interrupt,
    saver: &mut Saver<'_>,
) -> Result<Course> {
    let bar = progress(iterations.end);
    bar.set_position(iterations.start as u64);
    bar.reset_eta();
    let report_every = (iterations.end / 10).max(1);
    let mut points = Vec::new();
    let mut tokens = 0;
    let mut smoothed: Option<f64> = None;
    let start = Instant::now();
    for iteration in iterations.clone() {
        if interrupt.status().is_some() {
            break;
        }
        let left = 1.0 - iteration as f32 / args.iterations as f32;
        trainer.set_learning_rate(args.lr * left)?;
        let chunk = batches.chunk(iteration);
        trainer.step(&chunk)?;
        let (loss, norm) = (trainer.loss()?, trainer.gradient_norm()?);
        for (what, value) in [("loss", loss), ("gradient norm", norm)] {
            if !value.is_finite() {
                bar.abandon();
                let value = f64::from(value);
                return Err(diverged(what, value, iteration + 1, saver.saved));
            }
        }
        tokens += chunk.counted;
        points.push(json!({"iteration": iteration + 1, "loss": loss, "grad_norm": norm}));
        let mean = smoothed.map_or(f64::from(loss), |s| 0.95 * s + 0.05 * f64::from(loss));
        smoothed = Some(mean);
        let rate = tokens as f64 / start.elapsed().as_secs_f64();
        let state = format!(
            "loss {mean:.3}  perplexity {:.1}  {rate:.0} tokens/s",
            mean.exp()
        );
        if bar.is_hidden() && (iteration + 1).is_multiple_of(report_every) {
            println!("{:>6}/{}  {state}", iteration + 1, iterations.end);
        }
        bar.set_message(state);
        bar.inc(1);
        // The last one is saved once it has been validated.
        if iteration + 1 < iterations.end {
            saver.after(iteration + 1)?;
        }
    }
    let elapsed = start.elapsed();
    bar.abandon();
    let tokens_per_s = tokens as f64 / elapsed.as_secs_f64();
    println!(
        "{} iterations, {tokens} tokens in {:.1} s: {tokens_per_s:.0} tokens/s",
        points.len(),
        elapsed.as_secs_f64()
    );
    Ok(Course {
        points,
        tokens_per_s,
    })
}

fn progress(iterations: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(iterations as u64);
    // The template is a constant; if it were wrong, the default style would do.
    if let Ok(style) =
        ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}  {eta_precise} left")
    {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn diverged(what: &str, value: f64, iteration: usize, saved: Option<usize>) -> Error {
    let kept = match saved {
        None => "nothing was saved".to_owned(),
        Some(saved) => format!("the save of iteration {saved} stays"),
    };
    Error::Value {
        op: "train",
        arg: format!("{what} at iteration {iteration}"),
        expected: format!("finite (a smaller --lr or --clip may help); {kept}"),
        got: value.to_string(),
    }
}
