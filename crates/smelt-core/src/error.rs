//! What can go wrong, one variant for each way, with the names that a user needs to act.
//!
//! Messages start in lower case, quote values in backticks and, where there is one, say the next
//! step. The operating system's and the parser's own words come as [`std::error::Error::source`].

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::checkpoint::{DType, StorageProblem};
use crate::layout::Problem;
use crate::layout::family::FamilyError;
use crate::layout::graph::OpError;
use crate::pipeline::Change;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every error of this crate, in the order of its rooms.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // ---- source ----
    /// The directory of a source is missing or cannot be listed.
    #[error("cannot open the directory `{path}`")]
    Directory {
        /// The directory, as given or as found below the one given.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The path of a source names a file.
    #[error("`{path}` is not a directory; name the folder that holds `config.json`")]
    NotADirectory {
        /// The path as given.
        path: String,
    },
    /// A file name that cannot be written into an index or a configuration.
    #[error("the file name `{name}` in `{location}` is not valid UTF-8; rename or remove the file")]
    FileName {
        /// The source.
        location: String,
        /// The name, with replacement characters.
        name: String,
    },
    /// No regular file of this name.
    #[error("no file `{file}` in `{location}`")]
    NoSuchFile {
        /// The source.
        location: String,
        /// The path inside the source.
        file: String,
    },
    /// The operating system refused to open or read a file.
    #[error("cannot read `{file}` in `{location}`")]
    Read {
        /// The source.
        location: String,
        /// The path inside the source.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// A read that does not lie inside the file.
    #[error(
        "`{file}` in `{location}` has {size} bytes, {length} at {offset} were asked for; \
         was the file cut or replaced while it was read?"
    )]
    PastEnd {
        /// The source.
        location: String,
        /// The path inside the source.
        file: String,
        /// Bytes in the file.
        size: u64,
        /// Where the read began.
        offset: u64,
        /// Bytes asked for.
        length: u64,
    },
    /// A file that is read into memory as a whole is larger than any sane one.
    #[error("`{file}` has {size} bytes, more than the {limit} that such a file may have")]
    TooLarge {
        /// The path inside the source.
        file: String,
        /// Bytes in the file.
        size: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// A file that is not the manifest of a checkpoint.
    #[error("`{file}` is not the manifest of a checkpoint: an object with `config` and `files`")]
    Manifest {
        /// The file.
        file: String,
        /// Why.
        source: serde_json::Error,
    },

    // ---- checkpoint: the header of a shard, in the order of the checks ----
    /// A file too short for the length of its header.
    #[error("`{file}` has {size} bytes, too few for a safetensors file; download it again")]
    HeaderMissing {
        /// The shard.
        file: String,
        /// Bytes in the file.
        size: u64,
    },
    /// A text file of Git LFS that stands for the real one.
    #[error("`{file}` is a Git LFS pointer, not the weights; run `git lfs pull` in the checkpoint")]
    LfsPointer {
        /// The shard.
        file: String,
    },
    /// A header length outside what the format allows.
    #[error(
        "`{file}` gives its header {length} bytes, the format allows 2 to {limit}; is it a safetensors file?"
    )]
    HeaderLength {
        /// The shard.
        file: String,
        /// Bytes that the file claims.
        length: u64,
        /// Bytes that the format allows.
        limit: u64,
    },
    /// A header longer than the file.
    #[error(
        "`{file}` ends inside its header ({length} bytes of header, {size} in the file); \
         download it again"
    )]
    HeaderPastEnd {
        /// The shard.
        file: String,
        /// Bytes of header.
        length: u64,
        /// Bytes in the file.
        size: u64,
    },
    /// A header that is not UTF-8.
    #[error("the header of `{file}` is not valid UTF-8; download it again")]
    HeaderUtf8 {
        /// The shard.
        file: String,
        /// Where.
        source: std::str::Utf8Error,
    },
    /// A header that is not the JSON that the format asks for.
    #[error("the header of `{file}` is not that of a safetensors file; download it again")]
    HeaderJson {
        /// The shard.
        file: String,
        /// Where and why.
        source: serde_json::Error,
    },
    /// One name twice in a header.
    #[error("`{file}` names the tensor `{tensor}` twice")]
    DuplicateName {
        /// The shard.
        file: String,
        /// The name.
        tensor: String,
    },
    /// A dtype that this version does not know.
    #[error("the tensor `{tensor}` in `{file}` has the unknown dtype `{dtype}`; is there a newer smelt?")]
    UnknownDType {
        /// The shard.
        file: String,
        /// The tensor.
        tensor: String,
        /// The dtype as spelled in the file.
        dtype: String,
    },
    /// A shape whose elements or bits do not fit 64 bits.
    #[error(
        "the tensor `{tensor}` in `{file}` has a shape too large to count: {shape:?}; \
         download it again"
    )]
    ShapeOverflow {
        /// The shard.
        file: String,
        /// The tensor.
        tensor: String,
        /// The shape.
        shape: Box<[u64]>,
    },
    /// A tensor of 4-bit or 6-bit elements that ends inside a byte.
    #[error("the tensor `{tensor}` in `{file}` of dtype {dtype} does not fill whole bytes")]
    PartialByte {
        /// The shard.
        file: String,
        /// The tensor.
        tensor: String,
        /// The dtype.
        dtype: &'static str,
    },
    /// Offsets that do not hold what dtype and shape ask for.
    #[error(
        "the tensor `{tensor}` in `{file}` needs {needed} bytes for its dtype and shape, \
         its offsets are {begin} and {end}; download it again"
    )]
    TensorBytes {
        /// The shard.
        file: String,
        /// The tensor.
        tensor: String,
        /// Bytes by dtype and shape.
        needed: u64,
        /// First byte, from the start of the data.
        begin: u64,
        /// Byte after the last.
        end: u64,
    },
    /// Two tensors that share bytes.
    #[error("the tensors `{tensor}` and `{other}` in `{file}` overlap; download it again")]
    Overlap {
        /// The shard.
        file: String,
        /// The one that starts earlier.
        tensor: String,
        /// The one that starts inside it.
        other: String,
    },
    /// A tensor that ends behind the file.
    #[error(
        "`{file}` is cut short: the tensor `{tensor}` ends at byte {end}, the file at {size}; \
         download it again"
    )]
    Truncated {
        /// The shard.
        file: String,
        /// The tensor.
        tensor: String,
        /// Byte of the file after the tensor's last.
        end: u64,
        /// Bytes in the file.
        size: u64,
    },
    /// Bytes that no tensor owns and that are no alignment padding.
    #[error("`{file}` has {bytes} bytes at {offset} that belong to no tensor; download it again")]
    Hole {
        /// The shard.
        file: String,
        /// Where in the file the hole starts.
        offset: u64,
        /// How long it is.
        bytes: u64,
    },

    // ---- checkpoint: configuration and index ----
    /// A JSON file that is none.
    #[error("`{file}` is not valid JSON; download it again")]
    Json {
        /// The file.
        file: String,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A text file that is not UTF-8.
    #[error("`{file}` is not valid UTF-8")]
    Utf8 {
        /// The file.
        file: String,
        /// Where.
        source: std::str::Utf8Error,
    },
    /// A JSON file that holds something else than an object.
    #[error("`{file}` holds no JSON object; download it again")]
    NotAnObject {
        /// The file.
        file: String,
    },
    /// No `config.json`.
    #[error("no `config.json` in `{location}`; name the folder of a Hugging Face checkpoint")]
    NoConfig {
        /// The source.
        location: String,
    },
    /// An index without `weight_map`.
    #[error("`{file}` has no `weight_map`; remove the file if the shards need no index")]
    NoWeightMap {
        /// The index.
        file: String,
    },
    /// One name twice in the index.
    #[error("`{file}` names the tensor `{tensor}` twice")]
    IndexDuplicate {
        /// The index.
        file: String,
        /// The tensor.
        tensor: String,
    },

    // ---- checkpoint: index, shards and files together ----
    /// No shard at all.
    #[error("no safetensors file to read in `{location}`{}", other_weights(.other.as_deref()))]
    NoWeights {
        /// The source.
        location: String,
        /// A weight file in another format, if there is one.
        other: Option<String>,
    },
    /// The index names a file that is not there.
    #[error(
        "the index names the shard `{shard}`, which is not in `{location}`; \
         finish the download, or remove the index if it is of other shards"
    )]
    MissingShard {
        /// The source.
        location: String,
        /// The shard.
        shard: String,
    },
    /// The index names a tensor that its shard does not hold.
    #[error(
        "the index says that `{shard}` holds the tensor `{tensor}`, it does not; \
         index and shards are not of the same checkpoint"
    )]
    MissingTensor {
        /// The shard by the index.
        shard: String,
        /// The tensor.
        tensor: String,
    },
    /// A shard holds a tensor that the index does not name.
    #[error(
        "`{shard}` holds the tensor `{tensor}`, which the index does not name; \
         index and shards are not of the same checkpoint"
    )]
    UnindexedTensor {
        /// The shard.
        shard: String,
        /// The tensor.
        tensor: String,
    },
    /// The index names another shard than the one that holds the tensor.
    #[error(
        "the tensor `{tensor}` is in `{shard}`, the index says `{indexed}`; \
         index and shards are not of the same checkpoint"
    )]
    MisplacedTensor {
        /// The shard that holds it.
        shard: String,
        /// The shard by the index.
        indexed: String,
        /// The tensor.
        tensor: String,
    },
    /// One name in two shards.
    #[error("the tensor `{tensor}` is in two shards, `{first}` and `{second}`")]
    TensorTwice {
        /// The tensor.
        tensor: String,
        /// One shard.
        first: String,
        /// The other.
        second: String,
    },
    /// More tensors than an id can number.
    #[error("`{location}` has {count} tensors, more than can be numbered")]
    TooManyTensors {
        /// The source.
        location: String,
        /// How many.
        count: u64,
    },
    /// A read that does not lie inside its tensor.
    #[error("the tensor `{tensor}` in `{shard}` has {bytes} bytes, {length} at {offset} were asked for")]
    OutsideTensor {
        /// The shard.
        shard: String,
        /// The tensor.
        tensor: String,
        /// Bytes of the tensor.
        bytes: u64,
        /// Where the read began, from the tensor's first byte.
        offset: u64,
        /// Bytes asked for.
        length: u64,
    },

    // ---- checkpoint: how weights are stored ----
    /// Stored tensors that do not make up weights.
    #[error("the weights can't be read as they are stored:{problems}")]
    Storage {
        /// Everything that does not fit.
        problems: Listed<StorageProblem>,
    },
    /// A scale byte that is no number.
    #[error("`{tensor}` holds the byte 255, which is no scale; download it again")]
    NoScale {
        /// The tensor with the scales.
        tensor: String,
    },
    /// A group that is not there.
    #[error("`{tensor}` names group {group}, which `scales` does not have; download it again")]
    GroupOrder {
        /// The tensor with the order.
        tensor: String,
        /// The group.
        group: i32,
    },
    /// A stored shape that is not the tensor's.
    #[error("`{companion}` says {said:?}, but `{tensor}` has shape {shape:?}")]
    SaidShape {
        /// The tensor that holds the shape.
        companion: String,
        /// What it says.
        said: Vec<u64>,
        /// The weight.
        tensor: String,
        /// Its shape.
        shape: Vec<u64>,
    },

    // ---- layout ----
    /// A model type that no family covers.
    #[error(
        "smelt has no family for the model type `{model_type}`{}; {}; `--family` takes a family file of your \
         own (see CONTRIBUTING.md)",
        hint(.near), discovery(.libraries)
    )]
    ModelType {
        /// The `model_type` of config.json.
        model_type: String,
        /// Types of like names that are known.
        near: Vec<String>,
        /// Libraries that have a model of the type, with their versions.
        libraries: Vec<String>,
    },
    /// A model whose checkpoints are as they must be loaded.
    #[error("checkpoints of the type `{model_type}` are finished: {why}")]
    FinalForm {
        /// The `model_type` of config.json.
        model_type: String,
        /// Why nothing can be made of them.
        why: &'static str,
    },
    /// A config that does not say what model it is of.
    #[error(
        "config.json has no `model_type`, by which smelt finds the family; `--family` takes a family file \
         of your own (see CONTRIBUTING.md)"
    )]
    NoModelType,
    /// A family file that does not parse.
    #[error("the family file `{file}` is not valid")]
    Family {
        /// The file.
        file: String,
        /// What is wrong.
        source: FamilyError,
    },
    /// A family file that can't be read.
    #[error("cannot read the family file `{file}`")]
    FamilyFile {
        /// The file.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// A checkpoint that does not fit its family.
    #[error("the checkpoint does not fit the family `{family}`:{problems}")]
    Layout {
        /// The family.
        family: String,
        /// Everything that does not fit.
        problems: Problems,
    },
    /// A family that says nothing of the library that is to load the result.
    #[error(
        "the family `{family}` describes the model of {}, not of {target}; give `--target {}`",
        .known.join(" and "), .known.first().map_or("", String::as_str)
    )]
    Target {
        /// The family.
        family: String,
        /// The library asked for.
        target: String,
        /// Those that it describes.
        known: Vec<String>,
    },
    /// A config that lacks what the library that is to load the result can't do without.
    #[error(
        "{library} does not load a model of type `{model_type}` whose config.json has no {}{}; take the \
         config.json that the model was published with, or add {}",
        listed(.keys, "and"),
        .writer.as_deref().map_or_else(String::new, |writer| format!(" (transformers {writer} wrote this one)")),
        if .keys.len() == 1 { "the key" } else { "the keys" }
    )]
    ConfigKeys {
        /// The library with its version of which that is known.
        library: String,
        /// The model type.
        model_type: String,
        /// The keys that lack.
        keys: Vec<String>,
        /// The version of transformers that wrote the config, if it says so.
        writer: Option<String>,
    },
    /// A model type of which the library that is to load the result has no model.
    #[error("{library} has no model of type `{model_type}`{}", .other.as_deref().map_or_else(String::new, |other| {
        format!("; {other} has: give `--target {}`", other.split(' ').next().unwrap_or(other))
    }))]
    NotInLibrary {
        /// The library with its version of which that is known.
        library: String,
        /// The model type.
        model_type: String,
        /// Another library that has one, with its version.
        other: Option<String>,
    },
    /// A layout that was discovered on another checkpoint.
    #[error(
        "the layout was discovered on another checkpoint: config or headers differ; run `smelt discover` again"
    )]
    OtherCheckpoint,
    /// Parameters that a library would change again if it loaded them.
    #[error(
        "{library} changes its own parameters of a `{model_type}` when it loads them, so its layout can't be stored; \
         without `--discover` and `--layout` the family `{family}` writes what it loads"
    )]
    Reloaded {
        /// The library.
        library: String,
        /// The model type.
        model_type: String,
        /// The family that knows.
        family: String,
    },
    /// A checkpoint that the library does not load, or in a way that smelt can't follow.
    #[error("the layout that {library} makes of the checkpoint can't be used:{problems}")]
    Discovered {
        /// The library.
        library: String,
        /// Everything that stands against it.
        problems: Problems,
    },

    // ---- plan ----
    /// Weights that MLX quantized already.
    #[error(
        "the weights are {storage}; quantizing them again loses more: take the original checkpoint, or give \
         `--allow-requantize`"
    )]
    Requantize {
        /// How they are stored.
        storage: String,
    },
    /// A format that MLX does not store.
    #[error("{why}")]
    Format {
        /// Which there are.
        why: String,
    },
    /// An override that can't be understood.
    #[error("override `{text}`: {why}")]
    Override {
        /// As given.
        text: String,
        /// What is wrong.
        why: String,
    },
    /// A fall-back that `--strict` does not allow.
    #[error("{note}; without `--strict` this is allowed")]
    Strict {
        /// What would be done.
        note: String,
    },
    /// A dtype that can't be changed as asked.
    #[error("the dtype of `{tensor}` can't be changed: {error}")]
    Dtype {
        /// The parameter.
        tensor: String,
        /// Why.
        error: OpError,
    },
    /// A weight to quantize that is not a float.
    #[error(
        "`{tensor}` has dtype {dtype}; only BF16, F16 and F32 can be quantized: leave it with `--override '{tensor}=keep'`"
    )]
    NotFloat {
        /// The parameter.
        tensor: String,
        /// Its dtype.
        dtype: DType,
    },
    /// A parameter whose size does not fit 64 bits.
    #[error("`{tensor}` is too large to count")]
    TensorSize {
        /// The parameter.
        tensor: String,
    },
    /// A plan that was made for another checkpoint.
    #[error("the plan was made for another checkpoint: tensor `{tensor}` differs")]
    OtherSource {
        /// The first tensor that differs.
        tensor: String,
    },
    /// A budget in which the work does not fit.
    #[error("`{tensor}` needs at least {} of memory; give `--max-memory` as much", whole_mebibytes(*.needed))]
    Memory {
        /// The parameter with the largest smallest block.
        tensor: String,
        /// The budget that would do, in bytes.
        needed: u64,
    },

    /// A recipe file that can't be read.
    #[error("cannot read the recipe `{file}`")]
    RecipeFile {
        /// The file.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// A wish about bits that can't be met.
    #[error(transparent)]
    Bits(#[from] crate::plan::allocate::BitsError),
    /// A file of importance that can't be used.
    #[error(transparent)]
    Importance(#[from] crate::plan::ImportanceError),

    // ---- pipeline ----
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
    /// NaN or infinity in a weight.
    #[error("`{tensor}` holds NaN or infinity; `--allow-nonfinite` goes on all the same")]
    NonFinite {
        /// The parameter.
        tensor: String,
    },
    /// Weights that can't be right, in a run with `--strict`.
    #[error(
        "the weights of the source can't be right, or are misread:{outliers}\nlook at its scales; without \
         `--strict` this is a warning"
    )]
    Outliers {
        /// The parameters.
        outliers: Listed<crate::pipeline::Outlier>,
    },
    /// The user stopped the run.
    #[error("stopped before the end")]
    Interrupted,

    // ---- report ----
    /// A folder without a report.
    #[error("there is no report in `{path}`; name a folder that `smelt quantize` wrote")]
    NoReport {
        /// The folder.
        path: PathBuf,
        /// Why the file can't be read.
        source: io::Error,
    },
    /// A report that is none.
    #[error("`{path}` is no report of smelt")]
    Report {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

/// Differences between two runs; shown up to a dozen.
#[derive(Debug)]
pub struct Changes(pub Vec<Change>);

impl From<Vec<Change>> for Changes {
    fn from(changes: Vec<Change>) -> Self {
        Self(changes)
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        list(out, &self.0)
    }
}

/// Everything about a checkpoint that does not fit its family; shown up to a dozen.
pub type Problems = Listed<Problem>;

/// A list in a message, shown up to a dozen.
#[derive(Debug)]
pub struct Listed<T>(pub Vec<T>);

impl<T> From<Vec<T>> for Listed<T> {
    fn from(problems: Vec<T>) -> Self {
        Self(problems)
    }
}

/// More than this many problems are counted, not listed: one missing shard makes thousands.
const SHOWN: usize = 12;

impl<T: fmt::Display> fmt::Display for Listed<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        list(out, &self.0)
    }
}

