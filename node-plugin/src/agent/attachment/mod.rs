//! One volume on this node: a task that brings its devices to the newest goal and says what it sees.
//!
//! Lanes run side by side, each with at most one call at a time: the top (with map and write leg), the legs with what they
//! stand on here, and labels that a leg waits for. A swap of the top may wait until a leg has its path back, so the legs must
//! not wait for the top, nor for a disk.
//!
//! Invariants
//! - A report under a goal rests on a look that was made under that goal.
//! - A new goal's pass starts after the last call of the old one is back: nothing comes late.
//! - `Absent` is said only when both lanes are idle and nothing is left.

pub mod guard;
pub mod labels;
pub mod legs;
pub mod pass;
pub mod plan;
pub mod status;

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use kernel::Class;
use pool::{
    goals::Role,
    ids::{DiskId, VolumeId},
    moving::Mirror,
    units::Extents,
    volume::Leg,
};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::Instant,
};
use tracing::{Instrument as _, info, info_span, warn};

use self::{
    guard::{Ending, Watch},
    labels::Labels,
    pass::{End, LegsSeen, Ticket, run_legs, run_top},
    plan::{Input, Seen},
    status::{Extra, status},
};
use super::{
    Ctx,
    calls::CallError,
    ground::Import,
    imports::Care,
    model::{AttachmentGoal, AttachmentReport, Standing},
    retry::Backoff,
};
use crate::disks_api::RunRecord;

/// After so long a pass is said to be stuck.
const STUCK: Duration = Duration::from_secs(5);
/// Pause between two tries of a failed path, at first and at most.
const REINSTATE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// Pause before a device that is in use is tried again, at first and at most.
const IN_USE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// The same after a failure, and where something is waited for that should say so itself.
const FAILED: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Pause between two looks at a mirror. Its end comes with an event.
const PROGRESS: Duration = Duration::from_secs(1);

type Lane<T> = Option<Pin<Box<dyn Future<Output = T> + Send>>>;

/// A worker, as the agent holds it.
#[derive(Debug)]
pub struct Handle {
    goals: watch::Sender<AttachmentGoal>,
    poke: Arc<Notify>,
}

impl Handle {
    /// A newer goal.
    pub fn set(&self, goal: AttachmentGoal) {
        self.goals.send_if_modified(|g| {
            let new = *g != goal;
            if new {
                *g = goal;
            }
            new
        });
    }

    /// Something happened to a leg or the mirror.
    pub fn poke(&self) {
        self.poke.notify_one();
    }
}

/// Starts a worker. `legs`: disks of which the kernel has legs for the volume.
pub fn start(ctx: Arc<Ctx>, goal: AttachmentGoal, legs: BTreeSet<DiskId>) -> Handle {
    let (tx, rx) = watch::channel(goal.clone());
    let poke = Arc::new(Notify::new());
    let span = info_span!("attachment", volume = %goal.volume);
    tokio::spawn(Worker::new(ctx, goal, rx, poke.clone(), legs).run().instrument(span));
    Handle { goals: tx, poke }
}

struct Worker {
    ctx: Arc<Ctx>,
    volume: VolumeId,
    goal: AttachmentGoal,
    goals: watch::Receiver<AttachmentGoal>,
    poke: Arc<Notify>,
    /// Number of the newest goal, for passes to see that they are stale.
    newest: Arc<AtomicU64>,
    number: u64,
    /// Disks that may have a leg.
    legs: BTreeSet<DiskId>,
    /// The last look under the present goal.
    seen: Option<Seen>,
    extra: Extra,
    labels: Labels,
    top: Lane<(u64, Option<Seen>, End)>,
    top_wanted: bool,
    top_since: Instant,
    stuck: bool,
    top_retry: Option<Instant>,
    in_use: Backoff,
    failed: Backoff,
    side: Lane<(u64, Result<LegsSeen, CallError>)>,
    side_wanted: bool,
    side_retry: Option<Instant>,
    unfinished: Backoff,
    reinstate: Backoff,
    reinstate_after: Instant,
    /// Disks whose path the last look after the legs took up again.
    reinstated: BTreeSet<DiskId>,
    imports: BTreeMap<DiskId, Import>,
    care: Option<Care>,
    watch: Option<Watch>,
    /// Since when a write is held that was seen.
    held_since: Option<std::time::Instant>,
    /// The spare that was said to be whole.
    whole: Option<(Extents, Leg)>,
    said: Option<AttachmentReport>,
    released: bool,
}

