//! The mirror that fills a spare, in a consumer's kernel: it copies on its own, whoever has died, until it is taken
//! down. A write to what is copied goes to both sides and is answered when both have it; what one side failed is held.
//!
//! A mirror comes as it goes: a plain device first, on the leg; then the top is put on it; then it becomes a mirror. One
//! that copied before the top wrote through it would miss writes.

use pool::moving::Mirror;

use crate::{
    node::{Queued, Via},
    oracle::Write,
    types::{Checked, D, Mutation, N, Spared, V},
    world::World,
};

/// What a mirror's device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    Plain(Vec<(D, usize)>),
    Mirror,
    Error,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sync {
    Not,
    Copying,
    Copied,
}

/// A write on its way to the sides of a mirror.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    write: Write,
    /// What became of it at each side.
    done: [Option<bool>; 2],
    answered: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct MirrorDev {
    /// First logical extent.
    pub(crate) first: usize,
    /// The leg and the spare.
    pub(crate) sides: [Vec<(D, usize)>; 2],
    pub(crate) table: Table,
    pub(crate) sync: Vec<Sync>,
    pub(crate) broken: bool,
    pub(crate) pairs: Vec<Pair>,
    /// Waits for a copy to end, or (once a side has failed) for another table.
    pub(crate) held: Vec<Write>,
}

impl MirrorDev {
    pub(crate) fn covers(&self, extent: usize) -> bool {
        (self.first..self.first + self.sync.len()).contains(&extent)
    }

    pub(crate) fn is_of(&self, s: &Spared) -> bool {
        self.first == s.first && self.sides == s.sides
    }

    /// Whether something under it can still get to a place by its table.
    pub(crate) fn maps(&self, p: (D, usize)) -> bool {
        match &self.table {
            Table::Plain(at) => at.contains(&p),
            Table::Mirror => self.sides.iter().flatten().any(|x| *x == p),
            Table::Error => false,
        }
    }

    /// Where a read goes.
    pub(crate) fn reads(&self, extent: usize) -> Option<(D, usize)> {
        match &self.table {
            Table::Plain(at) => Some(at[extent - self.first]),
            Table::Mirror => Some(self.sides[0][extent - self.first]),
            Table::Error => None,
        }
    }

    fn seen(&self, wish: Option<&Spared>) -> Mirror {
        let bytes = |n: usize| pool::units::Bytes::new(n as u64);
        let copied = self.sync.iter().filter(|s| **s == Sync::Copied).count();
        let asked_for = wish.is_some_and(|s| self.is_of(s));
        match self.table {
            Table::Error => Mirror::Broken,
            Table::Mirror if self.broken => Mirror::Broken,
            Table::Mirror if asked_for && copied == self.sync.len() => Mirror::Whole,
            Table::Mirror | Table::Plain(_) => Mirror::Copying(bytes(copied), bytes(self.sync.len() + 1)),
        }
    }
}

impl World {
    pub(crate) fn see_mirror(&self, n: N, v: V, wish: Option<&Spared>) -> Mirror {
        self.nodes[n].kernel.mirrors.get(&v).map_or(Mirror::Gone, |m| m.seen(wish))
    }

    fn mirror(&mut self, n: N, v: V) -> &mut MirrorDev {
        self.nodes[n].kernel.mirrors.get_mut(&v).expect("the caller has seen it")
    }

    // ------------------------------------------------------------ data

