//! The expressions of family files: one small grammar for numbers, conditions and tensors.
//!
//! ```text
//! or   := and ('or' and)*            cmp  := null (('==' | '!=' | '<' | '<=' | '>' | '>=' | 'in') null)?
//! and  := not ('and' not)*           null := sum ('??' sum)*
//! not  := 'not' not | cmp            sum  := term (('+' | '-') term)*
//! term := unary (('*' | '/' | '%') unary)*
//! unary := '-' unary | post          post := atom ('[' or ']' | '.' name)*
//! atom := number | "text" | name | name '(' list ')' | '[' list ']' | '(' or ')'
//! ```
//!
//! Names may hold dots: `text_config.hidden_size`, also behind an item of a list of objects:
//! `blocks[layer].attention.heads`. A text may hold places: `"model.layers.{layer}"`.

use std::fmt;

use indexmap::IndexMap;

use super::template::Template;

/// An expression, as parsed.
#[derive(Clone, Debug, PartialEq)]
pub enum Expr {
    /// A whole number.
    Int(i64),
    /// A number with a point or an exponent.
    Float(f64),
    /// A text, with places for indices: the name of a tensor, or a word.
    Text(Template),
    /// An index, a value of `[let]`, or a path into the config.
    Name(String),
    /// `[a, b]`
    List(Vec<Expr>),
    /// `name(a, b)`
    Call(String, Vec<Expr>),
    /// `list[i]`
    Item(Box<Expr>, Box<Expr>),
    /// `list[i].key`, with any number of keys joined by dots.
    Member(Box<Expr>, String),
    /// `-a`
    Negate(Box<Expr>),
    /// `not a`
    Not(Box<Expr>),
    /// `a op b`
    Binary(Operator, Box<Expr>, Box<Expr>),
}

impl Expr {
    /// Whether a name or place for which `wanted` holds occurs in it, or in a value of `lets` that it
    /// uses. Deep chains of values are taken to have one.
    pub(super) fn mentions(
        &self,
        wanted: &dyn Fn(&str) -> bool,
        lets: &IndexMap<String, Self>,
        depth: usize,
    ) -> bool {
        let name = |name: &str| {
            wanted(name)
                || depth > MAX_DEPTH
                || lets.get(name).is_some_and(|expr| expr.mentions(wanted, lets, depth + 1))
        };
        let inner = |expr: &Self| expr.mentions(wanted, lets, depth + 1);
        match self {
            Self::Int(_) | Self::Float(_) => false,
            Self::Text(template) => template.places().into_iter().any(name),
            Self::Name(text) => name(text),
            Self::List(items) | Self::Call(_, items) => items.iter().any(inner),
            Self::Negate(expr) | Self::Not(expr) | Self::Member(expr, _) => inner(expr),
            Self::Item(a, b) | Self::Binary(_, a, b) => inner(a) || inner(b),
        }
    }
}

/// The operators between two expressions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `or`
    Or,
    /// `and`
    And,
    /// `==`
    Equal,
    /// `!=`
    Unequal,
    /// `<`
    Less,
    /// `<=`
    LessEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterEqual,
    /// `in`: whether a list holds a value
    In,
    /// `??`: the right side where the left is null or missing
    Else,
    /// `+`
    Add,
    /// `-`
    Subtract,
    /// `*`
    Multiply,
    /// `/`, which must divide whole numbers evenly
    Divide,
    /// `%`
    Remainder,
}

/// Where and why an expression does not parse.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{expected} expected at column {column} of `{text}`")]
pub struct SyntaxError {
    text: String,
    column: usize,
    expected: &'static str,
}

/// Parses a whole text as an expression.
///
/// # Errors
/// [`SyntaxError`] with the column at which it stops making sense.
pub(super) fn parse(text: &str) -> Result<Expr, SyntaxError> {
    let mut parser = Parser { text, at: 0, depth: 0 };
    let expr = parser.level(0)?;
    parser.skip_space();
    if parser.at < text.len() { Err(parser.error("an operator or the end")) } else { Ok(expr) }
}

