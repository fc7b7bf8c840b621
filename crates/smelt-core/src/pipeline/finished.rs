//! A second run over a finished output: is it what this run would write, and is it still all there?
//!
//! Sizes, headers and all small files are compared, which takes a moment; the tensors' own bytes are
//! left to `smelt verify`.

use super::fingerprint::Fingerprint;
use super::manifest::{MANIFEST, Manifest, ShardSum};
use super::output::{OutputDir, write_error};
use crate::error::{Error, PipelineError, Result};

/// Bytes hashed at once.
const PIECE: usize = 256 << 10;

/// Checks a finished output against what it would be made of now.
pub(super) fn check(output: &OutputDir<'_>, now: &Fingerprint) -> Result<()> {
    let manifest = Manifest::parse(output.path(), &whole(output, MANIFEST)?)?;
    let changes = now.changes_since(&manifest.made_of);
    if !changes.is_empty() {
        return Err(PipelineError::OtherRun {
            path: output.path().to_owned(),
            finished: true,
            changes: changes.into(),
        }
        .into());
    }
    for (name, shard) in &manifest.shards {
        check_shard(output, name, shard)?;
    }
    for (name, hash) in &manifest.files {
        let size = size(output, name)?;
        same(output, name, hash, &hashed(output, name, size)?)?;
    }
    Ok(())
}

fn check_shard(output: &OutputDir<'_>, name: &str, shard: &ShardSum) -> Result<()> {
    let found = size(output, name)?;
    if found != shard.bytes {
        return Err(damaged(output, name, &format!("it has {found} bytes and had {}", shard.bytes)));
    }
    let mut length = [0; 8];
    let file = output.read(name)?;
    file.read_at(&mut length, 0).map_err(write_error(&output.at(name)))?;
    let header = u64::from_le_bytes(length).saturating_add(8);
    if header > found {
        return Err(damaged(output, name, "its header is another"));
    }
    same(output, name, &shard.header, &hashed(output, name, header)?)
}

fn same(output: &OutputDir<'_>, name: &str, was: &str, is: &blake3::Hash) -> Result<()> {
    if is.to_hex().as_str() == was { Ok(()) } else { Err(damaged(output, name, "its bytes have changed")) }
}

fn damaged(output: &OutputDir<'_>, file: &str, why: &str) -> Error {
    Error::Pipeline(PipelineError::Damaged {
        output: output.path().to_owned(),
        file: file.to_owned(),
        why: why.to_owned(),
    })
}

/// The size of a file that must be there.
fn size(output: &OutputDir<'_>, name: &str) -> Result<u64> {
    if !crate::source::stays_inside(name) {
        return Err(damaged(output, MANIFEST, "it names a file outside the directory"));
    }
    match output.look(name)? {
        Some(super::disk::Entry::File { len, .. }) => Ok(len),
        _ => Err(damaged(output, name, "it is missing")),
    }
}

/// The hash of the first bytes of a file.
fn hashed(output: &OutputDir<'_>, name: &str, size: u64) -> Result<blake3::Hash> {
    let (file, mut hash) = (output.read(name)?, blake3::Hasher::new());
    let (mut piece, mut at) = (vec![0; PIECE.min(size as usize)], 0);
    while at < size {
        let piece = &mut piece[..(size - at).min(PIECE as u64) as usize];
        file.read_at(piece, at).map_err(write_error(&output.at(name)))?;
        hash.update(piece);
        at += piece.len() as u64;
    }
    Ok(hash.finalize())
}

fn whole(output: &OutputDir<'_>, name: &str) -> Result<Vec<u8>> {
    let mut bytes = vec![0; size(output, name)? as usize];
    output.read(name)?.read_at(&mut bytes, 0).map_err(write_error(&output.at(name)))?;
    Ok(bytes)
}
