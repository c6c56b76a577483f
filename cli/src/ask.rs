//! Questions, and how the answers look.

use std::{
    io,
    time::{Duration, SystemTime},
};

use clap::CommandFactory as _;
use csi_proto::operator as wire;
use serde::Serialize;

use crate::{
    Error,
    args::{Args, Command, Output},
    connect::{Connection, connect},
    drain,
    figures::{bytes, bytes_s, latency, percent, rate, sparkline, until},
    manage,
    part::{How, part},
    tables::{Grid, print, short},
};

/// Seconds since 1970.
fn now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// An answer as JSON, or as people read it.
pub(crate) fn tell<T: Serialize>(to: Output, value: &T, text: impl FnOnce() -> String) -> Result<(), Error> {
    match to {
        Output::Table => print(&text())?,
        Output::Json => print(&serde_json::to_string_pretty(value)?)?,
    }
    Ok(())
}

/// Does what the command line says.
pub(crate) async fn run(args: &Args, name: &'static str) -> Result<(), Error> {
    if let Command::Completion { shell } = &args.command {
        let mut script = Vec::new();
        clap_complete::generate(*shell, &mut Args::command(), name.replace(' ', "-"), &mut script);
        return Ok(print(&String::from_utf8_lossy(&script))?);
    }
    if let Command::Simulate(settings) = &args.command {
        let done = simulate::command::run(settings, &mut io::stdout().lock());
        return done.map_err(|e| Error::Simulation(format!("{e:#}")));
    }
    let mut c = connect(&args.to).await?;
    let to = args.output;
    match &args.command {
        Command::Completion { .. } | Command::Simulate(_) => Ok(()),
        Command::Status => {
            let s = c.client.status(wire::StatusRequest {}).await?.into_inner();
            tell(to, &s, || status(&s))
        }
        Command::Disks => {
            let all = all_disks(&mut c).await?;
            tell(to, &all, || disks(&all))
        }
        Command::Volumes => {
            let all = all_volumes(&mut c).await?;
            tell(to, &all, || volumes(&all))
        }
        Command::Loans => {
            let all = all_loans(&mut c).await?;
            tell(to, &all, || loans(&all, now_s()))
        }
        Command::Explain { volume } => {
            let r = wire::ExplainRequest { volume: volume.clone() };
            let e = c.client.explain(r).await?.into_inner();
            tell(to, &e, || explain(&e))
        }
        Command::Forecast { disk } => {
            let r = wire::ForecastRequest { disk: disk.clone() };
            let f = c.client.forecast(r).await?.into_inner();
            tell(to, &f, || forecast(&f, now_s()))
        }
        Command::Drain(d) => drain::drain(&mut c, &args.to, to, d).await,
        Command::Release(p) => part(&mut c, &args.to, to, How::Release, p).await,
        Command::Forget(p) => part(&mut c, &args.to, to, How::Forget, p).await,
        Command::Undrain { target } => drain::undrain(&mut c, to, target).await,
        Command::Top { count, every, once } => top(&mut c, to, *count, *every, *once).await,
        Command::Volume(v) => manage::volume(&mut c, to, v).await,
    }
}

macro_rules! all_pages {
    ($name:ident, $call:ident, $rows:ident, $row:ty) => {
        async fn $name(c: &mut Connection) -> Result<Vec<$row>, Error> {
            let mut all = Vec::new();
            let mut after = String::new();
            loop {
                let page = c.client.$call(wire::PageRequest { after, limit: 0 }).await?.into_inner();
                all.extend(page.$rows);
                after = page.next;
                if after.is_empty() {
                    return Ok(all);
                }
            }
        }
    };
}

all_pages!(all_disks, disks, disks, wire::Disk);
all_pages!(all_volumes, volumes, volumes, wire::Volume);
all_pages!(all_loans, loans, loans, wire::Loan);

