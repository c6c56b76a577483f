//! The room's disks: from goals to slots, and what is said about them.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{SystemTime, UNIX_EPOCH},
};

use csi_proto::node::{self as proto, DiskCondition, DiskRole};
use disk_format::{ClaimRequest, Force};
use pool::{ids::DiskId, units::ExtentSize};
use tokio::sync::oneshot;

use super::{Device, Event, OpenSlot, STUCK, Serving, State, TRY_AGAIN, spawn, tell};
use observe::chain;

use crate::{
    disks::{
        devices::Content,
        slot::{Ask, End, Opened, Purpose, Slot},
        wiper::Wiper,
    },
    disks_api::DiskWord,
};

impl State {
    pub(super) fn disk_goal(&mut self, goal: proto::DiskGoal) {
        let Ok(disk) = goal.disk.parse::<DiskId>() else {
            tracing::error!(disk = goal.disk, "a goal's disk id is not valid");
            return;
        };
        let d = self.disks.entry(disk).or_default();
        if d.goal.as_ref().is_some_and(|g| g.epoch > goal.epoch) {
            tracing::warn!(%disk, epoch = goal.epoch, "an older goal is ignored");
            return;
        }
        if d.goal.as_ref() != Some(&goal) {
            d.failure = None;
            d.released = false;
        }
        d.goal = Some(goal);
        self.converge(disk);
    }

    pub(super) fn converge_all(&mut self) {
        let all: Vec<DiskId> = self.disks.keys().copied().collect();
        for disk in all {
            self.converge(disk);
        }
    }

    /// One step towards the disk's goal, and a word on where it is.
    pub(super) fn converge(&mut self, disk: DiskId) {
        let Some(d) = self.disks.get_mut(&disk) else { return };
        let Some(goal) = d.goal.clone() else { return };
        let may_try = d.failure.is_none() || d.retry;
        if may_try && !d.released {
            (d.failure, d.retry) = (None, false);
            let role = DiskRole::try_from(goal.role).unwrap_or(DiskRole::Unknown);
            match (role, d.slot.is_some()) {
                (DiskRole::Unknown, _) => {
                    tracing::error!(%disk, role = goal.role, "a goal's role is not known")
                }
                (DiskRole::Claim | DiskRole::Serve, true) => self.publish(disk),
                (DiskRole::Release, true) => self.ask_release(disk),
                (DiskRole::Claim | DiskRole::Serve | DiskRole::Release, false) => {
                    self.open(disk, &goal, role)
                }
            }
        }
        self.tell_disk(disk);
    }

    /// Lets the agent use a disk that is open.
    pub(super) fn publish(&self, disk: DiskId) {
        let slot = self.disks.get(&disk).and_then(|d| d.slot.as_ref());
        let Some((s, o)) = slot.and_then(|s| Some((s, s.opened.as_ref()?))) else { return };
        if self.room.serving(disk).is_none() {
            self.room.set(disk, Some(Serving { area: o.area.clone(), label: s.label.clone() }));
        }
    }

    /// Devices that carry the disk's label.
    pub(super) fn labelled(&self, disk: DiskId) -> Vec<String> {
        let carries = |d: &&Device| d.content.disk() == Some(disk);
        self.devices.iter().filter(|(_, d)| carries(d)).map(|(id, _)| id.clone()).collect()
    }

    pub(super) fn open(&mut self, disk: DiskId, goal: &proto::DiskGoal, role: DiskRole) {
        let labelled = self.labelled(disk);
        match (&labelled[..], role) {
            ([one], _) => {
                let foreign = self.foreign_system(one);
                match foreign {
                    Some(why) => self.failed(disk, why),
                    None => self.start_slot(disk, &one.clone(), Purpose::Serve),
                }
            }
            ([], DiskRole::Claim) => self.claim(disk, goal),
            ([], _) => {}
            (several, _) => {
                let why = format!(
                    "several devices carry its label ({}): one of them is a copy; remove it",
                    several.join(", ")
                );
                self.failed(disk, why);
            }
        }
    }

    pub(super) fn foreign_system(&self, device: &str) -> Option<String> {
        let Content::Weir(i, _) = &self.devices.get(device)?.content else { return None };
        let ours = self.system?;
        (i.pool_uid != ours).then(|| format!("its label is that of another system, {}", i.pool_uid))
    }

    pub(super) fn claim(&mut self, disk: DiskId, goal: &proto::DiskGoal) {
        let Some(d) = self.devices.get(&goal.device_id) else { return };
        let allowed = match &d.content {
            Content::Blank => Ok(()),
            Content::Foreign(_) | Content::Weir(..) if goal.force => Ok(()),
            Content::Reading => return,
            other => Err(format!("device {} cannot be claimed: {}", goal.device_id, other.describe())),
        };
        let request = allowed.and_then(|()| {
            Ok(ClaimRequest {
                pool: goal.pool.parse().map_err(|e: pool::ids::BadId| e.to_string())?,
                pool_uid: self.system.ok_or("the controller has not said which system it is of")?,
                disk,
                extent_size: ExtentSize::new(goal.extent_size).map_err(|e| e.to_string())?,
                now: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            })
        });
        match request {
            Ok(r) => {
                let force = if goal.force { Force::WipeSignatures } else { Force::No };
                self.start_slot(disk, &goal.device_id, Purpose::Claim(r, force));
            }
            Err(why) => self.failed(disk, why),
        }
    }

