//! Any record goes into a resource, through JSON, and comes back the same; and everything of it has a place in the
//! schema, since the API server drops what has none.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use api::{LogicalVolume, NodeDisk, StorageNode};
use pool::{
    access::{Access, AccessState, Leaving, Mode},
    alloc::{Chosen, Explanation, Passed, WhyChosen, WhyPassed},
    disk::{Disk, DiskClass, DiskState, Domain, Health, LastSeen},
    ids::{DiskId, Epoch, NodeName, PoolName, Term, VolumeId},
    layout::{
        FsType, Layout, Locality, Provisioning, Sharing,
        params::{ClaimRef, Limits, VolumeParams},
    },
    moving::{MoveCause, Moving},
    record::{DiskRecord, HistoryLine, Lifecycle, NodeRecord, Retired, Stretch, VolumeRecord},
    units::{Bytes, ExtentSize, Extents, Sectors},
    volume::{Leg, Map, Segment, Spare, Stripe},
};
use proptest::{
    collection::{btree_map, btree_set, vec},
    option,
    prelude::*,
};
use serde_json::Value;

/// Numbers as large as the API server keeps them.
fn num() -> impl Strategy<Value = u64> {
    prop_oneof![0..100_u64, 0..=i64::MAX as u64, Just(i64::MAX as u64)]
}

fn disk_id() -> impl Strategy<Value = DiskId> {
    any::<u128>().prop_map(DiskId::from_u128)
}

fn node() -> impl Strategy<Value = NodeName> {
    "[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?".prop_map(|s| s.parse().unwrap())
}

fn pool_name() -> impl Strategy<Value = PoolName> {
    "[a-z]{1,12}".prop_map(|s| s.parse().unwrap())
}

fn extents() -> impl Strategy<Value = Extents> {
    num().prop_map(Extents::new)
}

fn epoch() -> impl Strategy<Value = Epoch> {
    num().prop_map(Epoch::new)
}

fn extent_size() -> impl Strategy<Value = ExtentSize> {
    (22..=30_u32).prop_map(|n| ExtentSize::new(1 << n).unwrap())
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), "[ -~]{0,40}", "\\PC{0,12}"]
}

fn layout() -> impl Strategy<Value = Layout> {
    prop_oneof![
        Just(Layout::Linear),
        Just(Layout::WholeDisk),
        any::<u32>().prop_map(|replicas| Layout::Mirrored { replicas }),
        (any::<u32>(), num()).prop_map(|(stripes, c)| Layout::Striped { stripes, chunk: Sectors::new(c) }),
    ]
}

fn params() -> impl Strategy<Value = VolumeParams> {
    let words = (
        prop_oneof![Just(Provisioning::Thick), Just(Provisioning::Thin)],
        prop_oneof![Just(Locality::Prefer), Just(Locality::Require), Just(Locality::None)],
        prop_oneof![Just(Sharing::Migrate), Just(Sharing::MultiWriter)],
        option::of(prop_oneof![Just(FsType::Ext4), Just(FsType::Xfs)]),
    );
    (option::of(pool_name()), layout(), words, any::<u32>(), option::of(num()), option::of(num())).prop_map(
        |(pool, layout, (provisioning, locality, sharing, fs_type), max_lenders, iops, throughput)| {
            let limits = Limits { iops, throughput: throughput.map(Bytes::new) };
            VolumeParams { pool, layout, provisioning, locality, max_lenders, sharing, fs_type, limits }
        },
    )
}

fn mode() -> impl Strategy<Value = Mode> {
    (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(read_only, multi_node, upkeep)| Mode {
        read_only,
        multi_node,
        upkeep,
    })
}

fn access() -> impl Strategy<Value = Access> {
    prop_oneof![
        Just(Access::Detached),
        (node(), mode()).prop_map(|(node, mode)| Access::Granting { node, mode }),
        btree_map(node(), mode(), 0..4).prop_map(|holders| Access::Attached { holders }),
        (node(), node(), epoch()).prop_map(|(source, target, since)| Access::Guarded {
            source,
            target,
            since
        }),
        (node(), node(), any::<bool>(), epoch()).prop_map(|(source, target, source_left, since)| {
            Access::CuttingOver { source, target, source_left, since }
        }),
    ]
}

