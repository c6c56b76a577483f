//! Volume parameters as a StorageClass gives them, and the mutable ones of a VolumeAttributesClass.
//!
//! Invariants: nothing is ignored: an unknown key, a bad value or keys that contradict each other are all listed in
//! one error, each with its key and what is allowed; what the product does not do yet is refused as such. Must not
//! know: whether the named pool exists.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use super::{FsType, Layout, Locality, Provisioning, Sharing, known};
use crate::{
    ids::PoolName,
    units::{Bytes, ExtentSize, Sectors},
};

/// The most stripes of a volume: as many as lenders are allowed.
pub const MAX_STRIPES: u32 = 64;
/// The most lenders of a volume. A consumer keeps one NVMe controller a lender's disk and one multipath device a
/// slice; with 300 volumes a node more would exhaust both.
pub const MAX_LENDERS: u32 = 64;
/// Lenders of a volume unless its class says otherwise.
pub const DEFAULT_LENDERS: u32 = 8;
/// What `layout` may say.
pub const LAYOUTS: &[&str] = &["linear", "striped", "auto", "wholeDisk"];
/// The chunk of striped volumes unless their class says otherwise.
pub const DEFAULT_CHUNK: Bytes = Bytes::kib(64);
/// The smallest chunk: the largest logical block there is in practice.
pub const MIN_CHUNK: Bytes = Bytes::kib(4);
/// The largest chunk: it must divide every extent size.
pub const MAX_CHUNK: Bytes = ExtentSize::MIN.bytes();

/// What a StorageClass says about its volumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeParams {
    /// The pool; `None` leaves the choice to the caller (the only pool there is, say).
    pub pool: Option<PoolName>,
    /// How the extents are put together.
    pub layout: Layout,
    /// When they are taken.
    pub provisioning: Provisioning,
    /// How much the volume holds to its consumer's node.
    pub locality: Locality,
    /// Nodes that it may borrow from at most.
    pub max_lenders: u32,
    /// Who may write.
    pub sharing: Sharing,
    /// The file system where it is mounted; `None` leaves it to the capability and then to the default.
    pub fs_type: Option<FsType>,
    /// Limits, which may change later.
    pub limits: Limits,
}

impl Default for VolumeParams {
    fn default() -> Self {
        Self {
            pool: None,
            layout: Layout::default(),
            provisioning: Provisioning::default(),
            locality: Locality::default(),
            max_lenders: DEFAULT_LENDERS,
            sharing: Sharing::default(),
            fs_type: None,
            limits: Limits::default(),
        }
    }
}

/// What may change while a volume lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// I/Os a second at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops: Option<u64>,
    /// Bytes a second at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throughput: Option<Bytes>,
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.iops, self.throughput) {
            (None, None) => f.write_str("none"),
            (Some(n), None) => write!(f, "{n} I/Os a second"),
            (None, Some(b)) => write!(f, "{b} a second"),
            (Some(n), Some(b)) => write!(f, "{n} I/Os and {b} a second"),
        }
    }
}

/// For whom a volume is made (external-provisioner's --extra-create-metadata); for messages and events only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimRef {
    /// The claim's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pvc_name: Option<String>,
    /// Its Kubernetes namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pvc_namespace: Option<String>,
    /// The name the PersistentVolume will have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pv_name: Option<String>,
}

/// What parameters ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// What they say of the volume; linear where the layout is left to the pool.
    pub params: VolumeParams,
    /// For whom it is.
    pub claim: ClaimRef,
    /// `layout: auto`: the chunk that the volume has if it is striped.
    pub by_need: Option<Sectors>,
}

impl Asked {
    /// The parameters of a volume that lies so already: where the layout is left to the pool, what it chose is what was
    /// asked for.
    #[must_use]
    pub fn of_one_that_lies(&self, so: Layout) -> VolumeParams {
        let layout = match (self.by_need, so) {
            (Some(wanted), Layout::Striped { chunk, .. }) if chunk == wanted => so,
            _ => self.params.layout,
        };
        VolumeParams { layout, ..self.params.clone() }
    }
}

/// One thing that is wrong with parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key, as it came or as it should.
    pub key: String,
    /// Its value, cut to 64 characters; `None` for a missing key.
    pub value: Option<String>,
    /// What is wrong and what is allowed.
    pub why: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(v) => write!(f, "{}: {v:?}: {}", self.key, self.why),
            None => write!(f, "{}: {}", self.key, self.why),
        }
    }
}