    /// A write from the top to a mirrored extent.
    pub(crate) fn mirror_write(&mut self, w: Write) -> Checked {
        let m = self.mirror(w.node, w.v);
        let i = w.extent - m.first;
        match (&m.table, m.sync[i]) {
            (Table::Error, _) => {
                self.failed(&w);
                Ok(())
            }
            (Table::Plain(at), _) => {
                let (disk, at) = at[i];
                self.issue(Write { disk, at, ..w }, Via::Top)
            }
            (Table::Mirror, _) if m.broken => {
                m.held.push(w);
                self.cov.hit("mirror: held a write, a side has failed");
                Ok(())
            }
            (Table::Mirror, Sync::Copying) => {
                m.held.push(w);
                self.cov.hit("mirror: held a write to what is being copied");
                Ok(())
            }
            (Table::Mirror, Sync::Not) => {
                m.pairs.push(Pair { write: w, done: [None, Some(true)], answered: false });
                self.cov.hit("mirror: a write to what is not copied");
                self.issue_side(w, 0)
            }
            (Table::Mirror, Sync::Copied) => {
                m.pairs.push(Pair { write: w, done: [None, None], answered: false });
                self.cov.hit("mirror: a write to both sides");
                self.issue_side(w, 0)?;
                self.issue_side(w, 1)
            }
        }
    }

    fn issue_side(&mut self, w: Write, side: usize) -> Checked {
        let m = self.mirror(w.node, w.v);
        let (disk, at) = m.sides[side][w.extent - m.first];
        self.issue(Write { disk, at, ..w }, Via::Side(side))
    }

    /// One side has answered a write.
    pub(crate) fn side_done(&mut self, w: &Write, side: usize, ok: bool) -> Checked {
        let early = self.broken(Mutation::MirrorAnswersEarly);
        let m = self.mirror(w.node, w.v);
        let Some(i) = m.pairs.iter().position(|p| p.write.seq == w.seq) else { return Ok(()) };
        m.broken |= !ok;
        m.pairs[i].done[side] = Some(ok);
        if early && ok && !m.pairs[i].answered {
            m.pairs[i].answered = true;
            let w = m.pairs[i].write;
            self.acknowledge(w)?;
        }
        let m = self.mirror(w.node, w.v);
        let [Some(a), Some(b)] = m.pairs[i].done else { return Ok(()) };
        let p = m.pairs.remove(i);
        match (a && b, p.answered) {
            (true, false) => self.acknowledge(p.write),
            (false, false) => {
                self.mirror(w.node, w.v).held.push(p.write);
                self.cov.hit("mirror: a side failed a write");
                Ok(())
            }
            (_, true) => Ok(()),
        }
    }

    /// The mirror of `v` on `n` goes on with its copy.
    pub(crate) fn copy_step(&mut self, n: N, v: V) -> Checked {
        let m = self.mirror(n, v);
        let busy = |m: &MirrorDev, i| m.pairs.iter().any(|p| p.write.extent == m.first + i);
        let todo = (0..m.sync.len()).find(|i| m.sync[*i] == Sync::Not && !busy(m, *i));
        let Some(i) = todo.filter(|_| m.table == Table::Mirror && !m.broken) else { return Ok(()) };
        let (extent, from, to) = (m.first + i, m.sides[0][i], m.sides[1][i]);
        let host = self.host_of[from.0];
        let slice = self.nodes[host].kernel.slices.get(&(v, from.0, n));
        match slice {
            _ if host == n => {}
            Some(_) | None if !self.reaches(n, host) => return Ok(()),
            None => return Ok(()),
            Some(s) if s.fenced || s.table.get(&extent) != Some(&from.1) => {
                self.mirror(n, v).broken = true;
                self.cov.hit("mirror: the leg could not be read");
                return Ok(());
            }
            Some(_) => {}
        }
        self.mirror(n, v).sync[i] = Sync::Copying;
        let have = self.oracle.cell(from);
        let (spell, seq) = have.map_or((0, 0), |w| (w.spell, w.seq));
        let w = Write { v, node: n, spell, seq, io: 0, copy: true, extent, disk: to.0, at: to.1 };
        self.issue(w, Via::Copy)
    }

    /// A copy has come to its end.
    pub(crate) fn copy_done(&mut self, w: &Write, ok: bool) -> Checked {
        let m = self.mirror(w.node, w.v);
        m.sync[w.extent - m.first] = if ok { Sync::Copied } else { Sync::Not };
        m.broken |= !ok;
        if !ok {
            self.cov.hit("mirror: the spare could not be written");
            return Ok(());
        }
        let (go, stay): (Vec<_>, Vec<_>) =
            std::mem::take(&mut m.held).into_iter().partition(|x| x.extent == w.extent);
        m.held = stay;
        go.into_iter().try_for_each(|x| self.mirror_write(x))
    }

