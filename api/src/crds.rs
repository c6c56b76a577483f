//! The definitions that a cluster is given: generated, brought into the form that the API server takes without a warning,
//! and rendered for the chart. Must not know: where the chart lies.

use kube::CustomResourceExt;
use serde_json::Value;

use crate::{LogicalSnapshot, LogicalVolume, NodeDisk, StorageNode, StoragePool};

/// Why a definition could not be rendered.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// As JSON.
    #[error("a definition cannot be written as JSON")]
    Json(#[from] serde_json::Error),
    /// As YAML.
    #[error("a definition cannot be written as YAML")]
    Yaml(#[from] serde_yaml::Error),
}

/// All definitions with their full names, as JSON objects.
///
/// # Errors
/// See [`RenderError`].
pub fn definitions() -> Result<Vec<(String, Value)>, RenderError> {
    let all = [
        StoragePool::crd(),
        NodeDisk::crd(),
        StorageNode::crd(),
        LogicalVolume::crd(),
        LogicalSnapshot::crd(),
    ];
    all.into_iter()
        .map(|crd| {
            let name = crd.metadata.name.clone().unwrap_or_default();
            let mut value = serde_json::to_value(&crd)?;
            normalize(&mut value);
            Ok((name, value))
        })
        .collect()
}

/// All definitions with the names of their files in the chart, as YAML.
///
/// # Errors
/// See [`RenderError`].
pub fn files() -> Result<Vec<(String, String)>, RenderError> {
    const HEAD: &str = "# Generated from the crate api: cargo run -p api --example crds\n";
    definitions()?
        .into_iter()
        .map(|(name, value)| {
            Ok((format!("{name}.yaml"), format!("{HEAD}{}", serde_yaml::to_string(&value)?)))
        })
        .collect()
}

/// Structural schemas know signed integers only, and no `additionalProperties` beside `properties`; null is no quantity,
/// though kube lets it stand for each that may be left out.
fn normalize(v: &mut Value) {
    match v {
        Value::Object(o) => {
            if o.get("additionalProperties") == Some(&Value::Bool(false)) {
                o.remove("additionalProperties");
            }
            if o.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true)) {
                o.remove("nullable");
            }
            let signed = match o.get("format").and_then(Value::as_str) {
                Some("uint64" | "uint32" | "uint") => Some("int64"),
                Some("uint16" | "uint8") => Some("int32"),
                _ => None,
            };
            if let Some(format) = signed {
                o.insert("format".to_owned(), format.into());
            }
            o.values_mut().for_each(normalize);
        }
        Value::Array(a) => a.iter_mut().for_each(normalize),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
