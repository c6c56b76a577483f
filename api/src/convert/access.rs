//! Who may touch a volume.

use pool::access;

use super::{NotARecord, need, none};
use crate::{Access, AccessPhase, Leaving, Mode};

impl From<access::Mode> for Mode {
    fn from(m: access::Mode) -> Self {
        let access::Mode { read_only, multi_node, upkeep } = m;
        Self { read_only, multi_node, upkeep }
    }
}

impl From<Mode> for access::Mode {
    fn from(m: Mode) -> Self {
        let Mode { read_only, multi_node, upkeep } = m;
        Self { read_only, multi_node, upkeep }
    }
}

impl From<&access::Leaving> for Leaving {
    fn from(l: &access::Leaving) -> Self {
        let access::Leaving { since, wrote, disks } = l;
        Self { since: *since, wrote: *wrote, disks: disks.clone() }
    }
}

impl From<&Leaving> for access::Leaving {
    fn from(l: &Leaving) -> Self {
        let Leaving { since, wrote, disks } = l;
        Self { since: *since, wrote: *wrote, disks: disks.clone() }
    }
}

impl From<&access::Access> for Access {
    fn from(a: &access::Access) -> Self {
        let empty = Access {
            phase: AccessPhase::Detached,
            node: None,
            mode: None,
            holders: Default::default(),
            source: None,
            target: None,
            source_left: None,
            since: None,
        };
        match a {
            access::Access::Detached => empty,
            access::Access::Granting { node, mode } => Access {
                phase: AccessPhase::Granting,
                node: Some(node.clone()),
                mode: Some((*mode).into()),
                ..empty
            },
            access::Access::Attached { holders } => Access {
                phase: AccessPhase::Attached,
                holders: holders.iter().map(|(n, m)| (n.clone(), (*m).into())).collect(),
                ..empty
            },
            access::Access::Guarded { source, target, since } => Access {
                phase: AccessPhase::Guarded,
                source: Some(source.clone()),
                target: Some(target.clone()),
                since: Some(*since),
                ..empty
            },
            access::Access::CuttingOver { source, target, source_left, since } => Access {
                phase: AccessPhase::CuttingOver,
                source: Some(source.clone()),
                target: Some(target.clone()),
                source_left: Some(*source_left),
                since: Some(*since),
                ..empty
            },
        }
    }
}

impl TryFrom<&Access> for access::Access {
    type Error = NotARecord;

    fn try_from(a: &Access) -> Result<Self, NotARecord> {
        let granting = [("access.node", a.node.is_some()), ("access.mode", a.mode.is_some())];
        let holders = [("access.holders", !a.holders.is_empty())];
        let moving = [
            ("access.source", a.source.is_some()),
            ("access.target", a.target.is_some()),
            ("access.since", a.since.is_some()),
        ];
        let cut = [("access.sourceLeft", a.source_left.is_some())];
        let absent = |parts: &[&[(&'static str, bool)]], with| parts.iter().try_for_each(|p| none(p, with));
        match a.phase {
            AccessPhase::Detached => {
                absent(&[&granting, &holders, &moving, &cut], "phase detached")?;
                Ok(access::Access::Detached)
            }
            AccessPhase::Granting => {
                const WITH: &str = "phase granting";
                absent(&[&holders, &moving, &cut], WITH)?;
                Ok(access::Access::Granting {
                    node: need(a.node.clone(), "access.node", WITH)?,
                    mode: need(a.mode, "access.mode", WITH)?.into(),
                })
            }
            AccessPhase::Attached => {
                absent(&[&granting, &moving, &cut], "phase attached")?;
                let holders = a.holders.iter().map(|(n, m)| (n.clone(), (*m).into())).collect();
                Ok(access::Access::Attached { holders })
            }
            AccessPhase::Guarded => {
                const WITH: &str = "phase guarded";
                absent(&[&granting, &holders, &cut], WITH)?;
                Ok(access::Access::Guarded {
                    source: need(a.source.clone(), "access.source", WITH)?,
                    target: need(a.target.clone(), "access.target", WITH)?,
                    since: need(a.since, "access.since", WITH)?,
                })
            }
            AccessPhase::CuttingOver => {
                const WITH: &str = "phase cuttingOver";
                absent(&[&granting, &holders], WITH)?;
                Ok(access::Access::CuttingOver {
                    source: need(a.source.clone(), "access.source", WITH)?,
                    target: need(a.target.clone(), "access.target", WITH)?,
                    source_left: need(a.source_left, "access.sourceLeft", WITH)?,
                    since: need(a.since, "access.since", WITH)?,
                })
            }
        }
    }
}