fn access_state() -> impl Strategy<Value = AccessState> {
    let leaving = (epoch(), any::<bool>(), btree_set(disk_id(), 0..4))
        .prop_map(|(since, wrote, disks)| Leaving { since, wrote, disks });
    (epoch(), access(), btree_map(node(), leaving, 0..3)).prop_map(|(epoch, access, leaving)| AccessState {
        epoch,
        access,
        leaving,
    })
}

fn map() -> impl Strategy<Value = Map> {
    let spare = (0..2_u32, disk_id(), num(), any::<bool>()).prop_map(|(leg, disk, first, filling)| Spare {
        leg: leg % 2,
        place: Leg { disk, first: Extents::new(first) },
        filling,
    });
    let part = (1..1000_u64, vec((disk_id(), num()), 1..4), option::of(0..10_u32), option::of(spare));
    vec(part, 0..8).prop_map(|parts| {
        let (mut at, mut out) = (0, vec![]);
        for (count, legs, stripe, spare) in parts {
            // A spare is of a leg that there is.
            let spare = spare.map(|s| Spare { leg: s.leg.min(legs.len() as u32 - 1), ..s });
            let count = if stripe.is_some() { count * legs.len() as u64 } else { count };
            out.push(Segment {
                start: Extents::new(at),
                count: Extents::new(count),
                legs: legs.into_iter().map(|(disk, f)| Leg { disk, first: Extents::new(f) }).collect(),
                stripe: stripe.map(|n| Stripe { chunk: Sectors::new(1 << n) }),
                spare,
            });
            at += count;
        }
        Map(out)
    })
}

fn retired() -> impl Strategy<Value = Retired> {
    let run =
        (num(), num()).prop_map(|(f, c)| Stretch { first: Extents::new(f), count: Extents::new(c.max(1)) });
    // A wipe's number uses all of its 64 bits.
    (any::<u64>(), disk_id(), vec(run, 0..4), btree_set(node(), 0..3), epoch())
        .prop_map(|(wipe, disk, runs, consumers, epoch)| Retired { wipe, disk, runs, consumers, epoch })
}

fn explanation() -> impl Strategy<Value = Explanation> {
    let why = prop_oneof![
        Just(WhyChosen::Local),
        Just(WhyChosen::LenderAlready),
        Just(WhyChosen::MostRoom),
        Just(WhyChosen::Stripe),
        Just(WhyChosen::WholeDisk),
    ];
    let not = prop_oneof![
        Just(WhyPassed::NotNeeded),
        Just(WhyPassed::LessRoom),
        Just(WhyPassed::Full),
        Just(WhyPassed::TakesNothingNew),
        Just(WhyPassed::OtherBlockSize),
        Just(WhyPassed::OtherDomain),
    ];
    let chosen = (disk_id(), node(), extents(), why, 0..=1000_u32)
        .prop_map(|(disk, node, extents, why, score)| Chosen { disk, node, extents, why, score });
    let passed = (option::of(disk_id()), node(), extents(), not, 0..=1000_u32)
        .prop_map(|(disk, node, room, why, score)| Passed { disk, node, room, why, score });
    (option::of(node()), any::<u32>(), vec(chosen, 0..4), num(), vec(passed, 0..4)).prop_map(
        |(home, logical_block, chosen, more_chosen, passed)| Explanation {
            home,
            locality: Locality::Prefer,
            logical_block,
            chosen,
            more_chosen,
            passed,
        },
    )
}

fn moving() -> impl Strategy<Value = Moving> {
    let cause = prop_oneof![
        Just(MoveCause::Drain),
        Just(MoveCause::Recall),
        Just(MoveCause::Gravity),
        Just(MoveCause::Spill),
        Just(MoveCause::Fullness),
    ];
    (node(), epoch(), cause).prop_map(|(by, since, cause)| Moving { by, since, cause })
}

