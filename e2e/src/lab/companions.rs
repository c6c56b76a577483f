//! Processes of the host that belong to a lab beside its nodes, each with a name and a log: started here, found again by
//! whoever opens the lab, and ended with it.
//!
//! Invariant: `processes.json` in their folder names every one that was started and not yet ended here. Must not know: what
//! they are.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};

use super::{
    process::{Identity, Lifetime, start},
    state,
};

/// The folder of a lab's companions.
#[must_use]
pub fn dir(lab: &Path) -> PathBuf {
    lab.join("companions")
}

/// Those of one folder.
#[derive(Debug)]
pub struct Companions {
    dir: PathBuf,
    lifetime: Lifetime,
    running: BTreeMap<String, Identity>,
    /// Those that this process started, to be reaped.
    children: BTreeMap<String, Child>,
}

impl Companions {
    /// Those of a folder, which is made if it is not there.
    ///
    /// # Errors
    /// It cannot be made or read.
    pub fn open(dir: &Path, lifetime: Lifetime) -> Result<Self> {
        state::create_private_dir(&dir.join("log"))?;
        let running = state::load(&dir.join("processes.json"))?.unwrap_or_default();
        Ok(Self { dir: dir.to_owned(), lifetime, running, children: BTreeMap::new() })
    }

    /// Their folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The log of one.
    #[must_use]
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.join("log").join(format!("{name}.log"))
    }

    /// Whether it runs.
    #[must_use]
    pub fn alive(&self, name: &str) -> bool {
        self.running.get(name).is_some_and(|p| p.alive())
    }

    /// Names and process ids of those that run.
    #[must_use]
    pub fn list(&self) -> Vec<(String, u32)> {
        self.running.iter().filter(|(_, p)| p.alive()).map(|(name, p)| (name.clone(), p.pid)).collect()
    }

    /// Starts one, unless it runs.
    ///
    /// # Errors
    /// It cannot be started, or ends at once.
    pub fn start(&mut self, name: &str, mut command: Command) -> Result<()> {
        if self.alive(name) {
            return Ok(());
        }
        self.kill(name)?;
        let path = self.log(name);
        let log = File::options().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("open {}", path.display()))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = start(command, self.lifetime)?;
        let identity = Identity::of(child.id());
        self.children.insert(name.to_owned(), child);
        let identity = identity.with_context(|| format!("{name} ended at once: {}", self.tail(name)))?;
        self.running.insert(name.to_owned(), identity);
        self.save()
    }

    fn save(&self) -> Result<()> {
        state::save(&self.dir.join("processes.json"), &self.running)
    }

    /// Ends one with SIGKILL, if it runs.
    ///
    /// # Errors
    /// It does not go.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        if let Some(p) = self.running.get(name) {
            p.kill().with_context(|| format!("end {name}"))?;
        }
        if let Some(mut child) = self.children.remove(name) {
            child.kill().and_then(|()| child.wait()).with_context(|| format!("reap {name}"))?;
        }
        if self.running.remove(name).is_some() { self.save() } else { Ok(()) }
    }

    /// Ends all.
    ///
    /// # Errors
    /// One does not go; the others are ended nevertheless.
    pub fn kill_all(&mut self) -> Result<()> {
        let names: Vec<String> = self.running.keys().chain(self.children.keys()).cloned().collect();
        names.iter().map(|name| self.kill(name)).fold(Ok(()), Result::and)
    }

    /// The end of a log.
    #[must_use]
    pub fn tail(&self, name: &str) -> String {
        const LINES: usize = 12;
        let bytes = fs::read(self.log(name)).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_companion_is_found_again_and_ended() {
        let dir = tempfile::tempdir().unwrap();
        let mut ours = Companions::open(dir.path(), Lifetime::Owned).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo here; exec sleep 60"]);
        ours.start("sleeper", command).unwrap();
        let found = Companions::open(dir.path(), Lifetime::Owned).unwrap();
        assert!(found.alive("sleeper") && found.list().len() == 1);
        crate::wait::until("its word", std::time::Duration::from_secs(20), || {
            Ok((found.tail("sleeper") == "here").then_some(()))
        })
        .unwrap();
        ours.kill_all().unwrap();
        assert!(!found.alive("sleeper"));
        assert!(Companions::open(dir.path(), Lifetime::Owned).unwrap().list().is_empty());
    }
}
