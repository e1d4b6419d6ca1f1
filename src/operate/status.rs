//! `locum status`: the cluster and this host on one screen, for a person at three in
//! the morning, and as JSON for everything else.

use crate::core::Role;
use crate::status::{Cluster, Local};
use serde_json::json;

/// The screen. `cluster` is none without a lease.
pub fn render(service: &str, cluster: Option<Result<&Cluster, &String>>, local: Result<&Local, &String>) -> String {
    let mut out = Rows::new(0);
    out.row("service", service);
    match cluster {
        None => out.row("lease", "none: no store is configured"),
        Some(Err(why)) => out.row("store", &format!("cannot be asked: {why}")),
        Some(Ok(cluster)) => self::cluster(cluster, &mut out),
    }
    out.blank();
    match local {
        Ok(local) => this_host(local, &mut out),
        Err(why) => {
            out.heading("this host");
            out.row("agent", &format!("does not answer: {why}"));
        }
    }
    out.text
}

/// The same as JSON: `{"service", "cluster", "local", "errors"}`; durations in seconds.
pub fn render_json(
    service: &str,
    cluster: Option<Result<&Cluster, &String>>,
    local: Result<&Local, &String>,
) -> String {
    let mut errors = Vec::new();
    if let Some(Err(why)) = cluster {
        errors.push(format!("store: {why}"));
    }
    if let Err(why) = local {
        errors.push(format!("agent: {why}"));
    }
    let cluster = cluster.and_then(Result::ok);
    format!("{:#}\n", json!({ "service": service, "cluster": cluster, "local": local.ok(), "errors": errors }))
}

/// Rows of a label and a text.
struct Rows {
    text: String,
    indent: usize,
}

impl Rows {
    fn new(indent: usize) -> Rows {
        Rows { text: String::new(), indent }
    }

    fn heading(&mut self, text: &str) {
        self.line(text);
        self.indent = 2;
    }

    fn row(&mut self, label: &str, text: &str) {
        let width = 10 - self.indent;
        self.line(&format!("{:i$}{label:width$}{text}", "", i = self.indent));
    }

    fn line(&mut self, line: &str) {
        self.text.push_str(line.trim_end());
        self.text.push('\n');
    }

    fn blank(&mut self) {
        self.text.push('\n');
    }
}

fn cluster(cluster: &Cluster, out: &mut Rows) {
    let since = cluster.since.map_or(String::new(), |s| format!(", for {}", span(s)));
    match &cluster.holder {
        Some(holder) => {
            out.row("holder", &format!("{holder}, epoch {}, token {}{since}", cluster.epoch, cluster.token))
        }
        None => out.row("holder", &format!("nobody, since epoch {}{since}", cluster.epoch)),
    }
    if let (Some(renewed), true) = (cluster.renewed, cluster.holder.is_some()) {
        let late = if renewed > cluster.ttl { ": OVERDUE" } else { "" };
        out.row("renewed", &format!("{} ago; the lease lasts {}{late}", span(renewed), span(cluster.ttl)));
    }
    if !cluster.why.is_empty() {
        out.row("why", &cluster.why);
    }
    if cluster.members.is_empty() {
        return;
    }
    out.blank();
    let mut members: Vec<_> = cluster.members.iter().collect();
    members.sort_by(|a, b| (&a.member.node, a.age).cmp(&(&b.member.node, b.age)));
    let mut table = vec![["NODE", "ROLE", "HEALTH", "HEARD", "HOST", "VERSION"].map(String::from)];
    for seen in members {
        let m = &seen.member;
        let age = seen.age.as_secs_f64();
        let silent = if age > cluster.ttl { ", SILENT" } else { "" };
        let heard = format!("{} ago{silent}", span(age));
        // What a node said of itself is older than the record: that alone says who is active.
        let role = if cluster.holder.as_ref() == Some(&m.node) { Role::Active } else { Role::Standby };
        table.push([m.node.clone(), role.to_string(), m.health.to_string(), heard, m.host.clone(), m.version.clone()]);
    }
    let width = |column: usize| table.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    for row in &table {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, w)| format!("{cell:w$}")).collect();
        out.line(&cells.join("  "));
    }
}

