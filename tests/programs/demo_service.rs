//! The service that the demo runs: it answers HTTP on one port, and is not ready for
//! its first moments, like a real one.
//!
//! `GET /health` answers 503 until it is ready, then 200; `GET /` says which node it runs
//! on, under which epoch and with which token. It cannot run twice on one machine: the
//! second could not have the port.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::exit;
use std::time::{Duration, Instant};

const WARM_UP: Duration = Duration::from_millis(600);

fn main() {
    let Some(port) = std::env::args().nth(1).and_then(|p| p.parse::<u16>().ok()) else {
        eprintln!("usage: demo_service PORT");
        exit(64);
    };
    let started = Instant::now();
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap_or_else(|e| {
        eprintln!("cannot listen on port {port}: {e}");
        exit(71);
    });
    let env = |key: &str| std::env::var(key).unwrap_or_default();
    let who = format!("{} {} {} {}\n", env("LOCUM_NODE"), env("LOCUM_EPOCH"), env("LOCUM_TOKEN"), std::process::id());
    for mut stream in listener.incoming().flatten() {
        let _ = stream.set_read_timeout(Some(Duration::from_millis(500)));
        let mut head = [0; 1024];
        let length = stream.read(&mut head).unwrap_or(0);
        let health = head[..length].starts_with(b"GET /health");
        let status = if health && started.elapsed() < WARM_UP { "503 Service Unavailable" } else { "200 OK" };
        let body = if health { "" } else { &who };
        let _ = write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
    }
}
