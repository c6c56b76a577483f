//! All imported namespaces in one walk: for a caller with hundreds of them, to whom one walk for each would cost
//! the square.

use pool::{ids::SliceId, units::Sectors};

use super::{BlockNamespace, Nvme, NvmeError, observe::read_namespace};
use crate::sysfs;

/// A namespace with its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedNamespace {
    /// Its uuid.
    pub uuid: SliceId,
    /// Its block device.
    pub block: BlockNamespace,
    /// Its size.
    pub size: Sectors,
}

impl Nvme {
    /// Every namespace that has a uuid and a visible block device. What vanishes while it is read is left out.
    pub fn namespaces(&self) -> Result<Vec<ListedNamespace>, NvmeError> {
        let dir = self.sys.join("block");
        let mut out = Vec::new();
        for name in sysfs::names(&dir)?.into_iter().filter(|n| n.starts_with("nvme")) {
            let d = dir.join(&name);
            let Some(uuid) = sysfs::read_opt(&d.join("uuid"))?.and_then(|u| u.parse().ok()) else { continue };
            let read = || Ok((read_namespace(&d, &name)?, sysfs::read_num(&d.join("size"))?));
            match read() {
                Ok((Some(block), size)) => {
                    out.push(ListedNamespace { uuid, block, size: Sectors::new(size) })
                }
                Ok((None, _)) => {}
                Err(e) if sysfs::is_gone(&e) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(out)
    }

    /// Resets a controller: its connections are made anew, what is queued in it fails to the device above. For one
    /// that says it is live and fails every request: a peer that closes the connections while they are being made
    /// leaves it so (seen on 6.1: error recovery is not taken up from the state `connecting`).
    pub fn reset_controller(&self, name: &str) -> Result<(), NvmeError> {
        Ok(sysfs::write(&self.controller_dir(name).join("reset_controller"), "1")?)
    }

    /// Whether something holds a block device open from above (`holders` of a namespace).
    pub fn is_held(&self, block: &str) -> Result<bool, NvmeError> {
        Ok(!sysfs::names(&self.sys.join("block").join(block).join("holders"))?.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn one_walk_finds_them_all() {
        let t = tempfile::tempdir().unwrap();
        let put = |p: &str, v: &str| {
            let p = t.path().join(p);
            fs::create_dir_all(p.parent().unwrap()).unwrap();
            fs::write(p, v).unwrap();
        };
        for (name, hidden, n) in
            [("nvme0n1", "0", 1), ("nvme0c0n1", "1", 1), ("nvme0n2", "0", 2), ("vda", "0", 3)]
        {
            put(&format!("block/{name}/uuid"), &format!("{}\n", SliceId::from_u128(n)));
            put(&format!("block/{name}/hidden"), hidden);
            put(&format!("block/{name}/dev"), "259:1\n");
            put(&format!("block/{name}/nsid"), "1\n");
            put(&format!("block/{name}/size"), "2048\n");
            put(&format!("block/{name}/device/subsysnqn"), "nqn.s");
        }
        put("block/nvme0n2/holders/dm-0", "");
        let nvme = Nvme::at(t.path(), "/dev/null");
        let found: Vec<_> =
            nvme.namespaces().unwrap().into_iter().map(|n| (n.block.name, n.uuid, n.size)).collect();
        let want = |name: &str, n| (name.to_owned(), SliceId::from_u128(n), Sectors::new(2048));
        assert_eq!(found, [want("nvme0n1", 1), want("nvme0n2", 2)]);
        assert!(nvme.is_held("nvme0n2").unwrap());
        assert!(!nvme.is_held("nvme0n1").unwrap());
    }
}
