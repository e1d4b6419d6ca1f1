//! What a user sees of the configuration: values, origins, and the exact words of
//! each kind of mistake.

use super::*;
use crate::config::{SslMode, Target};
use crate::core::Timing;
use std::os::unix::fs::PermissionsExt;

fn environment(pairs: &[(&str, &str)]) -> Environment {
    // A home without ~/.pgpass, whoever runs the tests.
    let home = ("HOME", "/nonexistent");
    [home].iter().chain(pairs).map(|(k, v)| ((*k).to_string(), OsString::from(v))).collect()
}

fn flag(name: &str, key: &str, value: &str) -> Flag {
    Flag { name: name.into(), key: key.into(), literal: Literal::Plain(value.into()) }
}

fn sources(env: &[(&str, &str)], flags: &[Flag]) -> Sources {
    Sources {
        file: None,
        environment: environment(env),
        flags: flags.to_vec(),
        patience: Patience::Standby,
        directory: "/work".into(),
        need: Need::Everything,
    }
}

fn read_with(text: &str, env: &[(&str, &str)], flags: &[Flag]) -> Result<Loaded, Errors> {
    load_text(&sources(env, flags), Some(File { name: "shop.toml", text, mode: 0o600 }))
}

fn good(text: &str) -> Loaded {
    read_with(text, &[], &[]).unwrap_or_else(|e| panic!("{e}"))
}

fn bad(text: &str) -> String {
    read_with(text, &[], &[]).expect_err("a mistake").to_string()
}

fn shown(loaded: &Loaded, key: &str) -> String {
    let s = loaded.values.iter().find(|s| s.key == key).unwrap_or_else(|| panic!("{key} is not shown"));
    format!("{} ({})", s.value, s.origin)
}

const SHOP: &str = "service = \"shop\"\ncommand = [\"/usr/bin/shop\"]\n";

fn shop(more: &str) -> String {
    format!("{SHOP}{more}")
}

#[test]
fn a_command_alone_is_a_whole_configuration() {
    let loaded = good("command = ['/usr/bin/shop', '-x']\n");
    let c = &loaded.config;
    assert_eq!(c.service, "shop");
    assert_eq!(c.command, Command::Argv(vec!["/usr/bin/shop".into(), "-x".into()]));
    assert_eq!((c.cycle, c.process.stop_signal, c.restart.max_factor), (Duration::from_secs(5), 15, 10));
    assert_eq!((c.health.timeout, c.health.request_timeout), (Duration::from_secs(30), Duration::from_secs(5)));
    assert_eq!(c.lease, None);
    assert_eq!(shown(&loaded, "cycle"), "5s (default)");
    assert_eq!(shown(&loaded, "service"), "shop (default: the command's name)");
    assert_eq!(shown(&loaded, "health.url"), "none: alive means healthy (default)");
    assert_eq!(shown(&loaded, "lease.store"), "none: no lease, the command always runs (default)");
    assert_eq!(shown(&loaded, "log.file"), "stderr (default)");
    assert!(loaded.warnings.is_empty());
}

#[test]
fn flags_outrank_the_environment_and_that_the_file() {
    let text = shop("cycle = \"1s\"\n[health]\ntimeout = \"40s\"\nstart_timeout = \"41s\"\n");
    let env = [("LOCUM_CYCLE", "2s"), ("LOCUM_HEALTH_TIMEOUT", "50s"), ("LOCUM_RESTART_DELAY", "")];
    let loaded = read_with(&text, &env, &[flag("--cycle", "cycle", "3s")]).expect("valid");
    assert_eq!(shown(&loaded, "cycle"), "3s (flag --cycle)");
    assert_eq!(shown(&loaded, "health.timeout"), "50s (environment LOCUM_HEALTH_TIMEOUT)");
    assert_eq!(shown(&loaded, "health.start_timeout"), "41s (shop.toml:6)");
    assert_eq!(shown(&loaded, "restart.delay"), "3s (default)");
    assert_eq!(shown(&loaded, "command"), "[\"/usr/bin/shop\"] (shop.toml:2)");
}