    // ------------------------------------------------------------ the plugin's steps

    pub(crate) fn make_mirror(&mut self, n: N, v: V, s: &Spared) {
        let rash = self.broken(Mutation::MirrorBeforeTop);
        let m = MirrorDev {
            first: s.first,
            sides: s.sides.clone(),
            table: if rash { Table::Mirror } else { Table::Plain(s.sides[0].clone()) },
            sync: vec![Sync::Not; s.sides[0].len()],
            broken: false,
            pairs: vec![],
            held: vec![],
        };
        self.nodes[n].kernel.mirrors.insert(v, m);
    }

    /// The plain device below the top becomes a mirror. The suspend waits for what is on its way.
    pub(crate) fn start_mirror(&mut self, n: N, v: V) -> bool {
        if !self.queue(n, v).is_empty() {
            return false;
        }
        self.cov.hit("step: mirror started");
        self.mirror(n, v).table = Table::Mirror;
        true
    }

    /// The mirror becomes a plain device on `keep`. The suspend waits for what is on its way; what waits for the path to
    /// the other side is failed first, unless that would fail more than the mirror's (`shared`).
    pub(crate) fn settle_mirror(
        &mut self,
        n: N,
        v: V,
        keep: Vec<(D, usize)>,
        shared: impl Fn(D) -> bool,
    ) -> Checked<bool> {
        let own: Vec<Queued> = self.queue(n, v).iter().filter(|q| q.via != Via::Top).copied().collect();
        let waits = |w: &World, q: &Queued| {
            w.is_worked_on(q) || keep.contains(&(q.write.disk, q.write.at)) || shared(q.write.disk)
        };
        if own.iter().any(|q| waits(self, q)) {
            return Ok(false);
        }
        let m = self.mirror(n, v);
        if matches!(m.table, Table::Plain(_)) && !self.queue(n, v).is_empty() {
            return Ok(false);
        }
        self.fail_queued(own)?;
        self.cov.hit("step: mirror replaced");
        let m = self.mirror(n, v);
        m.table = Table::Plain(keep);
        for w in std::mem::take(&mut m.held) {
            self.cov.hit("mirror: a held write went its way");
            self.mirror_write(w)?;
        }
        Ok(true)
    }

    /// The mirror fails everything from now on, what it holds too.
    pub(crate) fn fence_mirror(&mut self, n: N, v: V) -> Checked<bool> {
        let own: Vec<Queued> = self.queue(n, v).iter().filter(|q| q.via != Via::Top).copied().collect();
        if own.iter().any(|q| self.is_worked_on(q)) {
            return Ok(false);
        }
        self.fail_queued(own)?;
        let m = self.mirror(n, v);
        m.table = Table::Error;
        for w in std::mem::take(&mut m.held) {
            self.cov.hit("mirror: a held write was failed");
            self.failed(&w);
        }
        self.cov.hit("step: mirror fenced");
        Ok(true)
    }

    fn fail_queued(&mut self, own: Vec<Queued>) -> Checked {
        for q in own {
            self.queue(q.write.node, q.write.v).retain(|x| x.write.io != q.write.io);
            if q.sent {
                let host = self.host_of[q.write.disk];
                self.nodes[q.write.node].kernel.lost.insert(host);
                self.cov.hit("mirror: a write was given up while its path was down");
            }
            self.ended(&q, false)?;
        }
        Ok(())
    }

    /// Takes the mirror's device away from under nobody.
    pub(crate) fn remove_mirror(&mut self, n: N, v: V) -> Checked<bool> {
        if self.mirror(n, v).table == Table::Mirror {
            return self.fence_mirror(n, v);
        }
        self.cov.hit("step: mirror removed");
        self.nodes[n].kernel.mirrors.remove(&v);
        Ok(true)
    }
}
