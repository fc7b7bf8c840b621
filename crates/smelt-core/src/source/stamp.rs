//! What tells that a file is still the one that was read: its size and the time of its last change.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::FileEntry;

/// A file at a moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Size in bytes.
    pub size: u64,
    /// Seconds from 1970 to the last change, with nine decimals; `None` where a source knows no
    /// times.
    pub modified: Option<String>,
}

/// A listed file with its stamp.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamped {
    /// Path relative to the source.
    pub path: String,
    /// Size and time.
    pub stamp: Stamp,
}

impl Stamped {
    /// The entry without its time.
    pub fn entry(&self) -> FileEntry {
        FileEntry { path: self.path.clone(), size: self.stamp.size }
    }
}

/// A time as [`Stamp::modified`] has it.
pub(super) fn decimal(time: SystemTime) -> String {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => format!("{}.{:09}", since.as_secs(), since.subsec_nanos()),
        Err(before) => {
            let before = before.duration();
            format!("-{}.{:09}", before.as_secs(), before.subsec_nanos())
        }
    }
}
