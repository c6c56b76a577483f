//! Whole devices: made, compared, swapped and removed as one step each, with nothing left behind on failure.

use std::time::{Duration, Instant};

use pool::units::Sectors;

use super::{
    control::{Control, DeviceInfo, is_busy},
    error::DmError,
    node,
    table::Table,
};
use crate::Ensured;

/// A device as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSpec {
    /// Its name, under /dev/mapper.
    pub name: String,
    /// Its UUID, which is what it is found by.
    pub uuid: String,
    /// Its table.
    pub table: Table,
}

impl Control {
    /// Makes the device as `spec` says, or swaps its table, or leaves it alone when it is so already.
    ///
    /// A preloaded table of a device that is left alone stays preloaded; one of a device that is swapped is
    /// replaced. A fresh device that cannot be finished is removed again.
    pub fn ensure_device(&self, spec: &DeviceSpec) -> Result<(Ensured, DeviceInfo), DmError> {
        self.ensure_device_with(spec, |_| ())
    }

    /// The same; `fresh` is called for a device that is made, before it can have any I/O.
    pub fn ensure_device_with(
        &self,
        spec: &DeviceSpec,
        fresh: impl FnOnce(&Self),
    ) -> Result<(Ensured, DeviceInfo), DmError> {
        let (done, info) = match self.look(&spec.uuid)? {
            None => (Ensured::Created, self.create_with(spec, fresh)?),
            Some((found, _)) if found.name != spec.name => {
                return Err(DmError::Foreign {
                    device: spec.name.clone(),
                    found: format!("{} as {}", found.uuid, found.name),
                    wanted: spec.uuid.clone(),
                });
            }
            Some((found, table)) => self.converge(spec, found, table.as_ref())?,
        };
        node::ensure_dev_node(&spec.name, info.dev)?;
        Ok((done, info))
    }

    /// Whether the active table is this one and serves I/O.
    pub fn serves(&self, uuid: &str, table: &Table) -> Result<bool, DmError> {
        let Some((info, active)) = self.look(uuid)? else { return Ok(false) };
        Ok(!info.suspended && active.as_ref() == Some(table))
    }

    fn create_with(&self, spec: &DeviceSpec, fresh: impl FnOnce(&Self)) -> Result<DeviceInfo, DmError> {
        match self.create(&spec.name, &spec.uuid) {
            Ok(_) => {}
            Err(e) if is_busy(&e) => {
                // The name is taken. Ours cannot be the taker: there is no device with our UUID.
                let found = self.info_by_name(&spec.name)?.uuid;
                return Err(DmError::Foreign { device: spec.name.clone(), found, wanted: spec.uuid.clone() });
            }
            Err(e) => return Err(e),
        }
        fresh(self);
        let made = self.load(&spec.uuid, &spec.table, false).and_then(|()| self.resume(&spec.uuid));
        match made {
            Ok(info) => Ok(info),
            Err(e) => Err(e.after_rollback(self.remove(&spec.uuid, false))),
        }
    }

    fn converge(
        &self,
        spec: &DeviceSpec,
        found: DeviceInfo,
        active: Option<&Table>,
    ) -> Result<(Ensured, DeviceInfo), DmError> {
        let same = active == Some(&spec.table);
        if same && !found.suspended {
            return Ok((Ensured::Identity, found));
        }
        if same {
            // Left suspended by a crash. A resume would also swap in what is preloaded: drop that first.
            self.clear(&spec.uuid)?;
            return Ok((Ensured::Swapped, self.resume(&spec.uuid)?));
        }
        let info = self.swap(&spec.uuid, &spec.table)?;
        Ok((if found.active { Ensured::Swapped } else { Ensured::Created }, info))
    }

    /// Replaces the table under running I/O. What is queued stays queued and runs on the new table. On failure
    /// the old table serves again.
    pub fn swap(&self, uuid: &str, table: &Table) -> Result<DeviceInfo, DmError> {
        self.preload(uuid, table)?;
        self.resume_or_restore(uuid)
    }

    /// Loads a table to be committed later. A preloaded table that is not wanted any more must be cleared: any
    /// resume would commit it.
    pub fn preload(&self, uuid: &str, table: &Table) -> Result<(), DmError> {
        self.load(uuid, table, false)
    }

    /// Makes the preloaded table the active one.
    pub fn commit_preloaded(&self, uuid: &str) -> Result<DeviceInfo, DmError> {
        if !self.info(uuid)?.inactive {
            return Err(DmError::NothingPreloaded { device: uuid.to_owned() });
        }
        self.resume_or_restore(uuid)
    }

    /// Drops the preloaded table; no error when there is none.
    pub fn clear_preloaded(&self, uuid: &str) -> Result<(), DmError> {
        self.clear(uuid)
    }

    fn resume_or_restore(&self, uuid: &str) -> Result<DeviceInfo, DmError> {
        match self.resume(uuid) {
            Ok(info) => Ok(info),
            Err(e) => Err(e.after_rollback(self.restore(uuid))),
        }
    }

    /// After a resume that failed: the kernel has dropped or kept the new table and may have left the device
    /// suspended on its old one.
    fn restore(&self, uuid: &str) -> Result<(), DmError> {
        self.clear(uuid)?;
        let info = self.info(uuid)?;
        if info.suspended && info.active {
            self.resume(uuid)?;
        }
        Ok(())
    }

    /// Fails all I/O of a device from the moment this returns: the fence. The device and its number stay.
    pub fn fence(&self, uuid: &str, len: Sectors) -> Result<(), DmError> {
        let table = Table::error(len).map_err(|source| DmError::Table { device: uuid.to_owned(), source })?;
        self.swap(uuid, &table).map(drop)
    }

    /// Removes a device and its node. `Identity` when there is none.
    pub fn ensure_removed(&self, name: &str, uuid: &str) -> Result<Ensured, DmError> {
        match self.remove(uuid, false) {
            Ok(()) => {
                node::remove_dev_node(name)?;
                Ok(Ensured::Swapped)
            }
            Err(e) if e.is_not_found() => {
                // A node without its device is left by a crash in between, unless the name is another's now.
                match self.info_by_name(name) {
                    Err(gone) if gone.is_not_found() => node::remove_dev_node(name)?,
                    Err(other) => return Err(other),
                    Ok(_) => {}
                }
                Ok(Ensured::Identity)
            }
            Err(e) => Err(e),
        }
    }

    /// As [`Control::ensure_removed`], retried while the device is busy: a writer that has just been failed
    /// still holds it open until it closes. There is no event for a last close, hence the growing pause.
    pub fn ensure_removed_within(
        &self,
        name: &str,
        uuid: &str,
        within: Duration,
    ) -> Result<Ensured, DmError> {
        let deadline = Instant::now() + within;
        let mut pause = Duration::from_millis(2);
        loop {
            match self.ensure_removed(name, uuid) {
                Err(e) if is_busy(&e) && Instant::now() + pause < deadline => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(200));
                }
                other => return other,
            }
        }
    }
}
