//! Export and import over loopback: this node is lender and consumer.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    time::{Duration, Instant},
};

use kernel::{
    DevNo, Ensured,
    dm::{PathState, Table, Target, dev_node_path},
    nvme::{ConnectOptions, Connected, ControllerState, Endpoint, Nvme, Waited, drop_sockets},
    nvmet::{NamespaceSpec, Nvmet, PortAddr},
};
use pool::{ids::SliceId, units::Sectors};

use crate::{Ctx, PATIENCE, Step, Steps, check, io, ms, remove, spec, uuid, wait};

pub(crate) const STEPS: Steps = &[
    ("export-connect", connect),
    ("export-second-namespace", second_namespace),
    ("export-drop-sockets", sockets),
    ("export-lender-restart", restart),
    ("export-fence", fence),
    ("export-leftovers", leftovers),
    ("export-dead-peer", dead_peer),
    ("export-teardown", teardown),
];

const ADDR: PortAddr = PortAddr { traddr: IpAddr::V4(Ipv4Addr::LOCALHOST), trsvcid: 4420 };
const NQN: &str = "nqn.2026-01.storage.weir:selftest";
const HOST: &str = "nqn.2026-01.storage.weir:selftest-host";
const HOST_ID: &str = "5e1f7e57-0000-8000-8000-000000000001";
const MIBS: u64 = 16;

fn endpoint() -> Endpoint {
    Endpoint { traddr: ADDR.traddr, trsvcid: ADDR.trsvcid, nqn: NQN.into() }
}

fn slice_id(n: u128) -> SliceId {
    SliceId::from_u128(0x5e1f_7e57_0000_8000_8000_0000_0000_0000 + n)
}

fn namespace(n: u32) -> NamespaceSpec {
    NamespaceSpec { nsid: n, device: dev_node_path(&format!("selftest-slice{n}")), uuid: slice_id(n.into()) }
}

fn slice(x: &Ctx, n: u64) -> Result<DevNo, Box<dyn std::error::Error>> {
    Ok(x.control.ensure_device(&x.spec(&format!("slice{n}"), 32 * n, MIBS)?)?.1.dev)
}

fn leg(path: DevNo) -> Result<kernel::dm::DeviceSpec, Box<dyn std::error::Error>> {
    let mp = Target::MultipathBio { path: Some(path), queue_if_no_path: true };
    spec("leg", Table::single(Sectors::new(MIBS * 2048), mp)?)
}

fn leg_path() -> PathBuf {
    dev_node_path("selftest-leg")
}

fn export(numbers: &[u32]) -> Result<Ensured, Box<dyn std::error::Error>> {
    let all: Vec<_> = numbers.iter().map(|n| namespace(*n)).collect();
    Ok(Nvmet::open()?.export(&ADDR, NQN, HOST, &all)?)
}

fn connect(x: &Ctx) -> Step {
    slice(x, 1)?;
    let t = Instant::now();
    check!(export(&[1])? == Ensured::Created, "not created");
    let exported = t.elapsed();
    check!(export(&[1])? == Ensured::Identity, "exported twice");
    let (nvme, o) = (Nvme::new(), ConnectOptions::new(HOST, HOST_ID));
    let t = Instant::now();
    let made = nvme.ensure_connected(&endpoint(), &o)?;
    let connected = t.elapsed();
    check!(matches!(made, Connected::New(_)), "{made:?}");
    let again = nvme.ensure_connected(&endpoint(), &o)?;
    check!(matches!(&again, Connected::Existing(c) if c.name == made.controller().name), "{again:?}");
    check!(made.controller().host_nqn == HOST, "{made:?}");
    let t = Instant::now();
    let ns = nvme.wait_for_namespace(slice_id(1), PATIENCE)?;
    let found = t.elapsed();
    nvme.rescan_controller(&made.controller().name)?;
    x.control.ensure_device(&leg(ns.dev)?)?;
    check!(x.control.ensure_device(&leg(ns.dev)?)?.0 == Ensured::Identity, "the leg reads back otherwise");
    io::write(&leg_path(), 3, 33)?;
    check!(io::read(&namespace(1).device, 3)? == 33, "not on the slice");
    let tree = Nvmet::open()?.observe()?;
    check!(tree.namespace(NQN, &slice_id(1).to_string()).is_some_and(|n| n.enabled), "{tree:?}");
    // A host that is not admitted is refused.
    let stranger = ConnectOptions::new(format!("{HOST}-x"), "5e1f7e57-0000-8000-8000-000000000002");
    let refused = nvme.ensure_connected(&Endpoint { nqn: format!("{NQN}-none"), ..endpoint() }, &stranger);
    check!(refused.is_err(), "connected to nothing");
    Ok(format!("export {}, connect {}, namespace {}, {}", ms(exported), ms(connected), ms(found), ns.name))
}

