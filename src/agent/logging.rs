//! The agent's log: one line an event, to stderr or a file, never at its callers' cost.
//!
//! A line is formatted where it is logged and goes into a bounded queue; a thread of
//! its own writes it. So a full disk, a blocked pipe or a dead file server stops that
//! thread and nobody else. What does not fit is dropped and counted, and one line
//! tells of it when the way is free again.
//!
//! What must never happen here: a caller that waits, a process that ends because its
//! log cannot be written (SIGPIPE has to be ignored, as Rust programs do), and a
//! secret in a line. Other crates are heard from `warn` up only: what they tell below
//! that, addresses with passwords for one, is not ours to vouch for.

use crate::config;
use log::{Level, LevelFilter, Log, Metadata, Record};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use simplelog::{ConfigBuilder, WriteLogger};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use time::macros::format_description;

/// The most lines that wait to be written.
const LINES_MAX: usize = 1000;
/// The most bytes of a line's text; the rest is cut off.
const TEXT_BYTES_MAX: usize = 4096;
/// The most time that [`flush`] takes.
const FLUSH_LIMIT: Duration = Duration::from_millis(200);
/// The writer needs hardly any.
const STACK_BYTES: usize = 64 * 1024;

static SINK: OnceLock<Sink> = OnceLock::new();

/// Makes this the log of the process. `who` stands in every line: service@node.
/// The file is not opened before the first line, by the thread that writes it.
///
/// Fails if a level or a module in `config` means nothing, or if there is a log already.
pub fn start(config: &config::Log, who: &str) -> Result<(), String> {
    let levels = Levels::new(config)?;
    let most = levels.most();
    let sink = Sink { file: config.file.clone(), queue: Mutex::default(), news: Condvar::new(), idle: Condvar::new() };
    SINK.set(sink).map_err(|_| String::from("cannot start the log: it runs already"))?;
    let format = ConfigBuilder::new()
        .set_time_format_custom(format_description!(
            "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z"
        ))
        .set_max_level(LevelFilter::Off)
        .set_target_level(LevelFilter::Off)
        .set_location_level(LevelFilter::Off)
        .set_thread_level(LevelFilter::Off)
        .build();
    let lines = WriteLogger::new(LevelFilter::Trace, format, Line::default());
    let front = Front { levels, who: who.to_owned(), lines };
    log::set_boxed_logger(Box::new(front)).map_err(|e| format!("cannot start the log: {e}"))?;
    log::set_max_level(most);
    Ok(())
}

/// Opens the file anew before the next line, for those who moved it away. Does nothing
/// for stderr.
pub fn reopen() {
    if let Some(sink) = SINK.get() {
        let mut queue = sink.lock();
        queue.reopen = true;
        sink.news.notify_one();
    }
}

/// How many lines were dropped so far: the queue was full, or a write failed.
pub fn dropped() -> u64 {
    SINK.get().map_or(0, |sink| sink.lock().dropped)
}

