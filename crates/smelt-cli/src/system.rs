//! What smelt asks the operating system: free memory, cores, the peak of its own memory.

use std::thread::available_parallelism;

/// Bytes of memory that other programs leave; 0 where the system does not tell.
pub(crate) fn available_memory() -> u64 {
    let Ok(mut system) = sysinfo::System::new() else {
        return 0;
    };
    system.refresh_memory();
    system.available_memory()
}

/// Cores that the process may use.
pub(crate) fn cores() -> usize {
    available_parallelism().map_or(1, usize::from)
}

/// The most memory that the process has had resident, in bytes, where the system tells.
pub(crate) fn peak_memory() -> Option<u64> {
    #[cfg(unix)]
    {
        use nix::sys::resource::{UsageWho, getrusage};
        let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
        // Linux and the BSDs count in KiB, macOS in bytes.
        let unit = if cfg!(target_vendor = "apple") { 1 } else { 1024 };
        u64::try_from(usage.max_rss()).ok().map(|size| size * unit)
    }
    #[cfg(not(unix))]
    None
}
