//! From text to token ids and back.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use crate::error::{Error, Result};

/// The token that stands for all that the vocabulary does not have. Its id is 0.
pub const UNKNOWN: &str = "<unk>";

/// What one token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tokens {
    /// A lower-case word or a punctuation mark.
    Words,
    /// A character.
    Chars,
}

/// Splits `text` into tokens.
///
/// [`Tokens::Words`]: white space separates and is dropped. A word is a run of letters and
/// digits, put in lower case; an apostrophe between two of them belongs to it (`don't`) and is
/// written `'`. Underscores, which mark italics in Project Gutenberg's texts, are dropped. A
/// run of two or more hyphens is the one token `--`; every other character is a token.
///
/// [`Tokens::Chars`]: every character is a token, newlines too. A carriage return before a
/// newline is dropped, so that a line's end is one token.
///
/// A byte order mark before the text is dropped.
pub fn tokenize(text: &str, unit: Tokens) -> Vec<Cow<'_, str>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match unit {
        Tokens::Words => words(text),
        Tokens::Chars => chars(text),
    }
}

fn words(text: &str) -> Vec<Cow<'_, str>> {
    let mut tokens = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == '_');
        let Some(first) = rest.chars().next() else {
            return tokens;
        };
        if first.is_alphanumeric() {
            let (word, after) = rest.split_at(word_length(rest));
            tokens.push(normal(word));
            rest = after;
        } else if rest.starts_with("--") {
            tokens.push("--".into());
            rest = rest.trim_start_matches('-');
        } else {
            let (mark, after) = rest.split_at(first.len_utf8());
            tokens.push(mark.into());
            rest = after;
        }
    }
}

/// How many bytes of `text` its first word takes, underscores within and after it included.
fn word_length(text: &str) -> usize {
    let in_word = |(at, c): (usize, char)| match c {
        '_' => true,
        '\'' | '’' => text[at + c.len_utf8()..]
            .trim_start_matches('_')
            .starts_with(char::is_alphanumeric),
        _ => c.is_alphanumeric(),
    };
    text.char_indices()
        .find(|&next| !in_word(next))
        .map_or(text.len(), |(at, _)| at)
}

fn normal(word: &str) -> Cow<'_, str> {
    let is_normal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '\'';
    if word.chars().all(is_normal) {
        return word.into();
    }
    word.replace('_', "")
        .replace('’', "'")
        .to_lowercase()
        .into()
}

fn chars(text: &str) -> Vec<Cow<'_, str>> {
    text.char_indices()
        .filter(|&(at, c)| !(c == '\r' && text[at + 1..].starts_with('\n')))
        .map(|(at, c)| text[at..at + c.len_utf8()].into())
        .collect()
}

/// The tokens a model knows, each with its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    tokens: Vec<String>,
    ids: HashMap<String, u32>,
}

impl Vocabulary {
    /// The tokens that occur at least `min_count` times: [`UNKNOWN`] with id 0, then by falling
    /// frequency, those of equal frequency in the order in which they first occur.
    ///
    /// # Errors
    ///
    /// [`Error::Value`] if there are fewer than two distinct tokens, or if none occurs
    /// `min_count` times.
    pub fn build<S: AsRef<str>>(tokens: &[S], min_count: usize) -> Result<Self> {
        let mut counts: HashMap<&str, (usize, usize)> = HashMap::new();
        for (at, token) in tokens.iter().enumerate() {
            counts.entry(token.as_ref()).or_insert((0, at)).0 += 1;
        }
        // Were the text to spell it out, it would still mean the unknown.
        counts.remove(UNKNOWN);
        if counts.len() < 2 {
            let expected = "at least 2 distinct tokens";
            return Err(Error::value(
                "Vocabulary::build",
                "text",
                expected,
                counts.len(),
            ));
        }
        let most = counts.values().map(|&(count, _)| count).max();
        let mut kept: Vec<_> = counts
            .into_iter()
            .filter(|&(_, (count, _))| count >= min_count)
            .collect();
        if kept.is_empty() {
            let expected = format!("at most {}, the commonest token's count", most.unwrap_or(0));
            return Err(Error::value(
                "Vocabulary::build",
                "min_count",
                expected,
                min_count,
            ));
        }
        kept.sort_unstable_by_key(|&(_, (count, first))| (Reverse(count), first));
        let known = kept.into_iter().map(|(token, _)| token.to_owned());
        Ok(Self::numbered(
            [UNKNOWN.to_owned()].into_iter().chain(known).collect(),
        ))
    }

