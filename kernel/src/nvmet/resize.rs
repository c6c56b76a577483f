//! What changes about a namespace that stands.

use super::{Nvmet, NvmetError};
use crate::sysfs;

impl Nvmet {
    /// Reads the size of the device behind a namespace again; initiators are told when it changed.
    pub fn revalidate_namespace(&self, nqn: &str, nsid: u32) -> Result<(), NvmetError> {
        Ok(sysfs::write(&self.namespace(nqn, nsid).join("revalidate_size"), "1")?)
    }

    /// The namespaces of one subsystem by uuid as text, with their numbers; empty when there is no such subsystem.
    pub fn namespaces_of(&self, nqn: &str) -> Result<Vec<(String, u32)>, NvmetError> {
        let mut out = Vec::new();
        for nsid in super::observe::numbers(sysfs::names(&self.namespaces(nqn))?) {
            if let Some(uuid) = sysfs::read_opt(&self.namespace(nqn, nsid).join("device_uuid"))? {
                out.push((uuid, nsid));
            }
        }
        Ok(out)
    }
}