fn volume() -> impl Strategy<Value = VolumeRecord> {
    let line =
        (num(), num(), text()).prop_map(|(sequence, unix_ms, text)| HistoryLine { sequence, unix_ms, text });
    let claim = (option::of(text()), option::of(text()), option::of(text()))
        .prop_map(|(pvc_name, pvc_namespace, pv_name)| ClaimRef { pvc_name, pvc_namespace, pv_name });
    let lifecycle = prop_oneof![Just(Lifecycle::Active), Just(Lifecycle::Deleting)];
    (
        (any::<u128>(), text(), pool_name(), extent_size(), params(), claim),
        (
            map(),
            access_state(),
            (lifecycle, option::of(moving())),
            vec(retired(), 0..3),
            vec(line, 0..4),
            option::of(explanation()),
        ),
    )
        .prop_map(|((id, name, pool, extent_size, params, claim), rest)| {
            let (map, access, (lifecycle, moving), retired, history, explanation) = rest;
            VolumeRecord {
                id: VolumeId::from_u128(id),
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
            }
        })
}

fn domain() -> impl Strategy<Value = Domain> {
    btree_map("[a-z./]{1,20}", text(), 0..3).prop_map(Domain::new)
}

fn disk() -> impl Strategy<Value = DiskRecord> {
    let was = prop_oneof![Just(LastSeen::Claimed), Just(LastSeen::Serving), Just(LastSeen::Draining)];
    let state = prop_oneof![
        Just(DiskState::Claimed),
        Just(DiskState::Serving),
        Just(DiskState::Draining),
        Just(DiskState::Released),
        was.prop_map(|was| DiskState::Missing { was }),
    ];
    let class = prop_oneof![Just(DiskClass::Hdd), Just(DiskClass::Ssd), Just(DiskClass::Nvme)];
    let health = prop_oneof![Just(Health::Good), Just(Health::Suspect), Just(Health::Failing)];
    (
        (disk_id(), node(), pool_name(), extents(), extent_size(), any::<u32>(), any::<u32>()),
        (class, state, health, domain(), extents()),
        (text(), text(), epoch(), extents(), option::of(retired())),
    )
        .prop_map(
            |((id, node, pool, extents, extent_size, lb, pb), (class, state, health, domain, reserve), r)| {
                let (device_id, path, epoch, clean_through, fresh) = r;
                let disk = Disk {
                    id,
                    node,
                    pool,
                    extents,
                    extent_size,
                    logical_block: lb,
                    physical_block: pb,
                    class,
                    state,
                    health,
                    domain,
                    reserve,
                };
                DiskRecord { disk, device_id, path, epoch, clean_through, fresh }
            },
        )
}

/// Fails when `value` has a part that the schema does not know, or lacks a required one.
fn fits(at: &str, schema: &Value, value: &Value) {
    match value {
        Value::Object(o) => {
            let known = schema["properties"].as_object();
            for (k, v) in o {
                let at = format!("{at}.{k}");
                match known.map(|p| &p[k]).or(schema.get("additionalProperties")) {
                    Some(s) if s.is_object() => fits(&at, s, v),
                    _ => panic!("{at} has no place in the schema"),
                }
            }
            for r in schema["required"].as_array().into_iter().flatten() {
                assert!(o.contains_key(r.as_str().unwrap()), "{at} lacks {r}");
            }
        }
        Value::Array(a) => a.iter().for_each(|v| fits(at, &schema["items"], v)),
        Value::String(s) => {
            assert_eq!(schema["type"], "string", "{at}");
            let allowed = schema["enum"].as_array();
            assert!(allowed.is_none_or(|e| e.contains(&Value::from(s.as_str()))), "{at}: {s:?}");
        }
        Value::Number(n) => {
            assert_eq!(schema["type"], "integer", "{at}");
            assert!(n.as_i64().is_some(), "{at}: {n} is more than the API server keeps");
        }
        Value::Bool(_) => assert_eq!(schema["type"], "boolean", "{at}"),
        Value::Null => panic!("{at} is null: the API server drops it"),
    }
}

