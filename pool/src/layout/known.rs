//! Which parameters there are and what may stand in them, for messages and for docs/parameters.md.
//!
//! Invariant: [`super::params`] takes what stands here and nothing else; the tests hold the two against each other.

use super::{
    FsType, Layout, Locality, Provisioning, Sharing,
    params::{DEFAULT_CHUNK, DEFAULT_LENDERS, LAYOUTS, MAX_CHUNK, MAX_LENDERS, MAX_STRIPES, MIN_CHUNK},
};
use crate::units::Bytes;

/// A parameter of a StorageClass or of a VolumeAttributesClass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its key, and others for the same.
    pub keys: &'static [&'static str],
    /// What may stand there.
    pub allowed: Allowed,
    /// What holds where it is left out.
    pub unsaid: Unsaid,
    /// Values of `layout` that it needs beside it; any if there are none.
    pub layouts: &'static [&'static str],
    /// What it means, value by value where there are several.
    pub means: &'static str,
    /// Whether it may change while the volume lives.
    pub mutable: bool,
}

/// What may stand in a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// One of these words.
    Words(&'static [&'static str]),
    /// A whole number from the one to the other.
    Numbers(u32, u32),
    /// A power of two from the one to the other.
    PowersOfTwo(Bytes, Bytes),
    /// What these words say, such as the example.
    Such {
        /// For people.
        says: &'static str,
        /// One of them.
        example: &'static str,
    },
}

/// What holds where a parameter is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unsaid {
    /// The same as with this word.
    Word(&'static str),
    /// The same as with this number.
    Number(u32),
    /// The same as with so many bytes.
    Bytes(Bytes),
    /// What these words say.
    Says(&'static str),
}

impl Parameter {
    const fn new(
        keys: &'static [&'static str],
        allowed: Allowed,
        unsaid: Unsaid,
        means: &'static str,
    ) -> Self {
        Self { keys, allowed, unsaid, layouts: &[], means, mutable: false }
    }
}

/// All parameters, those of volumes first, those that may change last.
#[must_use]
pub fn parameters() -> Vec<Parameter> {
    use Allowed::{Numbers, PowersOfTwo, Such, Words};
    let none = Unsaid::Says("no limit");
    vec![
        Parameter::new(
            &["pool"],
            Such { says: "a pool's name", example: "default" },
            Unsaid::Says("the only pool, if there is one"),
            "where the extents come from",
        ),
        Parameter::new(
            &["layout"],
            Words(LAYOUTS),
            Unsaid::Word(Layout::Linear.as_str()),
            "one extent after the other; interleaved over distinct disks; either, by the volume's limits; one disk, all of it",
        ),
        Parameter {
            layouts: &["striped"],
            ..Parameter::new(
                &["stripes"],
                Numbers(2, MAX_STRIPES),
                Unsaid::Says("none: it is needed"),
                "how many disks a stripe covers, on distinct nodes while there are enough",
            )
        },
        Parameter {
            layouts: &["striped", "auto"],
            ..Parameter::new(
                &["stripeChunk"],
                PowersOfTwo(MIN_CHUNK, MAX_CHUNK),
                Unsaid::Bytes(DEFAULT_CHUNK),
                "how much goes to one disk before the next has its turn",
            )
        },
        Parameter::new(
            &["locality"],
            Words(Locality::SPELLINGS),
            Unsaid::Word(Locality::Prefer.as_str()),
            "extents beside the consumer first; nowhere else; anywhere",
        ),
        Parameter::new(
            &["maxLenders"],
            Numbers(1, MAX_LENDERS),
            Unsaid::Number(DEFAULT_LENDERS),
            "nodes that the volume may borrow from",
        ),
        Parameter::new(
            &["sharing"],
            Words(Sharing::SPELLINGS),
            Unsaid::Word(Sharing::Migrate.as_str()),
            "a second node is admitted behind a guard for a live migration; any number of nodes write (linear raw block only)",
        ),
        Parameter::new(
            &["fsType", "csi.storage.k8s.io/fstype"],
            Words(FsType::SPELLINGS),
            Unsaid::Word(FsType::Ext4.as_str()),
            "the file system of mounted volumes",
        ),
        Parameter::new(
            &["provisioning"],
            Words(&["thick"]),
            Unsaid::Word(Provisioning::Thick.as_str()),
            "extents are taken when the volume is made",
        ),
        Parameter::new(&["encryption"], Words(&["none"]), Unsaid::Word("none"), "not offered yet"),
        Parameter {
            mutable: true,
            ..Parameter::new(
                &["iops"],
                Such { says: "a whole number above 0", example: "2000" },
                none.clone(),
                "reads a second, and writes a second, at most",
            )
        },
        Parameter {
            mutable: true,
            ..Parameter::new(
                &["throughput"],
                Such { says: "bytes (`100Mi`)", example: "100Mi" },
                none,
                "bytes read a second, and bytes written a second, at most",
            )
        },
    ]
}

