//! One volume or one run as the bytes of a record, and back. Decoding validates shape only; [`Label::check`]
//! validates what the records say together. Must not know: pages.
//!
//! [`Label::check`]: crate::Label::check

use std::collections::BTreeMap;

use pool::{
    access::Sharing,
    ids::{Epoch, VolumeId},
    layout::Layout,
    units::{Bytes, Extents, Sectors},
    volume::Stripe,
};

use crate::{
    layout::{self, Field, RECORD_HEAD, RUN_RECORD, VOLUME_RECORD_MAX},
    model::{RunEntry, RunState, SummaryFault, VolumeSummary},
};

const KIND_VOLUME: u8 = 1;
const KIND_RUN: u8 = 2;

/// What names a record: a disk has one run that begins at an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Volume(VolumeId),
    Run(Extents),
}

/// A record as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    Volume(VolumeId, VolumeSummary),
    Run(VolumeId, RunEntry),
}

impl Record {
    pub(crate) fn key(&self) -> Key {
        match self {
            Record::Volume(v, _) => Key::Volume(*v),
            Record::Run(_, r) => Key::Run(r.first),
        }
    }
}

pub(crate) fn put(buf: &mut [u8], f: Field, bytes: &[u8]) {
    buf[f.at..f.at + bytes.len()].copy_from_slice(bytes);
}

/// A field's bytes as a number; the field lies within `buf` and has at most eight bytes.
pub(crate) fn get(buf: &[u8], f: Field) -> u64 {
    buf[f.at..f.end()].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

pub(crate) fn get_id(buf: &[u8], f: Field) -> u128 {
    buf[f.at..f.end()].iter().fold(0, |n, b| n << 8 | u128::from(*b))
}

fn summary_len(s: &VolumeSummary) -> usize {
    let params: usize = s.params.iter().map(|(k, v)| 3 + k.len() + v.len()).sum();
    layout::volume::TEXTS.at + s.name.len() + params
}

/// Whether a summary can be recorded.
pub(crate) fn check_summary(s: &VolumeSummary) -> Result<(), SummaryFault> {
    if s.name.is_empty() || s.name.len() > 255 {
        return Err(SummaryFault::Name);
    }
    if s.params.keys().any(|k| k.is_empty() || k.len() > 255) {
        return Err(SummaryFault::Key);
    }
    match summary_len(s) {
        // The limit also bounds the number of parameters (a byte): each takes four bytes at least.
        n if n > VOLUME_RECORD_MAX || s.params.len() > 255 => Err(SummaryFault::TooLarge(n)),
        _ => Ok(()),
    }
}

/// Encodes a summary that [`check_summary`] has passed.
pub(crate) fn encode_volume(id: VolumeId, s: &VolumeSummary) -> Vec<u8> {
    use layout::volume as f;
    let len = summary_len(s);
    let mut b = vec![0; f::TEXTS.at];
    b[0] = KIND_VOLUME;
    put(&mut b, layout::record::LEN, &(len as u16).to_le_bytes());
    put(&mut b, f::ID, &id.to_bytes());
    put(&mut b, f::SIZE, &s.size.get().to_le_bytes());
    put(&mut b, f::EPOCH, &s.epoch.get().to_le_bytes());
    let (kind, parts, chunk) = match s.layout {
        Layout::Linear => (0, 0, 0),
        Layout::Striped { stripes, chunk } => (1, stripes, chunk.get()),
        Layout::Mirrored { replicas } => (2, replicas, 0),
        Layout::WholeDisk => (3, 0, 0),
    };
    b[f::LAYOUT.at] = kind;
    put(&mut b, f::PARTS, &parts.to_le_bytes());
    put(&mut b, f::CHUNK, &chunk.to_le_bytes());
    b[f::SHARING.at] = match s.sharing {
        Sharing::Migrate => 0,
        Sharing::MultiWriter => 1,
    };
    b[f::NAME_LEN.at] = s.name.len() as u8;
    b[f::PARAMS.at] = s.params.len() as u8;
    b.extend_from_slice(s.name.as_bytes());
    for (k, v) in &s.params {
        b.push(k.len() as u8);
        b.extend_from_slice(k.as_bytes());
        b.extend_from_slice(&(v.len() as u16).to_le_bytes());
        b.extend_from_slice(v.as_bytes());
    }
    b
}

/// Encodes a run.
pub(crate) fn encode_run(volume: VolumeId, r: &RunEntry) -> Vec<u8> {
    use layout::run as f;
    let mut b = vec![0; RUN_RECORD];
    b[0] = KIND_RUN;
    put(&mut b, layout::record::LEN, &(RUN_RECORD as u16).to_le_bytes());
    put(&mut b, f::VOLUME, &volume.to_bytes());
    put(&mut b, f::START, &r.start.get().to_le_bytes());
    put(&mut b, f::FIRST, &r.first.get().to_le_bytes());
    put(&mut b, f::COUNT, &r.count.get().to_le_bytes());
    put(&mut b, f::LEG, &r.leg.to_le_bytes());
    put(&mut b, f::LEGS, &r.legs.to_le_bytes());
    // At most 2^31 by `RunEntry::fault`.
    put(&mut b, f::CHUNK, &(r.stripe.map_or(0, |s| s.chunk.get()) as u32).to_le_bytes());
    put(&mut b, f::EPOCH, &r.epoch.get().to_le_bytes());
    b[f::STATE.at] = match r.state {
        RunState::Live => 0,
        RunState::Filling => 1,
        RunState::Retired => 2,
    };
    b
}

/// Takes the first record off `rest`.
pub(crate) fn take<'a>(rest: &mut &'a [u8]) -> Result<(Record, &'a [u8]), &'static str> {
    if rest.len() < RECORD_HEAD {
        return Err("a record's head is cut off");
    }
    let len = get(rest, layout::record::LEN) as usize;
    if len < RECORD_HEAD || len > rest.len() {
        return Err("a record is longer than its page");
    }
    let (b, tail) = rest.split_at(len);
    let record = match b[layout::record::KIND.at] {
        KIND_VOLUME => decode_volume(b)?,
        KIND_RUN => decode_run(b)?,
        _ => return Err("a record is of an unknown kind"),
    };
    *rest = tail;
    Ok((record, b))
}

fn decode_run(b: &[u8]) -> Result<Record, &'static str> {
    use layout::run as f;
    if b.len() != RUN_RECORD {
        return Err("a run's record has the wrong length");
    }
    let chunk = get(b, f::CHUNK);
    let run = RunEntry {
        start: Extents::new(get(b, f::START)),
        first: Extents::new(get(b, f::FIRST)),
        count: Extents::new(get(b, f::COUNT)),
        leg: get(b, f::LEG) as u16,
        legs: get(b, f::LEGS) as u16,
        stripe: (chunk != 0).then_some(Stripe { chunk: Sectors::new(chunk) }),
        epoch: Epoch::new(get(b, f::EPOCH)),
        state: match b[f::STATE.at] {
            0 => RunState::Live,
            1 => RunState::Filling,
            2 => RunState::Retired,
            _ => return Err("a run's state is unknown"),
        },
    };
    Ok(Record::Run(VolumeId::from_u128(get_id(b, f::VOLUME)), run))
}

