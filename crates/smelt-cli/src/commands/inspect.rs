//! `smelt inspect`: what a checkpoint is, and what would be in the way.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use smelt_core::checkpoint::Checkpoint;
use smelt_core::plan::{Options, Origin, Plan, family_of};
use smelt_core::units::bytes;

use crate::args::InspectArgs;
use crate::commands::{open, read_family};
use crate::format::{count, table};
use crate::printer::{self, Printer};

/// Files by which tokenizers are recognised.
const TOKENIZERS: [&str; 7] = [
    "tokenizer.json",
    "tokenizer.model",
    "tekken.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
];

pub(crate) fn run(args: &InspectArgs, printer: &Printer) -> anyhow::Result<()> {
    let checkpoint = open(&args.model)?;
    let own = args.family.as_deref().map(read_family).transpose()?;
    // What hinders a plan is what is in the way.
    let plan = family_of(&checkpoint, own.as_ref())
        .and_then(|family| Origin::family(&checkpoint, family, None))
        .and_then(|origin| Plan::new(&checkpoint, origin, &Options::default()));
    let report = Report::of(&checkpoint, &plan);
    if printer.is_json() {
        printer::data(&format!("{}\n", report.json()));
    } else {
        printer::data(&report.text());
    }
    Ok(())
}

/// What there is to say of a checkpoint.
struct Report {
    model_type: Option<String>,
    family: Option<String>,
    parameters: Option<(u64, u64)>,
    tensors: usize,
    shards: usize,
    bytes: u64,
    storage: String,
    dtypes: BTreeMap<&'static str, u64>,
    tokenizer: Vec<String>,
    side_files: Vec<String>,
    left_out: Vec<(String, &'static str)>,
    in_the_way: Option<String>,
}

impl Report {
    fn of(checkpoint: &Checkpoint, plan: &Result<Plan, smelt_core::Error>) -> Self {
        let mut dtypes = BTreeMap::new();
        for tensor in checkpoint.tensors() {
            *dtypes.entry(tensor.dtype.name()).or_default() += tensor.bytes;
        }
        let names = checkpoint.side_files().iter().map(|file| file.path.clone());
        let is_tokenizer = |name: &String| {
            TOKENIZERS.contains(&name.as_str())
                || name.ends_with(".tiktoken")
                || name.starts_with("tokenization_")
        };
        let (tokenizer, side_files) = names.partition(is_tokenizer);
        let plan = plan.as_ref();
        Self {
            model_type: checkpoint.config().model_type().map(str::to_owned),
            family: plan.ok().map(|plan| plan.family.clone()),
            parameters: plan.ok().map(|plan| (plan.totals.parameters, plan.totals.active_parameters)),
            tensors: checkpoint.tensors().len(),
            shards: checkpoint.shards().len(),
            bytes: checkpoint.tensors().iter().map(|tensor| tensor.bytes).sum(),
            storage: checkpoint.describe_storage(),
            dtypes,
            tokenizer,
            side_files,
            left_out: checkpoint.left_out().iter().map(|file| (file.path.clone(), file.why)).collect(),
            in_the_way: plan.err().map(ToString::to_string),
        }
    }

    fn json(&self) -> Value {
        let left_out = self.left_out.iter().map(|(path, why)| json!({ "path": path, "why": why }));
        json!({
            "model_type": self.model_type,
            "family": self.family,
            "parameters": self.parameters.map(|(total, _)| total),
            "active_parameters": self.parameters.map(|(_, active)| active),
            "tensors": self.tensors,
            "shards": self.shards,
            "bytes": self.bytes,
            "storage": self.storage,
            "bytes_by_dtype": self.dtypes,
            "tokenizer": self.tokenizer,
            "side_files": self.side_files,
            "left_out": left_out.collect::<Vec<_>>(),
            "in_the_way": self.in_the_way,
        })
    }

    fn text(&self) -> String {
        let unknown = || "unknown".to_owned();
        let rows = [
            ("model type", self.model_type.clone().unwrap_or_else(unknown)),
            ("family", self.family.clone().unwrap_or_else(|| "none that fits".to_owned())),
            ("parameters", self.parameters.map_or_else(unknown, parameters)),
            ("weights", self.weights()),
            ("stored as", format!("{}: {}", self.storage, self.dtypes())),
            ("tokenizer", listed(&self.tokenizer, "none found")),
            ("side files", listed(&self.side_files, "none")),
        ];
        let mut rows: Vec<Vec<String>> =
            rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
        for (path, why) in &self.left_out {
            rows.push(vec!["left out".to_owned(), format!("{path}: {why}")]);
        }
        let way = self.in_the_way.clone().unwrap_or_else(|| "nothing".to_owned());
        rows.push(vec!["in the way".to_owned(), way]);
        table(&rows)
    }

    fn weights(&self) -> String {
        let plural = if self.shards == 1 { "" } else { "s" };
        format!("{} in {} tensors, {} shard{plural}", bytes(self.bytes), self.tensors, self.shards)
    }

    fn dtypes(&self) -> String {
        let shown = self.dtypes.iter().map(|(name, size)| format!("{name} {}", bytes(*size)));
        shown.collect::<Vec<_>>().join(", ")
    }
}

fn parameters((total, active): (u64, u64)) -> String {
    if total == active {
        count(total)
    } else {
        format!("{}, of which a token uses {}", count(total), count(active))
    }
}

fn listed(names: &[String], none: &str) -> String {
    if names.is_empty() { none.to_owned() } else { names.join(", ") }
}
