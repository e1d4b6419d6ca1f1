//! What the core is told of the configuration.

use crate::config::{Command, Config};
use crate::core::{Names, Patience, Setup, Supervision};

/// The node's name; empty without a lease.
pub(super) fn node_name(config: &Config) -> &str {
    config.lease.as_ref().map_or("", |lease| &lease.node)
}

/// How this process calls itself in its log: `service@node`.
pub(super) fn name(config: &Config) -> String {
    match node_name(config) {
        "" => config.service.clone(),
        node => format!("{}@{node}", config.service),
    }
}

fn names(config: &Config) -> Names {
    let program = match &config.command {
        Command::Argv(words) => words.first().cloned().unwrap_or_default(),
        Command::Shell(_) => std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".into()),
    };
    let path = |path: &std::path::PathBuf| path.display().to_string();
    Names {
        program,
        directory: config.process.directory.as_ref().map(path).unwrap_or_default(),
        user: config.process.user.as_ref().map(|user| user.name.clone()).unwrap_or_default(),
    }
}

/// The core's setup.
pub(super) fn node(config: &Config) -> Setup {
    let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Setup {
        node: node_name(config).to_string(),
        host,
        version: env!("CARGO_PKG_VERSION").to_string(),
        names: names(config),
        supervision: Supervision {
            cycle: config.cycle,
            probed: config.health.url.is_some(),
            start_timeout: config.health.start_timeout,
            timeout: config.health.timeout,
            stop_timeout: config.process.stop_timeout,
            when: config.restart.when,
            delay: config.restart.delay,
            max_factor: config.restart.max_factor,
        },
        timing: config.lease.as_ref().map(|lease| lease.timing),
        patience: config.lease.as_ref().map_or(Patience::Standby, |lease| lease.patience),
        #[cfg(test)]
        flaw: None,
    }
}
