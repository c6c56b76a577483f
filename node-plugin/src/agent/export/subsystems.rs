//! The subsystems through which this node exports, one for each (disk, consumer). Each has one owner at a time: the
//! kernel takes a lock for each subsystem, so that two calls for one would only wait for each other, while those for
//! another one must not.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use pool::ids::{DiskId, NodeName, SliceId};

use crate::agent::{
    calls::{CallError, Calls},
    ground::{ExportSpec, Ground, GroundError},
};

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
type Numbers = Arc<tokio::sync::Mutex<Option<BTreeMap<SliceId, u32>>>>;

/// All subsystems.
#[derive(Debug, Default)]
pub struct Subsystems(Mutex<BTreeMap<(DiskId, NodeName), Numbers>>);

impl Subsystems {
    fn of(&self, e: &ExportSpec) -> Numbers {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry((e.disk, e.consumer.clone())).or_default().clone()
    }

    /// Makes a slice reachable, or sees that it is, and tells its consumer about its size.
    pub async fn export(&self, g: &Arc<dyn Ground>, calls: &Calls, e: ExportSpec) -> Result<(), ExportError> {
        let numbers = self.of(&e);
        let mut known = numbers.lock().await;
        let map = Self::read(&mut known, g, calls, &e).await?;
        let (nsid, slice) = (map.get(&e.slice).copied(), e.slice);
        let g = g.clone();
        let what = format!("export slice {slice} of disk {}", e.disk);
        let done = calls
            .run(what, move || {
                let n = g.export(&e, nsid)?;
                g.resize_export(&e, n)?;
                Ok::<_, GroundError>(n)
            })
            .await
            .map_err(ExportError::from)
            .and_then(|r| r.map_err(ExportError::from));
        match done {
            Ok(n) => {
                map.insert(slice, n);
                Ok(())
            }
            Err(e) => {
                // What is there now is not known: read it again next time.
                *known = None;
                Err(e)
            }
        }
    }

    /// Takes a slice's namespace away, if there is one.
    pub async fn unexport(
        &self,
        g: &Arc<dyn Ground>,
        calls: &Calls,
        e: ExportSpec,
    ) -> Result<(), ExportError> {
        let numbers = self.of(&e);
        let mut known = numbers.lock().await;
        let map = Self::read(&mut known, g, calls, &e).await?;
        let Some(nsid) = map.get(&e.slice).copied() else { return Ok(()) };
        let (g, slice) = (g.clone(), e.slice);
        let what = format!("take away the export of slice {slice} of disk {}", e.disk);
        let done = calls.run(what, move || g.unexport(&e, nsid)).await;
        match done.map_err(ExportError::from).and_then(|r| r.map_err(ExportError::from)) {
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

    async fn read<'a>(
        known: &'a mut Option<BTreeMap<SliceId, u32>>,
        g: &Arc<dyn Ground>,
        calls: &Calls,
        e: &ExportSpec,
    ) -> Result<&'a mut BTreeMap<SliceId, u32>, ExportError> {
        if known.is_none() {
            let (g, disk, consumer) = (g.clone(), e.disk, e.consumer.clone());
            let what = format!("read the exports of disk {disk} to {consumer}");
            *known = Some(calls.run(what, move || g.exported(disk, &consumer)).await??);
        }
        Ok(known.as_mut().expect("read just now or before"))
    }
}
