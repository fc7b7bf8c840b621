//! A family file: how the checkpoints of some model types become the modules of a library.
//!
//! The file lists the parameters that the library's model has, with their shapes as expressions
//! over config.json, and for each where it comes from. That makes missing, spare and misshapen
//! tensors errors by construction. CONTRIBUTING.md describes every key.

use indexmap::IndexMap;
use serde::Deserialize;

use super::format::{FormatError, FormatRule};
use super::syntax::{Expr, SyntaxError, parse};
use super::template::{Template, TemplateError};
use crate::layout::{ModuleClass, MtpExperts, MtpRules, Role};

/// A parsed family.
#[derive(Debug)]
pub struct Family {
    /// Its name, for messages and `--json`.
    pub name: String,
    /// What it is, in words.
    pub title: String,
    /// The `model_type`s of config.json that it covers.
    pub model_types: Vec<String>,
    /// Of several families of a `model_type`, the one for checkpoints whose `architectures` name one
    /// of these; empty where the `model_type` tells.
    pub architectures: Vec<String>,
    /// The libraries whose models it describes.
    pub targets: Vec<String>,
    /// Those of them that turn what they wrote themselves into something else when they load it: for these
    /// the parameters are listed as the library's `sanitize` takes them, not as it leaves them.
    pub preimage: Vec<String>,
    /// Values derived from the config.
    pub lets: IndexMap<String, Expr>,
    /// What each index runs over: from 0 up to a number, or the values of a list.
    pub indices: IndexMap<String, Expr>,
    /// Routed experts that a token uses, and how many there are.
    pub experts: Option<Experts>,
    /// The parameters, in groups that share a condition.
    pub groups: Vec<Group>,
    /// Tensors that are left out.
    pub drops: Vec<DropRule>,
    /// What libraries can't run or load by faults of their own.
    pub faults: Vec<FaultRule>,
    /// How the layers that predict further tokens are stored where they are wanted.
    pub mtp: MtpRules,
    /// Keys of the config that the result changes, because its tensors are not the source's.
    pub config: IndexMap<String, Expr>,
}

/// How many of the routed experts a token uses.
#[derive(Debug)]
pub struct Experts {
    /// Experts in a layer.
    pub total: Expr,
    /// Experts that a token uses.
    pub active: Expr,
}

/// Parameters that exist under one condition.
#[derive(Debug)]
pub struct Group {
    /// When they exist; may use the indices of their names.
    pub when: Option<Expr>,
    /// The parameters, by name.
    pub tensors: Vec<TensorRule>,
}

/// One parameter, or one for each index.
#[derive(Debug)]
pub struct TensorRule {
    /// Its name in the library's model.
    pub name: Template,
    /// Its shape there.
    pub shape: Option<Vec<Expr>>,
    /// Where it comes from.
    pub from: Expr,
    /// When it exists.
    pub when: Option<Expr>,
    /// What it is for.
    pub role: Role,
    /// The module whose weight it is, if that can be quantized.
    pub module: Option<ModuleRule>,
    /// Whether `--dtype` applies to it; it does where nothing is said.
    pub cast: Option<Expr>,
    /// The modules of one name are used as one, and must be stored in one format.
    pub format_group: Option<Template>,
}

/// How a module is stored unless the user says otherwise.
#[derive(Debug)]
pub struct ModuleRule {
    /// Its class in MLX.
    pub class: ModuleClass,
    /// Whether it is quantized; it is where nothing is said.
    pub quantize: Option<Expr>,
    /// A format of its own.
    pub format: Option<FormatRule>,
}

/// Tensors of the checkpoint that the model does not have.
#[derive(Debug)]
pub struct DropRule {
    /// The form of their names.
    pub pattern: Template,
    /// When they are left out.
    pub when: Option<Expr>,
    /// Why.
    pub why: String,
    /// Whether they belong to layers that predict further tokens.
    pub mtp: bool,
}

/// Something that a library can't run or load, by a fault of its own.
#[derive(Debug)]
pub struct FaultRule {
    /// The module that it quantizes by its own rules, and then can't run; without one, what it makes of the
    /// checkpoint does not load.
    pub module: Option<Template>,
    /// When.
    pub when: Option<Expr>,
    /// What the library does; of a module in words that follow "but".
    pub what: String,
}

