//! What would be left without a controller if the release were removed: asked before that, by the chart.

use std::fmt::{self, Write as _};

use ::api::LogicalVolume;
use kube::{Api, Client, api::ListParams};
use pool::units::{Bytes, Extents};

use crate::cluster::ask;

/// Volumes on a page.
const PAGE: u32 = 500;
/// Volumes that are named.
const NAMED: usize = 10;

/// The volumes that there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remains {
    count: u64,
    bytes: Bytes,
    named: Vec<String>,
}

impl Remains {
    /// Walks the records of the cluster.
    ///
    /// # Errors
    /// The API server's.
    pub async fn find(client: &Client) -> kube::Result<Self> {
        let volumes: Api<LogicalVolume> = Api::all(client.clone());
        let mut found = Self::default();
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let listed = ask(volumes.list(&page)).await?;
            for v in &listed.items {
                found.add(v);
            }
            match listed.metadata.continue_.filter(|c| !c.is_empty()) {
                Some(next) => page = page.continue_token(&next),
                None => return Ok(found),
            }
        }
    }

    fn add(&mut self, v: &LogicalVolume) {
        let size = size(v);
        self.count += 1;
        self.bytes = Bytes::new(self.bytes.get().saturating_add(size.get()));
        if self.named.len() < NAMED {
            let claim = &v.spec.claim;
            let whose = match (&claim.pvc_namespace, &claim.pvc_name) {
                (Some(namespace), Some(name)) => format!("claim {namespace}/{name}"),
                _ => format!("volume {}", v.spec.name),
            };
            self.named.push(format!("{whose} ({size})"));
        }
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// What its extents add up to, copies included once.
fn size(v: &LogicalVolume) -> Bytes {
    let extents = v.spec.segments.iter().map(|s| s.count).sum::<Extents>();
    v.spec.extent_size.checked_bytes_of(extents).unwrap_or(Bytes::new(u64::MAX))
}

impl fmt::Display for Remains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return write!(f, "no volume is left");
        }
        let plural = if self.count == 1 { " is" } else { "s are" };
        let mut text =
            format!("{} volume{plural} left, {} in all: {}", self.count, self.bytes, self.named.join(", "));
        let more = self.count.saturating_sub(self.named.len() as u64);
        if more > 0 {
            write!(text, " and {more} more")?;
        }
        write!(
            f,
            "{text}. Nothing was removed. Delete their claims first if the data is to go. To take only the software away \
             and keep all data and records for a later install, use: helm uninstall --no-hooks. Running pods then keep \
             their volumes, but nothing is attached, grown, migrated or fenced until Weir is back."
        )
    }
}
