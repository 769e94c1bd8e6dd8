//! Just enough JSON to read what `swarmmq --json` says, because this tool depends on nothing.

/// A value, as it was written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    List(Vec<Value>),
    Object(Vec<(String, Value)>),
}

impl Value {
    /// What follows a path like `latency_us.p99` or `nodes.0.pid`.
    pub(crate) fn at(&self, path: &str) -> Option<&Self> {
        path.split('.').try_fold(self, |value, step| match value {
            Self::Object(fields) => fields.iter().find(|(name, _)| name == step).map(|(_, value)| value),
            Self::List(items) => items.get(step.parse::<usize>().ok()?),
            _ => None,
        })
    }

    /// The number there.
    pub(crate) fn number(&self, path: &str) -> Result<f64, String> {
        match self.at(path) {
            Some(Self::Number(number)) => Ok(*number),
            other => Err(format!("no number at {path}: {other:?}")),
        }
    }

    /// The text there.
    pub(crate) fn text(&self, path: &str) -> Result<&str, String> {
        match self.at(path) {
            Some(Self::Text(text)) => Ok(text),
            other => Err(format!("no text at {path}: {other:?}")),
        }
    }
}

/// Reads one value that fills the text.
pub(crate) fn parse(text: &str) -> Result<Value, String> {
    let mut reader = Reader { rest: text.trim() };
    let value = reader.value(0)?;
    if reader.rest.trim().is_empty() { Ok(value) } else { Err(reader.unexpected()) }
}

/// The last line of what a command printed: its result.
pub(crate) fn last_line(text: &str) -> Result<Value, String> {
    let line = text.lines().rfind(|line| !line.trim().is_empty()).ok_or("nothing was printed")?;
    parse(line)
}

/// A text as JSON.
pub(crate) fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c < ' ' => quoted.push_str(&format!("\\u{:04x}", c as u32)),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// Values in values, at most: what we read is flat.
const DEPTH_MAX: u32 = 16;

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn unexpected(&self) -> String {
        format!("unexpected JSON at {:?}", self.rest.chars().take(40).collect::<String>())
    }

    /// Takes `word` if it comes next.
    fn take(&mut self, word: &str) -> bool {
        let rest = self.rest.trim_start();
        let taken = rest.strip_prefix(word);
        self.rest = taken.unwrap_or(rest);
        taken.is_some()
    }

    fn expect(&mut self, word: &str) -> Result<(), String> {
        if self.take(word) { Ok(()) } else { Err(self.unexpected()) }
    }

    fn value(&mut self, depth: u32) -> Result<Value, String> {
        if depth > DEPTH_MAX {
            return Err("JSON nested too deeply".into());
        }
        for (word, value) in
            [("null", Value::Null), ("true", Value::Bool(true)), ("false", Value::Bool(false))]
        {
            if self.take(word) {
                return Ok(value);
            }
        }
        if self.take("[") {
            return self.items("]", |reader| reader.value(depth + 1)).map(Value::List);
        }
        if self.take("{") {
            let field = |reader: &mut Self| {
                let name = reader.text()?;
                reader.expect(":")?;
                Ok((name, reader.value(depth + 1)?))
            };
            return self.items("}", field).map(Value::Object);
        }
        if self.rest.starts_with('"') { self.text().map(Value::Text) } else { self.number() }
    }

    /// What stands between commas up to `end`.
    fn items<T>(
        &mut self,
        end: &str,
        mut item: impl FnMut(&mut Self) -> Result<T, String>,
    ) -> Result<Vec<T>, String> {
        let mut items = Vec::new();
        if self.take(end) {
            return Ok(items);
        }
        loop {
            items.push(item(self)?);
            if self.take(end) {
                return Ok(items);
            }
            self.expect(",")?;
        }
    }

    fn number(&mut self) -> Result<Value, String> {
        let end =
            self.rest.find(|c: char| !c.is_ascii_digit() && !"+-.eE".contains(c)).unwrap_or(self.rest.len());
        let (digits, rest) = self.rest.split_at(end);
        let number = digits.parse().map_err(|_| self.unexpected())?;
        self.rest = rest;
        Ok(Value::Number(number))
    }

    fn text(&mut self) -> Result<String, String> {
        self.expect("\"")?;
        let mut text = String::new();
        let mut chars = self.rest.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.rest = &self.rest[at + 1..];
                    return Ok(text);
                }
                '\\' => match chars.next() {
                    Some((_, 'n')) => text.push('\n'),
                    Some((_, 't')) => text.push('\t'),
                    Some((_, 'r')) => text.push('\r'),
                    Some((at, 'u')) => {
                        let code =
                            self.rest.get(at + 1..at + 5).and_then(|hex| u32::from_str_radix(hex, 16).ok());
                        // Halves of a pair are of no interest here.
                        text.push(code.and_then(char::from_u32).unwrap_or(char::REPLACEMENT_CHARACTER));
                        chars.nth(3);
                    }
                    Some((_, c @ ('"' | '\\' | '/'))) => text.push(c),
                    _ => return Err(self.unexpected()),
                },
                c => text.push(c),
            }
        }
        Err("a JSON text does not end".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_command_prints_is_read() {
        let text = "progress\n{\"a\":{\"b\":[1,-2.5e1,null,true]},\"c\":\"x \\\"y\\\" \\u0041\\n\",\"d\":{},\"e\":[]}\n\n";
        let value = last_line(text).unwrap();
        assert_eq!(value.number("a.b.1"), Ok(-25.0));
        assert_eq!(value.text("c"), Ok("x \"y\" A\n"));
        assert_eq!(value.at("a.b.2"), Some(&Value::Null));
        assert_eq!(value.at("e"), Some(&Value::List(Vec::new())));
        assert!(value.at("a.z").is_none() && value.number("c").is_err() && value.text("a.b.9").is_err());
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for bad in ["", "{", "{\"a\" 1}", "[1,]", "\"a", "1 2", "nul", "\"\\x\"", "{\"a\":}"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse(&"[".repeat(100_000)).is_err(), "deep nesting ends");
    }

    #[test]
    fn a_quoted_text_is_read_back() {
        let text = "a \"b\" \\ \n\u{1}é";
        assert_eq!(parse(&quote(text)), Ok(Value::Text(text.into())));
    }
}
