//! Emptying disks: what it would come to, how it goes, and its end.
//!
//! The drain stands in the controller's records: whatever becomes of this program, it goes on. Must not know: how
//! anything moves.

use std::{
    collections::BTreeSet,
    io,
    time::{Duration, Instant},
};

use csi_proto::operator as wire;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};
use tonic::Code;

use crate::{
    Error,
    args::{Drain, Output, To},
    ask::tell,
    connect::{Connection, connect},
    figures::{bytes, bytes_s, lasting, plural},
    tables::{Grid, print, short},
};

/// Between two looks.
pub(crate) const LOOK: Duration = Duration::from_secs(1);
/// For how long a controller that is away is waited for: another one takes over within this time.
const AWAY: Duration = Duration::from_secs(120);
/// Widths of the bar.
const BAR: &str = "{prefix} [{bar:24}] {msg}";

/// What was meant, for people.
fn meant(p: &wire::DrainResponse) -> String {
    if p.disk.is_empty() { format!("node {}", p.node) } else { format!("disk {}", p.disk) }
}

/// The sums over all disks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sums {
    left: u64,
    wiping: u64,
    /// With what of the moves under way is copied.
    done: u64,
    bytes_s: f64,
    measured: bool,
    eta_s: Option<u64>,
}

fn sums(p: &wire::DrainResponse) -> Sums {
    let mut s = Sums::default();
    let rates = || p.disks.iter().filter(|d| d.left_bytes > 0);
    s.measured = rates().any(|d| d.measured);
    for d in &p.disks {
        s.left += d.left_bytes;
        s.wiping += d.wiping_bytes;
        s.done += d.moved_bytes;
        s.eta_s = s.eta_s.max(d.eta_s);
    }
    s.bytes_s = rates().filter(|d| d.measured == s.measured).map(|d| d.bytes_s).sum();
    s.done += p.moves.iter().filter(|m| !m.switched).map(|m| m.copied_bytes).sum::<u64>();
    s
}

/// Whether nothing is left.
fn is_done(p: &wire::DrainResponse) -> bool {
    p.moves.is_empty() && p.disks.iter().all(|d| d.left_bytes == 0 && d.wiping_bytes == 0)
}

/// How it goes, in a line.
fn line(p: &wire::DrainResponse) -> String {
    let s = sums(p);
    if s.left == 0 && s.wiping == 0 {
        return "nothing is left".to_owned();
    }
    if s.left == 0 {
        return format!("everything has left; {} are being wiped", bytes(s.wiping));
    }
    let stuck = p.disks.iter().flat_map(|d| &d.blocked).filter(|b| !b.passing).count();
    let stuck = stuck + p.disks.iter().map(|d| d.more_blocked as usize).sum::<usize>();
    let mut out = format!("{} left, {} moved", bytes(s.left), bytes(s.done));
    if s.measured {
        out += &format!(", {}", bytes_s(s.bytes_s));
    }
    if let Some(eta) = s.eta_s {
        out += &format!(", about {}", lasting(eta));
    }
    out += &format!(", {} under way", plural(p.moves.len(), "move"));
    if stuck > 0 {
        out += &format!(", {} cannot leave", plural(stuck, "volume"));
    }
    out
}

/// A volume that stays, in a line.
fn blocked(b: &wire::Blocked) -> String {
    let mut out = format!("volume {} ({}) stays: {}", b.name, bytes(b.bytes), b.why);
    if b.missing_bytes > 0 {
        out += &format!("; there is no room for {} of it", bytes(b.missing_bytes));
    }
    if !b.advice.is_empty() {
        out += &format!("; what to do: {}", b.advice);
    }
    out
}

/// What is new among the volumes that stay, and is not said to pass.
fn news(p: &wire::DrainResponse, said: &mut BTreeSet<(String, String)>) -> Vec<String> {
    let now: Vec<&wire::Blocked> = p.disks.iter().flat_map(|d| &d.blocked).filter(|b| !b.passing).collect();
    // Reasons have figures that change; what to do about them does not.
    let key = |b: &wire::Blocked| (b.volume.clone(), b.advice.clone());
    let out = now.iter().filter(|b| !said.contains(&key(b))).map(|b| blocked(b)).collect();
    *said = now.iter().map(|b| key(b)).collect();
    out
}

