//! The highest term this node has obeyed, kept where it survives the node: a controller of a lower one has been
//! replaced and does not know it.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use pool::ids::Term;

/// The file.
#[derive(Debug)]
pub struct TermFile {
    dir: PathBuf,
    seen: Term,
}

/// Why the term could not be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum TermError {
    /// The file system.
    #[error("{op} {path}: {source}")]
    Io {
        /// Which call.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file holds something else. Starting from zero would let a replaced controller back in.
    #[error(
        "{path} holds {text:?}, not a term; remove it only if no controller but the present one can be running"
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What it holds.
        text: String,
    },
}

const NAME: &str = "term";

impl TermFile {
    /// Reads the term kept in a directory, which is made when it is missing; zero when none was kept.
    pub fn open(dir: &Path) -> Result<Self, TermError> {
        let path = dir.join(NAME);
        let fail = |op, path: &Path| {
            let path = path.to_owned();
            move |source| TermError::Io { op, path, source }
        };
        fs::create_dir_all(dir).map_err(fail("make", dir))?;
        let seen = match fs::read(&path) {
            Ok(b) => {
                let text = String::from_utf8_lossy(&b);
                let n = text.trim().parse().map_err(|_| TermError::Unreadable {
                    path: path.clone(),
                    text: text.chars().take(64).collect(),
                })?;
                Term::new(n)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Term::ZERO,
            Err(e) => return Err(fail("read", &path)(e)),
        };
        Ok(Self { dir: dir.to_owned(), seen })
    }

    /// The highest term seen.
    pub fn seen(&self) -> Term {
        self.seen
    }

    /// Keeps a higher term. When this fails, the term must not be obeyed.
    pub fn keep(&mut self, term: Term) -> Result<(), TermError> {
        if term <= self.seen {
            return Ok(());
        }
        let (path, tmp) = (self.dir.join(NAME), self.dir.join("term.new"));
        let fail = |op, path: &Path| {
            let path = path.to_owned();
            move |source| TermError::Io { op, path, source }
        };
        let mut f = File::create(&tmp).map_err(fail("make", &tmp))?;
        f.write_all(format!("{term}\n").as_bytes()).map_err(fail("write", &tmp))?;
        f.sync_all().map_err(fail("sync", &tmp))?;
        fs::rename(&tmp, &path).map_err(fail("rename", &path))?;
        File::open(&self.dir).and_then(|d| d.sync_all()).map_err(fail("sync", &self.dir))?;
        self.seen = term;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_only_grows_and_survives() {
        let t = tempfile::tempdir().unwrap();
        let dir = t.path().join("state");
        let mut f = TermFile::open(&dir).unwrap();
        assert_eq!(f.seen(), Term::ZERO);
        f.keep(Term::new(7)).unwrap();
        f.keep(Term::new(3)).unwrap();
        assert_eq!(TermFile::open(&dir).unwrap().seen(), Term::new(7));
        for bad in ["", "x", "-1", "99999999999999999999999"] {
            fs::write(dir.join(NAME), bad).unwrap();
            assert!(matches!(TermFile::open(&dir), Err(TermError::Unreadable { .. })), "{bad:?}");
        }
    }
}
