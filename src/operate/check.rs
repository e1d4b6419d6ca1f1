//! `locum check`: every effective value with its origin, the timing of the lease, and
//! what this host can promise.

use super::reach;
use crate::config::{Command, Config, Environment, Errors, Loaded};
use crate::core::{Budget, Timing};
use crate::exit;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One thing that was tried or looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How it turned out.
    pub mark: Mark,
    /// What was looked at, in a word or two.
    pub subject: String,
    /// What was found, and what to do about it.
    pub text: String,
}

/// How something turned out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// As it should be.
    Ok,
    /// It works, and somebody should look at it.
    Warning,
    /// It does not work; `check` ends with this code.
    Error(u8),
}

impl Mark {
    fn word(self) -> &'static str {
        match self {
            Mark::Ok => "ok",
            Mark::Warning => "warning",
            Mark::Error(_) => "error",
        }
    }
}

/// How the command's tree is held on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Containment {
    /// In a cgroup v2 of its own, which the kernel kills as a whole.
    Cgroup,
    /// Locum is the first process of a pid namespace, with which everything ends.
    PidNamespace,
    /// By process group and sweep.
    Sweep,
}

/// `locum check` of a configuration without mistakes: what to print, and the exit code.
pub fn check(loaded: &Loaded, environment: &Environment, connect: bool, as_json: bool) -> (String, u8) {
    let config = &loaded.config;
    let warning = |subject: &str, text: String| Finding { mark: Mark::Warning, subject: subject.into(), text };
    let mut findings: Vec<Finding> = loaded.warnings.iter().map(|w| warning("configuration", w.to_string())).collect();
    findings.extend(program(config, environment).map(|text| warning("command", text)));
    findings.extend(watchdog(config, environment).map(|text| warning("watchdog", text)));
    if connect {
        findings.extend(reach::connect(config));
    }
    let containment = Some(reach::containment());
    let code = findings.iter().find_map(|f| if let Mark::Error(code) = f.mark { Some(code) } else { None });
    let text = if as_json { json(loaded, &findings) } else { text(loaded, &findings, containment) };
    (text, code.unwrap_or(exit::OK))
}

/// `locum check --json` of a configuration with mistakes.
pub fn check_failed_json(errors: &Errors) -> String {
    let errors: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
    format!("{:#}\n", json!({ "valid": false, "errors": errors }))
}

fn text(loaded: &Loaded, findings: &[Finding], containment: Option<Containment>) -> String {
    let mut out = String::new();
    let width = |texts: &mut dyn Iterator<Item = &String>| texts.map(|t| t.chars().count()).max().unwrap_or(0);
    let keys = width(&mut loaded.values.iter().map(|s| &s.key));
    let values = width(&mut loaded.values.iter().map(|s| &s.value)).min(40);
    for shown in &loaded.values {
        out.push_str(&format!("{:keys$}  {:values$}  {}\n", shown.key, shown.value, shown.origin));
    }
    if let Some(lease) = &loaded.config.lease {
        out.push_str(&timeline(&lease.timing));
        out.push_str(&survival(containment));
    }
    if !findings.is_empty() {
        let subjects = width(&mut findings.iter().map(|f| &f.subject));
        out.push('\n');
        for f in findings {
            out.push_str(&format!("{:7}  {:subjects$}  {}\n", f.mark.word(), f.subject, f.text));
        }
    }
    let failed = findings.iter().any(|f| matches!(f.mark, Mark::Error(_)));
    out.push_str(if failed {
        "\nthe configuration is valid, but it does not work here yet\n"
    } else {
        "\nthe configuration is valid\n"
    });
    out
}

/// The budget of a lease as moments in seconds.
fn timeline(timing: &Timing) -> String {
    let Budget { unnoticed, stop, kill, gone, takeover_from, takeover_to } = timing.budget();
    let places = if timing.ttl < Duration::from_secs(5) { 2 } else { 1 };
    let step = 10f64.powi(places);
    let s = |x: f64| format!("{:.*}", places.unsigned_abs() as usize, x / step);
    let near = |d: Duration| s((d.as_secs_f64() * step).round());
    // What is promised is rounded to the side that holds.
    let at_least = |d: Duration| s((d.as_secs_f64() * step).floor());
    let at_most = |d: Duration| s((d.as_secs_f64() * step).ceil());
    format!(
        "\ntiming of the lease, from its last renewal\n\
         \x20 a store outage shorter than {} s goes unnoticed\n\
         \x20 at {} s the command is told to stop\n\
         \x20 at {} s what is left of it is killed\n\
         \x20 at {} s nothing of it is left\n\
         \x20 another host starts it {}–{} s after a crash\n\
         \x20 WatchdogSec= of its systemd unit may be {} s at most\n",
        at_least(unnoticed),
        near(stop),
        near(kill),
        at_most(gone),
        at_least(takeover_from),
        at_most(takeover_to),
        at_least(timing.longest_watchdog())
    )
}

