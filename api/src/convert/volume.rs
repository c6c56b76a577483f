//! Volumes.

use kube::ResourceExt;
use pool::{
    access::AccessState,
    alloc::{self, Explanation},
    ids::Term,
    layout::{
        self,
        params::{ClaimRef, Limits, VolumeParams},
    },
    moving,
    record::{self, Retired, VolumeRecord},
    volume::{self, Map, Stripe},
};

use super::{NotARecord, need, none};
use crate::{
    Access, Choice, Claim, HistoryLine, Layout, LayoutType, Leg, LogicalVolume, LogicalVolumeSpec, Moving,
    Params, Placement, Rejection, Segment, Spare, Wipe,
};

impl From<layout::Layout> for Layout {
    fn from(l: layout::Layout) -> Self {
        let of = |kind| Layout { kind, stripes: None, chunk_sectors: None, replicas: None };
        match l {
            layout::Layout::Linear => of(LayoutType::Linear),
            layout::Layout::Striped { stripes, chunk } => {
                Layout { stripes: Some(stripes), chunk_sectors: Some(chunk), ..of(LayoutType::Striped) }
            }
            layout::Layout::Mirrored { replicas } => {
                Layout { replicas: Some(replicas), ..of(LayoutType::Mirrored) }
            }
            layout::Layout::WholeDisk => of(LayoutType::WholeDisk),
        }
    }
}

impl TryFrom<Layout> for layout::Layout {
    type Error = NotARecord;

    fn try_from(l: Layout) -> Result<Self, NotARecord> {
        let striped = [("stripes", l.stripes.is_some()), ("chunkSectors", l.chunk_sectors.is_some())];
        let mirrored = [("replicas", l.replicas.is_some())];
        match l.kind {
            LayoutType::Linear => {
                none(&striped, "layout linear").and(none(&mirrored, "layout linear"))?;
                Ok(layout::Layout::Linear)
            }
            LayoutType::Striped => {
                none(&mirrored, "layout striped")?;
                let stripes = need(l.stripes, "stripes", "layout striped")?;
                let chunk = need(l.chunk_sectors, "chunkSectors", "layout striped")?;
                Ok(layout::Layout::Striped { stripes, chunk })
            }
            LayoutType::Mirrored => {
                none(&striped, "layout mirrored")?;
                Ok(layout::Layout::Mirrored { replicas: need(l.replicas, "replicas", "layout mirrored")? })
            }
            LayoutType::WholeDisk => {
                none(&striped, "layout wholeDisk").and(none(&mirrored, "layout wholeDisk"))?;
                Ok(layout::Layout::WholeDisk)
            }
        }
    }
}

impl From<&VolumeParams> for Params {
    fn from(p: &VolumeParams) -> Self {
        let VolumeParams { pool, layout, provisioning, locality, max_lenders, sharing, fs_type, limits } = p;
        let Limits { iops, throughput } = limits;
        Self {
            pool: pool.clone(),
            layout: (*layout).into(),
            provisioning: *provisioning,
            locality: *locality,
            max_lenders: *max_lenders,
            sharing: *sharing,
            fs_type: *fs_type,
            iops: *iops,
            throughput: *throughput,
        }
    }
}

impl TryFrom<&Params> for VolumeParams {
    type Error = NotARecord;

    fn try_from(p: &Params) -> Result<Self, NotARecord> {
        Ok(Self {
            pool: p.pool.clone(),
            layout: p.layout.try_into()?,
            provisioning: p.provisioning,
            locality: p.locality,
            max_lenders: p.max_lenders,
            sharing: p.sharing,
            fs_type: p.fs_type,
            limits: Limits { iops: p.iops, throughput: p.throughput },
        })
    }
}

impl From<&volume::Segment> for Segment {
    fn from(s: &volume::Segment) -> Self {
        let volume::Segment { start, count, legs, stripe, spare } = s;
        let place = |l: &volume::Leg| Leg { disk: l.disk, first: l.first };
        Self {
            start: *start,
            count: *count,
            legs: legs.iter().map(place).collect(),
            chunk_sectors: stripe.map(|Stripe { chunk }| chunk),
            spare: spare.map(|volume::Spare { leg, place: l, filling }| Spare {
                leg,
                place: place(&l),
                filling,
            }),
        }
    }
}

impl From<&Segment> for volume::Segment {
    fn from(s: &Segment) -> Self {
        let place = |l: &Leg| volume::Leg { disk: l.disk, first: l.first };
        Self {
            start: s.start,
            count: s.count,
            legs: s.legs.iter().map(place).collect(),
            stripe: s.chunk_sectors.map(|chunk| Stripe { chunk }),
            spare: s.spare.map(|Spare { leg, place: l, filling }| volume::Spare {
                leg,
                place: place(&l),
                filling,
            }),
        }
    }
}

