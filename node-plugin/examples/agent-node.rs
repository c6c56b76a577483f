//! The agent alone on a node, with disks that are given on the command line and carry no label: for trying exports,
//! attachments and cut-overs against a scripted controller (tests/lab_agent).
//!
//! `agent-node NODE CONTROLLER STORAGE_ADDRESS:PORT STATE_DIR DISK_ID=DEVICE...`

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use kernel::{DevNo, block::BlockDevice};
use node_plugin::{
    agent::{Agent, real::Kernel},
    disks_api::{DataArea, DiskOrder, Disks, RecordError, RunRecord, disk_link},
    retirements::Retirements,
    session::{Session, SessionConfig},
};
use pool::{ids::DiskId, units::Sectors};
use tokio::sync::watch;

type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Whole devices as data areas; what the label would say is forgotten.
struct Bare {
    areas: BTreeMap<DiskId, DataArea>,
    changes: watch::Sender<u64>,
    retirements: Arc<Retirements>,
}

#[async_trait]
impl Disks for Bare {
    fn data_area(&self, disk: DiskId) -> Option<DataArea> {
        self.areas.get(&disk).cloned()
    }

    async fn record_runs(&self, record: RunRecord) -> Result<(), RecordError> {
        self.areas.get(&record.disk).map(drop).ok_or(RecordError::NotServing(record.disk))
    }

    fn retirements(&self) -> Arc<Retirements> {
        self.retirements.clone()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

fn area(device: &str) -> Fallible<DataArea> {
    let path = PathBuf::from(device);
    let dev = DevNo::of_path(&path)?;
    let len = BlockDevice::new(dev)?.size()?;
    Ok(DataArea { dev, path, start: Sectors::new(2048), len: Sectors::new(len.get() - 2048) })
}

#[tokio::main]
async fn main() -> Fallible<()> {
    let filter = tracing_subscriber::EnvFilter::new("info,node_plugin=debug");
    tracing_subscriber::fmt().with_ansi(false).with_env_filter(filter).init();
    let args: Vec<String> = std::env::args().collect();
    let [_, node, controller, storage, state, disks @ ..] = args.as_slice() else {
        return Err("agent-node NODE CONTROLLER ADDRESS:PORT STATE_DIR DISK_ID=DEVICE...".into());
    };
    let mut areas = BTreeMap::new();
    for d in disks {
        let (id, device) = d.split_once('=').ok_or("DISK_ID=DEVICE")?;
        areas.insert(id.parse()?, area(device)?);
    }
    let (node, storage) = (node.parse()?, storage.parse()?);
    let kernel = Arc::new(Kernel::open(&node, storage)?);
    let disks = Arc::new(Bare { areas, changes: watch::Sender::new(0), retirements: Arc::default() });
    let agent = Agent::start(node.clone(), kernel, disks).await?;
    let (link, mut room) = disk_link();
    let config = SessionConfig {
        node,
        controllers: vec![controller.clone()],
        tls: None,
        token: None,
        boot_id: std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().into(),
        storage,
        topology: BTreeMap::new(),
        features: vec![],
        max_volumes: 300,
        state_dir: state.into(),
        recorder: None,
        limits: None,
    };
    let _handle = Session::start(config, agent, link, watch::Sender::new(Ok(())))?;
    while let Some(o) = room.orders.recv().await {
        if !matches!(o, DiskOrder::FullGoalsEnd) {
            tracing::info!(order = ?o, "an order for disks, which this program does not have");
        }
    }
    Ok(())
}
