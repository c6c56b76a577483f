//! One export of this node: a task that brings the slice's device and its namespace to the newest goal.
//!
//! Two lanes: the device (a table swap is the fence, and must not wait for nvmet), and the namespace. The device's
//! fence is complete when the swap has returned: nothing that comes through the namespace reaches the disk then.
//!
//! Invariants: nothing is served before its runs are on the label; after a boot nothing is exported without a goal;
//! a report under a goal rests on a look made under that goal; nothing is made by a goal that a wipe has overtaken (what
//! stands is left as it is: the wipe waits for it).

pub mod plan;
pub mod subsystems;

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use kernel::Class;
use pool::{goals::ExportState, names};
use tokio::{sync::watch, time::Instant};
use tracing::{Instrument as _, info, info_span, warn};

use self::{
    plan::{Act, Next, is_fenced, plan, role},
    subsystems::ExportError,
};
use super::{
    Ctx,
    ground::{ExportSpec, Found, Ground, GroundError},
    model::{ExportGoal, ExportReport, ExportStanding},
    retry::Backoff,
};
use crate::{
    disks_api::{DataArea, RecordError, RunRecord},
    retirements::{Overtaken, Retirements},
};

/// Pause after a failure, at first and at most.
const FAILED: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Acts in one pass at most.
const MAX_ACTS: usize = 8;

/// A worker, as the agent holds it.
#[derive(Debug)]
pub struct Handle(watch::Sender<ExportGoal>);

impl Handle {
    /// A newer goal.
    pub fn set(&self, goal: ExportGoal) {
        self.0.send_if_modified(|g| {
            let new = *g != goal;
            if new {
                *g = goal;
            }
            new
        });
    }
}

/// Starts a worker.
pub fn start(ctx: Arc<Ctx>, goal: ExportGoal) -> Handle {
    let (tx, rx) = watch::channel(goal.clone());
    let k = &goal.key;
    let span = info_span!("export", volume = %k.volume, disk = %k.disk, consumer = %k.consumer);
    let w = Worker {
        ctx,
        goal,
        goals: rx,
        newest: Arc::default(),
        number: 0,
        device: None,
        device_wanted: true,
        namespace: None,
        exported: Exported::Unknown,
        seen: None,
        settled: false,
        recorded: None,
        recording: None,
        retry_at: None,
        backoff: Backoff::new(FAILED.0, FAILED.1),
        trouble: String::new(),
        said: None,
    };
    tokio::spawn(w.run().instrument(span));
    Handle(tx)
}

type Lane<T> = Option<Pin<Box<dyn Future<Output = T> + Send>>>;

/// How a pass over the device ended.
enum End {
    Done,
    Wait(String),
    Failed(GroundError),
    Superseded,
    /// Only a newer goal helps.
    Overtaken(Overtaken),
}

/// What a pass over the device came to.
struct Passed {
    /// Its goal's number.
    number: u64,
    seen: Option<Option<Found>>,
    /// Whether the device is another than before.
    changed: bool,
    end: End,
}

/// What is known about the namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exported {
    Unknown,
    /// It stands, with the device's present size.
    Yes,
    No,
}

struct Worker {
    ctx: Arc<Ctx>,
    goal: ExportGoal,
    goals: watch::Receiver<ExportGoal>,
    newest: Arc<AtomicU64>,
    number: u64,
    device: Lane<Passed>,
    device_wanted: bool,
    namespace: Lane<(Exported, Result<(), ExportError>)>,
    exported: Exported,
    /// The last look under the present goal.
    seen: Option<Option<Found>>,
    /// The device is as the present goal wants it.
    settled: bool,
    /// The goal whose runs the disk's label has.
    recorded: Option<ExportGoal>,
    /// The one whose runs it will have when the pass is over.
    recording: Option<ExportGoal>,
    retry_at: Option<Instant>,
    backoff: Backoff,
    trouble: String,
    said: Option<ExportReport>,
}

impl Worker {
    async fn run(mut self) {
        let mut disks = self.ctx.disks.changes();
        self.take_goal();
        loop {
            self.start_lanes();
            let timer = self.retry_at;
            tokio::select! {
                biased;
                r = self.goals.changed() => match r {
                    Ok(()) => self.take_goal(),
                    Err(_) => return,
                },
                p = lane(&mut self.device) => {
                    self.device = None;
                    self.on_device(p);
                }
                (state, r) = lane(&mut self.namespace) => {
                    self.namespace = None;
                    self.on_namespace(state, r);
                }
                r = disks.changed() => if r.is_ok() {
                    // One that was opened again may have another label.
                    (self.recorded, self.recording) = (None, None);
                    self.device_wanted |= self.goal.state == ExportState::Serving;
                } else {
                    return;
                },
                () = until(timer) => (self.retry_at, self.device_wanted) = (None, true),
            }
        }
    }

