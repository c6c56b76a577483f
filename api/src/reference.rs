//! The reference of the custom resources for people (docs/crds.md), from the same definitions that the cluster is given.
//! Must not know: where it lies.

use serde_json::{Map, Value};

use crate::crds::{RenderError, definitions};

const HEAD: &str = "\
<!-- Generated from the crate api: cargo run -p api --example crds -->
# Custom resources

Group `weir.storage`, version `v1alpha1`, all of the whole cluster. `kubectl get weir` lists all kinds at once. StoragePool is written by
people; all others by the controller alone: their `spec` is its record. `status` is for people and follows from records.
";

/// The page, Markdown.
///
/// # Errors
/// See [`RenderError`].
pub fn page() -> Result<String, RenderError> {
    let mut out = HEAD.to_owned();
    for (_, d) in definitions()? {
        let version = &d["spec"]["versions"][0];
        let schema = &version["schema"]["openAPIV3Schema"];
        let names = &d["spec"]["names"];
        let word = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        out += &format!(
            "\n## {} (`{}`)\n\n{}\n",
            word(&names["kind"]),
            word(&names["shortNames"][0]),
            word(&schema["description"])
        );
        let columns = version["additionalPrinterColumns"].as_array();
        let columns = columns.into_iter().flatten().map(|c| {
            let wide = if c["priority"].as_i64().unwrap_or(0) > 0 { " (wide)" } else { "" };
            format!("{}{wide}", word(&c["name"]))
        });
        out += &format!("\nColumns: {}.\n", columns.collect::<Vec<_>>().join(", "));
        for part in ["spec", "status"] {
            out += &format!("\n| {part} | type | means |\n|---|---|---|\n");
            let mut rules = vec![];
            rows("", &schema["properties"][part], &mut out, &mut rules);
            for r in rules {
                out += &r;
            }
        }
    }
    Ok(out)
}

fn rows(at: &str, schema: &Value, out: &mut String, rules: &mut Vec<String>) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let place = if at.is_empty() { String::new() } else { format!("`{at}`: ") };
        let line = format!(
            "{}{place}{}\n",
            if rules.is_empty() { "\nRefused:\n- " } else { "- " },
            rule["message"].as_str().unwrap_or_default()
        );
        rules.push(line);
    }
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let empty = Map::new();
    for (name, p) in schema["properties"].as_object().unwrap_or(&empty) {
        let path = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
        let needed = if required.contains(&name.as_str()) { ", needed" } else { "" };
        let text = p["description"].as_str().unwrap_or_default().replace('\n', " ").replace('|', "\\|");
        out.push_str(&format!("| `{path}` | {}{needed} | {text} |\n", kind(p)));
        rows(&path, p, out, rules);
        if p["items"].is_object() {
            rows(&format!("{path}[]"), &p["items"], out, rules);
        }
    }
}

/// What may stand in a field, in few words.
fn kind(p: &Value) -> String {
    if p["x-kubernetes-int-or-string"] == Value::Bool(true) {
        return "quantity".to_owned();
    }
    if let Some(all) = p["enum"].as_array() {
        let words = all.iter().filter(|v| !v.is_null()).map(|v| v.to_string().trim_matches('"').to_owned());
        return words.map(|w| format!("`{w}`")).collect::<Vec<_>>().join(" ");
    }
    let own = p["type"].as_str().unwrap_or("any");
    match own {
        "array" => format!("list of {}", kind(&p["items"])),
        "object" if p["additionalProperties"].is_object() => "map".to_owned(),
        other => other.to_owned(),
    }
}
