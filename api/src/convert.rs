//! Records of the pure room as resources, and back, without loss.
//!
//! Every field is named on both sides: one that is added to a record does not compile until it has a place here.
//! Must not know: versions, terms (who writes says under which).

mod access;
mod disk;
mod volume;

use kube::ResourceExt;
use pool::{
    ids::{BadId, Term},
    record::NodeRecord,
};

use crate::{StorageNode, StorageNodeSpec};

/// Why a resource is no record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotARecord {
    /// Its name is no id or name of what it describes.
    #[error("its name: {0}")]
    Name(#[from] BadId),
    /// A field that its other fields ask for is missing, or one that they leave no meaning to is there.
    #[error("{field} does not fit {with}")]
    Unfit {
        /// The field.
        field: &'static str,
        /// What it does not fit.
        with: &'static str,
    },
    /// A number that is no number.
    #[error("{field}: {text:?} is not 16 hexadecimal digits")]
    Number {
        /// The field.
        field: &'static str,
        /// What stands there.
        text: String,
    },
    /// The parts of its map do not fit together.
    #[error("segments: {0}")]
    Map(String),
}

/// A field that must be there.
fn need<T>(value: Option<T>, field: &'static str, with: &'static str) -> Result<T, NotARecord> {
    value.ok_or(NotARecord::Unfit { field, with })
}

/// Fields that must not be there.
fn none(there: &[(&'static str, bool)], with: &'static str) -> Result<(), NotARecord> {
    match there.iter().find(|(_, there)| *there) {
        Some((field, _)) => Err(NotARecord::Unfit { field, with }),
        None => Ok(()),
    }
}

impl StorageNode {
    /// The resource of a node's record.
    pub fn of(record: &NodeRecord, term: Term) -> Self {
        let NodeRecord { name, domain, address, port, boot_id, forgotten } = record;
        let spec = StorageNodeSpec {
            term: term.get(),
            domain: domain.labels().clone(),
            address: address.clone(),
            port: *port,
            boot_id: boot_id.clone(),
            forgotten: *forgotten,
        };
        StorageNode::new(name.as_str(), spec)
    }

    /// The record that it is.
    ///
    /// # Errors
    /// See [`NotARecord`].
    pub fn record(&self) -> Result<NodeRecord, NotARecord> {
        let StorageNodeSpec { term: _, domain, address, port, boot_id, forgotten } = &self.spec;
        Ok(NodeRecord {
            name: self.name_any().parse()?,
            domain: pool::disk::Domain::new(domain.clone()),
            address: address.clone(),
            port: *port,
            boot_id: boot_id.clone(),
            forgotten: *forgotten,
        })
    }
}
