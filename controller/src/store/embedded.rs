//! The embedded store: one redb file, one blocking thread that commits in groups.
//!
//! Invariants: what arrives while a commit is being synced shares the next one; the first I/O error latches, since
//! after a failed sync nobody knows what the disk holds; redb's lock on the file keeps a second controller out.
//! Values are a version (8 bytes, little-endian) and the record as JSON.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
};

use pool::{
    ids::Term,
    record::{Key, Record},
};
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, Table, TableDefinition};
use tokio::sync::oneshot;

use super::{Page, Reign, Store, StoreError, Stored, Version};

const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");
const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");
const IDENTITY: TableDefinition<'_, &str, u128> = TableDefinition::new("identity");
/// Whose records these are.
const SYSTEM: &str = "system";
/// The last term given.
const TERM: &str = "term";
/// The last version given, over all records: a record that is made again never meets an old version.
const VERSION: &str = "version";
/// The most changes of one commit: bounds how long the first of them waits.
const GROUP: usize = 512;

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

enum Job {
    Load { after: Option<String>, max: usize, reply: Reply<Page> },
    Put { expected: Option<Version>, key: String, record: Box<Record>, reply: Reply<Version> },
    Delete { expected: Version, key: Key, reply: Reply<()> },
    Begin { reply: Reply<Reign> },
}

/// The embedded store. Closing it (dropping the last handle) waits for what was begun.
pub struct Embedded {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// The key under which a record is stored: kinds apart, disks and nodes before volumes.
fn stored_key(key: &Key) -> String {
    match key {
        Key::Disk(d) => format!("disk/{d}"),
        Key::Node(n) => format!("node/{n}"),
        Key::Volume(v) => format!("volume/{v}"),
    }
}

impl Embedded {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// [`StoreError::Locked`] while another controller has it open.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let open =
            |source: Box<dyn std::error::Error + Send + Sync>| StoreError::Open { path: path.into(), source };
        let db = match Database::create(path) {
            Ok(db) => db,
            Err(DatabaseError::DatabaseAlreadyOpen) => return Err(StoreError::Locked { path: path.into() }),
            Err(e) => return Err(open(e.into())),
        };
        let make = || -> Result<uuid::Uuid, redb::Error> {
            let tx = db.begin_write()?;
            tx.open_table(RECORDS)?;
            tx.open_table(COUNTERS)?;
            let system = {
                let mut identity = tx.open_table(IDENTITY)?;
                let known = identity.get(SYSTEM)?.map(|v| v.value());
                let system = known.unwrap_or_else(|| uuid::Uuid::new_v4().as_u128());
                identity.insert(SYSTEM, system)?;
                uuid::Uuid::from_u128(system)
            };
            tx.commit()?;
            Ok(system)
        };
        let system = make().map_err(|e| open(e.into()))?;
        sync_directory(path).map_err(|e| open(e.into()))?;
        let (jobs, queue) = mpsc::channel();
        let worker = Worker { db, system, path: path.into(), latched: None };
        let thread = thread::Builder::new()
            .name("weir-store".into())
            .spawn(move || worker.run(&queue))
            .map_err(|e| open(e.into()))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    async fn ask<T>(&self, make: impl FnOnce(Reply<T>) -> Job) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let gone = || StoreError::Latched("its thread has ended".to_owned());
        self.jobs.as_ref().ok_or_else(gone)?.send(make(reply)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(t) = self.thread.take()
            && t.join().is_err()
        {
            tracing::error!("the store's thread had panicked");
        }
    }
}

/// Makes the file's own entry durable.
fn sync_directory(path: &Path) -> std::io::Result<()> {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(dir)?.sync_all()
}

#[async_trait::async_trait]
impl Store for Embedded {
    async fn load(&self, after: Option<String>, max: usize) -> Result<Page, StoreError> {
        self.ask(|reply| Job::Load { after, max, reply }).await
    }

    async fn put(&self, expected: Option<Version>, record: Record) -> Result<Version, StoreError> {
        let key = stored_key(&record.key());
        self.ask(|reply| Job::Put { expected, key, record: Box::new(record), reply }).await
    }

