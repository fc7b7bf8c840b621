//! The model card: README.md with the front matter that model pages read.
//!
//! What is said of the source (its licence, its languages) is taken over from the source's own card
//! as text, line by line: the keys that are wanted are few and a model's licence must not change by
//! passing through a parser and a printer.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Report, TensorReport, words};
use crate::layout::Role;
use crate::units::bytes;

/// Keys of the source's front matter that hold for the result too.
const KEPT: [&str; 6] =
    ["license", "license_name", "license_link", "language", "extra_gated_prompt", "extra_gated_fields"];

/// Notes that a card holds; the report has all.
const NOTES: usize = 12;

/// Where a model comes from and what will run it.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The source's card, if it has one.
    pub card: Option<&'a str>,
    /// Its name among models, `owner/name` where that is known.
    pub base_model: &'a str,
    /// Whether the result sees or hears, and so needs mlx-vlm.
    pub multimodal: bool,
}

/// The text of the card.
pub fn text(report: &Report, origin: Origin<'_>) -> String {
    let mut text = front_matter(report, origin);
    let name = origin.base_model.rsplit('/').next().unwrap_or(origin.base_model);
    let _ = write!(text, "\n# {name}, {}\n\n", in_words(report));
    text.push_str(&summary(report, origin));
    text.push_str(&how_to_run(origin.multimodal));
    text.push_str(apart(report));
    text.push_str("\n## How it is stored\n\n");
    let _ = writeln!(text, "{}\n", words::recipe(report).join(" "));
    text.push_str(&widths(report));
    text.push_str(&made_with(report));
    text
}

fn front_matter(report: &Report, origin: Origin<'_>) -> String {
    let mut text = String::from("---\n");
    for line in origin.card.map(kept).unwrap_or_default() {
        let _ = writeln!(text, "{line}");
    }
    let task = if origin.multimodal { "image-text-to-text" } else { "text-generation" };
    let _ = writeln!(text, "base_model: {}", origin.base_model);
    if report.format.is_some() {
        text.push_str("base_model_relation: quantized\n");
    }
    let _ = writeln!(text, "library_name: mlx\npipeline_tag: {task}\ntags:\n- mlx");
    if let Some(width) = usual_width(report) {
        let _ = writeln!(text, "- {width:.0}-bit");
    }
    text.push_str("---\n");
    text
}

/// The wanted lines of a front matter: each key with what is indented or listed below it.
fn kept(card: &str) -> Vec<&str> {
    let mut lines = card.lines();
    if lines.next().map(str::trim_end) != Some("---") {
        return Vec::new();
    }
    let mut wanted = false;
    let mut found = Vec::new();
    for line in lines.take_while(|line| line.trim_end() != "---") {
        if !line.starts_with([' ', '-', '#']) && !line.trim().is_empty() {
            wanted = line.split_once(':').is_some_and(|(key, _)| KEPT.contains(&key.trim()));
        }
        if wanted {
            found.push(line);
        }
    }
    found
}

/// `4-bit for MLX`; where widths differ by the bits of a weight on average.
fn in_words(report: &Report) -> String {
    let mut widths: Vec<u8> = quantized(report).map(|tensor| tensor.bits).collect();
    widths.sort_unstable();
    widths.dedup();
    match widths[..] {
        [] => "for MLX".to_owned(),
        [bits] => format!("{bits}-bit for MLX"),
        _ => format!("{:.1}-bit for MLX", report.totals.bits_per_weight),
    }
}

/// Bits of a code on average: what people look for a model by, who say `4-bit` to 4.5 bits per weight.
fn usual_width(report: &Report) -> Option<f64> {
    let (mut bits, mut parameters) = (0.0, 0.0);
    for tensor in quantized(report) {
        let size = tensor.shape.iter().product::<u64>() as f64;
        bits += f64::from(tensor.bits) * size;
        parameters += size;
    }
    (parameters > 0.0).then(|| bits / parameters)
}