/// Operators by level, loosest first. Longer symbols come before their prefixes.
const LEVELS: [&[(&str, Operator)]; 6] = [
    &[("or", Operator::Or)],
    &[("and", Operator::And)],
    &[
        ("==", Operator::Equal),
        ("!=", Operator::Unequal),
        ("<=", Operator::LessEqual),
        (">=", Operator::GreaterEqual),
        ("<", Operator::Less),
        (">", Operator::Greater),
        ("in", Operator::In),
    ],
    &[("??", Operator::Else)],
    &[("+", Operator::Add), ("-", Operator::Subtract)],
    &[("*", Operator::Multiply), ("/", Operator::Divide), ("%", Operator::Remainder)],
];

impl fmt::Display for Operator {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all = LEVELS.iter().copied().flatten();
        let symbol = all.find(|(_, operator)| operator == self).map_or("", |(symbol, _)| symbol);
        out.write_str(symbol)
    }
}

/// The level of comparisons, above which `not` stands.
const COMPARISON: usize = 2;

/// Deeper nesting than any rule needs; keeps a hostile file from exhausting the stack.
const MAX_DEPTH: usize = 64;

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

type Parsed = Result<Expr, SyntaxError>;

impl<'a> Parser<'a> {
    fn level(&mut self, level: usize) -> Parsed {
        if level == COMPARISON && self.take_word("not") {
            return self.nested(|this| Ok(Expr::Not(Box::new(this.level(COMPARISON)?))));
        }
        let Some(operators) = LEVELS.get(level) else {
            return self.unary();
        };
        let mut left = self.level(level + 1)?;
        while let Some(operator) = self.operator(operators) {
            let right = self.level(level + 1)?;
            left = Expr::Binary(operator, Box::new(left), Box::new(right));
        }
        Ok(left)
    }

    fn operator(&mut self, operators: &[(&str, Operator)]) -> Option<Operator> {
        let found = operators.iter().find(|(symbol, _)| {
            if symbol.starts_with(|c: char| c.is_alphabetic()) {
                self.take_word(symbol)
            } else {
                self.take(symbol)
            }
        });
        found.map(|&(_, operator)| operator)
    }

    fn unary(&mut self) -> Parsed {
        if self.take("-") {
            return self.nested(|this| Ok(Expr::Negate(Box::new(this.unary()?))));
        }
        let mut expr = self.nested(Self::atom)?;
        loop {
            if self.take("[") {
                let index = self.nested(|this| this.level(0))?;
                self.expect("]", "`]`")?;
                expr = Expr::Item(Box::new(expr), Box::new(index));
            } else if matches!(expr, Expr::Item(..)) && self.take(".") {
                let keys = self.word(|c| c.is_alphanumeric() || matches!(c, '_' | '.')).to_owned();
                expr = Expr::Member(Box::new(expr), keys);
            } else {
                return Ok(expr);
            }
        }
    }

    fn atom(&mut self) -> Parsed {
        self.skip_space();
        match self.rest().chars().next() {
            Some('(') => {
                self.at += 1;
                let expr = self.level(0)?;
                self.expect(")", "`)`")?;
                Ok(expr)
            }
            Some('[') => {
                self.at += 1;
                Ok(Expr::List(self.list("]")?))
            }
            Some('"') => self.quoted(),
            Some(c) if c.is_ascii_digit() => self.number(),
            Some(c) if c.is_alphabetic() || c == '_' => self.name(),
            _ => Err(self.error("a value")),
        }
    }

    fn list(&mut self, close: &'static str) -> Result<Vec<Expr>, SyntaxError> {
        let mut items = Vec::new();
        if self.take(close) {
            return Ok(items);
        }
        loop {
            items.push(self.level(0)?);
            if self.take(close) {
                return Ok(items);
            }
            self.expect(",", "`,` or the closing bracket")?;
        }
    }

    fn quoted(&mut self) -> Parsed {
        let body = &self.rest()[1..];
        let end = body.find('"').ok_or_else(|| self.error("a closing quote"))?;
        let template = Template::parse(&body[..end]).map_err(|_| self.error("`{name}` with both braces"))?;
        self.at += end + 2;
        Ok(Expr::Text(template))
    }

