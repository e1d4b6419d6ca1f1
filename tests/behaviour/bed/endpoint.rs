//! An HTTP endpoint that behaves as badly as it is told to.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// How it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// With this status and an empty body.
    Status(u16),
    /// Never.
    Silent,
    /// One byte of the headers each 100 ms, for ever.
    Trickling,
    /// With a redirect to itself.
    Redirecting,
    /// With bytes that are not HTTP.
    Garbage,
    /// With headers that never end.
    EndlessHeaders,
    /// With 200 and a body that never ends.
    EndlessBody,
    /// With 200 and 10 bytes of a body of 1000, then nothing.
    HalfBody,
    /// It closes the connection without a word.
    Closing,
}

/// The endpoint; it ends on drop.
pub struct Endpoint {
    address: SocketAddr,
    manner: Arc<Mutex<Manner>>,
    asked: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
}

impl Endpoint {
    /// Listens on a port of its own.
    pub fn start(manner: Manner) -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = Endpoint {
            address: listener.local_addr().unwrap(),
            manner: Arc::new(Mutex::new(manner)),
            asked: Arc::default(),
            over: Arc::default(),
        };
        let (manner, asked, over) = (endpoint.manner.clone(), endpoint.asked.clone(), endpoint.over.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                asked.fetch_add(1, Ordering::SeqCst);
                let (manner, over) = (*manner.lock().unwrap(), over.clone());
                thread::spawn(move || {
                    let _ = answer(stream, manner, &over);
                });
            }
        });
        endpoint
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://{}/health", self.address)
    }

    /// Behaves otherwise from now on.
    pub fn turn(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }

    /// How often it was asked.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address); // wakes the listener, so that it sees the end
    }
}

fn answer(mut stream: TcpStream, manner: Manner, over: &AtomicBool) -> std::io::Result<()> {
    let _ = stream.read(&mut [0; 4096])?;
    let forever = |stream: &mut TcpStream, bytes: &[u8], pause: Duration| -> std::io::Result<()> {
        while !over.load(Ordering::SeqCst) {
            stream.write_all(bytes)?;
            thread::sleep(pause);
        }
        Ok(())
    };
    let pause = Duration::from_millis(100);
    match manner {
        Manner::Status(n) => write!(stream, "HTTP/1.1 {n} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
        Manner::Silent => forever(&mut stream, b"", pause),
        Manner::Trickling => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nX-Slow: ")?;
            forever(&mut stream, b"x", pause)
        }
        Manner::Redirecting => {
            write!(stream, "HTTP/1.1 302 Found\r\nLocation: /health\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        }
        Manner::Garbage => stream.write_all(&[0xff, 0x00, 0x13, 0x37].repeat(64)),
        Manner::EndlessHeaders => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n")?;
            forever(&mut stream, "X-More: much\r\n".repeat(1000).as_bytes(), Duration::ZERO)
        }
        Manner::EndlessBody => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n")?;
            forever(&mut stream, &[b'x'; 65536], Duration::ZERO)
        }
        Manner::HalfBody => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n0123456789")?;
            forever(&mut stream, b"", pause)
        }
        Manner::Closing => Ok(()),
    }
}
