//! The process that decides: threads around the core.

pub mod control;
pub mod health;
pub mod logging;
