//! The health of the command, as its own URL tells it: one GET, one verdict, in time.
//!
//! Whatever the endpoint does (refuses, hangs, trickles, redirects, sends garbage or
//! without end, shows a certificate that nobody trusts), the verdict comes within the
//! request's time-out, and takes a few KiB of memory. The request runs on a thread
//! that sleeps until it is asked; should even that hang (a name look-up cannot be
//! bounded otherwise), its owner gives it up.
//!
//! What must never happen here: a panic, a delay for anybody else, and a verdict
//! that lets an answer other than 2xx pass for healthy.

use crate::core::Verdict;
use crate::worker::{Refusal, Worker};
use rustls::crypto::ring;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use ureq::http::{StatusCode, Uri};
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

/// The most that is read of an answer's body.
const BODY_BYTES_MAX: u64 = 4 * 1024;
/// The most that is taken for the status line and the headers of an answer.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// How many given-up requests may hang at once.
const HANGING_MAX: u32 = 3;

/// Asks one URL, each time it is told to.
pub struct Prober {
    worker: Worker<(), Verdict>,
    deliver: Arc<dyn Fn(Verdict) + Send + Sync>,
    timeout: Duration,
}

impl Prober {
    /// A prober of `url`, each of whose verdicts comes within `request_timeout`. No thread
    /// is made before the first probe.
    ///
    /// `deliver` takes the verdicts: on the prober's thread, or on the caller's own when a
    /// probe is refused at once. It must not block, and must not call back in here.
    pub fn start(url: &str, request_timeout: Duration, deliver: impl Fn(Verdict) + Send + Sync + 'static) -> Prober {
        let deliver: Arc<dyn Fn(Verdict) + Send + Sync> = Arc::new(deliver);
        let (url, taker) = (url.to_owned(), deliver.clone());
        let make = move || {
            let (url, mut agent) = (url.clone(), None);
            Box::new(move |()| {
                let agent = agent.get_or_insert_with(|| agent_for(&url, request_timeout));
                ask(agent, &url, request_timeout)
            }) as Box<dyn FnMut(()) -> Verdict>
        };
        let worker = Worker::new("health", HANGING_MAX, make, move |verdict| taker(verdict));
        Prober { worker, deliver, timeout: request_timeout }
    }

    /// Asks now. Does nothing while a probe is under way.
    pub fn probe(&mut self) {
        let why = match self.worker.ask(()) {
            Ok(()) | Err(Refusal::Busy) => return,
            Err(Refusal::Hanging(n)) => format!("{n} health checks hang; waiting for one of them to end"),
            Err(refusal) => format!("cannot check: {refusal}"),
        };
        (self.deliver)(Verdict::Failing(why));
    }

    /// How long after [`Prober::probe`] the owner has to call [`Prober::give_up`] if no
    /// verdict came. The request itself ends a little earlier, unless its name look-up hangs.
    pub fn patience(&self) -> Duration {
        self.timeout
    }

    /// Gives up the probe under way, and says what that means for the command's health.
    /// None if its verdict has been delivered already, or if there is none.
    pub fn give_up(&mut self) -> Option<Verdict> {
        self.worker.give_up().then(|| {
            Verdict::Failing(format!("no answer within {}, the look-up of its host included", seconds(self.timeout)))
        })
    }

    /// How many given-up probes still hang.
    pub fn hanging(&self) -> u32 {
        self.worker.hanging()
    }
}

/// One check, for `locum check --connect`; may take longer than `timeout` only if a name look-up hangs.
pub fn probe_once(url: &str, timeout: Duration) -> Verdict {
    ask(&agent_for(url, timeout), url, timeout)
}

fn ask(agent: &ureq::Agent, url: &str, timeout: Duration) -> Verdict {
    if is_https(url) && roots().is_empty() {
        return Verdict::Failing(
            "this system has no root certificates: install ca-certificates, or set SSL_CERT_FILE".into(),
        );
    }
    let mut answer = match agent.get(url).header("connection", "close").call() {
        Ok(answer) => answer,
        Err(e) => return Verdict::Failing(detail(&e, timeout)),
    };
    let status = answer.status();
    if !status.is_success() {
        let told = told(status);
        return if status == StatusCode::SERVICE_UNAVAILABLE {
            Verdict::NotReady(told)
        } else {
            Verdict::Failing(told)
        };
    }
    // A service that cannot finish a small answer is not well; a long one is not waited for.
    let mut body = answer.body_mut().as_reader().take(BODY_BYTES_MAX);
    match io::copy(&mut body, &mut io::sink()) {
        Ok(_) => Verdict::Healthy(told(status)),
        Err(e) => {
            Verdict::Failing(format!("{} without its end: {}", told(status), detail(&ureq::Error::from(e), timeout)))
        }
    }
}

