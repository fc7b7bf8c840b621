//! What smelt writes apart from a model: layers that predict further tokens, in the folder `mtp`.
//!
//! It is a model of its own kind, with config, index and files of tensors, so it is looked at as one: as if
//! its folder were all there is. Which parameters it must have no library says; what it holds is compared
//! with the source where that is at hand.

use std::sync::Arc;

use smelt_kernels::Format;

use super::finding::{Findings, Severity};
use super::model::Model;
use super::parameter::Parameter;
use super::{Check, quantization, unreadable};
use crate::Result;
use crate::checkpoint::{CONFIG, INDEX};
use crate::plan::MTP_FOLDER;
use crate::source::{FileEntry, Source};

/// A folder of a source, as a source.
#[derive(Debug)]
struct Folder {
    source: Arc<dyn Source>,
    location: String,
}

impl Source for Folder {
    fn location(&self) -> &str {
        &self.location
    }

    fn list(&self) -> Result<Vec<FileEntry>> {
        let inside = |file: FileEntry| {
            let path = file.path.strip_prefix(MTP_FOLDER)?.to_owned();
            Some(FileEntry { path, size: file.size })
        };
        Ok(self.source.list()?.into_iter().filter_map(inside).collect())
    }

    fn read_at(&self, path: &str, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.source.read_at(&format!("{MTP_FOLDER}{path}"), offset, buf)
    }
}

/// Looks at what lies apart from a model, if that is something with a config and an index.
pub(super) fn look(model: &Model, findings: &mut Findings) -> Result<Option<Model>> {
    let has = |name: &str| model.file(&format!("{MTP_FOLDER}{name}")).is_some();
    if !has(CONFIG) || !has(INDEX) {
        return Ok(None);
    }
    let location = format!("{}/{MTP_FOLDER}", model.source.location());
    let folder = Folder { source: Arc::clone(&model.source), location };
    let mut own = Findings::default();
    let apart = Model::look(Arc::new(folder), &mut own)?;
    unreadable(&apart, &mut own);
    take_over(own, findings);
    Ok(Some(apart))
}

/// Its parameters with their formats.
pub(super) fn parameters<'a>(
    apart: &'a Model,
    findings: &mut Findings,
) -> Vec<(Parameter<'a>, Option<Format>)> {
    let mut own = Findings::default();
    let parameters = apart.parameters();
    let formats = quantization::check(apart, &parameters, &|_| None, &mut own);
    take_over(own, findings);
    parameters.into_iter().zip(formats).collect()
}

/// Findings with the folder before the names.
fn take_over(own: Findings, findings: &mut Findings) {
    for finding in own.all {
        let kind: (Severity, Check) = (finding.severity, finding.check);
        for name in finding.names {
            findings.add(kind, format!("{MTP_FOLDER}{name}"), finding.what.clone(), finding.advice);
        }
    }
}
