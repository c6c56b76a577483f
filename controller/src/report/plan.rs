//! From what the core says to a status. Pure: the time is an argument.

use api::{
    Condition, ConditionStatus, LogicalVolumeStatus, NodeDiskStatus, Quantity, StorageNodeStatus,
    StoragePoolStatus, set_condition,
};
use pool::units::Bytes;

use crate::core::{DiskReport, Fleet, Standing, VolumeReport};

/// One aspect of an object.
struct Aspect<'a> {
    kind: &'static str,
    holds: bool,
    reason: &'static str,
    message: &'a str,
}

fn conditions(old: &[Condition], generation: i64, now: &str, aspects: &[Aspect<'_>]) -> Vec<Condition> {
    let mut all = old.to_vec();
    for a in aspects {
        let new = Condition {
            kind: a.kind.to_owned(),
            status: if a.holds { ConditionStatus::True } else { ConditionStatus::False },
            observed_generation: generation,
            last_transition_time: now.to_owned(),
            reason: a.reason.to_owned(),
            message: a.message.to_owned(),
        };
        set_condition(&mut all, new);
    }
    all
}

/// Bytes for people to compare: two digits after the point in the largest unit, where they are not whole.
fn rounded(b: Bytes) -> String {
    let n = b.get();
    let exact = Quantity::new(b).to_string();
    if exact.len() <= 7 {
        return exact;
    }
    for (unit, shift) in [("Pi", 50), ("Ti", 40), ("Gi", 30), ("Mi", 20)] {
        if n >> shift > 0 {
            let hundredths = (u128::from(n) * 100) >> shift;
            return format!("{}.{:02}{unit}", hundredths / 100, hundredths % 100);
        }
    }
    exact
}

pub(super) fn volume(r: &VolumeReport, generation: i64, old: &[Condition], now: &str) -> LogicalVolumeStatus {
    let settled = r.abnormal.is_none() && matches!(r.state.as_str(), "Detached" | "Attached");
    let message = r.abnormal.as_deref().unwrap_or(if settled { "" } else { &r.last });
    let aspects = [
        Aspect {
            kind: "Attached",
            holds: r.attached,
            reason: if r.attached { "Held" } else { "NotHeld" },
            message: &r.nodes,
        },
        Aspect {
            kind: "Settled",
            holds: settled,
            reason: match (&r.abnormal, settled) {
                (Some(_), _) => "Degraded",
                (None, true) => "Settled",
                (None, false) => "Changing",
            },
            message,
        },
    ];
    let (bytes, lenders) = r.borrowed;
    let some = |s: String| Some(s).filter(|s| !s.is_empty());
    LogicalVolumeStatus {
        observed_generation: generation,
        size: Some(Quantity::new(r.size).to_string()),
        state: Some(r.state.clone()),
        nodes: some(r.nodes.clone()),
        borrowed: (lenders > 0).then(|| {
            format!("{} from {lenders} {}", rounded(bytes), if lenders == 1 { "node" } else { "nodes" })
        }),
        conditions: conditions(old, generation, now, &aspects),
    }
}

pub(super) fn disk(r: &DiskReport, generation: i64, old: &[Condition], now: &str) -> NodeDiskStatus {
    let aspects = [
        Aspect {
            kind: "Ready",
            holds: r.ready,
            reason: if r.ready { "Serving" } else { "NotServing" },
            message: &r.state,
        },
        Aspect {
            kind: "Healthy",
            holds: !r.failing,
            reason: if r.failing { "Failing" } else { "Healthy" },
            message: if r.failing { &r.state } else { "" },
        },
    ];
    NodeDiskStatus {
        observed_generation: generation,
        size: Some(rounded(r.size)),
        free: Some(rounded(r.free)),
        conditions: conditions(old, generation, now, &aspects),
    }
}

pub(super) fn node(standing: Standing, generation: i64, old: &[Condition], now: &str) -> StorageNodeStatus {
    let (reason, message) = match standing {
        Standing::Alive => ("Heard", ""),
        Standing::Silent => ("Silent", "its lease has run out: it has not been heard of"),
        Standing::Forgotten => ("Forgotten", "it was said never to come back: weir forget"),
    };
    let aspect = Aspect { kind: "Alive", holds: standing == Standing::Alive, reason, message };
    StorageNodeStatus {
        observed_generation: generation,
        conditions: conditions(old, generation, now, &[aspect]),
    }
}

/// `left_out`: why the controller does without the pool.
pub(super) fn pool(
    fleet: &Fleet,
    name: &str,
    left_out: Option<&str>,
    generation: i64,
    old: &[Condition],
    now: &str,
) -> StoragePoolStatus {
    let disks: Vec<&DiskReport> = fleet.disks.values().filter(|d| d.pool.as_str() == name).collect();
    let sum = |f: fn(&DiskReport) -> Bytes| disks.iter().map(|d| f(d)).fold(Bytes::ZERO, Bytes::plus);
    let nodes: std::collections::BTreeSet<_> = disks.iter().map(|d| &d.node).collect();
    let (ready, serving) = (disks.iter().any(|d| d.ready), disks.iter().filter(|d| d.ready).count());
    let message = match (left_out, disks.len()) {
        (Some(why), _) => format!(
            "left out until it is corrected: {why}. No device becomes a disk of it; what lies on its disks stays and works"
        ),
        (None, 0) => "no device of any node fits its selectors, or none has been reported yet".to_owned(),
        (None, n) => format!("{serving} of {n} disks take new extents"),
    };
    let (holds, reason) = match (left_out, ready) {
        (Some(_), _) => (false, "LeftOut"),
        (None, true) => (true, "Serving"),
        (None, false) => (false, "NoDisks"),
    };
    let aspect = Aspect { kind: "Ready", holds, reason, message: &message };
    StoragePoolStatus {
        observed_generation: generation,
        disks: disks.len() as u64,
        nodes: nodes.len() as u64,
        size: Some(rounded(sum(|d| d.size))),
        free: Some(rounded(sum(|d| d.free))),
        conditions: conditions(old, generation, now, &[aspect]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> VolumeReport {
        VolumeReport {
            claim: pool::layout::params::ClaimRef::default(),
            size: Bytes::gib(4),
            state: "Attached".into(),
            nodes: "n1".into(),
            disks: std::collections::BTreeSet::new(),
            borrowed: (Bytes::gib(1), 2),
            attached: true,
            abnormal: None,
            last: "n1 got it".into(),
        }
    }

    fn condition<'a>(all: &'a [Condition], kind: &str) -> &'a Condition {
        all.iter().find(|c| c.kind == kind).unwrap()
    }

    #[test]
    fn a_volume_says_who_has_it_and_what_is_wrong() {
        let s = volume(&report(), 3, &[], "t1");
        assert_eq!(
            (s.size.as_deref(), s.nodes.as_deref(), s.borrowed.as_deref()),
            (Some("4Gi"), Some("n1"), Some("1Gi from 2 nodes"))
        );
        assert!(s.conditions.iter().all(|c| c.status == ConditionStatus::True && c.observed_generation == 3));
        let moving = VolumeReport { state: "Guarded".into(), nodes: "n1 -> n2".into(), ..report() };
        let t = volume(&moving, 4, &s.conditions, "t2");
        let settled = condition(&t.conditions, "Settled");
        assert_eq!((settled.reason.as_str(), settled.last_transition_time.as_str()), ("Changing", "t2"));
        assert_eq!(condition(&t.conditions, "Attached").last_transition_time, "t1", "no transition");
        let ill = VolumeReport { abnormal: Some("disk d is missing".into()), ..report() };
        let u = volume(&ill, 4, &t.conditions, "t3");
        let settled = condition(&u.conditions, "Settled");
        assert_eq!((settled.reason.as_str(), settled.message.as_str()), ("Degraded", "disk d is missing"));
        let free =
            VolumeReport { attached: false, nodes: String::new(), borrowed: (Bytes::ZERO, 0), ..report() };
        let v = volume(&free, 4, &[], "t4");
        assert_eq!((v.nodes, v.borrowed), (None, None));
    }

    #[test]
    fn a_pool_adds_up_its_own_disks() {
        let disk = |pool: &str, node: &str, ready| DiskReport {
            node: node.parse().unwrap(),
            pool: pool.parse().unwrap(),
            path: "/dev/x".into(),
            state: "serving".into(),
            ready,
            failing: false,
            size: Bytes::gib(10),
            free: Bytes::gib(4),
        };
        let mut fleet = Fleet::default();
        let rows = [("a", "n1", true), ("a", "n2", false), ("b", "n1", true)];
        for (i, (pool, node, ready)) in rows.into_iter().enumerate() {
            let id = format!("00000000-0000-0000-0000-00000000000{i}");
            fleet.disks.insert(id.parse().unwrap(), disk(pool, node, ready));
        }
        let s = pool(&fleet, "a", None, 1, &[], "t");
        assert_eq!(
            (s.disks, s.nodes, s.size.as_deref(), s.free.as_deref()),
            (2, 2, Some("20Gi"), Some("8Gi"))
        );
        assert!(condition(&s.conditions, "Ready").message.contains("1 of 2"));
        let none = pool(&fleet, "c", None, 1, &[], "t");
        assert_eq!(condition(&none.conditions, "Ready").status, ConditionStatus::False);
        let wrong = pool(&fleet, "a", Some("spec: no power of two"), 1, &s.conditions, "t2");
        let ready = condition(&wrong.conditions, "Ready");
        assert_eq!((ready.status, ready.reason.as_str()), (ConditionStatus::False, "LeftOut"));
        assert!(ready.message.contains("spec: no power of two"), "{}", ready.message);
        assert_eq!(wrong.disks, 2, "what it has it keeps");
    }

    #[test]
    fn sizes_are_short() {
        for (b, text) in [
            (0, "0"),
            (16 << 20, "16Mi"),
            (3 << 40, "3Ti"),
            ((10 << 30) + (3 << 20), "10243Mi"),
            ((5 << 40) + 4096, "5.00Ti"),
        ] {
            assert_eq!(rounded(Bytes::new(b)), text);
        }
    }
}
