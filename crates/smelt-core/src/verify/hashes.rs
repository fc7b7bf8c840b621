//! The hashes that were written with a model: `smelt-manifest.json`.
//!
//! ```text
//! shards   file -> bytes, BLAKE3 of what lies before the tensors
//! tensors  stored tensor -> BLAKE3 of its bytes
//! files    config, index, side files -> BLAKE3 of the whole
//! ```
//!
//! Together they cover every byte of the model, the file itself by the hash at its end. The report, which
//! is another in each run, has such a hash too and covers the model card. So one bit that a disk or a download
//! turned is found, wherever it is.

use blake3::Hasher;

use super::finding::{Check, Findings};
use super::model::{Model, in_full};
use crate::Result;
use crate::checkpoint::Shard;
use crate::pipeline::manifest::BROKEN;
use crate::pipeline::{CARD, MANIFEST, MANIFEST_VERSION, Manifest, REPORT, seal};
use crate::plan::MTP_FOLDER;

/// Files are hashed in pieces of this size.
const PIECE: usize = 1 << 20;

const AGAIN: &str = "download or write the model again: what is there is not what was written";

/// What the file says.
#[derive(Debug)]
pub(super) struct Hashes(Manifest);

impl Hashes {
    /// Reads them, if the model has them.
    pub(super) fn read(model: &Model, findings: &mut Findings) -> Option<Self> {
        let bytes = model.read_file(MANIFEST)?;
        match bytes.map_err(|error| in_full(&error)).and_then(|bytes| parse(&bytes)) {
            Err(why) => {
                findings.error(Check::Hashes, MANIFEST, format!("it can't be relied on: {why}"), AGAIN);
            }
            Ok(manifest) if manifest.version != MANIFEST_VERSION => {
                let what =
                    format!("it has version {}, this smelt knows {MANIFEST_VERSION}", manifest.version);
                findings.warning(Check::Hashes, MANIFEST, what, "take a newer smelt; bytes are not compared");
            }
            Ok(manifest) => return Some(Self(manifest)),
        }
        None
    }

    /// The hash of a stored tensor.
    pub(super) fn tensor(&self, name: &str) -> Option<&str> {
        self.0.tensors.get(name).map(String::as_str)
    }