fn quantized(report: &Report) -> impl Iterator<Item = &TensorReport> {
    report.tensors.iter().filter(|tensor| tensor.format.is_some() && tensor.role != Role::Mtp)
}

fn summary(report: &Report, origin: Origin<'_>) -> String {
    let totals = &report.totals;
    let base = origin.base_model;
    // A name without an owner is no page that could be linked to.
    let base =
        if base.contains('/') { format!("[{base}](https://huggingface.co/{base})") } else { base.to_owned() };
    format!(
        "{base}, converted by smelt {version}: {bits:.2} bits per weight, {size} of weights.\n",
        version = report.smelt,
        bits = totals.bits_per_weight,
        size = bytes(totals.tensor_bytes),
    )
}

fn how_to_run(multimodal: bool) -> String {
    let library = if multimodal { "mlx-vlm" } else { "mlx-lm" };
    let command = if multimodal {
        "mlx_vlm.generate --model PATH --image picture.jpg --prompt \"What is this?\""
    } else {
        "mlx_lm.generate --model PATH --prompt \"Hello\""
    };
    format!(
        "\n## How to run it\n\n```bash\npip install {library}\n{command}\n```\n\nLM Studio and oMLX load the \
         folder as it is.\n"
    )
}

/// What lies beside the model, if anything does.
fn apart(report: &Report) -> &'static str {
    if report.tensors.iter().any(|tensor| tensor.role == Role::Mtp) {
        "\nThe folder `mtp` holds the layers that predict further tokens (MTP), for runtimes that draft with them; \
         mlx-lm and mlx-vlm do not load it with the model.\n"
    } else {
        ""
    }
}

/// A table of what each kind of weight takes.
fn widths(report: &Report) -> String {
    let mut text = String::from("| part | stored as | bits per weight | size |\n|---|---|--:|--:|\n");
    let mut roles: BTreeMap<Role, Vec<&TensorReport>> = BTreeMap::new();
    for tensor in &report.tensors {
        roles.entry(tensor.role).or_default().push(tensor);
    }
    for (role, tensors) in roles {
        let size: u64 = tensors.iter().map(|tensor| tensor.bytes).sum();
        let parameters: u64 = tensors.iter().map(|tensor| tensor.shape.iter().product::<u64>()).sum();
        let bits = 8.0 * size as f64 / parameters.max(1) as f64;
        let _ = writeln!(text, "| {role} | {} | {bits:.2} | {} |", formats(&tensors), bytes(size));
    }
    text
}

/// The formats of some tensors with how many have each, in the order of their names.
fn formats(tensors: &[&TensorReport]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for tensor in tensors {
        *counts.entry(&tensor.stored).or_default() += 1;
    }
    match counts.len() {
        1 => tensors[0].stored.clone(),
        _ => counts.iter().map(|(name, count)| format!("{count} × {name}")).collect::<Vec<_>>().join(", "),
    }
}

fn made_with(report: &Report) -> String {
    let mut text = format!("\n## How it was made\n\n```bash\n{}\n```\n", report.command.join(" "));
    let outliers = report.outliers.iter().map(ToString::to_string);
    let notes: Vec<String> = outliers.chain(report.notes.iter().cloned()).collect();
    if !notes.is_empty() {
        text.push_str("\nWhat is worth knowing:\n\n");
        for note in notes.iter().take(NOTES) {
            let _ = writeln!(text, "- {note}");
        }
        if let Some(more) = notes.len().checked_sub(NOTES).filter(|&more| more > 0) {
            let _ = writeln!(text, "- and {more} more, in smelt-report.json");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::kept;

    #[test]
    fn what_holds_for_the_result_is_taken_over_as_it_is() {
        let card = "---\nlicense: other\nlicense_name: some\ntags:\n- chat\nlanguage:\n- en\n- de\n\
                    base_model: a/b\n---\nlicense: not this\n";
        assert_eq!(kept(card), ["license: other", "license_name: some", "language:", "- en", "- de"]);
        assert!(kept("# A card without front matter\nlicense: x\n").is_empty());
        assert!(kept("").is_empty());
    }
}
