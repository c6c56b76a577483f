//! The room's wipes: handed to the wiper of their disk once it serves, and remembered when they are done.

use csi_proto::node as proto;
use pool::{
    ids::{DiskId, Epoch},
    units::{ExtentSize, Extents},
};

use super::{State, Wipe};
use crate::{
    disks::{slot::WipeJob, wiper::WipeNews},
    disks_api::DiskWord,
};

impl State {
    pub(super) fn wipe_goal(&mut self, goal: proto::WipeGoal) {
        let Ok(disk) = goal.disk.parse::<DiskId>() else {
            tracing::error!(disk = goal.disk, wipe = goal.wipe, "a wipe's disk id is not valid");
            return;
        };
        if let (Ok(volume), true) = (goal.volume.parse(), goal.epoch > 0) {
            self.room.retirements.raise(disk, volume, Epoch::new(goal.epoch));
        }
        let key = (disk, goal.wipe);
        let w = self.wipes.entry(key).or_insert_with(|| Wipe {
            goal: goal.clone(),
            given: None,
            done: false,
            told: None,
        });
        if w.goal != goal {
            // A number stands for one set of runs: another set under it is not to be trusted.
            tracing::error!(%disk, wipe = goal.wipe, "a wipe came again with other runs; it is refused");
            return;
        }
        if let Some(word) = w.told.clone().filter(|_| w.done) {
            self.say(DiskWord::Wipe(word));
            return;
        }
        self.give_wipes(disk);
    }

    /// Hands the disk's wipes to its wiper, those that it does not have yet.
    pub(super) fn give_wipes(&mut self, disk: DiskId) {
        let slot = self.disks.get(&disk).and_then(|d| d.slot.as_ref());
        let ready = slot.and_then(|s| {
            Some((s.number, s.jobs.clone()?, s.opened.as_ref()?.identity.geometry.extent_size))
        });
        let waiting: Vec<(u64, proto::WipeGoal)> = self
            .wipes
            .iter()
            .filter(|((d, _), w)| *d == disk && !w.done)
            .filter(|(_, w)| ready.as_ref().is_none_or(|(n, ..)| w.given != Some(*n)))
            .map(|((_, id), w)| (*id, w.goal.clone()))
            .collect();
        for (wipe, goal) in waiting {
            let news = |refused, reason: String| {
                let extents_done = Extents::ZERO;
                WipeNews { wipe, done: false, extents_done, refused, reason }
            };
            let Some((number, jobs, extent_size)) = &ready else {
                self.wipe_news(disk, news(false, "the disk does not serve on this node".to_owned()));
                continue;
            };
            let given = job(&goal, *extent_size)
                .map_err(|why| (true, why))
                .and_then(|job| jobs.send(job).map_err(|_| (false, "the disk's wiper has ended".to_owned())));
            match (given, self.wipes.get_mut(&(disk, wipe))) {
                (Ok(()), Some(w)) => w.given = Some(*number),
                (Ok(()), None) => {}
                (Err((refused, why)), _) => {
                    tracing::error!(%disk, wipe, "{why}");
                    self.wipe_news(disk, news(refused, why));
                }
            }
        }
    }

    pub(super) fn wipe_news(&mut self, disk: DiskId, news: WipeNews) {
        let Some(w) = self.wipes.get_mut(&(disk, news.wipe)) else { return };
        w.done |= news.done;
        let word = proto::ObservedWipe {
            disk: disk.to_string(),
            wipe: news.wipe,
            done: w.done,
            extents_done: news.extents_done.get(),
            reason: news.reason,
            refused: news.refused,
        };
        if w.told.as_ref() != Some(&word) {
            w.told = Some(word.clone());
            self.say(DiskWord::Wipe(word));
        }
    }
}

fn job(goal: &proto::WipeGoal, extent_size: ExtentSize) -> Result<WipeJob, String> {
    if goal.extent_size != extent_size.bytes().get() {
        return Err(format!(
            "the wipe counts in extents of {} bytes, the disk in extents of {} bytes",
            goal.extent_size,
            extent_size.bytes().get()
        ));
    }
    let volume = match goal.volume.as_str() {
        "" => None,
        v => Some(v.parse().map_err(|e: pool::ids::BadId| e.to_string())?),
    };
    let runs: Vec<(Extents, Extents)> =
        goal.runs.iter().map(|r| (Extents::new(r.first), Extents::new(r.count))).collect();
    if runs.iter().any(|(_, n)| n.is_zero()) {
        return Err("a run of the wipe is empty".to_owned());
    }
    let epoch = (goal.epoch > 0).then(|| Epoch::new(goal.epoch));
    Ok(WipeJob { wipe: goal.wipe, volume, epoch, runs })
}