/// Waits until everything is written, at most 200 ms: for the end of the process.
pub fn flush() {
    let Some(sink) = SINK.get() else { return };
    let end = Instant::now() + FLUSH_LIMIT;
    let mut queue = sink.lock();
    while queue.writing || !queue.lines.is_empty() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        queue = sink.idle.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// Which level each module has.
struct Levels {
    ours: LevelFilter,
    /// Paths below `locum`, the longest first.
    modules: Vec<(String, LevelFilter)>,
}

impl Levels {
    fn new(config: &config::Log) -> Result<Levels, String> {
        let level =
            |key: &str, value: &str| {
                value.parse::<LevelFilter>().ok().filter(|level| *level != LevelFilter::Off).ok_or_else(|| {
                    format!("cannot use {key} = {value:?}: it has to be error, warn, info, debug or trace")
                })
            };
        let ours = level("log.level", &config.level)?;
        let mut modules = Vec::new();
        for (module, value) in &config.modules {
            let path = module.strip_prefix("locum::").unwrap_or(module).replace('.', "::");
            modules.push((path, level(&format!("log.modules.{module}"), value)?));
        }
        modules.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
        Ok(Levels { ours, modules })
    }

    /// The level of a module, given as `module_path!()` gives it.
    fn of(&self, target: &str) -> LevelFilter {
        let path = match target.strip_prefix("locum") {
            Some("") => "",
            Some(rest) if rest.starts_with("::") => &rest[2..],
            _ => return self.ours.min(LevelFilter::Warn),
        };
        let within =
            |module: &str| path.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
        self.modules.iter().find(|(module, _)| within(module)).map_or(self.ours, |(_, level)| *level)
    }

    fn most(&self) -> LevelFilter {
        self.modules.iter().map(|(_, level)| *level).fold(self.ours, std::cmp::max)
    }
}

/// What the macros of the `log` crate reach.
struct Front {
    levels: Levels,
    who: String,
    lines: Box<WriteLogger<Line>>,
}

impl Log for Front {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= self.levels.of(metadata.target())
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let (level, who, text) = (record.level(), &self.who, tidy(&record.args().to_string()));
        // Whoever asked for more than events wants to know where they come from.
        let (origin, colon) = if level > Level::Info { (record.target(), ": ") } else { ("", "") };
        // In one expression: Rust 1.88 lets go of the arguments at the end of a statement.
        self.lines.log(
            &Record::builder()
                .metadata(record.metadata().clone())
                .args(format_args!("{level:<5} {who}: {origin}{colon}{text}"))
                .build(),
        );
    }

    fn flush(&self) {
        flush();
    }
}

/// Collects what the logger writes piece by piece, and hands over whole lines.
#[derive(Default)]
struct Line(Vec<u8>);

impl Write for Line {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(piece);
        // Nothing but the logger ends a line: the text in it went through `tidy`.
        if piece.ends_with(b"\n") {
            if let Some(sink) = SINK.get() {
                sink.push(self.0.as_slice().into());
            }
            self.0.clear();
        }
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One event, one line: what could break it, or steer a terminal, is shown instead of sent.
fn tidy(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if line.len() >= TEXT_BYTES_MAX {
            line.push('…');
            break;
        }
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

/// Between those who log and the one who writes.
struct Sink {
    file: Option<PathBuf>,
    queue: Mutex<Queue>,
    /// There is something to write, or to reopen.
    news: Condvar,
    /// Everything is written.
    idle: Condvar,
}

#[derive(Default)]
struct Queue {
    lines: VecDeque<Box<[u8]>>,
    /// The writer is at a line.
    writing: bool,
    /// There is a writer.
    started: bool,
    reopen: bool,
    /// Since the process began.
    dropped: u64,
    /// Of these, those that no line has told of.
    untold: u64,
}

impl Queue {
    fn drop_one(&mut self) {
        self.dropped += 1;
        self.untold += 1;
    }
}

impl Sink {
    /// Nobody panics or does I/O while it holds this lock.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&'static self, line: Box<[u8]>) {
        let mut queue = self.lock();
        if queue.lines.len() >= LINES_MAX {
            queue.drop_one();
            return;
        }
        queue.lines.push_back(line);
        self.news.notify_one();
        if !queue.started {
            let writer = thread::Builder::new().name("log".into()).stack_size(STACK_BYTES);
            queue.started = writer.spawn(move || Writer::new(self).run()).is_ok();
        }
    }
}

/// The one who writes.
struct Writer {
    sink: &'static Sink,
    out: Option<File>,
    /// The last write ended within a line.
    torn: bool,
}

impl Writer {
    fn new(sink: &'static Sink) -> Writer {
        Writer { sink, out: None, torn: false }
    }