    /// Compares everything but the bytes of the tensors.
    pub(super) fn check(&self, model: &Model, apart: Option<&Model>, findings: &mut Findings) -> Result<()> {
        self.shards(model, apart, findings)?;
        self.names(model, apart, findings);
        for (path, expected) in &self.0.files {
            match model.file(path) {
                None => findings.error(Check::Hashes, path, "the file is missing", AGAIN),
                Some(file) if hash(model, path, file.size)? != *expected => {
                    let advice = "if you changed it yourself, all is well; else download or write it again";
                    findings.error(Check::Hashes, path, "the file is not as it was written", advice);
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn shards(&self, model: &Model, apart: Option<&Model>, findings: &mut Findings) -> Result<()> {
        for (path, expected) in &self.0.shards {
            let Some(file) = model.file(path) else {
                findings.error(Check::Hashes, path, "the file is missing", AGAIN);
                continue;
            };
            if file.size != expected.bytes {
                let what = format!("the file has {} bytes, {} were written", file.size, expected.bytes);
                findings.error(Check::Hashes, path, what, AGAIN);
            }
            let header = match path.strip_prefix(MTP_FOLDER) {
                Some(inside) => apart.and_then(|apart| apart.header_bytes(inside)),
                None => model.header_bytes(path),
            };
            if let Some(header) = header
                && hash(model, path, header)? != expected.header
            {
                findings.error(Check::Hashes, path, "the header is not as it was written", AGAIN);
            }
        }
        let inside = |shard: &Shard| format!("{MTP_FOLDER}{}", shard.path);
        let apart = apart.into_iter().flat_map(|apart| apart.shards.iter().map(inside));
        let paths = model.shards.iter().map(|shard| shard.path.clone()).chain(apart);
        for path in paths.filter(|path| !self.0.shards.contains_key(path)) {
            let what = "the file is not of the run that wrote the model";
            findings.error(Check::Hashes, &path, what, "remove it");
        }
        Ok(())
    }

    fn names(&self, model: &Model, apart: Option<&Model>, findings: &mut Findings) {
        let sides = || [model].into_iter().chain(apart);
        if sides().all(|side| side.complete) {
            let is_there = |name: &str| sides().any(|side| side.find(name).is_some());
            for name in self.0.tensors.keys().filter(|name| !is_there(name)) {
                findings.error(Check::Hashes, name, "the tensor was written, and is not there", AGAIN);
            }
        }
        let tensors = sides().flat_map(|side| &side.tensors);
        for tensor in tensors.filter(|tensor| !self.0.tensors.contains_key(&*tensor.name)) {
            findings.error(Check::Hashes, &tensor.name, "the tensor is there, and was not written", AGAIN);
        }
    }
}

fn parse(bytes: &[u8]) -> std::result::Result<Manifest, String> {
    let manifest: Manifest = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if manifest.version != MANIFEST_VERSION {
        return Ok(manifest);
    }
    if !seal::is_whole(bytes) {
        return Err(BROKEN.to_owned());
    }
    if manifest.fingerprint != manifest.made_of.digest().to_hex().as_str() {
        return Err("its `fingerprint` is not that of its `settings` and `source`".to_owned());
    }
    Ok(manifest)
}

/// What a report says of the card.
#[derive(serde::Deserialize)]
struct Vouched {
    card: Option<String>,
}

/// Checks report and card of a model that smelt wrote.
pub(super) fn check_papers(model: &Model, findings: &mut Findings) -> Result<()> {
    let Some(bytes) = model.read_file(REPORT) else { return Ok(()) };
    let whole = bytes.ok().filter(|bytes| seal::is_whole(bytes));
    let Some(said) = whole.and_then(|bytes| serde_json::from_slice::<Vouched>(&bytes).ok()) else {
        let what = format!("it can't be relied on: {BROKEN}");
        let advice = "download it again, or remove it: no loader needs it";
        findings.error(Check::Hashes, REPORT, what, advice);
        return Ok(());
    };
    let Some(expected) = said.card else { return Ok(()) };
    let found = model.file(CARD).map(|file| hash(model, CARD, file.size)).transpose()?;
    if found.is_none_or(|found| found != expected) {
        let what = "the model card is not the one that was written with the model";
        findings.warning(Check::Hashes, CARD, what, "if you changed it yourself, all is well");
    }
    Ok(())
}

/// The hash of the first `size` bytes of a file.
fn hash(model: &Model, path: &str, size: u64) -> Result<String> {
    let (mut hasher, mut piece, mut at) = (Hasher::new(), vec![0; PIECE], 0);
    while at < size {
        let piece = &mut piece[..(size - at).min(PIECE as u64) as usize];
        model.source.read_at(path, at, piece)?;
        hasher.update(piece);
        at += piece.len() as u64;
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// Hashes one tensor piece by piece, if there is something to compare it with.
#[derive(Debug)]
pub(super) struct Checked<'a> {
    name: &'a str,
    expected: Option<&'a str>,
    hasher: Hasher,
}

impl<'a> Checked<'a> {
    pub(super) fn new(name: &'a str, hashes: Option<&'a Hashes>) -> Self {
        let expected = hashes.and_then(|hashes| hashes.tensor(name));
        Self { name, expected, hasher: Hasher::new() }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        if self.expected.is_some() {
            self.hasher.update(bytes);
        }
    }

    pub(super) fn finish(&self, findings: &mut Findings) {
        if self.expected.is_some_and(|expected| *self.hasher.finalize().to_hex() != *expected) {
            findings.error(Check::Hashes, self.name, "its bytes are not those that were written", AGAIN);
        }
    }
}
