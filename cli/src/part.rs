//! Disks that leave, and what never comes back. What was asked for stands in the controller's records once nothing is left, or a node
//! is forgotten; before that, asking again goes on with it. Must not know: what has to be done for it.

use std::time::Instant;

use csi_proto::operator as wire;
use tonic::Code;

use crate::{
    Error,
    args::{Output, Part, To},
    ask::tell,
    connect::Connection,
    drain::{LOOK, bear},
    figures::plural,
};

/// How a thing leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// A disk, emptied before; its label is erased.
    Release,
    /// A disk or a node that never comes back.
    Forget,
}

impl How {
    fn command(self) -> &'static str {
        match self {
            How::Release => "release",
            How::Forget => "forget",
        }
    }
}

fn meant(p: &wire::PartResponse) -> String {
    if p.node.is_empty() { format!("disk {}", p.disk) } else { format!("node {}", p.node) }
}

fn ended(how: How, p: &wire::PartResponse) -> String {
    match how {
        How::Release => {
            format!(
                "{} is off the record, and its label erased, unless its device has gone meanwhile",
                meant(p)
            )
        }
        How::Forget if p.node.is_empty() => {
            format!("{} is forgotten. Should its device turn up again, it is left alone", meant(p))
        }
        How::Forget => format!(
            "{} is forgotten, and so are its disks. Should it come back, it takes part again once it has been booted; its disks \
             are left alone then",
            meant(p)
        ),
    }
}

fn left(p: &wire::PartResponse) -> String {
    format!(
        "{} and {} still name it",
        plural(p.disks_left as usize, "disk"),
        plural(p.volumes_left as usize, "volume")
    )
}

/// Has it leave, and waits until nothing of it is left on record.
pub(crate) async fn part(
    c: &mut Connection,
    to: &To,
    output: Output,
    how: How,
    what: &Part,
) -> Result<(), Error> {
    let begun = Instant::now();
    let goes_on = format!("`weir {} {}` asks again", how.command(), what.target);
    let mut known: Option<wire::PartResponse> = None;
    loop {
        let target =
            known.as_ref().map_or(&what.target, |p| if p.node.is_empty() { &p.disk } else { &p.node });
        let r = wire::Target { target: target.clone() };
        let asked = match how {
            How::Release => c.client.release(r).await,
            How::Forget => c.client.forget(r).await,
        };
        let p = match (asked, &known) {
            (Ok(p), _) => p.into_inner(),
            // It was there, and is not any more.
            (Err(e), Some(p)) if e.code() == Code::NotFound => {
                wire::PartResponse { disks_left: 0, volumes_left: 0, done: true, ..p.clone() }
            }
            (Err(e), _) => {
                bear(c, to, begun, e, &goes_on).await?;
                continue;
            }
        };
        if p.done {
            return tell(output, &p, || ended(how, &p));
        }
        if begun.elapsed() >= what.timeout {
            return Err(Error::Unfinished(format!("{}: {}; {goes_on}", meant(&p), left(&p))));
        }
        known = Some(p);
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_left_says_what_becomes_of_it() {
        let disk = wire::PartResponse { disk: "d".into(), ..wire::PartResponse::default() };
        let node = wire::PartResponse { node: "n1".into(), ..wire::PartResponse::default() };
        assert!(ended(How::Release, &disk).starts_with("disk d is off the record"));
        assert!(ended(How::Forget, &disk).contains("left alone"));
        assert!(ended(How::Forget, &node).contains("once it has been booted"));
        let some = wire::PartResponse { disks_left: 1, volumes_left: 2, ..node };
        assert_eq!(left(&some), "1 disk and 2 volumes still name it");
    }
}
