//! The command line and the configuration: what is refused and how it is told, where
//! values come from, and the exit codes.

use crate::bed::{Bed, PASSWORD, Postgres, locum, locum_in, s};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

fn text(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

fn code(out: &Output) -> i32 {
    out.status.code().unwrap_or(-1)
}

/// `locum check` on this file; the answer, and its path.
fn check(bed: &Bed, toml: &str) -> (Output, String) {
    let file = bed.dir().join("shop.toml");
    fs::write(&file, toml).unwrap();
    (locum(&["check", "-c", file.to_str().unwrap()]), file.display().to_string())
}

const GOOD: &str = "service = \"shop\"\ncommand = [\"/bin/true\"]\n";

#[test]
fn a_mistake_in_the_file_is_refused_with_its_place_its_key_and_what_would_be_right() {
    let bed = Bed::new("mistakes");
    let store = bed.file_store();
    let leased = |line: &str| format!("{GOOD}[lease]\nstore = \"{store}\"\n{line}\n");
    let cases = [
        ("an unknown key", format!("{GOOD}cycel = \"5s\"\n"), vec![":3", "cycel", "cycle"]),
        ("an unknown section", format!("{GOOD}[leese]\nttl = \"5s\"\n"), vec![":3", "leese"]),
        ("an unknown key in a section", leased("ttll = \"5s\""), vec![":5", "ttll", "ttl"]),
        ("a wrong type", format!("{GOOD}cycle = true\n"), vec![":3", "cycle", "true"]),
        ("no duration", format!("{GOOD}cycle = \"soon\"\n"), vec![":3", "cycle", "soon"]),
        ("a number out of range", format!("{GOOD}[restart]\nmax_factor = -1\n"), vec![":4", "max_factor", "-1"]),
        (
            "no such choice",
            format!("{GOOD}[restart]\nwhen = \"sometimes\"\n"),
            vec![":4", "when", "sometimes", "on-failure"],
        ),
        ("no such signal", format!("{GOOD}[process]\nstop_signal = \"HALT\"\n"), vec![":4", "stop_signal", "HALT"]),
        ("an impossible timing", leased("ttl = \"5s\"\nstop_timeout = \"5s\""), vec!["stop_timeout", "ttl"]),
        ("a ttl below the least", leased("ttl = \"100ms\""), vec![":5", "ttl", "100ms", "500ms"]),
        (
            "a health timeout that is no longer than the cycle",
            format!("{GOOD}cycle = \"5s\"\n[health]\nurl = \"http://127.0.0.1/\"\ntimeout = \"5s\"\n"),
            vec![":6", "health.timeout", "cycle"],
        ),
        (
            "a store of no known kind",
            format!("{GOOD}[lease]\nstore = \"redis://x\"\n"),
            vec![":4", "store", "redis", "postgres://"],
        ),
        ("no command", "service = \"shop\"\n".to_owned(), vec!["command"]),
        ("an empty command", "service = \"shop\"\ncommand = []\n".to_owned(), vec![":2", "command"]),
        (
            "a store without a service",
            format!("command = [\"/bin/true\"]\n[lease]\nstore = \"{store}\"\n"),
            vec!["service"],
        ),
        ("a torn file", format!("{GOOD}[lease\n"), vec![":3"]),
        (
            "a health url of another kind",
            format!("{GOOD}[health]\nurl = \"ftp://x/\"\n"),
            vec![":4", "url", "ftp", "http"],
        ),
    ];
    let mut wrong = Vec::new();
    for (what, toml, words) in cases {
        let (out, path) = check(&bed, &toml);
        let said = text(&out);
        if code(&out) != 78 {
            wrong.push(format!("{what}: exit code {}: {said}", code(&out)));
        }
        for word in words {
            let word = if word.starts_with(':') { format!("{path}{word}") } else { word.to_owned() };
            if !said.contains(&word) {
                wrong.push(format!("{what}: {word:?} is missing in: {said}"));
            }
        }
        if said.contains("panicked") {
            wrong.push(format!("{what}: {said}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn run_refuses_a_bad_file_as_check_does_and_starts_nothing() {
    let bed = Bed::new("run-bad");
    let mut node = bed.node("a").set("", "cycel = \"1s\"").start();
    assert_eq!(node.wait_end(s(5.0)), 78);
    assert!(bed.beats().is_empty());
}

#[test]
fn a_file_that_is_not_there_is_told_with_its_path() {
    let out = locum(&["check", "-c", "/no/such/shop.toml"]);
    assert!([66, 78].contains(&code(&out)), "{}", code(&out));
    assert!(text(&out).contains("/no/such/shop.toml"));
}

#[test]
fn check_shows_every_value_with_its_origin() {
    let bed = Bed::new("origins");
    let file = bed.dir().join("shop.toml");
    fs::write(&file, format!("{GOOD}cycle = \"2s\"\n[lease]\nstore = \"{}\"\nttl = \"30s\"\n", bed.file_store()))
        .unwrap();
    let path = file.display().to_string();
    let out = locum_in(&["check", "-c", &path], &[("LOCUM_RESTART_DELAY", "7s"), ("LOCUM_LEASE_NODE", "blue")]);
    let said = text(&out);
    assert_eq!(code(&out), 0, "{said}");
    let line = |key: &str| said.lines().find(|l| l.trim_start().starts_with(key)).unwrap_or("").to_owned();
    assert!(line("cycle").contains("2s") && line("cycle").contains(&format!("{path}:3")), "{said}");
    assert!(line("lease.ttl").contains("30s") && line("lease.ttl").contains(":6"), "{said}");
    assert!(line("restart.delay").contains("7s") && line("restart.delay").contains("LOCUM_RESTART_DELAY"), "{said}");
    assert!(line("lease.node").contains("blue") && line("lease.node").contains("LOCUM_LEASE_NODE"), "{said}");
    assert!(line("restart.max_factor").contains("10") && line("restart.max_factor").contains("default"), "{said}");
    assert!(line("process.stop_timeout").contains("20s"), "{said}");
}

#[test]
fn check_prints_the_budget_as_a_timeline_in_seconds() {
    let bed = Bed::new("budget");
    let (out, _) = check(&bed, &format!("{GOOD}[lease]\nstore = \"{}\"\n", bed.file_store()));
    let said = text(&out);
    assert_eq!(code(&out), 0, "{said}");
    for words in ["goes unnoticed", "told to stop", "nothing", "another host"] {
        assert!(said.contains(words), "{words:?} is missing in: {said}");
    }
}

#[test]
fn flags_go_over_environment_over_file() {
    let bed = Bed::new("over");
    let file = bed.dir().join("shop.toml");
    let out = bed.dir().join("out");
    let line = format!("echo $LOCUM_SERVICE > {}", out.display());
    let toml =
        format!("service = \"from-file\"\ncommand = [\"/bin/sh\", \"-c\", \"{line}\"]\n[restart]\nwhen = \"never\"\n");
    fs::write(&file, toml).unwrap();
    let path = file.to_str().unwrap();
    let ran = |args: &[&str], env: &[(&str, &str)]| {
        let all: Vec<&str> = ["run", "-c", path].iter().chain(args).copied().collect();
        let ended = locum_in(&all, env);
        assert_eq!(code(&ended), 0, "{}", text(&ended));
        fs::read_to_string(&out).unwrap().trim().to_owned()
    };
    assert_eq!(ran(&[], &[]), "from-file");
    assert_eq!(ran(&[], &[("LOCUM_SERVICE", "from-environment")]), "from-environment");
    assert_eq!(ran(&["--service", "from-flag"], &[("LOCUM_SERVICE", "from-environment")]), "from-flag");
}

#[test]
fn a_string_is_a_line_for_the_shell_and_an_array_is_not() {
    let bed = Bed::new("shell");
    let out = bed.dir().join("out");
    let mut node = bed
        .node("a")
        .command(&format!("\"echo one two | wc -w > {}\"", out.display()))
        .set("restart", "when = \"never\"")
        .env("SHELL", "/bin/sh")
        .start();
    assert_eq!(node.wait_end(s(5.0)), 0);
    assert_eq!(fs::read_to_string(&out).unwrap().trim(), "2");
    let mut node =
        bed.node("b").command("[\"/bin/echo\", \"a b\", \"$HOME\"]").set("restart", "when = \"never\"").start();
    assert_eq!(node.wait_end(s(5.0)), 0);
    assert!(node.log().contains("a b $HOME"));
}

#[test]
fn a_typo_gets_a_suggestion_and_the_usage_code() {
    for (args, right) in [(&["rnu"][..], "run"), (&["chekc"], "check"), (&["run", "--tyr"], "--try")] {
        let out = locum(args);
        assert_eq!(code(&out), 64, "{args:?}: {}", text(&out));
        assert!(text(&out).contains(right), "{args:?}: {}", text(&out));
    }
}

#[test]
fn help_fits_a_screen_and_shows_an_example() {
    for args in [&["help"][..], &["--help"], &["run", "--help"], &["check", "--help"], &["status", "--help"]] {
        let out = locum(args);
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        assert_eq!(code(&out), 0, "{args:?}");
        assert!(said.lines().count() <= 40, "{args:?}: {} lines", said.lines().count());
        assert!(said.lines().all(|l| l.chars().count() <= 100), "{args:?}: {said}");
        assert!(!said.contains("agent\n") && !said.contains("  agent"), "the agent is hidden: {said}");
    }
    let help = text(&locum(&["--help"]));
    assert!(help.to_lowercase().contains("example"), "{help}");
}

#[test]
fn the_version_is_told() {
    let out = locum(&["--version"]);
    assert_eq!(code(&out), 0);
    assert!(text(&out).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn secrets_are_masked_wherever_the_configuration_is_shown() {
    let bed = Bed::new("masked");
    let url = format!("postgres://locum:{PASSWORD}@127.0.0.1:1/ops?sslmode=disable");
    let (out, _) = check(&bed, &format!("{GOOD}[lease]\nstore = \"{url}\"\n"));
    assert_eq!(code(&out), 0, "{}", text(&out));
    assert!(!text(&out).contains(PASSWORD), "{}", text(&out));
    // Nor in an error about the very line.
    let (out, _) = check(&bed, &format!("{GOOD}[lease]\nstore = \"{url}&sslmode=sometimes\"\n"));
    assert_eq!(code(&out), 78);
    assert!(!text(&out).contains(PASSWORD), "{}", text(&out));
}

#[test]
fn the_variables_and_the_password_file_of_libpq_are_honoured() {
    let bed = Bed::new("libpq");
    let pg = Postgres::start(&bed);
    let port = pg.port().to_string();
    let ca = Postgres::authority().display().to_string();
    let pgpass = bed.dir().join("pgpass");
    fs::write(&pgpass, format!("# ours\nother:*:*:*:wrong\n127.0.0.1:{port}:ops:locum:{PASSWORD}\n")).unwrap();
    fs::set_permissions(&pgpass, fs::Permissions::from_mode(0o600)).unwrap();
    let start = |name: &str, url: &str| {
        bed.node(name)
            .store(url)
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", &port)
            .env("PGUSER", "locum")
            .env("PGDATABASE", "ops")
            .env("PGSSLMODE", "verify-full")
            .env("PGSSLROOTCERT", &ca)
    };
    // Everything from the environment, the password from the file.
    let mut a = start("a", "postgres://").env("PGPASSFILE", pgpass.to_str().unwrap()).start();
    bed.wait_active(&a, s(10.0));
    a.stop();
    // The password from the environment.
    let mut b = start("b", "postgres://").env("PGPASSWORD", PASSWORD).start();
    bed.wait_active(&b, s(10.0));
    assert!(crate::bed::environment(b.leader().unwrap()).iter().all(|v| !v.contains(PASSWORD)));
    b.stop();
    // A file that others can read is not used, and that is told.
    fs::set_permissions(&pgpass, fs::Permissions::from_mode(0o644)).unwrap();
    let mut c = start("c", "postgres://").env("PGPASSFILE", pgpass.to_str().unwrap()).start();
    std::thread::sleep(s(2.0));
    assert!(c.log().contains("pgpass") || c.has_ended(), "{}", c.log());
    assert_eq!(bed.beats().lives().len(), 2);
    c.stop_if_running();
    bed.prove(&[&a, &b]);
}

#[test]
fn the_names_of_iom_are_understood() {
    let bed = Bed::new("iom");
    let pg = Postgres::start(&bed);
    let hosts = format!("127.0.0.1:{}", pg.port());
    let file = bed.dir().join("shop.toml");
    fs::write(&file, format!("{GOOD}[lease]\nstore = \"postgres://\"\n")).unwrap();
    let env = [("SERVER_ID", "iom-1"), ("PGHOSTLIST", hosts.as_str()), ("PGDATABASE", "ops"), ("PGUSER", "locum")];
    let out = locum_in(&["check", "-c", file.to_str().unwrap()], &env);
    let said = text(&out);
    assert_eq!(code(&out), 0, "{said}");
    assert!(said.contains("iom-1") && said.contains("SERVER_ID"), "{said}");
    assert!(said.contains(&hosts) && said.contains("PGHOSTLIST"), "{said}");
}

#[test]
fn a_wrong_certificate_and_a_wrong_password_are_told_and_start_nothing() {
    let bed = Bed::new("tls");
    let pg = Postgres::start(&bed);
    let bad = [
        ("authority", pg.url().split("&sslrootcert").next().unwrap().to_owned(), "certificate"),
        ("name", pg.url().replace("@127.0.0.1", "@127.0.0.2"), ""),
        ("password", pg.url().replace(PASSWORD, "wrong-pass"), "password"),
        ("plain", pg.url().replace("verify-full", "disable"), "encryption"),
    ];
    for (name, url, word) in bad {
        let file = bed.node(name).store(&url).write();
        let out = locum(&["check", "-c", file.to_str().unwrap(), "--connect"]);
        let said = text(&out);
        assert_ne!(code(&out), 0, "{name}: {said}");
        assert!(said.to_lowercase().contains(word), "{name}: {said}");
        assert!(!said.contains("wrong-pass") && !said.contains(PASSWORD), "{name}: {said}");
    }
    let file = bed.node("good").store(&pg.url()).write();
    let out = locum(&["check", "-c", file.to_str().unwrap(), "--connect"]);
    assert_eq!(code(&out), 0, "{}", text(&out));
}

#[test]
fn a_level_per_module_is_obeyed() {
    let bed = Bed::new("levels");
    let mut quiet = bed.node("a").set("log", "level = \"error\"").start();
    bed.wait_active(&quiet, s(5.0));
    quiet.stop();
    assert_eq!(quiet.log(), "");
    let mut partly = bed.node("b").set("log", "level = \"error\"").set("log.modules", "agent = \"debug\"").start();
    partly.wait_log("DEBUG", s(5.0));
    partly.stop();
    assert!(partly.log().lines().all(|l| l.contains("locum::agent") || l.contains("INFO")), "{}", partly.log());
    let bad = check(&bed, &format!("{GOOD}[log]\nlevel = \"loud\"\n")).0;
    assert_eq!(code(&bad), 78);
    assert!(text(&bad).contains("loud") && text(&bad).contains("debug"));
}

#[test]
fn check_says_which_failures_this_host_survives() {
    let bed = Bed::new("containment");
    let file = bed.node("a").store(&bed.file_store()).write();
    let row = |out: &Output, of: &str| text(out).lines().find(|l| l.contains(of)).unwrap_or_default().to_owned();
    let with = locum(&["check", "-c", file.to_str().unwrap()]);
    assert!(row(&with, "the keeper is killed or stopped").contains("yes"), "{}", text(&with));
    let without = std::process::Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", r#"umount -l "$0" && exec "$@""#])
        .arg(crate::bed::cgroup_mount())
        .arg(crate::bed::binary())
        .args(["check", "-c"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(row(&without, "the keeper is killed or stopped").contains("no cgroup v2"), "{}", text(&without));
    assert!(row(&with, "both at once").contains("service manager"), "{}", text(&with));
}

#[test]
fn status_says_plainly_when_nothing_runs() {
    let bed = Bed::new("status-none");
    let file = bed.node("a").store(&bed.file_store()).write();
    let out = locum(&["status", "-c", file.to_str().unwrap()]);
    assert!(!text(&out).contains("panicked"));
    assert!(!text(&out).is_empty());
}
