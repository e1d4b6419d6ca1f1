//! The health check: what counts as ready and as failing, and that a bad endpoint
//! delays nothing and costs nothing.

use crate::bed::{Bed, Endpoint, Manner, Node, NodeSpec, free_port, renewal_gaps, s, stays, wait_until};
use std::fs;
use std::process::{Command, Stdio};
use std::time::Instant;

fn watched(bed: &Bed, url: &str) -> NodeSpec {
    bed.node("a")
        .set("", "cycle = \"200ms\"")
        .set("health", &format!("url = \"{url}\""))
        .set("health", "start_timeout = \"2s\"")
        .set("health", "timeout = \"1s\"")
        .set("health", "request_timeout = \"300ms\"")
}

fn is(node: &Node, health: &str) -> bool {
    node.status().is_some_and(|v| v["local"]["health"] == health)
}

#[test]
fn a_command_that_answers_2xx_is_healthy() {
    let bed = Bed::new("healthy");
    let endpoint = Endpoint::start(Manner::Status(204));
    let mut node = watched(&bed, &endpoint.url()).start();
    wait_until(s(5.0), "healthy", || is(&node, "healthy"));
    stays(s(3.0), "no restart", || bed.beats().lives().len() == 1);
    assert!(endpoint.asked() >= 5);
    node.stop();
}

#[test]
fn a_503_during_the_start_is_not_ready_yet_and_no_failure() {
    let bed = Bed::new("starting");
    let endpoint = Endpoint::start(Manner::Status(503));
    let mut node = watched(&bed, &endpoint.url()).set("health", "start_timeout = \"30s\"").start();
    wait_until(s(5.0), "starting", || is(&node, "starting"));
    bed.wait_active(&node, s(5.0));
    stays(s(2.5), "it is left alone", || bed.beats().lives().len() == 1 && !is(&node, "failing"));
    endpoint.turn(Manner::Status(200));
    wait_until(s(3.0), "healthy", || is(&node, "healthy"));
    node.stop();
}

#[test]
fn a_command_that_is_never_ready_is_killed_and_restarted_after_start_timeout() {
    let bed = Bed::new("never-ready");
    let endpoint = Endpoint::start(Manner::Status(503));
    let mut node = watched(&bed, &endpoint.url()).start();
    wait_until(s(8.0), "a second life", || bed.beats().lives().len() >= 2);
    node.stop();
    let first = &bed.beats().lives()[0];
    let lived = (first.last - first.first) as f64 / 1e9;
    assert!(lived > 1.8 && lived < 4.0, "start_timeout is 2 s, it lived {lived:.1} s");
    bed.prove_no_overlap();
}

#[test]
fn a_command_that_fails_for_longer_than_the_timeout_is_restarted() {
    let bed = Bed::new("failing");
    let endpoint = Endpoint::start(Manner::Status(200));
    let mut node = watched(&bed, &endpoint.url()).start();
    wait_until(s(5.0), "healthy", || is(&node, "healthy"));
    endpoint.turn(Manner::Status(500));
    let start = Instant::now();
    wait_until(s(6.0), "a second life", || bed.beats().lives().len() == 2);
    assert!(start.elapsed() > s(0.8));
    endpoint.turn(Manner::Status(200));
    wait_until(s(5.0), "healthy again", || is(&node, "healthy"));
    stays(s(2.0), "it stays", || bed.beats().lives().len() == 2);
    node.stop();
    bed.prove_no_overlap();
}

#[test]
fn a_failure_shorter_than_the_timeout_restarts_nothing() {
    let bed = Bed::new("short-failure");
    let endpoint = Endpoint::start(Manner::Status(200));
    let mut node = watched(&bed, &endpoint.url()).set("health", "timeout = \"3s\"").start();
    wait_until(s(5.0), "healthy", || is(&node, "healthy"));
    for _ in 0..3 {
        endpoint.turn(Manner::Status(500));
        wait_until(s(2.0), "failing", || is(&node, "failing"));
        endpoint.turn(Manner::Status(200));
        wait_until(s(2.0), "healthy", || is(&node, "healthy"));
    }
    assert_eq!(bed.beats().lives().len(), 1);
    node.stop();
}

#[test]
fn without_a_url_alive_means_healthy() {
    let bed = Bed::new("no-url");
    let mut node = bed.node("a").start();
    wait_until(s(5.0), "healthy", || is(&node, "healthy"));
    node.stop();
}

#[test]
fn whatever_the_endpoint_does_the_verdict_comes_in_time_memory_is_flat_and_the_renewal_is_not_late() {
    let manners = [
        Manner::Silent,
        Manner::Trickling,
        Manner::Redirecting,
        Manner::Garbage,
        Manner::EndlessHeaders,
        Manner::HalfBody,
        Manner::Closing,
    ];
    for manner in manners {
        let bed = Bed::new("bad-endpoint");
        let endpoint = Endpoint::start(Manner::Status(200));
        let spec = watched(&bed, &endpoint.url()).store(&bed.file_store()).ttl("2s");
        let mut node = spec.set("health", "timeout = \"60s\"").start();
        bed.wait_active(&node, s(8.0));
        wait_until(s(5.0), "healthy", || is(&node, "healthy"));
        let agent = node.wait_agent();
        let before = resident(agent);
        let start = Instant::now();
        endpoint.turn(manner);
        // A half body is a success: the status is there, and only the beginning is wanted.
        if manner != Manner::HalfBody {
            wait_until(s(3.0), &format!("the verdict on {manner:?}"), || is(&node, "failing"));
            assert!(start.elapsed() < s(2.0), "{manner:?}: the verdict took {:?}", start.elapsed());
        }
        stays(s(2.5), "the lease is renewed", || bed.beats().lives().len() == 1 && bed.runs(&node));
        let after = resident(node.wait_agent());
        assert!(after < before + 8192, "{manner:?}: {before} KiB became {after} KiB");
        endpoint.turn(Manner::Status(200));
        wait_until(s(3.0), "healthy again", || is(&node, "healthy"));
        node.stop();
        bed.prove(&[&node]);
    }
}

