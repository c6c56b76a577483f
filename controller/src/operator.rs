//! The Operator service: what people ask, and tell where there is no Kubernetes (see operator.proto). Served on a listener of
//! its own: see `listen.operator`.
//!
//! Must not know: how anything is decided; who may ask is the listener's affair, but for the certificate checked here.

mod drains;

use std::{collections::BTreeMap, sync::Arc};

use csi_proto::operator as wire;
use forecast::{Drift, HealthReport, Resolution, Series};
use pool::{
    access::Mode,
    alloc::{Chosen, Explanation, Passed},
    disk::{DiskClass, NODE_KEY},
    ids::{DiskId, NodeName, VolumeId},
    names::DmRole,
    units::Bytes,
};
use tonic::{
    Request, Response, Status,
    transport::server::{TcpConnectInfo, TlsConnectInfo},
};

use crate::{
    api::{Api, ApiError, Capability, CreateVolume, Topology},
    core::{DiskLine, Handle, VolumeLine},
    flow::{DiskView, Flow, sweep},
    status::status,
    tls,
};

/// Rows of a page when the caller sets no limit: a message of 4 MiB holds them.
const PAGE: usize = 2000;
/// Hours of history that are shown.
const SHOWN_H: u64 = 48;

/// The service.
#[derive(Clone)]
pub struct Operator {
    core: Handle,
    /// Callers must show an operator's certificate.
    proven: bool,
}

fn refuse(e: ApiError) -> Status {
    status(&e)
}

fn page<T: std::str::FromStr>(r: &wire::PageRequest) -> Result<(Option<T>, usize), Status> {
    let after = match r.after.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| Status::invalid_argument(format!("{text:?} is no page")))?),
    };
    let limit = match r.limit as usize {
        0 => PAGE,
        n => n.min(PAGE),
    };
    Ok((after, limit))
}

/// Where the next page begins, if this one is full.
fn next<T>(rows: &[T], limit: usize, id: impl Fn(&T) -> String) -> String {
    rows.last().filter(|_| rows.len() == limit).map(id).unwrap_or_default()
}

impl Operator {
    /// Over this core; with `proven`, callers must show an operator's certificate.
    #[must_use]
    pub fn new(core: Handle, proven: bool) -> Self {
        Self { core, proven }
    }

    /// It, ready to be added to a server.
    #[must_use]
    pub fn into_server(self) -> wire::operator_server::OperatorServer<Self> {
        wire::operator_server::OperatorServer::new(self)
    }

    fn admit<T>(&self, r: Request<T>) -> Result<T, Status> {
        let certs =
            r.extensions().get::<TlsConnectInfo<TcpConnectInfo>>().and_then(TlsConnectInfo::peer_certs);
        if self.proven && !tls::is_operator(certs) {
            tracing::warn!("a caller of the operator's service has no operator's certificate: refused");
            return Err(Status::permission_denied(format!(
                "the certificate is not an operator's: its organization (O) must be {}",
                tls::OPERATORS
            )));
        }
        Ok(r.into_inner())
    }

    fn flow(&self) -> &Arc<Flow> {
        self.core.flow()
    }

    fn disk(&self, line: &DiskLine) -> wire::Disk {
        let view = self.flow().disk(line.row.disk, sweep::unix_s());
        disk(line, view.as_ref())
    }

    fn volume(&self, line: &VolumeLine) -> wire::Volume {
        let view = self.flow().volume(line.id);
        let lenders: std::collections::BTreeSet<&NodeName> =
            line.places.keys().map(|(n, _)| n).filter(|n| line.is_lender(n)).collect();
        let borrowed = line.places.iter().filter(|((n, _), _)| line.is_lender(n)).map(|(_, b)| b.get()).sum();
        wire::Volume {
            volume: line.id.to_string(),
            name: line.name.clone(),
            pool: line.pool.to_string(),
            size_bytes: line.size.get(),
            phase: line.phase.clone(),
            holders: line.holders.iter().map(ToString::to_string).collect(),
            lenders: lenders.iter().map(ToString::to_string).collect(),
            borrowed_bytes: borrowed,
            load: view.as_ref().and_then(|v| v.series.latest()).map_or(0.0, |l| l.1),
            bytes_s: view.map_or(0.0, |v| v.bytes_s),
            abnormal: line.abnormal.clone().unwrap_or_default(),
        }
    }