/// The keys, for messages: of all parameters, or of those that may change.
pub(super) fn keys(mutable_only: bool) -> String {
    let all = parameters().into_iter().filter(|p| p.mutable || !mutable_only);
    all.flat_map(|p| p.keys).copied().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::{
        super::params::{Asked, Limits, VolumeParams},
        *,
    };

    /// What must stand beside a parameter.
    fn beside(p: &Parameter) -> Vec<(String, String)> {
        let mut all = vec![];
        if let Some(layout) = p.layouts.first() {
            all.push(("layout".to_owned(), (*layout).to_owned()));
        }
        if p.layouts.first() == Some(&"striped") && p.keys != ["stripes"] {
            all.push(("stripes".to_owned(), "2".to_owned()));
        }
        all
    }

    /// Whether the parser has nothing against a value, which is not to say that the volume is complete.
    fn taken(p: &Parameter, key: &str, value: &str) -> bool {
        let all = beside(p).into_iter().chain([(key.to_owned(), value.to_owned())]);
        match VolumeParams::parse(all) {
            Ok(_) => true,
            Err(e) => e.0.iter().all(|problem| problem.key != key),
        }
    }

    /// Values that are to be taken, and values that are not.
    fn samples(allowed: &Allowed) -> (Vec<String>, Vec<String>) {
        let words = |w: &[&str]| w.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let text = |b: u64| b.to_string();
        let (good, mut bad) = match allowed {
            Allowed::Words(w) => (words(w), vec![w[0].to_uppercase()]),
            Allowed::Numbers(min, max) => (
                [*min, *max].map(|n| n.to_string()).to_vec(),
                [min - 1, max + 1].map(|n| n.to_string()).to_vec(),
            ),
            Allowed::PowersOfTwo(min, max) => {
                let (min, max) = (min.get(), max.get());
                ([min, max].map(text).to_vec(), [min / 2, max * 2, min + 1, min * 3].map(text).to_vec())
            }
            Allowed::Such { example, .. } => (words(&[*example]), vec![]),
        };
        bad.extend(words(&["", "?", "-1"]));
        (good, bad)
    }

    #[test]
    fn the_parser_takes_what_is_listed_and_nothing_else() {
        for p in parameters() {
            let (good, bad) = samples(&p.allowed);
            for key in p.keys {
                for value in &good {
                    assert!(taken(&p, key, value), "{key}: {value}");
                }
                for value in &bad {
                    assert!(!taken(&p, key, value), "{key}: {value:?}");
                }
            }
        }
    }

    #[test]
    fn what_holds_unsaid_is_what_is_listed() {
        let parse = |kv: Vec<(String, String)>| VolumeParams::parse(kv).expect("valid");
        for p in parameters() {
            let value = match &p.unsaid {
                Unsaid::Word(w) => (*w).to_owned(),
                Unsaid::Number(n) => n.to_string(),
                Unsaid::Bytes(b) => b.get().to_string(),
                Unsaid::Says(_) => continue,
            };
            let said = [beside(&p), vec![(p.keys[0].to_owned(), value.clone())]].concat();
            let (said, unsaid) = (parse(said), parse(beside(&p)));
            // A file system that nobody named is left to the capability first.
            let named = |a: Asked| {
                let fs_type = Some(a.params.fs_type.unwrap_or_default());
                Asked { params: VolumeParams { fs_type, ..a.params.clone() }, ..a }
            };
            assert_eq!(named(said), named(unsaid), "{}: {value}", p.keys[0]);
        }
    }

    #[test]
    fn what_needs_a_layout_is_refused_with_others() {
        for p in parameters().into_iter().filter(|p| !p.layouts.is_empty()) {
            let (good, _) = samples(&p.allowed);
            for layout in LAYOUTS {
                let kv = [("layout", *layout), (p.keys[0], good[0].as_str()), ("stripes", "2")];
                let kv = &kv[..if *layout == "striped" && p.keys[0] != "stripes" { 3 } else { 2 }];
                let refused = VolumeParams::parse(kv.iter().copied()).is_err();
                assert_eq!(refused, !p.layouts.contains(layout), "{} with {layout}", p.keys[0]);
            }
        }
    }

    #[test]
    fn only_what_is_listed_as_mutable_may_change() {
        for p in parameters() {
            let (good, _) = samples(&p.allowed);
            for key in p.keys {
                assert_eq!(Limits::parse([(*key, good[0].as_str())]).is_ok(), p.mutable, "{key}");
            }
        }
    }
}
