//! Taking an output directory: new, unfinished, finished or somebody else's.
//!
//! Only one run may have it: the journal is locked from the first byte to the last, by the operating
//! system, so that no lock is left by a run that was killed.

use std::path::Path;

use super::disk::{Disk, DiskFile, LocalDisk};
use super::finished;
use super::journal::{self, Contents, Header, JOURNAL, Journal, Record};
use super::manifest::MANIFEST;
use super::output::OutputDir;
use crate::error::{PipelineError, Result};
use crate::source::stays_inside;

/// What a directory turned out to be.
#[derive(Debug)]
pub(super) enum Claim {
    /// The run may write, from the beginning or behind these records.
    Open(Journal, Vec<Record>),
    /// Everything is there.
    Finished,
}

/// Takes the directory for a run with this header.
pub(super) fn claim(output: &OutputDir<'_>, header: &Header) -> Result<Claim> {
    if output.look(JOURNAL)?.is_none() {
        if output.look(MANIFEST)?.is_some() {
            finished::check(output, &header.fingerprint)?;
            return Ok(Claim::Finished);
        }
        refuse_others(output)?;
    }
    let (file, found) = lock(output)?;
    match found.filter(has_work) {
        Some(found) => go_on(output, header, file, &found),
        None => begin(output, header, file),
    }
}

/// Removes what an unfinished run has left in a directory, so that the next begins anew.
///
/// # Errors
/// [`PipelineError::Finished`] for a finished output, [`PipelineError::NotEmpty`] for what no run of
/// smelt left, [`PipelineError::Busy`] for a run that goes on, [`PipelineError::Write`] for what can't
/// be removed.
pub fn discard(path: &Path) -> Result<()> {
    if !LocalDisk.is_dir(path) {
        return Ok(());
    }
    let output = OutputDir::open(&LocalDisk, path)?;
    if output.look(JOURNAL)?.is_none() {
        return match output.look(MANIFEST)? {
            Some(_) => Err(PipelineError::Finished { path: path.to_owned() }.into()),
            None => refuse_others(&output),
        };
    }
    let (_file, found) = lock(&output)?;
    if let Some(found) = found {
        clear(&output, &found.header)?;
    } else {
        refuse_others(&output)?;
    }
    output.remove(&output.at(JOURNAL))?;
    output.settle()
}

/// Locks the journal and reads it.
fn lock(output: &OutputDir<'_>) -> Result<(Box<dyn DiskFile>, Option<Contents>)> {
    let file =
        output.claim(JOURNAL)?.ok_or_else(|| PipelineError::Busy { path: output.path().to_owned() })?;
    let found = journal::read(&*file, &output.at(JOURNAL))?;
    Ok((file, found))
}

/// A directory without a journal, or with one that never began, must be empty: what is in it is not
/// ours.
fn refuse_others(output: &OutputDir<'_>) -> Result<()> {
    if output.is_empty_but(JOURNAL)? {
        Ok(())
    } else {
        Err(PipelineError::NotEmpty { path: output.path().to_owned() }.into())
    }
}

/// Whether there is anything to go on with. Where there is not, other options are no reason to refuse.
fn has_work(found: &Contents) -> bool {
    found.records.iter().any(|record| matches!(record, Record::Done { .. }))
}

fn go_on(
    output: &OutputDir<'_>,
    header: &Header,
    file: Box<dyn DiskFile>,
    found: &Contents,
) -> Result<Claim> {
    let changes = header.fingerprint.changes_since(&found.header.fingerprint);
    if !changes.is_empty() {
        return Err(PipelineError::OtherRun {
            path: output.path().to_owned(),
            finished: false,
            changes: changes.into(),
        }
        .into());
    }
    let journal = Journal::resume(file, &output.at(JOURNAL), found)?;
    Ok(Claim::Open(journal, found.records.clone()))
}

fn begin(output: &OutputDir<'_>, header: &Header, file: Box<dyn DiskFile>) -> Result<Claim> {
    if let Some(earlier) = journal::read(&*file, &output.at(JOURNAL))? {
        clear(output, &earlier.header)?;
        // Before the journal that names them is overwritten.
        output.settle()?;
    }
    refuse_others(output)?;
    output.note(&output.at(JOURNAL));
    let journal = Journal::begin(file, &output.at(JOURNAL), header)?;
    output.settle()?;
    Ok(Claim::Open(journal, Vec::new()))
}

/// Removes the files of an earlier run.
fn clear(output: &OutputDir<'_>, header: &Header) -> Result<()> {
    let inside = header.writes.iter().filter(|name| stays_inside(name));
    inside.rev().try_for_each(|name| output.clear(name))
}