#[test]
fn a_ttl_alone_brings_times_that_fit_it() {
    let loaded = good(&shop("[lease]\nstore = \"file:x/shop\"\nttl = \"500ms\"\nnode = \"a\"\n"));
    let lease = loaded.config.lease.as_ref().expect("a lease");
    assert_eq!(lease.timing, Timing::for_ttl(Duration::from_millis(500), Duration::from_secs(5)));
    assert_eq!(lease.store, Target::File("/work/x/shop".into()));
    assert_eq!(shown(&loaded, "lease.store"), "file:/work/x/shop (shop.toml:4)");
    assert_eq!(shown(&loaded, "lease.renew"), "125ms (default: min(cycle, ttl/4))");
    assert!(loaded.values.iter().all(|s| s.key != "lease.schema"), "a file has no schema");
}

#[test]
fn each_mistake_names_place_key_value_and_remedy() {
    for (text, words) in [
        (
            "cycle = 5",
            "shop.toml:3: cycle = 5: a duration has a unit: write \"5s\" for seconds, \"5ms\" for milliseconds",
        ),
        (
            "cycle = \"5\"",
            "shop.toml:3: cycle = \"5\": a duration has a unit: write \"5s\" for seconds, \"5ms\" for milliseconds",
        ),
        (
            "cycle = \"5sec\"",
            "shop.toml:3: cycle = \"5sec\": \"sec\" is no unit; there are ms, s, m, h and d: write \"5s\"",
        ),
        ("cycle = true", "shop.toml:3: cycle = true: this is a boolean; write a duration, like \"5s\""),
        ("cycle = \"1ms\"", "shop.toml:3: cycle = \"1ms\": too short; write at least \"10ms\""),
        ("cicle = \"5s\"", "shop.toml:3: unknown key cicle; did you mean cycle?"),
        ("ttl = \"5s\"", "shop.toml:3: unknown key ttl; did you mean lease.ttl?"),
        ("banana = 1", "shop.toml:3: unknown key banana; \"locum help configuration\" lists them all"),
        ("[helth]\nurl = 'http://h/'", "shop.toml:3: unknown section [helth]; did you mean [health]?"),
        ("[banana]", "shop.toml:3: unknown section [banana]; there are process, restart, health, lease, log"),
        ("lease = 'file:x'", "shop.toml:3: lease is a section: write [lease] and its keys below"),
        ("[lease]\ntll = '5s'", "shop.toml:4: unknown key lease.tll; did you mean lease.ttl?"),
        (
            "[process]\nstop_signal = 'TREM'",
            "shop.toml:4: process.stop_signal = \"TREM\": write a name like TERM, SIGINT or RTMIN+3, or a number from 1 to 64",
        ),
        (
            "[process]\nstop_signal = 'STOP'",
            "shop.toml:4: process.stop_signal = \"STOP\": this signal ends no process; write TERM, INT, QUIT, HUP, USR1 or the like",
        ),
        (
            "[process]\nuser = 'no-such-user'",
            "shop.toml:4: process.user = \"no-such-user\": there is no such user on this machine; write the name of one that exists",
        ),
        (
            "[restart]\nwhen = 'onfailure'",
            "shop.toml:4: restart.when = \"onfailure\": did you mean \"on-failure\"? Possible are always, on-failure, never",
        ),
        (
            "[restart]\nmax_factor = '3'",
            "shop.toml:4: restart.max_factor = \"3\": this is a string; write 3 without quotes",
        ),
        ("[restart]\nmax_factor = 0", "shop.toml:4: restart.max_factor = 0: write a whole number from 1 to 10000"),
        (
            "[health]\nurl = 'localhost:80'",
            "shop.toml:4: health.url = \"localhost:80\": this is no address; write an address like http://127.0.0.1:8080/health",
        ),
        (
            "[health]\nurl = 'ftp://h/'",
            "shop.toml:4: health.url = \"ftp://h/\": the scheme ftp is not one of http, https; write an address like http://127.0.0.1:8080/health",
        ),
        (
            "[log]\nlevel = 'inof'",
            "shop.toml:4: log.level = \"inof\": did you mean \"info\"? Possible are error, warn, info, debug, trace",
        ),
        (
            "[log.modules]\nstore = 'loud'",
            "shop.toml:3: log.modules = { store = \"loud\" }: \"loud\" for store is no level; write one of error, warn, info, debug, trace",
        ),
        (
            "[lease]\nstore = 'etcd://e1'",
            "shop.toml:4: lease.store = \"etcd://e1\": there is no store etcd://; there are postgres://user@host1,host2/database, file:/path",
        ),
        (
            "[lease]\nclock_error = 1",
            "shop.toml:4: lease.clock_error = 1: write a fraction from 0 to 0.1, like 0.002 for 0.2 %",
        ),
        ("[lease]\nttl = '100ms'", "shop.toml:4: lease.ttl = \"100ms\": too short; write at least \"500ms\""),
        ("[lease]\nrenew = '0s'", "shop.toml:4: lease.renew = \"0s\": too short; write at least \"10ms\""),
        (
            "[lease]\nnode = 'a b'",
            "shop.toml:4: lease.node = \"a b\": a name has no spaces, slashes or control characters",
        ),
        (
            "[lease]\nschema = 'My Schema'",
            "shop.toml:4: lease.schema = \"My Schema\": write lower-case letters, digits and _ (at most 63, first a letter, not pg_…)",
        ),
        (
            "[lease]\nstore = 'postgres://h/x?sslmode=on'",
            "shop.toml:4: lease.store: sslmode=on: write one of disable, prefer, require, verify-ca, verify-full",
        ),
        (
            "[health]\ntimeout = '5s'",
            "shop.toml:4: health.timeout = \"5s\": it must be longer than cycle (5s); write \"15s\" here, or cycle = \"1.6s\"",
        ),
        (
            "[health]\nrequest_timeout = '31s'",
            "shop.toml:4: health.request_timeout = \"31s\": it must not be longer than health.timeout (30s); write at most \"30s\"",
        ),
    ] {
        assert_eq!(bad(&shop(text)), words);
    }
}