    fn take_goal(&mut self) {
        let goal = self.goals.borrow_and_update().clone();
        info!(epoch = %goal.epoch, state = ?goal.state, "goal");
        self.number += 1;
        self.newest.store(self.number, Ordering::Release);
        if goal.state == ExportState::Serving && self.goal.map != goal.map {
            // The size may change: the consumer has to be told.
            self.exported = Exported::Unknown;
        }
        if goal.state != ExportState::Serving {
            self.ctx.subsystems.unexpect(&goal.key);
        }
        self.goal = goal;
        (self.seen, self.settled) = (None, false);
        self.trouble.clear();
        self.backoff.reset();
        (self.retry_at, self.device_wanted) = (None, true);
    }

    fn start_lanes(&mut self) {
        if self.device.is_none() && self.device_wanted {
            (self.device_wanted, self.retry_at) = (false, None);
            self.device = Some(Box::pin(self.device_pass()));
        }
        if self.namespace.is_some() || !self.settled || self.retry_at.is_some() || self.device.is_some() {
            return;
        }
        let k = &self.goal.key;
        if self.goal.state == ExportState::Serving
            && self.exported != Exported::Yes
            && let Err(e) = self.ctx.disks.retirements().check(k.disk, k.volume, self.goal.epoch)
        {
            (self.settled, self.trouble) = (false, e.to_string());
            return self.say();
        }
        let e = ExportSpec {
            disk: k.disk,
            consumer: k.consumer.clone(),
            slice: names::slice_id(k.volume, k.disk, &k.consumer),
            role: role(k),
        };
        let ctx = self.ctx.clone();
        match (self.goal.state, self.exported) {
            (ExportState::Serving, Exported::Unknown | Exported::No) => {
                self.namespace = Some(Box::pin(async move {
                    (Exported::Yes, ctx.subsystems.export(&ctx.ground, &ctx.calls, e).await)
                }));
            }
            (ExportState::Absent, Exported::Unknown | Exported::Yes) => {
                self.namespace = Some(Box::pin(async move {
                    (Exported::No, ctx.subsystems.unexport(&ctx.ground, &ctx.calls, e).await)
                }));
            }
            (ExportState::Serving, Exported::Yes)
            | (ExportState::Absent, Exported::No)
            | (ExportState::Fenced, _) => {}
        }
    }

    fn device_pass(&mut self) -> impl Future<Output = Passed> + Send + 'static {
        let (ctx, goal) = (self.ctx.clone(), self.goal.clone());
        let unexported = self.exported == Exported::No;
        let record = goal.state == ExportState::Serving && self.recorded.as_ref() != Some(&goal);
        let (newest, number) = (self.newest.clone(), self.number);
        self.recording = Some(self.goal.clone()).filter(|g| g.state == ExportState::Serving);
        async move {
            let nothing = |end| Passed { number, seen: None, changed: false, end };
            let area = ctx.disks.data_area(goal.key.disk);
            if let (true, Some(_), Some(m)) = (record, &area, &goal.map) {
                let r = RunRecord {
                    disk: goal.key.disk,
                    volume: goal.key.volume,
                    name: m.name.clone(),
                    map: m.map.clone(),
                    extent_size: m.extent_size,
                    epoch: goal.epoch,
                };
                if newest.load(Ordering::Acquire) != number {
                    return nothing(End::Superseded);
                }
                match ctx.disks.record_runs(r).await {
                    Ok(()) => {}
                    Err(RecordError::Overtaken(e)) => return nothing(End::Overtaken(e)),
                    Err(e) => return nothing(End::Wait(e.to_string())),
                }
            }
            let (ground, retirements) = (ctx.ground.clone(), ctx.disks.retirements());
            let what = format!(
                "bring slice of volume {} on disk {} to {:?}",
                goal.key.volume, goal.key.disk, goal.state
            );
            let body = move || {
                let pass = Pass { goal: &goal, area: area.as_ref(), unexported, retirements: &retirements };
                run_device(&*ground, &pass, &newest, number)
            };
            match ctx.calls.run(what, body).await {
                Ok((seen, changed, end)) => Passed { number, seen, changed, end },
                Err(e) => nothing(End::Wait(e.to_string())),
            }
        }
    }

    fn on_device(&mut self, p: Passed) {
        let Passed { number, seen, changed, end } = p;
        if changed && self.goal.state == ExportState::Serving && self.exported == Exported::Yes {
            self.exported = Exported::Unknown;
        }
        if matches!(end, End::Superseded) || number != self.number {
            self.device_wanted = true;
            return;
        }
        if let Some(s) = seen {
            self.seen = Some(s);
        }
        self.settled = matches!(end, End::Done);
        match end {
            End::Done | End::Superseded => {
                self.trouble.clear();
                if self.goal.state == ExportState::Serving {
                    self.recorded = self.recording.take();
                }
            }
            End::Wait(why) => self.wait(why),
            End::Overtaken(e) => {
                warn!(epoch = %self.goal.epoch, error = %e, "not served");
                self.trouble = e.to_string();
            }
            End::Failed(e) => {
                match e.class() {
                    Class::Permanent => tracing::error!(error = %e, "not reached"),
                    Class::Transient | Class::Busy | Class::OutcomeUnknown => {
                        warn!(error = %e, "not reached, will try again");
                    }
                }
                self.wait(e.to_string());
            }
        }
        self.say();
    }

    fn on_namespace(&mut self, state: Exported, r: Result<(), ExportError>) {
        match r {
            Ok(()) => {
                self.exported = state;
                self.backoff.reset();
                self.trouble.clear();
                // With the namespace gone the device may go; and a goal that came meanwhile sees it all anew.
                self.device_wanted |= state == Exported::No;
            }
            Err(e) => {
                warn!(error = %e, "export not brought right, will try again");
                self.exported = Exported::Unknown;
                self.wait(e.to_string());
            }
        }
        self.say();
    }

    fn wait(&mut self, why: String) {
        self.trouble = why;
        self.retry_at = Some(Instant::now() + self.backoff.pause());
    }

    fn say(&mut self) {
        let standing = self.standing();
        let reached = match self.goal.state {
            ExportState::Serving => ExportStanding::Serving,
            ExportState::Fenced => ExportStanding::Fenced,
            ExportState::Absent => ExportStanding::Absent,
        };
        let reason = match (standing == reached, self.trouble.is_empty()) {
            (true, _) => String::new(),
            (false, true) => "in progress".into(),
            (false, false) => self.trouble.clone(),
        };
        let report = ExportReport { key: self.goal.key.clone(), epoch: self.goal.epoch, standing, reason };
        if self.said.as_ref() != Some(&report) {
            self.ctx.book.export(report.clone());
            self.said = Some(report);
        }
    }

    fn standing(&self) -> ExportStanding {
        let Some(seen) = &self.seen else { return ExportStanding::Unknown };
        match self.goal.state {
            ExportState::Serving => match (self.settled && seen.is_some(), self.exported, &self.said) {
                (true, Exported::Yes, _) => ExportStanding::Serving,
                // It served and is being looked at again; nothing was taken away.
                (_, _, Some(s)) if s.standing == ExportStanding::Serving && s.epoch == self.goal.epoch => {
                    ExportStanding::Serving
                }
                _ => ExportStanding::Unknown,
            },
            ExportState::Fenced | ExportState::Absent if !is_fenced(seen.as_ref()) => ExportStanding::Unknown,
            ExportState::Absent
                if seen.is_none() && self.exported == Exported::No && self.device.is_none() =>
            {
                ExportStanding::Absent
            }
            ExportState::Fenced | ExportState::Absent => ExportStanding::Fenced,
        }
    }
}

