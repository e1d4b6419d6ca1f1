//! The one-shot commands: check, status, schema. They read, ask and print; nothing that
//! runs is ever changed by one of them, but for `schema --apply`, which says so.

mod check;
mod reach;
mod status;

pub use check::{Containment, Finding, Mark, check, check_failed_json, watchdog};
pub use status::{render, render_json};

use crate::config::Config;
use crate::exit;

/// `locum status`: what to print, and the exit code.
pub fn status(config: &Config, json: bool) -> (String, u8) {
    let cluster = config.lease.as_ref().map(|_| reach::cluster(config));
    let local = reach::local(config);
    let reached = match &cluster {
        Some(cluster) => cluster.is_ok(),
        None => local.is_ok(),
    };
    let render = if json { render_json } else { render };
    let text = render(&config.service, cluster.as_ref().map(Result::as_ref), local.as_ref());
    (text, if reached { exit::OK } else { exit::UNAVAILABLE })
}

/// `locum schema`: what to print.
///
/// # Errors
/// The exit code, and why the schema cannot be printed or applied.
pub fn schema(config: &Config, apply: bool) -> Result<String, (u8, String)> {
    if apply { reach::apply_schema(config) } else { reach::schema_sql(config) }
}