    pub(super) fn start_slot(&mut self, disk: DiskId, device: &str, purpose: Purpose) {
        let Some(found) = self.devices.get(device).map(|d| d.found.clone()) else { return };
        self.round += 1;
        let number = self.round;
        let (label, asks) = mpsc::channel();
        let (hardware, events) = (self.hardware.clone(), self.events.clone());
        let retirements = self.room.retirements.clone();
        let gone: Arc<AtomicBool> = Arc::default();
        let left = gone.clone();
        let run = move || {
            let opened = Slot::open(hardware.clone(), retirements, disk, found.dev, found.path, purpose);
            match opened {
                Ok((slot, opened)) => {
                    tell(&events, Event::Opened(disk, number, Box::new(Ok(opened))));
                    let out = slot.serve(&asks);
                    if left.load(Ordering::Relaxed)
                        && let Err(e) = hardware.unhold(disk)
                    {
                        tracing::warn!(%disk, "{}", chain(&e));
                    }
                    tell(&events, Event::Ended(disk, number, out));
                }
                Err(why) => tell(&events, Event::Opened(disk, number, Box::new(Err(why)))),
            }
        };
        if !spawn(format!("disk-{disk}"), run) {
            return self.failed(disk, "no thread could be started for it".to_owned());
        }
        let slot = OpenSlot {
            number,
            device: device.to_owned(),
            label,
            jobs: None,
            stop: Arc::default(),
            gone,
            opened: None,
            releasing: false,
        };
        self.disks.entry(disk).or_default().slot = Some(slot);
    }

    pub(super) fn opened(&mut self, disk: DiskId, number: u64, out: Result<Opened, String>) {
        let Some(slot) = self.slot(disk, number) else { return };
        match out {
            Ok(opened) => {
                let device = slot.device.clone();
                slot.opened = Some(opened.clone());
                if let Some(d) = self.devices.get_mut(&device) {
                    d.content = Content::Weir(Box::new(opened.identity.clone()), opened.generation);
                }
                self.start_wiper(disk, &opened, opened.area.path.clone());
                tracing::info!(%disk, path = %opened.area.path.display(), "open");
                if let Some(d) = self.disks.get_mut(&disk) {
                    d.logged = None;
                }
                self.tell_device(&device);
                self.give_wipes(disk);
                self.converge(disk);
            }
            Err(why) => {
                let device = slot.device.clone();
                if let Some(d) = self.disks.get_mut(&disk) {
                    d.slot = None;
                }
                self.failed(disk, why);
                // What is known of the device has proved wrong.
                if let Some(d) = self.devices.get_mut(&device) {
                    d.content = Content::Reading;
                }
                self.look();
                self.tell_disk(disk);
            }
        }
    }

    pub(super) fn slot(&mut self, disk: DiskId, number: u64) -> Option<&mut OpenSlot> {
        self.disks.get_mut(&disk)?.slot.as_mut().filter(|s| s.number == number)
    }

    pub(super) fn start_wiper(&mut self, disk: DiskId, opened: &Opened, path: PathBuf) {
        let (hardware, room) = (self.hardware.clone(), self.events.clone());
        let Some(slot) = self.disks.get_mut(&disk).and_then(|d| d.slot.as_mut()) else { return };
        let (jobs, inbox) = mpsc::channel();
        let wiper = Wiper {
            hardware,
            disk,
            path,
            extent_size: opened.identity.geometry.extent_size,
            label: slot.label.clone(),
            room,
            stop: slot.stop.clone(),
        };
        if spawn(format!("wipe-{disk}"), move || wiper.run(&inbox)) {
            slot.jobs = Some(jobs);
        }
    }

    /// Gives up a slot: its threads end when they next look.
    pub(super) fn close(&mut self, disk: DiskId) {
        let Some(slot) = self.disks.get_mut(&disk).and_then(|d| d.slot.take()) else { return };
        slot.stop.store(true, Ordering::Relaxed);
        for ((d, _), w) in &mut self.wipes {
            if *d == disk {
                w.given = None;
            }
        }
        self.room.set(disk, None);
    }

    pub(super) fn ended(&mut self, disk: DiskId, number: u64, end: End) {
        let Some(device) = self.slot(disk, number).map(|s| s.device.clone()) else { return };
        self.close(disk);
        match end {
            End::Closed => {}
            End::Released => {
                if let Some(d) = self.disks.get_mut(&disk) {
                    d.released = true;
                }
            }
            End::Failed(why) => self.failed(disk, why),
        }
        if let Some(d) = self.devices.get_mut(&device) {
            d.content = Content::Reading;
        }
        self.look();
        self.converge(disk);
    }

