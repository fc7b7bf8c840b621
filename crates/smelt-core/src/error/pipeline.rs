//! What can stop a run: its output, its disk, a source that changes.

use std::io;
use std::path::PathBuf;

use super::{Changes, Listed};
use crate::pipeline::Outlier;
use crate::units::bytes;

/// Why a run can't begin, or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// An output directory with something in it.
    #[error("the output directory `{path}` is not empty; remove it or choose another with `-o`")]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// A directory in which another run is writing.
    #[error("another smelt is writing `{path}`; wait for it, or choose another output with `-o`")]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// An output of a run that was not this one.
    #[error("the output directory `{path}` holds {}:{changes}\n{}", other_run(*.finished).0, other_run(*.finished).1)]
    OtherRun {
        /// The directory.
        path: PathBuf,
        /// Whether that run was finished.
        finished: bool,
        /// What differs.
        changes: Changes,
    },
    /// A finished output that is to be begun anew.
    #[error("the output directory `{path}` holds a finished model; remove it or choose another with `-o`")]
    Finished {
        /// The directory.
        path: PathBuf,
    },
    /// A file of a finished output that is not as it was written.
    #[error(
        "`{file}` in the finished output `{output}` is damaged: {why}; remove the directory and run again"
    )]
    Damaged {
        /// The directory.
        output: PathBuf,
        /// The file.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// Files of the source that are not those any more from which the run began.
    #[error(
        "the source has changed while it was read:{changes}\nstart anew with `--no-resume` when nothing writes to it"
    )]
    SourceChanged {
        /// The files.
        changes: Changes,
    },
    /// An output directory that is a file.
    #[error("the output `{path}` is not a directory; choose another with `-o`")]
    OutputNotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// An output directory inside the source.
    #[error("the output directory `{path}` lies inside the source; choose another with `-o`")]
    InsideSource {
        /// The directory.
        path: PathBuf,
    },
    /// Too little room on the disk.
    #[error(
        "the output needs {}, but the disk of `{path}` has {} free", bytes(*.needed), bytes(*.free)
    )]
    DiskFull {
        /// The output directory.
        path: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// The operating system refused to write.
    #[error("cannot write `{path}`")]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Weights that can't be right, in a run with `--strict`.
    #[error(
        "the weights of the source can't be right, or are misread:{outliers}\nlook at its scales; without \
         `--strict` this is a warning"
    )]
    Outliers {
        /// The parameters.
        outliers: Listed<Outlier>,
    },
}

/// What an output is whose run was another, and what to do.
fn other_run(finished: bool) -> (&'static str, &'static str) {
    if finished {
        ("a finished model that was made differently", "remove it or choose another with `-o`")
    } else {
        (
            "an unfinished run that was made differently",
            "run it as before to go on, start anew with `--no-resume`, or choose another with `-o`",
        )
    }
}
