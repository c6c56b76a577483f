//! Where records live. The trait is what the core needs and no more: load everything at start, then change single
//! records by compare-and-swap.
//!
//! Invariants, which every implementation must pass the contract test on: a change is durable when it returns; it
//! takes place only if the record's version is the one the caller knew; a version is never used twice for one key,
//! even if the record is deleted and made again; terms only grow. Must not know: what a record means.

pub mod embedded;
pub mod kubernetes;

use pool::{
    ids::Term,
    record::{Key, Record},
};

/// Tells a record's states apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

/// A record as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its state's version.
    pub version: Version,
    /// It.
    pub record: Record,
}

/// A page of records, in the store's order.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The records.
    pub records: Vec<Stored>,
    /// Where the next page starts; `None` at the end.
    pub next: Option<String>,
}

/// A controller's time with the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reign {
    /// Larger than that of any reign before.
    pub term: Term,
    /// Whose records these are: drawn once, with the store, and the same in every reign. Disks carry it in their labels.
    pub system: uuid::Uuid,
}

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The record is not in the state that the caller knew: somebody else writes here.
    #[error("{key} was changed by somebody else (version {found:?}, expected {expected:?})")]
    Conflict {
        /// Which record.
        key: Key,
        /// The version that the caller knew; `None`: that there is none.
        expected: Option<Version>,
        /// The version there is.
        found: Option<Version>,
    },
    /// Nothing happened; it may be tried again.
    #[error("the store refused for now: {0}")]
    NotNow(String),
    /// Whether it happened is not known. The store does nothing more until it is opened again.
    #[error("the store failed, and whether {what} is durable is not known; it must be opened again")]
    OutcomeUnknown {
        /// What was being done.
        what: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An earlier failure has left the store unusable until it is opened again.
    #[error("the store failed before ({0}) and must be opened again")]
    Latched(String),
    /// Somebody has it open.
    #[error("{path} is in use by another controller: one embedded store serves one controller")]
    Locked {
        /// The file.
        path: std::path::PathBuf,
    },
    /// It could not be opened.
    #[error("the store at {path} cannot be opened")]
    Open {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It was refused, and nothing happened. Somebody has to see to it; it may be tried again all the same.
    #[error("the store refuses to do this to {what}")]
    Refused {
        /// What it was to be done to.
        what: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It happened, and what is stored now is not what was to be.
    #[error("{what} was stored otherwise than it was written")]
    Altered {
        /// What was written.
        what: String,
        /// How it differs.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A record that is there makes no sense.
    #[error("record {key} in the store cannot be read")]
    Corrupt {
        /// The stored key.
        key: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What failed means for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Nothing happened: try again later.
    Transient,
    /// It may or may not have happened: load everything again.
    OutcomeUnknown,
    /// It will not work without a person, or somebody else's leave.
    Permanent,
}

impl StoreError {
    /// What it means for the caller.
    pub fn class(&self) -> Class {
        match self {
            StoreError::NotNow(_) | StoreError::Refused { .. } => Class::Transient,
            StoreError::OutcomeUnknown { .. } | StoreError::Latched(_) => Class::OutcomeUnknown,
            StoreError::Conflict { .. }
            | StoreError::Locked { .. }
            | StoreError::Open { .. }
            | StoreError::Altered { .. }
            | StoreError::Corrupt { .. } => Class::Permanent,
        }
    }
}

/// The records.
#[async_trait::async_trait]
pub trait Store: Send + Sync + 'static {
    /// A page of at most `max` records, from where `after` (an earlier page's `next`) says.
    async fn load(&self, after: Option<String>, max: usize) -> Result<Page, StoreError>;
    /// Writes a record over the version that the caller knows (`None`: there is none). Durable when it returns.
    async fn put(&self, expected: Option<Version>, record: Record) -> Result<Version, StoreError>;
    /// Deletes the version of a record that the caller knows. Durable when it returns.
    async fn delete(&self, expected: Version, key: Key) -> Result<(), StoreError>;
    /// Begins a new reign, durable when it returns.
    async fn begin(&self) -> Result<Reign, StoreError>;
}