/// Why a family file is refused.
#[derive(Debug, thiserror::Error)]
pub enum FamilyError {
    /// Not TOML, or keys and kinds that no family has.
    #[error("{0}")]
    Toml(Box<toml::de::Error>),
    /// An expression that does not parse.
    #[error("in `{key}`: {error}")]
    Syntax {
        /// The key whose value it is.
        key: String,
        /// What is wrong.
        error: SyntaxError,
    },
    /// A name whose places do not parse.
    #[error("in `{key}`: {error}")]
    Template {
        /// The name.
        key: String,
        /// What is wrong.
        error: TemplateError,
    },
    /// A parameter named twice in one group, or an index that no `[index]` defines.
    #[error("in `{key}`: neither `[index]` nor `[let]` has `{place}`")]
    Index {
        /// The name.
        key: String,
        /// The place.
        place: String,
    },
    /// The role of what is written apart, on a parameter of the model.
    #[error("in `{key}`: the role `mtp` is for what `[mtp]` writes apart from the model")]
    Mtp {
        /// The name.
        key: String,
    },
    /// A place that is none of an expert, or nothing to make of the experts.
    #[error(
        "in `mtp.experts.{key}`: the name of one expert's tensor has the place `{{expert}}` and becomes one name, \
         that of a tensor of all has no place and becomes one or more"
    )]
    MtpExperts {
        /// The name.
        key: String,
    },
    /// A format that there is not, or for something that has none.
    #[error("in `{key}`: {error}")]
    Format {
        /// The name.
        key: String,
        /// What is wrong.
        error: FormatError,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FamilyToml {
    name: String,
    title: String,
    model_types: Vec<String>,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default = "mlx_lm")]
    targets: Vec<String>,
    #[serde(default)]
    preimage: Vec<String>,
    #[serde(default)]
    config: IndexMap<String, String>,
    #[serde(default, rename = "let")]
    lets: IndexMap<String, String>,
    #[serde(default)]
    index: IndexMap<String, String>,
    experts: Option<ExpertsToml>,
    #[serde(default)]
    group: Vec<GroupToml>,
    #[serde(default)]
    drop: Vec<DropToml>,
    #[serde(default)]
    fault: Vec<FaultToml>,
    #[serde(default)]
    mtp: MtpToml,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct MtpToml {
    model_type: Option<String>,
    dense: Vec<String>,
    keep: Vec<String>,
    experts: IndexMap<String, Names>,
}