/// What a dry run comes to.
fn dry(p: &wire::DrainResponse) -> String {
    let (what, s) = (meant(p), sums(p));
    if p.disks.is_empty() {
        return format!("{what} has no disk in any pool: there is nothing to drain\n");
    }
    let plans = || p.disks.iter().filter_map(|d| Some((d, d.plan.as_ref()?)));
    let moves: u64 = plans().map(|(_, p)| p.bytes).sum();
    let mut out = format!(
        "To drain {what}: {} of {} on {} would move",
        bytes(moves),
        bytes(s.left),
        plural(p.disks.len(), "disk")
    );
    if let Some(eta) = s.eta_s.filter(|_| moves > 0) {
        let by = if s.measured { "as measured in the last minute" } else { "as disks of its class do" };
        out += &format!(", in about {} at {} ({by})", lasting(eta), bytes_s(s.bytes_s));
    }
    out += ". Nothing was changed.\n";
    let mut g = Grid::new(&["volume", ">bytes", "off disk", "to disk", "of node"]);
    for (d, plan) in plans() {
        for m in &plan.moves {
            let (from, to) = (short(&d.disk), short(&m.to_disk));
            g.row([m.name.clone(), bytes(m.bytes), from, to, m.to_node.clone()]);
        }
    }
    if !g.is_empty() {
        out += &format!("\n{g}");
    }
    let unplanned: u64 = plans().map(|(_, p)| p.unplanned_bytes).sum();
    if unplanned > 0 {
        out += &format!("and {} more, in too many pieces to plan for at once\n", bytes(unplanned));
    }
    let stay: Vec<String> =
        p.disks.iter().flat_map(|d| &d.blocked).map(|b| format!("  {}\n", blocked(b))).collect();
    if !stay.is_empty() {
        out += &format!("\nAs things are, these would not leave:\n{}", stay.concat());
    }
    let more: u64 = p.disks.iter().map(|d| d.more_blocked).sum();
    if more > 0 {
        out += &format!("  and {}\n", plural(more as usize, "more volume"));
    }
    out
}

/// The end of a drain.
fn ended(p: &wire::DrainResponse, target: &str) -> String {
    if p.disks.is_empty() {
        return format!("{} has no disk in any pool: there is nothing to drain", meant(p));
    }
    let takes = if p.disks.len() == 1 { "takes" } else { "take" };
    let moved = sums(p).done;
    let moved = if moved > 0 { format!("{} moved, ", bytes(moved)) } else { String::new() };
    format!(
        "{} is drained: {moved}nothing is left on {}, which {takes} nothing new until `weir undrain {target}`",
        meant(p),
        plural(p.disks.len(), "disk")
    )
}

/// What to do after the waiting has ended before the drain.
fn goes_on(target: &str) -> String {
    format!("the drain goes on: `weir drain {target}` waits for it again, `weir undrain {target}` ends it")
}

/// Shows how it goes.
struct Screen {
    to: Output,
    bar: Option<ProgressBar>,
    every: Duration,
    told: Option<Instant>,
    said: BTreeSet<(String, String)>,
}

impl Screen {
    fn new(to: Output, every: Duration, what: &str) -> Result<Self, Error> {
        let terminal = to == Output::Table && rustix::termios::isatty(io::stdout());
        let bar = terminal.then(|| ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stdout()));
        if let Some(b) = &bar {
            let style = ProgressStyle::with_template(BAR).map_err(io::Error::other)?;
            b.set_style(style.progress_chars("=> "));
            b.set_prefix(what.to_owned());
        }
        Ok(Self { to, bar, every, told: None, said: BTreeSet::new() })
    }

    fn show(&mut self, p: &wire::DrainResponse) -> Result<(), Error> {
        let due = self.told.is_none_or(|at| at.elapsed() >= self.every);
        if self.to == Output::Json {
            if due {
                self.told = Some(Instant::now());
                print(&serde_json::to_string(p)?)?;
            }
            return Ok(());
        }
        let news = news(p, &mut self.said);
        if let Some(b) = &self.bar {
            let s = sums(p);
            b.set_length(s.left.saturating_add(p.disks.iter().map(|d| d.moved_bytes).sum()).max(1));
            b.set_position(s.done);
            b.set_message(line(p));
            news.iter().for_each(|n| b.println(n));
            return Ok(());
        }
        for n in news {
            print(&n)?;
        }
        if due {
            self.told = Some(Instant::now());
            print(&format!("{}: {}", meant(p), line(p)))?;
        }
        Ok(())
    }

    /// The last word.
    fn end(self, p: &wire::DrainResponse, text: &str) -> Result<(), Error> {
        if let Some(b) = &self.bar {
            b.finish_and_clear();
        }
        match self.to {
            Output::Json => print(&serde_json::to_string(p)?)?,
            Output::Table => print(text)?,
        }
        Ok(())
    }
}

