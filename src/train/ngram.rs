//! Counting models of text: the perplexities that a recurrent language model has to beat.
//!
//! Perplexity is exp(-(1/M) * sum of ln p) over the M held-out tokens; p is never 0.
//!
//! The unigram model smooths the counts c of the n training tokens over V kinds by adding one:
//!
//! ```text
//! p(w) = (c(w) + 1) / (n + V)
//! ```
//!
//! The bigram model is interpolated modified Kneser-Ney smoothing (S. F. Chen and J. Goodman,
//! "An empirical study of smoothing techniques for language modeling", Computer Speech and
//! Language 13, 1999, section 3; after R. Kneser and H. Ney, ICASSP 1995). With `c(v)` and `N(v)`
//! summed over what follows v, and `N1`, `N2`, `N3` the numbers of different tokens that follow v
//! once, twice, and more often:
//!
//! ```text
//! p(w | v) = max(c(v w) - D(c(v w)), 0) / c(v)  +  g(v) q(w)
//! g(v)     = (D1 N1(v) + D2 N2(v) + D3 N3(v)) / c(v)
//! q(w)     = max(N(. w) - D0, 0) / N(. .)  +  (D0 K / N(. .)) / V
//! ```
//!
//! where `D(1)`, `D(2)`, `D(3 and more)` are `D1`, `D2`, `D3`, `N(. w)` is the number of different
//! tokens before w, `N(. .)` its sum, and K the number of tokens with `N(. w)` > 0. After a v that
//! the training text has not got, or has only at its end, p(w | v) = q(w). The four discounts are
//! not estimated from counts of counts, which small alphabets do not have, but chosen: they are
//! those of a grid that give the last tenth of the training tokens the lowest perplexity under
//! the counts of the rest. The counts are then taken over all training tokens.

use std::collections::HashMap;

use crate::error::{Error, Result};

/// Steps per unit in the grid of discounts.
const GRID: usize = 20;
/// How often each discount is chosen anew with the others held.
const ROUNDS: usize = 3;

/// The perplexity of `held_out` under the add-one unigram model of `train`.
///
/// All ids are below `vocabulary`, the number V of kinds.
///
/// # Errors
///
/// [`Error::Value`] if a list is empty, [`Error::Token`] if an id is not below `vocabulary`.
pub fn unigram_perplexity(train: &[u32], held_out: &[u32], vocabulary: usize) -> Result<f64> {
    const OP: &str = "unigram_perplexity";
    check(OP, "train", train, vocabulary)?;
    check(OP, "held_out", held_out, vocabulary)?;
    let unigram = Unigram::new(train, vocabulary);
    Ok(perplexity(held_out.iter().map(|&w| unigram.probability(w))))
}

/// The perplexity of `held_out` under the Kneser-Ney bigram model of `train`.
///
/// All ids are below `vocabulary`, the number V of kinds. The first held-out token has no left
/// neighbour and counts with its probability under the add-one unigram model, so that this and
/// [`unigram_perplexity`] are means over the same tokens.
///
/// # Errors
///
/// [`Error::Value`] if a list is empty, [`Error::Token`] if an id is not below `vocabulary`.
pub fn bigram_perplexity(train: &[u32], held_out: &[u32], vocabulary: usize) -> Result<f64> {
    const OP: &str = "bigram_perplexity";
    check(OP, "train", train, vocabulary)?;
    check(OP, "held_out", held_out, vocabulary)?;
    let discounts = Discounts::chosen(train, vocabulary);
    let bigram = Bigram::new(train, vocabulary);
    let first = held_out
        .iter()
        .take(1)
        .map(|&w| Unigram::new(train, vocabulary).probability(w));
    let others = bigram
        .seen_in(held_out)
        .map(|seen| discounts.probability(&seen));
    Ok(perplexity(first.chain(others)))
}

fn check(op: &'static str, arg: &str, ids: &[u32], vocabulary: usize) -> Result<()> {
    if ids.is_empty() {
        return Err(Error::value(op, arg, "at least one token", "none"));
    }
    let known = |id: u32| usize::try_from(id).is_ok_and(|id| id < vocabulary);
    match ids.iter().position(|&id| !known(id)) {
        Some(position) => Err(Error::Token {
            op,
            position,
            id: ids[position],
            vocabulary,
        }),
        None => Ok(()),
    }
}

