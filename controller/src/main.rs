//! weir-controller: allocates volumes, places and attaches them. See `weir-controller --help`.

use std::{io::IsTerminal, net::IpAddr, path::PathBuf, process::ExitCode};

use clap::Parser;
use controller::{cluster, config::Config, fault::Fault, remains::Remains, serve};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing_subscriber::EnvFilter;

/// The controller of a Weir pool: decides who gets which extents, and tells the nodes.
#[derive(Parser)]
#[command(name = "weir-controller", version)]
struct Args {
    /// The configuration file.
    #[arg(long, default_value = "/etc/weir/controller.yaml")]
    config: PathBuf,
    /// Only check the configuration file.
    #[arg(long)]
    check_config: bool,
    /// Only ask whether the controller that serves health at this address is ready.
    #[arg(long, value_name = "HOST:PORT")]
    ask_ready: Option<String>,
    /// Only look which volumes there are in the cluster's records: fails, and names them, if there is any.
    #[arg(long)]
    check_removal: bool,
    /// Where nodes reach this process: standbys tell nodes the address of whoever reigns.
    #[arg(long, value_name = "IP", env = "WEIR_ADDRESS")]
    address: Option<IpAddr>,
    /// Write the log as JSON, one object a line.
    #[arg(long)]
    log_json: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("weir-controller: {}", observe::chain(&*e));
            ExitCode::FAILURE
        }
    }
}

async fn check_removal(config: &Config) -> Result<(), Box<dyn std::error::Error>> {
    let client = cluster::connect(config.kubeconfig.as_deref()).await?;
    let remains = Remains::find(&client).await?;
    if remains.is_empty() {
        println!("{remains}");
        Ok(())
    } else {
        Err(remains.to_string().into())
    }
}

#[tokio::main]
async fn run(args: &Args) -> Result<(), Box<dyn std::error::Error>> {
    if let Some(at) = args.ask_ready.clone() {
        tokio::task::spawn_blocking(move || observe::ask_ready(&at)).await??;
        println!("ready");
        return Ok(());
    }
    let config = Config::load(&args.config)?;
    if args.check_config {
        println!("{}: ok", args.config.display());
        return Ok(());
    }
    if args.check_removal {
        return check_removal(&config).await;
    }
    let fault = Fault::from_env()?;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(cluster::discreet(filter))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    if args.log_json {
        log.json().init()
    } else {
        log.init()
    }

    let (tx, stop) = watch::channel(false);
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        tx.send_replace(true);
    });
    serve::run(config, args.address, fault, stop).await?;
    Ok(())
}