fn second_namespace(x: &Ctx) -> Step {
    slice(x, 2)?;
    let t = Instant::now();
    check!(export(&[2])? == Ensured::Created, "not created");
    let exported = t.elapsed();
    let ns = Nvme::new().wait_for_namespace(slice_id(2), PATIENCE)?;
    let seen = t.elapsed();
    Ok(format!("export {}, seen after {} as {}", ms(exported), ms(seen), ns.name))
}

/// A dropped connection is taken up again by the kernel, and no I/O fails above the leg.
fn sockets(x: &Ctx) -> Step {
    let nvme = Nvme::new();
    let c = nvme.find_controller(&endpoint())?.ok_or("no controller")?;
    let t = Instant::now();
    let n = drop_sockets(ADDR.traddr, ADDR.trsvcid)?;
    // Dropping the first one may take the others down before their turn.
    check!(n >= 1, "{n} connections dropped");
    let path = leg_path();
    let rx = io::spawn(move || io::write(&path, 4, 44));
    let down = nvme.wait_for_state(&c.name, Duration::from_secs(5), |s| s != Some(&ControllerState::Live))?;
    let live = nvme.wait_for_state(&c.name, PATIENCE, |s| s == Some(&ControllerState::Live))?;
    check!(matches!(live, Waited::Met(_)), "not live again: {live:?}");
    let back = t.elapsed();
    reinstate_until(x, || Ok(rx.try_recv().ok()))?.0?;
    check!(io::read(&namespace(1).device, 4)? == 44, "the write is lost");
    Ok(format!("{n} dropped, went {down:?}, live after {}", ms(back)))
}

/// Reinstates a failed path of the leg until `done`: what the node plugin does on an event.
fn reinstate_until<T>(
    x: &Ctx,
    mut done: impl FnMut() -> Result<Option<T>, Box<dyn std::error::Error>>,
) -> Result<T, Box<dyn std::error::Error>> {
    wait("I/O above the leg", || {
        for (dev, state, _) in x.control.status_multipath(&uuid("leg"))?.paths {
            if state == PathState::Failed
                && Nvme::new().find_namespace(slice_id(1))?.is_some_and(|n| n.dev == dev)
            {
                x.control.reinstate_path(&uuid("leg"), dev)?;
            }
        }
        done()
    })
}

/// The lender forgets everything and exports again under the same uuid.
fn restart(x: &Ctx) -> Step {
    let (nvmet, nvme) = (Nvmet::open()?, Nvme::new());
    let before = nvme.find_namespace(slice_id(1))?.ok_or("no namespace")?;
    let second = nvme.find_namespace(slice_id(2))?.ok_or("no second namespace")?;
    let c = nvme.find_controller(&endpoint())?.ok_or("no controller")?;
    // As a crash: the connection goes first, the rest follows.
    let (port, _) = nvmet.ensure_port(&ADDR)?;
    std::fs::remove_file(format!("/sys/kernel/config/nvmet/ports/{port}/subsystems/{NQN}"))?;
    let gone = nvme.wait_for_state(&c.name, PATIENCE, |s| s != Some(&ControllerState::Live))?;
    for n in [1, 2] {
        nvmet.remove_namespace(NQN, n)?;
    }
    check!(nvmet.remove_subsystem_if_empty(NQN)?, "the subsystem stays");
    check!(nvmet.remove_port_if_unused(port)?, "the port stays");
    remove(&x.control, &["slice1"])?;
    let path = leg_path();
    let rx = io::spawn(move || io::write(&path, 5, 55));
    wait("a failed path", || Ok((!x.control.status_multipath(&uuid("leg"))?.has_path()).then_some(())))?;
    check!(rx.try_recv().is_err(), "written without a lender");
    slice(x, 1)?;
    let t = Instant::now();
    export(&[1, 2])?;
    let live = nvme.wait_for_state(&c.name, PATIENCE, |s| s == Some(&ControllerState::Live))?;
    check!(matches!(live, Waited::Met(_)), "not live again: {live:?} after {gone:?}");
    let (r, _) = reinstate_until(x, || Ok(rx.try_recv().ok()))?;
    r?;
    let took = t.elapsed();
    let after = nvme.wait_for_namespace(slice_id(1), PATIENCE)?;
    check!(after.dev == before.dev, "the namespace came back as {after:?}, was {before:?}");
    check!(io::read(&namespace(1).device, 5)? == 55, "the write is lost");
    let second_after = nvme.wait_for_namespace(slice_id(2), PATIENCE)?;
    check!(second_after.dev == second.dev, "the second namespace came back as {second_after:?}");
    Ok(format!("went {gone:?}, written {} after the export", ms(took)))
}

