//! Stores for tests: one in memory, and one that stops.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use controller::store::{Page, Reign, Store, StoreError, Stored, Version};
use pool::{
    ids::Term,
    record::{Key, Record},
};

#[derive(Default)]
struct Rows {
    records: BTreeMap<String, Stored>,
    versions: u64,
    terms: u64,
}

/// Records in memory.
#[derive(Clone, Default)]
pub(crate) struct Memory(Arc<Mutex<Rows>>);

fn check(rows: &Rows, key: &Key, expected: Option<Version>) -> Result<(), StoreError> {
    let found = rows.records.get(&key.to_string()).map(|s| s.version);
    if found == expected { Ok(()) } else { Err(StoreError::Conflict { key: key.clone(), expected, found }) }
}

#[async_trait::async_trait]
impl Store for Memory {
    async fn load(&self, after: Option<String>, max: usize) -> Result<Page, StoreError> {
        let rows = self.0.lock().unwrap();
        let from = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let page: Vec<_> = rows.records.range::<str, _>((from, Bound::Unbounded)).take(max).collect();
        let next = if page.len() == max { page.last().map(|(k, _)| (*k).clone()) } else { None };
        Ok(Page { records: page.into_iter().map(|(_, s)| s.clone()).collect(), next })
    }

    async fn put(&self, expected: Option<Version>, record: Record) -> Result<Version, StoreError> {
        let mut rows = self.0.lock().unwrap();
        check(&rows, &record.key(), expected)?;
        rows.versions += 1;
        let version = Version(rows.versions);
        rows.records.insert(record.key().to_string(), Stored { version, record });
        Ok(version)
    }

    async fn delete(&self, expected: Version, key: Key) -> Result<(), StoreError> {
        let mut rows = self.0.lock().unwrap();
        check(&rows, &key, Some(expected))?;
        rows.records.remove(&key.to_string());
        Ok(())
    }

    async fn begin(&self) -> Result<Reign, StoreError> {
        let mut rows = self.0.lock().unwrap();
        rows.terms += 1;
        Ok(Reign { term: Term::new(rows.terms), system: uuid::Uuid::from_u128(1) })
    }
}

/// Where a store stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The write does not happen.
    Before,
    /// The write happens, and nobody hears of it.
    After,
}

/// A store that fails at its `at`th write and from then on, as if its machine had.
pub(crate) struct Stopping<S> {
    inner: S,
    stop: Stop,
    left: AtomicU64,
}

impl<S> Stopping<S> {
    pub(crate) fn new(inner: S, at: u64, stop: Stop) -> Self {
        Self { inner, stop, left: AtomicU64::new(at) }
    }

    /// Whether this write is to happen, and whether its end is to be told.
    fn pass(&self) -> (bool, bool) {
        let left = self.left.load(Ordering::SeqCst);
        if left == 0 {
            return (false, false);
        }
        self.left.store(left - 1, Ordering::SeqCst);
        (left > 1 || self.stop == Stop::After, left > 1)
    }
}

fn stopped() -> StoreError {
    StoreError::OutcomeUnknown { what: "a write".into(), source: "the store was stopped".into() }
}

#[async_trait::async_trait]
impl<S: Store> Store for Stopping<S> {
    async fn load(&self, after: Option<String>, max: usize) -> Result<Page, StoreError> {
        self.inner.load(after, max).await
    }

    async fn put(&self, expected: Option<Version>, record: Record) -> Result<Version, StoreError> {
        let (happens, told) = self.pass();
        if !happens {
            return Err(stopped());
        }
        let done = self.inner.put(expected, record).await;
        if told { done } else { done.and(Err(stopped())) }
    }

    async fn delete(&self, expected: Version, key: Key) -> Result<(), StoreError> {
        let (happens, told) = self.pass();
        if !happens {
            return Err(stopped());
        }
        let done = self.inner.delete(expected, key).await;
        if told { done } else { done.and(Err(stopped())) }
    }

    async fn begin(&self) -> Result<Reign, StoreError> {
        self.inner.begin().await
    }
}