#[test]
fn mistakes_outside_the_file_name_the_variable_or_the_flag() {
    let env = |name: &str, value: &str| read_with(SHOP, &[(name, value)], &[]).map(|_| ()).expect_err(name).to_string();
    assert_eq!(
        env("LOCUM_CYCLE", "5"),
        "environment LOCUM_CYCLE: cycle = \"5\": a duration has a unit: write 5s for seconds, 5ms for milliseconds"
    );
    assert_eq!(
        env("LOCUM_LEASE_TLL", "5s"),
        "environment LOCUM_LEASE_TLL: unknown variable; did you mean LOCUM_LEASE_TTL?"
    );
    let flags = |flags: &[Flag]| read_with(SHOP, &[], flags).map(|_| ()).expect_err("flags").to_string();
    assert_eq!(
        flags(&[flag("--restart", "restart.when", "nver")]),
        "flag --restart: restart.when = \"nver\": did you mean never? Possible are always, on-failure, never"
    );
    assert_eq!(
        flags(&[flag("--set", "lease.tll", "5s")]),
        "flag --set: unknown key lease.tll; did you mean lease.ttl?"
    );
    assert_eq!(
        flags(&[flag("--ttl", "lease.ttl", "5s"), flag("--set", "lease.ttl", "6s")]),
        "flag --set: lease.ttl was already given by --ttl; leave one out"
    );
}

#[test]
fn every_mistake_of_a_file_is_told_at_once_in_its_order() {
    assert_eq!(
        bad("cicle = \"5s\"\n[health]\ntimeout = 5\n[lease]\nstore = 7\n"),
        "command: missing; write command = [\"/usr/bin/shop\", \"--port\", \"80\"], or give it behind --\n\
         shop.toml:1: unknown key cicle; did you mean cycle?\n\
         shop.toml:3: health.timeout = 5: a duration has a unit: write \"5s\" for seconds, \"5ms\" for milliseconds\n\
         shop.toml:5: lease.store = 7: this is a number; write a string, like \"postgres://locum@db1,db2/ops\""
    );
}