    async fn volume_named(&self, text: &str) -> Result<wire::Volume, ApiError> {
        let detail = self.core.volume_detail(text.to_owned()).await?;
        Ok(self.volume(&detail.line))
    }

    async fn node_named(&self, text: &str) -> Result<NodeName, ApiError> {
        let known = self.core.known_nodes().await?;
        let found = text.parse().ok().filter(|n: &NodeName| known.contains(n));
        found.ok_or_else(|| {
            let all: Vec<_> = known.iter().take(16).map(NodeName::as_str).collect();
            ApiError::NoNode(format!("{text} (there are: {})", all.join(", ")))
        })
    }
}

fn offer(o: &forecast::Offer) -> wire::Offer {
    wire::Offer {
        bytes: o.bytes,
        io: o.io,
        until_s: o.until_s,
        space_reason: o.space_reason.to_string(),
        io_reason: o.io_reason.to_string(),
        confidence: o.confidence,
        free_bytes: o.ledger.free,
        growth_bytes: o.ledger.growth,
        recall_h: o.ledger.recall_h,
        kept_bytes: o.ledger.kept_bytes,
        usable_io: o.ledger.usable_io,
        own_peak_io: o.ledger.own_peak,
        kept_io: o.ledger.kept_io,
    }
}

fn class_word(class: DiskClass) -> &'static str {
    match class {
        DiskClass::Hdd => "hdd",
        DiskClass::Ssd => "ssd",
        DiskClass::Nvme => "nvme",
    }
}

fn disk(line: &DiskLine, view: Option<&DiskView>) -> wire::Disk {
    let r = &line.row;
    let activity = view.and_then(|v| {
        let s = v.sample.as_ref()?;
        Some(wire::Activity {
            age_s: v.age_s?,
            load: s.all.load,
            lent_load: s.lent,
            queue: s.all.queue,
            latency_s: s.all.latency,
            read_bytes_s: s.read_bytes_s,
            write_bytes_s: s.write_bytes_s,
        })
    });
    wire::Disk {
        disk: r.disk.to_string(),
        node: r.node.to_string(),
        pool: r.pool.to_string(),
        path: r.path.clone(),
        disk_class: class_word(line.class).to_owned(),
        state: r.state.clone(),
        size_bytes: r.size.get(),
        free_bytes: r.free.get(),
        unwiped_bytes: r.unwiped.get(),
        lent_bytes: line.lent.get(),
        activity,
        offer: view.and_then(|v| v.offer.as_ref()).map(offer),
    }
}

/// The last hours of a series: means, peaks, and when the last one ended.
fn hours(series: &Series) -> (Vec<f64>, Vec<f64>, u64) {
    let kept = series.kept(Resolution::Hour);
    let from = kept.start.max(kept.end.saturating_sub(SHOWN_H));
    let seen: Vec<_> = (from..kept.end).map(|n| series.interval(Resolution::Hour, n)).collect();
    // What was never seen at the beginning is no gap.
    let seen: Vec<_> = seen.into_iter().skip_while(Option::is_none).collect();
    let means = seen.iter().map(|i| i.map_or(-1.0, |i| i.mean)).collect();
    (means, seen.iter().map(|i| i.map_or(-1.0, |i| i.peak)).collect(), kept.end * 3600)
}

fn horizon(f: &forecast::Forecast) -> wire::Horizon {
    let forecast::Forecast { horizon_h, mean, peak_bound, confidence } = *f;
    wire::Horizon { hours: horizon_h, mean, peak_bound, confidence }
}

fn drift(model: &forecast::DeviceModel) -> String {
    match model.drift() {
        None => String::new(),
        Some((at_s, Drift::Slower)) => format!("it became slower at {at_s}"),
        Some((at_s, Drift::Faster)) => format!("it became faster at {at_s}"),
    }
}

fn health((h, errors_before): &(HealthReport, u64)) -> String {
    if let Some(fault) = forecast::fault(h, *errors_before) {
        return fault.to_string();
    }
    let mut said = vec!["well".to_owned()];
    said.extend(h.used_percent.map(|n| format!("{n} % of its endurance used")));
    said.extend(h.spare_percent.map(|n| format!("{n} % spare")));
    said.extend(h.temperature_c.map(|n| format!("{n} degrees Celsius")));
    said.join(", ")
}