/// Asks how it goes; a controller that is away is waited for, and dialled again.
async fn look(c: &mut Connection, to: &To, target: &str) -> Result<wire::DrainResponse, Error> {
    let begun = Instant::now();
    let ask = || wire::Target { target: target.to_owned() };
    loop {
        match c.client.drain_progress(ask()).await {
            Ok(p) => return Ok(p.into_inner()),
            Err(e) => bear(c, to, begun, e, &goes_on(target)).await?,
        }
    }
}

/// Returns when a request that came to this may be made again: a controller that is away is waited for since `begun`, and
/// dialled again. `goes_on`: what becomes of what was asked for.
pub(crate) async fn bear(
    c: &mut Connection,
    to: &To,
    begun: Instant,
    e: tonic::Status,
    goes_on: &str,
) -> Result<(), Error> {
    let away =
        matches!(e.code(), Code::Unavailable | Code::Unknown | Code::DeadlineExceeded | Code::Cancelled);
    if !away {
        return Err(e.into());
    }
    if begun.elapsed() >= AWAY {
        return Err(Error::Unfinished(format!("{}; {goes_on}", Error::from(e))));
    }
    tokio::time::sleep(LOOK).await;
    if let Ok(again) = connect(to).await {
        *c = again;
    }
    Ok(())
}

async fn wait(
    c: &mut Connection,
    to: &To,
    how: Output,
    d: &Drain,
    first: wire::DrainResponse,
) -> Result<(), Error> {
    let begun = Instant::now();
    let mut screen = Screen::new(how, Duration::from_secs(d.every), &meant(&first))?;
    let mut p = first;
    // One for all the time: what is pressed between two looks counts as well.
    let mut interrupt = signal(SignalKind::interrupt())
        .map_err(|e| Error::Unfinished(format!("Ctrl-C cannot be heard: {e}; {}", goes_on(&d.target))))?;
    loop {
        if is_done(&p) {
            let text = ended(&p, &d.target);
            return screen.end(&p, &text);
        }
        if !p.disks.iter().any(|d| d.draining) {
            let left = bytes(sums(&p).left);
            return Err(Error::Unfinished(format!(
                "somebody ended the drain of {}: {left} are left",
                meant(&p)
            )));
        }
        screen.show(&p)?;
        if d.timeout.is_some_and(|t| begun.elapsed() >= t) {
            return Err(Error::Unfinished(format!(
                "{} is not drained yet: {}; {}",
                meant(&p),
                line(&p),
                goes_on(&d.target)
            )));
        }
        p = tokio::select! {
            p = async { tokio::time::sleep(LOOK).await; look(c, to, &d.target).await } => p?,
            _ = interrupt.recv() => return Err(Error::Interrupted(goes_on(&d.target))),
        };
    }
}

/// Empties what is named.
pub(crate) async fn drain(c: &mut Connection, to: &To, how: Output, d: &Drain) -> Result<(), Error> {
    let r = wire::DrainRequest { target: d.target.clone(), dry_run: d.dry_run };
    let p = c.client.drain(r).await?.into_inner();
    if d.dry_run {
        return tell(how, &p, || dry(&p));
    }
    if d.no_wait {
        return tell(how, &p, || {
            if is_done(&p) {
                return ended(&p, &d.target);
            }
            let begins = if p.unchanged { "is being drained already" } else { "is being drained" };
            format!("{} {begins}: {}; {}", meant(&p), line(&p), goes_on(&d.target))
        });
    }
    wait(c, to, how, d, p).await
}