    async fn delete(&self, expected: Version, key: Key) -> Result<(), StoreError> {
        self.ask(|reply| Job::Delete { expected, key, reply }).await
    }

    async fn begin(&self) -> Result<Reign, StoreError> {
        self.ask(|reply| Job::Begin { reply }).await
    }
}

struct Worker {
    db: Database,
    system: uuid::Uuid,
    path: PathBuf,
    latched: Option<String>,
}

/// An answer that waits for its commit.
type Answer = Box<dyn FnOnce(Result<(), Arc<redb::Error>>)>;

impl Worker {
    fn run(mut self, queue: &mpsc::Receiver<Job>) {
        while let Ok(first) = queue.recv() {
            let mut group = vec![first];
            while group.len() < GROUP {
                match queue.try_recv() {
                    Ok(job) => group.push(job),
                    Err(_) => break,
                }
            }
            self.serve(group);
        }
    }

    fn serve(&mut self, group: Vec<Job>) {
        let mut changes = Vec::new();
        for job in group {
            match job {
                // A page is read from what is durable; the loader waits for no change of its own.
                Job::Load { after, max, reply } => answer(reply, self.page(after.as_deref(), max)),
                Job::Put { .. } | Job::Delete { .. } | Job::Begin { .. } => changes.push(job),
            }
        }
        if changes.is_empty() {
            return;
        }
        if let Some(why) = &self.latched {
            for job in changes {
                job.refuse(StoreError::Latched(why.clone()));
            }
            return;
        }
        let mut answers: Vec<Answer> = Vec::with_capacity(changes.len());
        let done = self.commit(changes, &mut answers).map_err(Arc::new);
        if let Err(e) = &done {
            tracing::error!(store = %self.path.display(), error = %e, "the store failed; it takes nothing more");
            self.latched = Some(e.to_string());
        }
        for a in answers {
            a(done.clone());
        }
    }

    fn commit(&self, changes: Vec<Job>, answers: &mut Vec<Answer>) -> Result<(), redb::Error> {
        let mut changes = changes.into_iter();
        let begun = self.db.begin_write();
        let tx = match begun {
            Ok(tx) => tx,
            Err(e) => {
                let e = redb::Error::from(e);
                for job in changes {
                    job.refuse(StoreError::Latched(e.to_string()));
                }
                return Err(e);
            }
        };
        let mut failed = None;
        {
            let mut t = Tables {
                records: tx.open_table(RECORDS)?,
                counters: tx.open_table(COUNTERS)?,
                system: self.system,
            };
            for job in changes.by_ref() {
                if let Err(e) = t.apply(job, answers) {
                    failed = Some(e);
                    break;
                }
            }
        }
        for job in changes {
            job.refuse(StoreError::Latched("a change before this one failed".to_owned()));
        }
        match failed {
            Some(e) => Err(e.into()),
            None => Ok(tx.commit()?),
        }
    }

    fn page(&self, after: Option<&str>, max: usize) -> Result<Page, StoreError> {
        let failed =
            |e: redb::Error| StoreError::OutcomeUnknown { what: "a read".to_owned(), source: Box::new(e) };
        let raw = self.raw_page(after, max).map_err(failed)?;
        let mut page = Page { records: Vec::with_capacity(raw.len()), next: None };
        if raw.len() == max {
            page.next = raw.last().map(|(k, _)| k.clone());
        }
        for (key, value) in raw {
            page.records.push(decode(&key, &value)?);
        }
        Ok(page)
    }

    fn raw_page(&self, after: Option<&str>, max: usize) -> Result<Vec<(String, Vec<u8>)>, redb::Error> {
        use std::ops::Bound;
        let tx = self.db.begin_read()?;
        let table = tx.open_table(RECORDS)?;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut out = Vec::new();
        for row in table.range::<&str>((from, Bound::Unbounded))?.take(max) {
            let (k, v) = row?;
            out.push((k.value().to_owned(), v.value().to_vec()));
        }
        Ok(out)
    }
}

struct Tables<'a> {
    records: Table<'a, &'static str, &'static [u8]>,
    counters: Table<'a, &'static str, u64>,
    system: uuid::Uuid,
}

