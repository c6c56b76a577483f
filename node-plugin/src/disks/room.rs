//! The disk room: one task that owns what is known of devices, disks and wipes, and starts the threads that touch
//! them. It never blocks: threads tell it what they found by [`Event`]s.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use async_trait::async_trait;
use csi_proto::node as proto;
use disk_format::PoolUid;
use pool::{ids::DiskId, names};
use tokio::sync::{
    mpsc::{UnboundedSender, unbounded_channel},
    oneshot, watch,
};

use super::{
    devices::Content,
    hardware::{Found, Hardware},
    slot::{Ask, End, Opened, WipeJob},
    uevents,
    wiper::WipeNews,
};
use crate::{
    disks_api::{DataArea, DiskOrder, DiskRoomLink, DiskWord, Disks, RecordError, RunRecord},
    retirements::Retirements,
};

mod look;
mod serve;
mod wipes;

/// A disk that failed is tried again after this time, and whenever something about it changes.
const TRY_AGAIN: Duration = Duration::from_secs(10);
/// A device that has not answered its first reads by then is reported as one that cannot be read.
const SLOW: Duration = Duration::from_secs(20);
/// A label that has not taken runs by then is reported as one that hangs: it is two writes and two flushes.
const STUCK: Duration = Duration::from_secs(10);
/// Time that a label has to take runs: two writes and two flushes.
const RECORD: Duration = Duration::from_secs(60);

/// What the room's threads tell it.
pub(super) enum Event {
    /// Devices may have come, gone or changed.
    LookAgain,
    /// The list of devices.
    Listed(Result<Vec<Found>, String>),
    /// What is on a device, by its id, as it was listed in round `u64`.
    Read(String, u64, Content),
    /// A device has not answered for some time.
    Slow(String, u64),
    /// A slot has opened its disk, or could not.
    Opened(DiskId, u64, Box<Result<Opened, String>>),
    /// A slot has ended.
    Ended(DiskId, u64, End),
    /// Why a disk is not released.
    NotReleased(DiskId, u64, String),
    /// A wipe.
    Wipe(DiskId, WipeNews),
    /// A failed disk may be tried again.
    TryAgain(DiskId),
    /// A request to a label has been under way for long, or at last is not any more.
    Stuck(DiskId, bool),
}

/// A handle on the disk room.
#[derive(Debug)]
pub struct DiskRoom {
    serving: RwLock<HashMap<DiskId, Serving>>,
    changes: watch::Sender<u64>,
    events: UnboundedSender<Event>,
    retirements: Arc<Retirements>,
}

#[derive(Clone, Debug)]
struct Serving {
    area: DataArea,
    label: mpsc::Sender<Ask>,
}

#[async_trait]
impl Disks for DiskRoom {
    fn data_area(&self, disk: DiskId) -> Option<DataArea> {
        self.serving(disk).map(|s| s.area)
    }

    async fn record_runs(&self, record: RunRecord) -> Result<(), RecordError> {
        let disk = record.disk;
        let label = self.serving(disk).ok_or(RecordError::NotServing(disk))?.label;
        let (reply, mut answer) = oneshot::channel();
        label.send(Ask::Record(Box::new(record), reply)).map_err(|_| RecordError::NotServing(disk))?;
        let events = self.events.clone();
        // Watched to its end even if nobody waits any more: a disk that hangs has to show, and that it goes on.
        let watched = tokio::spawn(async move {
            if let Ok(out) = tokio::time::timeout(STUCK, &mut answer).await {
                return out;
            }
            tell(&events, Event::Stuck(disk, true));
            let out = answer.await;
            tell(&events, Event::Stuck(disk, false));
            out
        });
        match tokio::time::timeout(RECORD, watched).await {
            Ok(Ok(Ok(out))) => out,
            Ok(Ok(Err(_)) | Err(_)) => Err(RecordError::NotServing(disk)),
            Err(late) => Err(RecordError::Io { disk, source: Box::new(late) }),
        }
    }

