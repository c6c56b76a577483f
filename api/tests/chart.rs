//! The chart's values, its schema and its README say the same keys. What Helm makes of them is `./dev test manifests`.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::Value;

fn chart(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/weir").join(file);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Paths of all values that are no mappings; lists are not looked into.
fn leaves(at: &str, v: &Value, out: &mut BTreeSet<String>) {
    match v {
        Value::Object(o) if !o.is_empty() && !is_free(at) => {
            for (k, v) in o {
                leaves(&if at.is_empty() { k.clone() } else { format!("{at}.{k}") }, v, out);
            }
        }
        _ => drop(out.insert(at.to_owned())),
    }
}

/// Mappings that are Kubernetes's own, or people's.
fn is_free(at: &str) -> bool {
    [".resources", ".nodeSelector", ".updateStrategy"].iter().any(|e| at.ends_with(e))
}

/// Paths that the schema knows, as far as it says what may stand there.
fn known(at: &str, schema: &Value, out: &mut BTreeSet<String>) {
    match schema["properties"].as_object() {
        Some(p) if !is_free(at) => {
            assert_eq!(
                schema["additionalProperties"],
                Value::Bool(false),
                "{at}: other keys must be refused"
            );
            for (k, v) in p {
                known(&if at.is_empty() { k.clone() } else { format!("{at}.{k}") }, v, out);
            }
        }
        _ => drop(out.insert(at.to_owned())),
    }
}

#[test]
fn values_schema_and_readme_know_the_same_keys() {
    let values: Value = serde_yaml::from_str(&chart("values.yaml")).unwrap();
    let schema: Value = serde_json::from_str(&chart("values.schema.json")).unwrap();
    let (mut have, mut allowed) = (BTreeSet::new(), BTreeSet::new());
    leaves("", &values, &mut have);
    known("", &schema, &mut allowed);
    allowed.remove("global");
    assert_eq!(have, allowed, "values.yaml against values.schema.json");
    let readme = chart("README.md");
    let missing: Vec<_> = have.iter().filter(|k| !readme.contains(&format!("`{k}`"))).collect();
    assert!(missing.is_empty(), "not in the chart's README: {missing:?}");
}

#[test]
fn sidecars_are_pinned_by_version() {
    let values: Value = serde_yaml::from_str(&chart("values.yaml")).unwrap();
    for name in ["provisioner", "resizer", "attacher"] {
        let image = &values["sidecars"][name]["image"];
        let tag = image["tag"].as_str().unwrap();
        assert!(tag.starts_with('v') && tag.split('.').count() == 3, "{name}: {tag}");
    }
}

#[test]
fn no_build_of_an_image_is_given_what_git_ignores() {
    let root = |file: &str| chart(&format!("../../{file}"));
    let ignored = root(".dockerignore");
    for line in root(".gitignore").lines() {
        // Git's "anywhere" and docker's are written otherwise.
        let docker = line.strip_prefix('/').map_or_else(|| format!("**/{line}"), str::to_owned);
        assert!(ignored.lines().any(|l| l == docker), "{docker} is not in .dockerignore");
    }
}
