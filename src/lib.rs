//! Locum runs one command on exactly one of several hosts and keeps it running there.
//!
//! `docs/architecture.md` draws the house; each module says what it must never do.

#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod agent;
pub mod cli;
pub mod config;
pub mod core;
pub mod exit;
pub mod keeper;
pub mod operate;
pub mod status;
pub mod store;
pub mod sys;
pub mod tree;
pub mod wire;
pub mod worker;
