//! What people see: a line for each step with its time, a spinner while it runs, colour where the terminal has it.

use std::{
    fmt::Display,
    io::IsTerminal,
    time::{Duration, Instant},
};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use owo_colors::{AnsiColors, OwoColorize};

/// Where the demo writes.
#[derive(Debug)]
pub(super) struct Screen {
    start: Instant,
    terminal: bool,
    colour: bool,
}

impl Screen {
    /// Standard output, as it is: a terminal gets spinners, and colours unless NO_COLOR is set or it has none.
    pub(super) fn new() -> Screen {
        let terminal = std::io::stdout().is_terminal();
        let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
            || std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        Screen { start: Instant::now(), terminal, colour: terminal && !plain }
    }

    /// Time since the demo began.
    pub(super) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Whether what is printed may be coloured.
    pub(super) fn has_colour(&self) -> bool {
        self.colour
    }

    /// `text` in a colour, or as it is.
    pub(super) fn paint(&self, text: impl Display, colour: AnsiColors) -> String {
        if self.colour { text.color(colour).to_string() } else { text.to_string() }
    }

    /// A line of its own.
    pub(super) fn say(&self, text: &str) {
        println!("{text}");
    }

    /// A heading.
    pub(super) fn heading(&self, text: &str) {
        let text = if self.colour { text.bold().to_string() } else { text.to_owned() };
        println!("\n{text}");
    }

    /// Runs a step; what it returns beside its result is printed when it is done.
    ///
    /// # Errors
    /// Those of the step.
    pub(super) fn step<T>(&self, what: &str, run: impl FnOnce(&Step) -> Result<(T, String)>) -> Result<T> {
        let step = Step { bar: self.terminal.then(|| spinner(what)) };
        let (from, began) = (self.elapsed(), Instant::now());
        if !self.terminal {
            println!("{:>6.1} s  {what} ...", from.as_secs_f64());
        }
        let result = run(&step);
        if let Some(bar) = &step.bar {
            bar.finish_and_clear();
        }
        let took = format!("{:.1} s", began.elapsed().as_secs_f64());
        let (mark, detail) = match &result {
            Ok((_, detail)) => (self.paint("ok", AnsiColors::Green), detail.as_str()),
            Err(_) => (self.paint("FAILED", AnsiColors::Red), ""),
        };
        let colon = if detail.is_empty() { "" } else { ": " };
        if self.terminal {
            println!("{:>6.1} s  {mark}  {what}{colon}{detail} ({took})", from.as_secs_f64());
        } else {
            println!("{:>6.1} s    {mark}{colon}{detail} ({took})", self.elapsed().as_secs_f64());
        }
        result.map(|(value, _)| value)
    }
}

fn spinner(what: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_prefix(what.to_owned());
    if let Ok(style) = ProgressStyle::with_template("{elapsed:>8}  {spinner} {prefix} {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// A step that runs.
#[derive(Debug)]
pub(super) struct Step {
    bar: Option<ProgressBar>,
}

impl Step {
    /// What it does just now; shown on terminals only.
    pub(super) fn note(&self, text: impl Into<String>) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("- {}", text.into()));
        }
    }
}