/// Slice table -> error: the initiator gets EIO at once, a neighbour goes on, the fence can be lifted.
fn fence(x: &Ctx) -> Step {
    let nvme = Nvme::new();
    let (one, two) =
        (nvme.wait_for_namespace(slice_id(1), PATIENCE)?, nvme.wait_for_namespace(slice_id(2), PATIENCE)?);
    let (p1, p2) = (PathBuf::from(format!("/dev/{}", one.name)), PathBuf::from(format!("/dev/{}", two.name)));
    io::write(&p1, 6, 66)?;
    x.control.preload(&uuid("slice1"), &Table::error(Sectors::new(MIBS * 2048))?)?;
    let t = Instant::now();
    x.control.commit_preloaded(&uuid("slice1"))?;
    let fenced = t.elapsed();
    let t = Instant::now();
    let e = io::write(&p1, 6, 67).err().and_then(|e| e.raw_os_error());
    let told = t.elapsed();
    check!(e == Some(libc::EIO), "a fenced write said {e:?}");
    io::write(&p2, 6, 68)?;
    // Through a leg the error fails the path: the write queues rather than fails.
    let leg = leg_path();
    let rx = io::spawn(move || io::write(&leg, 7, 77));
    wait("a failed path", || Ok((!x.control.status_multipath(&uuid("leg"))?.has_path()).then_some(())))?;
    check!(rx.try_recv().is_err(), "a fenced write above the leg returned");
    let back = x.spec("slice1", 32, MIBS)?;
    check!(x.control.ensure_device(&back)?.0 == Ensured::Swapped, "not lifted");
    check!(io::read(&p1, 6)? == 66, "the fenced write arrived");
    reinstate_until(x, || Ok(rx.try_recv().ok()))?.0?;
    // Then the namespace: the device vanishes at the consumer.
    let nvmet = Nvmet::open()?;
    let t = Instant::now();
    check!(nvmet.disable_namespace(NQN, 2)? == Ensured::Swapped, "not disabled");
    let disabled = t.elapsed();
    wait("the device to vanish", || Ok(nvme.find_namespace(slice_id(2))?.is_none().then_some(())))?;
    check!(export(&[2])? == Ensured::Created, "not enabled again");
    nvme.wait_for_namespace(slice_id(2), PATIENCE)?;
    Ok(format!("table {}, EIO in {}, disable {}", ms(fenced), ms(told), ms(disabled)))
}

