//! Making volumes and growing them: what is asked for is checked, placed and reserved; extents that a record gives up
//! are set aside and, once wiped, freed. Must not know: how a place is chosen (`pool::alloc`).

use forecast::MOST_OF_ONE;
use pool::{
    access::{Access, AccessState},
    alloc::{Refusal, RefusalKind, Request as Placement, Topology},
    ids::{NodeName, PoolName, VolumeId},
    layout::{
        Layout,
        params::{Asked, Limits, MAX_STRIPES, VolumeParams},
    },
    record::{Lifecycle, VolumeRecord},
    units::{Bytes, ExtentSize, Extents, Sectors},
    volume::{Map, Run},
};

use super::{
    engine::Engine,
    volume::{After, Pending, Reply, Volume, answer},
};
use crate::{
    api::{ApiError, CreateVolume, VolumeInfo},
    fault::Cause,
};

/// A size in extents, and the most there may be.
struct Span {
    size: Extents,
    limit: Option<Extents>,
}

/// Rounds what is asked for to extents.
fn span(
    es: ExtentSize,
    params: &VolumeParams,
    required: Bytes,
    limit: Option<Bytes>,
) -> Result<Span, ApiError> {
    let too_large =
        || ApiError::OutOfRange(format!("{} bytes are beyond what can be addressed", required.get()));
    // Nothing said means the smallest volume.
    let least = es.extents_round_up(required).max(Extents::new(1));
    let size = params.layout.round_up(least).ok_or_else(too_large)?;
    let bytes = es.checked_bytes_of(size).filter(|b| b.get() <= i64::MAX as u64).ok_or_else(too_large)?;
    if let Some(l) = limit.filter(|l| bytes > *l) {
        return Err(ApiError::OutOfRange(format!(
            "volumes of this kind come in steps of {} bytes: {} bytes become {}, which is above the limit of {}",
            es.bytes().get(),
            required.get(),
            bytes.get(),
            l.get()
        )));
    }
    Ok(Span { size, limit: limit.map(|l| es.extents_round_down(l)) })
}

/// What growing a volume takes.
pub(super) enum Growth {
    /// It is that large already.
    None,
    /// This record, for which the runs are reserved.
    Record(Box<VolumeRecord>, Vec<Run>),
    /// There is room. First its move is called off: the top of a volume is not to be swapped above a mirror whose other
    /// side may be about to fail, for it would wait for the writes that the mirror then holds.
    AfterMove,
}

fn no_place(r: &Refusal) -> ApiError {
    let text = r.to_string();
    match r.kind() {
        RefusalKind::Invalid | RefusalKind::NotFound => ApiError::Invalid(text),
        RefusalKind::NoRoom => ApiError::NoRoom(text),
        RefusalKind::OutOfRange => ApiError::OutOfRange(text),
    }
}

impl Engine {
    /// The pool that parameters mean.
    pub(super) fn pool_of(&self, params: &VolumeParams) -> Result<(PoolName, ExtentSize), ApiError> {
        let mut names = self.pool.pools();
        let name = match (&params.pool, names.next(), names.next()) {
            (Some(p), _, _) => p.clone(),
            (None, Some(only), None) => only.clone(),
            (None, None, _) => return Err(ApiError::Invalid("no pool is defined".to_owned())),
            (None, Some(_), Some(_)) => {
                let all: Vec<_> = self.pool.pools().map(PoolName::as_str).collect();
                let e = format!("parameter pool is needed, since there are several: {}", all.join(", "));
                return Err(ApiError::Invalid(e));
            }
        };
        let size = self.pool.extent_size(&name).ok_or_else(|| {
            let all: Vec<_> = self.pool.pools().map(PoolName::as_str).collect();
            ApiError::Invalid(format!("pool {name} does not exist; there are: {}", all.join(", ")))
        })?;
        Ok((name, size))
    }

