//! How a volume wants to lie: its layout, locality, sharing and provisioning.
//!
//! Invariants: values of these types may name what the product cannot do yet (mirrors, thin volumes); only
//! [`params`] decides what is accepted from people. Must not know: disks, where anything lies.

pub mod known;
pub mod params;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::units::{Extents, Sectors};

/// How a volume's extents are put together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Layout {
    /// One extent after the other.
    #[default]
    Linear,
    /// Interleaved over several disks.
    Striped {
        /// How many disks at a time.
        stripes: u32,
        /// How much goes to one before the next has its turn.
        chunk: Sectors,
    },
    /// Several copies on distinct disks.
    Mirrored {
        /// How many.
        replicas: u32,
    },
    /// One disk, all of it, with nobody else on it.
    WholeDisk,
}

impl Layout {
    /// The size that a volume of at least `size` gets: striped ones are whole rows. `None` on overflow.
    pub fn round_up(self, size: Extents) -> Option<Extents> {
        match self {
            Layout::Linear | Layout::Mirrored { .. } | Layout::WholeDisk => Some(size),
            Layout::Striped { stripes, .. } => {
                size.get().checked_next_multiple_of(u64::from(stripes.max(1))).map(Extents::new)
            }
        }
    }

    /// Its name in parameters.
    pub const fn as_str(self) -> &'static str {
        match self {
            Layout::Linear => "linear",
            Layout::Striped { .. } => "striped",
            Layout::Mirrored { .. } => "mirrored",
            Layout::WholeDisk => "wholeDisk",
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An enum whose values have one spelling in parameters, records and messages.
macro_rules! spelled {
    ($(#[$m:meta])* $t:ident { $($(#[$vm:meta])* $v:ident = $s:literal),+ $(,)? }) => {
        $(#[$m])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $t { $($(#[$vm])* #[serde(rename = $s)] $v),+ }

        impl $t {
            /// Every spelling, in order.
            pub const SPELLINGS: &'static [&'static str] = &[$($s),+];

            /// Its spelling.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$v => $s),+ }
            }

            /// The value spelled so.
            pub fn parse(s: &str) -> Option<Self> {
                match s { $($s => Some(Self::$v),)+ _ => None }
            }
        }

        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

spelled!(
    /// How much a volume holds to its consumer's node.
    Locality {
        /// There first, the rest borrowed.
        #[default]
        Prefer = "prefer",
        /// There or not at all.
        Require = "require",
        /// Anywhere, by free room.
        None = "none",
    }
);

spelled!(
    /// Who may write.
    Sharing {
        /// One node at a time; two while the volume moves, one of which is held back.
        #[default]
        Migrate = "migrate",
        /// Several at once, for cluster file systems; linear layout only.
        MultiWriter = "multiWriter",
    }
);

spelled!(
    /// When extents are taken.
    Provisioning {
        /// All at creation.
        #[default]
        Thick = "thick",
        /// As they are written.
        Thin = "thin",
    }
);

spelled!(
    /// The file system of a mounted volume.
    FsType {
        /// ext4.
        #[default]
        Ext4 = "ext4",
        /// XFS.
        Xfs = "xfs",
    }
);
