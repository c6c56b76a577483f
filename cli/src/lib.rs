//! weir: asks a controller's Operator service, and tells it what to do where there is no Kubernetes.
//!
//! Tables for people, `-o json` for programs. Must not know: anything of the pool that the service does not say.

mod args;
mod ask;
mod connect;
mod drain;
mod figures;
mod manage;
mod part;
mod tables;

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};

pub use connect::ConnectError;

/// What shells know as "ended by Ctrl-C": 128 and the signal's number.
const INTERRUPTED: u8 = 130;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No controller was reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It refused.
    #[error("{}", refusal(.0))]
    Refused(#[from] Box<tonic::Status>),
    /// What was waited for did not come.
    #[error("{0}")]
    Unfinished(String),
    /// A simulation could not be run.
    #[error("{0}")]
    Simulation(String),
    /// Somebody pressed Ctrl-C.
    #[error("{0}")]
    Interrupted(String),
    /// The answer cannot be printed.
    #[error("the answer cannot be printed: {0}")]
    Print(#[from] std::io::Error),
    /// The answer cannot be written as JSON.
    #[error("the answer cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl From<tonic::Status> for Error {
    fn from(s: tonic::Status) -> Self {
        Self::Refused(Box::new(s))
    }
}

/// What a controller's refusal says to a person.
fn refusal(s: &tonic::Status) -> String {
    use std::error::Error as _;
    match (s.code(), s.source()) {
        // The connection's own failure, not the controller's word.
        (tonic::Code::Unavailable | tonic::Code::Unknown, Some(source)) => {
            let mut why = source.to_string();
            let mut cause = source.source();
            while let Some(c) = cause {
                why = c.to_string();
                cause = c.source();
            }
            format!("the controller cannot be reached: {why}")
        }
        (tonic::Code::Unimplemented, _) => {
            "this is no operator's endpoint, or the controller is older than this program".to_owned()
        }
        _ => s.message().to_owned(),
    }
}

/// Runs the program under the name that it is called by.
#[must_use]
pub fn main(name: &'static str) -> ExitCode {
    let command = args::Args::command().name(name).bin_name(name);
    let args = match args::Args::from_arg_matches(&command.get_matches()) {
        Ok(a) => a,
        Err(e) => e.exit(),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(r) => r,
        Err(e) => {
            eprintln!("{name}: {e}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(ask::run(&args, name)) {
        Ok(()) => ExitCode::SUCCESS,
        // `weir disks | head`: whoever read has enough.
        Err(Error::Print(e)) if e.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{name}: {e}");
            match e {
                Error::Interrupted(_) => ExitCode::from(INTERRUPTED),
                Error::Connect(_)
                | Error::Refused(_)
                | Error::Unfinished(_)
                | Error::Simulation(_)
                | Error::Print(_)
                | Error::Json(_) => ExitCode::FAILURE,
            }
        }
    }
}