    /// Parameters as asked for, with the pool's own defaults where they say nothing.
    pub(super) fn parse_params(
        &self,
        given: impl IntoIterator<Item = (String, String)> + Clone,
    ) -> Result<(Asked, Kind), ApiError> {
        let lenders_given = given.clone().into_iter().any(|(k, _)| k == "maxLenders");
        let mut asked = VolumeParams::parse(given).map_err(|e| ApiError::Invalid(e.to_string()))?;
        let (pool, es) = self.pool_of(&asked.params)?;
        let kind = Kind { pool: pool.clone(), extent_size: es };
        let default = self.specs.get(&pool).and_then(|s| s.max_lenders);
        if let (false, Some(n)) = (lenders_given, default) {
            asked.params.max_lenders = n;
        }
        asked.params.pool = Some(pool);
        Ok((asked, kind))
    }

    /// Makes a volume, or finds the one that the request made before.
    pub(super) fn create(&mut self, request: CreateVolume, reply: Reply<VolumeInfo>) {
        match self.plan_create(request) {
            Ok(Made::Found(info)) => answer(reply, Ok(info)),
            Ok(Made::New(record, reserved)) => {
                let id = record.id;
                self.names.insert(record.name.clone(), id);
                self.volumes.insert(id, Volume::new((*record).clone(), None));
                tracing::info!(volume = %id, name = record.name, size = %record.size(), "volume planned");
                let pending = Pending {
                    next: Some(record),
                    cause: Cause::Create,
                    after: After::Created(reply),
                    reserved,
                    retire: vec![],
                    release: vec![],
                };
                self.write_volume(id, pending);
            }
            Err(e) => answer(reply, Err(e)),
        }
    }

    fn plan_create(&mut self, request: CreateVolume) -> Result<Made, ApiError> {
        if request.name.is_empty() {
            return Err(ApiError::Invalid("a volume needs a name".to_owned()));
        }
        let given = request.parameters.iter().chain(&request.mutable_parameters);
        let given: Vec<_> = given.map(|(k, v)| (k.clone(), v.clone())).collect();
        let (asked, Kind { pool, extent_size: es }) = self.parse_params(given)?;
        if let Some(v) = self.names.get(&request.name).and_then(|id| self.volumes.get(id)) {
            if v.version.is_none() {
                return Err(ApiError::Busy(format!("volume {:?} is being created", request.name)));
            }
            let params = asked.of_one_that_lies(v.record.params.layout);
            return match v.record.difference(&pool, &params, request.required, request.limit) {
                None => self
                    .info(v.record.id)
                    .map(Made::Found)
                    .ok_or_else(|| ApiError::NoVolume(request.name.clone())),
                Some(difference) => Err(ApiError::Exists { name: request.name, difference }),
            };
        }
        let draw = (self.draw)();
        let id = VolumeId::from_u128(draw);
        if self.volumes.contains_key(&id) {
            return Err(ApiError::Internal(format!("the id {id} was drawn twice")));
        }
        let topology =
            Topology { required: request.topology.requisite, preferred: request.topology.preferred };
        let need = self.need(&asked, &pool);
        let (params, plan) = need.first_that_goes(|layout| {
            let params = VolumeParams { layout, ..asked.params.clone() };
            let Span { size, limit } = span(es, &params, request.required, request.limit)?;
            let topology = topology.clone();
            let ask = Placement { limit, topology, seed: draw as u64, ..placement(&params, &pool, size) };
            let plan = self.place(&ask)?;
            Ok((params, plan))
        })?;
        self.pool.apply(id, &plan).map_err(|e| ApiError::Internal(e.to_string()))?;
        let mut record = VolumeRecord {
            id,
            name: request.name,
            pool,
            extent_size: es,
            params,
            claim: asked.claim,
            map: plan.map,
            access: AccessState::default(),
            lifecycle: Lifecycle::Active,
            moving: None,
            retired: vec![],
            history: vec![],
            explanation: Some(plan.explanation),
        };
        record.note(self.now.unix_ms, need.created(record.params.layout));
        Ok(Made::New(Box::new(record), plan.added))
    }

