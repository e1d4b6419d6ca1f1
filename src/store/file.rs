//! `file:/path`: the record in a small local file, for several instances on one machine.
//!
//! `PATH` holds the record and changes only under the lock of `PATH.lock`: write
//! another file, fsync, rename, fsync the folder. `PATH.members` tells who was heard
//! (may be lost, may be torn), `PATH.history` has a line of JSON for each change of
//! holder. All instances have to run as one user: the files are that user's alone.
//!
//! What must never happen here: that a file which is missing, torn, or somebody
//! else's is taken for "nobody holds the lease". It is an error that names the file.

mod place;

use self::place::{Lock, Place, Watch};
use super::Store;
use crate::core::{Entry, Generation, Happening, Look, Member, Record, Seen, Sighting, Swap, Trouble, Version};
use crate::status::Cluster;
use crate::sys;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The layout of the file; one of a later layout is refused.
const LAYOUT: u32 = 1;
/// A member's news are written again when they are older than this.
const MEMBER_FRESH: Duration = Duration::from_secs(1);
/// Who was heard.
const MEMBERS: &str = ".members";
/// What happened.
const HISTORY: &str = ".history";
/// How long `prepare` waits for the lock.
const PREPARE_LIMIT: Duration = Duration::from_secs(5);

/// The content of `PATH`.
#[derive(Serialize, Deserialize)]
struct Document {
    /// Says that this is ours, and in which layout.
    locum: u32,
    service: String,
    /// Drawn when the file was made: a file made anew is another store.
    system: String,
    /// By the wall clock, in milliseconds since 1970: for people and hints only.
    written_ms: u64,
    record: Record,
}

/// One of the members in `PATH.members`.
#[derive(Serialize, Deserialize)]
struct Heard {
    member: Member,
    at_ms: u64,
}

/// A line of `PATH.history`.
#[derive(Serialize, Deserialize)]
struct Line {
    at_ms: u64,
    what: Happening,
    node: String,
    epoch: u64,
    token: u64,
    why: String,
}

/// A record in a local file.
pub struct FileStore {
    path: PathBuf,
    service: String,
    limit: Duration,
    opened: Option<Opened>,
}

/// What a store keeps between its calls. Its folder was checked once: it does not
/// change its file system without a mount over it.
struct Opened {
    place: Place,
    watch: Watch,
}

impl FileStore {
    /// The record of `service` in the file at `path`. Nothing is touched before the first
    /// call. `limit` is *Q*: the lock is waited for a little less long than that.
    pub fn new(path: &Path, service: &str, limit: Duration) -> FileStore {
        FileStore { path: path.to_owned(), service: service.to_owned(), limit: limit.mul_f64(0.8), opened: None }
    }

    fn opened(&mut self) -> Result<&Opened, String> {
        let opened = match self.opened.take().filter(|opened| !opened.watch.is_lost()) {
            Some(opened) => opened,
            None => {
                let place = Place::new(&self.path)?;
                Opened { watch: place.watch(), place }
            }
        };
        Ok(self.opened.insert(opened))
    }

    /// Takes the lock and reads the record; [`Store::wait`] counts changes from here on.
    fn lock_and_read(&mut self) -> Result<(&Opened, Lock, Document), String> {
        let (limit, service) = (self.limit, self.service.clone());
        let opened = self.opened()?;
        let lock = opened.place.lock(limit)?;
        opened.watch.drain();
        let document = read(&opened.place, &service)?;
        Ok((opened, lock, document))
    }

    fn look_for(&mut self, me: &Member) -> Result<Look, String> {
        let (opened, lock, document) = self.lock_and_read()?;
        let members = announce(&opened.place, me, &lock);
        Ok(Look { sighting: document.sighting(), members: seen(members) })
    }