    fn numbered(tokens: Vec<String>) -> Self {
        let ids = tokens.iter().cloned().zip(0..).collect();
        Self { tokens, ids }
    }

    /// The number of tokens, the unknown one included: all ids are below it.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no token; never so, since the unknown one always is there.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The id of `token`, or 0 if the vocabulary has not got it.
    pub fn encode(&self, token: &str) -> u32 {
        self.ids.get(token).copied().unwrap_or(0)
    }

    /// The ids of `tokens`.
    pub fn encode_all<S: AsRef<str>>(&self, tokens: &[S]) -> Vec<u32> {
        tokens
            .iter()
            .map(|token| self.encode(token.as_ref()))
            .collect()
    }

    /// The token of this id.
    pub fn token(&self, id: u32) -> Option<&str> {
        let at = usize::try_from(id).ok()?;
        self.tokens.get(at).map(String::as_str)
    }

    /// The tokens in the order of their ids, one a line, for keeping beside a model's weights.
    /// Newline, carriage return and backslash are written `\n`, `\r` and `\\`.
    pub fn to_lines(&self) -> String {
        let lines: Vec<_> = self.tokens.iter().map(|token| escaped(token)).collect();
        lines.join("\n")
    }

    /// Reads what [`Vocabulary::to_lines`] wrote.
    ///
    /// # Errors
    ///
    /// [`Error::Value`] if the first line is not [`UNKNOWN`], or a line is empty, occurs twice,
    /// or has a backslash followed by something else.
    pub fn from_lines(lines: &str) -> Result<Self> {
        let refused = |expected: &str, number: usize, line: &str| {
            let got = format!("{line:?} in line {number}");
            Err(Error::value(
                "Vocabulary::from_lines",
                "lines",
                expected,
                got,
            ))
        };
        let mut tokens = Vec::new();
        let mut seen = HashSet::new();
        for (number, line) in (1..).zip(lines.split('\n')) {
            let Some(token) = unescaped(line) else {
                return refused("free of backslashes but \\n, \\r and \\\\", number, line);
            };
            if number == 1 && token != UNKNOWN {
                return refused("a list that starts with <unk>", number, line);
            }
            if token.is_empty() || !seen.insert(line) {
                return refused("tokens that are not empty and differ", number, line);
            }
            tokens.push(token);
        }
        Ok(Self::numbered(tokens))
    }
}

fn escaped(token: &str) -> String {
    token
        .replace('\\', "\\\\")
        .replace('\n', "\\n")
        .replace('\r', "\\r")
}

fn unescaped(line: &str) -> Option<String> {
    let mut token = String::with_capacity(line.len());
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        token.push(match c {
            '\\' => match chars.next()? {
                'n' => '\n',
                'r' => '\r',
                '\\' => '\\',
                _ => return None,
            },
            _ => c,
        });
    }
    Some(token)
}

/// Puts tokens together to readable text.
///
/// [`Tokens::Words`]: marks stand where a typesetter puts them, straight double quotes open and
/// close in turn, hyphens and dashes join, a sentence starts with a capital, and `i` is `I`.
/// What [`tokenize`] dropped (line breaks, other capitals) stays lost.
///
/// [`Tokens::Chars`]: the characters as they are, with U+FFFD for [`UNKNOWN`].
pub fn detokenize<'a>(tokens: impl IntoIterator<Item = &'a str>, unit: Tokens) -> String {
    match unit {
        Tokens::Words => sentences(tokens),
        Tokens::Chars => tokens
            .into_iter()
            .map(|token| if token == UNKNOWN { "\u{fffd}" } else { token })
            .collect(),
    }
}

