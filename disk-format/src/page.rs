//! The run table as pages of records. A record stays in the page it was put in, in any order: an update of one
//! volume changes the pages that hold its records and no other.
//!
//! Invariants: a page's records fit in it; a record stands in one page only; pages in use are a prefix.

use std::collections::BTreeMap;

use pool::ids::DiskId;

use crate::{
    layout::{self, BLOCK, PAGE_HEAD, PAGES},
    model::Label,
    record::{self, Key, Record, get, put},
};

/// Bytes for records in one page.
const ROOM: usize = BLOCK - PAGE_HEAD;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Page {
    records: BTreeMap<Key, Vec<u8>>,
    used: usize,
}

/// The table of one label, page by page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Image {
    pages: Vec<Page>,
    places: BTreeMap<Key, usize>,
}

/// The table has no page left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the run table is full: its {PAGES} pages hold {bytes} bytes of records and {more} more do not fit")]
pub(crate) struct Full {
    pub(crate) bytes: usize,
    pub(crate) more: usize,
}

/// The records that a label's table consists of.
fn records_of(label: &Label) -> BTreeMap<Key, Vec<u8>> {
    let mut all = BTreeMap::new();
    for (v, e) in &label.volumes {
        all.insert(Key::Volume(*v), record::encode_volume(*v, &e.summary));
        all.extend(e.runs.values().map(|r| (Key::Run(r.first), record::encode_run(*v, r))));
    }
    all
}

impl Image {
    /// Pages in use.
    pub(crate) fn len(&self) -> usize {
        self.pages.len()
    }

    /// The table of `label` with as little as possible changed against this one, and the pages that changed.
    /// When free space is too scattered for a record, the table is packed anew.
    pub(crate) fn changed_to(&self, label: &Label) -> Result<(Image, Vec<usize>), Full> {
        let wanted = records_of(label);
        let next = match self.patched(&wanted) {
            Ok(next) => next,
            Err(Full { .. }) => Image::default().patched(&wanted)?,
        };
        let dirty = (0..next.len()).filter(|i| self.pages.get(*i) != next.pages.get(*i)).collect();
        Ok((next, dirty))
    }

    fn patched(&self, wanted: &BTreeMap<Key, Vec<u8>>) -> Result<Image, Full> {
        let mut next = self.clone();
        let gone = |k: &Key| wanted.get(k).map(Vec::len) != self.record(k).map(Vec::len);
        for k in self.places.keys().filter(|k| gone(k)) {
            next.remove(k);
        }
        // A page that had no room for a record of some length has none for the next of at least that length.
        let mut from: BTreeMap<usize, usize> = BTreeMap::new();
        for (k, bytes) in wanted {
            if let Some(at) = next.places.get(k).copied() {
                next.pages[at].records.insert(*k, bytes.clone());
                continue;
            }
            let start = from.get(&bytes.len()).copied().unwrap_or(0);
            let at = next.page_with_room(start, bytes.len())?;
            from.insert(bytes.len(), at);
            next.pages[at].used += bytes.len();
            next.pages[at].records.insert(*k, bytes.clone());
            next.places.insert(*k, at);
        }
        while next.pages.last().is_some_and(|p| p.records.is_empty()) {
            next.pages.pop();
        }
        Ok(next)
    }

    fn record(&self, k: &Key) -> Option<&Vec<u8>> {
        self.pages.get(*self.places.get(k)?)?.records.get(k)
    }

    fn remove(&mut self, k: &Key) {
        if let Some(at) = self.places.remove(k)
            && let Some(bytes) = self.pages[at].records.remove(k)
        {
            self.pages[at].used -= bytes.len();
        }
    }

    fn page_with_room(&mut self, start: usize, len: usize) -> Result<usize, Full> {
        if let Some(i) = (start..self.pages.len()).find(|i| self.pages[*i].used + len <= ROOM) {
            return Ok(i);
        }
        if self.pages.len() == PAGES {
            return Err(Full { bytes: self.pages.iter().map(|p| p.used).sum(), more: len });
        }
        self.pages.push(Page::default());
        Ok(self.pages.len() - 1)
    }

    /// Page `index` as it stands on disk.
    pub(crate) fn encode(&self, index: usize) -> Vec<u8> {
        use layout::page as f;
        let p = &self.pages[index];
        let mut b = vec![0; BLOCK];
        put(&mut b, f::MAGIC, &layout::PAGE_MAGIC);
        put(&mut b, f::INDEX, &(index as u32).to_le_bytes());
        put(&mut b, f::USED, &(p.used as u16).to_le_bytes());
        put(&mut b, f::COUNT, &(p.records.len() as u16).to_le_bytes());
        let mut at = PAGE_HEAD;
        for r in p.records.values() {
            b[at..at + r.len()].copy_from_slice(r);
            at += r.len();
        }
        b
    }

    /// Takes the page `index` off the disk, whose checksum has been found right, and answers its records.
    pub(crate) fn push_decoded(&mut self, index: usize, b: &[u8]) -> Result<Vec<Record>, &'static str> {
        use layout::page as f;
        if b.len() != BLOCK || b[..4] != layout::PAGE_MAGIC || get(b, f::INDEX) != index as u64 {
            return Err("a page is not what its place says");
        }
        let used = get(b, f::USED) as usize;
        let mut rest = b.get(PAGE_HEAD..PAGE_HEAD + used).ok_or("a page claims more than it holds")?;
        let mut page = Page { records: BTreeMap::new(), used };
        let mut records = Vec::new();
        while !rest.is_empty() {
            let (r, bytes) = record::take(&mut rest)?;
            if self.places.insert(r.key(), index).is_some() {
                return Err("two records have the same key");
            }
            page.records.insert(r.key(), bytes.to_vec());
            records.push(r);
        }
        if records.len() as u64 != get(b, f::COUNT) {
            return Err("a page holds another number of records than it says");
        }
        self.pages.push(page);
        Ok(records)
    }
}

/// A page's checksum: over the disk's id and the page's place too, so that no other disk's page is taken for it.
pub(crate) fn crc(disk: DiskId, index: usize, page: &[u8]) -> u32 {
    let seed = crc32c::crc32c(&disk.to_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(seed, &(index as u32).to_le_bytes()), page)
}
