//! Locum runs one command on exactly one of several hosts and keeps it running there.
//!
//! `docs/architecture.md` draws the house; each module says what it must never do.

#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod cli;
pub mod config;
pub mod core;
pub mod exit;
pub mod operate;
pub mod status;
pub mod store;
