//! What nodes record, as the histories have it, and what the histories say to nodes. What cannot be understood is left out: it is
//! then unknown.
//!
//! Must not know: what follows from a sample.

use csi_proto::node as wire;
use forecast::{DeviceClass, DeviceModel, Growth, HealthReport, Observed, Series};
use pool::ids::VolumeId;

use crate::flow::{Ceiling, DiskSample, Heat, History, Rates, Recording, ToNode, VolumeSample};

/// Parts of a volume beyond this are nobody's.
const PARTS: usize = 64;

/// A number that a rate can be.
fn rate(value: f32) -> f64 {
    let value = f64::from(value);
    if value.is_finite() { value.max(0.0) } else { 0.0 }
}

fn class(class: wire::DiskClass) -> DeviceClass {
    match class {
        wire::DiskClass::Nvme => DeviceClass::Nvme,
        wire::DiskClass::Ssd => DeviceClass::Ssd,
        wire::DiskClass::Hdd => DeviceClass::Hdd,
        wire::DiskClass::Unknown => DeviceClass::Unknown,
    }
}

fn health(h: wire::Health) -> (HealthReport, u64) {
    let byte = |n: Option<u32>| n.map(|n| u8::try_from(n).unwrap_or(u8::MAX));
    let report = HealthReport {
        fails: h.fails,
        critical_warning: byte(h.critical_warning),
        spare_percent: byte(h.spare_percent),
        spare_threshold_percent: byte(h.spare_threshold_percent),
        used_percent: byte(h.used_percent),
        media_errors: h.media_errors,
        temperature_c: h.temperature_c.map(|t| i16::try_from(t).unwrap_or(i16::MAX)),
        temperature_limit_c: None,
    };
    (report, h.media_errors_before)
}

fn disk(s: wire::DiskSample) -> Option<DiskSample> {
    let load = rate(s.load);
    Some(DiskSample {
        disk: s.disk.parse().ok()?,
        class: class(s.disk_class()),
        all: Observed { load, queue: rate(s.queue), latency: s.latency_s.map(rate) },
        lent: rate(s.lent).min(load),
        read_bytes_s: rate(s.read_bytes_s),
        write_bytes_s: rate(s.write_bytes_s),
        health: s.health.map(health),
        loans: s.loans.iter().filter_map(|l| Some((l.volume.parse().ok()?, rate(l.load)))).collect(),
    })
}

fn heat(ios: &[f32], part_bytes: u64) -> Heat {
    Heat { part_bytes, ios: ios.iter().take(PARTS).map(|r| rate(*r)).collect() }
}

fn volume(s: wire::VolumeSample) -> Option<VolumeSample> {
    Some(VolumeSample {
        volume: s.volume.parse().ok()?,
        load: rate(s.load),
        rates: Rates {
            reads: rate(s.reads),
            writes: rate(s.writes),
            read_bytes: rate(s.read_bytes),
            write_bytes: (rate(s.bytes_s) - rate(s.read_bytes)).max(0.0),
        },
        heat: (!s.heat.is_empty()).then(|| heat(&s.heat, s.area_bytes)),
    })
}

fn history(h: wire::History) -> Option<History> {
    let series = match Series::decode(&h.series) {
        Ok(s) => Box::new(s),
        Err(e) => {
            tracing::warn!(error = %e, "a node's history cannot be read: left out");
            return None;
        }
    };
    match h.of? {
        wire::history::Of::Disk(id) => Some(History::Disk {
            disk: id.parse().ok()?,
            series,
            model: DeviceModel::decode(&h.model).ok().map(Box::new),
            growth: Growth::decode(&h.kept).ok(),
        }),
        wire::history::Of::Volume(id) => {
            Some(History::Volume { volume: id.parse().ok()?, series, heat: heat(&h.heat, h.area_bytes) })
        }
    }
}

/// What a node is told.
pub(super) fn render(news: ToNode) -> wire::controller_message::Message {
    use wire::controller_message::Message;
    match news {
        ToNode::Keep(disks) => {
            let kept = disks.into_iter().map(|(disk, state)| wire::Kept { disk: disk.to_string(), state });
            Message::Keep(wire::Keep { disks: kept.collect() })
        }
        ToNode::Ceilings(all) => {
            let one = |(volume, Ceiling { reads, writes, read_bytes, write_bytes })| {
                let volume = VolumeId::to_string(&volume);
                wire::Ceiling { volume, reads, writes, read_bytes, write_bytes }
            };
            Message::Ceilings(wire::Ceilings { volumes: all.into_iter().map(one).collect() })
        }
    }
}

/// A node's message.
pub(super) fn parse(r: wire::Recording) -> Recording {
    Recording {
        sequence: r.sequence,
        at_s: r.at_s,
        disks: r.disks.into_iter().filter_map(disk).collect(),
        volumes: r.volumes.into_iter().filter_map(volume).collect(),
        histories: r.histories.into_iter().filter_map(history).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_or_no_disk_changes_nothing() {
        let id = pool::ids::DiskId::from_u128(1).to_string();
        let sample = |disk: &str, load: f32, lent: f32| wire::DiskSample {
            disk: disk.into(),
            load,
            lent,
            queue: -1.0,
            latency_s: Some(f32::INFINITY),
            ..wire::DiskSample::default()
        };
        let disks = vec![sample("rubbish", 1.0, 0.0), sample(&id, f32::NAN, 1.0), sample(&id, 5.0, 9.0)];
        let histories = vec![wire::History { series: b"rubbish".to_vec(), ..wire::History::default() }];
        let r =
            parse(wire::Recording { sequence: 1, at_s: 1, disks, histories, ..wire::Recording::default() });
        let loads: Vec<_> =
            r.disks.iter().map(|d| (d.all.load, d.lent, d.all.queue, d.all.latency)).collect();
        assert_eq!(loads, [(0.0, 0.0, 0.0, Some(0.0)), (5.0, 5.0, 0.0, Some(0.0))]);
        assert!(r.histories.is_empty());
    }
}