impl Tables<'_> {
    fn count(&mut self, what: &str) -> Result<u64, StorageError> {
        let n = self.counters.get(what)?.map_or(0, |v| v.value()).saturating_add(1);
        self.counters.insert(what, n)?;
        Ok(n)
    }

    fn version_of(&self, key: &str) -> Result<Option<Version>, StorageError> {
        Ok(self.records.get(key)?.and_then(|v| split(v.value()).map(|(version, _)| version)))
    }

    /// Makes one change within the transaction. A conflict is that change's own answer and spoils nothing else.
    fn apply(&mut self, job: Job, answers: &mut Vec<Answer>) -> Result<(), StorageError> {
        match job {
            Job::Load { reply, .. } => answer(reply, Ok(Page::default())),
            Job::Put { expected, key, record, reply } => {
                let found = self.version_of(&key)?;
                if found != expected {
                    answer(reply, Err(StoreError::Conflict { key: record.key(), expected, found }));
                    return Ok(());
                }
                let body = match serde_json::to_vec(&record) {
                    Ok(b) => b,
                    Err(e) => {
                        answer(reply, Err(StoreError::Corrupt { key, source: Box::new(e) }));
                        return Ok(());
                    }
                };
                let version = Version(self.count(VERSION)?);
                let mut value = version.0.to_le_bytes().to_vec();
                value.extend_from_slice(&body);
                self.records.insert(key.as_str(), value.as_slice())?;
                answers.push(after_commit(reply, version, key));
            }
            Job::Delete { expected, key, reply } => {
                let at = stored_key(&key);
                let found = self.version_of(&at)?;
                if found != Some(expected) {
                    answer(reply, Err(StoreError::Conflict { key, expected: Some(expected), found }));
                    return Ok(());
                }
                self.records.remove(at.as_str())?;
                answers.push(after_commit(reply, (), at));
            }
            Job::Begin { reply } => {
                let reign = Reign { term: Term::new(self.count(TERM)?), system: self.system };
                answers.push(after_commit(reply, reign, "the term".to_owned()));
            }
        }
        Ok(())
    }
}

fn after_commit<T: 'static>(reply: Reply<T>, value: T, what: String) -> Answer {
    Box::new(move |done| {
        let done = done.map(|()| value);
        answer(reply, done.map_err(|e| StoreError::OutcomeUnknown { what, source: Box::new(e) }));
    })
}

/// Answers; whoever asked may have gone, which changes nothing here.
fn answer<T>(reply: Reply<T>, value: Result<T, StoreError>) {
    if reply.send(value).is_err() {
        tracing::debug!("an answer of the store found nobody waiting");
    }
}

impl Job {
    fn refuse(self, e: StoreError) {
        match self {
            Job::Load { reply, .. } => answer(reply, Err(e)),
            Job::Put { reply, .. } => answer(reply, Err(e)),
            Job::Delete { reply, .. } => answer(reply, Err(e)),
            Job::Begin { reply } => answer(reply, Err(e)),
        }
    }
}

fn split(value: &[u8]) -> Option<(Version, &[u8])> {
    let (version, body) = value.split_first_chunk::<8>()?;
    Some((Version(u64::from_le_bytes(*version)), body))
}

fn decode(key: &str, value: &[u8]) -> Result<Stored, StoreError> {
    let corrupt = |source| StoreError::Corrupt { key: key.to_owned(), source };
    let (version, body) = split(value).ok_or_else(|| corrupt("it is shorter than its version".into()))?;
    let record: Record = serde_json::from_slice(body).map_err(|e| corrupt(e.into()))?;
    if stored_key(&record.key()) != key {
        return Err(corrupt("it belongs under another key".into()));
    }
    Ok(Stored { version, record })
}
