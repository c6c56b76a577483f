//! What can go wrong in a CSI call, and the one place that turns it into a gRPC status.

use std::{path::PathBuf, time::Duration};

use kernel::{Class, deadline::DeadlineError, mount::MountError};
use pool::ids::VolumeId;
use tonic::{Code, Status};

use super::{faults::Injected, tools::ToolError};
use crate::{limits::LimitError, volumes_api::VolumesError};

/// Why a CSI call failed.
#[derive(Debug, thiserror::Error)]
pub enum CsiError {
    /// The request lacks something or cannot be meant so.
    #[error("{0}")]
    Argument(String),
    /// The range asked for cannot be had.
    #[error("{0}")]
    OutOfRange(String),
    /// There is no such volume.
    #[error("there is no volume {volume:?}")]
    NoSuchVolume {
        /// As the caller spelled it.
        volume: String,
    },
    /// The volume is not at this path.
    #[error("volume {volume} is not at {}: {why}", path.display())]
    NotThere {
        /// The volume.
        volume: VolumeId,
        /// The path.
        path: PathBuf,
        /// What was found instead.
        why: String,
    },
    /// Another operation on the volume has not ended.
    #[error("{what} of volume {volume} is still running, for {age:?}; try again later")]
    Pending {
        /// The volume.
        volume: VolumeId,
        /// Which operation.
        what: &'static str,
        /// Since when.
        age: Duration,
    },
    /// Something has to happen first.
    #[error("volume {volume}: {why}")]
    Precondition {
        /// The volume.
        volume: VolumeId,
        /// What, and what to do.
        why: String,
    },
    /// It is there already, otherwise than asked for.
    #[error("volume {volume} is at {} already: {why}", path.display())]
    Exists {
        /// The volume.
        volume: VolumeId,
        /// Where.
        path: PathBuf,
        /// The difference.
        why: String,
    },
    /// The agent or the controller said no.
    #[error("volume {volume}: {source}")]
    Volumes {
        /// The volume.
        volume: VolumeId,
        /// Why.
        #[source]
        source: VolumesError,
    },
    /// The kernel, or a tool.
    #[error("volume {volume}: {source}")]
    Tool {
        /// The volume.
        volume: VolumeId,
        /// Why.
        #[source]
        source: ToolError,
    },
    /// A path could not be made, read or removed.
    #[error("volume {volume}: {op} {}: {source}", path.display())]
    Path {
        /// The volume.
        volume: VolumeId,
        /// What was tried.
        op: &'static str,
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Its user cannot be limited as it should.
    #[error("volume {volume}: {source}")]
    Limit {
        /// The volume.
        volume: VolumeId,
        /// Why.
        #[source]
        source: LimitError,
    },
    /// A kernel call was not started.
    #[error("volume {volume}: {source}")]
    NotStarted {
        /// The volume.
        volume: VolumeId,
        /// Why.
        #[source]
        source: DeadlineError,
    },
    /// A kernel call did not return in time; it may still.
    #[error(
        "volume {volume}: {what} did not return within {within:?}; it may still, and until then nothing else is done with the volume"
    )]
    TimedOut {
        /// The volume.
        volume: VolumeId,
        /// Which.
        what: String,
        /// The time it had.
        within: Duration,
    },
    /// The volume did not become what it has to be in time.
    #[error("volume {volume}: {why}")]
    NotYet {
        /// The volume.
        volume: VolumeId,
        /// What is missing.
        why: String,
    },
    /// The thread of a call died.
    #[error("volume {volume}: {what} ended in a panic, see the log")]
    Panicked {
        /// The volume.
        volume: VolumeId,
        /// Which.
        what: String,
    },
    /// A fault that was asked for.
    #[error(transparent)]
    Injected(#[from] Injected),
}

impl CsiError {
    /// A field that is required and is not set.
    pub(super) fn missing(field: &str) -> Self {
        CsiError::Argument(format!("{field} is required"))
    }

    /// The gRPC code.
    pub fn code(&self) -> Code {
        match self {
            CsiError::Argument(_) => Code::InvalidArgument,
            CsiError::OutOfRange(_) => Code::OutOfRange,
            CsiError::NoSuchVolume { .. } | CsiError::NotThere { .. } => Code::NotFound,
            CsiError::Pending { .. } => Code::Aborted,
            CsiError::Precondition { .. } => Code::FailedPrecondition,
            CsiError::Exists { .. } => Code::AlreadyExists,
            CsiError::Volumes { source, .. } => match source {
                VolumesError::Refused(status) => status.code(),
                VolumesError::NoController { .. } => Code::Unavailable,
                VolumesError::NotReady { .. } => Code::DeadlineExceeded,
            },
            CsiError::Tool { source: ToolError::Mount(e), .. } => match e {
                MountError::Option(_) | MountError::Unsupported(_) => Code::InvalidArgument,
                MountError::NotBlank { .. } | MountError::Occupied { .. } => Code::FailedPrecondition,
                MountError::Call { .. }
                | MountError::Table(_)
                | MountError::Spawn { .. }
                | MountError::Tool { .. }
                | MountError::RollbackFailed { .. }
                | MountError::ToolTimeout { .. } => code_of(e.class()),
            },
            CsiError::Tool { source, .. } => code_of(source.class()),
            CsiError::Path { source, .. } => code_of(Class::of_io(source)),
            CsiError::Limit { source, .. } => match source.class() {
                // Somebody has to change the node, the CSIDriver or the class.
                Class::Permanent => Code::FailedPrecondition,
                other => code_of(other),
            },
            CsiError::NotStarted { source, .. } => code_of(source.class()),
            CsiError::TimedOut { .. } | CsiError::NotYet { .. } => Code::DeadlineExceeded,
            CsiError::Panicked { .. } | CsiError::Injected(_) => Code::Internal,
        }
    }

    /// As a status. Its details stay empty, as CSI demands.
    pub fn status(&self) -> Status {
        Status::new(self.code(), self.to_string())
    }
}

/// Kernel errors by their class. All of them are worth another try to a CO, which tries again anyway; the code
/// tells people which ones a person has to look at.
fn code_of(class: Class) -> Code {
    match class {
        Class::Transient => Code::Unavailable,
        Class::Busy => Code::Aborted,
        Class::Permanent => Code::Internal,
        // CSI: after DEADLINE_EXCEEDED and the like a CO must assume that anything may have happened.
        Class::OutcomeUnknown => Code::DeadlineExceeded,
    }
}