impl From<&Explanation> for Placement {
    fn from(e: &Explanation) -> Self {
        let Explanation { home, locality, logical_block, chosen, more_chosen, passed } = e;
        let choice = |c: &alloc::Chosen| Choice {
            disk: c.disk,
            node: c.node.clone(),
            extents: c.extents,
            why: c.why,
            score: c.score,
        };
        let rejection = |p: &alloc::Passed| Rejection {
            disk: p.disk,
            node: p.node.clone(),
            room: p.room,
            why: p.why,
            score: p.score,
        };
        Self {
            home: home.clone(),
            locality: *locality,
            logical_block: *logical_block,
            chosen: chosen.iter().map(choice).collect(),
            more_chosen: *more_chosen,
            passed: passed.iter().map(rejection).collect(),
        }
    }
}

impl From<&Placement> for Explanation {
    fn from(p: &Placement) -> Self {
        let chosen = |c: &Choice| alloc::Chosen {
            disk: c.disk,
            node: c.node.clone(),
            extents: c.extents,
            why: c.why,
            score: c.score,
        };
        let passed = |r: &Rejection| alloc::Passed {
            disk: r.disk,
            node: r.node.clone(),
            room: r.room,
            why: r.why,
            score: r.score,
        };
        Self {
            home: p.home.clone(),
            locality: p.locality,
            logical_block: p.logical_block,
            chosen: p.chosen.iter().map(chosen).collect(),
            more_chosen: p.more_chosen,
            passed: p.passed.iter().map(passed).collect(),
        }
    }
}

impl LogicalVolume {
    /// The resource of a volume's record.
    pub fn of(record: &VolumeRecord, term: Term) -> Self {
        let VolumeRecord {
            id,
            name,
            pool,
            extent_size,
            params,
            claim,
            map,
            access,
            lifecycle,
            moving,
            retired,
            history,
            explanation,
        } = record;
        let AccessState { epoch, access, leaving } = access;
        let ClaimRef { pvc_name, pvc_namespace, pv_name } = claim.clone();
        let line = |l: &record::HistoryLine| {
            let record::HistoryLine { sequence, unix_ms, text } = l.clone();
            HistoryLine { sequence, unix_ms, text }
        };
        let spec = LogicalVolumeSpec {
            term: term.get(),
            name: name.clone(),
            pool: pool.clone(),
            extent_size: *extent_size,
            params: params.into(),
            claim: Claim { pvc_name, pvc_namespace, pv_name },
            segments: map.0.iter().map(Segment::from).collect(),
            epoch: *epoch,
            access: Access::from(access),
            leaving: leaving.iter().map(|(n, l)| (n.clone(), l.into())).collect(),
            lifecycle: *lifecycle,
            moving: moving.clone().map(|moving::Moving { by, since, cause }| Moving { by, since, cause }),
            retired: retired.iter().map(Wipe::from).collect(),
            history: history.iter().map(line).collect(),
            placement: explanation.as_ref().map(Placement::from),
        };
        LogicalVolume::new(&id.to_string(), spec)
    }

    /// The record that it is.
    ///
    /// # Errors
    /// See [`NotARecord`].
    pub fn record(&self) -> Result<VolumeRecord, NotARecord> {
        let s = &self.spec;
        let map = Map(s.segments.iter().map(volume::Segment::from).collect());
        map.check().map_err(|e| NotARecord::Map(e.to_string()))?;
        let claim = s.claim.clone();
        let line = |l: &HistoryLine| {
            let HistoryLine { sequence, unix_ms, text } = l.clone();
            record::HistoryLine { sequence, unix_ms, text }
        };
        Ok(VolumeRecord {
            id: self.name_any().parse()?,
            name: s.name.clone(),
            pool: s.pool.clone(),
            extent_size: s.extent_size,
            params: (&s.params).try_into()?,
            claim: ClaimRef {
                pvc_name: claim.pvc_name,
                pvc_namespace: claim.pvc_namespace,
                pv_name: claim.pv_name,
            },
            map,
            access: AccessState {
                epoch: s.epoch,
                access: (&s.access).try_into()?,
                leaving: s.leaving.iter().map(|(n, l)| (n.clone(), l.into())).collect(),
            },
            lifecycle: s.lifecycle,
            moving: s.moving.clone().map(|Moving { by, since, cause }| moving::Moving { by, since, cause }),
            retired: s.retired.iter().map(Retired::try_from).collect::<Result<_, _>>()?,
            history: s.history.iter().map(line).collect(),
            explanation: s.placement.as_ref().map(Explanation::from),
        })
    }
}