fn status(s: &wire::StatusResponse) -> String {
    let mut pools = Grid::new(&["pool", ">size", ">used", ">free", ">unwiped", ">to lend"]);
    for p in &s.pools {
        let used = p.size_bytes.saturating_sub(p.free_bytes).saturating_sub(p.unwiped_bytes);
        pools.row([
            p.pool.clone(),
            bytes(p.size_bytes),
            percent(used, p.size_bytes),
            bytes(p.free_bytes),
            bytes(p.unwiped_bytes),
            bytes(p.lendable_bytes),
        ]);
    }
    let mut nodes = Grid::new(&["node", "state", ">lends", ">borrows", "address"]);
    for n in &s.nodes {
        let state = if n.alive { "alive" } else { "dead" };
        let cells = [
            n.node.clone(),
            state.to_owned(),
            bytes(n.lends_bytes),
            bytes(n.borrows_bytes),
            n.address.clone(),
        ];
        nodes.row(cells);
    }
    let count = |all: &std::collections::HashMap<String, u64>| {
        let mut all: Vec<_> = all.iter().map(|(k, n)| format!("{n} {}", k.to_lowercase())).collect();
        all.sort();
        if all.is_empty() { "none".to_owned() } else { all.join(", ") }
    };
    let mut out = format!("controller {} (term {})\n\n{pools}\n{nodes}\n", s.version, s.term);
    out += &format!(
        "disks    {}\nvolumes  {}\nlent     {}\n",
        count(&s.disks),
        count(&s.volumes),
        bytes(s.lent_bytes)
    );
    let left: Vec<_> =
        s.nodes.iter().flat_map(|n| n.unclaimed.iter().map(move |u| format!("  {} {u}\n", n.node))).collect();
    if !left.is_empty() {
        out += &format!("\nDevices that are left alone:\n{}", left.concat());
    }
    out
}

/// What keeps a disk from lending more, in few words.
fn why(o: &wire::Offer) -> String {
    let strip = |s: &str| s.split_once(": ").map_or(s, |(_, w)| w).to_owned();
    match (o.bytes > 0, o.io > 0.0) {
        (true, true) => String::new(),
        (false, _) => strip(&o.space_reason),
        (true, false) => strip(&o.io_reason),
    }
}

fn disks(all: &[wire::Disk]) -> String {
    let headings = [
        "disk",
        "node",
        "path",
        "class",
        "state",
        ">size",
        ">free",
        ">lent",
        ">to lend",
        ">load",
        ">spare io",
        "why no more",
    ];
    let mut g = Grid::new(&headings);
    for d in all {
        let offer = d.offer.as_ref();
        let activity = d.activity.as_ref();
        g.row([
            short(&d.disk),
            d.node.clone(),
            d.path.clone(),
            d.disk_class.clone(),
            d.state.clone(),
            bytes(d.size_bytes),
            bytes(d.free_bytes),
            bytes(d.lent_bytes),
            offer.map_or("-".to_owned(), |o| bytes(o.bytes)),
            activity.map_or("-".to_owned(), |a| rate(a.load)),
            offer.map_or("-".to_owned(), |o| rate(o.io)),
            offer.map_or_else(|| "nothing is recorded of it".to_owned(), why),
        ]);
    }
    g.to_string()
}

fn volumes(all: &[wire::Volume]) -> String {
    let headings =
        ["volume", "name", "pool", ">size", "phase", "held by", ">borrowed", "from", ">load", "trouble"];
    let mut g = Grid::new(&headings);
    for v in all {
        g.row([
            short(&v.volume),
            v.name.clone(),
            v.pool.clone(),
            bytes(v.size_bytes),
            v.phase.clone(),
            v.holders.join(", "),
            bytes(v.borrowed_bytes),
            v.lenders.join(", "),
            rate(v.load),
            v.abnormal.clone(),
        ]);
    }
    if g.is_empty() { "no volumes".to_owned() } else { g.to_string() }
}

