//! Evaluates the numbers and conditions of family files against one checkpoint.
//!
//! ```text
//! has("name"), any("pattern")     whether the checkpoint has such a tensor
//! ndim("name"), dim("name", axis), dtype("name")   of a tensor, null if there is none: "bf16", "u8"
//! given(key)                      whether config.json has the key, even if its value is null
//! get(key, default)               its value, also null where that is given; `??` takes null as missing
//! is_list(x), is_text(x), is_object(x)
//! int(x)                          a fraction towards zero, a text of digits, true as 1
//! div(a, b), min(a, b), max(a, b), if(test, yes, no)
//! len(x), x[i]                    of a list, or of a text: its i-th character; `len` also of an object
//! split(text, "separator")        the parts of a text, as a list
//! range(first, end)               the numbers from `first` up to before `end`, as a list
//! count(list, x)                  how often a list holds a value, or a text a character
//! ```

use std::cell::OnceCell;
use std::collections::HashMap;
use std::fmt;

use indexmap::IndexMap;
use serde_json::Value as Json;

use super::format::FormatError;
use super::syntax::{Expr, Operator};
use super::template::Template;
use crate::checkpoint::Config;
use crate::layout::catalog::Catalog;

/// A value of an expression.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Missing in the config, or null there.
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// A word.
    Text(String),
    /// A list.
    List(Vec<Self>),
    /// An object of the config.
    Object(IndexMap<String, Self>),
}

/// Why an expression has no value on this checkpoint.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ValueError {
    /// The config lacks what the family needs.
    #[error("`{0}` is missing in config.json")]
    Missing(String),
    /// A value of another kind than the expression needs.
    #[error("{found} where {expected} is needed in {context}")]
    Kind {
        /// What was found.
        found: String,
        /// What is needed.
        expected: &'static str,
        /// The operation or function that needs it.
        context: String,
    },
    /// A division that leaves a remainder, or by zero.
    #[error("{0} is not divisible by {1}")]
    Division(i64, i64),
    /// A whole number beyond 64 bits.
    #[error("a number of more than 64 bits")]
    Overflow,
    /// An index outside a list.
    #[error("item {index} of a list of {len}")]
    Item {
        /// The index.
        index: i64,
        /// The length of the list.
        len: usize,
    },
    /// No such function.
    #[error("no function `{0}`")]
    Function(String),
    /// A place that no index fills.
    #[error("nothing fills the place `{{{0}}}`")]
    Place(String),
    /// A format that MLX does not have.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// Values of `[let]` that need each other.
    #[error("`{0}` is defined by itself")]
    Cycle(String),
}

type Valued = Result<Value, ValueError>;

/// What names mean: indices, the family's own values, the config, the tensors.
#[derive(Clone, Copy)]
pub struct Env<'a> {
    facts: &'a Facts<'a>,
    /// The indices that are bound, innermost last.
    bound: &'a [(&'a str, u64)],
    /// How many `[let]` values are being worked out.
    depth: usize,
    /// The innermost of them.
    inside: Option<&'a str>,
}

/// What is the same for all names of one checkpoint.
pub struct Facts<'a> {
    /// The config of the checkpoint.
    config: &'a Config,
    /// The tensors of the checkpoint.
    catalog: &'a dyn Catalog,
    /// The library that is to load the result.
    target: &'a str,
    /// The family's own values.
    lets: &'a IndexMap<String, Expr>,
    /// Those of them that no index decides, worked out when they are first asked for.
    fixed: HashMap<&'a str, OnceCell<Valued>>,
}

impl<'a> Facts<'a> {
    /// About a checkpoint, for a family with these values and indices.
    pub fn new(
        config: &'a Config,
        catalog: &'a dyn Catalog,
        target: &'a str,
        lets: &'a IndexMap<String, Expr>,
        indices: &IndexMap<String, Expr>,
    ) -> Self {
        let is_fixed = |expr: &Expr| !expr.mentions(&|name| indices.contains_key(name), lets, 0);
        let fixed = lets.iter().filter(|(_, expr)| is_fixed(expr));
        let fixed = fixed.map(|(name, _)| (name.as_str(), OnceCell::new())).collect();
        Self { config, catalog, target, lets, fixed }
    }
}

