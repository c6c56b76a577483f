//! The same as `weir`, under the name that kubectl looks for.

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main("kubectl weir")
}