    /// How a volume may lie.
    fn need(&self, asked: &Asked, pool: &PoolName) -> Need {
        let Some(chunk) = asked.by_need else { return Need::Said(asked.params.layout) };
        let Limits { iops, throughput } = asked.params.limits;
        let Some(strength) = self.strengths.get(pool) else {
            return Need::Auto { chunk, width: 1, why: "no disk of the pool is known yet".to_owned() };
        };
        let Some(of_one) = strength.of_one(iops, throughput.map(Bytes::get)) else {
            return Need::Auto { chunk, width: 1, why: "no limit says what it may do".to_owned() };
        };
        let width = u32::try_from(strength.width(of_one)).unwrap_or(MAX_STRIPES).min(MAX_STRIPES);
        let percent = |share: f64| (share * 100.0).round();
        let why = format!(
            "its limits let it do {} % of what a usual disk can, and {} % of one is asked for at most",
            percent(of_one),
            percent(MOST_OF_ONE)
        );
        Need::Auto { chunk, width, why }
    }

    pub(super) fn place(&self, request: &Placement) -> Result<pool::alloc::Plan, ApiError> {
        self.pool.plan(request).map_err(|r| no_place(&r))
    }

    /// What it takes to grow a volume to `required`.
    pub(super) fn plan_expand(
        &mut self,
        id: VolumeId,
        required: Bytes,
        limit: Option<Bytes>,
    ) -> Result<Growth, ApiError> {
        let v = self.volumes.get(&id).ok_or_else(|| ApiError::NoVolume(id.to_string()))?;
        let r = &v.record;
        if r.lifecycle == Lifecycle::Deleting {
            return Err(ApiError::NoVolume(format!("{id} (it is being deleted)")));
        }
        if r.size() >= required {
            return match limit.filter(|l| r.size() > *l) {
                None => Ok(Growth::None),
                Some(l) => Err(ApiError::OutOfRange(format!(
                    "volume {id} has {} bytes already, more than the limit of {}; volumes do not shrink",
                    r.size().get(),
                    l.get()
                ))),
            };
        }
        is_at_rest(r).map_err(|()| {
            ApiError::Busy(format!("volume {id} is moving to another node: grow it after that"))
        })?;
        let Span { size, limit } = span(r.extent_size, &r.params, required, limit)?;
        let home = r.access.holders().first().cloned();
        let draw = self.draw_wipe();
        let v = self.volumes.get(&id).ok_or_else(|| ApiError::NoVolume(id.to_string()))?;
        let plan = self.place(&Placement {
            limit,
            home: home_for(&v.record, home),
            existing: v.record.map.clone(),
            seed: draw,
            ..placement(&v.record.params, &v.record.pool, size)
        })?;
        let mut next = v.record.clone();
        if next.is_filling() {
            return Ok(Growth::AfterMove);
        }
        self.pool.apply(id, &plan).map_err(|e| ApiError::Internal(e.to_string()))?;
        next.map = plan.map;
        next.access.epoch = next.access.epoch.next();
        next.explanation = Some(plan.explanation);
        let text = format!("grown to {}", next.size());
        tracing::info!(volume = %id, epoch = %next.access.epoch, "{text}");
        next.note(self.now.unix_ms, text);
        Ok(Growth::Record(Box::new(next), plan.added))
    }

    /// The record of a volume with other limits; `None` when it has these.
    pub(super) fn plan_modify(&self, id: VolumeId, limits: Limits) -> Result<Option<VolumeRecord>, ApiError> {
        let v = self.volumes.get(&id).ok_or_else(|| ApiError::NoVolume(id.to_string()))?;
        let r = &v.record;
        if r.lifecycle == Lifecycle::Deleting {
            return Err(ApiError::NoVolume(format!("{id} (it is being deleted)")));
        }
        if r.params.limits == limits {
            return Ok(None);
        }
        is_at_rest(r).map_err(|()| {
            ApiError::Busy(format!("volume {id} is moving to another node: change its limits after that"))
        })?;
        let mut next = r.clone();
        next.params.limits = limits;
        next.access.epoch = next.access.epoch.next();
        let text = format!("limits: {limits}");
        tracing::info!(volume = %id, epoch = %next.access.epoch, "{text}");
        next.note(self.now.unix_ms, text);
        Ok(Some(next))
    }