fn schemas() -> BTreeMap<String, Value> {
    let schema =
        |v: &Value| v["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"].clone();
    api::crds::definitions().unwrap().iter().map(|(n, v)| (n.clone(), schema(v))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn volumes_come_back(record in volume(), term in num()) {
        // Maps are checked on the way back; legs of one segment on one disk are the pure room's business to refuse.
        prop_assume!(record.map.check().is_ok());
        let lv = LogicalVolume::of(&record, Term::new(term));
        let value = serde_json::to_value(&lv).unwrap();
        fits("spec", &schemas()["logicalvolumes.weir.storage"], &value["spec"]);
        let back: LogicalVolume = serde_json::from_value(value).unwrap();
        prop_assert_eq!(back.record(), Ok(record));
        prop_assert_eq!(back.spec.term, term);
    }

    #[test]
    fn disks_come_back(record in disk(), term in num()) {
        let nd = NodeDisk::of(&record, Term::new(term));
        let value = serde_json::to_value(&nd).unwrap();
        fits("spec", &schemas()["nodedisks.weir.storage"], &value["spec"]);
        let back: NodeDisk = serde_json::from_value(value).unwrap();
        prop_assert_eq!(back.record(), Ok(record));
    }

    #[test]
    fn nodes_come_back(
        name in node(),
        domain in domain(),
        address in text(),
        port in any::<u32>(),
        boot_id in text(),
        forgotten in any::<bool>(),
    ) {
        let record = NodeRecord { name, domain, address, port, boot_id, forgotten };
        let n = StorageNode::of(&record, Term::new(1));
        let value = serde_json::to_value(&n).unwrap();
        fits("spec", &schemas()["storagenodes.weir.storage"], &value["spec"]);
        let back: StorageNode = serde_json::from_value(value).unwrap();
        prop_assert_eq!(back.record(), Ok(record));
    }
}

#[test]
fn resources_that_make_no_sense_are_refused() {
    let record = DiskRecord {
        disk: Disk {
            id: DiskId::from_u128(1),
            node: "n".parse().unwrap(),
            pool: "p".parse().unwrap(),
            extents: Extents::new(1),
            extent_size: ExtentSize::DEFAULT,
            logical_block: 512,
            physical_block: 512,
            class: DiskClass::Ssd,
            state: DiskState::Serving,
            health: Health::Good,
            domain: Domain::default(),
            reserve: Extents::ZERO,
        },
        device_id: "d".into(),
        path: "/dev/d".into(),
        epoch: Epoch::ZERO,
        clean_through: Extents::ZERO,
        fresh: Some(Retired {
            wipe: 1,
            disk: DiskId::from_u128(1),
            runs: vec![],
            consumers: Default::default(),
            epoch: Epoch::ZERO,
        }),
    };
    let good = NodeDisk::of(&record, Term::ZERO);
    let broken = |f: &dyn Fn(&mut NodeDisk)| {
        let mut d = good.clone();
        f(&mut d);
        d.record().unwrap_err().to_string()
    };
    assert!(broken(&|d| d.metadata.name = Some("x".into())).contains("disk id"));
    assert!(broken(&|d| d.spec.was = Some(LastSeen::Serving)).contains("was does not fit state serving"));
    assert!(broken(&|d| d.spec.state = api::DiskState::Missing).contains("was does not fit"));
    assert!(
        broken(&|d| d.spec.fresh.as_mut().unwrap().wipe = "+00000000000000f".into()).contains("hexadecimal")
    );
    // What a newer controller has written is not dropped silently.
    let mut value = serde_json::to_value(&good).unwrap();
    value["spec"]["later"] = 1.into();
    assert!(serde_json::from_value::<NodeDisk>(value).is_err());
}
