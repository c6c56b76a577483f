//! What a usual disk of a pool can do, and over how many a volume has to lie that may ask for much at once.
//!
//! Invariants: answers are finite whatever limits say; a width is at least one and at most the number of disks. Must not
//! know: where there is room.

use crate::device::DeviceClass;

/// The share of what one disk can do that a volume may ask of it at its peak. What is given out of a disk at all is 0.8 of
/// it (see [`crate::USABLE`]), so five such peaks at once do no harm.
pub const MOST_OF_ONE: f64 = 0.15;

/// A usual disk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Strength {
    /// What most disks are.
    pub class: DeviceClass,
    /// The median of what disks of this class can do: reference I/Os a second.
    pub capability: f64,
    /// How many disks of this class there are.
    pub disks: usize,
}

impl Strength {
    /// Of a pool's disks: their classes, and reference I/Os a second. The commonest class counts, of several the first.
    #[must_use]
    pub fn median(disks: impl IntoIterator<Item = (DeviceClass, f64)>) -> Option<Self> {
        let mut by_class: [Vec<f64>; 4] = Default::default();
        let mut classes = [None; 4];
        for (class, capability) in disks {
            let i = usize::from(class.code());
            classes[i] = Some(class);
            by_class[i].push(capability);
        }
        // `max_by_key` takes the last of equals.
        let (class, mut all) = classes.into_iter().zip(by_class).rev().max_by_key(|(_, all)| all.len())?;
        all.sort_unstable_by(f64::total_cmp);
        let capability = *all.get(all.len() / 2)?;
        Some(Self { class: class?, capability, disks: all.len() })
    }

    /// How many such disks' whole time it takes to do `iops` I/Os and `bytes_s` bytes a second, all of them writes; `None`
    /// if neither is limited. One that is not given follows from the other: I/Os of 4 KiB, or of 128 KiB.
    #[must_use]
    pub fn of_one(&self, iops: Option<u64>, bytes_s: Option<u64>) -> Option<f64> {
        const SMALL: f64 = 4096.0;
        const LARGE: f64 = 131_072.0;
        let [iops, bytes] = [iops, bytes_s].map(|n| n.map(|n| n as f64));
        let (iops, bytes) = match (iops, bytes) {
            (None, None) => return None,
            (Some(iops), None) => (iops, iops * SMALL),
            (None, Some(bytes)) => (bytes / LARGE, bytes),
            (Some(iops), Some(bytes)) => (iops, bytes),
        };
        Some(self.class.most(iops, bytes) / self.capability.max(1.0))
    }

    /// Over how many disks to lie, so that what is [of one](Self::of_one) takes no more than [`MOST_OF_ONE`] of each.
    #[must_use]
    pub fn width(&self, of_one: f64) -> usize {
        // `as` saturates.
        ((of_one / MOST_OF_ONE).ceil() as usize).clamp(1, self.disks.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commonest_class_counts() {
        use DeviceClass::{Hdd, Nvme, Ssd};
        assert_eq!(Strength::median([]), None);
        let s = Strength::median([(Hdd, 150.0), (Nvme, 1e5), (Nvme, 3e5), (Nvme, 2e5)]).unwrap();
        assert_eq!(s, Strength { class: Nvme, capability: 2e5, disks: 3 });
        assert_eq!(Strength::median([(Hdd, 1.0), (Ssd, 2.0)]).unwrap().class, Ssd, "the faster of equals");
    }

    #[test]
    fn as_wide_as_its_peak_asks_for() {
        let s = Strength { class: DeviceClass::Ssd, capability: 10_000.0, disks: 8 };
        assert_eq!(s.of_one(None, None), None);
        // 1,000 writes of 4 KiB: 1.5 each and a quarter for the bytes.
        assert!((s.of_one(Some(1000), None).unwrap() - 0.175).abs() < 1e-9);
        assert_eq!(s.width(0.175), 2);
        assert_eq!(s.width(0.15), 1);
        assert_eq!(s.width(0.0), 1);
        assert_eq!(s.width(f64::INFINITY), 8);
        let of = |iops, bytes| s.of_one(iops, bytes).unwrap();
        assert!(of(Some(1000), Some(1 << 30)) > of(Some(1000), Some(1 << 20)));
        assert!(of(None, Some(u64::MAX)).is_finite() && of(Some(u64::MAX), Some(u64::MAX)).is_finite());
        assert_eq!(Strength { disks: 0, ..s }.width(9.0), 1);
        // What it does on as many disks as it says is never more of one than is allowed.
        for n in 1..200 {
            let share = f64::from(n) * 0.013;
            let width = s.width(share);
            assert!(width == 8 || share / width as f64 <= MOST_OF_ONE + 1e-12, "{share} over {width}");
            assert!(width == 1 || share / (width - 1) as f64 > MOST_OF_ONE, "{share} over {width}: too wide");
        }
    }
}