/// Ends the emptying of what is named.
pub(crate) async fn undrain(c: &mut Connection, how: Output, target: &str) -> Result<(), Error> {
    let r = wire::Target { target: target.to_owned() };
    let p = c.client.undrain(r).await?.into_inner();
    tell(how, &p, || {
        let mut out = format!("{} takes new extents again; what has moved stays where it is", meant(&p));
        if !p.moves.is_empty() {
            out += &format!("; {} under way will be finished", plural(p.moves.len(), "move"));
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(left: u64, moved: u64) -> wire::DrainingDisk {
        wire::DrainingDisk {
            disk: "11111111-2222".into(),
            node: "n1".into(),
            draining: true,
            left_bytes: left,
            moved_bytes: moved,
            bytes_s: 1048576.0,
            ..wire::DrainingDisk::default()
        }
    }

    fn of_node(disks: Vec<wire::DrainingDisk>) -> wire::DrainResponse {
        wire::DrainResponse { node: "n1".into(), disks, ..wire::DrainResponse::default() }
    }

    fn stays(volume: &str, passing: bool) -> wire::Blocked {
        wire::Blocked {
            volume: volume.into(),
            name: volume.into(),
            bytes: 4096,
            missing_bytes: 1024,
            why: "no room".into(),
            advice: "add a disk".into(),
            passing,
        }
    }

    #[test]
    fn how_it_goes_in_a_line() {
        assert_eq!(line(&of_node(vec![disk(0, 9)])), "nothing is left");
        let wiping = wire::DrainingDisk { wiping_bytes: 2048, ..disk(0, 9) };
        assert_eq!(line(&of_node(vec![wiping.clone()])), "everything has left; 2Ki are being wiped");
        assert!(!is_done(&of_node(vec![wiping])) && is_done(&of_node(vec![disk(0, 1)])));
        let a = wire::DrainingDisk { measured: true, eta_s: Some(4), ..disk(4 << 20, 1 << 20) };
        let b = wire::DrainingDisk { blocked: vec![stays("v", false), stays("w", true)], ..disk(2 << 20, 0) };
        let mut p = of_node(vec![a, b]);
        p.moves = vec![wire::Move { bytes: 2 << 20, copied_bytes: 1 << 20, ..wire::Move::default() }];
        let said = "6Mi left, 2Mi moved, 1Mi/s, about 4 s, 1 move under way, 1 volume cannot leave";
        assert_eq!(line(&p), said);
    }

    #[test]
    fn what_stays_is_said_once_for_as_long_as_it_stays() {
        let with = |b: Vec<wire::Blocked>| of_node(vec![wire::DrainingDisk { blocked: b, ..disk(1, 0) }]);
        let mut said = BTreeSet::new();
        let first = news(&with(vec![stays("v", false), stays("w", true)]), &mut said);
        assert_eq!(
            first,
            ["volume v (4Ki) stays: no room; there is no room for 1Ki of it; what to do: add a disk"]
        );
        assert!(news(&with(vec![stays("v", false)]), &mut said).is_empty());
        assert!(news(&with(vec![]), &mut said).is_empty());
        assert_eq!(news(&with(vec![stays("v", false)]), &mut said).len(), 1);
    }

    #[test]
    fn a_dry_run_says_what_goes_where_and_what_stays() {
        let moves = vec![wire::PlannedMove {
            name: "v".into(),
            to_disk: "99999999-1".into(),
            to_node: "n2".into(),
            bytes: 3 << 20,
            ..wire::PlannedMove::default()
        }];
        let plan = Some(wire::DrainPlan { moves, bytes: 3 << 20, unplanned_bytes: 0 });
        let d =
            wire::DrainingDisk { plan, eta_s: Some(3), blocked: vec![stays("w", false)], ..disk(4 << 20, 0) };
        let text = dry(&of_node(vec![d]));
        // How wide columns are is the table's affair.
        let row = |l: &str| l.split_whitespace().eq(["v", "3Mi", "11111111", "99999999", "n2"]);
        assert!(text.lines().any(row), "{text}");
        for word in [
            "To drain node n1: 3Mi of 4Mi on 1 disk would move, in about 3 s at 1Mi/s (as disks of its class do)",
            "Nothing was changed.",
            "would not leave:\n  volume w (4Ki) stays: no room",
        ] {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert!(dry(&of_node(vec![])).contains("nothing to drain"));
    }

    #[test]
    fn the_end_says_how_to_go_on() {
        let p = of_node(vec![disk(0, 5 << 20), disk(0, 0)]);
        assert_eq!(
            ended(&p, "n1"),
            "node n1 is drained: 5Mi moved, nothing is left on 2 disks, which take nothing new until `weir undrain n1`"
        );
    }
}
