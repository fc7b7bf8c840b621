//! What a run tells while it goes on, for a progress bar or a log; no terminal code here.

use smelt_kernels::Distortion;

use super::outlier::Outlier;
use super::weigh::Weighed;

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// Modules are measured, to choose their formats.
    Measuring {
        /// How many.
        modules: u64,
    },
    /// A module is measured in all its formats.
    Measured {
        /// Its path.
        module: String,
    },
    /// Directory and side files are there; the tensors begin.
    Started {
        /// Bytes that the blocks will hold in all, before quantization.
        bytes: u64,
    },
    /// An earlier run is taken up: these tensors are there already.
    Resumed {
        /// Bytes that their blocks held before quantization.
        bytes: u64,
        /// How many they are.
        tensors: usize,
        /// How many there are in all.
        of: usize,
    },
    /// How far a sample of weights came to lie from the source: of a block, or of a whole task that an
    /// earlier run has finished.
    Sampled {
        /// Which task, by its place in the plan.
        task: usize,
        /// The sums of the sample.
        distortion: Distortion,
    },
    /// What the weights of a task amount to; told for all when the last is written, also for those of
    /// an earlier run.
    Weighed {
        /// Which task, by its place in the plan.
        task: usize,
        /// Its sums.
        weighed: Weighed,
    },
    /// The weights of a parameter can't be right.
    Outlier(Outlier),
    /// A block is written.
    Block {
        /// Its bytes before quantization.
        bytes: u64,
    },
    /// A file is complete, on the disk and under its name.
    Finished {
        /// Its name.
        file: String,
        /// Its size.
        bytes: u64,
    },
    /// The run failed; these tensors are kept, and the same run goes on with them.
    Kept {
        /// How many they are.
        tensors: usize,
        /// How many there are in all.
        of: usize,
    },
}

/// What is left for people beside the model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Papers {
    /// The model card, for [`CARD`](super::CARD).
    pub card: Option<String>,
    /// The report, for [`REPORT`](super::REPORT).
    pub report: Option<String>,
}

/// Receives events, from any of the workers.
pub trait Observer: Sync {
    /// Takes note of an event. It is called for every block: it must not wait.
    fn on(&self, event: &Event);

    /// What to say of the run beside the model. It is asked for once, when all tensors are written and
    /// the output is not finished yet, so that no finished output lacks it.
    fn papers(&self) -> Papers {
        Papers::default()
    }
}

/// Takes no note of anything.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl Observer for Silent {
    fn on(&self, _event: &Event) {}
}
