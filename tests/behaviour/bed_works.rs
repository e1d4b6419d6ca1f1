//! The test bed itself: what the other tests stand on.

use crate::bed::{Bed, Lab, Manner, Pooler, Postgres, Server, alive, free_port, s, wait_until};
use std::io::Write;
use std::process::{Command, Stdio};

fn login(url: &str) -> Result<String, String> {
    let out = Command::new("psql")
        .args(["-X", "-At", url, "-c", "select current_user"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    if out.status.success() {
        Ok(String::from_utf8_lossy(&out.stdout).trim().into())
    } else {
        Err(String::from_utf8_lossy(&out.stderr).into_owned())
    }
}

#[test]
fn a_cluster_wants_tls_and_a_password_and_survives_a_crash() {
    let bed = Bed::new("bed-pg");
    let mut pg = Postgres::start(&bed);
    assert_eq!(login(&pg.url()), Ok("locum".into()));
    assert_eq!(login(&Postgres::url_of(&[&pg], "locum2")), Ok("locum2".into()));
    let plain = pg.url().replace("verify-full", "disable");
    assert!(login(&plain).unwrap_err().contains("no encryption"));
    pg.sql("create table t (x int)");
    pg.crash();
    assert!(login(&pg.url()).is_err());
    pg.up();
    assert_eq!(pg.sql("select count(*) from t"), "0");
    pg.stop();
}

#[test]
fn a_frozen_cluster_accepts_and_never_answers_until_it_thaws() {
    let bed = Bed::new("bed-freeze");
    let mut pg = Postgres::start(&bed);
    pg.freeze();
    assert!(std::net::TcpStream::connect((pg.address(), pg.port())).is_ok());
    let mut psql =
        Command::new("psql").args(["-X", "-At", &pg.url(), "-c", "select 1"]).stdout(Stdio::null()).spawn().unwrap();
    std::thread::sleep(s(1.0));
    assert!(psql.try_wait().unwrap().is_none(), "a frozen server has answered");
    pg.thaw();
    wait_until(s(10.0), "the thawed server to answer", || psql.try_wait().unwrap().is_some());
    let mut session = pg.session();
    session.stdin.as_mut().unwrap().write_all(b"select 1;\n").unwrap();
    wait_until(s(5.0), "a session", || {
        pg.sql("select count(*) from pg_stat_activity where datname = 'ops' and backend_type = 'client backend'") == "2"
    });
    pg.freeze_sessions();
    pg.thaw();
    session.kill().unwrap();
    session.wait().unwrap();
}

#[test]
fn a_synchronous_standby_can_be_promoted_and_the_old_primary_comes_back_writable() {
    let bed = Bed::new("bed-standby");
    let mut a = Postgres::start(&bed);
    let b = a.standby(&bed, "b", Server::default());
    a.sql("create table t (x int)");
    assert_eq!(b.sql("select count(*), pg_is_in_recovery() from t"), "0|t");
    a.crash();
    b.promote();
    b.sql("insert into t values (1)");
    a.up();
    assert_eq!(a.sql("select pg_is_in_recovery()"), "f");
    let timeline =
        |p: &Postgres| p.sql("select ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int");
    assert_eq!((timeline(&a).as_str(), timeline(&b).as_str()), ("1", "2"));
}

#[test]
fn a_clusters_clock_can_be_stepped() {
    let bed = Bed::new("bed-clock");
    let pg = Postgres::start_as(&bed, Server { false_clock: true, ..Server::default() });
    let ahead = |pg: &Postgres| -> f64 {
        let there: f64 = pg.sql("select extract(epoch from clock_timestamp())").parse().unwrap();
        there - std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64()
    };
    assert!(ahead(&pg).abs() < 5.0);
    pg.step_clock(3600);
    assert!((ahead(&pg) - 3600.0).abs() < 5.0);
    pg.step_clock(-3600);
    assert!((ahead(&pg) + 3600.0).abs() < 5.0);
}

#[test]
fn a_pooler_passes_statements_on() {
    let bed = Bed::new("bed-pooler");
    let pg = Postgres::start(&bed);
    let pooler = Pooler::start(&bed, &pg);
    assert_eq!(login(&pooler.url()), Ok("locum".into()));
}

#[test]
fn a_cable_can_be_cut_one_way_and_both_and_healed() {
    let bed = Bed::new("bed-lab");
    let lab = Lab::new(3);
    let pg = Postgres::start_as(
        &bed,
        Server { namespace: Some(lab.host(3)), address: Some(lab.address(3)), ..Server::default() },
    );
    let url = pg.url() + "&connect_timeout=2";
    let reach = |host: usize| {
        let mut psql = Lab::command(&lab.host(host));
        psql.args(["psql", "-X", "-At", &url, "-c", "select 1"])
            .stderr(Stdio::null())
            .output()
            .unwrap()
            .status
            .success()
    };
    assert!(reach(1) && reach(2));
    lab.isolate(1);
    assert!(!reach(1) && reach(2));
    lab.heal();
    lab.cut_from(3, 2);
    assert!(reach(1) && !reach(2));
    lab.heal();
    lab.cut(2, 3);
    assert!(!reach(2));
    lab.heal();
    assert!(reach(2));
}

#[test]
fn a_beater_makes_a_tree_that_only_a_sweep_ends() {
    let bed = Bed::new("bed-beater");
    // The supervisor of this test is a shell: kill -9 of the group leaves the grandchild.
    let node = bed.node("a");
    let line = node.beater(&["--member", "--idle", "10"]).toml();
    let words: Vec<String> =
        line.lines().find_map(|l| l.strip_prefix("command = ")).map(|l| serde_json::from_str(l).unwrap()).unwrap();
    let mut beater = Command::new(&words[0]).args(&words[1..]).env("BED_OF", bed.dir()).spawn().unwrap();
    let leader = beater.id() as i32;
    wait_until(s(5.0), "three processes to beat", || bed.beats().pids_of(leader).len() == 3);
    let pids = bed.beats().pids_of(leader);
    beater.kill().unwrap();
    beater.wait().unwrap();
    assert_eq!(pids.iter().filter(|p| alive(**p)).count(), 2, "grandchild and member survive their leader");
    bed.prove_no_overlap();
    drop(bed);
    assert!(pids.iter().all(|p| !alive(*p)), "the bed sweeps what is marked");
}

#[test]
fn an_endpoint_misbehaves_as_told() {
    let endpoint = crate::bed::Endpoint::start(Manner::Status(503));
    let get = || {
        use std::io::Read;
        let address = endpoint.url().trim_start_matches("http://").split('/').next().unwrap().to_owned();
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(s(0.5))).unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut text = Vec::new();
        let ended = stream.read_to_end(&mut text).is_ok();
        (String::from_utf8_lossy(&text[..text.len().min(12)]).into_owned(), ended)
    };
    assert_eq!(get(), ("HTTP/1.1 503".into(), true));
    endpoint.turn(Manner::Silent);
    assert_eq!(get(), (String::new(), false));
    assert_eq!(endpoint.asked(), 2);
    assert_ne!(free_port(), free_port());
}