    /// Gives back extents that were reserved for a record that was never written: nobody has touched them.
    pub(super) fn give_back(&mut self, id: VolumeId, runs: &[Run]) {
        self.set_aside(id, runs);
        self.set_free(id, runs);
    }

    /// Takes extents from a volume whose record has given them up. They are nobody's until they are wiped.
    pub(super) fn set_aside(&mut self, id: VolumeId, runs: &[Run]) {
        if let Err(e) = self.pool.retire(id, runs) {
            tracing::error!(volume = %id, error = %e, "the index does not agree with the record: extents stay taken");
        }
    }

    /// Frees extents that are clean and nobody's.
    pub(super) fn set_free(&mut self, id: VolumeId, runs: &[Run]) {
        // What is left of a disk that leaves the pool is nobody's any more, and is given to nobody.
        let there = |r: &&Run| self.disks.get(&r.disk).is_some_and(|s| s.indexed);
        let runs: Vec<Run> = runs.iter().filter(there).copied().collect();
        if let Err(e) = self.pool.release_runs(&runs) {
            tracing::error!(volume = %id, error = %e, "the index does not agree with the record: extents stay set aside");
        }
    }
}

/// Whether no second node is in play.
fn is_at_rest(r: &VolumeRecord) -> Result<(), ()> {
    match &r.access.access {
        Access::Detached | Access::Attached { .. } => Ok(()),
        Access::Granting { .. } | Access::Guarded { .. } | Access::CuttingOver { .. } => Err(()),
    }
}

/// How a volume may lie.
enum Need {
    /// As its class says.
    Said(Layout),
    /// Over so many disks, or as many as there is room on.
    Auto { chunk: Sectors, width: u32, why: String },
}

impl Need {
    /// The first layout that goes, the widest first; if none does, why the last one does not.
    fn first_that_goes<T>(&self, go: impl Fn(Layout) -> Result<T, ApiError>) -> Result<T, ApiError> {
        let Self::Auto { chunk, width, .. } = *self else { return go(self.wanted()) };
        let mut stripes = width;
        while stripes > 1 {
            if let Ok(gone) = go(Layout::Striped { stripes, chunk }) {
                return Ok(gone);
            }
            stripes /= 2;
        }
        go(Layout::Linear)
    }

    fn wanted(&self) -> Layout {
        match *self {
            Self::Said(layout) => layout,
            Self::Auto { chunk, width: stripes @ 2.., .. } => Layout::Striped { stripes, chunk },
            Self::Auto { .. } => Layout::Linear,
        }
    }

    /// The first line of the history of a volume that lies so.
    fn created(&self, layout: Layout) -> String {
        let Self::Auto { width, why, .. } = self else { return "created".to_owned() };
        let lies = match layout {
            Layout::Striped { stripes, .. } => format!("striped over {stripes} disks"),
            other => other.to_string(),
        };
        let less = if layout == self.wanted() {
            String::new()
        } else {
            format!("; there is no room for {width} disks")
        };
        format!("created, {lies}: {why}{less}")
    }
}

/// Where a volume goes.
pub(super) struct Kind {
    /// The pool.
    pub(super) pool: PoolName,
    /// Its extents.
    pub(super) extent_size: ExtentSize,
}

/// What a request for a volume comes to.
enum Made {
    Found(VolumeInfo),
    New(Box<VolumeRecord>, Vec<Run>),
}

/// The placement that parameters ask for.
pub(super) fn placement(params: &VolumeParams, pool: &PoolName, size: Extents) -> Placement {
    Placement {
        layout: params.layout,
        locality: params.locality,
        max_lenders: params.max_lenders,
        existing: Map::default(),
        ..Placement::new(pool.clone(), size)
    }
}

/// Beside whom a volume grows: its holder, unless it was made to lie on one node alone.
fn home_for(r: &VolumeRecord, holder: Option<NodeName>) -> Option<NodeName> {
    match r.params.locality {
        pool::layout::Locality::Prefer => holder,
        // What the volume has decides.
        pool::layout::Locality::Require | pool::layout::Locality::None => None,
    }
}