    fn run(mut self) -> ! {
        self.open();
        loop {
            let (line, reopen) = self.next();
            if reopen {
                self.open();
            }
            let wrote = line.map(|line| self.write(&line));
            let mut queue = self.sink.lock();
            queue.writing = false;
            let mut untold = 0;
            match wrote {
                Some(Err(_)) => queue.drop_one(),
                // The way is free: now it can be told.
                Some(Ok(())) if queue.lines.is_empty() => untold = std::mem::take(&mut queue.untold),
                _ => {}
            }
            drop(queue);
            if untold > 0 {
                log::warn!("{untold} lines of the log were dropped: it was blocked or full");
            }
            let queue = self.sink.lock();
            if queue.lines.is_empty() {
                self.sink.idle.notify_all();
            }
        }
    }

    /// Waits for a line, or for the wish to reopen.
    fn next(&self) -> (Option<Box<[u8]>>, bool) {
        let mut queue = self.sink.lock();
        while queue.lines.is_empty() && !queue.reopen {
            queue = self.sink.news.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue.writing = true;
        (queue.lines.pop_front(), std::mem::take(&mut queue.reopen))
    }

    /// The file, or what we had where it cannot be opened.
    fn open(&mut self) {
        let Some(path) = &self.sink.file else { return };
        match open(path) {
            Ok(file) => {
                self.out = Some(file);
                self.torn = false;
            }
            Err(e) => {
                let instead = if self.out.is_some() { "the file that was open" } else { "stderr" };
                log::warn!("cannot open {}: {e}; the log goes to {instead} for now", path.display());
            }
        }
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if std::mem::take(&mut self.torn) {
            self.torn = self.write_all(b"\n").is_err();
        }
        self.write_all(line)
    }

    fn write_all(&mut self, mut rest: &[u8]) -> io::Result<()> {
        while !rest.is_empty() {
            let wrote = match &mut self.out {
                Some(file) => file.write(rest),
                None => io::stderr().write(rest),
            };
            match wrote {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    rest = &rest[n..];
                    self.torn = !rest.is_empty();
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    // Stderr is shared: whoever else has it may have made it non-blocking.
                    let _ = poll(&mut [PollFd::new(io::stderr().as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE);
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_module_decides_and_other_crates_are_heard_from_warn_up() {
        let config = config::Log {
            level: "info".into(),
            modules: [("store", "debug"), ("store::file", "error"), ("ureq", "trace")]
                .map(|(module, level)| (module.into(), level.into()))
                .into(),
            file: None,
        };
        let levels = Levels::new(&config).unwrap();
        for (target, level) in [
            ("locum", LevelFilter::Info),
            ("locum::agent::health", LevelFilter::Info),
            ("locum::store", LevelFilter::Debug),
            ("locum::store::postgres", LevelFilter::Debug),
            ("locum::store::file::place", LevelFilter::Error),
            ("locum::storefront", LevelFilter::Info),
            ("ureq::run", LevelFilter::Warn),
            ("locumotive", LevelFilter::Warn),
        ] {
            assert_eq!(levels.of(target), level, "{target}");
        }
        assert_eq!(levels.most(), LevelFilter::Trace);
    }

    #[test]
    fn a_level_that_means_nothing_is_an_error_that_names_its_key() {
        let config = |level: &str, module: &str| config::Log {
            level: level.into(),
            modules: [("store".to_owned(), module.to_owned())].into(),
            file: None,
        };
        for (config, key) in [(config("loud", "info"), "log.level"), (config("info", "off"), "log.modules.store")] {
            let why = Levels::new(&config).err().unwrap();
            assert!(why.contains(key), "{why}");
        }
    }

    #[test]
    fn one_event_is_one_line_of_bounded_length() {
        assert_eq!(tidy("ein\nzwei\x1b[31m\tdrei"), "ein\\nzwei\\u{1b}[31m\\tdrei");
        assert_eq!(tidy("grün"), "grün");
        assert!(tidy(&"x".repeat(10 * TEXT_BYTES_MAX)).len() <= TEXT_BYTES_MAX + 3);
    }
}