fn perplexity(probabilities: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    for probability in probabilities {
        sum -= probability.ln();
        count += 1.0;
    }
    f64::exp(sum / count)
}

struct Unigram {
    counts: HashMap<u32, u32>,
    total: f64,
}

impl Unigram {
    fn new(train: &[u32], vocabulary: usize) -> Self {
        let mut counts = HashMap::new();
        for &w in train {
            *counts.entry(w).or_default() += 1;
        }
        let total = train.len() as f64 + vocabulary as f64;
        Self { counts, total }
    }

    fn probability(&self, w: u32) -> f64 {
        let count = self.counts.get(&w).copied().unwrap_or(0);
        (f64::from(count) + 1.0) / self.total
    }
}

/// The counts of a training text. Maps and not tables, so that memory goes by the text's
/// length whatever the vocabulary.
struct Bigram {
    pairs: HashMap<(u32, u32), u32>,
    left: HashMap<u32, Left>,
    /// N(. w).
    before: HashMap<u32, u32>,
    vocabulary: f64,
}

/// What follows a token.
#[derive(Clone, Copy, Default)]
struct Left {
    /// c(v).
    count: u32,
    /// N1(v), N2(v), N3(v).
    kinds: [u32; 3],
}

/// What the counts know of one token in its place: all that the discounts need.
struct Seen {
    /// c(v w).
    pair: u32,
    left: Left,
    /// N(. w).
    before: u32,
    /// N(. .): the number of different pairs.
    pairs: f64,
    /// K: the number of different tokens that come second in a pair.
    second: f64,
    vocabulary: f64,
}

impl Bigram {
    fn new(train: &[u32], vocabulary: usize) -> Self {
        let mut pairs: HashMap<(u32, u32), u32> = HashMap::new();
        for pair in train.windows(2) {
            *pairs.entry((pair[0], pair[1])).or_default() += 1;
        }
        let mut left: HashMap<u32, Left> = HashMap::new();
        let mut before: HashMap<u32, u32> = HashMap::new();
        for (&(v, w), &count) in &pairs {
            let left = left.entry(v).or_default();
            left.count += count;
            left.kinds[count_class(count)] += 1;
            *before.entry(w).or_default() += 1;
        }
        Self {
            pairs,
            left,
            before,
            vocabulary: vocabulary as f64,
        }
    }

    fn seen(&self, v: u32, w: u32) -> Seen {
        Seen {
            pair: self.pairs.get(&(v, w)).copied().unwrap_or(0),
            left: self.left.get(&v).copied().unwrap_or_default(),
            before: self.before.get(&w).copied().unwrap_or(0),
            pairs: self.pairs.len() as f64,
            second: self.before.len() as f64,
            vocabulary: self.vocabulary,
        }
    }

    /// Every token of `text` but the first.
    fn seen_in(&self, text: &[u32]) -> impl Iterator<Item = Seen> {
        text.windows(2).map(|pair| self.seen(pair[0], pair[1]))
    }
}

/// 0 for a pair seen once, 1 for twice, 2 for more often.
fn count_class(count: u32) -> usize {
    match count {
        0 | 1 => 0,
        2 => 1,
        _ => 2,
    }
}

/// What is taken off the counts and given to what was not seen.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Discounts {
    /// D0, above 0 and at most 1.
    lower: f64,
    /// D1, D2, D3, above 0 and at most 1, 2, 3.
    pair: [f64; 3],
}

impl Discounts {
    /// Three quarters of each: where the search starts, and what a text too short for it gets.
    const START: Self = Self {
        lower: 0.75,
        pair: [0.75, 1.5, 2.25],
    };