    fn write(&mut self, version: &Version, next: &Record, entry: Option<&Entry>, me: &Member) -> Result<Swap, Trouble> {
        let (opened, lock, mut document) = self.lock_and_read().map_err(Trouble::Refused)?;
        let place = &opened.place;
        if document.record.version() != *version || next.generation.as_ref() != Some(&document.generation()) {
            return Ok(Swap::Changed(document.sighting()));
        }
        document.record = next.clone();
        document.written_ms = now_ms();
        let content = document.to_json().map_err(Trouble::Refused)?;
        if let Some(entry) = entry {
            let line = serde_json::to_string(&Line::of(entry, document.written_ms));
            let line = line.map_err(|e| Trouble::Refused(format!("cannot write the history: {e}")))?;
            place.append_beside(HISTORY, &line, &lock).map_err(Trouble::Refused)?;
        }
        if !place.is_locked_by(&lock) {
            return Err(Trouble::Refused(format!("cannot write {}: its lock was deleted", self.path.display())));
        }
        place.replace(&content, &lock).map_err(|failed| match failed {
            place::Failed::Before(why) => Trouble::Refused(why),
            place::Failed::After(why) => Trouble::Unknown(why),
        })?;
        opened.watch.drain();
        announce(place, me, &lock);
        Ok(Swap::Done)
    }
}

impl Store for FileStore {
    fn look(&mut self, me: &Member) -> Result<Look, Trouble> {
        self.look_for(me).map_err(Trouble::Refused)
    }

    fn swap(&mut self, version: &Version, next: &Record, entry: Option<&Entry>, me: &Member) -> Result<Swap, Trouble> {
        self.write(version, next, entry, me)
    }

    fn wait(&mut self, limit: Duration) -> Result<bool, Trouble> {
        Ok(self.opened().map_err(Trouble::Refused)?.watch.wait(limit))
    }
}

/// Makes the record of `service` in the file at `path`, unless it is there: true if it
/// was made now. Safe when many do this at once.
///
/// Fails if the folder is missing or not local, and if the file holds anything but a
/// record of this service.
pub fn prepare(path: &Path, service: &str, ttl: Duration, renew: Duration) -> Result<bool, String> {
    let place = Place::new(path)?;
    let lock = place.lock(PREPARE_LIMIT)?;
    if place.read()?.is_some() {
        return read(&place, service).map(|_| false);
    }
    let cannot_draw = |e: std::io::Error| format!("cannot draw a name for the store: {e}");
    let (epoch, token) = history(&place).fold((0, 0), |(e, t), line| (line.epoch.max(e), line.token.max(t)));
    let document = Document {
        locum: LAYOUT,
        service: service.to_owned(),
        system: sys::random_name().map_err(cannot_draw)?,
        written_ms: now_ms(),
        record: Record { epoch, token, ..Record::fresh(ttl, renew, super::random_seq()?) },
    };
    let content = document.to_json()?;
    place.replace(&content, &lock).map_err(|failed| match failed {
        place::Failed::Before(why) | place::Failed::After(why) => why,
    })?;
    Ok(true)
}

/// The cluster, for people. Reads only, and takes no lock: the record is replaced as a whole.
pub fn overview(path: &Path, service: &str) -> Result<Cluster, String> {
    let place = Place::new(path)?;
    let Document { record, written_ms, .. } = read(&place, service)?;
    let began = history(&place).filter(|line| line.epoch == record.epoch && line.what != Happening::Release).last();
    Ok(Cluster {
        holder: record.holder.map(|holder| holder.node),
        epoch: record.epoch,
        token: record.token,
        since: began.map(|line| age(line.at_ms).as_secs_f64()),
        renewed: Some(age(written_ms).as_secs_f64()),
        ttl: record.ttl.as_secs_f64(),
        why: record.why,
        members: seen(heard(&place)),
    })
}

impl Document {
    fn generation(&self) -> Generation {
        Generation { system: self.system.clone(), timeline: 1 }
    }

    fn sighting(self) -> Sighting {
        Sighting { generation: self.generation(), age: Some(age(self.written_ms)), record: Some(self.record) }
    }

    fn to_json(&self) -> Result<Vec<u8>, String> {
        let mut content = serde_json::to_vec_pretty(self).map_err(|e| format!("cannot write the record: {e}"))?;
        content.push(b'\n');
        Ok(content)
    }
}

impl Line {
    fn of(entry: &Entry, at_ms: u64) -> Line {
        let Entry { what, node, epoch, token, why } = entry.clone();
        Line { at_ms, what, node, epoch, token, why }
    }
}

