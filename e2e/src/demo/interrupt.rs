//! Ctrl-C: ends what this process started, files included, before it ends itself. The kernel would kill the machines
//! anyway, but their disks would stay.

use anyhow::{Context, Result};

use crate::lab::{Lab, process::Lifetime};

/// What a shell expects of a program that an interrupt ended.
const INTERRUPTED: i32 = 130;

/// From now on an interrupt ends all labs of this process that do not outlive it, and then the process.
///
/// # Errors
/// Signals cannot be waited for.
pub(super) fn end_labs_on_interrupt() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let thread = std::thread::Builder::new().name("interrupt".into());
    thread
        .spawn(move || {
            if let Err(e) = runtime.block_on(tokio::signal::ctrl_c()) {
                eprintln!("weir-lab: interrupts cannot be waited for: {e}");
                return;
            }
            eprintln!("\nweir-lab: interrupted; ending what was started");
            if let Err(e) = end_labs() {
                eprintln!("weir-lab: {e:#}");
            }
            std::process::exit(INTERRUPTED);
        })
        .context("start a thread for interrupts")?;
    Ok(())
}

fn end_labs() -> Result<()> {
    let me = std::process::id();
    for name in Lab::all()? {
        let lab = Lab::open(&name)?;
        if lab.config().owner.pid == me && lab.config().lifetime == Lifetime::Owned {
            lab.down()?;
        }
    }
    Ok(())
}