    /// The discounts that serve the last tenth of `train` best, never looking at anything else.
    fn chosen(train: &[u32], vocabulary: usize) -> Self {
        let split = train.len() - train.len() / 10;
        let (counted, _) = train.split_at(split);
        let bigram = Bigram::new(counted, vocabulary);
        // With the last counted token, so that the first of the tenth has its left neighbour.
        let tenth: Vec<Seen> = bigram.seen_in(&train[split - 1..]).collect();
        if tenth.is_empty() {
            return Self::START;
        }
        let cost =
            |discounts: Self| perplexity(tenth.iter().map(|seen| discounts.probability(seen)));
        let (mut best, mut least) = (Self::START, cost(Self::START));
        for _ in 0..ROUNDS {
            for which in 0..4 {
                for step in 1..=GRID {
                    let candidate = best.with(which, step as f64 / GRID as f64);
                    let cost = cost(candidate);
                    if cost < least {
                        (best, least) = (candidate, cost);
                    }
                }
            }
        }
        best
    }

    /// The same but for one: D0 as `share`, or D1, D2, D3 as that share of the most each may be.
    fn with(mut self, which: usize, share: f64) -> Self {
        match which {
            0 => self.lower = share,
            _ => self.pair[which - 1] = which as f64 * share,
        }
        self
    }