#[test]
fn a_renewal_does_not_wait_for_a_hostile_endpoint() {
    for manner in [Manner::Silent, Manner::Trickling, Manner::EndlessHeaders] {
        let bed = Bed::new("hostile");
        let endpoint = Endpoint::start(manner);
        // Each probe takes 2 s; a renewal is due each 200 ms, and a call may take 400 ms.
        let spec = watched(&bed, &endpoint.url()).store(&bed.file_store()).ttl("4s");
        let spec = spec.set("health", "start_timeout = \"60s\"").set("health", "timeout = \"60s\"");
        let spec = spec.set("health", "request_timeout = \"2s\"");
        let mut node = spec.start();
        bed.wait_active(&node, s(10.0));
        std::thread::sleep(s(5.0));
        let longest = renewal_gaps(&node.log()).into_iter().max().unwrap();
        assert!(longest < s(0.6), "{manner:?}: {longest:?} between two renewals");
        assert!(endpoint.asked() >= 2);
        node.stop();
        bed.prove(&[&node]);
    }
}

#[test]
fn an_endless_body_costs_no_memory() {
    let bed = Bed::new("endless-body");
    let endpoint = Endpoint::start(Manner::EndlessBody);
    let mut node = watched(&bed, &endpoint.url()).set("health", "start_timeout = \"60s\"").start();
    bed.wait_active(&node, s(5.0));
    std::thread::sleep(s(3.0));
    assert!(resident(node.wait_agent()) < 40_000, "{} KiB", resident(node.wait_agent()));
    assert!(endpoint.asked() >= 3);
    node.stop();
}

#[test]
fn an_endpoint_that_refuses_is_not_ready_at_first_and_failing_later() {
    let bed = Bed::new("refuses");
    let port = free_port();
    let answer = bed.dir().join("answer");
    fs::write(&answer, "200").unwrap();
    // The command itself serves, as in life: while it is down, connections are refused.
    let mut node = watched(&bed, &format!("http://127.0.0.1:{port}/"))
        .beater(&["--http", &port.to_string(), "--answer", answer.to_str().unwrap()])
        .start();
    wait_until(s(5.0), "healthy", || is(&node, "healthy"));
    fs::write(&answer, "500").unwrap();
    wait_until(s(6.0), "a second life", || bed.beats().lives().len() >= 2);
    fs::write(&answer, "200").unwrap();
    wait_until(s(8.0), "healthy again", || is(&node, "healthy"));
    node.stop();
    bed.prove_no_overlap();
}

#[test]
fn a_certificate_of_an_unknown_authority_is_a_failure_that_is_told() {
    let bed = Bed::new("unknown-ca");
    let port = free_port();
    let key = bed.dir().join("key");
    let cert = bed.dir().join("cert");
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&cert)
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(made.success());
    let mut server = Command::new("openssl")
        .args(["s_server", "-quiet", "-www", "-accept", &port.to_string(), "-key"])
        .arg(&key)
        .arg("-cert")
        .arg(&cert)
        .env("BED_OF", bed.dir())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut node =
        watched(&bed, &format!("https://localhost:{port}/")).set("health", "start_timeout = \"60s\"").start();
    bed.wait_active(&node, s(5.0));
    let said = |v: &serde_json::Value| {
        let detail = v["local"]["health_detail"].as_str().unwrap_or_default().to_lowercase();
        detail.contains("certificate") || detail.contains("issuer")
    };
    node.wait_status("that the certificate is not trusted", s(5.0), said);
    assert!(!is(&node, "healthy"));
    node.stop();
    server.kill().unwrap();
    server.wait().unwrap();
}

#[test]
fn the_failed_tries_return_to_zero_when_healthy() {
    let bed = Bed::new("tries");
    let port = free_port();
    let answer = bed.dir().join("answer");
    fs::write(&answer, "500").unwrap();
    let mut node = watched(&bed, &format!("http://127.0.0.1:{port}/"))
        .set("health", "start_timeout = \"500ms\"")
        .beater(&["--http", &port.to_string(), "--answer", answer.to_str().unwrap()])
        .start();
    node.wait_status("failed tries", s(10.0), |v| v["local"]["failed_tries"].as_u64().is_some_and(|n| n >= 2));
    fs::write(&answer, "200").unwrap();
    node.wait_status("none", s(10.0), |v| v["local"]["health"] == "healthy" && v["local"]["failed_tries"] == 0);
    node.stop();
}

/// Resident memory in KiB.
fn resident(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find(|l| l.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
}