/// What a crash leaves between the steps of an export is finished.
fn leftovers(x: &Ctx) -> Step {
    let nvmet = Nvmet::open()?;
    let (nqn, root) = (format!("{NQN}-half"), PathBuf::from(kernel::nvmet::CONFIGFS));
    slice(x, 3)?;
    let addr = PortAddr { trsvcid: 4421, ..ADDR };
    let ns = NamespaceSpec { nsid: 7, device: dev_node_path("selftest-slice3"), uuid: slice_id(3) };
    // After mkdir of each in turn.
    std::fs::create_dir(root.join("ports/9"))?;
    let (port, _) = nvmet.ensure_port(&addr)?;
    check!(port == 9, "another port was made beside the half-made one: {port}");
    std::fs::create_dir(root.join("subsystems").join(&nqn))?;
    std::fs::create_dir(root.join("subsystems").join(&nqn).join("namespaces/7"))?;
    let seen = nvmet.observe()?;
    let half = seen.subsystem(&nqn).and_then(|s| s.namespaces.first());
    check!(half.is_some_and(|n| !n.enabled && n.device.is_none()), "{half:?}");
    nvmet.export(&addr, &nqn, HOST, std::slice::from_ref(&ns))?;
    check!(nvmet.export(&addr, &nqn, HOST, std::slice::from_ref(&ns))? == Ensured::Identity, "not identity");
    // A missing device is refused and leaves nothing.
    let none = NamespaceSpec { nsid: 8, device: "/dev/mapper/none".into(), uuid: slice_id(4) };
    let e = nvmet.ensure_namespace(&nqn, &none).err().ok_or("exported nothing")?;
    check!(nvmet.observe()?.subsystem(&nqn).is_some_and(|s| s.namespaces.len() == 1), "left behind");
    nvmet.remove_namespace(&nqn, 7)?;
    check!(nvmet.remove_subsystem_if_empty(&nqn)? && nvmet.remove_port_if_unused(9)?, "not removed");
    remove(&x.control, &["slice3"])?;
    Ok(format!("{e} [{}]", e.class().as_str()))
}

fn loopback(up: bool) -> Result<(), Box<dyn std::error::Error>> {
    let state = if up { "up" } else { "down" };
    let s = std::process::Command::new("ip").args(["link", "set", "lo", state]).status()?;
    check!(s.success(), "ip link set lo {state}: {s}");
    Ok(())
}

/// A live controller whose peer has just died is deleted in seconds, and the leg takes a new path with what it
/// has queued. The peer dies by taking the loopback device down.
fn dead_peer(x: &Ctx) -> Step {
    let nvme = Nvme::new();
    let c = nvme.find_controller(&endpoint())?.ok_or("no controller")?;
    loopback(false)?;
    let leg_file = leg_path();
    let rx = io::spawn(move || io::write(&leg_file, 9, 99));
    let t = Instant::now();
    let gone = nvme.disconnect(&c, true);
    let took = t.elapsed();
    loopback(true)?;
    gone?;
    check!(took < Duration::from_secs(10), "deleting took {took:?}");
    check!(nvme.state(&c.name)?.is_none(), "still there");
    check!(rx.recv_timeout(Duration::from_millis(50)).is_err(), "written without a path");
    let made = nvme.ensure_connected(&endpoint(), &ConnectOptions::new(HOST, HOST_ID))?;
    check!(matches!(made, Connected::New(_)), "{made:?}");
    let ns = nvme.wait_for_namespace(slice_id(1), PATIENCE)?;
    check!(x.control.ensure_device(&leg(ns.dev)?)?.0 != Ensured::Created, "the leg was lost");
    rx.recv_timeout(PATIENCE)?.0?;
    check!(io::read(&namespace(1).device, 9)? == 99, "the queued write is lost");
    Ok(format!("deleted in {}", ms(took)))
}

fn teardown(x: &Ctx) -> Step {
    let (nvmet, nvme) = (Nvmet::open()?, Nvme::new());
    remove(&x.control, &["leg"])?;
    let c = nvme.find_controller(&endpoint())?.ok_or("no controller")?;
    let t = Instant::now();
    nvme.disconnect(&c, false)?;
    let disconnected = t.elapsed();
    nvme.disconnect(&c, true)?;
    check!(nvme.find_controller(&endpoint())?.is_none(), "still there");
    for n in [1, 2, 3] {
        nvmet.remove_namespace(NQN, n)?;
    }
    check!(nvmet.remove_subsystem_if_empty(NQN)?, "the subsystem stays");
    check!(nvmet.remove_subsystem_if_empty(NQN)?, "removing twice");
    let (port, _) = nvmet.ensure_port(&ADDR)?;
    check!(nvmet.remove_port_if_unused(port)?, "the port stays");
    let tree = nvmet.observe()?;
    check!(tree.hosts.is_empty() && tree.subsystems.is_empty() && tree.ports.is_empty(), "{tree:?}");
    remove(&x.control, &["slice1", "slice2"])?;
    let left: Vec<_> = x.control.list()?.into_iter().filter(|d| d.name.starts_with("selftest-")).collect();
    check!(left.is_empty(), "{left:?}");
    Ok(format!("disconnect {}", ms(disconnected)))
}
