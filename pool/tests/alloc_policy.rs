//! The allocator's policy, case by case.

mod alloc_common;

use alloc_common::{disk, disk_id, e, name, pool_of, request};
use pool::{
    alloc::{Offer, Pool, Refusal, Request, TopologyTerm},
    disk::{Disk, DiskState, Domain, Health, LastSeen, NODE_KEY},
    free::FreeRun,
    ids::VolumeId,
    layout::{Layout, Locality},
    units::Sectors,
    volume::Run,
};

fn striped(stripes: u32) -> Layout {
    Layout::Striped { stripes, chunk: Sectors::new(128) }
}

fn on_node(n: &str) -> TopologyTerm {
    TopologyTerm::from([(NODE_KEY.to_owned(), n.to_owned())])
}

fn volume(n: u128) -> VolumeId {
    VolumeId::from_u128(n)
}

/// The disks of a plan's new runs with their extents, in the map's order.
fn places(pool: &Pool, req: &Request) -> Vec<(u128, u64)> {
    let plan = pool.plan(req).unwrap_or_else(|r| panic!("refused: {r}"));
    plan.map.check().expect("a plan's map is a map");
    plan.added.iter().map(|r| (r.disk.as_u128(), r.count.get())).collect()
}

#[test]
fn local_first_then_the_lender_with_most_room() {
    let p = pool_of([disk(1, "a", 10), disk(2, "b", 20), disk(3, "c", 30)]);
    let mut r = request(8);
    r.home = Some(name("a"));
    assert_eq!(places(&p, &r), [(1, 8)]);
    r.size = e(15);
    assert_eq!(places(&p, &r), [(1, 10), (3, 5)]);
    r.size = e(45);
    assert_eq!(places(&p, &r), [(1, 10), (3, 30), (2, 5)]);
    let plan = p.plan(&r).expect("fits");
    assert_eq!(plan.lenders, [name("b"), name("c")]);
    assert_eq!(plan.borrowed, e(35));
    r.home = None;
    r.size = e(8);
    assert_eq!(places(&p, &r), [(3, 8)]);
}

#[test]
fn best_fit_keeps_long_runs_long() {
    let mut p = pool_of([]);
    let free = [(0, 4), (10, 9), (30, 5)].map(|(f, c)| FreeRun { first: e(f), count: e(c) });
    p.add_disk(disk(1, "a", 40), free).expect("added");
    let mut r = request(5);
    r.home = Some(name("a"));
    let runs = |r: &Request| -> Vec<(u64, u64)> {
        let plan = p.plan(r).expect("fits");
        plan.added.iter().map(|x| (x.first.get(), x.count.get())).collect()
    };
    assert_eq!(runs(&r), [(30, 5)]);
    r.size = e(3);
    assert_eq!(runs(&r), [(0, 3)]);
    r.size = e(13);
    assert_eq!(runs(&r), [(0, 4), (10, 9)], "the longest, then the shortest that holds the rest");
}

#[test]
fn a_reserve_is_for_the_own_node_only() {
    let mut d = disk(1, "a", 10);
    d.reserve = e(4);
    let p = pool_of([d]);
    let mut r = request(8);
    r.home = Some(name("a"));
    assert_eq!(places(&p, &r), [(1, 8)]);
    r.home = Some(name("b"));
    let Err(Refusal::NotEnoughSpace(s)) = p.plan(&r) else { panic!("the reserve was lent") };
    assert_eq!((s.available, s.missing, s.held_back), (e(6), e(2), e(4)));
}

#[test]
fn a_refusal_says_what_is_missing_where() {
    let mut away = disk(4, "n4", 100);
    away.state = DiskState::Missing { was: LastSeen::Serving };
    let mut ill = disk(5, "n5", 7);
    ill.health = Health::Failing;
    let p = pool_of([disk(1, "n1", 640), disk(2, "n2", 704), disk(3, "n3", 640), away, ill]);
    let text = p.plan(&request(2560)).expect_err("too large").to_string();
    assert_eq!(
        text,
        "volume needs 40 GiB; pool p has 31 GiB free on 3 nodes: n2 11 GiB, n1 10 GiB, n3 10 GiB; 9 GiB missing \
         (1.67 GiB free on disks that take nothing new)"
    );
    let mut r = request(1000);
    r.max_lenders = 1;
    assert_eq!(p.plan(&r), Err(Refusal::TooManyLenders { needed: 2, allowed: 1 }));
    r.pool = "q".parse().expect("name");
    assert_eq!(p.plan(&r).expect_err("none").to_string(), "pool q does not exist; there are: p");
}

