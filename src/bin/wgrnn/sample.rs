//! `wgrnn sample`: writes text with a saved model.

use std::path::PathBuf;
use std::process::ExitCode;

use wgrnn::train::checkpoint::{self, Description};
use wgrnn::train::text::{Tokens, UNKNOWN, detokenize, tokenize};
use wgrnn::train::{LanguageModel, Sampler};
use wgrnn::{Context, Result};

/// The longest sentence, in words or characters.
const WORDS: usize = 60;
const CHARS: usize = 300;

/// Writes sentences with a model that `wgrnn train --save` wrote.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The saved model
    model: PathBuf,
    /// How the text begins
    #[arg(long, default_value = "")]
    prompt: String,
    /// How many sentences
    #[arg(long, default_value_t = 5)]
    sentences: usize,
    /// Below 1 likely words come more often, at 0 always
    #[arg(long, default_value_t = 0.8)]
    temperature: f32,
    /// Seed of the sampling
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// auto, cpu, gpu, or part of an adapter's name
    #[arg(long, default_value = "auto")]
    device: String,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let context = Context::open(&args.device)?;
    let (model, description) = checkpoint::load(&args.model, &context)?;
    for i in 0..args.sentences {
        let seed = args.seed.wrapping_add(i as u64);
        println!(
            "{}",
            write(&model, &description, &args.prompt, args.temperature, seed)?
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Some sentences without a prompt.
pub(crate) fn sentences(
    model: &LanguageModel,
    description: &Description,
    count: usize,
    temperature: f32,
    seed: u64,
) -> Result<Vec<String>> {
    (0..count as u64)
        .map(|i| write(model, description, "", temperature, seed.wrapping_add(i)))
        .collect()
}

/// Reads a prompt and goes on to the end of a sentence.
fn write(
    model: &LanguageModel,
    description: &Description,
    prompt: &str,
    temperature: f32,
    seed: u64,
) -> Result<String> {
    let vocabulary = &description.vocabulary;
    let (begin, most) = match description.unit {
        Tokens::Words => (".", WORDS),
        Tokens::Chars => ("\n", CHARS),
    };
    let unknown = Some(vocabulary.encode(UNKNOWN));
    let mut sampler = Sampler::new(model, temperature, seed)?;
    let prompt = tokenize(prompt, description.unit);
    let mut text: Vec<String> = prompt.iter().map(ToString::to_string).collect();
    let mut next = sampler.next(vocabulary.encode(begin), unknown)?;
    for token in &prompt {
        next = sampler.next(vocabulary.encode(token), unknown)?;
    }
    for _ in 0..most {
        let token = vocabulary.token(next).unwrap_or(UNKNOWN);
        text.push(token.to_owned());
        if matches!(token, "." | "!" | "?") && text.len() > 3 {
            break;
        }
        next = sampler.next(next, unknown)?;
    }
    Ok(detokenize(
        text.iter().map(String::as_str),
        description.unit,
    ))
}
