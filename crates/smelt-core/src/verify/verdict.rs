//! What the measurements of a comparison mean: what can't be, what stands out, and what is told.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Serialize;
use smelt_kernels::{Format, Mode};

use super::against::{AGAIN, Pair};
use super::finding::{Check, Findings};
use super::limits;
use super::measured::Measured;
use super::sums::Metrics;
use crate::layout::Role;

/// A tensor this many times worse than the median of its like is an outlier.
const OUTLIER: f64 = 4.0;

/// As many tensors of a kind make a median.
const PEERS: usize = 4;

/// How far a parameter is from its source.
#[derive(Clone, Debug, Serialize)]
pub struct Compared {
    /// The parameter.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Its format, or its dtype if it is not quantized.
    pub format: String,
    /// Its shape.
    pub shape: Vec<u64>,
    /// The error.
    pub metrics: Metrics,
    /// The relative RMSE of the worst row, and which it is (counted over all axes but the last).
    pub worst_row: Option<(f64, u64)>,
}

/// The parameters of one role in one format.
#[derive(Clone, Debug, Serialize)]
pub struct Kind {
    /// The role.
    pub role: Role,
    /// The format.
    pub format: String,
    /// How many.
    pub count: usize,
    /// The median of their relative RMSE.
    pub median: f64,
    /// The largest.
    pub worst: f64,
}

/// A whole comparison.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Comparison {
    /// Every parameter that could be compared, in the order of the family.
    pub tensors: Vec<Compared>,
    /// The same by role and format.
    pub kinds: Vec<Kind>,
}

/// What is told of every parameter.
pub(super) fn compared(pair: &Pair<'_>, measured: &Measured) -> Option<Compared> {
    (!measured.opaque).then(|| Compared {
        name: pair.parameter.name.to_owned(),
        role: pair.role,
        format: pair.parameter.format_name(pair.format),
        shape: pair.shape.clone(),
        metrics: measured.sums.metrics(),
        worst_row: measured.rows.worst.map(|(ratio, row)| (ratio.sqrt(), row)),
    })
}

/// Tells what can't be, of one parameter.
pub(super) fn tell(pair: &Pair<'_>, measured: &Measured, findings: &mut Findings) {
    let name = pair.parameter.name;
    let metrics = measured.sums.metrics();
    let beyond_rounding = metrics.relative_rmse.is_nan() || metrics.relative_rmse > ROUNDED;
    let far = format!("relative RMSE {:.3}, cosine {:.3}", metrics.relative_rmse, metrics.cosine);
    let mut error = |what: String| findings.error(Check::Source, name, what, AGAIN);
    match pair.format {
        None if measured.opaque && measured.differ => error("it is not the source's".to_owned()),
        // What MLX leaves open may differ in the last place.
        None if measured.differ && (pair.exact || beyond_rounding) => {
            error(format!("it is not quantized, and is not the source's: {far}"));
        }
        Some(format) if measured.rows.beyond > 0 => {
            let rows: u64 = pair.shape.iter().rev().skip(1).product();
            error(format!(
                "{} of {rows} rows, the first {}, are further from the source than {format} can be: {far}",
                measured.rows.beyond,
                place(&pair.shape, measured.rows.first),
            ));
        }
        _ => {}
    }
}

/// The relative error of two roundings to bf16.
const ROUNDED: f64 = 1.0 / 128.0;

/// The place of a row on each axis but the last.
fn place(shape: &[u64], row: u64) -> String {
    let (mut rest, mut places) = (row, Vec::new());
    for size in shape[..shape.len().saturating_sub(1)].iter().rev() {
        places.push((rest % (*size).max(1)).to_string());
        rest /= (*size).max(1);
    }
    places.reverse();
    format!("[{}]", places.join(", "))
}

/// Medians by role and format.
pub(super) fn kinds(tensors: &[Compared]) -> Vec<Kind> {
    let mut groups: BTreeMap<(Role, &str), Vec<f64>> = BTreeMap::new();
    for tensor in tensors {
        groups.entry((tensor.role, &tensor.format)).or_default().push(tensor.metrics.relative_rmse);
    }
    let kind = |((role, format), mut errors): ((Role, &str), Vec<f64>)| {
        errors.sort_by(f64::total_cmp);
        Kind {
            role,
            format: format.to_owned(),
            count: errors.len(),
            median: errors[errors.len() / 2],
            worst: errors[errors.len() - 1],
        }
    };
    groups.into_iter().map(kind).collect()
}

/// Tells of tensors that are much worse than their like.
pub(super) fn outliers(comparison: &Comparison, pairs: &[Pair<'_>], findings: &mut Findings) {
    let formats: HashMap<&str, Format> =
        pairs.iter().filter_map(|pair| Some((pair.parameter.name, pair.format?))).collect();
    let told: HashSet<String> = findings.of(Check::Source).map(str::to_owned).collect();
    for tensor in comparison.tensors.iter().filter(|tensor| !told.contains(&tensor.name)) {
        let Some(&format) = formats.get(tensor.name.as_str()) else { continue };
        let of_kind = |kind: &&Kind| kind.role == tensor.role && kind.format == tensor.format;
        let Some(kind) = comparison.kinds.iter().find(of_kind).filter(|kind| kind.count >= PEERS) else {
            continue;
        };
        let error = tensor.metrics.relative_rmse;
        if error > OUTLIER * kind.median && error > 2.0 * limits::usual(format) {
            let what = format!(
                "its relative RMSE is {error:.3}, {:.0} times the median of {} {} tensors in {format}",
                error / kind.median,
                kind.count,
                kind.role
            );
            let add = if format.mode() == Mode::Nvfp4 { Findings::warning } else { Findings::error };
            add(findings, Check::Source, &tensor.name, what, AGAIN);
        }
    }
}