#[test]
fn broken_toml_is_told_by_line_and_never_quoted() {
    let text = bad("command = ['x']\n[lease]\nstore = \"postgres://u:geheim@h/db\nnode = 'a'\n");
    assert!(text.starts_with("shop.toml:3: cannot read the TOML: "), "{text}");
    assert!(!text.contains("geheim"), "{text}");
    let text = bad("cycle = '1s'\ncycle = '2s'\n");
    assert_eq!(text, "shop.toml:2: cannot read the TOML: duplicate key");
}

#[test]
fn a_misspelt_key_is_not_called_missing_as_well() {
    assert_eq!(
        bad("servce = 'x'\ncomand = ['x']\n[lease]\nstore = 'file:/x'\n"),
        "shop.toml:1: unknown key servce; did you mean service?\nshop.toml:2: unknown key comand; did you mean command?"
    );
}

#[test]
fn a_service_is_needed_with_a_store() {
    assert_eq!(
        bad("command = ['/usr/bin/shop']\n[lease]\nstore = 'file:/x'\n"),
        "service: missing; with a store all hosts have to share a name: write service = \"shop\""
    );
}

#[test]
fn times_that_do_not_fit_are_refused_with_times_that_do() {
    let lease = |more: &str| shop(&format!("[lease]\nstore = 'file:/x'\n{more}"));
    let text = bad(&lease("ttl = '20s'\nstop_timeout = '15s'\n"));
    assert_eq!(
        text,
        "shop.toml:6: lease.stop_timeout = \"15s\": the lease is too short for its parts: \
         renew 5 + 2 × store_timeout 2 + stop_timeout 15 + kill_margin 0.5 + slack 0.25 = 24.75 s, \
         but a ttl of 20s lasts 19.92 s; write lease.stop_timeout = \"10.1s\" or lease.ttl = \"25s\""
    );
    // Whatever is proposed has to pass.
    for given in [
        "stop_timeout = '15s'",
        "renew = '19s'",
        "store_timeout = '9s'",
        "kill_margin = '19s'",
        "ttl = '700ms'\nrenew = '600ms'",
        "ttl = '1s'\nstop_timeout = '2s'\nclock_error = 0.1",
        "renew = '15s'\nstore_timeout = '8s'\nstop_timeout = '10s'",
    ] {
        let text = bad(&lease(given));
        let ways = text.rsplit_once("; write ").expect("a remedy").1.replace('"', "'");
        for way in ways.split(" or ") {
            let (key, value) = way.trim().trim_start_matches("lease.").split_once(" = ").expect("key = value");
            let kept: Vec<&str> = given.lines().filter(|l| !l.starts_with(key)).collect();
            good(&lease(&format!("{}\n{key} = {value}\n", kept.join("\n"))));
        }
    }
}

#[test]
fn a_cycle_that_outlasts_the_health_timeout_is_refused_only_where_it_matters() {
    let text = bad(&shop("cycle = '60s'\n[health]\nurl = 'http://h/'\n"));
    assert_eq!(
        text,
        "shop.toml:3: cycle = \"60s\": it must be shorter than health.timeout (default 30s); write health.timeout = \"3m\""
    );
    good(&shop("cycle = '60s'\n"));
}

#[test]
fn no_password_is_ever_shown() {
    let text = shop(
        "[lease]\nstore = 'postgres://u:geheim@db1:1,db2/ops'\nnode = 'a'\n[health]\nurl = 'http://me:geheim@h/'\n",
    );
    let loaded = good(&text);
    assert_eq!(shown(&loaded, "lease.store"), "postgres://u:***@db1:1,db2/ops (shop.toml:4)");
    assert_eq!(shown(&loaded, "lease.store password"), "*** (shop.toml:4)");
    assert_eq!(shown(&loaded, "health.url"), "http://me:***@h/ (shop.toml:7)");
    assert!(!format!("{:?}", loaded.values).contains("geheim"));
    assert!(!format!("{:?}", loaded.config.lease).contains("geheim"));
    for broken in [
        "postgres://u:geheim@db1:x/ops",
        "postgres://u:geheim@db1/ops?x=1",
        "postgres://u:geheim/ops",
        "postgres:/u:geheim@db1",
        "pg://u:geheim@db1",
        "postgres://db1/x?password=geheim",
    ] {
        let text = bad(&shop(&format!("[lease]\nstore = '{broken}'\n")));
        assert!(!text.contains("geheim"), "{text}");
    }
    let error = read_with(SHOP, &[], &[flag("--store", "lease.store", "postgres://u:geheim@db1/ops")]).map(|_| ());
    assert_eq!(
        error.expect_err("refused").to_string(),
        "flag --store: lease.store: a password in a flag is seen by everybody in ps; \
         write it into ~/.pgpass, PGPASSWORD or the configuration file"
    );
    let open = File { name: "shop.toml", text: &text, mode: 0o644 };
    let warned = load_text(&sources(&[], &[]), Some(open)).expect("valid").warnings;
    assert_eq!(
        warned[0].to_string(),
        "shop.toml:4: lease.store holds a password, and others can read this file (mode 0644); chmod 600 it"
    );
}

