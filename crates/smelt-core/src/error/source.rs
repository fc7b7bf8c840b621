//! What can go wrong with the files of a source.

use std::io;

/// Why bytes of a source can't be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
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
}