impl std::fmt::Debug for Facts<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Facts").field("target", &self.target).finish_non_exhaustive()
    }
}

impl<'a> Env<'a> {
    /// Over a checkpoint, with no index bound.
    pub fn new(facts: &'a Facts<'a>) -> Self {
        Self { facts, bound: &[], depth: 0, inside: None }
    }

    /// The indices that are bound, innermost last.
    pub fn bound(&self) -> &'a [(&'a str, u64)] {
        self.bound
    }

    /// The same with other indices.
    pub fn with<'b>(&self, bound: &'b [(&'b str, u64)]) -> Env<'b>
    where
        'a: 'b,
    {
        Env { bound, ..*self }
    }

    /// The value of an expression.
    ///
    /// # Errors
    /// [`ValueError`], see there.
    pub fn eval(&self, expr: &Expr) -> Valued {
        match expr {
            Expr::Int(value) => Ok(Value::Int(*value)),
            Expr::Float(value) => Ok(Value::Float(*value)),
            Expr::Text(template) => self.fill(template).map(Value::Text),
            Expr::Name(name) => self.name(name),
            Expr::List(items) => {
                items.iter().map(|item| self.eval(item)).collect::<Result<_, _>>().map(Value::List)
            }
            Expr::Call(name, args) => self.call(name, args),
            Expr::Item(list, index) => self.item(list, index),
            Expr::Member(object, keys) => self.member(object, keys),
            Expr::Negate(inner) => match self.eval(inner)? {
                Value::Int(value) => value.checked_neg().map(Value::Int).ok_or(ValueError::Overflow),
                Value::Float(value) => Ok(Value::Float(-value)),
                other => Err(other.not("a number", "`-`")),
            },
            Expr::Not(inner) => Ok(Value::Bool(!self.truth(inner)?)),
            Expr::Binary(op, left, right) => self.binary(*op, left, right),
        }
    }

    /// The value of a condition: null and 0 are false, as an empty list and an empty word are.
    ///
    /// # Errors
    /// [`ValueError`], see there.
    pub fn truth(&self, expr: &Expr) -> Result<bool, ValueError> {
        Ok(match self.eval(expr)? {
            Value::Null => false,
            Value::Bool(value) => value,
            Value::Int(value) => value != 0,
            Value::Float(value) => value != 0.0,
            Value::Text(text) => !text.is_empty(),
            Value::List(items) => !items.is_empty(),
            Value::Object(members) => !members.is_empty(),
        })
    }

    /// The value of an expression that counts or measures something.
    ///
    /// # Errors
    /// [`ValueError`], also where the value is no whole number, is negative or is missing.
    pub fn size(&self, expr: &Expr) -> Result<u64, ValueError> {
        match (self.eval(expr)?, expr) {
            (Value::Int(value), _) => {
                u64::try_from(value).map_err(|_| Value::Int(value).not("a size", "a shape"))
            }
            (Value::Null, expr) => Err(self.absent(expr)),
            (other, _) => Err(other.not("a whole number", "a shape")),
        }
    }

    /// The values of an index: up to a number, or those of a list. A plain name stands for a count, so
    /// that a list in its place is found out.
    ///
    /// # Errors
    /// [`ValueError`], also where it is neither.
    pub fn indices(&self, expr: &Expr) -> Result<Vec<u64>, ValueError> {
        let index = |value: &Value| match value {
            Value::Int(value) => {
                u64::try_from(*value).map_err(|_| Value::Int(*value).not("an index", "a list"))
            }
            other => Err(other.not("an index", "a list")),
        };
        if matches!(expr, Expr::Name(_)) {
            return numbers(0, self.size(expr)?);
        }
        match self.eval(expr)? {
            Value::List(items) => items.iter().map(index).collect(),
            _ => numbers(0, self.size(expr)?),
        }
    }

    /// What lacks where an expression that must have a value is null: the key of the config behind
    /// it, if there is one.
    fn absent(&self, expr: &Expr) -> ValueError {
        match expr {
            Expr::Name(name) => match self.facts.lets.get_key_value(name) {
                Some((key, expr)) if self.inside != Some(name) => {
                    Env { inside: Some(key), ..*self }.absent(expr)
                }
                _ => ValueError::Missing(name.clone()),
            },
            Expr::Binary(Operator::Else, _, last) => self.absent(last),
            _ => Value::Null.not("a number", "an expression"),
        }
    }

    /// The value of an expression that must have one.
    fn present(&self, expr: &Expr) -> Valued {
        match self.eval(expr)? {
            Value::Null => Err(self.absent(expr)),
            value => Ok(value),
        }
    }

    /// A name with indices and texts in its places.
    ///
    /// # Errors
    /// [`ValueError::Place`] for a place that nothing fills.
    pub fn fill(&self, template: &Template) -> Result<String, ValueError> {
        use std::fmt::Write as _;
        template.fill(|place, name| {
            match self.index(place) {
                Some(index) => write!(name, "{index}").expect("a String takes everything"),
                None => name.push_str(&self.place(place)?),
            }
            Ok(())
        })
    }

    /// A pattern with the texts that its places name; what is left are places for numbers.
    pub fn pattern(&self, template: &Template) -> Template {
        template.resolved(|place| self.place(place).ok())
    }

    /// The text or number that `[let]` has for a place.
    fn place(&self, place: &str) -> Result<String, ValueError> {
        let missing = || ValueError::Place(place.to_owned());
        if !self.facts.lets.contains_key(place) {
            return Err(missing());
        }
        match self.name(place)? {
            Value::Text(text) => Ok(text),
            Value::Int(value) => Ok(value.to_string()),
            _ => Err(missing()),
        }
    }

    fn index(&self, name: &str) -> Option<u64> {
        self.bound.iter().rev().find(|(bound, _)| *bound == name).map(|&(_, index)| index)
    }

    fn name(&self, name: &str) -> Valued {
        if let Some(index) = self.index(name) {
            return Ok(Value::Int(index.cast_signed()));
        }
        match name {
            "true" => return Ok(Value::Bool(true)),
            "false" => return Ok(Value::Bool(false)),
            "null" => return Ok(Value::Null),
            "target" => return Ok(Value::Text(self.facts.target.to_owned())),
            _ => {}
        }
        match self.facts.lets.get_key_value(name) {
            // A value may complete the config key whose name it has: there the name is the key.
            Some((key, expr)) if self.inside != Some(name) => self.own_value(key, expr),
            _ => Ok(self.facts.config.get(name).map_or(Value::Null, Value::from_json)),
        }
    }

    fn own_value(&self, key: &'a str, expr: &Expr) -> Valued {
        if self.depth > self.facts.lets.len() {
            return Err(ValueError::Cycle(key.to_owned()));
        }
        let work_out = || Env { depth: self.depth + 1, inside: Some(key), ..*self }.eval(expr);
        let Some(cell) = self.facts.fixed.get(key) else {
            return work_out();
        };
        if let Some(value) = cell.get() {
            return value.clone();
        }
        // Not `get_or_init`: a value that asks for itself gets here again, until its depth ends it.
        let value = work_out();
        cell.get_or_init(|| value).clone()
    }

    fn item(&self, list: &Expr, index: &Expr) -> Valued {
        match (self.eval(list)?, self.eval(index)?) {
            (Value::List(mut items), Value::Int(index)) => {
                let len = items.len();
                let at = usize::try_from(index).ok().filter(|&at| at < len);
                at.map(|at| items.swap_remove(at)).ok_or(ValueError::Item { index, len })
            }
            (Value::Text(text), Value::Int(index)) => {
                let letter = usize::try_from(index).ok().and_then(|at| text.chars().nth(at));
                let letter = letter.map(|letter| Value::Text(letter.to_string()));
                letter.ok_or(ValueError::Item { index, len: text.chars().count() })
            }
            (Value::Object(mut members), Value::Text(key)) => {
                Ok(members.swap_remove(&key).unwrap_or(Value::Null))
            }
            (Value::Null, _) => Ok(Value::Null),
            (Value::List(_), other) => Err(other.not("a whole number", "`[…]`")),
            (other, _) => Err(other.not("a list", "`[…]`")),
        }
    }

    /// A value by keys joined by dots; null where the object, or one on the way, has none.
    fn member(&self, object: &Expr, keys: &str) -> Valued {
        keys.split('.').try_fold(self.eval(object)?, |value, key| match value {
            Value::Object(mut members) => Ok(members.swap_remove(key).unwrap_or(Value::Null)),
            Value::Null => Ok(Value::Null),
            other => Err(other.not("an object", &format!("`.{key}`"))),
        })
    }

    fn binary(&self, op: Operator, left: &Expr, right: &Expr) -> Valued {
        match op {
            Operator::Or => Ok(Value::Bool(self.truth(left)? || self.truth(right)?)),
            Operator::And => Ok(Value::Bool(self.truth(left)? && self.truth(right)?)),
            Operator::Else => match self.eval(left)? {
                Value::Null => self.eval(right),
                value => Ok(value),
            },
            Operator::Equal | Operator::Unequal | Operator::In => {
                operate(op, &self.eval(left)?, &self.eval(right)?)
            }
            _ => operate(op, &self.present(left)?, &self.present(right)?),
        }
    }

    fn call(&self, name: &str, args: &[Expr]) -> Valued {
        match (name, args) {
            ("has", [tensor]) => {
                Ok(Value::Bool(self.facts.catalog.find(&self.text(tensor, name)?).is_some()))
            }
            ("any", [Expr::Text(pattern)]) => Ok(Value::Bool(self.any(pattern))),
            ("ndim", [tensor]) => {
                Ok(self.shape(tensor, name)?.map_or(Value::Null, |shape| int(shape.len() as u64)))
            }
            ("dim", [tensor, axis]) => {
                let axis = self.size(axis)? as usize;
                let shape = self.shape(tensor, name)?;
                Ok(shape.and_then(|shape| shape.get(axis).copied()).map_or(Value::Null, int))
            }
            ("dtype", [tensor]) => {
                let found = self.facts.catalog.find(&self.text(tensor, name)?);
                let dtype = |id| self.facts.catalog.info(id).dtype.name().to_lowercase();
                Ok(found.map_or(Value::Null, |id| Value::Text(dtype(id))))
            }
            ("given", [Expr::Name(key)]) => Ok(Value::Bool(self.facts.config.get(key).is_some())),
            ("get", [Expr::Name(key), default]) => match self.facts.config.get(key) {
                Some(value) => Ok(Value::from_json(value)),
                None => self.eval(default),
            },
            ("is_list", [value]) => Ok(Value::Bool(matches!(self.eval(value)?, Value::List(_)))),
            ("is_text", [value]) => Ok(Value::Bool(matches!(self.eval(value)?, Value::Text(_)))),
            ("is_object", [value]) => Ok(Value::Bool(matches!(self.eval(value)?, Value::Object(_)))),
            ("if", [test, yes, no]) => {
                if self.truth(test)? {
                    self.eval(yes)
                } else {
                    self.eval(no)
                }
            }
            ("int", [value]) => whole_of(self.present(value)?),
            ("range", [first, end]) => {
                let (first, end) = (self.size(first)?, self.size(end)?);
                Ok(Value::List(numbers(first, end)?.into_iter().map(int).collect()))
            }
            ("split", [text, separator]) => {
                let (text, separator) = (self.text(text, name)?, self.text(separator, name)?);
                Ok(Value::List(text.split(&separator).map(|part| Value::Text(part.to_owned())).collect()))
            }
            ("count", [list, item]) => count(&self.eval(list)?, &self.eval(item)?),
            ("div", [a, b]) => {
                let (a, b) = (self.size(a)?, self.size(b)?);
                a.checked_div(b).map(int).ok_or(ValueError::Division(a.cast_signed(), b.cast_signed()))
            }
            ("min", [a, b]) => Ok(int(self.size(a)?.min(self.size(b)?))),
            ("max", [a, b]) => Ok(int(self.size(a)?.max(self.size(b)?))),
            ("len", [list]) => match self.eval(list)? {
                Value::List(items) => Ok(int(items.len() as u64)),
                Value::Text(text) => Ok(int(text.chars().count() as u64)),
                Value::Object(members) => Ok(int(members.len() as u64)),
                other => Err(other.not("a list", "`len`")),
            },
            _ => Err(ValueError::Function(format!("{name}, with {} arguments", args.len()))),
        }
    }

    fn text(&self, expr: &Expr, context: &str) -> Result<String, ValueError> {
        match self.eval(expr)? {
            Value::Text(text) => Ok(text),
            other => Err(other.not("a quoted name", &format!("`{context}`"))),
        }
    }

    fn shape(&self, tensor: &Expr, context: &str) -> Result<Option<&'a [u64]>, ValueError> {
        let name = self.text(tensor, context)?;
        Ok(self.facts.catalog.find(&name).map(|id| self.facts.catalog.info(id).shape))
    }

    /// Whether any tensor has a name of this form.
    fn any(&self, pattern: &Template) -> bool {
        let pattern = self.pattern(pattern);
        (0..self.facts.catalog.count()).any(|at| {
            pattern.matches(self.facts.catalog.info(crate::checkpoint::TensorId(at)).name).is_some()
        })
    }
}

