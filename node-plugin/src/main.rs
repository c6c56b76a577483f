//! weir-node: the node plugin. See `weir-node --help`.

use std::{io::IsTerminal, process::ExitCode};

use clap::Parser;
use node_plugin::{
    config::{Config, Flags, LogFormat},
    csi::Faults,
    serve,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    match start(&Flags::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("weir-node: {}", observe::chain(&*e));
            ExitCode::FAILURE
        }
    }
}

fn start(flags: &Flags) -> Result<(), Box<dyn std::error::Error>> {
    let config = Config::load(flags)?;
    if flags.check_config {
        println!("the configuration is fine");
        return Ok(());
    }
    let faults = Faults::from_env(std::env::var("WEIR_CRASH_AT").ok().as_deref())?;
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(config.log_level.as_str()));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match config.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    // Two workers: the plugin waits most of the time, and what blocks has threads of its own.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let (tx, stop) = watch::channel(false);
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::spawn(async move {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            tx.send_replace(true);
        });
        serve::run(config, faults, stop).await?;
        Ok::<(), Box<dyn std::error::Error>>(())
    })?;
    // Kernel calls that never return must not keep the process.
    runtime.shutdown_background();
    Ok(())
}