fn agent_for(url: &str, timeout: Duration) -> ureq::Agent {
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        // ureq panics without roots or provider: both are given, and a plain URL needs none of the roots.
        .root_certs(RootCerts::Specific(if is_https(url) { roots() } else { Arc::default() }))
        .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
        .build();
    let config = ureq::Agent::config_builder()
        // The kernel rounds a socket's time-out up: what is a little shorter ends in time.
        .timeout_global(Some(timeout - (timeout / 50).min(Duration::from_millis(25))))
        .proxy(None)
        .max_redirects(0)
        .http_status_as_error(false)
        .max_idle_connections(0)
        .max_idle_connections_per_host(0)
        .max_response_header_size(HEAD_BYTES_MAX)
        // A full buffer looks like the end of the answer: it has to hold more than a head may have.
        .input_buffer_size(2 * HEAD_BYTES_MAX)
        .output_buffer_size(4 * 1024)
        .user_agent(concat!("locum/", env!("CARGO_PKG_VERSION")))
        .tls_config(tls)
        .build();
    ureq::Agent::with_parts(config, DefaultConnector::default(), Here)
}

/// Looks names up on the thread that asks: it is one that may hang. The library's own
/// way leaves another thread behind at each look-up that does.
#[derive(Debug)]
struct Here;

impl Resolver for Here {
    fn resolve(&self, uri: &Uri, _: &ureq::config::Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.host().ok_or(ureq::Error::HostNotFound)?;
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
        let mut found = self.empty();
        if let Ok(address) = bare.parse::<IpAddr>() {
            found.push(SocketAddr::new(address, port));
            return Ok(found);
        }
        let addresses = (bare, port).to_socket_addrs().map_err(|_| ureq::Error::HostNotFound)?;
        // As many as the library's list holds.
        addresses.take(16).for_each(|address| found.push(address));
        if found.is_empty() { Err(ureq::Error::HostNotFound) } else { Ok(found) }
    }
}

/// The authorities that this system trusts: read once, and only for https.
fn roots() -> Arc<Vec<Certificate<'static>>> {
    static ROOTS: OnceLock<Arc<Vec<Certificate<'static>>>> = OnceLock::new();
    let load = || {
        let found = rustls_native_certs::load_native_certs();
        Arc::new(found.certs.iter().map(|der| Certificate::from_der(der).to_owned()).collect())
    };
    ROOTS.get_or_init(load).clone()
}

fn is_https(url: &str) -> bool {
    url.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"))
}

fn told(status: StatusCode) -> String {
    match status.canonical_reason() {
        Some(reason) => format!("{} {reason}", status.as_u16()),
        None => status.as_u16().to_string(),
    }
}

/// An error in the words of a person who reads the log at night. Nothing of the
/// answer or the URL is in it: both may hold what is nobody's business.
fn detail(e: &ureq::Error, timeout: Duration) -> String {
    use ureq::Error as E;
    match e {
        E::Timeout(_) => format!("no answer within {}", seconds(timeout)),
        E::HostNotFound => "the name of its host cannot be resolved".into(),
        E::LargeResponseHeader(..) => format!("the head of its answer is larger than {} KiB", HEAD_BYTES_MAX / 1024),
        E::Protocol(_) | E::Http(_) => "the answer is not HTTP".into(),
        E::BadUri(_) | E::RequireHttpsOnly(_) => "health.url is not a URL of http or https".into(),
        E::Rustls(cause) => format!("TLS: {cause}"),
        E::Io(cause) => match cause.kind() {
            io::ErrorKind::ConnectionRefused => "connection refused".into(),
            io::ErrorKind::ConnectionReset => "connection reset".into(),
            io::ErrorKind::UnexpectedEof => "connection closed without an answer".into(),
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => format!("no answer within {}", seconds(timeout)),
            _ => match cause.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                Some(cause) => format!("TLS: {cause}"),
                None => cause.to_string(),
            },
        },
        other => other.to_string(),
    }
}

fn seconds(d: Duration) -> String {
    format!("{} s", (d.as_secs_f64() * 1000.0).round() / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_told_with_its_name() {
        assert_eq!(told(StatusCode::SERVICE_UNAVAILABLE), "503 Service Unavailable");
        assert_eq!(told(StatusCode::from_u16(599).unwrap()), "599");
    }

    #[test]
    fn durations_are_told_in_seconds() {
        assert_eq!(seconds(Duration::from_secs(5)), "5 s");
        assert_eq!(seconds(Duration::from_millis(250)), "0.25 s");
    }

    #[test]
    fn only_https_needs_certificates() {
        assert!(is_https("HTTPS://db/"));
        for url in ["http://db/", "https", "", "ü"] {
            assert!(!is_https(url), "{url}");
        }
    }
}