impl std::fmt::Debug for Env<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Env").field("bound", &self.bound).finish_non_exhaustive()
    }
}

impl Value {
    /// A value of the config.
    pub fn from_json(json: &Json) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Object(members) => Self::Object(
                members.iter().map(|(key, value)| (key.clone(), Self::from_json(value))).collect(),
            ),
            Json::Bool(value) => Self::Bool(*value),
            Json::Number(number) => match number.as_i64() {
                Some(value) => Self::Int(value),
                None => Self::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => Self::Text(text.clone()),
            Json::Array(items) => Self::List(items.iter().map(Self::from_json).collect()),
        }
    }

    /// The value as it stands in a config.
    pub fn into_json(self) -> Json {
        match self {
            Self::Null => Json::Null,
            Self::Bool(value) => value.into(),
            Self::Int(value) => value.into(),
            Self::Float(value) => value.into(),
            Self::Text(text) => text.into(),
            Self::List(items) => items.into_iter().map(Self::into_json).collect(),
            Self::Object(members) => {
                members.into_iter().map(|(key, value)| (key, value.into_json())).collect()
            }
        }
    }

    /// The error of a value that is something else than what is needed here.
    pub(super) fn not(&self, expected: &'static str, context: &str) -> ValueError {
        ValueError::Kind { found: self.to_string(), expected, context: context.to_owned() }
    }
}

