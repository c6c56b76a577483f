//! Where new extents go: an index over all disks of all pools, and a planner over it.
//!
//! [`Pool`] is plain state: the caller tells it of disks, clean runs and owners; [`Pool::plan`] answers with a
//! [`Plan`] or a [`Refusal`] and changes nothing; [`Pool::apply`] takes what was planned.
//!
//! Policy. Local first: the disks of the consumer's node, best fit, so that runs stay long. Then the lenders with
//! most room: as few as suffice, in the consumer's zone if that suffices. Without a consumer's node the volume goes
//! where most room is. Stripes lie on distinct disks, and on distinct nodes while there are enough. A whole disk is
//! one that is entirely free. Logical block sizes are never mixed within a volume. A disk keeps its reserve for its
//! own node; an [`Offer`] limits what it lends.
//!
//! Invariants: an extent is free, owned by one volume, or set aside (awaiting its wipe), never two of these; equal
//! input gives an equal plan; a refusal means that no placement exists within the rules; the cost of a plan that
//! succeeds grows with the lenders it uses and the logarithm of the pool, not with the pool. Must not know: time,
//! how extents are wiped, attachment.

mod capacity;
mod census;
mod explain;
mod index;
mod linear;
mod owned;
mod plan;
mod refusal;
mod request;
mod runs;
mod striped;
mod view;
mod whole;

pub use capacity::Capacity;
pub use explain::{Chosen, Explanation, Passed, WhyChosen, WhyPassed};
pub use index::{DiskUsage, IndexError, Offer, Pool};
pub use plan::Plan;
pub use refusal::{NodeRoom, Refusal, RefusalKind, Shortage};
pub use request::{Request, Topology, TopologyTerm};
