//! How long planning takes and what the index costs at the scale that the design names: 10,000 nodes, 100,000 disks,
//! 1,000,000 volumes. `cargo run -p pool --example alloc_scale [nodes disks volumes]`; prints percentiles and memory.

use std::{error::Error, fs, time::Instant};

use pool::{
    alloc::{Pool, Request},
    disk::{Disk, DiskClass, DiskState, Domain, Health},
    free::FreeRun,
    ids::{DiskId, NodeName, PoolName, VolumeId},
    layout::Layout,
    units::{ExtentSize, Extents, Sectors},
};

/// Extents of a disk: 2 TiB.
const DISK: u64 = 131_072;

fn rss_mib() -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).ok_or("no VmRSS")?;
    let kib: u64 = line.split_whitespace().nth(1).ok_or("no number")?.parse()?;
    Ok(kib / 1024)
}

fn mix(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

fn report(what: &str, mut nanos: Vec<u128>) {
    nanos.sort_unstable();
    let at = |p: usize| {
        nanos.get((nanos.len() * p / 1000).min(nanos.len() - 1)).map_or(0.0, |n| *n as f64 / 1000.0)
    };
    println!(
        "{what:<34} n {:>8}  p50 {:>9.1} us  p99 {:>9.1} us  p99.9 {:>9.1} us  max {:>9.1} us",
        nanos.len(),
        at(500),
        at(990),
        at(999),
        at(1000)
    );
}

fn build(nodes: u64, disks: u64, pool: &PoolName) -> Result<(Pool, Vec<NodeName>), Box<dyn Error>> {
    let mut p = Pool::new();
    p.define_pool(pool.clone(), ExtentSize::DEFAULT)?;
    let names = (0..nodes).map(|n| format!("node-{n:05}").parse()).collect::<Result<Vec<NodeName>, _>>()?;
    for i in 0..disks {
        let n = i % nodes;
        let d = Disk {
            id: DiskId::from_u128(u128::from(i) + 1),
            node: names[n as usize].clone(),
            pool: pool.clone(),
            extents: Extents::new(DISK),
            extent_size: ExtentSize::DEFAULT,
            logical_block: 4096,
            physical_block: 4096,
            class: DiskClass::Nvme,
            state: DiskState::Serving,
            health: Health::Good,
            domain: Domain::zone_named(&format!("zone-{}", n % 10)),
            reserve: Extents::new(DISK / 20),
        };
        p.add_disk(d, [FreeRun { first: Extents::ZERO, count: Extents::new(DISK) }])?;
    }
    Ok((p, names))
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = std::env::args().skip(1).map(|a| a.parse()).collect::<Result<Vec<u64>, _>>()?;
    let at = |i: usize, default| args.get(i).copied().unwrap_or(default);
    let (nodes, disks, volumes) = (at(0, 10_000).max(1), at(1, 100_000), at(2, 1_000_000));
    let pool: PoolName = "p".parse()?;
    let began = Instant::now();
    let (mut p, names) = build(nodes, disks, &pool)?;
    println!("{nodes} nodes, {disks} disks: {:.1} s, {} MiB", began.elapsed().as_secs_f64(), rss_mib()?);
    // The mean volume is sized so that all of them leave the pool some 70 % full.
    let mean = (disks * DISK * 7 / 10 / volumes.max(1)).max(2);
    let (mut plans, mut applies, mut kept) = (Vec::new(), Vec::new(), Vec::new());
    let (began, mut again) = (Instant::now(), 0);
    for v in 0..volumes {
        let draw = mix(v);
        let mut r = Request::new(pool.clone(), Extents::new(1 + draw % (2 * mean - 1)));
        // Half of the consumers crowd on a tenth of the nodes, so that these fill up and borrow.
        let crowd = if draw >> 40 & 1 == 0 { nodes } else { (nodes / 10).max(1) };
        r.home = names.get(((draw >> 20) % crowd) as usize).cloned();
        r.layout = match draw >> 50 & 15 {
            0 => Layout::Striped { stripes: 4, chunk: Sectors::new(128) },
            _ => Layout::Linear,
        };
        r.seed = draw;
        let t = Instant::now();
        let plan = p.plan(&r)?;
        let took = t.elapsed().as_nanos();
        // Planning is pure: what was slow for the plan's sake is slow again, what was preempted is not.
        again += u64::from(took > 1_000_000);
        let t = Instant::now();
        plans.push(if took > 1_000_000 && p.plan(&r)? == plan {
            took.min(t.elapsed().as_nanos())
        } else {
            took
        });
        let t = Instant::now();
        p.apply(VolumeId::from_u128(u128::from(v) + 1), &plan)?;
        applies.push(t.elapsed().as_nanos());
        if v % 1000 == 0 {
            kept.push((VolumeId::from_u128(u128::from(v) + 1), plan));
        }
    }
    println!("{volumes} volumes: {:.1} s, {} MiB", began.elapsed().as_secs_f64(), rss_mib()?);
    println!("{again} plans took more than 1 ms and were timed once more; the shorter time counts");
    report("plan", plans);
    report("apply", applies);
    let (mut grows, mut capacities, mut refusals) = (Vec::new(), Vec::new(), Vec::new());
    for (i, (_, plan)) in kept.iter().enumerate() {
        let mut r = Request::new(pool.clone(), plan.extents.plus(Extents::new(64)));
        r.home = plan.home.clone();
        let t = Instant::now();
        p.capacity(&r)?;
        capacities.push(t.elapsed().as_nanos());
        if plan.map.0.iter().all(|s| s.stripe.is_none()) {
            r.existing = plan.map.clone();
            let t = Instant::now();
            p.plan(&r)?;
            grows.push(t.elapsed().as_nanos());
        }
        if i < 20 {
            r.existing = pool::volume::Map::default();
            r.size = Extents::new(disks * DISK);
            let t = Instant::now();
            if p.plan(&r).is_ok() {
                return Err("a volume of the whole pool was accepted".into());
            }
            refusals.push(t.elapsed().as_nanos());
        }
    }
    report("plan of a growth", grows);
    report("capacity", capacities);
    report("refusal (looks at every disk)", refusals);
    let began = Instant::now();
    p.check()?;
    println!("check of the whole index: {:.1} s", began.elapsed().as_secs_f64());
    Ok(())
}