/// More layers, experts or heads than any model has: what a config says beyond is not written out.
const MOST: u64 = 1 << 16;

/// The numbers from `first` up to before `end`.
fn numbers(first: u64, end: u64) -> Result<Vec<u64>, ValueError> {
    let many = end.saturating_sub(first);
    if many > MOST {
        Err(int(many).not("no more than 65536", "an index"))
    } else {
        Ok((first..end).collect())
    }
}

impl fmt::Display for Value {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => out.write_str("null"),
            Self::Bool(value) => write!(out, "{value}"),
            Self::Int(value) => write!(out, "{value}"),
            Self::Float(value) => write!(out, "{value}"),
            Self::Text(text) => write!(out, "\"{text}\""),
            Self::List(items) => {
                let items: Vec<String> = items.iter().map(ToString::to_string).collect();
                write!(out, "[{}]", items.join(", "))
            }
            Self::Object(members) => {
                write!(out, "{{{}}}", members.keys().map(String::as_str).collect::<Vec<_>>().join(", "))
            }
        }
    }
}

fn int(value: u64) -> Value {
    Value::Int(value.cast_signed())
}

/// A value as a whole number: fractions towards zero, as Python's `int` does.
fn whole_of(value: Value) -> Valued {
    match &value {
        Value::Int(_) => Ok(value),
        Value::Bool(value) => Ok(Value::Int(i64::from(*value))),
        Value::Float(number) if number.abs() < 9e18 => Ok(Value::Int(*number as i64)),
        Value::Text(text) => {
            text.trim().parse().map(Value::Int).map_err(|_| value.not("a whole number", "`int`"))
        }
        _ => Err(value.not("a whole number", "`int`")),
    }
}

