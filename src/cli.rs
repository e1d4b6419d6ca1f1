//! Arguments become an order. Nothing is done here but to find out what is wanted.

use crate::config::{self, Environment, Flag, Literal, Loaded, Need, Patience, Sources};
use crate::{agent, exit, keeper, operate};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, Parser, Subcommand};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  locum run --health http://127.0.0.1:8080/ -- python3 -m http.server 8080
  locum check -c shop.toml
  locum run -c shop.toml";

const RUN_EXAMPLES: &str = "\
Example, on each of two hosts; one runs the command, the other stands by:
  locum run --service shop --store postgres://locum@db1/ops -- /usr/bin/shop

Any key is a flag (--set), a variable (LOCUM_LEASE_TTL) or a line of FILE:
\"locum help configuration\". Exit codes: \"locum help exit-codes\".";

#[derive(Parser)]
#[command(
    name = "locum",
    version,
    about = "Runs one command on exactly one of several hosts and keeps it running there",
    after_help = EXAMPLES,
    disable_help_subcommand = true,
    arg_required_else_help = true,
    max_term_width = 80
)]
struct Line {
    #[command(subcommand)]
    order: Order,
}

#[derive(Subcommand)]
enum Order {
    /// Run a command on this host, while it holds the lease
    #[command(after_help = RUN_EXAMPLES)]
    Run(Run),
    /// Validate a configuration; show every value, its origin and the timing
    Check(Check),
    /// Show who holds the lease, every node, and this host
    Status(Status),
    /// Print the SQL that the store needs, or apply it
    Schema(Schema),
    /// Show help on a subcommand, on "configuration" or on "exit-codes"
    Help(Help),
    /// Decide for a keeper, which starts this by itself
    #[command(hide = true)]
    Agent {
        /// Descriptors 5 and 6 are those of the command's cgroup
        #[arg(long)]
        cgroup: bool,
    },
}

#[derive(Args)]
struct Run {
    #[command(flatten)]
    given: Given,
    #[command(flatten)]
    more: More,
    /// If somebody else holds the lease, end at once (75)
    #[arg(long = "try", conflicts_with = "wait")]
    once: bool,
    /// If somebody else still holds it after D, end (75)
    #[arg(long, value_name = "D", value_parser = wait)]
    wait: Option<Duration>,
    /// What to run, and its arguments
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Args)]
struct Check {
    #[command(flatten)]
    given: Given,
    #[command(flatten)]
    more: More,
    /// Try the store, the rights and the health URL as well
    #[arg(long)]
    connect: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// What to run, and its arguments
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Args)]
struct Status {
    #[command(flatten)]
    given: Given,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Schema {
    #[command(flatten)]
    given: Given,
    /// Apply it, with the rights of the configured user
    #[arg(long)]
    apply: bool,
}

#[derive(Args)]
struct Help {
    /// A subcommand, "configuration" or "exit-codes"
    topic: Option<String>,
}

/// What every subcommand takes.
#[derive(Args)]
struct Given {
    /// The configuration (TOML)
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    file: Option<PathBuf>,
    /// The name that all hosts share
    #[arg(long, value_name = "S")]
    service: Option<String>,
    /// Where the lease lives: postgres://u@h1,h2/db, file:/x
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// This host's name in the service
    #[arg(long, value_name = "N")]
    node: Option<String>,
    /// Any other key, like log.level=debug; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = pair)]
    set: Vec<(String, String)>,
}

/// What `run` and `check` take beyond that.
#[derive(Args)]
struct More {
    /// Asked in each cycle; 2xx is healthy
    #[arg(long, value_name = "URL")]
    health: Option<String>,
    /// How long the lease lasts without a renewal, like 20s
    #[arg(long, value_name = "D")]
    ttl: Option<String>,
    /// Between two health checks and renewals
    #[arg(long, value_name = "D")]
    cycle: Option<String>,
    /// always, on-failure or never
    #[arg(long, value_name = "WHEN")]
    restart: Option<String>,
    /// Pause before a restart, times the failed tries
    #[arg(long, value_name = "D")]
    delay: Option<String>,
    /// Who the command runs as
    #[arg(long, value_name = "U")]
    user: Option<String>,
}

impl Given {
    fn flags(&self, more: Option<&More>, command: &[String]) -> Vec<Flag> {
        let mut flags = Vec::new();
        let mut push = |name: &str, key: &str, value: &Option<String>| {
            if let Some(value) = value {
                flags.push(Flag { name: name.into(), key: key.into(), literal: Literal::Plain(value.clone()) });
            }
        };
        push("--service", "service", &self.service);
        push("--store", "lease.store", &self.store);
        push("--node", "lease.node", &self.node);
        if let Some(more) = more {
            push("--health", "health.url", &more.health);
            push("--ttl", "lease.ttl", &more.ttl);
            push("--cycle", "cycle", &more.cycle);
            push("--restart", "restart.when", &more.restart);
            push("--delay", "restart.delay", &more.delay);
            push("--user", "process.user", &more.user);
        }
        for (key, value) in &self.set {
            push("--set", key, &Some(value.clone()));
        }
        if !command.is_empty() {
            let literal = Literal::List(command.to_vec());
            flags.push(Flag { name: "command line".into(), key: "command".into(), literal });
        }
        flags
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().into(), value.trim().into())),
        _ => Err("write KEY=VALUE, like log.level=debug".into()),
    }
}