fn loans(all: &[wire::Loan], now_s: u64) -> String {
    let mut g = Grid::new(&[
        "lender",
        "borrower",
        ">bytes",
        "volume",
        "disk",
        ">i/o",
        ">floor",
        ">ceiling",
        "its i/o stands for",
    ]);
    for l in all {
        let known = |n: Option<f64>, else_: &str| n.map_or(else_.to_owned(), rate);
        g.row([
            l.lender.clone(),
            l.borrower.clone(),
            bytes(l.bytes),
            l.volume_name.clone(),
            short(&l.disk),
            known(l.load, "-"),
            known(l.floor, "-"),
            known(l.ceiling, "none"),
            if l.io_until_s == 0 { "no offer".to_owned() } else { until(l.io_until_s, now_s) },
        ]);
    }
    if g.is_empty() {
        return "nobody lends anything".to_owned();
    }
    format!(
        "{g}\nSpace stays lent until the volume leaves it or its lender calls it back. I/O in reads of 4 KiB a second; a ceiling stands \
         while the lender's own volumes wait, and is never below the floor.\n"
    )
}

fn candidates(title: &str, all: &[wire::Candidate]) -> String {
    let mut g = Grid::new(&["node", "disk", ">room", ">score", "why"]);
    for c in all {
        g.row([c.node.clone(), short(&c.disk), bytes(c.bytes), c.score.to_string(), c.why.clone()]);
    }
    if g.is_empty() { String::new() } else { format!("\n{title}\n{g}") }
}

fn horizons(all: &[wire::Horizon]) -> String {
    let mut g = Grid::new(&["over the next", ">mean", ">peaks below", ">sure"]);
    for h in all {
        g.row([
            format!("{} h", h.hours),
            rate(h.mean),
            rate(h.peak_bound),
            format!("{:.0} %", 100.0 * h.confidence),
        ]);
    }
    g.to_string()
}

fn explain(e: &wire::ExplainResponse) -> String {
    let mut out = String::new();
    if let Some(v) = &e.volume {
        let held = if v.holders.is_empty() {
            "held by nobody".to_owned()
        } else {
            format!("held by {}", v.holders.join(", "))
        };
        out += &format!(
            "{} ({}): {}, {}, {held}\n",
            v.name,
            v.volume,
            bytes(v.size_bytes),
            v.phase.to_lowercase()
        );
        if !v.abnormal.is_empty() {
            out += &format!("trouble: {}\n", v.abnormal);
        }
    }
    let home =
        if e.home.is_empty() { "where most room was".to_owned() } else { format!("beside {}", e.home) };
    out +=
        &format!("placed {home}, locality {}\n", if e.locality.is_empty() { "unknown" } else { &e.locality });
    out += &candidates("Taken:", &e.chosen);
    if e.more_chosen > 0 {
        out += &format!("and {} disks more\n", e.more_chosen);
    }
    out += &candidates("Not taken:", &e.passed);
    let mut g = Grid::new(&["node", "disk", ">bytes", "", "that disk now"]);
    for p in &e.places {
        let lent = if p.lent { "borrowed" } else { "" };
        g.row([p.node.clone(), short(&p.disk), bytes(p.bytes), lent.to_owned(), p.reason.clone()]);
    }
    out += &format!("\nIt lies now:\n{g}");
    if !e.heat.is_empty() {
        out += &format!(
            "\nI/O over its {} parts of {}: {}\n",
            e.heat.len(),
            bytes(e.area_bytes),
            sparkline(&e.heat)
        );
    }
    if !e.hours.is_empty() {
        out += &format!("\nload by hour: {}\n{}", sparkline(&e.hours), horizons(&e.horizons));
    }
    if !e.history.is_empty() {
        out += &format!("\nWhat happened:\n  {}\n", e.history.join("\n  "));
    }
    out
}

