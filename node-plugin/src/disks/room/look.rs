//! The room's devices: listing them, reading what is on them, noticing that they go.

use std::collections::BTreeMap;

use csi_proto::node as proto;
use pool::ids::DiskId;

use super::{Device, Event, SLOW, State, spawn, tell};
use observe::chain;

use crate::{
    disks::{
        devices::{Content, by_id, is_reported, read_content, report},
        hardware::Found,
    },
    disks_api::DiskWord,
};

impl State {
    pub(super) fn look(&mut self) {
        if self.listing {
            self.list_again = true;
            return;
        }
        let (hardware, events) = (self.hardware.clone(), self.events.clone());
        let list = move || {
            let out = hardware.list().map_err(|e| chain(&e));
            tell(&events, Event::Listed(out));
        };
        self.listing = spawn("list-disks".to_owned(), list);
    }

    pub(super) fn listed(&mut self, list: Result<Vec<Found>, String>) {
        self.listing = false;
        match list {
            Ok(found) => self.merge(by_id(found.into_iter().filter(is_reported).collect())),
            // Not seeing the devices is not their end.
            Err(why) => tracing::error!("the node's disks cannot be listed: {why}"),
        }
        if std::mem::take(&mut self.list_again) {
            self.look();
        }
        self.converge_all();
    }

    pub(super) fn merge(&mut self, found: BTreeMap<String, Found>) {
        self.listed = true;
        self.round += 1;
        let gone: Vec<String> = self.devices.keys().filter(|id| !found.contains_key(*id)).cloned().collect();
        for id in gone {
            self.device_gone(&id);
        }
        for (id, f) in found {
            let moved = self.devices.get(&id).is_some_and(|d| d.found.dev != f.dev);
            if moved {
                self.device_gone(&id);
            }
            let served = self.disks.values().any(|d| d.slot.as_ref().is_some_and(|s| s.device == id));
            let fresh = || Device {
                found: f.clone(),
                content: Content::Reading,
                reading: false,
                slow: false,
                stale: false,
                told: None,
            };
            let device = self.devices.entry(id.clone()).or_insert_with(fresh);
            device.found = f;
            // The label of a disk that is served is its slot's to read.
            if !served {
                self.start_read(&id);
            }
            self.tell_device(&id);
        }
    }

    pub(super) fn device_gone(&mut self, id: &str) {
        let Some(d) = self.devices.remove(id) else { return };
        tracing::warn!(device = id, path = %d.found.path.display(), "the device has gone");
        let word = proto::Device { device_id: id.to_owned(), gone: true, ..Default::default() };
        self.say(DiskWord::Device(word));
        let served: Vec<DiskId> = self
            .disks
            .iter()
            .filter(|(_, d)| d.slot.as_ref().is_some_and(|s| s.device == id))
            .map(|(disk, _)| *disk)
            .collect();
        for disk in served {
            if let Some(s) = self.disks.get(&disk).and_then(|d| d.slot.as_ref()) {
                s.gone.store(true, std::sync::atomic::Ordering::Relaxed);
            }
            self.close(disk);
        }
    }

    pub(super) fn start_read(&mut self, id: &str) {
        let round = self.round;
        let Some(d) = self.devices.get_mut(id) else { return };
        if d.reading {
            d.stale = true;
            return;
        }
        let (hardware, events, found, name) =
            (self.hardware.clone(), self.events.clone(), d.found.clone(), id.to_owned());
        let read = move || {
            let content = read_content(&*hardware, &found);
            tell(&events, Event::Read(name, round, content));
        };
        d.reading = spawn(format!("read-{id}"), read);
        if d.content == Content::Reading {
            let (events, id) = (self.events.clone(), id.to_owned());
            tokio::spawn(async move {
                tokio::time::sleep(SLOW).await;
                tell(&events, Event::Slow(id, round));
            });
        }
    }

    pub(super) fn read(&mut self, id: String, round: u64, content: Content) {
        let Some(d) = self.devices.get_mut(&id) else { return };
        tracing::debug!(device = id, round, "{}", content.describe());
        (d.reading, d.slow) = (false, false);
        let stale = std::mem::take(&mut d.stale);
        let served = self.disks.values().any(|k| k.slot.as_ref().is_some_and(|s| s.device == id));
        if !served {
            d.content = content;
        }
        if stale {
            self.start_read(&id);
        }
        self.tell_device(&id);
        self.converge_all();
    }

    pub(super) fn slow(&mut self, id: &str, round: u64) {
        let Some(d) = self.devices.get_mut(id).filter(|d| d.reading && d.content == Content::Reading) else {
            return;
        };
        d.slow = true;
        tracing::error!(device = id, round, "the device has not answered a read within {SLOW:?}");
        self.tell_device(id);
        self.converge_all();
    }

    pub(super) fn tell_device(&mut self, id: &str) {
        let Some(d) = self.devices.get_mut(id) else { return };
        // Not worth a word before it was read, unless it is slow to answer.
        if d.content == Content::Reading && !d.slow {
            return;
        }
        let word = report(id, &d.found, &d.content);
        if d.told.as_ref() != Some(&word) {
            d.told = Some(word.clone());
            self.say(DiskWord::Device(word));
        }
    }
}