    pub(super) fn failed(&mut self, disk: DiskId, why: String) {
        let d = self.disks.entry(disk).or_default();
        if d.logged.as_ref() != Some(&why) {
            tracing::error!(%disk, "{why}");
            d.logged = Some(why.clone());
        }
        d.failure = Some(why);
        let events = self.events.clone();
        tokio::spawn(async move {
            tokio::time::sleep(TRY_AGAIN).await;
            tell(&events, Event::TryAgain(disk));
        });
    }

    /// A request to the disk's label hangs, or the last one that did has come to an end.
    pub(super) fn stuck(&mut self, disk: DiskId, stuck: bool) {
        let Some(d) = self.disks.get_mut(&disk) else { return };
        d.stuck = if stuck { d.stuck + 1 } else { d.stuck.saturating_sub(1) };
        match d.stuck {
            0 => tracing::info!(%disk, "its label answers again"),
            n => tracing::error!(%disk, requests = n, "its label has not answered within {STUCK:?}"),
        }
        self.tell_disk(disk);
    }

    pub(super) fn ask_release(&mut self, disk: DiskId) {
        let slot = self.disks.get_mut(&disk).and_then(|d| d.slot.as_mut());
        let Some(slot) = slot.filter(|s| s.opened.is_some() && !s.releasing) else { return };
        let (reply, answer) = oneshot::channel();
        let (number, events) = (slot.number, self.events.clone());
        // Nobody begins to map it while it is looked whether somebody does.
        self.room.set(disk, None);
        if slot.label.send(Ask::Release(reply)).is_err() {
            return;
        }
        slot.releasing = true;
        tokio::spawn(async move {
            // No answer: it has been released, or has failed; the slot's end says which.
            if let Ok(why) = answer.await {
                tell(&events, Event::NotReleased(disk, number, why));
            }
        });
    }

    pub(super) fn not_released(&mut self, disk: DiskId, number: u64, why: &str) {
        let Some(slot) = self.slot(disk, number) else { return };
        slot.releasing = false;
        self.publish(disk);
        self.failed(disk, format!("it cannot be released: {why}"));
        self.tell_disk(disk);
    }

    pub(super) fn tell_disk(&mut self, disk: DiskId) {
        let Some((condition, reason)) = self.condition(disk) else { return };
        let Some(d) = self.disks.get(&disk) else { return };
        let Some(goal) = &d.goal else { return };
        let opened = d.slot.as_ref().and_then(|s| s.opened.as_ref());
        let device_id = d.slot.as_ref().map_or_else(|| goal.device_id.clone(), |s| s.device.clone());
        let path = self.devices.get(&device_id).map(|x| x.found.path.display().to_string());
        let word = proto::ObservedDisk {
            disk: disk.to_string(),
            epoch: goal.epoch,
            condition: condition as i32,
            extents: opened.map_or(0, |o| o.identity.geometry.extents.get()),
            path: path.unwrap_or_default(),
            device_id,
            reason,
        };
        if d.told.as_ref() != Some(&word)
            && let Some(d) = self.disks.get_mut(&disk)
        {
            d.told = Some(word.clone());
            self.say(DiskWord::Disk(word));
        }
    }

    /// How a disk is, and why; `None` while that is not known.
    pub(super) fn condition(&self, disk: DiskId) -> Option<(DiskCondition, String)> {
        let d = self.disks.get(&disk)?;
        let goal = d.goal.as_ref()?;
        if d.released {
            return Some((DiskCondition::Released, String::new()));
        }
        if let Some(why) = &d.failure {
            // One that refuses to be released serves on.
            let serving = d.slot.as_ref().is_some_and(|s| s.opened.is_some());
            let c = if serving { DiskCondition::Serving } else { DiskCondition::Failed };
            return Some((c, why.clone()));
        }
        if d.stuck > 0 {
            let why = format!("it hangs: its label has not answered within {} s", STUCK.as_secs());
            return Some((DiskCondition::Failed, why));
        }
        match &d.slot {
            Some(s) if s.opened.is_some() => return Some((DiskCondition::Serving, String::new())),
            Some(_) => return None,
            None => {}
        }
        let device = self.devices.get(&goal.device_id).map(|x| &x.content);
        match device {
            Some(Content::Blank) if goal.role == DiskRole::Release as i32 => {
                return Some((DiskCondition::Released, String::new()));
            }
            Some(c @ (Content::Unreadable(_) | Content::Foreign(_) | Content::Busy(_) | Content::Blank)) => {
                let why = format!("device {}, where it was last: {}", goal.device_id, c.describe());
                return Some((DiskCondition::Failed, why));
            }
            Some(Content::Reading | Content::Weir(..)) | None => {}
        }
        // A device that has not answered may be the one.
        let unread = self.devices.iter().find(|(_, x)| x.content == Content::Reading);
        match (self.listed, unread) {
            (false, _) => None,
            (true, Some((id, _))) if *id == goal.device_id => {
                Some((DiskCondition::Failed, format!("device {id} has not answered a read yet")))
            }
            (true, Some(_)) => None,
            (true, None) => {
                Some((DiskCondition::Missing, "no device of this node carries its label".to_owned()))
            }
        }
    }
}