fn sentences<'a>(tokens: impl IntoIterator<Item = &'a str>) -> String {
    let mut text = String::new();
    let mut quoted = false;
    let mut start_of_sentence = true;
    // Whether the next token follows without a space.
    let mut open = true;
    for token in tokens {
        let (joins_left, joins_right) = match token {
            "\"" => {
                quoted = !quoted;
                (!quoted, quoted)
            }
            "," | "." | ";" | ":" | "!" | "?" | ")" | "]" | "”" | "'" | "’" => (true, false),
            "(" | "[" | "“" | "‘" => (false, true),
            "-" | "--" | "—" => (true, true),
            _ => (false, false),
        };
        if !open && !joins_left {
            text.push(' ');
        }
        open = joins_right;

        let is_word = token == UNKNOWN || token.starts_with(char::is_alphanumeric);
        let is_i = token == "i" || token.starts_with("i'");
        match token.chars().next() {
            Some(first) if is_word && (start_of_sentence || is_i) => {
                text.extend(first.to_uppercase());
                text.push_str(&token[first.len_utf8()..]);
            }
            _ => text.push_str(token),
        }
        start_of_sentence = match token {
            "." | "!" | "?" => true,
            // The full stop before it was an abbreviation's: "esq.," "viz.:".
            "," | ";" | ":" => false,
            _ => start_of_sentence && !is_word,
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words_of(text: &str) -> Vec<Cow<'_, str>> {
        tokenize(text, Tokens::Words)
    }

    fn spoken(text: &str) -> String {
        let tokens = words_of(text);
        detokenize(tokens.iter().map(AsRef::as_ref), Tokens::Words)
    }

    #[test]
    fn words_are_split_from_marks() {
        assert_eq!(
            words_of("\"My dear Mr. Bennet,\" said\nhis lady--(1813)"),
            [
                "\"", "my", "dear", "mr", ".", "bennet", ",", "\"", "said", "his", "lady", "--",
                "(", "1813", ")"
            ]
        );
        assert!(words_of(" \n\t_ _").is_empty());
        assert_eq!(words_of("\u{feff}So"), ["so"]);
    }

    #[test]
    fn apostrophes_stay_within_words_only() {
        assert_eq!(
            words_of("Don't 'tis the sisters' o’Clock 'so' a''b"),
            [
                "don't", "'", "tis", "the", "sisters", "'", "o'clock", "'", "so", "'", "a", "'",
                "'", "b"
            ]
        );
    }

    #[test]
    fn italics_are_dropped() {
        assert_eq!(
            words_of("_You_ my_self_ _She_'s _a b_, _\"c\"_ d'_e_"),
            [
                "you", "myself", "she's", "a", "b", ",", "\"", "c", "\"", "d'e"
            ]
        );
    }

    #[test]
    fn dashes_are_one_token_and_hyphens_another() {
        assert_eq!(
            words_of("grown-up----so -- —-"),
            ["grown", "-", "up", "--", "so", "--", "—", "-"]
        );
    }

    #[test]
    fn letters_beyond_ascii_are_lowered() {
        assert_eq!(words_of("ÉLAN Ünder ΟΔΟΣ"), ["élan", "ünder", "οδος"]);
        assert!(matches!(words_of("plain")[0], Cow::Borrowed(_)));
    }

    #[test]
    fn characters_are_kept_one_by_one() {
        assert_eq!(
            tokenize("\u{feff}Aé\n\n_b\r\n\rc", Tokens::Chars),
            ["A", "é", "\n", "\n", "_", "b", "\n", "\r", "c"]
        );
    }

    #[test]
    fn ids_go_by_frequency_then_by_place() {
        let tokens = words_of("d a b a c b a e");
        let vocabulary = Vocabulary::build(&tokens, 1).unwrap();
        assert_eq!(vocabulary.to_lines(), "<unk>\na\nb\nd\nc\ne");
        assert_eq!(vocabulary.encode_all(&tokens), [3, 1, 2, 1, 4, 2, 1, 5]);
        let cut = Vocabulary::build(&tokens, 2).unwrap();
        assert_eq!(cut.len(), 3);
        assert_eq!(cut.encode_all(&tokens), [0, 1, 2, 1, 0, 2, 1, 0]);
        assert_eq!(cut.encode("nowhere"), 0);
        assert_eq!(cut.token(0), Some(UNKNOWN));
        assert_eq!(cut.token(2), Some("b"));
        assert_eq!(cut.token(3), None);
    }

    #[test]
    fn a_spelled_out_unknown_is_the_unknown() {
        let tokens = ["a", UNKNOWN, UNKNOWN, "b"];
        let vocabulary = Vocabulary::build(&tokens, 1).unwrap();
        assert_eq!(vocabulary.encode_all(&tokens), [1, 0, 0, 2]);
        assert_eq!(vocabulary.len(), 3);
    }

    #[test]
    fn too_few_tokens_are_refused() {
        for (text, got) in [("", "0"), ("so so so", "1")] {
            match Vocabulary::build(&words_of(text), 1).unwrap_err() {
                Error::Value {
                    arg,
                    expected,
                    got: n,
                    ..
                } => {
                    assert_eq!((arg.as_str(), n.as_str()), ("text", got));
                    assert_eq!(expected, "at least 2 distinct tokens");
                }
                other => panic!("{other}"),
            }
        }
        let error = Vocabulary::build(&["a", "b", "a"], 3).unwrap_err();
        assert!(
            matches!(&error, Error::Value { arg, .. } if arg == "min_count"),
            "{error}"
        );
        assert!(error.to_string().contains("at most 2"), "{error}");
        assert!(Vocabulary::build(&["a", "b", "a"], 2).is_ok());
    }

    #[test]
    fn lines_are_read_back() {
        let text = "a\\b\n\\n\r\\\\ \t\u{2028}é";
        let tokens = tokenize(text, Tokens::Chars);
        let vocabulary = Vocabulary::build(&tokens, 0).unwrap();
        let lines = vocabulary.to_lines();
        assert_eq!(lines.split('\n').count(), vocabulary.len());
        assert_eq!(Vocabulary::from_lines(&lines).unwrap(), vocabulary);
    }

    #[test]
    fn damaged_lines_are_refused_by_number() {
        for (lines, number) in [
            ("", 1),
            ("a\n<unk>", 1),
            ("<unk>\na\n", 3),
            ("<unk>\na\nb\na", 4),
            ("<unk>\n<unk>", 2),
            ("<unk>\na\\", 2),
            ("<unk>\na\\t", 2),
        ] {
            let error = Vocabulary::from_lines(lines).unwrap_err();
            assert!(matches!(error, Error::Value { .. }));
            assert!(
                error.to_string().contains(&format!("line {number}")),
                "{error}"
            );
        }
    }

    #[test]
    fn words_make_sentences() {
        assert_eq!(
            spoken(
                "\"you want to tell me, and I don't.\"  this (so) was well-known--\"why; i'll go!\" he"
            ),
            "\"You want to tell me, and I don't.\" This (so) was well-known--\"why; I'll go!\" He"
        );
        assert_eq!(
            spoken("the sisters' esq., house: [a] b? (c)"),
            "The sisters' esq., house: [a] b? (C)"
        );
        assert_eq!(
            detokenize([UNKNOWN, "it", ".", UNKNOWN, "in"], Tokens::Words),
            "<unk> it. <unk> in"
        );
        assert_eq!(detokenize([], Tokens::Words), "");
    }

    #[test]
    fn sentences_split_into_the_same_tokens() {
        let text = "\"What!\" cried _he_, \"don't -- (I see) go--it's 5-fold; & so: [no]?\" The girls' end.";
        assert_eq!(words_of(&spoken(text)), words_of(text));
    }

    #[test]
    fn characters_make_the_text_again() {
        let text = "It is.\n\n  \"So\"\n";
        let tokens = tokenize(text, Tokens::Chars);
        assert_eq!(
            detokenize(tokens.iter().map(AsRef::as_ref), Tokens::Chars),
            text
        );
        assert_eq!(detokenize(["a", UNKNOWN], Tokens::Chars), "a\u{fffd}");
    }
}
