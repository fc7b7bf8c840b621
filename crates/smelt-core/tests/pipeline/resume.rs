//! Runs that are run again.