/// The record's file, if it is what it should be.
fn read(place: &Place, service: &str) -> Result<Document, String> {
    let path = place.path();
    let cannot = |cause: String| format!("cannot use {}: {cause}", path.display());
    let content = place.read()?.ok_or_else(|| {
        cannot(
            "there is no such file; `locum run` makes it when it starts (never later, lest two hosts start anew)"
                .into(),
        )
    })?;
    let document: Document = serde_json::from_slice(&content).map_err(|e| {
        cannot(format!("this is not a record of locum ({e}); stop every instance before you move it away"))
    })?;
    let layout = document.locum.max(document.record.format);
    if document.locum > LAYOUT || document.record.format > Record::FORMAT {
        return Err(cannot(format!("it has layout {layout}, of a later version of locum")));
    }
    if document.service != service {
        return Err(cannot(format!("it belongs to the service {:?}, not to {service:?}", document.service)));
    }
    Ok(document)
}

/// Tells the others of this node, if there is news. Errors are nobody's concern: the
/// next cycle tells it again, and nothing is decided by it.
fn announce(place: &Place, me: &Member, lock: &Lock) -> Vec<Heard> {
    let mut members = heard(place);
    let fresh = Heard { member: me.clone(), at_ms: now_ms() };
    match members.iter_mut().find(|heard| heard.member.node == me.node) {
        Some(heard) if heard.member == *me && age(heard.at_ms) < MEMBER_FRESH => return members,
        Some(heard) => *heard = fresh,
        None => members.push(fresh),
    }
    if let Ok(content) = serde_json::to_vec(&members) {
        let _ = place.overwrite_beside(MEMBERS, &content, lock);
    }
    members
}

fn heard(place: &Place) -> Vec<Heard> {
    serde_json::from_slice(&place.read_beside(MEMBERS)).unwrap_or_default()
}

fn seen(members: Vec<Heard>) -> Vec<Seen> {
    members.into_iter().map(|heard| Seen { age: age(heard.at_ms), member: heard.member }).collect()
}