impl Worker {
    fn new(
        ctx: Arc<Ctx>,
        goal: AttachmentGoal,
        goals: watch::Receiver<AttachmentGoal>,
        poke: Arc<Notify>,
        legs: BTreeSet<DiskId>,
    ) -> Self {
        Self {
            ctx,
            volume: goal.volume,
            goal,
            goals,
            poke,
            newest: Arc::default(),
            number: 0,
            legs,
            seen: None,
            extra: Extra::default(),
            labels: Labels::default(),
            top: None,
            top_wanted: true,
            top_since: Instant::now(),
            stuck: false,
            top_retry: None,
            in_use: Backoff::new(IN_USE.0, IN_USE.1),
            failed: Backoff::new(FAILED.0, FAILED.1),
            side: None,
            side_wanted: true,
            side_retry: None,
            unfinished: Backoff::new(FAILED.0, FAILED.1),
            reinstate: Backoff::new(REINSTATE.0, REINSTATE.1),
            reinstate_after: Instant::now(),
            reinstated: BTreeSet::new(),
            imports: BTreeMap::new(),
            care: None,
            watch: None,
            held_since: None,
            whole: None,
            said: None,
            released: false,
        }
    }

    async fn run(mut self) {
        let (seen_tx, mut seen_rx) = mpsc::unbounded_channel::<(u64, Seen)>();
        let (mut view, mut disks) = (self.ctx.imports.view(), self.ctx.disks.changes());
        self.take_goal();
        loop {
            self.start_lanes(&seen_tx);
            let stuck = self.top.is_some().then_some(self.top_since + STUCK).filter(|t| *t > Instant::now());
            let timers = [self.top_retry, self.side_retry, self.labels.retry_at(), stuck];
            let timer = timers.into_iter().flatten().min();
            tokio::select! {
                biased;
                r = self.goals.changed() => match r {
                    Ok(()) => self.take_goal(),
                    Err(_) => return,
                },
                Some((number, seen)) = seen_rx.recv() => self.on_seen(number, seen),
                (number, seen, end) = lane(&mut self.top) => {
                    self.top = None;
                    // What was told on the way is older than how it ended.
                    while seen_rx.try_recv().is_ok() {}
                    self.on_top(number, seen, end);
                }
                (number, r) = lane(&mut self.side) => {
                    self.side = None;
                    self.on_side(number, r);
                }
                w = self.labels.written() => self.side_wanted |= self.labels.on_written(w),
                at = held(&mut self.watch) => {
                    self.watch = None;
                    self.extra.held = true;
                    // Under a newer epoch it is the same write that is seen again.
                    self.held_since.get_or_insert(at);
                    info!(epoch = %self.goal.epoch, "the guard holds a write");
                    self.say();
                }
                () = self.poke.notified() => {
                    self.side_wanted = true;
                    self.top_wanted |= self.filling().is_some();
                }
                r = view.changed() => if r.is_ok() { self.on_view() } else { return },
                r = disks.changed() => if r.is_ok() { self.on_disks() } else { return },
                () = until(timer) => self.on_timer(),
            }
        }
    }

    fn take_goal(&mut self) {
        let goal = self.goals.borrow_and_update().clone();
        self.number += 1;
        self.newest.store(self.number, Ordering::Release);
        if goal.epoch != self.goal.epoch || goal.role != self.goal.role || self.said.is_none() {
            info!(epoch = %goal.epoch, role = ?goal.role, "goal");
        }
        let same = goal.epoch == self.goal.epoch && goal.role == self.goal.role;
        // What the legs should be does not depend on who may write.
        let same_legs = self.said.is_some()
            && goal.remotes == self.goal.remotes
            && goal.map == self.goal.map
            && goal.builds() == self.goal.builds();
        let (held, busy) = (self.extra.held && same, self.extra.busy && same);
        self.goal = goal;
        self.extra =
            Extra { held, busy, queueing: std::mem::take(&mut self.extra.queueing), trouble: String::new() };
        self.seen = None;
        if self.goal.role != Role::Guard {
            self.watch = None;
        }
        if self.goal.builds() {
            self.released = false;
            self.legs.extend(self.goal.remotes.keys());
            for (disk, r) in self.goal.remotes.iter().filter(|(_, r)| r.ready) {
                self.ctx.imports.want(self.volume, *disk, (r.address, r.port));
            }
        }
        self.on_view();
        (self.top_wanted, self.top_retry) = (true, None);
        if !same_legs {
            (self.side_wanted, self.side_retry) = (true, None);
        }
        self.labels.renew();
        self.in_use.reset();
        self.failed.reset();
        self.unfinished.reset();
    }