fn wait(text: &str) -> Result<Duration, String> {
    config::duration(text).map_err(|_| "write a duration with a unit, like 30s or 2m".into())
}

/// What a subcommand ends with: an exit code, and what to say before.
type Ended = Result<u8, Failure>;

/// Why a subcommand cannot be carried out.
struct Failure {
    code: u8,
    text: String,
}

/// The whole program.
pub fn main() -> ExitCode {
    if let Some(with_cgroup) = keeper_calls() {
        return ExitCode::from(agent::run(with_cgroup));
    }
    let ended = match Line::try_parse() {
        Ok(line) => obey(line.order),
        Err(error) => return ExitCode::from(refused(&error)),
    };
    ExitCode::from(ended.unwrap_or_else(|failure| {
        complain(&failure.text);
        failure.code
    }))
}

/// Whether these are the arguments that a keeper starts its agent with, and which: the
/// command waits for the agent, so it is not to wait for all that a person may have meant.
fn keeper_calls() -> Option<bool> {
    let mut words = std::env::args_os().skip(1);
    let first = words.next().filter(|word| word == "agent");
    match (first, words.next(), words.next()) {
        (Some(_), None, None) => Some(false),
        (Some(_), Some(flag), None) if flag == "--cgroup" => Some(true),
        _ => None,
    }
}

fn obey(order: Order) -> Ended {
    match order {
        Order::Run(run) => self::run(&run),
        Order::Check(check) => self::check(&check),
        Order::Status(status) => {
            let loaded = load(&status.given, status.given.flags(None, &[]), Patience::Standby, Need::Status)?;
            warn(&loaded);
            let (text, code) = operate::status(&loaded.config, status.json);
            print(&text);
            Ok(code)
        }
        Order::Schema(schema) => {
            let loaded = load(&schema.given, schema.given.flags(None, &[]), Patience::Standby, Need::Store)?;
            warn(&loaded);
            let done = operate::schema(&loaded.config, schema.apply);
            let text = done.map_err(|(code, text)| Failure { code, text: format!("locum: {text}") })?;
            print(&text);
            Ok(exit::OK)
        }
        Order::Help(help) => self::help(help.topic.as_deref()),
        Order::Agent { cgroup } => Ok(agent::run(cgroup)),
    }
}

fn run(run: &Run) -> Ended {
    let patience = match (run.once, run.wait) {
        (true, _) => Patience::Try,
        (false, Some(limit)) => Patience::Wait(limit),
        (false, None) => Patience::Standby,
    };
    let nothing =
        run.given.file.is_none() && run.command.is_empty() && run.given.set.iter().all(|(k, _)| k != "command");
    if nothing && std::env::var_os("LOCUM_COMMAND").is_none_or(|v| v.is_empty()) {
        let text = "locum: nothing to run: give a command behind --, or a configuration with -c FILE\n\n\
                    \x20 locum run -- python3 -m http.server 8080\n\x20 locum run -c shop.toml\n\n\
                    For more, try \"locum help run\".";
        return Err(Failure { code: exit::USAGE, text: text.into() });
    }
    let loaded = load(&run.given, run.given.flags(Some(&run.more), &run.command), patience, Need::Everything)?;
    if loaded.config.lease.is_none() && patience != Patience::Standby {
        let flag = if run.once { "--try" } else { "--wait" };
        let text = format!("locum: {flag} needs a store: without one nobody else can hold the lease; give --store URL");
        return Err(Failure { code: exit::USAGE, text });
    }
    warn(&loaded);
    let environment = Sources::here(None, Vec::new(), patience, Need::Everything).environment;
    if let Some(text) = operate::watchdog(&loaded.config, &environment) {
        complain(&format!("locum: warning: {text}"));
    }
    Ok(keeper::run(&loaded.config, keeper::Prepared::default()))
}

fn check(check: &Check) -> Ended {
    let flags = check.given.flags(Some(&check.more), &check.command);
    match load_quietly(&check.given, flags, Patience::Standby, Need::Everything) {
        Ok(loaded) => {
            let environment: Environment =
                Sources::here(None, Vec::new(), Patience::Standby, Need::Everything).environment;
            let (text, code) = operate::check(&loaded, &environment, check.connect, check.json);
            print(&text);
            Ok(code)
        }
        Err((code, errors)) if check.json => {
            print(&operate::check_failed_json(&errors));
            Ok(code)
        }
        Err((code, errors)) => Err(Failure { code, text: described(&errors) }),
    }
}