fn this_host(local: &Local, out: &mut Rows) {
    let name = if local.node.is_empty() { String::new() } else { format!(": {}", local.node) };
    let role = local.role.map_or(String::new(), |r| format!(", {r}"));
    out.heading(&format!("this host{name}{role}"));
    let health = local.health.map_or(String::new(), |h| format!(", {h}"));
    let detail = if local.health_detail.is_empty() { String::new() } else { format!(" ({})", local.health_detail) };
    match (local.pid, local.uptime) {
        (Some(pid), uptime) => {
            let up = uptime.map_or(String::new(), |s| format!(", up {}", span(s)));
            out.row("command", &format!("pid {pid}{up}{health}{detail}"));
        }
        (None, _) => out.row("command", &format!("does not run here{health}{detail}")),
    }
    let mut past = Vec::new();
    if local.restarts > 0 {
        past.push(format!("{} restart{}", local.restarts, plural(local.restarts)));
    }
    if local.failed_tries > 0 {
        past.push(format!("{} failed in a row", local.failed_tries));
    }
    if !local.last_exit.is_empty() {
        past.push(format!("the last one {}", local.last_exit));
    }
    if !past.is_empty() {
        out.row("past", &past.join(", "));
    }
    match (local.deadline_left, local.role) {
        (Some(left), _) if left <= 0.0 => out.row("lease", "not renewed in time: the command is stopped until it is"),
        (Some(left), _) => {
            let text =
                format!("epoch {}, token {}; told to stop in {} unless renewed", local.epoch, local.token, span(left));
            out.row("lease", &text);
        }
        (None, Some(Role::Active)) => out.row("lease", "not held for sure"),
        (None, _) => {}
    }
    if !local.next.is_empty() {
        out.row("next", &local.next);
    }
    let mut trouble = Vec::new();
    if !local.store_trouble.is_empty() {
        trouble.push(local.store_trouble.clone());
    }
    if local.written_off > 0 {
        trouble.push(format!(
            "{} call{} written off and still hanging",
            local.written_off,
            plural(local.written_off.into())
        ));
    }
    if !trouble.is_empty() {
        out.row("store", &trouble.join("; "));
    }
    if local.log_lines_dropped > 0 {
        out.row("log", &format!("{} line{} dropped", local.log_lines_dropped, plural(local.log_lines_dropped)));
    }
    if !local.tree.is_empty() {
        out.row("tree", &local.tree);
    }
    let replaced = match local.agents_replaced {
        0 => String::new(),
        n => format!(" ({n} replaced)"),
    };
    out.row(
        "locum",
        &format!("{}, keeper pid {}, agent pid {}{replaced}", local.version, local.keeper_pid, local.agent_pid),
    );
}

fn plural(n: u64) -> &'static str {
    if n == 1 { "" } else { "s" }
}

