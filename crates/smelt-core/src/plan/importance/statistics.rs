//! A file of importance, of whatever kind, as an index over its entries.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::bytes::Bytes;
use super::entry::Entry;
use super::{ImportanceError, gguf, legacy, npz, own};
use crate::error::Result;
use crate::source::{LocalSource, Source};

/// Who wrote a file of importance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// llama.cpp, GGUF.
    Gguf,
    /// llama.cpp, before GGUF.
    Legacy,
    /// oMLX.
    Npz,
    /// smelt, or whoever follows docs/bits.md.
    MeanSquares,
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Gguf => "imatrix of llama.cpp, GGUF",
            Self::Legacy => "imatrix of llama.cpp, .dat",
            Self::Npz => "imatrix of oMLX",
            Self::MeanSquares => "mean squares",
        })
    }
}

/// Statistics of module inputs in a file. What is held is where they lie.
#[derive(Debug)]
pub struct Statistics {
    pub(super) file: Bytes,
    pub(super) entries: Vec<Entry>,
    pub(super) by_name: HashMap<String, u32>,
    pub(super) kind: Kind,
    pub(super) digest: String,
}

impl Statistics {
    /// Opens a file; what it is decides its content, not its name.
    ///
    /// # Errors
    /// [`ImportanceError`]: no file, of no known kind, or malformed.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |source| ImportanceError::Open { file: path.display().to_string(), source };
        let found = fs::metadata(path).map_err(failed)?;
        let name = path.file_name().and_then(|name| name.to_str()).filter(|_| found.is_file());
        let name = name.ok_or_else(|| failed(std::io::ErrorKind::InvalidInput.into()))?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let source = LocalSource::open(folder.unwrap_or_else(|| Path::new(".")))?;
        Self::read(Arc::new(source), name, found.len())
    }

    /// Reads the index of a file of `size` bytes in a source.
    ///
    /// # Errors
    /// As [`Statistics::open`].
    pub fn read(source: Arc<dyn Source>, name: &str, size: u64) -> Result<Self> {
        let file = Bytes::new(source, name, size);
        let kind = kind(&file)?;
        let entries = match kind {
            Kind::Gguf => gguf::index(&file)?,
            Kind::Legacy => legacy::index(&file)?,
            Kind::Npz => npz::index(&file)?,
            Kind::MeanSquares => own::index(&file)?,
        };
        if entries.is_empty() {
            return Err(ImportanceError::Empty { file: name.to_owned() }.into());
        }
        let mut by_name = HashMap::with_capacity(entries.len());
        for (place, entry) in entries.iter().enumerate() {
            if by_name.insert(entry.name.clone(), place as u32).is_some() {
                let (file, entry) = (name.to_owned(), entry.name.clone());
                return Err(ImportanceError::Twice { file, entry }.into());
            }
        }
        let digest = file.digest()?.to_hex().to_string();
        Ok(Self { file, entries, by_name, kind, digest })
    }

    /// The names of its entries: of llama.cpp without `.weight`, else of modules.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| entry.name.as_str())
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What the file is.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

/// What a file is, by its first bytes.
fn kind(file: &Bytes) -> Result<Kind> {
    let mut head = [0; 9];
    let len = file.size.min(9) as usize;
    file.read(0, &mut head[..len])?;
    let header = u64::from_le_bytes([head[0], head[1], head[2], head[3], head[4], head[5], head[6], head[7]]);
    if head.starts_with(gguf::MAGIC) {
        Ok(Kind::Gguf)
    } else if head.starts_with(npz::MAGIC) || head.starts_with(b"PK\x05\x06") {
        Ok(Kind::Npz)
    } else if head[8] == b'{' && header <= file.size {
        Ok(Kind::MeanSquares)
    } else if legacy::looks_like(file) {
        Ok(Kind::Legacy)
    } else {
        Err(ImportanceError::Unknown { file: file.name.clone() }.into())
    }
}
