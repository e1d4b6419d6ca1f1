//! What the one-shot commands reach for: the store, the agent of this host, the health
//! URL, the kernel. Each look takes a few seconds at most.

use super::check::{Containment, Finding, Mark};
use crate::agent::{control, health};
use crate::config::{Config, Lease};
use crate::core::Verdict;
use crate::status::{Cluster, Local};
use crate::store::{self, Prepared, Tried};
use crate::tree::Cgroup;
use crate::{exit, sys};
use std::time::Duration;

/// How long the store may take to answer a person.
const PATIENCE: Duration = Duration::from_secs(5);

/// Tries the store, the rights in it, and the health URL.
pub(super) fn connect(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(lease) = &config.lease {
        for (subject, tried) in store::survey(&config.service, lease, PATIENCE) {
            let (mark, text) = match tried {
                Tried::Fine(text) => (Mark::Ok, text),
                Tried::Doubtful(text) => (Mark::Warning, text),
                Tried::Unreachable(text) => (Mark::Error(exit::UNAVAILABLE), text),
                Tried::Denied(text) => (Mark::Error(exit::RIGHTS), text),
            };
            findings.push(Finding { mark, subject, text });
        }
    }
    if let Some(url) = &config.health.url {
        // A service that runs elsewhere or not yet is no mistake of the configuration.
        let (mark, text) = match health::probe_once(url, config.health.request_timeout) {
            Verdict::Healthy(detail) => (Mark::Ok, format!("{url}: {detail}")),
            Verdict::NotReady(detail) | Verdict::Failing(detail) => {
                (Mark::Warning, format!("{url}: {detail} (fine if the command does not run here now)"))
            }
        };
        findings.push(Finding { mark, subject: "health".into(), text });
    }
    findings
}

/// How the command's tree could be held on this host: tried, and undone at once.
pub(super) fn containment() -> Containment {
    match Cgroup::make() {
        Ok(cgroup) => {
            let _ = cgroup.remove();
            Containment::Cgroup
        }
        Err(_) if sys::is_first_process() => Containment::PidNamespace,
        Err(_) => Containment::Sweep,
    }
}

fn lease(config: &Config) -> Result<&Lease, (u8, String)> {
    config.lease.as_ref().ok_or_else(|| (exit::CONFIGURATION, "no store is configured: give --store URL".to_string()))
}

/// The SQL that makes schema and tables.
///
/// # Errors
/// The exit code, and why there is none.
pub(super) fn schema_sql(config: &Config) -> Result<String, (u8, String)> {
    store::schema(&lease(config)?.store).ok_or_else(|| {
        (exit::CONFIGURATION, "a file: store needs no schema; its file is made by \"locum run\"".to_string())
    })
}

/// Makes schema and tables, and the record if a service is named; says what was done.
///
/// # Errors
/// The exit code (69 not reached, 77 rights missing), and why.
pub(super) fn apply_schema(config: &Config) -> Result<String, (u8, String)> {
    schema_sql(config)?;
    let lease = lease(config)?;
    let service = Some(config.service.as_str()).filter(|service| !service.is_empty());
    match store::apply_schema(service, lease, 2 * PATIENCE) {
        Prepared::Ready { made } => {
            let record = match (service, made) {
                (Some(service), true) => format!("; made the record of service {service}"),
                (Some(service), false) => format!("; service {service} has its record"),
                (None, _) => String::new(),
            };
            Ok(format!("the tables are there, at {}{record}\n", lease.store))
        }
        Prepared::Later(why) => Err((exit::UNAVAILABLE, why)),
        Prepared::Denied(why) => Err((exit::RIGHTS, why)),
        Prepared::Unusable(why) => Err((exit::UNAVAILABLE, why)),
    }
}

/// The cluster, as the store shows it.
///
/// # Errors
/// Why the store does not answer.
pub(super) fn cluster(config: &Config) -> Result<Cluster, String> {
    let lease = lease(config).map_err(|(_, why)| why)?;
    store::overview(&lease.store, &config.service, PATIENCE)
}

/// This host, as its agent tells it.
///
/// # Errors
/// Why it does not answer.
pub(super) fn local(config: &Config) -> Result<Local, String> {
    match &config.lease {
        Some(lease) => control::ask(&config.service, &lease.node),
        None => control::ask(&config.service, "")
            .map_err(|why| format!("{why} (one that uses a store is found with -c FILE or --store)")),
    }
}
