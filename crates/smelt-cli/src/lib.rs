//! Cli.
#![forbid(unsafe_code)]
