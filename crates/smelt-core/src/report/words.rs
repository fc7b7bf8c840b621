//! How a model was made, in words: for people who do not read options.

use smelt_kernels::Effort;

use super::Report;
use crate::plan::Method;
use crate::plan::rules::RuleSource;

/// A sentence for each thing that decided about the bits of the result.
pub(super) fn recipe(report: &Report) -> Vec<String> {
    let Some(format) = &report.format else {
        return vec![
            "No weight was quantized: names and layout are MLX's, the numbers are the source's.".into(),
        ];
    };
    let widths = match &report.target {
        Some(target) => format!(
            "Each module has the bits with which the whole is predicted to lose least at {target}; the errors were \
             measured on the weights."
        ),
        None => format!("Modules are stored as {}, unless the table says otherwise.", format.0),
    };
    let mut words = vec![widths, codes(report.method).to_owned()];
    words.extend(report.importance.as_ref().map(|coverage| {
        let (weighed, modules) = (coverage.weighed, coverage.modules);
        format!(
            "Errors count by the importance of their input channels in {weighed} of {modules} modules ({}).",
            coverage.kind
        )
    }));
    words.extend(rules(report));
    words
}

/// How codes were found.
fn codes(method: Method) -> &'static str {
    match method {
        Method::Rtn => "Codes are rounded between the extremes of each group, as MLX rounds.",
        Method::Search(Effort::Fast) => "Scales were searched for the least squared error, briefly.",
        Method::Search(Effort::Default) => "Scales were searched for the least squared error.",
        Method::Search(Effort::Best) => "Scales were searched for the least squared error, for long.",
    }
}

/// How many modules somebody decided about.
fn rules(report: &Report) -> Option<String> {
    let decided = |source: RuleSource| {
        let of = report.rules.iter().filter(|rule| rule.source == source);
        of.map(|rule| rule.modules).sum::<u64>()
    };
    let parts = [
        (RuleSource::Like, "the model that was copied"),
        (RuleSource::Recipe, "rules of a recipe"),
        (RuleSource::Override, "overrides"),
    ];
    let parts = parts.map(|(source, words)| (decided(source), words));
    let parts: Vec<String> = parts
        .into_iter()
        .filter(|(modules, _)| *modules > 0)
        .map(|(modules, words)| format!("{modules} by {words}"))
        .collect();
    (!parts.is_empty()).then(|| format!("Modules with a format of their own: {}.", parts.join(", ")))
}
