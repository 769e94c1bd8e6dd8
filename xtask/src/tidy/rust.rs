//! Just enough of Rust's grammar to look at code without being misled by comments and strings.

/// `text` with every comment, string and character literal blanked out; lines and columns stay where they are.
pub(super) fn code_only(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = literal_end(&chars, at);
        if end == at {
            out.push(chars[at]);
            at += 1;
        } else {
            out.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

/// Where the comment or literal that begins at `at` ends; `at` itself if none begins there.
fn literal_end(chars: &[char], at: usize) -> usize {
    let next = chars.get(at + 1).copied();
    match chars[at] {
        '/' if next == Some('/') => line_end(chars, at),
        '/' if next == Some('*') => block_comment_end(chars, at),
        '"' => string_end(chars, at + 1),
        'r' if begins_literal_prefix(chars, at) => raw_string_end(chars, at).unwrap_or(at),
        '\'' => char_end(chars, at).unwrap_or(at),
        _ => at,
    }
}

fn line_end(chars: &[char], at: usize) -> usize {
    chars[at..].iter().position(|c| *c == '\n').map_or(chars.len(), |length| at + length)
}

fn block_comment_end(chars: &[char], start: usize) -> usize {
    let mut depth = 0;
    let mut at = start;
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => (depth, at) = (depth + 1, at + 2),
            ('*', Some('/')) => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    chars.len()
}

fn string_end(chars: &[char], mut at: usize) -> usize {
    while at < chars.len() {
        match chars[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    chars.len()
}

/// An `r` at the start of a word, or after the `b` or `c` that starts one.
fn begins_literal_prefix(chars: &[char], at: usize) -> bool {
    let before = |back: usize| at.checked_sub(back).map(|index| chars[index]);
    match before(1) {
        Some('b' | 'c') => !before(2).is_some_and(is_word),
        other => !other.is_some_and(is_word),
    }
}

fn raw_string_end(chars: &[char], at: usize) -> Option<usize> {
    let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
    let open = at + 1 + hashes;
    if chars.get(open) != Some(&'"') {
        return None;
    }
    let closes =
        |quote: usize| chars[quote + 1..].iter().take_while(|c| **c == '#').take(hashes).count() == hashes;
    (open + 1..chars.len())
        .find(|index| chars[*index] == '"' && closes(*index))
        .map(|quote| quote + 1 + hashes)
        .or(Some(chars.len()))
}

/// `'a'` and `'\n'` are characters; `'a` alone is a lifetime.
fn char_end(chars: &[char], at: usize) -> Option<usize> {
    if chars.get(at + 1) == Some(&'\\') {
        let close = chars.get(at + 3..)?.iter().position(|c| *c == '\'')?;
        return Some(at + 3 + close + 1);
    }
    (chars.get(at + 2) == Some(&'\'')).then_some(at + 3)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// A path such as `std::time::Instant`, written out, and its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CodePath {
    pub(super) line: usize,
    pub(super) path: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    /// `::`
    Sep,
    Mark(char),
}

/// Every path in `code` (from [`code_only`]). `use` trees are written out, one path per leaf; `*` stays a last part.
pub(super) fn paths(code: &str) -> Vec<CodePath> {
    let tokens = tokens(code);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        at = match &tokens[at].1 {
            Token::Word(word) if word == "use" => use_tree(&tokens, at + 1, "", &mut found),
            Token::Word(_) => plain_path(&tokens, at, &mut found),
            _ => at + 1,
        };
    }
    found
}

fn tokens(code: &str) -> Vec<(usize, Token)> {
    let mut tokens = Vec::new();
    for (index, line) in code.lines().enumerate() {
        let mut rest = line;
        while let Some(c) = rest.chars().next() {
            let length = if is_word(c) {
                let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
                tokens.push((index + 1, Token::Word(rest[..length].to_owned())));
                length
            } else if rest.starts_with("::") {
                tokens.push((index + 1, Token::Sep));
                2
            } else {
                if !c.is_whitespace() {
                    tokens.push((index + 1, Token::Mark(c)));
                }
                c.len_utf8()
            };
            rest = &rest[length..];
        }
    }
    tokens
}

fn plain_path(tokens: &[(usize, Token)], start: usize, found: &mut Vec<CodePath>) -> usize {
    let (line, Token::Word(first)) = &tokens[start] else { return start + 1 };
    let mut path = first.clone();
    let mut at = start + 1;
    while let (Some((_, Token::Sep)), Some((_, Token::Word(word)))) = (tokens.get(at), tokens.get(at + 1)) {
        path = format!("{path}::{word}");
        at += 2;
    }
    found.push(CodePath { line: *line, path });
    at
}

/// Reads one tree below `prefix`; returns where it ends: at its `,`, `}` or `;`.
fn use_tree(tokens: &[(usize, Token)], start: usize, prefix: &str, found: &mut Vec<CodePath>) -> usize {
    let mut path = prefix.to_owned();
    let mut at = start;
    let mut is_leaf = true;
    while let Some((line, token)) = tokens.get(at) {
        match token {
            // The path stays what it is under another name.
            Token::Word(word) if word == "as" => at += 1,
            Token::Word(word) if word == "self" && path == prefix && !prefix.is_empty() => {}
            Token::Word(word) if !matches!(&tokens[at - 1].1, Token::Word(before) if before == "as") => {
                path = if path.is_empty() { word.clone() } else { format!("{path}::{word}") };
            }
            Token::Mark('*') => path = format!("{path}::*"),
            Token::Mark('{') => {
                is_leaf = false;
                at += 1;
                while !matches!(tokens.get(at), Some((_, Token::Mark('}'))) | None) {
                    let end = use_tree(tokens, at, &path, found);
                    let at_comma = matches!(tokens.get(end), Some((_, Token::Mark(','))));
                    at = if at_comma || end == at { end + 1 } else { end };
                }
            }
            Token::Mark(',' | '}' | ';') => {
                if is_leaf && !path.is_empty() {
                    found.push(CodePath { line: *line, path });
                }
                return at;
            }
            _ => {}
        }
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path_texts(code: &str) -> Vec<String> {
        paths(code).into_iter().map(|found| found.path).collect()
    }

    #[test]
    fn comments_and_literals_are_blanked_and_code_is_not() {
        let text = "a /* b /* c */ d */ e // f\n\"g \\\" h\" i r#\"j \" k\"# l 'm' n::<'o>() b\"p\" '\\'' q";
        let code = code_only(text);
        let words: String = code.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words, "a e i l n::<'o>() b q");
        assert_eq!(code.lines().count(), text.lines().count());
    }

    #[test]
    fn words_that_end_in_r_begin_no_raw_string() {
        assert_eq!(
            code_only("for\"x\" r#type br\"y\"").split_whitespace().collect::<Vec<_>>(),
            ["for", "r#type", "b"]
        );
    }

    #[test]
    fn an_unfinished_string_hides_the_rest() {
        assert_eq!(code_only("a \"b c").trim(), "a");
        assert_eq!(code_only("a r#\"b c\"").trim(), "a");
    }

    #[test]
    fn use_trees_are_written_out() {
        let code = "use std::{collections::{BTreeMap, HashMap as Map}, fmt::{self, Write}, io::*};\nuse a;";
        assert_eq!(
            path_texts(code),
            [
                "std::collections::BTreeMap",
                "std::collections::HashMap",
                "std::fmt",
                "std::fmt::Write",
                "std::io::*",
                "a"
            ]
        );
    }

    #[test]
    fn paths_in_code_are_found_with_their_line() {
        let found = paths("fn x() {\n    std::thread::sleep(now);\n}");
        assert!(found.contains(&CodePath { line: 2, path: "std::thread::sleep".to_owned() }));
    }
}