/// A line for each, as far as they are shown.
fn list(out: &mut fmt::Formatter<'_>, all: &[impl fmt::Display]) -> fmt::Result {
    for one in all.iter().take(SHOWN) {
        write!(out, "\n  {one}")?;
    }
    match all.len().checked_sub(SHOWN) {
        None | Some(0) => Ok(()),
        Some(more) => write!(out, "\n  and {more} more"),
    }
}

/// `a`, `b` and `c`.
fn listed(all: &[String], and: &str) -> String {
    let quoted: Vec<String> = all.iter().map(|one| format!("`{one}`")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} {and} {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}

/// Which known names are like one that is not.
fn hint(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!(" (did you mean {}?)", listed(names, "or")) }
}

/// Who can say how a model of an unknown type is laid out.
fn discovery(libraries: &[String]) -> String {
    match libraries {
        [] => "neither library has a model of it in the versions that smelt knows; if yours has, `--discover` asks \
               it"
            .to_owned(),
        some => format!("{} has a model of it: `--discover` asks the one installed", some.join(" and ")),
    }
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

/// A size for people.
fn bytes(bytes: u64) -> String {
    crate::units::bytes(bytes)
}

/// A size for people to type: rounded up, so that it is enough.
fn whole_mebibytes(bytes: u64) -> String {
    crate::units::bytes(bytes.next_multiple_of(1 << 20))
}

/// The second half of [`Error::NoWeights`].
fn other_weights(other: Option<&str>) -> String {
    let unfinished = || "; finish the download".to_owned();
    other.map_or_else(unfinished, |file| {
        format!("; `{file}` is in a format that smelt does not read, get or make the safetensors")
    })
}
