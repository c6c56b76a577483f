//! Samples and histories as messages. Must not know: what they are used for.

use csi_proto::node as proto;
use kernel::health::Health;
use pool::ids::VolumeId;

use super::rows::{DiskSample, Heat, Rows, VolumeSample};

/// Bytes of histories in one message: far below what gRPC takes, so that heartbeats get through between them.
const PART: usize = 128 << 10;

fn health((said, before): (Health, u64)) -> proto::Health {
    proto::Health {
        fails: said.fails,
        critical_warning: said.critical_warning.map(u32::from),
        spare_percent: said.spare_percent.map(u32::from),
        spare_threshold_percent: said.spare_threshold_percent.map(u32::from),
        used_percent: said.used_percent.map(u32::from),
        media_errors: said.media_errors,
        temperature_c: said.temperature_c.map(i32::from),
        media_errors_before: before,
    }
}

/// Rates within f32's range: 24 bits of them say more than a sample of 10 s knows.
fn narrow(value: f64) -> f32 {
    value as f32
}

fn disk(s: DiskSample) -> proto::DiskSample {
    proto::DiskSample {
        disk: s.disk.to_string(),
        disk_class: s.class.into(),
        load: narrow(s.all.load),
        lent: narrow(s.lent),
        queue: narrow(s.all.queue),
        latency_s: s.all.latency.map(narrow),
        read_bytes_s: narrow(s.read_bytes_s),
        write_bytes_s: narrow(s.write_bytes_s),
        health: s.health.map(health),
        loans: s.loans.into_iter().map(loan).collect(),
    }
}

fn loan((volume, load): (VolumeId, f64)) -> proto::LoanSample {
    proto::LoanSample { volume: volume.to_string(), load: narrow(load) }
}

fn volume(s: VolumeSample) -> proto::VolumeSample {
    let Heat { part_bytes, ios } = s.heat.unwrap_or_default();
    proto::VolumeSample {
        volume: s.volume.to_string(),
        load: narrow(s.load),
        bytes_s: narrow(s.bytes),
        heat: ios,
        area_bytes: part_bytes,
        reads: narrow(s.reads),
        writes: narrow(s.writes),
        read_bytes: narrow(s.read_bytes),
    }
}

/// One tick's samples.
pub(super) fn recording(
    sequence: u64,
    at_s: u64,
    (disks, volumes): (Vec<DiskSample>, Vec<VolumeSample>),
) -> proto::Recording {
    proto::Recording {
        sequence,
        at_s,
        disks: disks.into_iter().map(disk).collect(),
        volumes: volumes.into_iter().map(volume).collect(),
        histories: vec![],
    }
}

/// All that is kept.
pub(super) fn histories(sequence: u64, at_s: u64, rows: &Rows) -> Vec<proto::Recording> {
    let disks = rows.disks.iter().map(|(id, r)| proto::History {
        of: Some(proto::history::Of::Disk(id.to_string())),
        series: r.series.encode(),
        model: r.model.encode(),
        kept: r.kept.clone(),
        ..proto::History::default()
    });
    let volumes = rows.volumes.iter().map(|(id, r)| proto::History {
        of: Some(proto::history::Of::Volume(id.to_string())),
        series: r.series.encode(),
        heat: r.heat.ios.clone(),
        area_bytes: r.heat.part_bytes,
        ..proto::History::default()
    });
    let mut out: Vec<proto::Recording> = Vec::new();
    let mut room = 0;
    for h in disks.chain(volumes) {
        let size = h.series.len() + h.model.len() + h.kept.len() + 4 * h.heat.len();
        match out.last_mut().filter(|_| room >= size) {
            Some(last) => last.histories.push(h),
            None => {
                out.push(proto::Recording {
                    sequence,
                    at_s,
                    histories: vec![h],
                    ..proto::Recording::default()
                });
                room = PART;
            }
        }
        room = room.saturating_sub(size);
    }
    out
}
