//! `weir-simulate`: what `weir simulate` runs, as a program of its own.

use clap::Parser;
use simulate::command::Options;

fn main() -> anyhow::Result<()> {
    simulate::command::run(&Options::parse(), &mut std::io::stdout().lock())
}