/// Parameters that were refused, with everything that is wrong with them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("volume parameters refused: {}", .0.iter().map(Problem::to_string).collect::<Vec<_>>().join("; "))]
pub struct ParamsError(pub Vec<Problem>);

const FSTYPE_KEY: &str = "csi.storage.k8s.io/fstype";
const PVC_NAME_KEY: &str = "csi.storage.k8s.io/pvc/name";
const PVC_NAMESPACE_KEY: &str = "csi.storage.k8s.io/pvc/namespace";
const PV_NAME_KEY: &str = "csi.storage.k8s.io/pv/name";

/// The keys not looked at yet, and what was wrong with the others.
struct Bag {
    left: BTreeMap<String, String>,
    problems: Vec<Problem>,
}

impl Bag {
    fn problem(&mut self, key: &str, value: Option<&str>, why: impl Into<String>) {
        let value = value.map(|v| v.chars().take(64).collect());
        self.problems.push(Problem { key: key.to_owned(), value, why: why.into() });
    }

    fn word<T>(&mut self, key: &str, allowed: &[&str], parse: fn(&str) -> Option<T>) -> Option<T> {
        let v = self.left.remove(key)?;
        let t = parse(&v);
        if t.is_none() {
            self.problem(key, Some(&v), format!("allowed: {}", allowed.join(", ")));
        }
        t
    }

    fn number(&mut self, key: &str, min: u32, max: u32, hint: &str) -> Option<u32> {
        let v = self.left.remove(key)?;
        let n = parse_u64(&v).and_then(|n| u32::try_from(n).ok()).filter(|n| (min..=max).contains(n));
        if n.is_none() {
            self.problem(key, Some(&v), format!("a whole number from {min} to {max} is expected{hint}"));
        }
        n
    }

    /// Refuses `key` where the value of another one leaves no meaning to it.
    fn only_with(&mut self, key: &str, with: &str) {
        if let Some(v) = self.left.remove(key) {
            self.problem(key, Some(&v), format!("only allowed with {with}"));
        }
    }
}

/// Digits only: no sign, no spaces, no second spelling by leading zeros.
fn parse_u64(s: &str) -> Option<u64> {
    let plain = !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit()) && (s == "0" || !s.starts_with('0'));
    if plain { s.parse().ok() } else { None }
}