fn chosen(c: &Chosen, extent: Bytes) -> wire::Candidate {
    wire::Candidate {
        node: c.node.to_string(),
        disk: c.disk.to_string(),
        bytes: c.extents.get().saturating_mul(extent.get()),
        why: c.why.to_string(),
        score: c.score,
    }
}

fn passed(p: &Passed, extent: Bytes) -> wire::Candidate {
    wire::Candidate {
        node: p.node.to_string(),
        disk: p.disk.map(|d| d.to_string()).unwrap_or_default(),
        bytes: p.room.get().saturating_mul(extent.get()),
        why: p.why.to_string(),
        score: p.score,
    }
}

fn explained(e: &Explanation, extent: Bytes) -> wire::ExplainResponse {
    wire::ExplainResponse {
        home: e.home.as_ref().map(ToString::to_string).unwrap_or_default(),
        locality: e.locality.as_str().to_owned(),
        logical_block: e.logical_block,
        chosen: e.chosen.iter().map(|c| chosen(c, extent)).collect(),
        more_chosen: e.more_chosen,
        passed: e.passed.iter().map(|p| passed(p, extent)).collect(),
        ..wire::ExplainResponse::default()
    }
}

#[tonic::async_trait]
impl wire::operator_server::Operator for Operator {
    async fn status(
        &self,
        r: Request<wire::StatusRequest>,
    ) -> Result<Response<wire::StatusResponse>, Status> {
        self.admit(r)?;
        let tally = self.core.tally().await.map_err(refuse)?;
        let nodes = self.core.node_rows().await.map_err(refuse)?;
        let sum = |of: &dyn Fn(&(NodeName, NodeName)) -> bool| -> u64 {
            tally.loans.iter().filter(|(k, _)| of(k)).map(|(_, b)| b.get()).sum()
        };
        let pools = tally.pools.iter().map(|(name, r)| wire::Pool {
            pool: name.to_string(),
            size_bytes: r.size.get(),
            free_bytes: r.free.get(),
            unwiped_bytes: r.unwiped.get(),
            lendable_bytes: r.lendable.get(),
        });
        let nodes = nodes.into_iter().map(|n| wire::Node {
            lends_bytes: sum(&|(lender, _)| *lender == n.node),
            borrows_bytes: sum(&|(_, borrower)| *borrower == n.node),
            node: n.node.to_string(),
            alive: n.alive,
            address: n.address,
            unclaimed: n.unclaimed,
        });
        Ok(Response::new(wire::StatusResponse {
            term: self.core.term().get(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pools: pools.collect(),
            nodes: nodes.collect(),
            disks: tally.disks.clone().into_iter().collect(),
            volumes: tally.volumes.iter().map(|(p, n)| ((*p).to_owned(), *n)).collect(),
            lent_bytes: sum(&|_| true),
        }))
    }

    async fn disks(&self, r: Request<wire::PageRequest>) -> Result<Response<wire::DisksResponse>, Status> {
        let (after, limit) = page::<DiskId>(&self.admit(r)?)?;
        let lines = self.core.disk_lines(after, limit).await.map_err(refuse)?;
        let next = next(&lines, limit, |l| l.row.disk.to_string());
        Ok(Response::new(wire::DisksResponse { disks: lines.iter().map(|l| self.disk(l)).collect(), next }))
    }

    async fn volumes(
        &self,
        r: Request<wire::PageRequest>,
    ) -> Result<Response<wire::VolumesResponse>, Status> {
        let (after, limit) = page::<VolumeId>(&self.admit(r)?)?;
        let lines = self.core.volume_lines(after, limit).await.map_err(refuse)?;
        let next = next(&lines, limit, |l| l.id.to_string());
        let volumes = lines.iter().map(|l| self.volume(l)).collect();
        Ok(Response::new(wire::VolumesResponse { volumes, next }))
    }

    async fn loans(&self, r: Request<wire::PageRequest>) -> Result<Response<wire::LoansResponse>, Status> {
        let (after, limit) = page::<VolumeId>(&self.admit(r)?)?;
        let lines = self.core.volume_lines(after, limit).await.map_err(refuse)?;
        let next = next(&lines, limit, |l| l.id.to_string());
        let offers: BTreeMap<DiskId, u64> =
            self.flow().offers().into_iter().map(|(d, o)| (d, o.until_s)).collect();
        let mut loans = Vec::new();
        for l in &lines {
            let Some(borrower) = l.holders.first() else { continue };
            for ((lender, disk), bytes) in l.places.iter().filter(|((n, _), _)| l.is_lender(n)) {
                let io = self.flow().loans(*disk).remove(&l.id);
                loans.push(wire::Loan {
                    lender: lender.to_string(),
                    borrower: borrower.to_string(),
                    disk: disk.to_string(),
                    volume: l.id.to_string(),
                    volume_name: l.name.clone(),
                    bytes: bytes.get(),
                    io_until_s: offers.get(disk).copied().unwrap_or(0),
                    load: io.map(|io| io.load),
                    floor: io.map(|io| io.floor),
                    ceiling: io.and_then(|io| io.ceiling),
                });
            }
        }
        Ok(Response::new(wire::LoansResponse { loans, next }))
    }

    async fn explain(
        &self,
        r: Request<wire::ExplainRequest>,
    ) -> Result<Response<wire::ExplainResponse>, Status> {
        let detail = self.core.volume_detail(self.admit(r)?.volume).await.map_err(refuse)?;
        let line = &detail.line;
        let mut out = detail.explanation.as_ref().map(|e| explained(e, detail.extent)).unwrap_or_default();
        let now_s = sweep::unix_s();
        let reason = |d: DiskId| {
            let offer = self.flow().disk(d, now_s).and_then(|v| v.offer);
            offer.map_or_else(|| "nothing is recorded of it".to_owned(), |o| o.space_reason.to_string())
        };
        let places = line.places.iter().map(|((node, disk), bytes)| wire::Place {
            node: node.to_string(),
            disk: disk.to_string(),
            bytes: bytes.get(),
            lent: line.is_lender(node),
            reason: reason(*disk),
        });
        out.places = places.collect();
        out.volume = Some(self.volume(line));
        out.history = detail.history.iter().map(|(ms, text)| format!("{} {text}", ms / 1000)).collect();
        if let Some(v) = self.flow().volume(line.id) {
            (out.hours, _, _) = hours(&v.series);
            (out.heat, out.area_bytes) = (v.heat.ios, v.heat.part_bytes);
            let each = forecast::HORIZONS_H.iter().filter_map(|h| self.flow().volume_forecast(line.id, *h));
            out.horizons = each.map(|f| horizon(&f)).collect();
        }
        Ok(Response::new(out))
    }

    async fn forecast(
        &self,
        r: Request<wire::ForecastRequest>,
    ) -> Result<Response<wire::ForecastResponse>, Status> {
        let line = self.core.find_disk(self.admit(r)?.disk).await.map_err(refuse)?;
        let Some(view) = self.flow().disk(line.row.disk, sweep::unix_s()) else {
            let disk = Some(disk(&line, None));
            return Ok(Response::new(wire::ForecastResponse { disk, ..wire::ForecastResponse::default() }));
        };
        let (means, peaks, until_s) = hours(&view.series);
        Ok(Response::new(wire::ForecastResponse {
            disk: Some(disk(&line, Some(&view))),
            hours: means,
            peaks,
            until_s,
            horizons: view.forecasts.iter().map(horizon).collect(),
            capability: view.model.capability(),
            capability_confidence: view.model.confidence(),
            idle_latency_s: view.model.latency(0.0),
            drift: drift(&view.model),
            health: view.health.as_ref().map(health).unwrap_or_default(),
        }))
    }

    async fn drain(&self, r: Request<wire::DrainRequest>) -> Result<Response<wire::DrainResponse>, Status> {
        let r = self.admit(r)?;
        drains::drain(&self.core, r).await.map(Response::new).map_err(refuse)
    }

    async fn undrain(&self, r: Request<wire::Target>) -> Result<Response<wire::DrainResponse>, Status> {
        let r = self.admit(r)?;
        drains::undrain(&self.core, r.target).await.map(Response::new).map_err(refuse)
    }

    async fn drain_progress(
        &self,
        r: Request<wire::Target>,
    ) -> Result<Response<wire::DrainResponse>, Status> {
        let r = self.admit(r)?;
        drains::progress(&self.core, r.target).await.map(Response::new).map_err(refuse)
    }

    async fn release(&self, r: Request<wire::Target>) -> Result<Response<wire::PartResponse>, Status> {
        let r = self.admit(r)?;
        drains::part(&self.core, r.target, false).await.map(Response::new).map_err(refuse)
    }

    async fn forget(&self, r: Request<wire::Target>) -> Result<Response<wire::PartResponse>, Status> {
        let r = self.admit(r)?;
        drains::part(&self.core, r.target, true).await.map(Response::new).map_err(refuse)
    }

    async fn create_volume(
        &self,
        r: Request<wire::CreateVolumeRequest>,
    ) -> Result<Response<wire::Volume>, Status> {
        let r = self.admit(r)?;
        if r.name.is_empty() || r.size_bytes == 0 {
            return Err(Status::invalid_argument("a volume needs a name and a size"));
        }
        let mut preferred = vec![];
        if !r.beside.is_empty() {
            let node = self.node_named(&r.beside).await.map_err(refuse)?;
            preferred.push(BTreeMap::from([(NODE_KEY.to_owned(), node.to_string())]));
        }
        let request = CreateVolume {
            name: r.name,
            required: Bytes::new(r.size_bytes),
            limit: None,
            parameters: r.parameters.into_iter().collect(),
            mutable_parameters: BTreeMap::new(),
            capabilities: vec![],
            topology: Topology { requisite: vec![], preferred },
        };
        let made = self.core.create_volume(request).await.map_err(refuse)?;
        self.volume_named(&made.id.to_string()).await.map(Response::new).map_err(refuse)
    }

    async fn resize_volume(
        &self,
        r: Request<wire::ResizeVolumeRequest>,
    ) -> Result<Response<wire::Volume>, Status> {
        let r = self.admit(r)?;
        let id = self.core.find_volume(r.volume).await.map_err(refuse)?;
        let grown = self.core.expand(id, Bytes::new(r.size_bytes), None).await.map_err(refuse)?;
        self.volume_named(&grown.id.to_string()).await.map(Response::new).map_err(refuse)
    }

    async fn delete_volume(
        &self,
        r: Request<wire::VolumeRequest>,
    ) -> Result<Response<wire::DeleteVolumeResponse>, Status> {
        let id = self.core.find_volume(self.admit(r)?.volume).await.map_err(refuse)?;
        self.core.delete_volume(id).await.map_err(refuse)?;
        Ok(Response::new(wire::DeleteVolumeResponse {}))
    }

    async fn attach_volume(
        &self,
        r: Request<wire::AttachVolumeRequest>,
    ) -> Result<Response<wire::AttachVolumeResponse>, Status> {
        let r = self.admit(r)?;
        let id = self.core.find_volume(r.volume).await.map_err(refuse)?;
        let node = self.node_named(&r.node).await.map_err(refuse)?;
        let mode = Mode { read_only: r.read_only, multi_node: r.shared, upkeep: false };
        let capability = Capability { block: true, fs_type: String::new(), mode };
        let a = self.core.attach(id, node, capability, true).await.map_err(refuse)?;
        Ok(Response::new(wire::AttachVolumeResponse {
            device: format!("/dev/mapper/{}", DmRole::Top(id).dm_name()),
            size_bytes: a.size.get(),
            epoch: a.epoch.get(),
        }))
    }

    async fn detach_volume(
        &self,
        r: Request<wire::DetachVolumeRequest>,
    ) -> Result<Response<wire::DetachVolumeResponse>, Status> {
        let r = self.admit(r)?;
        let id = self.core.find_volume(r.volume).await.map_err(refuse)?;
        let node = match r.node.as_str() {
            "" => None,
            text => Some(self.node_named(text).await.map_err(refuse)?),
        };
        self.core.detach(id, node, true).await.map_err(refuse)?;
        Ok(Response::new(wire::DetachVolumeResponse {}))
    }
}
