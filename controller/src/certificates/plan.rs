//! What has to be made or renewed, as a function of what there is and the time.
//!
//! A CA is published well before the first certificate of it is used, and stays published for as long as it is valid: a
//! node that has read the bundle within [`SETTLE`] always trusts the certificate that is served. Must not know: where
//! things are kept.

use super::mint::{self, Facts, MintError, Pair, SKEW};

const DAY: i64 = 24 * 3600;
/// For how long a CA is good.
pub const CA_LIFE: i64 = 730 * DAY;
/// The next CA is made when this is left of the present one.
pub const CA_OVERLAP: i64 = 240 * DAY;
/// For how long a CA is published before certificates of it are used. The kubelet brings a ConfigMap to a pod within
/// minutes; a node that was away meanwhile reads it when it is back.
pub const SETTLE: i64 = DAY;
/// For how long the server's certificate is good.
pub const SERVING_LIFE: i64 = 90 * DAY;
/// It is renewed when this is left of it.
pub const SERVING_OVERLAP: i64 = 30 * DAY;

/// All that is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Material {
    /// The CA that certificates are made with.
    pub current: Option<Pair>,
    /// The one that will be it.
    pub next: Option<Pair>,
    /// CAs that nodes are told to trust, PEM each.
    pub bundle: Vec<String>,
    /// What the server shows.
    pub serving: Option<Pair>,
}

/// A CA that is usable now.
fn usable(pair: Option<&Pair>, now: i64) -> Option<(&Pair, Facts)> {
    let pair = pair?;
    let facts = Facts::of(&pair.cert).filter(|f| f.from <= now && now < f.until)?;
    mint::is_key(&pair.key).then_some((pair, facts))
}

/// What there should be, for a server of these names.
///
/// # Errors
/// Something could not be made.
pub fn renewed(have: &Material, names: &[String], now: i64) -> Result<Material, MintError> {
    let mut next = usable(have.next.as_ref(), now);
    let settled = next.as_ref().is_some_and(|(_, f)| f.from + SKEW + SETTLE <= now);
    let current = match usable(have.current.as_ref(), now) {
        Some(c) if !settled => Some(c),
        // The present one had to go, or its successor is known everywhere.
        present => next.take().or(present),
    };
    let (current, facts) = match current {
        Some((pair, facts)) => (pair.clone(), Some(facts)),
        None => (mint::ca(now, CA_LIFE)?, None),
    };
    let ends = facts.as_ref().map_or(now + CA_LIFE, |f| f.until);
    let next = match next {
        Some((pair, _)) => Some(pair.clone()),
        None if ends - now < CA_OVERLAP => Some(mint::ca(now, CA_LIFE)?),
        None => None,
    };
    let mut bundle: Vec<String> = vec![current.cert.clone()];
    bundle.extend(next.as_ref().map(|n| n.cert.clone()));
    for old in &have.bundle {
        let good = Facts::of(old).is_some_and(|f| now < f.until);
        if good && !bundle.contains(old) {
            bundle.push(old.clone());
        }
    }
    let serving = match have.serving.as_ref().filter(|s| serves(s, &current, names, now)) {
        Some(s) => s.clone(),
        None => mint::server(&current, names, now, SERVING_LIFE)?,
    };
    Ok(Material { current: Some(current), next, bundle, serving: Some(serving) })
}

/// Whether a certificate may still be shown.
fn serves(pair: &Pair, ca: &Pair, names: &[String], now: i64) -> bool {
    let (Some(own), Some(ca)) = (Facts::of(&pair.cert), Facts::of(&ca.cert)) else { return false };
    let mut wanted = names.to_vec();
    wanted.sort();
    wanted.dedup();
    own.issuer == ca.name
        && own.names == wanted
        && own.from <= now
        && own.until - now >= SERVING_OVERLAP
        && mint::is_key(&pair.key)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: i64 = 1_700_000_000;

    fn names() -> Vec<String> {
        vec!["weir.ns.svc".into(), "10.0.0.1".into()]
    }

    fn first() -> Material {
        renewed(&Material::default(), &names(), START).unwrap()
    }

    fn ca_of(m: &Material) -> String {
        Facts::of(&m.current.as_ref().unwrap().cert).unwrap().name
    }

    #[test]
    fn what_is_good_is_left_alone() {
        let m = first();
        assert_eq!((m.bundle.len(), m.next.is_some()), (1, false));
        let s = Facts::of(&m.serving.as_ref().unwrap().cert).unwrap();
        assert_eq!((s.issuer, s.names), (ca_of(&m), vec!["10.0.0.1".to_owned(), "weir.ns.svc".into()]));
        assert_eq!(renewed(&m, &names(), START + 10 * DAY).unwrap(), m);
    }

    /// Twelve years, looked at every other day or so: a node that reads the bundle once a day never meets a server that
    /// it does not trust.
    #[test]
    fn a_node_that_reads_daily_always_trusts_the_server() {
        let mut m = first();
        let (mut known, mut read_at, mut cas, mut shown) = (m.bundle.clone(), START, 1, 1);
        let mut now = START;
        while now < START + 12 * 365 * DAY {
            now += 7 * 3600;
            if now - read_at > DAY - 7 * 3600 {
                (known, read_at) = (m.bundle.clone(), now);
            }
            let n = renewed(&m, &names(), now).unwrap();
            cas += usize::from(ca_of(&n) != ca_of(&m));
            shown += usize::from(n.serving != m.serving);
            m = n;
            let s = Facts::of(&m.serving.as_ref().unwrap().cert).unwrap();
            assert!(s.from <= now && now + SERVING_OVERLAP <= s.until + 7 * 3600);
            let trusted = known.iter().filter_map(|c| Facts::of(c)).find(|f| f.name == s.issuer);
            let trusted =
                trusted.unwrap_or_else(|| panic!("day {}: {} is not known", (now - START) / DAY, s.issuer));
            assert!(trusted.from <= now && s.until <= trusted.until, "a certificate does not outlive its CA");
            assert!(m.bundle.len() <= 3, "expired CAs go");
        }
        assert!((8..=10).contains(&cas), "{cas} CAs");
        assert!(shown > 12 * 6, "{shown} certificates");
    }

    #[test]
    fn what_is_lost_or_spoilt_is_made_again_and_old_trust_stays() {
        let m = first();
        let other = vec!["other".to_owned()];
        assert_ne!(renewed(&m, &other, START).unwrap().serving, m.serving, "other names");
        let lost = Material { current: None, ..m.clone() };
        let again = renewed(&lost, &names(), START).unwrap();
        assert_ne!(ca_of(&again), ca_of(&m));
        assert!(again.bundle.contains(&m.bundle[0]) && again.serving != m.serving);
        let garbage = Pair { cert: "x".into(), key: "y".into() };
        let spoilt = Material { current: Some(garbage.clone()), serving: Some(garbage), ..m.clone() };
        assert!(usable(renewed(&spoilt, &names(), START).unwrap().current.as_ref(), START).is_some());
        let unbundled = Material { bundle: vec!["junk".into()], ..m.clone() };
        assert_eq!(renewed(&unbundled, &names(), START).unwrap(), m);
        // Everything is long past: a cluster that was off for years.
        let later = START + 2 * CA_LIFE;
        let reborn = renewed(&m, &names(), later).unwrap();
        assert_eq!((reborn.bundle.len(), usable(reborn.current.as_ref(), later).is_some()), (1, true));
    }
}
