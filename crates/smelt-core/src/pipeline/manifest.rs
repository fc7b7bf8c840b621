//! The manifest of a finished output: what it was made of, and the hash of everything in it.
//!
//! It is what remains of the journal: `smelt verify` finds any changed byte with it, and a second run
//! recognises its own result. It grows with the model, so it is written piece by piece. Its last key is a
//! hash of all before it.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::fingerprint::Fingerprint;
use super::output::{OutputDir, write_error};
use super::seal;
use super::sums::PartSums;
use crate::error::{Error, PipelineError, Result};
use crate::plan::{Plan, shard_header};

/// Name of the manifest in a finished output.
pub const MANIFEST: &str = "smelt-manifest.json";

/// What is wrong with a file whose last key is not the hash of what stands before.
pub(crate) const BROKEN: &str = "its bytes are not those of its own `digest`";

/// The version of the manifest.
pub const VERSION: u32 = 1;

/// What is known of a finished output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this format.
    pub version: u32,
    /// Version of smelt that wrote it.
    pub smelt: String,
    /// Digest of what it was made of, in hexadecimal digits like all hashes here.
    pub fingerprint: String,
    /// What it was made of.
    #[serde(flatten)]
    pub made_of: Fingerprint,
    /// The files of tensors by name.
    pub shards: IndexMap<String, ShardSum>,
    /// BLAKE3 of the bytes of each stored tensor.
    pub tensors: IndexMap<String, String>,
    /// BLAKE3 of each other file.
    pub files: IndexMap<String, String>,
}

/// What is known of a file of tensors besides them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardSum {
    /// Its size.
    pub bytes: u64,
    /// BLAKE3 of the bytes before the tensors.
    pub header: String,
}

impl Manifest {
    /// Reads the manifest of an output; `None` if it has none.
    ///
    /// # Errors
    /// [`PipelineError::Damaged`] if it is no manifest, [`PipelineError::Write`] if it can't be read.
    pub fn read(output: &Path) -> Result<Option<Self>> {
        let path = output.join(MANIFEST);
        match fs::read(&path) {
            Ok(bytes) => Self::parse(output, &bytes).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(write_error(&path)(error)),
        }
    }

    pub(super) fn parse(output: &Path, bytes: &[u8]) -> Result<Self> {
        let damaged = |why: String| {
            Error::Pipeline(PipelineError::Damaged {
                output: output.to_owned(),
                file: MANIFEST.to_owned(),
                why,
            })
        };
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
        if manifest.version != VERSION {
            return Err(damaged(format!("it has version {}, smelt reads {VERSION}", manifest.version)));
        }
        if !seal::is_whole(bytes) {
            return Err(damaged(BROKEN.to_owned()));
        }
        Ok(manifest)
    }
}

/// What a manifest is written from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sums<'a> {
    pub(super) plan: &'a Plan,
    pub(super) fingerprint: &'a Fingerprint,
    pub(super) tensors: &'a PartSums,
    /// Files that are not shards, with their hashes.
    pub(super) files: &'a [(String, blake3::Hash)],
}

impl Sums<'_> {
    /// Writes the manifest, with the keys in the order in which [`Manifest`] has them.
    pub(super) fn write(&self, output: &OutputDir<'_>) -> Result<()> {
        let (pending, hash) = (output.begin(MANIFEST, 0)?, blake3::Hasher::new());
        let mut text = Text { pending, at: 0, held: String::new(), hash };
        text.put(&self.head())?;
        let shards = self.plan.shards.iter().enumerate().map(|(index, shard)| {
            let header = blake3::hash(&shard_header(self.plan, index as u32)).to_hex().to_string();
            (shard.name.as_str(), json!({ "bytes": shard.bytes(), "header": header }).to_string())
        });
        text.object("shards", shards)?;
        let parts = self.plan.tasks.iter().flat_map(|task| &task.parts).zip(self.tensors.iter());
        text.object("tensors", parts.map(|(part, hash)| (part.name.as_str(), quoted(hash))))?;
        text.object("files", self.files.iter().map(|(name, hash)| (name.as_str(), quoted(hash))))?;
        text.flush()?;
        text.put(&seal::end(&text.hash.finalize()))?;
        text.flush()?;
        output.publish(text.pending)
    }

    fn head(&self) -> String {
        let Fingerprint { settings, source } = self.fingerprint;
        let head = json!({
            "version": VERSION,
            "smelt": env!("CARGO_PKG_VERSION"),
            "fingerprint": self.fingerprint.digest().to_hex().as_str(),
            "settings": settings,
            "source": source,
        });
        let text = serde_json::to_string_pretty(&head).expect("plain values serialize");
        text.strip_suffix("\n}").unwrap_or(&text).to_owned()
    }
}

fn quoted(hash: &blake3::Hash) -> String {
    format!("\"{}\"", hash.to_hex())
}

/// Bytes that are written at once.
const PIECE: usize = 64 << 10;

/// A text that is written piece by piece.
struct Text {
    pending: super::output::Pending,
    at: u64,
    held: String,
    hash: blake3::Hasher,
}

impl Text {
    fn put(&mut self, text: &str) -> Result<()> {
        self.held.push_str(text);
        if self.held.len() < PIECE { Ok(()) } else { self.flush() }
    }

    fn object<'a>(&mut self, key: &str, entries: impl Iterator<Item = (&'a str, String)>) -> Result<()> {
        self.put(&format!(",\n  \"{key}\": {{"))?;
        for (index, (name, value)) in entries.enumerate() {
            let mut line = String::new();
            let comma = if index == 0 { "" } else { "," };
            let _ = write!(line, "{comma}\n    {}: {value}", json!(name));
            self.put(&line)?;
        }
        self.put("\n  }")
    }

    fn flush(&mut self) -> Result<()> {
        self.pending.write_at(self.at, self.held.as_bytes())?;
        self.hash.update(self.held.as_bytes());
        self.at += self.held.len() as u64;
        self.held.clear();
        Ok(())
    }
}
