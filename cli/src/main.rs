//! weir: what people ask a Weir controller. See `weir --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main("weir")
}