fn help(topic: Option<&str>) -> Ended {
    let mut line = Line::command();
    let Some(topic) = topic else {
        print(&line.render_help().to_string());
        return Ok(exit::OK);
    };
    match topic {
        "configuration" => print(&config::help()),
        "exit-codes" => print(&exit::help()),
        _ => {
            line.build();
            let Some(sub) = line.find_subcommand_mut(topic).filter(|s| !s.is_hide_set()) else {
                let topics = ["run", "check", "status", "schema", "configuration", "exit-codes"];
                let near = config::nearest(topic, topics).map_or(String::new(), |n| format!("; did you mean {n}?"));
                let text = format!("locum: no help on {topic:?}{near}\nThere is help on {}.", topics.join(", "));
                return Err(Failure { code: exit::USAGE, text });
            };
            print(&sub.render_help().to_string());
        }
    }
    Ok(exit::OK)
}

fn load_quietly(
    given: &Given,
    flags: Vec<Flag>,
    patience: Patience,
    need: Need,
) -> Result<Loaded, (u8, config::Errors)> {
    let sources = Sources::here(given.file.clone(), flags, patience, need);
    config::load(&sources).map_err(|errors| {
        let usage = errors.0.iter().all(|m| matches!(m.origin, Some(config::Origin::Flag(_))));
        (if usage { exit::USAGE } else { exit::CONFIGURATION }, errors)
    })
}

fn load(given: &Given, flags: Vec<Flag>, patience: Patience, need: Need) -> Result<Loaded, Failure> {
    load_quietly(given, flags, patience, need).map_err(|(code, errors)| Failure { code, text: described(&errors) })
}

fn described(errors: &config::Errors) -> String {
    let lines: Vec<String> = errors.0.iter().map(|m| format!("locum: {m}")).collect();
    lines.join("\n")
}

fn warn(loaded: &Loaded) {
    for warning in &loaded.warnings {
        complain(&format!("locum: warning: {warning}"));
    }
}

/// Says what clap has to say: help and version were asked for, all else is wrong usage.
fn refused(error: &clap::Error) -> u8 {
    let text = error.render().to_string();
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        print(&text);
        return exit::OK;
    }
    complain(text.trim_end());
    if let Some(near) = meant(error) {
        complain(&format!("\nDid you mean \"{near}\"?"));
    }
    exit::USAGE
}

/// What was meant by a word that clap has no suggestion for: it knows no swapped letters.
fn meant(error: &clap::Error) -> Option<String> {
    if error.get(ContextKind::SuggestedArg).is_some() || error.get(ContextKind::SuggestedSubcommand).is_some() {
        return None;
    }
    let word = |kind| match error.get(kind) {
        Some(ContextValue::String(word)) => Some(word.as_str()),
        _ => None,
    };
    let program = Line::command();
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let names = program.get_subcommands().filter(|c| !c.is_hide_set()).map(clap::Command::get_name);
            config::nearest(word(ContextKind::InvalidSubcommand)?, names).map(|near| format!("locum {near}"))
        }
        ErrorKind::UnknownArgument => {
            let flags =
                program.get_subcommands().flat_map(clap::Command::get_arguments).filter_map(clap::Arg::get_long);
            let flags: Vec<String> = flags.map(|flag| format!("--{flag}")).collect();
            config::nearest(word(ContextKind::InvalidArg)?, flags.iter().map(String::as_str)).map(str::to_owned)
        }
        _ => None,
    }
}

/// Writes to stdout; a reader that has gone away is no error of ours.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Writes to stderr where there is room: one that is stuck must not keep a command from starting.
fn complain(text: &str) {
    let mut err = std::io::stderr().lock();
    let mut ready = [PollFd::new(err.as_fd(), PollFlags::POLLOUT)];
    if poll(&mut ready, PollTimeout::ZERO).is_ok_and(|n| n > 0) {
        let _ = writeln!(err, "{text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        Line::command().debug_assert();
    }

    #[test]
    fn the_top_level_help_fits_a_screen() {
        let help = Line::command().render_help().to_string();
        assert!(help.lines().count() <= 24, "{help}");
        let mut line = Line::command();
        line.build();
        for sub in ["run", "check", "status", "schema"] {
            let text = line.find_subcommand_mut(sub).expect(sub).render_help().to_string();
            assert!(text.lines().all(|l| l.chars().count() <= 80), "{text}");
        }
    }

    #[test]
    fn what_follows_the_command_is_the_commands() {
        let line = Line::try_parse_from(["locum", "run", "--ttl", "5s", "sleep", "--try", "-c", "5"]).expect("parses");
        let Order::Run(run) = line.order else { panic!("not run") };
        assert_eq!(run.command, ["sleep", "--try", "-c", "5"]);
        assert!(!run.once);
    }
}