/// The lines of the history, oldest first; what a crash tore is left out.
fn history(place: &Place) -> impl Iterator<Item = Line> {
    let content = place.read_beside(HISTORY);
    let lines: Vec<Line> =
        content.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    lines.into_iter()
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn age(at_ms: u64) -> Duration {
    Duration::from_millis(now_ms().saturating_sub(at_ms))
}

/// 128 random bits, in hexadecimal.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Health, Holder, Role};

    const LONG: Duration = Duration::from_secs(30);

    /// A folder of its own, gone with the test.
    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Folder {
            // In memory where that can be had: a thousand times fsync takes its time.
            let memory = PathBuf::from("/dev/shm");
            let base = if memory.is_dir() { memory } else { std::env::temp_dir() };
            let path = base.join(format!("locum-{}", sys::random_name().unwrap()));
            std::fs::create_dir(&path).unwrap();
            Folder(path)
        }
        fn record(&self) -> PathBuf {
            self.0.join("shop.lease")
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn member(node: &str) -> Member {
        Member {
            node: node.into(),
            instance: format!("{node}-1"),
            host: "h".into(),
            version: "1".into(),
            role: Role::Standby,
            health: Health::Idle,
        }
    }

    fn made(folder: &Folder) -> FileStore {
        assert_eq!(prepare(&folder.record(), "shop", LONG, LONG), Ok(true));
        FileStore::new(&folder.record(), "shop", LONG)
    }

    /// The sighted record with `node` as its holder, at the next epoch.
    fn claimed(sighting: &Sighting, node: &str) -> Record {
        let record = sighting.record.clone().unwrap();
        Record {
            epoch: record.epoch + 1,
            seq: record.seq + 1,
            holder: Some(Holder { node: node.into(), instance: format!("{node}-1") }),
            generation: Some(sighting.generation.clone()),
            ..record
        }
    }

    #[test]
    fn of_many_swaps_that_name_one_version_one_is_done() {
        let folder = Folder::new();
        let mut first = made(&folder);
        let before = first.look(&member("n0")).unwrap().sighting.record.unwrap().seq;
        let done: u64 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|n| {
                    let record = folder.record();
                    scope.spawn(move || {
                        let me = member(&format!("n{n}"));
                        let mut store = FileStore::new(&record, "shop", LONG);
                        let mut done = 0;
                        let mut sighting = store.look(&me).unwrap().sighting;
                        for _ in 0..200 {
                            let version = sighting.record.as_ref().unwrap().version();
                            let next = claimed(&sighting, &me.node);
                            sighting = match store.swap(&version, &next, None, &me).unwrap() {
                                Swap::Done => {
                                    done += 1;
                                    Sighting { record: Some(next), ..sighting }
                                }
                                Swap::Changed(sighting) => sighting,
                            };
                        }
                        done
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        let look = FileStore::new(&folder.record(), "shop", LONG).look(&member("n0")).unwrap();
        let record = look.sighting.record.unwrap();
        assert_eq!((record.seq - before, record.epoch), (done, done), "an acknowledged swap was overwritten");
        assert!(done > 0);
        assert_eq!(look.members.len(), 8);
    }

    #[test]
    fn ten_who_prepare_at_once_make_one_record() {
        let folder = Folder::new();
        let made = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..10).map(|_| scope.spawn(|| prepare(&folder.record(), "shop", LONG, LONG).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).filter(|made| *made).count()
        });
        assert_eq!(made, 1);
    }

    #[test]
    fn a_swap_is_told_in_the_history_and_wakes_the_others() {
        let folder = Folder::new();
        let mut one = made(&folder);
        let mut two = FileStore::new(&folder.record(), "shop", LONG);
        let sighting = one.look(&member("one")).unwrap().sighting;
        two.look(&member("two")).unwrap();
        assert_eq!(two.wait(Duration::ZERO), Ok(false), "news of members are no change of the record");
        let next = claimed(&sighting, "one");
        let entry = Entry { what: Happening::Claim, node: "one".into(), epoch: 1, token: 7, why: "free".into() };
        let version = sighting.record.unwrap().version();
        assert_eq!(one.swap(&version, &next, Some(&entry), &member("one")), Ok(Swap::Done));
        assert_eq!(two.wait(LONG), Ok(true));
        assert_eq!(one.wait(Duration::ZERO), Ok(false), "one's own swap is no news to it");
        assert!(matches!(two.swap(&version, &next, None, &member("two")), Ok(Swap::Changed(_))));
        let cluster = overview(&folder.record(), "shop").unwrap();
        assert_eq!((cluster.holder.as_deref(), cluster.epoch), (Some("one"), 1));
        assert!(cluster.since.is_some());
        assert_eq!(cluster.members.len(), 2);
    }

    #[test]
    fn a_swap_under_another_generation_writes_nothing() {
        let folder = Folder::new();
        let mut store = made(&folder);
        let sighting = store.look(&member("one")).unwrap().sighting;
        let other = Generation { system: "another".into(), timeline: 1 };
        let next = Record { generation: Some(other), ..claimed(&sighting, "one") };
        let version = sighting.record.as_ref().unwrap().version();
        assert!(matches!(store.swap(&version, &next, None, &member("one")), Ok(Swap::Changed(_))));
        assert_eq!(store.look(&member("one")).unwrap().sighting.record, sighting.record);
    }

    #[test]
    fn anything_but_a_record_of_the_service_is_an_error_that_names_the_file() {
        let folder = Folder::new();
        let path = folder.record();
        let name = path.display().to_string();
        let look = |service: &str| {
            let why = FileStore::new(&path, service, LONG).look(&member("one")).unwrap_err().to_string();
            assert!(why.contains(&name), "{why}");
            why
        };
        assert!(look("shop").contains("no such file"));
        for content in ["", "{", "{}", "[]", "nobody", "{\"locum\":1,\"service\":\"shop\"}"] {
            std::fs::write(&path, content).unwrap();
            assert!(look("shop").contains("not a record"), "{content:?}");
            assert!(prepare(&path, "shop", LONG, LONG).is_err(), "{content:?}");
        }
        std::fs::remove_file(&path).unwrap();
        made(&folder);
        assert!(look("bakery").contains("belongs to the service \"shop\""));
        assert!(prepare(&path, "bakery", LONG, LONG).is_err());
        std::fs::rename(&path, folder.0.join("moved")).unwrap();
        std::os::unix::fs::symlink(folder.0.join("moved"), &path).unwrap();
        assert!(look("shop").contains("symbolic link"));
        let missing = folder.0.join("none/shop.lease");
        assert!(prepare(&missing, "shop", LONG, LONG).unwrap_err().contains("mkdir"));
    }

    #[test]
    fn a_held_lock_is_waited_for_no_longer_than_the_limit() {
        let folder = Folder::new();
        made(&folder);
        let _held = Place::new(&folder.record()).unwrap().lock(LONG).unwrap();
        let mut store = FileStore::new(&folder.record(), "shop", Duration::from_millis(50));
        assert!(matches!(store.look(&member("one")), Err(Trouble::Refused(why)) if why.contains("cannot lock")));
    }
}