/// How often a list holds a value, or a text a text.
fn count(list: &Value, item: &Value) -> Valued {
    match (list, item) {
        (Value::List(items), item) => Ok(int(items.iter().filter(|other| *other == item).count() as u64)),
        (Value::Text(text), Value::Text(part)) => Ok(int(text.matches(part.as_str()).count() as u64)),
        _ => Err(list.not("a list", "`count`")),
    }
}

fn operate(op: Operator, left: &Value, right: &Value) -> Valued {
    match (op, left, right) {
        (Operator::Equal, ..) => Ok(Value::Bool(left == right)),
        (Operator::Unequal, ..) => Ok(Value::Bool(left != right)),
        (Operator::In, item, Value::List(items)) => Ok(Value::Bool(items.contains(item))),
        (Operator::In, Value::Text(part), Value::Text(text)) => Ok(Value::Bool(text.contains(part.as_str()))),
        (Operator::In, Value::Text(key), Value::Object(members)) => {
            Ok(Value::Bool(members.contains_key(key)))
        }
        (Operator::In, _, Value::Null) => Ok(Value::Bool(false)),
        (_, Value::Int(a), Value::Int(b)) => whole(op, *a, *b),
        (_, Value::Int(_) | Value::Float(_), Value::Int(_) | Value::Float(_)) => float(op, left, right),
        (_, Value::Int(_) | Value::Float(_), other) | (_, other, _) => {
            Err(other.not("a number", &format!("`{op}`")))
        }
    }
}