/// What a pass over the device goes by.
struct Pass<'a> {
    goal: &'a ExportGoal,
    area: Option<&'a DataArea>,
    unexported: bool,
    retirements: &'a Arc<Retirements>,
}

/// Brings the device to the goal; what was seen last, whether anything was changed, and how it ended.
fn run_device(
    g: &dyn Ground,
    pass: &Pass<'_>,
    newest: &AtomicU64,
    mine: u64,
) -> (Option<Option<Found>>, bool, End) {
    let (goal, key) = (pass.goal, &pass.goal.key);
    let role = role(key);
    let (mut changed, mut last) = (false, None);
    for _ in 0..MAX_ACTS {
        let seen = match g.device(&role) {
            Ok(s) => s,
            Err(e) => return (None, changed, End::Failed(e)),
        };
        let act = match plan(goal, seen.as_ref(), pass.area, pass.unexported) {
            Next::Done => return (Some(seen), changed, End::Done),
            Next::Wait(why) => return (Some(seen), changed, End::Wait(why)),
            Next::Do(a) => a,
        };
        if newest.load(Ordering::Acquire) != mine {
            return (Some(seen), changed, End::Superseded);
        }
        if last.as_ref() == Some(&act) {
            let why = format!("the kernel does not show what was set: {act:?}");
            return (Some(seen), changed, End::Wait(why));
        }
        // Until the call is back, no wipe that would have overtaken it begins.
        let begun = (goal.state == ExportState::Serving)
            .then(|| pass.retirements.begin(key.disk, key.volume, goal.epoch))
            .transpose();
        let _act = match begun {
            Ok(act) => act,
            Err(e) => return (Some(seen), changed, End::Overtaken(e)),
        };
        tracing::debug!(role = ?role, act = ?act, "act on a slice");
        let done = match &act {
            Act::Set(t) => g.set_table(&role, t, false),
            Act::Clear => g.clear(&role),
            Act::Remove => g.remove(&role),
        };
        changed = true;
        if let Err(e) = done {
            return (Some(seen), changed, End::Failed(e));
        }
        last = Some(act);
    }
    (None, changed, End::Wait("too many acts in one pass".into()))
}

async fn lane<T>(l: &mut Lane<T>) -> T {
    match l {
        Some(f) => f.await,
        None => std::future::pending().await,
    }
}

async fn until(t: Option<Instant>) {
    match t {
        Some(t) => tokio::time::sleep_until(t).await,
        None => std::future::pending().await,
    }
}