    fn probability(self, seen: &Seen) -> f64 {
        let lower = if seen.pairs > 0.0 {
            let own = (f64::from(seen.before) - self.lower).max(0.0);
            (own + self.lower * seen.second / seen.vocabulary) / seen.pairs
        } else {
            1.0 / seen.vocabulary
        };
        if seen.left.count == 0 {
            return lower;
        }
        let pair = f64::from(seen.pair);
        let own = (pair - self.pair[count_class(seen.pair)]).max(0.0);
        let taken: f64 = self
            .pair
            .iter()
            .zip(seen.left.kinds)
            .map(|(discount, kinds)| discount * f64::from(kinds))
            .sum();
        (own + taken * lower) / f64::from(seen.left.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-12 * b.abs()
    }

    /// A text in which each token's successor is one of two, the first three times as likely.
    fn chain(length: usize, kinds: u32, mut state: u64) -> Vec<u32> {
        let mut token = 0;
        (0..length)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let step = if state >> 62 == 0 { 3 } else { 1 };
                token = (token * 2 + step) % kinds;
                token
            })
            .collect()
    }

    #[test]
    fn unigram_adds_one() {
        // Counts 1, 2, 0 of 3 tokens over 3 kinds: p = 2/6, 3/6, 1/6.
        let got = unigram_perplexity(&[1, 0, 1], &[1, 2], 3).unwrap();
        assert!(close(got, (6.0_f64 / 3.0 * 6.0).sqrt()), "{got}");
        // Nothing learnt, nothing won: all kinds alike.
        let got = unigram_perplexity(&[0, 1, 2, 3], &[3, 3, 0], 4).unwrap();
        assert!(close(got, 4.0), "{got}");
    }

    #[test]
    fn bigram_probabilities_by_hand() {
        // Pairs: 0 1 twice, 1 0 once, 1 2 once; V = 4. N(. w) = 1, 1, 1, 0 of 3 pairs, K = 3.
        let bigram = Bigram::new(&[0, 1, 0, 1, 2], 4);
        let discounts = Discounts {
            lower: 0.5,
            pair: [0.25, 1.25, 2.0],
        };
        let q = |before: f64| ((before - 0.5).max(0.0) + 0.5 * 3.0 / 4.0) / 3.0;
        for ((v, w), expected) in [
            ((0, 1), (2.0 - 1.25) / 2.0 + 1.25 / 2.0 * q(1.0)),
            ((0, 3), 1.25 / 2.0 * q(0.0)),
            ((1, 2), 0.75 / 2.0 + 0.5 / 2.0 * q(1.0)),
            // 2 ends the text and 3 is not in it.
            ((2, 0), q(1.0)),
            ((3, 3), q(0.0)),
        ] {
            let got = discounts.probability(&bigram.seen(v, w));
            assert!(close(got, expected), "{v} {w}: {got} {expected}");
        }
    }

    #[test]
    fn probabilities_add_up_to_one() {
        let train = chain(400, 23, 5);
        let bigram = Bigram::new(&train, 30);
        for discounts in [Discounts::START, Discounts::chosen(&train, 30)] {
            for v in 0..30 {
                let all = (0..30).map(|w| discounts.probability(&bigram.seen(v, w)));
                assert!(all.clone().all(|p| p > 0.0));
                let sum: f64 = all.sum();
                assert!((sum - 1.0).abs() < 1e-12, "{v}: {sum}");
            }
        }
        let unigram = Unigram::new(&train, 30);
        let sum: f64 = (0..30).map(|w| unigram.probability(w)).sum();
        assert!((sum - 1.0).abs() < 1e-12, "{sum}");
    }

    #[test]
    fn bigram_comes_near_the_truth_where_neighbours_matter() {
        let text = chain(30_000, 101, 7);
        let (train, held_out) = text.split_at(27_000);
        // The chain's own: exp of the entropy of (3/4, 1/4).
        let own = 1.0 / (0.75_f64.powf(0.75) * 0.25_f64.powf(0.25));
        let bigram = bigram_perplexity(train, held_out, 101).unwrap();
        assert!(bigram > 0.97 * own && bigram < 1.05 * own, "{bigram} {own}");
        let unigram = unigram_perplexity(train, held_out, 101).unwrap();
        assert!(unigram > 20.0 * own, "{unigram}");
    }

    #[test]
    fn the_chosen_discounts_serve_the_last_tenth_best() {
        let train = chain(2_000, 401, 3);
        let chosen = Discounts::chosen(&train, 401);
        assert_ne!(chosen, Discounts::START);
        let bigram = Bigram::new(&train[..1_800], 401);
        let cost = |discounts: Discounts| {
            perplexity(
                bigram
                    .seen_in(&train[1_799..])
                    .map(|seen| discounts.probability(&seen)),
            )
        };
        assert!(cost(chosen) < cost(Discounts::START));
        for which in 0..4 {
            for share in [0.05, 0.35, 0.7, 1.0] {
                assert!(
                    cost(chosen) <= cost(chosen.with(which, share)),
                    "{which} {share}"
                );
            }
        }
    }

    #[test]
    fn the_first_token_counts_as_in_the_unigram_model() {
        let train = chain(100, 7, 1);
        for token in 0..7 {
            assert_eq!(
                bigram_perplexity(&train, &[token], 7).unwrap(),
                unigram_perplexity(&train, &[token], 7).unwrap()
            );
        }
    }

    #[test]
    fn the_shortest_texts_have_finite_perplexities() {
        for train in [&[0][..], &[0, 0], &[0, 1, 0, 1, 0, 1, 0, 1, 0, 1]] {
            let got = bigram_perplexity(train, &[0, 1, 1, 2], 3).unwrap();
            assert!(got.is_finite() && got >= 1.0, "{train:?}: {got}");
        }
        let got = bigram_perplexity(&[0], &[0, 0], 1).unwrap();
        assert!(close(got, 1.0), "{got}");
    }

    #[test]
    fn huge_vocabularies_cost_no_memory() {
        let got = bigram_perplexity(&[0, u32::MAX], &[u32::MAX, 0], usize::MAX).unwrap();
        assert!(got.is_finite(), "{got}");
    }

    #[test]
    fn empty_lists_and_unknown_ids_are_refused() {
        for perplexity in [unigram_perplexity, bigram_perplexity] {
            for (train, held_out, named) in [(&[][..], &[0][..], "train"), (&[0], &[], "held_out")]
            {
                let error = perplexity(train, held_out, 1).unwrap_err();
                assert!(
                    matches!(&error, Error::Value { arg, .. } if arg == named),
                    "{error}"
                );
            }
            for (train, held_out) in [(&[0, 2][..], &[0][..]), (&[0], &[1, 2]), (&[0, 5], &[5])] {
                let error = perplexity(train, held_out, 2).unwrap_err();
                assert!(
                    matches!(
                        &error,
                        Error::Token {
                            position: 1,
                            id: 2 | 5,
                            ..
                        }
                    ),
                    "{error}"
                );
            }
        }
    }
}