impl VolumeParams {
    /// Reads what a StorageClass gives: keys and values exactly as spelled in the documents.
    pub fn parse<K: Into<String>, V: Into<String>>(
        params: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Asked, ParamsError> {
        let left = params.into_iter().map(|(k, v)| (k.into(), v.into())).collect();
        let mut bag = Bag { left, problems: Vec::new() };
        let claim = ClaimRef {
            pvc_name: bag.left.remove(PVC_NAME_KEY),
            pvc_namespace: bag.left.remove(PVC_NAMESPACE_KEY),
            pv_name: bag.left.remove(PV_NAME_KEY),
        };
        let pool = parse_pool(&mut bag);
        let kind = parse_layout(&mut bag);
        let provisioning = parse_provisioning(&mut bag);
        let locality = bag.word("locality", Locality::SPELLINGS, Locality::parse).unwrap_or_default();
        let lenders_given = bag.left.contains_key("maxLenders");
        let max_lenders = bag
            .number("maxLenders", 1, MAX_LENDERS, "; for none at all say locality: require")
            .unwrap_or(DEFAULT_LENDERS);
        if locality == Locality::Require && lenders_given {
            bag.problem("maxLenders", None, "contradicts locality: require, which allows no lender");
        }
        let sharing = bag.word("sharing", Sharing::SPELLINGS, Sharing::parse).unwrap_or_default();
        if sharing == Sharing::MultiWriter && kind.is_some_and(|k| k != Kind::Of(Layout::Linear)) {
            bag.problem("sharing", Some(sharing.as_str()), "only allowed with layout: linear");
        }
        let fs_type = parse_fs_type(&mut bag);
        if sharing == Sharing::MultiWriter && fs_type.is_some() {
            bag.problem(
                "fsType",
                None,
                "contradicts sharing: multiWriter: neither ext4 nor xfs bears two writers",
            );
        }
        if let Some(v) = bag.left.remove("encryption")
            && v != "none"
        {
            bag.problem("encryption", Some(&v), "not supported yet; allowed: none");
        }
        let limits = parse_limits(&mut bag);
        finish(bag, &known::keys(false))?;
        let (layout, by_need) = match kind {
            Some(Kind::Of(layout)) => (layout, None),
            Some(Kind::ByNeed { chunk }) => (Layout::Linear, Some(chunk)),
            None => (Layout::default(), None),
        };
        let params =
            VolumeParams { pool, layout, provisioning, locality, max_lenders, sharing, fs_type, limits };
        Ok(Asked { params, claim, by_need })
    }
}

impl Limits {
    /// Reads the mutable parameters alone (ControllerModifyVolume).
    pub fn parse<K: Into<String>, V: Into<String>>(
        params: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Limits, ParamsError> {
        let left = params.into_iter().map(|(k, v)| (k.into(), v.into())).collect();
        let mut bag = Bag { left, problems: Vec::new() };
        let limits = parse_limits(&mut bag);
        finish(bag, &format!("{} (no other parameter of a volume can change)", known::keys(true)))?;
        Ok(limits)
    }
}

fn finish(mut bag: Bag, allowed: &str) -> Result<(), ParamsError> {
    for (k, v) in std::mem::take(&mut bag.left) {
        bag.problem(&k, Some(&v), format!("unknown key; allowed: {allowed}"));
    }
    if bag.problems.is_empty() { Ok(()) } else { Err(ParamsError(bag.problems)) }
}

fn parse_pool(bag: &mut Bag) -> Option<PoolName> {
    let v = bag.left.remove("pool")?;
    match v.parse() {
        Ok(p) => Some(p),
        Err(e) => {
            bag.problem("pool", Some(&v), e.why);
            None
        }
    }
}

/// What `layout` says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Of(Layout),
    /// `auto`: as wide as its limits ask for, with such a chunk.
    ByNeed {
        chunk: Sectors,
    },
}

/// `None` when the layout is wrong, so that what depends on it is not judged against a guess.
fn parse_layout(bag: &mut Bag) -> Option<Kind> {
    let allowed = format!("allowed: {}", LAYOUTS.join(", "));
    let word = bag.left.remove("layout");
    let layout = match word.as_deref() {
        None | Some("linear") => Some(Layout::Linear),
        Some("wholeDisk") => Some(Layout::WholeDisk),
        Some("auto") => {
            bag.only_with("stripes", "layout: striped; auto finds out by itself");
            return Some(Kind::ByNeed { chunk: parse_chunk(bag) });
        }
        Some("striped") => {
            if !bag.left.contains_key("stripes") {
                bag.problem("stripes", None, format!("needed with layout: striped, from 2 to {MAX_STRIPES}"));
            }
            let stripes = bag.number("stripes", 2, MAX_STRIPES, "").unwrap_or(2);
            return Some(Kind::Of(Layout::Striped { stripes, chunk: parse_chunk(bag) }));
        }
        Some(v @ "mirrored") => {
            bag.problem("layout", Some(v), format!("not supported yet; {allowed}"));
            bag.left.remove("replicas");
            None
        }
        Some(v) => {
            bag.problem("layout", Some(v), allowed);
            None
        }
    };
    if layout.is_some() {
        bag.only_with("stripes", "layout: striped");
        bag.only_with("stripeChunk", "layout: striped or auto");
        bag.only_with("replicas", "layout: mirrored, which is not supported yet");
    } else {
        for key in ["stripes", "stripeChunk", "replicas"] {
            bag.left.remove(key);
        }
    }
    layout.map(Kind::Of)
}

fn parse_chunk(bag: &mut Bag) -> Sectors {
    let default = Sectors::new(DEFAULT_CHUNK.get() / crate::units::SECTOR);
    bag.only_with("replicas", "layout: mirrored, which is not supported yet");
    let Some(v) = bag.left.remove("stripeChunk") else { return default };
    let chunk = Bytes::parse_quantity(&v)
        .filter(|b| b.get().is_power_of_two() && (MIN_CHUNK..=MAX_CHUNK).contains(b))
        .and_then(Bytes::to_sectors_exact);
    if chunk.is_none() {
        bag.problem(
            "stripeChunk",
            Some(&v),
            format!("a power of two from {MIN_CHUNK} to {MAX_CHUNK} is expected (64Ki, say)"),
        );
    }
    chunk.unwrap_or(default)
}

fn parse_provisioning(bag: &mut Bag) -> Provisioning {
    if bag.left.get("provisioning").is_some_and(|v| v == Provisioning::Thin.as_str()) {
        bag.left.remove("provisioning");
        bag.problem("provisioning", Some("thin"), "not supported yet; allowed: thick");
        return Provisioning::Thick;
    }
    bag.word("provisioning", &["thick"], Provisioning::parse).unwrap_or_default()
}

fn parse_fs_type(bag: &mut Bag) -> Option<FsType> {
    let own = bag.word("fsType", FsType::SPELLINGS, FsType::parse);
    let csi = bag.word(FSTYPE_KEY, FsType::SPELLINGS, FsType::parse);
    if let (Some(a), Some(b)) = (own, csi)
        && a != b
    {
        bag.problem("fsType", Some(a.as_str()), format!("contradicts {FSTYPE_KEY}: {b}"));
    }
    own.or(csi)
}

fn parse_limits(bag: &mut Bag) -> Limits {
    let iops = bag.left.remove("iops").and_then(|v| {
        let n = parse_u64(&v).filter(|n| *n > 0);
        if n.is_none() {
            bag.problem("iops", Some(&v), "a whole number of I/Os a second above 0 is expected");
        }
        n
    });
    let throughput = bag.left.remove("throughput").and_then(|v| {
        let b = Bytes::parse_quantity(&v).filter(|b| !b.is_zero());
        if b.is_none() {
            bag.problem(
                "throughput",
                Some(&v),
                "bytes a second above 0 are expected (104857600 or 100Mi, say)",
            );
        }
        b
    });
    Limits { iops, throughput }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(kv: &[(&str, &str)]) -> Result<Asked, ParamsError> {
        VolumeParams::parse(kv.iter().copied())
    }

    fn keys(kv: &[(&str, &str)]) -> Vec<String> {
        parse(kv).expect_err("must be refused").0.into_iter().map(|p| p.key).collect()
    }

    #[test]
    fn nothing_said_means_the_defaults() {
        assert_eq!(parse(&[]), Ok(Asked::default()));
    }

    #[test]
    fn everything_said_is_taken() {
        let all = [
            ("pool", "p1"),
            ("layout", "striped"),
            ("stripes", "4"),
            ("stripeChunk", "128Ki"),
            ("provisioning", "thick"),
            ("locality", "none"),
            ("maxLenders", "64"),
            ("sharing", "migrate"),
            ("fsType", "xfs"),
            ("csi.storage.k8s.io/fstype", "xfs"),
            ("encryption", "none"),
            ("iops", "500"),
            ("throughput", "100Mi"),
            ("csi.storage.k8s.io/pvc/name", "c"),
            ("csi.storage.k8s.io/pvc/namespace", "ns"),
            ("csi.storage.k8s.io/pv/name", "pv"),
        ];
        let mut listed: Vec<_> = known::parameters().into_iter().flat_map(|p| p.keys).copied().collect();
        listed.extend([PVC_NAME_KEY, PVC_NAMESPACE_KEY, PV_NAME_KEY]);
        listed.sort_unstable();
        let mut said = all.map(|(key, _)| key);
        said.sort_unstable();
        assert_eq!(said[..], listed[..]);
        let Asked { params: p, claim: c, by_need } = parse(&all).expect("all valid");
        assert_eq!(p.layout, Layout::Striped { stripes: 4, chunk: Sectors::new(256) });
        assert_eq!((p.locality, p.max_lenders, p.fs_type), (Locality::None, 64, Some(FsType::Xfs)));
        assert_eq!(p.limits, Limits { iops: Some(500), throughput: Some(Bytes::mib(100)) });
        assert_eq!(by_need, None);
        assert_eq!(c.pvc_namespace.as_deref(), Some("ns"));
    }

    #[test]
    fn each_fault_names_its_key() {
        for (kv, want) in [
            (&[("colour", "red")][..], &["colour"][..]),
            (&[("pool", "P!")], &["pool"]),
            (&[("layout", "raid5")], &["layout"]),
            (&[("layout", "mirrored"), ("replicas", "2")], &["layout"]),
            (&[("layout", "striped")], &["stripes"]),
            (&[("stripes", "2")], &["stripes"]),
            (&[("layout", "wholeDisk"), ("stripeChunk", "64Ki")], &["stripeChunk"]),
            (&[("layout", "striped"), ("stripes", "65")], &["stripes"]),
            (&[("layout", "striped"), ("stripes", "2"), ("stripeChunk", "96Ki")], &["stripeChunk"]),
            (&[("layout", "striped"), ("stripes", "2"), ("stripeChunk", "8Mi")], &["stripeChunk"]),
            (&[("provisioning", "thin")], &["provisioning"]),
            (&[("encryption", "luks2")], &["encryption"]),
            (&[("locality", "Prefer")], &["locality"]),
            (&[("maxLenders", "0")], &["maxLenders"]),
            (&[("maxLenders", "+8")], &["maxLenders"]),
            (&[("locality", "require"), ("maxLenders", "8")], &["maxLenders"]),
            (&[("sharing", "multiWriter"), ("layout", "wholeDisk")], &["sharing"]),
            (&[("sharing", "multiWriter"), ("fsType", "ext4")], &["fsType"]),
            (&[("fsType", "ext4"), ("csi.storage.k8s.io/fstype", "xfs")], &["fsType"]),
            (&[("fsType", "btrfs")], &["fsType"]),
            (&[("iops", "0")], &["iops"]),
            (&[("throughput", "99999999Ti")], &["throughput"]),
            (&[("pool", ""), ("layout", "x"), ("zzz", "1")], &["pool", "layout", "zzz"]),
        ] {
            assert_eq!(keys(kv), want, "{kv:?}");
        }
    }

    #[test]
    fn messages_say_what_is_allowed_and_what_is_not_yet() {
        let text = |kv: &[(&str, &str)]| parse(kv).expect_err("refused").to_string();
        assert_eq!(
            text(&[("locality", "near")]),
            "volume parameters refused: locality: \"near\": allowed: prefer, require, none"
        );
        assert!(text(&[("layout", "mirrored")]).contains("not supported yet"));
        assert!(text(&[("provisioning", "thin")]).contains("not supported yet"));
        assert!(text(&[("encryption", "luks2")]).contains("not supported yet"));
        assert!(text(&[("x", "y")]).contains("allowed: pool, layout"));
    }

    #[test]
    fn only_limits_are_mutable() {
        assert_eq!(Limits::parse([("iops", "5")]), Ok(Limits { iops: Some(5), throughput: None }));
        let e = Limits::parse([("layout", "linear")]).expect_err("immutable");
        assert!(e.to_string().contains("no other parameter"), "{e}");
    }

    #[test]
    fn what_auto_became_is_what_was_asked_for() {
        let asked = parse(&[("layout", "auto"), ("stripeChunk", "128Ki")]).expect("valid");
        let chunk = Sectors::new(256);
        assert_eq!((asked.params.layout, asked.by_need), (Layout::Linear, Some(chunk)));
        let as_it_lies = |l| asked.of_one_that_lies(l).layout;
        for lies in [Layout::Linear, Layout::Striped { stripes: 5, chunk }] {
            assert_eq!(as_it_lies(lies), lies);
        }
        assert_eq!(as_it_lies(Layout::Striped { stripes: 5, chunk: Sectors::new(8) }), Layout::Linear);
        assert_eq!(as_it_lies(Layout::WholeDisk), Layout::Linear);
        let linear = parse(&[]).expect("valid");
        assert_eq!(linear.of_one_that_lies(Layout::Striped { stripes: 5, chunk }).layout, Layout::Linear);
        assert_eq!(keys(&[("layout", "auto"), ("stripes", "2")]), ["stripes"]);
        assert_eq!(keys(&[("layout", "auto"), ("sharing", "multiWriter")]), ["sharing"]);
    }

    #[test]
    fn striped_sizes_are_whole_rows() {
        use crate::units::Extents;
        let l = Layout::Striped { stripes: 3, chunk: Sectors::new(128) };
        assert_eq!(l.round_up(Extents::new(7)), Some(Extents::new(9)));
        assert_eq!(l.round_up(Extents::new(u64::MAX)), Some(Extents::new(u64::MAX)));
        assert_eq!(l.round_up(Extents::new(u64::MAX - 1)), Some(Extents::new(u64::MAX)));
        let l = Layout::Striped { stripes: 2, chunk: Sectors::new(128) };
        assert_eq!(l.round_up(Extents::new(u64::MAX)), None);
    }
}