/// One name, or a list of them.
#[derive(Deserialize)]
#[serde(untagged)]
enum Names {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpertsToml {
    total: String,
    active: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GroupToml {
    when: Option<String>,
    tensors: IndexMap<String, TensorToml>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TensorToml {
    shape: Option<String>,
    from: Option<String>,
    when: Option<String>,
    role: Role,
    module: Option<ModuleClass>,
    quantize: Option<Setting>,
    bits: Option<Setting>,
    group_size: Option<Setting>,
    mode: Option<String>,
    cast: Option<Setting>,
    format_group: Option<String>,
}

/// A value, or an expression that gives it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Setting {
    Flag(bool),
    Number(i64),
    Expression(String),
}

impl Setting {
    fn parse(&self, key: &str) -> Result<Expr, FamilyError> {
        match self {
            Self::Flag(value) => Ok(Expr::Name(value.to_string())),
            Self::Number(value) => Ok(Expr::Int(*value)),
            Self::Expression(text) => expression(key, text),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DropToml {
    tensors: String,
    when: Option<String>,
    why: String,
    #[serde(default)]
    mtp: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FaultToml {
    module: Option<String>,
    when: Option<String>,
    what: String,
}

/// Most families are of language models.
fn mlx_lm() -> Vec<String> {
    vec!["mlx-lm".to_owned()]
}

impl Family {
    /// Parses a family file.
    ///
    /// # Errors
    /// [`FamilyError`] with the key concerned.
    pub fn parse(text: &str) -> Result<Self, FamilyError> {
        let file: FamilyToml = toml::from_str(text).map_err(|error| FamilyError::Toml(Box::new(error)))?;
        let indices = expressions(file.index)?;
        let experts = file.experts.map(|experts| {
            let total = expression("experts.total", &experts.total)?;
            Ok(Experts { total, active: expression("experts.active", &experts.active)? })
        });
        let lets = expressions(file.lets)?;
        let known = |place: &str| indices.contains_key(place) || lets.contains_key(place);
        let groups =
            file.group.into_iter().map(|group| parse_group(group, &known)).collect::<Result<_, _>>()?;
        Ok(Self {
            name: file.name,
            title: file.title,
            model_types: file.model_types,
            architectures: file.architectures,
            targets: file.targets,
            preimage: file.preimage,
            config: expressions(file.config)?,
            lets,
            experts: experts.transpose()?,
            groups,
            mtp: parse_mtp(file.mtp)?,
            drops: file.drop.into_iter().map(parse_drop).collect::<Result<_, _>>()?,
            faults: file.fault.into_iter().map(parse_fault).collect::<Result<_, _>>()?,
            indices,
        })
    }
}

fn parse_group(group: GroupToml, known: &dyn Fn(&str) -> bool) -> Result<Group, FamilyError> {
    let when = condition("when", group.when.as_deref())?;
    let tensors = group.tensors.into_iter().map(|(name, rule)| parse_tensor(&name, &rule, known));
    Ok(Group { when, tensors: tensors.collect::<Result<_, _>>()? })
}

fn parse_tensor(
    key: &str,
    rule: &TensorToml,
    known: &dyn Fn(&str) -> bool,
) -> Result<TensorRule, FamilyError> {
    let name = template(key, key)?;
    if let Some(place) = name.places().into_iter().find(|place| !known(place)) {
        return Err(FamilyError::Index { key: key.to_owned(), place: place.to_owned() });
    }
    if rule.role == Role::Mtp {
        return Err(FamilyError::Mtp { key: key.to_owned() });
    }
    Ok(TensorRule {
        shape: rule.shape.as_deref().map(|text| shape(key, text)).transpose()?,
        from: match &rule.from {
            None => Expr::Text(name.clone()),
            Some(text) => word(key, text)?,
        },
        when: condition(key, rule.when.as_deref())?,
        role: rule.role,
        module: module(key, rule)?,
        cast: setting(key, rule.cast.as_ref())?,
        format_group: rule.format_group.as_deref().map(|text| template(key, text)).transpose()?,
        name,
    })
}

/// `from` and `mode` hold an expression if they have brackets or quotes, else a name.
fn word(key: &str, text: &str) -> Result<Expr, FamilyError> {
    if text.contains(['(', '"']) { expression(key, text) } else { Ok(Expr::Text(template(key, text)?)) }
}

fn module(key: &str, rule: &TensorToml) -> Result<Option<ModuleRule>, FamilyError> {
    let error = |error| FamilyError::Format { key: key.to_owned(), error };
    let quantize = setting(key, rule.quantize.as_ref())?;
    let format = format_rule(key, rule)?;
    if format.is_some() && matches!(rule.quantize, Some(Setting::Flag(false))) {
        return Err(error(FormatError::Never));
    }
    match rule.module {
        Some(class) => Ok(Some(ModuleRule { class, quantize, format })),
        None if format.is_some() || quantize.is_some() || rule.format_group.is_some() => {
            Err(error(FormatError::Module))
        }
        None => Ok(None),
    }
}

fn format_rule(key: &str, rule: &TensorToml) -> Result<Option<FormatRule>, FamilyError> {
    let mode = rule.mode.as_deref().map(|text| word(key, text)).transpose()?;
    let (bits, group) = (setting(key, rule.bits.as_ref())?, setting(key, rule.group_size.as_ref())?);
    FormatRule::new(mode, bits, group).map_err(|error| FamilyError::Format { key: key.to_owned(), error })
}

fn setting(key: &str, setting: Option<&Setting>) -> Result<Option<Expr>, FamilyError> {
    setting.map(|setting| setting.parse(key)).transpose()
}

fn parse_fault(fault: FaultToml) -> Result<FaultRule, FamilyError> {
    let when = condition("fault.when", fault.when.as_deref())?;
    let module = fault.module.map(|module| template("fault.module", &module)).transpose()?;
    Ok(FaultRule { module, when, what: fault.what })
}

fn parse_drop(drop: DropToml) -> Result<DropRule, FamilyError> {
    Ok(DropRule {
        pattern: template(&drop.tensors, &drop.tensors)?,
        when: condition(&drop.tensors, drop.when.as_deref())?,
        why: drop.why,
        mtp: drop.mtp,
    })
}

fn parse_mtp(mtp: MtpToml) -> Result<MtpRules, FamilyError> {
    let forms = |texts: Vec<String>| texts.iter().map(|text| template(text, text)).collect::<Result<_, _>>();
    Ok(MtpRules {
        model_type: mtp.model_type,
        dense: forms(mtp.dense)?,
        keep: forms(mtp.keep)?,
        experts: mtp.experts.into_iter().map(parse_experts).collect::<Result<_, _>>()?,
    })
}

fn parse_experts((key, names): (String, Names)) -> Result<MtpExperts, FamilyError> {
    let from = template(&key, &key)?;
    let to = match names {
        Names::One(name) => vec![name],
        Names::Many(names) => names,
    };
    match (&from.places()[..], to.len()) {
        (&["expert"], 1) | (&[], 1..) => Ok(MtpExperts { from, to }),
        _ => Err(FamilyError::MtpExperts { key }),
    }
}

/// A shape is a list without brackets: `"vocab_size, hidden_size"`.
fn shape(key: &str, text: &str) -> Result<Vec<Expr>, FamilyError> {
    match expression(key, &format!("[{text}]"))? {
        Expr::List(sizes) => Ok(sizes),
        // `a] + [b` and its like.
        other => Ok(vec![other]),
    }
}

fn expressions(texts: IndexMap<String, String>) -> Result<IndexMap<String, Expr>, FamilyError> {
    texts.into_iter().map(|(key, text)| expression(&key, &text).map(|expr| (key, expr))).collect()
}

fn condition(key: &str, text: Option<&str>) -> Result<Option<Expr>, FamilyError> {
    text.map(|text| expression(key, text)).transpose()
}

fn expression(key: &str, text: &str) -> Result<Expr, FamilyError> {
    parse(text).map_err(|error| FamilyError::Syntax { key: key.to_owned(), error })
}

fn template(key: &str, text: &str) -> Result<Template, FamilyError> {
    Template::parse(text).map_err(|error| FamilyError::Template { key: key.to_owned(), error })
}