#[test]
fn locality_require_stays_or_refuses() {
    let p = pool_of([disk(1, "a", 10), disk(2, "b", 20)]);
    let mut r = request(11);
    r.locality = Locality::Require;
    r.home = Some(name("a"));
    let refusal = p.plan(&r).expect_err("no room");
    assert_eq!(
        refusal,
        Refusal::LocalityUnsatisfiable { node: Some(name("a")), needed: e(11), available: e(10) }
    );
    r.home = None;
    assert_eq!(p.plan(&r).expect("b has room").home, Some(name("b")));
    r.size = e(5);
    r.topology.preferred = vec![on_node("a")];
    assert_eq!(p.plan(&r).expect("a has room").home, Some(name("a")));
    r.topology.required = vec![on_node("b")];
    assert_eq!(p.plan(&r).expect("b has room").home, Some(name("b")));
    r.topology.required = vec![on_node("x")];
    assert!(matches!(p.plan(&r), Err(Refusal::TopologyUnsatisfiable(_))));
    r.home = Some(name("a"));
    assert!(matches!(p.plan(&r), Err(Refusal::TopologyUnsatisfiable(_))));
}

#[test]
fn stripes_take_distinct_nodes_while_there_are_enough() {
    let p = pool_of([disk(1, "a", 10), disk(2, "a", 10), disk(3, "b", 10), disk(4, "c", 6)]);
    let mut r = request(12);
    r.layout = striped(3);
    r.home = Some(name("a"));
    assert_eq!(places(&p, &r), [(1, 4), (3, 4), (4, 4)]);
    r.size = e(21);
    assert_eq!(places(&p, &r), [(1, 7), (3, 7), (2, 7)], "c has no room for a stripe: two on a");
    r.size = e(34);
    let plan = p.plan(&r).expect("quotas of 10, 10, 10 and 6 make 12 rows of 3");
    assert_eq!(plan.extents, e(36));
    r.size = e(37);
    assert!(matches!(p.plan(&r), Err(Refusal::NotEnoughSpace(_))));
    r.layout = striped(5);
    assert!(matches!(p.plan(&r), Err(Refusal::NotEnoughDisks { stripes: 5, usable: 4, .. })));
    r.layout = striped(2);
    r.locality = Locality::Require;
    r.size = e(20);
    assert_eq!(places(&p, &r), [(1, 10), (2, 10)]);
}

#[test]
fn a_whole_disk_is_whole_and_the_tightest() {
    let mut p = pool_of([disk(1, "a", 10), disk(2, "b", 20), disk(3, "c", 30)]);
    let mut r = request(8);
    r.layout = Layout::WholeDisk;
    assert_eq!(places(&p, &r), [(1, 10)]);
    r.home = Some(name("c"));
    assert_eq!(places(&p, &r), [(3, 30)]);
    r.limit = Some(e(15));
    assert_eq!(places(&p, &r), [(1, 10)]);
    p.reserve_runs(&[Run { disk: disk_id(1), first: e(3), count: e(1) }]).expect("free");
    let refusal = p.plan(&r).expect_err("none between 8 and 15");
    assert!(matches!(refusal, Refusal::NoFreeDisk { entirely_free: 2, .. }), "{refusal}");
}

#[test]
fn block_sizes_are_never_mixed() {
    let mut small = disk(1, "a", 10);
    small.logical_block = 512;
    let p = pool_of([small, disk(2, "a", 12), disk(3, "b", 9)]);
    let mut r = request(15);
    r.home = Some(name("a"));
    assert_eq!(places(&p, &r), [(2, 12), (3, 3)]);
    r.size = e(25);
    assert!(matches!(p.plan(&r), Err(Refusal::BlockSizesMixed { .. })));
    r.size = e(10);
    r.logical_block = Some(512);
    assert_eq!(places(&p, &r), [(1, 10)]);
}

#[test]
fn zones_are_kept_while_that_suffices_and_domains_always() {
    let zoned = |n, node, size, zone: &str| Disk { domain: Domain::zone_named(zone), ..disk(n, node, size) };
    let p = pool_of([
        zoned(1, "a", 5, "x"),
        zoned(2, "b", 6, "x"),
        zoned(3, "c", 50, "y"),
        zoned(4, "d", 6, "x"),
    ]);
    let mut r = request(9);
    r.home = Some(name("a"));
    assert_eq!(places(&p, &r).len(), 2);
    assert_ne!(places(&p, &r)[1].0, 3, "the zone's own lenders suffice");
    r.size = e(30);
    assert_eq!(places(&p, &r), [(1, 5), (3, 25)]);
    let zone = |z: &str| vec![Domain::zone_named(z).labels().clone()];
    r.domains = zone("x");
    assert!(matches!(p.plan(&r), Err(Refusal::NotEnoughSpace(_))));
    r.domains = zone("z");
    assert!(matches!(p.plan(&r), Err(Refusal::TopologyUnsatisfiable(_))));
}