    fn on_view(&mut self) {
        let now: BTreeMap<_, _> =
            self.legs.iter().filter_map(|d| Some((*d, self.ctx.imports.import(self.volume, *d)?))).collect();
        if now != self.imports {
            // A lender that came back is tried at once.
            self.reinstate.reset();
            self.reinstate_after = Instant::now();
            self.imports = now;
            self.side_wanted = true;
        }
    }

    fn on_disks(&mut self) {
        self.labels.forget();
        self.top_wanted |= self.goal.builds();
    }

    /// The spare that the goal wants filled: where it begins, and its place.
    fn filling(&self) -> Option<(Extents, Leg)> {
        let (s, p) = self.goal.map.as_ref()?.map.spare().filter(|(_, p)| p.filling)?;
        Some((s.start, p.place))
    }

    fn input(&self) -> Input {
        let local = self.goal.map.iter().flat_map(|m| m.map.disks());
        let areas = local
            .filter(|d| !self.goal.remotes.contains_key(d))
            .filter_map(|d| Some((d, self.ctx.disks.data_area(d)?)))
            .collect();
        Input {
            goal: self.goal.clone(),
            node: self.ctx.node.clone(),
            areas,
            imports: self.imports.clone(),
            was_whole: self.whole.is_some() && self.whole == self.filling(),
        }
    }

    fn start_lanes(&mut self, seen_tx: &mpsc::UnboundedSender<(u64, Seen)>) {
        // A source that was not quiet is asked once: the controller has its answer.
        if self.top.is_none() && self.top_wanted && !self.extra.busy {
            self.top_wanted = false;
            self.top_retry = None;
            (self.top_since, self.stuck) = (Instant::now(), false);
            self.top = Some(Box::pin(self.top_pass(seen_tx.clone())));
        }
        if self.side.is_none() && self.side_wanted {
            self.side_wanted = false;
            self.side_retry = None;
            if !self.legs.is_empty() {
                self.side = Some(Box::pin(self.side_pass()));
            }
        }
        if self.labels.is_due() {
            let (records, ticket) = (self.records_here(&self.input()), self.ticket());
            self.labels.start(records, &self.ctx, ticket);
        }
    }

    fn ticket(&self) -> Ticket {
        Ticket { newest: self.newest.clone(), mine: self.number }
    }

    /// What the labels of this node's disks that may have a leg are to have.
    fn records_here(&self, i: &Input) -> impl Iterator<Item = RunRecord> + use<> {
        let mut all = if self.goal.builds() { records(i) } else { vec![] };
        all.retain(|r| self.legs.contains(&r.disk));
        all.into_iter()
    }