    fn retirements(&self) -> Arc<Retirements> {
        self.retirements.clone()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

impl DiskRoom {
    fn serving(&self, disk: DiskId) -> Option<Serving> {
        self.serving.read().unwrap_or_else(PoisonError::into_inner).get(&disk).cloned()
    }

    fn set(&self, disk: DiskId, serving: Option<Serving>) {
        let mut all = self.serving.write().unwrap_or_else(PoisonError::into_inner);
        match serving {
            Some(s) => all.insert(disk, s),
            None => all.remove(&disk),
        };
        drop(all);
        self.changes.send_modify(|n| *n += 1);
    }
}

/// Starts the room. It ends with its link. `listen`: whether uevents are listened to.
pub fn start(hardware: Arc<dyn Hardware>, link: DiskRoomLink, listen: bool) -> Arc<DiskRoom> {
    let (events, inbox) = unbounded_channel();
    let room = Arc::new(DiskRoom {
        serving: RwLock::default(),
        changes: watch::Sender::new(0),
        events: events.clone(),
        retirements: Arc::default(),
    });
    let state = State {
        hardware,
        room: room.clone(),
        events,
        words: link.words,
        system: None,
        listing: false,
        list_again: false,
        listed: false,
        round: 0,
        devices: BTreeMap::new(),
        disks: HashMap::new(),
        wipes: BTreeMap::new(),
    };
    tokio::spawn(state.run(link.orders, inbox, listen));
    room
}

/// A device.
struct Device {
    found: Found,
    content: Content,
    /// Whether a thread reads it.
    reading: bool,
    /// Whether it has not answered for some time.
    slow: bool,
    /// Whether it is to be read again when that thread ends.
    stale: bool,
    told: Option<proto::Device>,
}

/// A disk of which there is a goal, or a slot.
#[derive(Default)]
struct Disk {
    goal: Option<proto::DiskGoal>,
    slot: Option<OpenSlot>,
    /// Requests to its label that have been under way for long.
    stuck: u32,
    /// Why it failed; nothing is tried until `retry`.
    failure: Option<String>,
    retry: bool,
    /// The last failure that was logged: the same one again is not news.
    logged: Option<String>,
    released: bool,
    told: Option<proto::ObservedDisk>,
}

struct OpenSlot {
    number: u64,
    device: String,
    label: mpsc::Sender<Ask>,
    jobs: Option<mpsc::Sender<WipeJob>>,
    /// Tells the wiper to stop.
    stop: Arc<AtomicBool>,
    /// The device has left the node: the hold would keep it, and its number, from being freed.
    gone: Arc<AtomicBool>,
    opened: Option<Opened>,
    /// Whether it was asked to release its disk, and has not answered.
    releasing: bool,
}

struct Wipe {
    goal: proto::WipeGoal,
    /// The slot whose wiper has it.
    given: Option<u64>,
    done: bool,
    told: Option<proto::ObservedWipe>,
}

struct State {
    hardware: Arc<dyn Hardware>,
    room: Arc<DiskRoom>,
    events: UnboundedSender<Event>,
    words: UnboundedSender<DiskWord>,
    system: Option<PoolUid>,
    listing: bool,
    list_again: bool,
    listed: bool,
    round: u64,
    devices: BTreeMap<String, Device>,
    disks: HashMap<DiskId, Disk>,
    wipes: BTreeMap<(DiskId, u64), Wipe>,
}

/// Runs blocking work on a thread of its own; what it has to say goes to the room.
fn spawn(name: String, f: impl FnOnce() + Send + 'static) -> bool {
    match thread::Builder::new().name(name.clone()).spawn(f) {
        Ok(_) => true,
        Err(e) => {
            tracing::error!("no thread for {name}: {e}");
            false
        }
    }
}

/// The room outlives its threads, but for the process's end.
fn tell(room: &UnboundedSender<Event>, e: Event) {
    if room.send(e).is_err() {
        tracing::debug!("the disk room has ended");
    }
}

impl State {
    async fn run(
        mut self,
        mut orders: tokio::sync::mpsc::UnboundedReceiver<DiskOrder>,
        mut inbox: tokio::sync::mpsc::UnboundedReceiver<Event>,
        listen: bool,
    ) {
        if listen {
            let events = self.events.clone();
            spawn("uevents".to_owned(), move || uevents::listen(&events));
        }
        self.look();
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    Some(o) => self.order(o),
                    None => break,
                },
                Some(event) = inbox.recv() => self.event(event),
            }
        }
        for d in self.disks.values().filter_map(|d| d.slot.as_ref()) {
            d.stop.store(true, Ordering::Relaxed);
        }
    }

    fn order(&mut self, order: DiskOrder) {
        match order {
            DiskOrder::System(text) => self.system = Some(PoolUid(names::system_uid(&text))),
            DiskOrder::Disk(goal) => self.disk_goal(goal),
            DiskOrder::Wipe(goal) => self.wipe_goal(goal),
            // What is there beyond the goals is reported, and left alone.
            DiskOrder::FullGoalsEnd => {}
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::LookAgain => self.look(),
            Event::Listed(list) => self.listed(list),
            Event::Read(id, round, content) => self.read(id, round, content),
            Event::Slow(id, round) => self.slow(&id, round),
            Event::Opened(disk, number, out) => self.opened(disk, number, *out),
            Event::Ended(disk, number, out) => self.ended(disk, number, out),
            Event::NotReleased(disk, number, why) => self.not_released(disk, number, &why),
            Event::Wipe(disk, news) => self.wipe_news(disk, news),
            Event::TryAgain(disk) => {
                if let Some(d) = self.disks.get_mut(&disk) {
                    d.retry = true;
                }
                self.converge(disk);
            }
            Event::Stuck(disk, stuck) => self.stuck(disk, stuck),
        }
    }

    fn say(&self, word: DiskWord) {
        if self.words.send(word).is_err() {
            tracing::debug!("the session has ended");
        }
    }
}