/// A length of time for people, in at most two units.
fn span(seconds: f64) -> String {
    if seconds < 10.0 {
        // A tenth below ten seconds: 9.96 s is not "10.0 s".
        return format!("{:.1} s", (seconds.max(0.0) * 10.0).floor() / 10.0);
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let whole = seconds as u64;
    let two = |big: u64, b: &str, small: u64, s: &str| {
        if small == 0 { format!("{big} {b}") } else { format!("{big} {b} {small} {s}") }
    };
    match whole {
        0..60 => format!("{whole} s"),
        60..3_600 => two(whole / 60, "min", whole % 60, "s"),
        3_600..86_400 => two(whole / 3_600, "h", whole % 3_600 / 60, "min"),
        _ => two(whole / 86_400, "d", whole % 86_400 / 3_600, "h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Health, Member, Seen};
    use std::time::Duration;

    fn seen(node: &str, role: Role, health: Health, age: f64) -> Seen {
        let member = Member {
            node: node.into(),
            instance: "i".into(),
            host: format!("vm-{node}"),
            version: "0.1.0".into(),
            role,
            health,
        };
        Seen { member, age: Duration::from_secs_f64(age) }
    }

    fn two_nodes() -> Cluster {
        Cluster {
            holder: Some("shop2".into()),
            epoch: 17,
            token: 42,
            since: Some(11_520.0),
            renewed: Some(1.26),
            ttl: 20.0,
            why: "shop1 was not heard for 20.1 s".into(),
            members: vec![
                seen("shop2", Role::Active, Health::Healthy, 1.26),
                seen("shop1", Role::Standby, Health::Idle, 200.0),
            ],
        }
    }

    fn active() -> Local {
        Local {
            service: "shop".into(),
            node: "shop2".into(),
            version: "0.1.0".into(),
            keeper_pid: 700,
            agent_pid: 701,
            agents_replaced: 1,
            role: Some(Role::Active),
            epoch: 17,
            token: 42,
            deadline_left: Some(12.9),
            health: Some(Health::Healthy),
            health_detail: "200 in 3 ms".into(),
            pid: Some(712),
            uptime: Some(11_521.0),
            restarts: 1,
            last_exit: "exited with 1".into(),
            next: "renew in 3.7 s".into(),
            tree: "cgroup".into(),
            written_off: 1,
            ..Local::default()
        }
    }

    #[test]
    fn the_cluster_and_this_host_fit_one_screen() {
        let (cluster, local) = (two_nodes(), active());
        assert_eq!(
            render("shop", Some(Ok(&cluster)), Ok(&local)),
            "\
service   shop
holder    shop2, epoch 17, token 42, for 3 h 12 min
renewed   1.2 s ago; the lease lasts 20 s
why       shop1 was not heard for 20.1 s

NODE   ROLE     HEALTH   HEARD                   HOST      VERSION
shop1  standby  idle     3 min 20 s ago, SILENT  vm-shop1  0.1.0
shop2  active   healthy  1.2 s ago               vm-shop2  0.1.0

this host: shop2, active
  command pid 712, up 3 h 12 min, healthy (200 in 3 ms)
  past    1 restart, the last one exited with 1
  lease   epoch 17, token 42; told to stop in 12 s unless renewed
  next    renew in 3.7 s
  store   1 call written off and still hanging
  tree    cgroup
  locum   0.1.0, keeper pid 700, agent pid 701 (1 replaced)
"
        );
    }

    #[test]
    fn what_cannot_be_asked_is_said() {
        let (store, agent) = ("no answer within 2 s".to_string(), "no such socket".to_string());
        assert_eq!(
            render("shop", Some(Err(&store)), Err(&agent)),
            "service   shop\nstore     cannot be asked: no answer within 2 s\n\nthis host\n  agent   does not answer: no such socket\n"
        );
        let local = Local { version: "0.1.0".into(), keeper_pid: 1, agent_pid: 2, ..Local::default() };
        assert_eq!(
            render("web", None, Ok(&local)),
            "service   web\nlease     none: no store is configured\n\nthis host\n  command does not run here\n  locum   0.1.0, keeper pid 1, agent pid 2\n"
        );
    }

    #[test]
    fn a_free_lease_and_an_overdue_one_are_told_apart() {
        let free = Cluster { holder: None, members: Vec::new(), ..two_nodes() };
        let text = render("shop", Some(Ok(&free)), Err(&"x".to_string()));
        assert!(text.contains("holder    nobody, since epoch 17") && !text.contains("renewed"), "{text}");
        let late = Cluster { renewed: Some(31.0), ..two_nodes() };
        let text = render("shop", Some(Ok(&late)), Err(&"x".to_string()));
        assert!(text.contains("renewed   31 s ago; the lease lasts 20 s: OVERDUE"), "{text}");
    }

    #[test]
    fn json_has_both_halves_and_what_failed() {
        let cluster = two_nodes();
        let text = render_json("shop", Some(Ok(&cluster)), Err(&"no such socket".to_string()));
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["cluster"]["holder"], "shop2");
        assert_eq!(value["cluster"]["members"][0]["member"]["role"], "active");
        assert_eq!(value["local"], serde_json::Value::Null);
        assert_eq!(value["errors"][0], "agent: no such socket");
    }

    #[test]
    fn times_are_for_people() {
        for (seconds, text) in [
            (0.0, "0.0 s"),
            (9.99, "9.9 s"),
            (10.0, "10 s"),
            (59.9, "59 s"),
            (60.0, "1 min"),
            (200.0, "3 min 20 s"),
            (11_520.0, "3 h 12 min"),
            (183_600.0, "2 d 3 h"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }
}
