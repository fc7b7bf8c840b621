//! Core.
#![forbid(unsafe_code)]
