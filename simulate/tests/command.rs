//! The command as a person or a program calls it.

use clap::Parser;
use simulate::command::{Settings, run};
use tempfile::TempDir;

#[derive(Parser)]
struct Words {
    #[command(flatten)]
    settings: Settings,
}

fn called(words: &[&str]) -> anyhow::Result<String> {
    let mut out = Vec::new();
    run(&Words::try_parse_from([&["simulate"], words].concat())?.settings, &mut out)?;
    Ok(String::from_utf8(out)?)
}

#[test]
fn json_has_the_agreed_shape() {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("out.json");
    let json = path.to_str().expect("a name");
    let plot = dir.path().join("out.svg");
    let drawn = plot.to_str().expect("a name");
    let words = ["--generate", "30", "--days", "4", "--seeds", "2", "--json", json, "--plot", drawn];
    let table = called(&words).expect("a run");
    let svg = std::fs::read_to_string(&plot).expect("the plot");
    assert!(svg.contains("mayastor") && svg.trim_end().ends_with("</svg>"));
    assert!(table.contains("reactive_8h") && table.contains("violations"), "{table}");
    let text = std::fs::read_to_string(&path).expect("the results");
    let results: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let keys = |value: &serde_json::Value| -> Vec<String> {
        value.as_object().expect("an object").keys().cloned().collect()
    };
    assert_eq!(keys(&results), ["forecast", "policies"]);
    let horizons = results["forecast"].as_array().expect("a list");
    assert_eq!(
        horizons.iter().map(|h| h["horizon_h"].as_u64()).collect::<Vec<_>>(),
        [1, 4, 12, 24].map(Some)
    );
    assert_eq!(keys(&horizons[0]), ["horizon_h", "violations", "wape"]);
    let policies = results["policies"].as_array().expect("a list");
    assert_eq!(policies.len(), 8);
    assert_eq!(keys(&policies[0]), ["above_cap", "local", "moved_per_day", "overloaded", "policy", "seeds"]);
    assert_eq!(policies[0]["seeds"].as_u64(), Some(2));
}

#[test]
fn scale_needs_no_trace() {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("out.json");
    let table = called(&["--scale", "10", "--json", path.to_str().expect("a name")]).expect("a run");
    assert!(table.contains("10 nodes, 100 disks, 1000 volumes"), "{table}");
    let text = std::fs::read_to_string(&path).expect("the results");
    let results: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let scale = results["scale"].as_object().expect("an object");
    let agreed = ["nodes", "disks", "volumes", "create_ms", "full_plan_s", "incremental_s", "rss_bytes"];
    assert!(agreed.iter().all(|key| scale[*key].is_number()), "{scale:?}");
}

#[test]
fn what_cannot_be_run_is_refused() {
    assert!(called(&[]).is_err());
    assert!(called(&["--trace", "x", "--generate", "3"]).is_err());
    let error = called(&["--trace", "/nonexistent/trace"]).expect_err("no file");
    assert!(format!("{error:#}").contains("/nonexistent/trace"), "{error:#}");
    // Too little to score is no error.
    called(&["--generate", "1", "--days", "0", "--seeds", "1"]).expect("an empty run");
}