#[test]
fn growth_goes_on_in_place_and_keeps_to_its_lenders() {
    let mut p = pool_of([disk(1, "a", 10), disk(2, "b", 20), disk(3, "c", 30)]);
    let mut r = request(14);
    r.home = Some(name("a"));
    r.max_lenders = 1;
    let plan = p.plan(&r).expect("fits");
    p.apply(volume(1), &plan).expect("free");
    r.existing = plan.map.clone();
    r.size = e(20);
    let grown = p.plan(&r).expect("fits");
    assert_eq!(grown.map.0.len(), plan.map.0.len(), "one run longer, no segment more");
    assert_eq!(grown.added, [Run { disk: disk_id(3), first: e(4), count: e(6) }]);
    r.size = e(41);
    assert_eq!(p.plan(&r), Err(Refusal::TooManyLenders { needed: 2, allowed: 1 }));
    r.size = e(3);
    assert!(p.plan(&r).expect("nothing to do").added.is_empty());
}

#[test]
fn a_striped_volume_grows_in_place() {
    let mut p = pool_of([disk(1, "a", 10), disk(2, "b", 20), disk(3, "c", 30)]);
    let mut r = request(4);
    r.layout = striped(2);
    r.home = Some(name("b"));
    let plan = p.plan(&r).expect("fits");
    p.apply(volume(1), &plan).expect("free");
    r.existing = plan.map;
    r.size = e(9);
    let grown = p.plan(&r).expect("fits");
    assert_eq!((grown.map.0.len(), grown.extents), (1, e(10)));
    grown.map.check().expect("a map");
}

#[test]
fn offers_limit_loans_and_scores_choose_among_the_fewest() {
    let mut p = pool_of([disk(1, "a", 10), disk(2, "b", 20), disk(3, "c", 30)]);
    p.set_offer(disk_id(3), Some(Offer { lendable: e(12), score: 900 })).expect("known");
    p.set_offer(disk_id(2), Some(Offer { lendable: e(100), score: 100 })).expect("known");
    let mut r = request(10);
    r.home = Some(name("z"));
    assert_eq!(places(&p, &r), [(3, 10)]);
    r.size = e(15);
    assert_eq!(places(&p, &r), [(2, 15)], "one lender suffices, whatever its score");
    r.size = e(10);
    let plan = p.plan(&r).expect("fits");
    p.apply(volume(1), &plan).expect("free");
    assert_eq!(
        places(&p, &r),
        [(1, 10)],
        "what the loan took is off the offer, and a neutral score beats a bad one"
    );
    r.home = Some(name("c"));
    assert_eq!(places(&p, &r), [(3, 10)], "its own consumers are not bound by the offer");
}

#[test]
fn the_index_refuses_what_would_give_an_extent_twice() {
    let mut p = pool_of([disk(1, "a", 10)]);
    let plan = p.plan(&request(4)).expect("fits");
    p.apply(volume(1), &plan).expect("free");
    assert!(p.apply(volume(2), &plan).is_err(), "planned before the first was applied");
    assert!(p.release_runs(&plan.added).is_err(), "owned");
    assert!(p.retire(volume(2), &plan.added).is_err(), "another's");
    assert!(p.remove_disk(disk_id(1)).is_err(), "in use");
    p.retire(volume(1), &plan.added).expect("its own");
    assert_eq!(p.usage(disk_id(1)).map(|u| (u.free, u.owned, u.set_aside)), Some((e(6), e(0), e(4))));
    p.release_runs(&plan.added).expect("set aside");
    assert!(p.release_runs(&plan.added).is_err(), "free already");
    assert!(p.adopt(volume(3), &plan.map).is_err(), "free, so nobody's");
    assert_eq!(p.check(), Ok(()));
    p.remove_disk(disk_id(1)).expect("empty");
    assert_eq!(p.check(), Ok(()));
}

#[test]
fn mirrors_are_not_supported_yet() {
    let p = pool_of([disk(1, "a", 10)]);
    let mut r = request(1);
    r.layout = Layout::Mirrored { replicas: 2 };
    assert_eq!(p.plan(&r), Err(Refusal::NotSupported("layout: mirrored")));
}
