//! A long text as a batch of parallel streams, cut into chunks.
//!
//! The tokens are divided into N streams of equal length, which run side by side; every chunk
//! takes the next T tokens of each, so that a recurrent state carried from chunk to chunk goes on
//! where it stopped. The target of a token is the one after it.

use crate::error::{Error, Result};
use crate::kernels::cross_entropy::IGNORE;
use crate::plan::sequence::Size;

/// The chunks of a text. See the [module](self).
#[derive(Debug, Clone)]
pub struct Batches {
    tokens: Vec<u32>,
    size: Size,
    /// Tokens with a target in each stream.
    length: usize,
}

/// T tokens of N streams, `[T, N]` in row-major order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// What goes in.
    pub inputs: Vec<u32>,
    /// What should come out; [`IGNORE`] where the text is over.
    pub targets: Vec<u32>,
    /// The targets that count.
    pub counted: usize,
    /// True where the streams start anew, so that the state must be zeroed.
    pub starts: bool,
}

impl Batches {
    /// Cuts a text for calls of `size`.
    ///
    /// # Errors
    /// If T or N is 0, a chunk would have more tokens than 32 bits can count, or there are too few tokens for one target in every stream.
    pub fn new(tokens: &[u32], size: Size) -> Result<Self> {
        if size.steps == 0 || size.batch == 0 {
            let got = format!("{} x {}", size.steps, size.batch);
            return Err(Error::value(
                "Batches::new",
                "steps x batch",
                "at least 1 x 1",
                got,
            ));
        }
        if size.steps.saturating_mul(size.batch) > u32::MAX as usize {
            let expected = format!("at most {} in all", u32::MAX);
            let got = format!("{} x {}", size.steps, size.batch);
            return Err(Error::value("Batches::new", "steps x batch", expected, got));
        }
        let length = length(tokens.len(), size.batch);
        if !fits(tokens.len(), size.batch) {
            return Err(Error::value(
                "Batches::new",
                "tokens",
                format!("enough for {} streams of at least one target", size.batch),
                tokens.len(),
            ));
        }
        Ok(Self {
            tokens: tokens.to_vec(),
            size,
            length,
        })
    }

    /// The most streams, up to `most`, into which so many tokens can be cut; 1 for texts of less than two tokens too, which
    /// [`Self::new`] refuses.
    pub fn most_streams(tokens: usize, most: usize) -> usize {
        let mut streams = (1..=most.min(tokens.saturating_sub(1))).rev();
        streams.find(|&n| fits(tokens, n)).unwrap_or(1)
    }

    /// How many chunks one pass over the text takes.
    pub fn len(&self) -> usize {
        self.length.div_ceil(self.size.steps)
    }

    /// True if there is no chunk, which [`Self::new`] refuses.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Chunk `number`, counted on over the passes.
    pub fn chunk(&self, number: usize) -> Chunk {
        let Size { steps, batch } = self.size;
        let number = number % self.len();
        let mut chunk = Chunk {
            inputs: Vec::with_capacity(steps * batch),
            targets: Vec::with_capacity(steps * batch),
            counted: 0,
            starts: number == 0,
        };
        for t in number * steps..(number + 1) * steps {
            for n in 0..batch {
                let at = n * self.length + t;
                let inside = t < self.length && at + 1 < self.tokens.len();
                chunk.inputs.push(if inside { self.tokens[at] } else { 0 });
                chunk
                    .targets
                    .push(if inside { self.tokens[at + 1] } else { IGNORE });
                chunk.counted += usize::from(inside);
            }
        }
        chunk
    }
}

/// Tokens with a target in each of some streams.
fn length(tokens: usize, streams: usize) -> usize {
    tokens.saturating_sub(1).div_ceil(streams)
}

/// Whether each of the streams has a target: with their length rounded up, the last ones must still have a token.
fn fits(tokens: usize, streams: usize) -> bool {
    let before = (streams - 1).saturating_mul(length(tokens, streams));
    tokens >= 2 && before.saturating_add(1) < tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_but_the_first_is_a_target_once() {
        for (len, steps, batch) in [(11, 3, 2), (12, 4, 3), (2, 5, 1), (101, 7, 4), (9, 1, 8)] {
            let tokens: Vec<u32> = (0..len).collect();
            let batches = Batches::new(&tokens, Size { steps, batch }).unwrap();
            let mut seen = Vec::new();
            for number in 0..batches.len() {
                let chunk = batches.chunk(number);
                assert_eq!(chunk.starts, number == 0);
                let counted = chunk.targets.iter().filter(|&&t| t != IGNORE).count();
                assert_eq!(chunk.counted, counted);
                for (&i, &t) in chunk.inputs.iter().zip(&chunk.targets) {
                    if t != IGNORE {
                        assert_eq!(t, i + 1);
                        seen.push(t);
                    }
                }
            }
            seen.sort_unstable();
            assert_eq!(seen, (1..len).collect::<Vec<_>>(), "{len} {steps} {batch}");
            assert_eq!(batches.chunk(batches.len()), batches.chunk(0));
        }
    }

    #[test]
    fn streams_go_on_from_chunk_to_chunk() {
        let tokens: Vec<u32> = (0..25).collect();
        let batches = Batches::new(&tokens, Size { steps: 3, batch: 2 }).unwrap();
        assert_eq!(batches.chunk(0).inputs, [0, 12, 1, 13, 2, 14]);
        assert_eq!(batches.chunk(1).inputs, [3, 15, 4, 16, 5, 17]);
    }

    #[test]
    fn as_many_streams_as_fit() {
        for len in 2..60 {
            let tokens: Vec<u32> = (0..len).collect();
            let new = |batch| Batches::new(&tokens, Size { steps: 3, batch });
            let most = Batches::most_streams(tokens.len(), 8);
            assert!(new(most).is_ok(), "{len}");
            assert!((most + 1..=8).all(|more| new(more).is_err()), "{len}");
        }
        assert_eq!(Batches::most_streams(19, 8), 6);
        assert_eq!([0, 1].map(|len| Batches::most_streams(len, 8)), [1, 1]);
    }

    #[test]
    fn too_short_a_text_is_refused() {
        let size = Size { steps: 3, batch: 2 };
        assert!(Batches::new(&[], size).is_err());
        assert!(Batches::new(&[1, 2], size).is_err());
        assert!(Batches::new(&[1, 2, 3], size).is_ok());
        assert!(Batches::new(&[1, 2, 3], Size { steps: 0, batch: 1 }).is_err());
    }
}