fn decode_volume(b: &[u8]) -> Result<Record, &'static str> {
    use layout::volume as f;
    if b.len() < f::TEXTS.at || b.len() > VOLUME_RECORD_MAX {
        return Err("a volume's record has the wrong length");
    }
    let mut texts = &b[f::TEXTS.at..];
    let name = take_text(&mut texts, get(b, f::NAME_LEN) as usize)?;
    let mut params = BTreeMap::new();
    for _ in 0..get(b, f::PARAMS) {
        let n = take_bytes(&mut texts, 1)?[0];
        let key = take_text(&mut texts, usize::from(n))?;
        let n = take_bytes(&mut texts, 2)?;
        let value = take_text(&mut texts, usize::from(u16::from_le_bytes([n[0], n[1]])))?;
        if params.insert(key, value).is_some() {
            return Err("a parameter occurs twice");
        }
    }
    if !texts.is_empty() {
        return Err("a volume's record is longer than what it holds");
    }
    let (parts, chunk) = (get(b, f::PARTS) as u32, Sectors::new(get(b, f::CHUNK)));
    let layout = match b[f::LAYOUT.at] {
        0 => Layout::Linear,
        1 => Layout::Striped { stripes: parts, chunk },
        2 => Layout::Mirrored { replicas: parts },
        3 => Layout::WholeDisk,
        _ => return Err("a volume's layout is unknown"),
    };
    let summary = VolumeSummary {
        name,
        size: Bytes::new(get(b, f::SIZE)),
        epoch: Epoch::new(get(b, f::EPOCH)),
        layout,
        sharing: match b[f::SHARING.at] {
            0 => Sharing::Migrate,
            1 => Sharing::MultiWriter,
            _ => return Err("a volume's sharing is unknown"),
        },
        params,
    };
    Ok(Record::Volume(VolumeId::from_u128(get_id(b, f::ID)), summary))
}

fn take_bytes<'a>(rest: &mut &'a [u8], n: usize) -> Result<&'a [u8], &'static str> {
    let (a, b) = rest.split_at_checked(n).ok_or("a text is cut off")?;
    *rest = b;
    Ok(a)
}

fn take_text(rest: &mut &[u8], n: usize) -> Result<String, &'static str> {
    let b = take_bytes(rest, n)?;
    std::str::from_utf8(b).map(str::to_owned).map_err(|_| "a text is not UTF-8")
}