fn forecast(f: &wire::ForecastResponse, now_s: u64) -> String {
    let mut out = String::new();
    let Some(d) = &f.disk else { return "no such disk".to_owned() };
    out += &format!("{} {} on {} ({}, {})\n", d.disk, d.path, d.node, d.disk_class, d.state);
    let Some(a) = &d.activity else { return out + "nothing has been recorded of it yet\n" };
    let took = a.latency_s.map_or("idle".to_owned(), |s| format!("{} an I/O", latency(s)));
    out += &format!(
        "now: load {} ({} for others), {took}, reads {}, writes {}; {} s ago\n",
        rate(a.load),
        rate(a.lent_load),
        bytes_s(a.read_bytes_s),
        bytes_s(a.write_bytes_s),
        a.age_s
    );
    out += &format!(
        "it can do {} ({:.0} % sure); an I/O takes {} when idle\n",
        rate(f.capability),
        100.0 * f.capability_confidence,
        latency(f.idle_latency_s)
    );
    for (what, said) in [("health", &f.health), ("drift", &f.drift)] {
        if !said.is_empty() {
            out += &format!("{what}: {said}\n");
        }
    }
    if f.hours.is_empty() {
        out += "\nno hour of its owner's load is full yet\n";
    } else {
        let most = f.peaks.iter().copied().fold(0.0, f64::max);
        out += &format!(
            "\nits owner's load, {} h, peak {}:\n{}\n",
            f.hours.len(),
            rate(most),
            sparkline(&f.hours)
        );
    }
    out += &format!("\n{}", horizons(&f.horizons));
    if let Some(o) = &d.offer {
        out += &offer(o, now_s);
    }
    out
}

fn offer(o: &wire::Offer, now_s: u64) -> String {
    let mut out = format!("\nspace: {}\n", o.space_reason);
    if o.free_bytes > 0 {
        let (growth, kept) = (bytes(o.growth_bytes), bytes(o.kept_bytes));
        let (free, lends) = (bytes(o.free_bytes), bytes(o.bytes));
        out += &format!(
            "  free {free} - its owner's growth within {} h {growth} - kept back {kept} = {lends}\n",
            o.recall_h
        );
    }
    out += &format!("i/o: {}\n", o.io_reason);
    if o.usable_io > 0.0 {
        let (usable, own) = (rate(o.usable_io), rate(o.own_peak_io));
        out += &format!(
            "  usable {usable} - its owner's peak {own} - lent {} = {}\n",
            rate(o.kept_io),
            rate(o.io)
        );
    }
    out + &format!("the offer stands for {}, {:.0} % sure\n", until(o.until_s, now_s), 100.0 * o.confidence)
}

#[derive(Serialize)]
struct Busiest {
    disks: Vec<wire::Disk>,
    volumes: Vec<wire::Volume>,
}

async fn top(c: &mut Connection, to: Output, count: usize, every: u64, once: bool) -> Result<(), Error> {
    let screen = rustix::termios::isatty(io::stdout()) && to == Output::Table && !once;
    loop {
        let load = |d: &wire::Disk| d.activity.as_ref().map_or(-1.0, |a| a.load);
        let mut busiest = Busiest { disks: all_disks(c).await?, volumes: all_volumes(c).await? };
        busiest.disks.sort_by(|a, b| load(b).total_cmp(&load(a)));
        busiest.volumes.sort_by(|a, b| b.load.total_cmp(&a.load));
        busiest.disks.truncate(count);
        busiest.volumes.truncate(count);
        let clear = if screen { "\x1b[H\x1b[2J" } else { "" };
        tell(to, &busiest, || format!("{clear}{}", busy(&busiest)))?;
        if !screen {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(every)).await;
    }
}

fn busy(b: &Busiest) -> String {
    let mut disks = Grid::new(&[
        "disk",
        "node",
        ">load",
        ">for others",
        ">queue",
        ">latency",
        ">reads",
        ">writes",
        ">spare io",
    ]);
    for d in &b.disks {
        let Some(a) = &d.activity else { continue };
        disks.row([
            short(&d.disk),
            d.node.clone(),
            rate(a.load),
            rate(a.lent_load),
            rate(a.queue),
            a.latency_s.map(latency).unwrap_or_default(),
            bytes_s(a.read_bytes_s),
            bytes_s(a.write_bytes_s),
            d.offer.as_ref().map_or("-".to_owned(), |o| rate(o.io)),
        ]);
    }
    let mut volumes = Grid::new(&["volume", "held by", ">load", ">throughput", ">borrowed"]);
    for v in &b.volumes {
        volumes.row([
            v.name.clone(),
            v.holders.join(", "),
            rate(v.load),
            bytes_s(v.bytes_s),
            bytes(v.borrowed_bytes),
        ]);
    }
    format!("{disks}\n{volumes}")
}
