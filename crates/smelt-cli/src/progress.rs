//! Shows a run's events: a bar on a terminal, lines of JSON for a program.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use smelt_core::pipeline::{Event, Observer, Outlier, Weighed};
use smelt_kernels::Distortion;

use crate::printer::Printer;

/// A program does not need to hear of every block.
const EVERY: Duration = Duration::from_millis(250);

/// The bar of a run.
const WRITING: &str =
    "{bar:32} {percent:>3}%  {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";

/// The bar of measurements.
const MEASURING: &str = "{bar:32} {percent:>3}%  {pos} of {len} modules measured, {eta} left";

/// Follows one run.
#[derive(Debug)]
pub(crate) struct Progress<'a> {
    printer: &'a Printer,
    bar: ProgressBar,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    of: u64,
    done: u64,
    told: Instant,
    kept: Option<(usize, usize)>,
    errors: BTreeMap<usize, Distortion>,
    weighed: BTreeMap<usize, Weighed>,
    outliers: Vec<Outlier>,
    resumed: bool,
}

impl<'a> Progress<'a> {
    pub(crate) fn new(printer: &'a Printer) -> Self {
        let bar = if printer.is_json() { ProgressBar::hidden() } else { ProgressBar::new(0) };
        let state = State {
            of: 0,
            done: 0,
            told: Instant::now(),
            kept: None,
            errors: BTreeMap::new(),
            weighed: BTreeMap::new(),
            outliers: Vec::new(),
            resumed: false,
        };
        Self { printer, bar, state: Mutex::new(state) }
    }

    /// Takes the bar away.
    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }

    /// How many tensors of how many a run that failed has left to go on with.
    pub(crate) fn kept(&self) -> Option<(usize, usize)> {
        self.lock().kept
    }

    /// How far the tensors came to lie from the source, by their place in the plan.
    pub(crate) fn errors(&self) -> BTreeMap<usize, Distortion> {
        self.lock().errors.clone()
    }

    /// What the weights of each task amount to, by its place in the plan.
    pub(crate) fn weighed(&self) -> BTreeMap<usize, Weighed> {
        self.lock().weighed.clone()
    }

    /// The parameters whose weights can't be right.
    pub(crate) fn outliers(&self) -> Vec<Outlier> {
        self.lock().outliers.clone()
    }

    /// Whether an earlier run was taken up.
    pub(crate) fn resumed(&self) -> bool {
        self.lock().resumed
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while holding it")
    }

    fn begin(&self, style: &str, of: u64) {
        self.bar.set_style(ProgressStyle::with_template(style).expect("the template is fixed"));
        self.bar.set_length(of);
        self.lock().of = of;
    }

    fn advance(&self, step: u64, kind: &str) {
        self.bar.inc(step);
        let mut state = self.lock();
        state.done += step;
        if state.told.elapsed() >= EVERY || state.done == state.of {
            state.told = Instant::now();
            let unit = if kind == "progress" { "bytes" } else { "modules" };
            self.printer.event(kind, &json!({ unit: state.done, "of": state.of }));
        }
    }
}

impl Observer for Progress<'_> {
    fn on(&self, event: &Event) {
        match event {
            Event::Started { bytes } => {
                self.begin(WRITING, *bytes);
                self.printer.event("started", &json!({ "bytes": bytes }));
            }
            Event::Measuring { modules } => {
                self.begin(MEASURING, *modules);
                self.printer.event("measuring", &json!({ "modules": modules }));
            }
            Event::Measured { .. } => self.advance(1, "measured"),
            Event::Resumed { bytes, tensors, of } => {
                self.printer.event("resumed", &json!({ "bytes": bytes, "tensors": tensors, "of": of }));
                self.lock().resumed = true;
                self.advance(*bytes, "progress");
                // What was there already says nothing of the speed.
                self.bar.reset_eta();
            }
            Event::Kept { tensors, of } => {
                self.printer.event("kept", &json!({ "tensors": tensors, "of": of }));
                self.lock().kept = Some((*tensors, *of));
            }
            Event::Sampled { task, distortion } => {
                *self.lock().errors.entry(*task).or_default() += *distortion;
            }
            Event::Weighed { task, weighed } => {
                self.lock().weighed.insert(*task, *weighed);
            }
            Event::Outlier(outlier) => {
                self.printer.event("outlier", &json!(outlier));
                self.lock().outliers.push(outlier.clone());
            }
            Event::Block { bytes } => self.advance(*bytes, "progress"),
            Event::Finished { file, bytes } => {
                self.printer.event("file", &json!({ "name": file, "bytes": bytes }));
            }
            _ => {}
        }
    }
}
