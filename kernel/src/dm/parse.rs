//! Bytes of the kernel's answers -> values. Every offset comes from the kernel and is checked all the same.

use super::{
    abi::SPEC,
    control::{ListedDevice, RawTarget, TargetVersion},
};
use crate::DevNo;

type Parsed<T> = Result<T, String>;

fn u32_at(b: &[u8], at: usize) -> Parsed<u32> {
    let s = b.get(at..at + 4).ok_or_else(|| format!("ends before byte {}", at + 4))?;
    Ok(u32::from_ne_bytes(s.try_into().expect("four bytes")))
}

fn u64_at(b: &[u8], at: usize) -> Parsed<u64> {
    let s = b.get(at..at + 8).ok_or_else(|| format!("ends before byte {}", at + 8))?;
    Ok(u64::from_ne_bytes(s.try_into().expect("eight bytes")))
}

/// A zero-terminated text.
pub(crate) fn c_string(b: &[u8]) -> Parsed<String> {
    let end = b.iter().position(|&c| c == 0).ok_or("a text has no end")?;
    String::from_utf8(b[..end].to_vec()).map_err(|_| "a text is not UTF-8".to_owned())
}

fn text_at(b: &[u8], at: usize) -> Parsed<String> {
    c_string(b.get(at..).ok_or_else(|| format!("ends before byte {at}"))?)
}

/// struct dm_name_list, each entry with its event number behind the name (interface 4.37 on), and flags and UUID
/// behind that (4.45 on; zero before). The second value says whether the kernel told about the UUID.
pub(crate) fn list(b: &[u8]) -> Parsed<Vec<(ListedDevice, bool)>> {
    const HAS_UUID: u32 = 1;
    let mut out = Vec::new();
    let mut at = 0;
    // An empty list is one entry with device number 0.
    if b.len() < 12 || u64_at(b, 0)? == 0 {
        return Ok(out);
    }
    loop {
        let (dev, next) = (u64_at(b, at)?, u32_at(b, at + 8)? as usize);
        let name = text_at(b, at + 12)?;
        let tail = (at + 12 + name.len() + 1).next_multiple_of(8);
        // The last entry of an old kernel ends behind the event number.
        let (event_nr, flags) = (u32_at(b, tail)?, u32_at(b, tail + 4).unwrap_or(0));
        let uuid = if flags & HAS_UUID != 0 { Some(text_at(b, tail + 8)?) } else { None };
        out.push((ListedDevice { name, uuid, dev: DevNo::from_raw(dev), event_nr }, flags != 0));
        if next == 0 {
            return Ok(out);
        }
        at += next;
    }
}

/// struct dm_target_versions.
pub(crate) fn versions(b: &[u8]) -> Parsed<Vec<TargetVersion>> {
    let mut out = Vec::new();
    let mut at = 0;
    if b.len() < 16 {
        return Ok(out);
    }
    loop {
        let next = u32_at(b, at)? as usize;
        let version = [u32_at(b, at + 4)?, u32_at(b, at + 8)?, u32_at(b, at + 12)?];
        out.push(TargetVersion { name: text_at(b, at + 16)?, version });
        if next == 0 {
            return Ok(out);
        }
        at += next;
    }
}

/// struct dm_target_spec, `next` counted from the first one.
pub(crate) fn targets(b: &[u8], count: u32) -> Parsed<Vec<RawTarget>> {
    let mut out = Vec::new();
    let mut at = 0;
    for _ in 0..count {
        let kind = c_string(b.get(at + 24..at + 40).ok_or("ends inside a target")?)?;
        out.push(RawTarget {
            start: u64_at(b, at)?,
            len: u64_at(b, at + 8)?,
            kind,
            params: text_at(b, at + SPEC)?,
        });
        at = u32_at(b, at + 20)? as usize;
    }
    Ok(out)
}

/// struct dm_target_deps.
pub(crate) fn deps(b: &[u8]) -> Parsed<Vec<DevNo>> {
    let count = u32_at(b, 0)? as usize;
    (0..count).map(|i| u64_at(b, 8 + 8 * i).map(DevNo::from_raw)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name_entry(dev: u64, next: u32, name: &str, event: u32, uuid: Option<&str>) -> Vec<u8> {
        let mut b = dev.to_ne_bytes().to_vec();
        b.extend(next.to_ne_bytes());
        b.extend(name.as_bytes());
        b.push(0);
        b.resize(b.len().next_multiple_of(8), 0);
        b.extend(event.to_ne_bytes());
        b.extend(u32::from(uuid.is_some()).to_ne_bytes());
        if let Some(u) = uuid {
            b.extend(u.as_bytes());
            b.push(0);
        }
        b.resize(b.len().next_multiple_of(8), 0);
        b
    }

    #[test]
    fn a_list_of_two_devices() {
        let first = name_entry(DevNo::new(253, 0).to_raw(), 0, "a", 1, Some("WEIR-x"));
        let mut b = name_entry(DevNo::new(253, 0).to_raw(), first.len() as u32, "a", 1, Some("WEIR-x"));
        b.extend(name_entry(DevNo::new(253, 300).to_raw(), 0, "second", 7, None));
        let l = list(&b).unwrap();
        assert_eq!(l.len(), 2);
        assert_eq!((l[0].0.uuid.as_deref(), l[0].1), (Some("WEIR-x"), true));
        assert_eq!((l[1].0.dev, l[1].0.event_nr, l[1].1), (DevNo::new(253, 300), 7, false));
        assert_eq!(list(&[0; 64]), Ok(vec![]));
    }

    #[test]
    fn what_is_cut_off_is_refused() {
        let b = name_entry(DevNo::new(253, 0).to_raw(), 4096, "a", 1, Some("WEIR-x"));
        assert!(list(&b).is_err());
        assert!(targets(&[0; 40], 1).is_err());
        assert!(deps(&[9, 0, 0, 0, 0, 0, 0, 0]).is_err());
        assert!(c_string(b"no end").is_err());
    }

    #[test]
    fn targets_follow_next_from_the_first() {
        let mut b = vec![0u8; 96];
        b[8..16].copy_from_slice(&100u64.to_ne_bytes());
        b[20..24].copy_from_slice(&48u32.to_ne_bytes());
        b[24..29].copy_from_slice(b"error");
        b[48..56].copy_from_slice(&100u64.to_ne_bytes());
        b[56..64].copy_from_slice(&28u64.to_ne_bytes());
        b[68..72].copy_from_slice(&96u32.to_ne_bytes());
        b[72..78].copy_from_slice(b"linear");
        b[88..95].copy_from_slice(b"8:0 128");
        let t = targets(&b, 2).unwrap();
        assert_eq!((t[0].kind.as_str(), t[0].len), ("error", 100));
        assert_eq!((t[1].start, t[1].params.as_str()), (100, "8:0 128"));
    }
}
