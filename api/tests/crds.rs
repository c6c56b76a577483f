//! The definitions in the chart are those of the types, and hold to what the API server demands of them.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use serde_json::Value;

#[test]
fn the_chart_has_what_the_types_say() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/weir/crds");
    let files = api::crds::files().unwrap();
    for (name, text) in &files {
        let there = std::fs::read_to_string(dir.join(name)).unwrap_or_default();
        assert!(there == *text, "{name} is not up to date: cargo run -p api --example crds");
    }
    let mut there: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    let mut want: Vec<_> = files.into_iter().map(|(name, _)| name).collect();
    there.sort();
    want.sort();
    assert_eq!(there, want);
}

#[test]
fn the_page_of_parameters_is_up_to_date() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/parameters.md");
    let there = std::fs::read_to_string(page).unwrap();
    let want = api::parameters::fill(&there).unwrap();
    assert!(there == want, "docs/parameters.md is not up to date: cargo run -p api --example crds");
}

/// Each schema has one type (or is an int-or-string), and none of what structural schemas forbid.
fn check(at: &str, v: &Value) {
    let o = v.as_object().unwrap_or_else(|| panic!("{at} is no schema"));
    for word in ["$ref", "oneOf", "anyOf", "not", "definitions", "patternProperties"] {
        assert!(!o.contains_key(word), "{at}: {word}");
    }
    let int_or_string = o.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true));
    assert_eq!(o.get("type").is_some_and(Value::is_string), !int_or_string, "{at}: {v}");
    assert!(
        !int_or_string || !o.contains_key("nullable"),
        "{at}: null is no quantity, a default stands in for it"
    );
    assert!(o.get("type") != Some(&"array".into()) || o.contains_key("items"), "{at}: items");
    if let Some(f) = o.get("format").and_then(Value::as_str) {
        assert!(["int32", "int64", "date-time"].contains(&f), "{at}: format {f}");
    }
    let open = o.get("additionalProperties");
    assert!(open.is_none() || !o.contains_key("properties"), "{at}: properties and additionalProperties");
    for (name, p) in o.get("properties").and_then(Value::as_object).into_iter().flatten() {
        check(&format!("{at}.{name}"), p);
    }
    for (word, p) in o.iter().filter(|(k, _)| ["items", "additionalProperties"].contains(&k.as_str())) {
        check(&format!("{at}.{word}"), p);
    }
}

#[test]
fn schemas_are_structural_and_have_what_people_need() {
    for (name, d) in api::crds::definitions().unwrap() {
        let version = &d["spec"]["versions"][0];
        let schema = &version["schema"]["openAPIV3Schema"];
        for part in ["spec", "status"] {
            check(&format!("{name}: {part}"), &schema["properties"][part]);
        }
        assert!(version["subresources"]["status"].is_object(), "{name}: status subresource");
        assert!(version["additionalPrinterColumns"].as_array().unwrap().len() > 2, "{name}: columns");
        assert_eq!(d["spec"]["names"]["shortNames"].as_array().map(Vec::len), Some(1), "{name}");
        assert_eq!(d["spec"]["scope"], "Cluster", "{name}");
        let status = &schema["properties"]["status"]["properties"];
        assert!(status["conditions"]["items"]["properties"]["observedGeneration"].is_object(), "{name}");
    }
}