    fn number(&mut self) -> Parsed {
        let word = self.word(|c| c.is_ascii_alphanumeric() || c == '.');
        // An exponent may have a sign: `1e-6`.
        let signed = word.ends_with(['e', 'E']) && self.rest().starts_with('-');
        let word = if signed {
            self.at += 1;
            let digits = self.word(|c| c.is_ascii_digit());
            &self.text[self.at - digits.len() - word.len() - 1..self.at]
        } else {
            word
        };
        let int = word.parse().map(Expr::Int).ok();
        int.or_else(|| word.parse().map(Expr::Float).ok()).ok_or_else(|| self.error("a number"))
    }

    fn name(&mut self) -> Parsed {
        let word = self.word(|c| c.is_alphanumeric() || matches!(c, '_' | '.')).to_owned();
        if self.take("(") {
            return Ok(Expr::Call(word, self.list(")")?));
        }
        Ok(Expr::Name(word))
    }

    fn nested(&mut self, parse: impl FnOnce(&mut Self) -> Parsed) -> Parsed {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.error("less nesting"));
        }
        let expr = parse(self);
        self.depth -= 1;
        expr
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip_space(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }

    fn word(&mut self, belongs: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c| !belongs(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn take(&mut self, symbol: &str) -> bool {
        self.skip_space();
        let found = self.rest().starts_with(symbol);
        if found {
            self.at += symbol.len();
        }
        found
    }

    fn take_word(&mut self, word: &str) -> bool {
        self.skip_space();
        let rest = self.rest().strip_prefix(word);
        let found = rest
            .is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '.')));
        if found {
            self.at += word.len();
        }
        found
    }

    fn expect(&mut self, symbol: &str, expected: &'static str) -> Result<(), SyntaxError> {
        if self.take(symbol) { Ok(()) } else { Err(self.error(expected)) }
    }

    fn error(&self, expected: &'static str) -> SyntaxError {
        SyntaxError { text: self.text.to_owned(), column: self.at + 1, expected }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(text: &str) -> String {
        fn show(expr: &Expr) -> String {
            match expr {
                Expr::Int(value) => value.to_string(),
                Expr::Float(value) => format!("{value:?}"),
                Expr::Text(template) => format!("\"{template}\""),
                Expr::Name(name) => name.clone(),
                Expr::List(items) => format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(" ")),
                Expr::Call(name, items) => {
                    format!("{name}({})", items.iter().map(show).collect::<Vec<_>>().join(" "))
                }
                Expr::Item(list, index) => format!("{}[{}]", show(list), show(index)),
                Expr::Member(object, keys) => format!("{}.{keys}", show(object)),
                Expr::Negate(inner) => format!("-{}", show(inner)),
                Expr::Not(inner) => format!("!{}", show(inner)),
                Expr::Binary(op, a, b) => format!("({} {op:?} {})", show(a), show(b)),
            }
        }
        parse(text).map_or_else(|error| error.to_string(), |expr| show(&expr))
    }

    #[test]
    fn operators_bind_as_documented() {
        assert_eq!(shown("head_dim ?? hidden / heads"), "(head_dim Else (hidden Divide heads))");
        assert_eq!(shown("not a == 1 and b"), "(!(a Equal 1) And b)");
        assert_eq!(
            shown("(layer + 1) % step == 0 or x in [1, 2]"),
            "((((layer Add 1) Remainder step) Equal 0) Or (x In [1 2]))"
        );
        assert_eq!(shown("kinds[layer] != \"full\""), "(kinds[layer] Unequal \"full\")");
        assert_eq!(
            shown("stack(expert, \"a.{expert}.b\") + 1e-6"),
            "(stack(expert \"a.{expert}.b\") Add 1e-6)"
        );
        assert_eq!(shown("index_of - inner"), "(index_of Subtract inner)");
        assert_eq!(shown("a.b[i].c.d[0].e"), "a.b[i].c.d[0].e");
    }

    #[test]
    fn what_does_not_parse_says_where() {
        assert_eq!(shown("a +"), "a value expected at column 4 of `a +`");
        assert_eq!(shown("f(a b)"), "`,` or the closing bracket expected at column 5 of `f(a b)`");
        assert_eq!(shown("\"open"), "a closing quote expected at column 1 of `\"open`");
        assert_eq!(shown("a b"), "an operator or the end expected at column 3 of `a b`");
        assert!(shown(&"(".repeat(1000)).starts_with("less nesting"));
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_parser(text in ".{0,40}") {
            let _ = parse(&text);
        }
    }
}