/// Which failures of a host never lead to two commands.
fn survival(containment: Option<Containment>) -> String {
    let keeper = match containment {
        Some(Containment::Cgroup) => "yes, the command has a cgroup of its own",
        Some(Containment::PidNamespace) => "yes, the pid namespace ends with it",
        Some(Containment::Sweep) => "not for every process: no cgroup v2 can be made here",
        None => "yes, with a cgroup of its own or in a pid namespace",
    };
    let both = match containment {
        Some(Containment::PidNamespace) => "killed: yes; stopped: with a hardware watchdog",
        _ => "under a service manager, in a pid namespace, or with a hardware watchdog",
    };
    format!(
        "\nfailures survived without two commands at once\n\
         \x20 the store or the network fails    yes, by the times above\n\
         \x20 the agent is killed or stopped    yes\n\
         \x20 the keeper is killed or stopped   {keeper}\n\
         \x20 both at once                      {both}\n\
         \x20 the whole machine is frozen       only if what the command writes to checks LOCUM_TOKEN\n"
    )
}

/// Why the service manager's watchdog does not go with the lease.
pub fn watchdog(config: &Config, environment: &Environment) -> Option<String> {
    let micros: u64 = environment.get("WATCHDOG_USEC")?.to_str()?.parse().ok()?;
    let interval = Duration::from_micros(micros);
    let longest = config.lease.as_ref()?.timing.longest_watchdog();
    (interval > longest).then(|| {
        let (interval, longest) = (interval.as_secs_f64(), (longest.as_secs_f64() * 10.0).floor() / 10.0);
        format!("WATCHDOG_USEC is {interval} s, but the lease allows {longest} s; set WatchdogSec={longest}s, or a longer lease.ttl")
    })
}

/// Why the command's program could not be run here now.
fn program(config: &Config, environment: &Environment) -> Option<String> {
    let variable = |name: &str| environment.get(name).and_then(|v| v.to_str()).filter(|v| !v.is_empty());
    let program = match &config.command {
        Command::Argv(argv) => argv.first()?.as_str(),
        Command::Shell(_) => variable("SHELL").unwrap_or("/bin/sh"),
    };
    let here = config.process.directory.clone().unwrap_or_default();
    let candidates: Vec<PathBuf> = if program.contains('/') {
        vec![here.join(program)]
    } else {
        variable("PATH").unwrap_or("/usr/bin:/bin").split(':').map(|folder| Path::new(folder).join(program)).collect()
    };
    let files: Vec<_> =
        candidates.iter().filter_map(|p| std::fs::metadata(p).ok()).filter(std::fs::Metadata::is_file).collect();
    if files.is_empty() {
        return Some(format!("there is no program {program:?} on this host"));
    }
    let runs = files.iter().any(|m| m.permissions().mode() & 0o111 != 0);
    (!runs).then(|| format!("{program:?} is not executable"))
}

fn json(loaded: &Loaded, findings: &[Finding]) -> String {
    let values: Vec<Value> = loaded
        .values
        .iter()
        .map(|s| json!({ "key": s.key, "value": s.value, "origin": s.origin.to_string() }))
        .collect();
    let findings: Vec<Value> =
        findings.iter().map(|f| json!({ "mark": f.mark.word(), "subject": f.subject, "text": f.text })).collect();
    let timing = loaded.config.lease.as_ref().map(|lease| {
        let b = lease.timing.budget();
        let s = |d: Duration| (d.as_secs_f64() * 1000.0).round() / 1000.0;
        json!({
            "unnoticed": s(b.unnoticed), "stop": s(b.stop), "kill": s(b.kill), "gone": s(b.gone),
            "takeover_from": s(b.takeover_from), "takeover_to": s(b.takeover_to),
            "longest_watchdog": s(lease.timing.longest_watchdog()),
        })
    });
    format!("{:#}\n", json!({ "valid": true, "values": values, "timing": timing, "findings": findings }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeline_reads_as_a_story() {
        let timing = Timing::for_ttl(Duration::from_secs(20), Duration::from_secs(5));
        assert_eq!(
            timeline(&timing),
            "
timing of the lease, from its last renewal
  a store outage shorter than 5.1 s goes unnoticed
  at 14.2 s the command is told to stop
  at 19.2 s what is left of it is killed
  at 20.0 s nothing of it is left
  another host starts it 15.0–24.4 s after a crash
  WatchdogSec= of its systemd unit may be 10.1 s at most
"
        );
        let short = timeline(&Timing::for_ttl(Duration::from_millis(500), Duration::from_secs(5)));
        assert!(short.contains("at 0.50 s nothing of it is left"), "{short}");
    }

    #[test]
    fn lines_fit_a_screen() {
        for c in [None, Some(Containment::Cgroup), Some(Containment::PidNamespace), Some(Containment::Sweep)] {
            assert!(survival(c).lines().all(|l| l.chars().count() <= 110), "{}", survival(c));
        }
    }
}