fn whole(op: Operator, a: i64, b: i64) -> Valued {
    let checked = |value: Option<i64>| value.map(Value::Int).ok_or(ValueError::Overflow);
    match op {
        Operator::Less => Ok(Value::Bool(a < b)),
        Operator::LessEqual => Ok(Value::Bool(a <= b)),
        Operator::Greater => Ok(Value::Bool(a > b)),
        Operator::GreaterEqual => Ok(Value::Bool(a >= b)),
        Operator::Add => checked(a.checked_add(b)),
        Operator::Subtract => checked(a.checked_sub(b)),
        Operator::Multiply => checked(a.checked_mul(b)),
        Operator::Divide if b != 0 && a.checked_rem(b) == Some(0) => checked(a.checked_div(b)),
        Operator::Remainder if b != 0 => checked(a.checked_rem_euclid(b)),
        _ => Err(ValueError::Division(a, b)),
    }
}

fn float(op: Operator, left: &Value, right: &Value) -> Valued {
    let number = |value: &Value| match value {
        Value::Int(value) => *value as f64,
        Value::Float(value) => *value,
        _ => f64::NAN,
    };
    let (a, b) = (number(left), number(right));
    Ok(match op {
        Operator::Less => Value::Bool(a < b),
        Operator::LessEqual => Value::Bool(a <= b),
        Operator::Greater => Value::Bool(a > b),
        Operator::GreaterEqual => Value::Bool(a >= b),
        Operator::Add => Value::Float(a + b),
        Operator::Subtract => Value::Float(a - b),
        Operator::Multiply => Value::Float(a * b),
        Operator::Divide => Value::Float(a / b),
        _ => return Err(left.not("a whole number", "`%`")),
    })
}