fn postgres(address: &str, env: &[(&str, &str)]) -> (crate::config::Postgres, Loaded) {
    let text = shop(&format!("[lease]\nstore = '{address}'\nnode = 'a'\n"));
    let loaded = read_with(&text, env, &[]).unwrap_or_else(|e| panic!("{e}"));
    match loaded.config.lease.clone().map(|l| l.store) {
        Some(Target::Postgres(pg)) => (pg, loaded),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_an_address_leaves_open_is_found_where_libpq_finds_it() {
    let env = [
        ("PGHOST", "h1,h2"),
        ("PGPORT", "1,2"),
        ("PGDATABASE", "ops"),
        ("PGUSER", "me"),
        ("PGPASSWORD", "geheim"),
        ("PGSSLMODE", "verify-ca"),
        ("PGSSLROOTCERT", "ca.pem"),
    ];
    let (pg, loaded) = postgres("postgres://", &env);
    assert_eq!(pg.hosts, [("h1".to_string(), 1), ("h2".to_string(), 2)]);
    assert_eq!((pg.database.as_str(), pg.user.as_str(), pg.sslmode), ("ops", "me", SslMode::VerifyCa));
    assert_eq!(pg.sslrootcert, Some("/work/ca.pem".into()));
    assert_eq!(pg.passwords.iter().flatten().count(), 2);
    assert_eq!(shown(&loaded, "lease.store user"), "me (environment PGUSER)");
    let (pg, loaded) = postgres("postgres://you:x@h3/db?sslmode=disable", &env[2..]);
    assert_eq!(pg.hosts, [("h3".to_string(), 5432)]);
    assert_eq!((pg.database.as_str(), pg.user.as_str(), pg.sslmode), ("db", "you", SslMode::Disable));
    assert_eq!(shown(&loaded, "lease.store sslmode"), "disable (shop.toml:4)");
    let (pg, loaded) = postgres("postgres://you@", &[("PGHOSTLIST", "a:7,b:8"), ("SERVER_ID", "s1")]);
    assert_eq!(pg.hosts, [("a".to_string(), 7), ("b".to_string(), 8)]);
    assert_eq!((pg.database.as_str(), pg.sslmode), ("you", SslMode::Prefer));
    assert_eq!(shown(&loaded, "lease.node"), "s1 (environment SERVER_ID)");
    let (pg, _) = postgres("postgres://u@h/d?sslrootcert=system", &[]);
    assert_eq!((pg.sslmode, pg.sslrootcert), (SslMode::VerifyFull, None));
}

#[test]
fn server_id_names_the_node_unless_something_nearer_does() {
    let text = shop("[lease]\nstore = 'file:/x'\n");
    let node = |env: &[(&str, &str)]| shown(&read_with(&text, env, &[]).expect("valid"), "lease.node");
    assert_eq!(node(&[("SERVER_ID", "s1")]), "s1 (environment SERVER_ID)");
    assert_eq!(node(&[("SERVER_ID", "s1"), ("LOCUM_LEASE_NODE", "n1")]), "n1 (environment LOCUM_LEASE_NODE)");
    // Without a store it is somebody else's variable.
    assert!(read_with(SHOP, &[("SERVER_ID", "s1")], &[]).expect("valid").warnings.is_empty());
}

#[test]
fn a_password_file_counts_only_if_nobody_else_can_use_it() {
    let folder = std::env::temp_dir().join(format!("locum-pgpass-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("folder");
    let path = folder.join(".pgpass");
    std::fs::write(&path, "db2:5432:ops:u:two\n*:*:*:u:any\n").expect("written");
    let set = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("mode");
    let home = folder.display().to_string();
    let text = shop("[lease]\nstore = 'postgres://u@db1,db2/ops'\nnode = 'a'\n");
    set(0o600);
    let loaded = read_with(&text, &[("HOME", &home)], &[]).expect("valid");
    assert_eq!(shown(&loaded, "lease.store password for db1:5432"), format!("*** ({home}/.pgpass:2)"));
    assert_eq!(shown(&loaded, "lease.store password for db2:5432"), format!("*** ({home}/.pgpass:1)"));
    set(0o640);
    let loaded = read_with(&text, &[("HOME", &home)], &[]).expect("valid");
    assert_eq!(shown(&loaded, "lease.store password"), "none (default)");
    assert_eq!(
        loaded.warnings[0].to_string(),
        format!(
            "{home}/.pgpass: this password file is ignored, as libpq does: others can use it (mode 0640); chmod 600 it"
        )
    );
    std::fs::remove_dir_all(&folder).expect("removed");
}

#[test]
fn a_locum_inside_another_is_not_confused_by_what_its_command_is_given() {
    let given = [("LOCUM_TOKEN", "4"), ("LOCUM_NODE", "a"), ("LOCUM_INSTANCE", "i"), ("LOCUM_EPOCH", "1")];
    assert!(read_with(SHOP, &given, &[]).expect("valid").warnings.is_empty());
    let alone = read_with(SHOP, &given[1..2], &[]).expect("valid").warnings;
    assert!(alone[0].to_string().ends_with("this node's name is LOCUM_LEASE_NODE"), "{}", alone[0]);
    let stranger = read_with(SHOP, &[("LOCUM_PORT_80_TCP", "x")], &[]).expect("valid").warnings;
    assert_eq!(stranger.len(), 1);
}

#[test]
fn the_store_alone_is_enough_for_its_schema() {
    let mut s = sources(&[], &[flag("--store", "lease.store", "postgres://u@h/d")]);
    s.need = Need::Store;
    assert!(load_text(&s, None).expect("valid").config.lease.is_some());
    s.flags.clear();
    let text = load_text(&s, None).map(|_| ()).expect_err("no store").to_string();
    assert!(text.starts_with("lease.store: missing; write"), "{text}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let mut s = sources(&[], &[]);
    s.file = Some("no-such.toml".into());
    let text = load(&s).map(|_| ()).expect_err("no file").to_string();
    assert_eq!(text, "no-such.toml: cannot read the configuration: No such file or directory (os error 2)");
    s.file = Some("/".into());
    assert!(load(&s).map(|_| ()).expect_err("a folder").to_string().contains("this is a folder"));
}

#[test]
fn the_shipped_examples_are_valid_and_show_the_defaults() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("etc");
    for name in ["minimal.toml", "shop.toml", "file-store.toml"] {
        let mut s = sources(&[], &[]);
        s.file = Some(folder.join(name));
        let loaded = load(&s).unwrap_or_else(|e| panic!("{e}"));
        assert!(loaded.warnings.is_empty(), "{name}: {:?}", loaded.warnings);
        if name != "shop.toml" {
            continue;
        }
        for key in KEYS {
            let value = loaded.values.iter().find(|s| s.key == key.name);
            if let (KeyDefault::Text(text), Some(value)) = (key.default, value) {
                assert_eq!(value.value, text, "{}", key.name);
                assert!(matches!(value.origin, Origin::File { .. }), "{} is not in the example", key.name);
            }
        }
    }
}

#[test]
fn a_configuration_survives_its_way_to_the_agent() {
    let text = shop("[lease]\nstore = 'postgres://u:geheim@db1,db2/ops'\nnode = 'a'\n[log.modules]\nstore = 'debug'\n");
    let config = good(&text).config;
    let json = serde_json::to_string(&config).expect("JSON");
    assert_eq!(serde_json::from_str::<Config>(&json).expect("back"), config);
}