    /// The look after the legs.
    fn side_pass(&self) -> impl Future<Output = (u64, Result<LegsSeen, CallError>)> + Send + 'static {
        let (input, legs, ticket) = (self.input(), self.legs.clone(), self.ticket());
        let labelled = self.records_here(&input).filter(|r| self.labels.have(r));
        let arrived: BTreeSet<DiskId> = labelled.map(|r| r.disk).collect();
        let reinstate = Instant::now() >= self.reinstate_after;
        let ctx = self.ctx.clone();
        async move {
            let (ground, mine) = (ctx.ground.clone(), ticket.mine);
            let what = format!("look after the legs of volume {}", input.goal.volume);
            let body = move || run_legs(&*ground, &input, &legs, &arrived, &ticket, reinstate);
            (mine, ctx.calls.run(what, body).await)
        }
    }

    fn top_pass(
        &mut self,
        seen_tx: mpsc::UnboundedSender<(u64, Seen)>,
    ) -> impl Future<Output = (u64, Option<Seen>, End)> + Send + 'static {
        let (input, legs, ticket) = (self.input(), self.legs.clone(), self.ticket());
        let to_write = self.labels.promise(if self.goal.builds() { records(&input) } else { vec![] });
        let ctx = self.ctx.clone();
        async move {
            let mine = ticket.mine;
            for r in to_write {
                if ticket.is_stale() {
                    return (mine, None, End::Superseded);
                }
                if let Err(e) = ctx.disks.record_runs(r).await {
                    return (mine, None, End::Wait(e.to_string()));
                }
            }
            let ground = ctx.ground.clone();
            let what = format!(
                "bring volume {} to {:?} at epoch {}",
                input.goal.volume, input.goal.role, input.goal.epoch
            );
            // An error means that the worker is gone.
            let tell = move |s: &Seen| drop(seen_tx.send((mine, s.clone())));
            let body = move || run_top(&*ground, &input, &legs, &ticket, &tell);
            match ctx.calls.run(what, body).await {
                Ok((seen, end)) => (mine, seen, end),
                Err(e) => (mine, None, End::Wait(e.to_string())),
            }
        }
    }

    /// Measures for how long a write was held, when what is seen now holds it no longer.
    fn note_let_go(&mut self, seen: &Seen) {
        let (Some(since), Some(ending)) = (self.held_since, Ending::of(seen)) else { return };
        self.held_since = None;
        self.ctx.held_writes.ended(ending, since.elapsed());
    }

    fn on_seen(&mut self, number: u64, seen: Seen) {
        self.note_let_go(&seen);
        if number != self.number {
            return;
        }
        let standing = status(&self.input(), &seen, &self.extra).standing;
        self.seen = Some(seen);
        // Where nothing has changed yet, the pass's end is soon enough: every word costs the pass time.
        if standing != self.said_standing() {
            self.say();
        }
    }

    fn on_top(&mut self, number: u64, seen: Option<Seen>, end: End) {
        if let Some(s) = &seen {
            self.note_let_go(s);
        }
        if matches!(end, End::Superseded) || number != self.number {
            self.top_wanted = true;
            return;
        }
        if let Some(s) = seen {
            self.legs.extend(s.legs.keys());
            // Those that nothing stands on any more go with the look after the legs.
            self.side_wanted |= self.goal.builds() && !s.near.is_empty();
            self.seen = Some(s);
            self.labels.keep_promise();
        }
        self.extra.busy = matches!(end, End::Busy);
        let now = Instant::now();
        (self.extra.trouble, self.top_retry) = match end {
            End::Done => {
                self.in_use.reset();
                self.failed.reset();
                let copies = self.seen.as_ref().and_then(|s| s.mirror.as_ref()).is_some();
                (String::new(), (copies && self.filling().is_some()).then(|| now + PROGRESS))
            }
            End::Busy | End::Superseded => (String::new(), None),
            End::Wait(why) => (why, Some(now + self.failed.pause())),
            End::InUse(why) => (why, Some(now + self.in_use.pause())),
            End::Failed(e) => {
                match e.class() {
                    Class::Transient | Class::Busy | Class::OutcomeUnknown => {
                        warn!(epoch = %self.goal.epoch, error = %e, "not reached, will try again");
                    }
                    Class::Permanent => {
                        tracing::error!(epoch = %self.goal.epoch, error = %e, "not reached");
                    }
                }
                (e.to_string(), Some(now + self.failed.pause()))
            }
            End::Unsettled(what) => {
                tracing::error!(what, "the kernel does not show what was set");
                (format!("the kernel does not show what was set: {what}"), Some(now + self.failed.pause()))
            }
        };
        self.say();
    }

    /// The next look after the legs is no later than this.
    fn look_by(&mut self, at: Instant) {
        self.side_retry = Some(self.side_retry.map_or(at, |t| t.min(at)));
    }

    fn on_side(&mut self, number: u64, r: Result<LegsSeen, CallError>) {
        let now = Instant::now();
        let s = match r {
            Ok(s) => s,
            Err(e) => {
                warn!(error = %e, "the legs were not looked after");
                self.look_by(now + FAILED.0);
                return;
            }
        };
        if let Some(e) = &s.failed {
            warn!(error = %e, "a leg could not be brought right, will try again");
            self.look_by(now + FAILED.0);
        }
        if number != self.number {
            self.side_wanted = true;
        } else if s.unfinished {
            let pause = self.unfinished.pause();
            self.look_by(now + pause);
        } else {
            self.unfinished.reset();
        }
        if s.queueing != self.extra.queueing {
            info!(queueing = ?s.queueing, "legs without a path");
        }
        // Taken up a moment ago, and failed again.
        let far = |d: &&DiskId| self.reinstated.contains(d) && self.goal.remotes.contains_key(d);
        for d in s.queueing.iter().filter(far) {
            self.ctx.imports.doubt(*d);
        }
        self.reinstated = s.reinstated.clone();
        if !s.reinstated.is_empty() {
            self.reinstate_after = now + self.reinstate.pause();
        }
        if s.queueing.is_empty() && s.reinstated.is_empty() && self.reinstate_after + REINSTATE.1 < now {
            self.reinstate.reset();
        }
        let waits = !s.queueing.is_empty() && self.goal.role != Role::Absent;
        self.care = match (waits, self.care.take()) {
            (true, None) => Some(self.ctx.imports.care()),
            (true, c) => c,
            (false, _) => None,
        };
        if waits && s.queueing.iter().any(|d| self.imports.get(d).is_some_and(|m| m.live)) {
            self.look_by(self.reinstate_after.max(now + Duration::from_millis(20)));
        }
        // The top may have waited for a leg; or the last thing left may be one.
        self.top_wanted |=
            s.acted || self.goal.role == Role::Absent && self.said_standing() != Standing::Absent;
        let before = self.legs.len();
        self.legs.extend(&s.legs);
        if self.legs.len() > before {
            self.labels.want();
        }
        if self.extra.queueing != s.queueing {
            self.extra.queueing = s.queueing;
            self.say();
        }
    }

    fn on_timer(&mut self) {
        let now = Instant::now();
        if self.top_retry.is_some_and(|t| t <= now) {
            (self.top_retry, self.top_wanted) = (None, true);
        }
        if self.side_retry.is_some_and(|t| t <= now) {
            (self.side_retry, self.side_wanted) = (None, true);
        }
        self.labels.on_timer(now);
        if self.top.is_some() && self.top_since + STUCK <= now && !self.stuck {
            self.stuck = true;
            warn!(epoch = %self.goal.epoch, "the kernel has not returned for {STUCK:?}; other volumes go on");
            self.extra.trouble = format!("a kernel call has not returned for {} s", STUCK.as_secs());
            self.say();
        }
    }

    fn said_standing(&self) -> Standing {
        self.said.as_ref().map_or(Standing::Unknown, |s| s.standing)
    }

    /// Says what is seen, if that is news.
    fn say(&mut self) {
        let input = self.input();
        let mut report = match &self.seen {
            Some(s) => status(&input, s, &self.extra),
            None => AttachmentReport {
                volume: self.volume,
                epoch: self.goal.epoch,
                standing: Standing::Unknown,
                held: false,
                busy: false,
                size: pool::units::Sectors::ZERO,
                queueing: vec![],
                mirror: None,
                reason: self.extra.trouble.clone(),
            },
        };
        if report.standing == Standing::Absent && (self.top.is_some() || self.side.is_some()) {
            report.standing = Standing::Fenced;
            report.reason = "in progress".into();
        }
        if report.mirror == Some(Mirror::Whole) {
            self.whole = self.filling();
        }
        self.follow(report.standing);
        if self.said.as_ref() != Some(&report) {
            self.ctx.book.attachment(report.clone());
            self.said = Some(report);
        }
    }

    /// What a standing brings with it beyond the report.
    fn follow(&mut self, standing: Standing) {
        match standing {
            Standing::Guarded if self.goal.role == Role::Guard && !self.extra.held => {
                if self.watch.is_none() {
                    match Watch::start(self.ctx.ground.clone(), self.volume) {
                        Ok(w) => self.watch = Some(w),
                        Err(e) => {
                            tracing::error!(error = %e, "no thread to watch the guard, will try again");
                            self.top_retry = Some(Instant::now() + FAILED.0);
                        }
                    }
                }
            }
            Standing::Absent if !self.released => {
                self.released = true;
                self.care = None;
                self.ctx.imports.release(self.volume, &self.legs);
                self.legs.clear();
                self.imports.clear();
            }
            Standing::Open if self.goal.builds() && self.extra.trouble.is_empty() && self.top.is_none() => {
                // A leg that something still stands on holds its connection.
                let legs = self.seen.iter().flat_map(|s| s.legs.keys());
                let keep = self.goal.remotes.keys().chain(legs).copied().collect();
                self.ctx.imports.retain(self.volume, &keep);
            }
            Standing::Unknown | Standing::Absent | Standing::Fenced | Standing::Guarded | Standing::Open => {}
        }
    }
}

/// What the labels of this node's disks have to say before the volume is mapped.
fn records(i: &Input) -> Vec<RunRecord> {
    let Some(m) = &i.goal.map else { return vec![] };
    i.areas
        .keys()
        .map(|disk| RunRecord {
            disk: *disk,
            volume: i.goal.volume,
            name: m.name.clone(),
            map: m.map.clone(),
            extent_size: m.extent_size,
            epoch: i.goal.epoch,
        })
        .collect()
}

async fn lane<T>(l: &mut Lane<T>) -> T {
    match l {
        Some(f) => f.await,
        None => std::future::pending().await,
    }
}

async fn held(w: &mut Option<Watch>) -> std::time::Instant {
    match w {
        Some(w) => w.held().await,
        None => std::future::pending().await,
    }
}

async fn until(t: Option<Instant>) {
    match t {
        Some(t) => tokio::time::sleep_until(t).await,
        None => std::future::pending().await,
    }
}
