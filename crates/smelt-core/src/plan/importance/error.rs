//! What can be wrong with a file of importance.

use std::io;

use zip::result::ZipError;

/// Why a file of importance can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportanceError {
    /// A file that is not there or can't be opened.
    #[error("cannot open the importance file `{file}`")]
    Open {
        /// The file.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// A file of none of the kinds that are read.
    #[error(
        "`{file}` is no importance file; smelt reads the imatrix of llama.cpp (GGUF and .dat), the .npz of oMLX \
         and safetensors of mean squares (docs/bits.md)"
    )]
    Unknown {
        /// The file.
        file: String,
    },
    /// GGUF of a version that is not read.
    #[error("`{file}` is GGUF of version {version}; smelt reads 2 and 3: convert it with llama-imatrix")]
    Version {
        /// The file.
        file: String,
        /// Its version.
        version: u32,
    },
    /// GGUF of something else.
    #[error(
        "`{file}` is a GGUF file of type `{kind}`, not `imatrix`; name the file that llama-imatrix wrote"
    )]
    NotImatrix {
        /// The file.
        file: String,
        /// What it is.
        kind: String,
    },
    /// A file that ends too early.
    #[error("`{file}` ends inside {what} at byte {at}; download or copy it again")]
    Truncated {
        /// The file.
        file: String,
        /// What is cut.
        what: &'static str,
        /// Where it begins.
        at: u64,
    },
    /// A number that can't be meant.
    #[error("`{file}` gives {what} as {found}, which it can't be; download or copy it again")]
    Implausible {
        /// The file.
        file: String,
        /// What the number says.
        what: &'static str,
        /// The number.
        found: String,
    },
    /// A name that is not text.
    #[error("`{file}` has a name that is not valid UTF-8 at byte {at}; download or copy it again")]
    Name {
        /// The file.
        file: String,
        /// Where it begins.
        at: u64,
    },
    /// One name twice.
    #[error("`{file}` has the entry `{entry}` twice; collect the importance again")]
    Twice {
        /// The file.
        file: String,
        /// The entry.
        entry: String,
    },
    /// No entry at all.
    #[error("`{file}` has no importance in it: no `in_sum2` and no mean squares; collect it again")]
    Empty {
        /// The file.
        file: String,
    },
    /// Numbers of a type that importance has not.
    #[error("`{entry}` in `{file}` is of type {found}, not {wanted}; collect the importance again")]
    Dtype {
        /// The file.
        file: String,
        /// The entry.
        entry: String,
        /// Its type.
        found: String,
        /// What it must be.
        wanted: &'static str,
    },
    /// A shape that importance has not.
    #[error("`{entry}` in `{file}` has shape {shape:?}; channels, or experts and channels, are needed")]
    Shape {
        /// The file.
        file: String,
        /// The entry.
        entry: String,
        /// Its shape.
        shape: Vec<u64>,
    },
    /// Sums without counts.
    #[error("`{entry}` in `{file}` has sums but no counts; collect the importance again")]
    NoCounts {
        /// The file.
        file: String,
        /// The entry.
        entry: String,
    },
    /// Counts of other experts than the sums.
    #[error(
        "`{entry}` in `{file}` has {counts} counts for {rows} rows of sums; collect the importance again"
    )]
    Counts {
        /// The file.
        file: String,
        /// The entry.
        entry: String,
        /// How many counts there are.
        counts: u64,
        /// How many rows.
        rows: u64,
    },
    /// A number that is no mean square and no count.
    #[error(
        "`{entry}` in `{file}` holds {value}; mean squares and counts are finite and not negative: collect the \
         importance again"
    )]
    Value {
        /// The file.
        file: String,
        /// The entry.
        entry: String,
        /// The number.
        value: f64,
    },
    /// A directory of a zip file that can't be read.
    #[error("`{file}` is no sound zip file; download or copy it again")]
    Zip {
        /// The file.
        file: String,
        /// Why.
        source: Box<ZipError>,
    },
    /// An entry that is packed in a way that numpy does not use.
    #[error("`{entry}` in `{file}` is packed by `{method}`; numpy's savez and savez_compressed are read")]
    Packed {
        /// The file.
        file: String,
        /// The entry.
        entry: String,
        /// How it is packed.
        method: String,
    },
    /// An entry that can't be unpacked.
    #[error("`{entry}` in `{file}` can't be unpacked; download or copy it again")]
    Unpack {
        /// The file.
        file: String,
        /// The entry.
        entry: String,
        /// Why.
        source: io::Error,
    },
    /// An entry that is no array of numpy.
    #[error("`{entry}` in `{file}` is no array as numpy writes it: {why}; collect the importance again")]
    Array {
        /// The file.
        file: String,
        /// The entry.
        entry: String,
        /// What is wrong.
        why: &'static str,
    },
    /// Importance of another model, by its sizes.
    #[error(
        "`{entry}` in `{file}` is for {} × {} channels, but `{module}` has shape {shape:?}; it is of another model", .found.0, .found.1
    )]
    OtherModel {
        /// The file.
        file: String,
        /// The entry.
        entry: Box<str>,
        /// Entries of their own (experts, 1 for all), and channels of each.
        found: (u64, u64),
        /// The module that it would be for.
        module: Box<str>,
        /// The module's shape.
        shape: Box<[u64]>,
    },
    /// Importance of another model, by its names.
    #[error(
        "none of the {entries} entries of `{file}`, such as `{entry}`, is for one of this model's {modules} modules, \
         such as `{module}`; it is of another model"
    )]
    NothingMatches {
        /// The file.
        file: String,
        /// How many entries it has.
        entries: usize,
        /// One of them.
        entry: String,
        /// How many modules the model has.
        modules: usize,
        /// One of them.
        module: String,
    },
    /// Importance for a method that has no use for it.
    #[error("importance decides what the search looks for; `rtn` only rounds: leave out one of the two")]
    Method,
    /// A run with other importance than its plan was made for.
    #[error("the plan was made for another importance than the run is given; make the plan anew")]
    OtherPlan,
}
