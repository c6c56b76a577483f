//! The subsystems through which this node exports, one for each (disk, consumer). Each has one owner at a time: the
//! kernel takes a lock for each subsystem, so that two calls for one would only wait for each other, while those for
//! another one must not.
//!
//! After a boot the consumers' kernels are waiting to reconnect, and drop what they do not find at that moment. So a
//! subsystem is linked when all namespaces that are known to belong there stand, or after a while without the rest.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use pool::{
    ids::{DiskId, NodeName, SliceId},
    names,
};
use tokio::sync::watch;

use crate::agent::{
    calls::{CallError, Calls},
    ground::{ExportSpec, Ground, GroundError},
    model::ExportKey,
};

/// How long the first namespaces of a subsystem wait for the others.
const TOGETHER: Duration = Duration::from_secs(3);

/// Why an export was not made or not taken away.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The kernel refused.
    #[error(transparent)]
    Ground(#[from] GroundError),
    /// The call brought nothing.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// Namespaces by uuid; `None` until they have been read.
type Numbers = tokio::sync::Mutex<Option<BTreeMap<SliceId, u32>>>;

#[derive(Debug, Default)]
struct Subsystem {
    numbers: Numbers,
    /// Slices that are to be served and have no namespace yet.
    expected: watch::Sender<BTreeSet<SliceId>>,
}

/// All subsystems.
#[derive(Debug, Default)]
pub struct Subsystems(Mutex<BTreeMap<(DiskId, NodeName), Arc<Subsystem>>>);

impl Subsystems {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(DiskId, NodeName), Arc<Subsystem>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, disk: DiskId, consumer: &NodeName) -> Arc<Subsystem> {
        self.lock().entry((disk, consumer.clone())).or_default().clone()
    }

    /// These exports are about to be asked for.
    pub fn expect<'a>(&self, keys: impl Iterator<Item = &'a ExportKey>) {
        for k in keys {
            let slice = names::slice_id(k.volume, k.disk, &k.consumer);
            self.of(k.disk, &k.consumer).expected.send_if_modified(|e| e.insert(slice));
        }
    }

    /// This export is not asked for any more.
    pub fn unexpect(&self, k: &ExportKey) {
        let slice = names::slice_id(k.volume, k.disk, &k.consumer);
        self.of(k.disk, &k.consumer).expected.send_if_modified(|e| e.remove(&slice));
    }

    /// Makes a slice reachable, or sees that it is, and tells its consumer about its size.
    pub async fn export(&self, g: &Arc<dyn Ground>, calls: &Calls, e: ExportSpec) -> Result<(), ExportError> {
        let s = self.of(e.disk, &e.consumer);
        {
            let mut known = s.numbers.lock().await;
            let map = read(&mut known, g, calls, &e).await?;
            let nsid = map.get(&e.slice).copied();
            let (g, spec) = (g.clone(), e.clone());
            let body = move || {
                let n = g.export(&spec, nsid)?;
                g.resize_export(&spec, n)?;
                Ok(n)
            };
            let what = format!("export slice {} of disk {}", e.slice, e.disk);
            match flat(calls.run(what, body).await) {
                Ok(n) => drop(map.insert(e.slice, n)),
                Err(e) => {
                    // What is there now is not known: read it again next time.
                    *known = None;
                    return Err(e);
                }
            }
        }
        s.expected.send_if_modified(|x| x.remove(&e.slice));
        let mut others = s.expected.subscribe();
        // Late ones are waited for no longer, whatever became of them.
        drop(tokio::time::timeout(TOGETHER, others.wait_for(BTreeSet::is_empty)).await);
        let g = g.clone();
        let what = format!("serve disk {} to {}", e.disk, e.consumer);
        let _one_at_a_time = s.numbers.lock().await;
        flat(calls.run(what, move || g.link(&e)).await)
    }

    /// Takes a slice's namespace away, if there is one.
    pub async fn unexport(
        &self,
        g: &Arc<dyn Ground>,
        calls: &Calls,
        e: ExportSpec,
    ) -> Result<(), ExportError> {
        let s = self.of(e.disk, &e.consumer);
        let mut known = s.numbers.lock().await;
        let map = read(&mut known, g, calls, &e).await?;
        let Some(nsid) = map.get(&e.slice).copied() else { return Ok(()) };
        let (g, slice) = (g.clone(), e.slice);
        let what = format!("take away the export of slice {slice} of disk {}", e.disk);
        match flat(calls.run(what, move || g.unexport(&e, nsid)).await) {
            Ok(()) => {
                map.remove(&slice);
                Ok(())
            }
            Err(e) => {
                *known = None;
                Err(e)
            }
        }
    }
}

fn flat<T>(r: Result<Result<T, GroundError>, CallError>) -> Result<T, ExportError> {
    Ok(r??)
}

async fn read<'a>(
    known: &'a mut Option<BTreeMap<SliceId, u32>>,
    g: &Arc<dyn Ground>,
    calls: &Calls,
    e: &ExportSpec,
) -> Result<&'a mut BTreeMap<SliceId, u32>, ExportError> {
    if known.is_none() {
        let (g, disk, consumer) = (g.clone(), e.disk, e.consumer.clone());
        let what = format!("read the exports of disk {disk} to {consumer}");
        *known = Some(flat(calls.run(what, move || g.exported(disk, &consumer)).await)?);
    }
    Ok(known.as_mut().expect("read just now or before"))
}
