//! Throwaway PostgreSQL clusters: TLS by an authority made here, scram passwords,
//! frozen, crashed, cut off, promoted and with a wrong clock on demand.
//!
//! `initdb` runs once; each test gets a copy. The server never runs as root. The
//! copies share a system identifier, as a cluster and its standby do.
//!
//! Users of database `ops` (all with [`PASSWORD`]): `locum` may create a schema,
//! `locum2` is a member of `locum` with another search path, `guest` may only log in.

use super::ground;
use super::lab::Lab;
use super::process::{self, children};
use super::{Bed, wait_until};
use nix::sys::signal::Signal;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The password of every user.
pub const PASSWORD: &str = "s3kret-passw0rd";

/// The programs of the newest server that is installed.
fn bin(program: &str) -> PathBuf {
    let version = |p: &Path| p.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse::<u32>().ok());
    let newest = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.join("bin/initdb").exists())
        .max_by_key(|p| version(p));
    newest.unwrap_or_else(|| panic!("no PostgreSQL server is installed: run tests/setup.sh")).join("bin").join(program)
}

/// A command that runs as the database's user: the server refuses root.
fn as_postgres(ns: Option<&str>) -> Command {
    let mut command = match ns {
        Some(ns) => Lab::command(ns),
        None if nix::unistd::geteuid().is_root() => Command::new("env"),
        None => return Command::new("env"),
    };
    // Else the stream of a standby looks for certificates in root's home.
    command.env("HOME", "/nonexistent");
    command.args(["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]);
    command
}

fn give_to_postgres(path: &Path) {
    if nix::unistd::geteuid().is_root() {
        run(Command::new("chown").arg("-R").arg("postgres:postgres").arg(path));
    }
}

fn run(command: &mut Command) -> String {
    let out = command.output().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    assert!(
        out.status.success(),
        "{command:?} failed: {}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

/// What a cluster is to be.
#[derive(Clone, Debug, Default)]
pub struct Server {
    /// On which host of a lab; none is loopback.
    pub namespace: Option<String>,
    /// The address to listen on; none is 127.0.0.1.
    pub address: Option<String>,
    /// Whether the server's clock can be stepped ([`Postgres::step_clock`]).
    pub false_clock: bool,
    /// More lines for postgresql.conf.
    pub settings: String,
}

/// One cluster.
pub struct Postgres {
    dir: PathBuf,
    port: u16,
    server: Server,
    postmaster: Option<Child>,
    frozen: Vec<i32>,
}

impl Postgres {
    /// A cluster on loopback, ready to be used.
    pub fn start(bed: &Bed) -> Postgres {
        Postgres::start_as(bed, Server::default())
    }

    /// The same, as described.
    pub fn start_as(bed: &Bed, server: Server) -> Postgres {
        let mut pg = Postgres::prepare(bed, server);
        run(Command::new("cp").arg("-a").arg(template().join("data")).arg(pg.data()));
        pg.configure("");
        pg.up();
        pg
    }

    /// A synchronous standby of this cluster, streaming. It is called `name`.
    pub fn standby(&self, bed: &Bed, name: &str, server: Server) -> Postgres {
        let mut pg = Postgres::prepare(bed, server);
        let from = format!("host={} port={} user=postgres application_name={name}", self.dir.display(), self.port);
        // Over the socket for the copy, over TCP with a password for the stream.
        run(as_postgres(None)
            .arg(bin("pg_basebackup"))
            .args(["-d", &from, "-X", "stream", "-c", "fast", "--no-sync"])
            .arg("-D")
            .arg(pg.data()));
        let stream = format!(
            "host={} port={} user=postgres password={PASSWORD} sslmode=require application_name={name}",
            self.address(),
            self.port
        );
        pg.configure(&format!("primary_conninfo = '{stream}'\n"));
        fs::write(pg.data().join("standby.signal"), "").unwrap();
        give_to_postgres(&pg.dir);
        pg.up();
        self.sql(&format!("alter system set synchronous_standby_names = 'FIRST 1 ({name})'"));
        self.sql("select pg_reload_conf()");
        wait_until(Duration::from_secs(20), "the standby to be synchronous", || {
            self.sql("select sync_state from pg_stat_replication") == "sync"
        });
        pg
    }

    fn prepare(bed: &Bed, server: Server) -> Postgres {
        template();
        let dir = (1..).map(|i| bed.dir().join(format!("pg{i}"))).find(|d| !d.exists()).unwrap();
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("clock"), "+0\n").unwrap();
        give_to_postgres(&dir);
        let port = if server.namespace.is_some() { 5432 } else { ground::free_port() };
        Postgres { dir, port, server, postmaster: None, frozen: Vec::new() }
    }

    /// The last words of postgresql.conf win, so each copy only adds some.
    fn configure(&self, more: &str) {
        let conf = self.data().join("postgresql.conf");
        let mut text = fs::read_to_string(&conf).unwrap();
        text.push_str(&format!(
            "listen_addresses = '{}'\nport = {}\nunix_socket_directories = '{}'\n{more}{}\n",
            self.address(),
            self.port,
            self.dir.display(),
            self.server.settings
        ));
        fs::write(&conf, text).unwrap();
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// The address it listens on.
    pub fn address(&self) -> &str {
        self.server.address.as_deref().unwrap_or("127.0.0.1")
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The certificate of the authority.
    pub fn authority() -> PathBuf {
        template().join("ca.crt")
    }

    /// The store's address for user `locum` with full verification.
    pub fn url(&self) -> String {
        Postgres::url_of(&[self], "locum")
    }

    /// The same for several servers and any user.
    pub fn url_of(servers: &[&Postgres], user: &str) -> String {
        let hosts: Vec<String> = servers.iter().map(|p| format!("{}:{}", p.address(), p.port)).collect();
        let ca = Postgres::authority();
        format!("postgres://{user}:{PASSWORD}@{}/ops?sslmode=verify-full&sslrootcert={}", hosts.join(","), ca.display())
    }

    /// Starts it (again), and waits until it answers.
    pub fn up(&mut self) {
        assert!(self.postmaster.is_none(), "it runs already");
        let mut command = as_postgres(self.server.namespace.as_deref());
        if self.server.false_clock {
            let lib = fs::read_dir("/usr/lib")
                .unwrap()
                .flatten()
                .map(|e| e.path().join("faketime/libfaketimeMT.so.1"))
                .find(|p| p.exists())
                .unwrap_or_else(|| panic!("no libfaketime is installed: run tests/setup.sh"));
            let file = self.dir.join("clock");
            command.args([
                "env",
                &format!("LD_PRELOAD={}", lib.display()),
                &format!("FAKETIME_TIMESTAMP_FILE={}", file.display()),
            ]);
            command.args(["FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1"]);
        }
        let log = fs::OpenOptions::new().create(true).append(true).open(self.dir.join("log")).unwrap();
        let child = command
            .arg(bin("postgres"))
            .arg("-D")
            .arg(self.data())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start PostgreSQL: {e}"));
        self.postmaster = Some(child);
        wait_until(Duration::from_secs(30), "PostgreSQL to answer", || {
            assert!(self.lives(), "PostgreSQL ended: {}", self.log());
            self.try_sql("ops", "select 1").is_ok()
        });
    }

    fn lives(&mut self) -> bool {
        self.postmaster.as_mut().is_some_and(|c| c.try_wait().is_ok_and(|s| s.is_none()))
    }

    /// What the server logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Runs a statement in `ops` as the superuser, over the socket; the answer unaligned.
    pub fn sql(&self, statement: &str) -> String {
        self.try_sql("ops", statement).unwrap_or_else(|e| panic!("{statement}: {e}"))
    }

    /// The same in any database; the error's text if it fails.
    pub fn try_sql(&self, database: &str, statement: &str) -> Result<String, String> {
        let out = self.psql(database).args(["-c", statement]).output().map_err(|e| e.to_string())?;
        if out.status.success() {
            Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
        } else {
            Err(String::from_utf8_lossy(&out.stderr).into_owned())
        }
    }

    /// A session that goes on: its statements come from standard input.
    pub fn session(&self) -> Child {
        self.psql("ops").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn psql(&self, database: &str) -> Command {
        let mut psql = Command::new("psql");
        let to =
            format!("host={} port={} user=postgres dbname={database} connect_timeout=5", self.dir.display(), self.port);
        psql.args(["-X", "-At", "-v", "ON_ERROR_STOP=1", &to]).stdin(Stdio::null());
        psql
    }

    /// Makes it another cluster: the same data under another system identifier. It has to be stopped.
    pub fn change_identity(&self) {
        let control = self.data().join("global/pg_control");
        let mut bytes = fs::read(&control).unwrap();
        // The identifier comes first. The checksum is wrong now; pg_resetwal mends it when forced.
        bytes[..8].iter_mut().for_each(|b| *b ^= 0x15);
        fs::write(&control, bytes).unwrap();
        run(as_postgres(None).arg(bin("pg_resetwal")).arg("-f").arg("-D").arg(self.data()));
    }

    /// An orderly stop (`fast`).
    pub fn stop(&mut self) {
        self.end(Signal::SIGINT);
    }

    /// Kill -9 of the postmaster; waits until its children have left as well.
    pub fn crash(&mut self) {
        self.end(Signal::SIGKILL);
    }

    fn end(&mut self, how: Signal) {
        let Some(mut child) = self.postmaster.take() else { return };
        let pid = child.id() as i32;
        let family = process::Tree::of(children(pid));
        process::signal(pid, how);
        let start = Instant::now();
        while child.try_wait().is_ok_and(|s| s.is_none()) || !family.living().is_empty() {
            if start.elapsed() > Duration::from_secs(8) {
                process::signal(pid, Signal::SIGKILL);
                family.living().iter().for_each(|p| process::signal(*p, Signal::SIGKILL));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// SIGSTOP to the postmaster and every process of it: the server hangs, its sockets stay.
    pub fn freeze(&mut self) {
        let pid = self.pid();
        // The postmaster first: then it makes no more.
        for pid in std::iter::once(pid).chain(children(pid)) {
            process::signal(pid, Signal::SIGSTOP);
            self.frozen.push(pid);
        }
    }

    /// SIGSTOP to the postmaster only: it accepts no more (the kernel does), sessions go on.
    pub fn freeze_postmaster(&mut self) {
        process::signal(self.pid(), Signal::SIGSTOP);
        self.frozen.push(self.pid());
    }

    /// SIGSTOP to the sessions of `ops` only: new ones can still be made.
    pub fn freeze_sessions(&mut self) {
        let pids = self.sql("select pid from pg_stat_activity where datname = 'ops' and pid <> pg_backend_pid() and backend_type = 'client backend'");
        for pid in pids.lines().filter_map(|l| l.parse().ok()) {
            process::signal(pid, Signal::SIGSTOP);
            self.frozen.push(pid);
        }
        assert!(!self.frozen.is_empty(), "there was no session to freeze");
    }

    /// SIGCONT to all that was frozen.
    pub fn thaw(&mut self) {
        for pid in self.frozen.drain(..).rev() {
            process::signal(pid, Signal::SIGCONT);
        }
    }

    /// Makes a standby the primary, and waits until it is. It waits for no standby of its own.
    pub fn promote(&self) {
        self.try_sql("ops", "alter system set synchronous_standby_names = ''").ok();
        run(as_postgres(None).arg(bin("pg_ctl")).arg("-D").arg(self.data()).args(["-w", "promote"]));
        self.sql("alter system set synchronous_standby_names = ''");
        self.sql("select pg_reload_conf()");
    }

    /// Sets the server's clock off by this many seconds.
    pub fn step_clock(&self, seconds: i64) {
        assert!(self.server.false_clock, "ask for false_clock");
        fs::write(self.dir.join("clock"), format!("{seconds:+}\n")).unwrap();
    }

    fn pid(&self) -> i32 {
        self.postmaster.as_ref().expect("it runs").id() as i32
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.thaw();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!(
                "--- PostgreSQL {}: last lines\n{}",
                self.port,
                lines[lines.len().saturating_sub(15)..].join("\n")
            );
        }
        self.end(Signal::SIGQUIT);
    }
}

/// pgbouncer in transaction mode before a server.
pub struct Pooler {
    child: Child,
    port: u16,
}

impl Pooler {
    /// Starts it.
    pub fn start(bed: &Bed, pg: &Postgres) -> Pooler {
        let dir = bed.dir().join("pooler");
        fs::create_dir(&dir).unwrap();
        let port = ground::free_port();
        fs::write(dir.join("users"), format!("\"locum\" \"{PASSWORD}\"\n")).unwrap();
        fs::write(
            dir.join("ini"),
            format!(
                "[databases]\nops = host={} port={} dbname=ops\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
                 unix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {}/users\npool_mode = transaction\n\
                 default_pool_size = 2\nserver_tls_sslmode = require\nlogfile = {}/log\n",
                pg.address(),
                pg.port,
                dir.display(),
                dir.display()
            ),
        )
        .unwrap();
        give_to_postgres(&dir);
        let pgbouncer = if Path::new("/usr/sbin/pgbouncer").exists() { "/usr/sbin/pgbouncer" } else { "pgbouncer" };
        let child = as_postgres(None)
            .args([pgbouncer, "-q"])
            .arg(dir.join("ini"))
            .env(ground::MARK, bed.dir())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start pgbouncer: {e}"));
        wait_until(Duration::from_secs(10), "pgbouncer to listen", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Pooler { child, port }
    }

    /// The store's address through it.
    pub fn url(&self) -> String {
        format!("postgres://locum:{PASSWORD}@127.0.0.1:{}/ops?sslmode=disable", self.port)
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The cluster that all others are copied from, and the certificates; made once a run.
fn template() -> &'static Path {
    static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let dir = ground::run_folder().join("template");
        fs::create_dir(&dir).unwrap();
        ground::open_to_all(&dir, 0o755);
        certificates(&dir);
        fs::write(dir.join("pw"), PASSWORD).unwrap();
        give_to_postgres(&dir);
        let data = dir.join("data");
        run(as_postgres(None)
            .arg(bin("initdb"))
            .args(["-U", "postgres", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"])
            .arg(format!("--pwfile={}/pw", dir.display()))
            .arg("-D")
            .arg(&data));
        let conf = data.join("postgresql.conf");
        let mut text = fs::read_to_string(&conf).unwrap();
        text.push_str(&format!(
            "ssl = on\nssl_cert_file = '{0}/server.crt'\nssl_key_file = '{0}/server.key'\nfsync = off\n\
             max_connections = 60\nshared_buffers = 16MB\nwal_level = replica\nhot_standby = on\n\
             wal_receiver_timeout = 2s\nwal_sender_timeout = 2s\nwal_retrieve_retry_interval = 500ms\n\
             log_line_prefix = '%m [%p] %u '\n",
            dir.display()
        ));
        fs::write(&conf, text).unwrap();
        // The socket is the tests' own way in; over TCP only TLS and a password count.
        let hba = "local all all trust\nlocal replication all trust\nhostssl all all 0.0.0.0/0 scram-sha-256\n\
                   hostssl replication all 0.0.0.0/0 scram-sha-256\n";
        fs::write(data.join("pg_hba.conf"), hba).unwrap();
        give_to_postgres(&data);
        let mut single = as_postgres(None)
            .arg(bin("postgres"))
            .args(["--single", "-j", "-D"])
            .arg(&data)
            .arg("postgres")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let statements = [
            format!("create role locum login password '{PASSWORD}'"),
            format!("create role locum2 login password '{PASSWORD}' in role locum"),
            format!("create role guest login password '{PASSWORD}'"),
            "create database ops".into(),
            "grant create on database ops to locum".into(),
            "alter role locum2 set search_path = pg_temp, public".into(),
        ];
        // -j: a statement ends with a semicolon and an empty line.
        let text: String = statements.iter().map(|s| format!("{s};\n\n")).collect();
        std::io::Write::write_all(&mut single.stdin.take().unwrap(), text.as_bytes()).unwrap();
        assert!(single.wait().unwrap().success(), "cannot make the users");
        dir
    })
}

/// An authority and one certificate for every name and address that tests use.
fn certificates(dir: &Path) {
    let names: Vec<String> = (1..10).map(|i| format!("IP:10.77.0.{i}")).collect();
    fs::write(dir.join("ext"), format!("subjectAltName=DNS:localhost,IP:127.0.0.1,{}\n", names.join(","))).unwrap();
    let openssl = |words: &str| run(Command::new("openssl").args(words.split(' ')).current_dir(dir));
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!("req -x509 {key} -days 2 -subj /CN=bed-authority -keyout ca.key -out ca.crt"));
    openssl(&format!("req {key} -subj /CN=localhost -keyout server.key -out server.csr"));
    openssl("x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out server.crt");
    ground::open_to_all(&dir.join("server.key"), 0o600);
}
