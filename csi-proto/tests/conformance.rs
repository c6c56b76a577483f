//! Holds `proto/csi.proto` against the published CSI specification, and shows that the comparison
//! sees every kind of difference. Needs the `go` command.

mod contract;
mod published;

use contract::{Contract, compile, contract, differences};
use published::{FetchError, fetch_module, go_descriptor, proto_text};

const OURS: &str = include_str!("../proto/csi.proto");

fn ours() -> Contract {
    contract(&compile(OURS).expect("our csi.proto compiles"))
}

fn assert_same(published: &Contract) {
    let found = differences(&ours(), published);
    assert!(found.is_empty(), "{} differences:\n{}", found.len(), found.join("\n"));
}

fn count(rows: &Contract, kind: &str) -> usize {
    rows.keys().filter(|key| key.split(' ').next() == Some(kind)).count()
}

#[test]
fn same_contract_as_the_published_proto() {
    let module = fetch_module("go").unwrap_or_else(|error| panic!("{error}"));
    let text = proto_text(&module).unwrap_or_else(|error| panic!("{error}"));
    assert_same(&contract(&compile(&text).expect("the published csi.proto compiles")));
}

#[test]
fn same_contract_as_the_published_go_code() {
    let module = fetch_module("go").unwrap_or_else(|error| panic!("{error}"));
    let file = go_descriptor(&module).unwrap_or_else(|error| panic!("{error}"));
    assert_same(&contract(&file));
}

#[test]
fn a_missing_go_command_is_reported_as_such() {
    let error = fetch_module("no-such-go-command").expect_err("no such command");
    assert!(matches!(error, FetchError::NoGo { .. }), "{error}");
    assert!(error.to_string().contains("need Go"), "{error}");
}

#[test]
fn the_comparison_covers_every_kind_of_declaration() {
    let rows = ours();
    let services: Vec<_> = rows.keys().filter_map(|key| key.strip_prefix("service csi.v1.")).collect();
    assert_eq!(services, ["Controller", "GroupController", "Identity", "Node", "SnapshotMetadata"]);
    assert_eq!(count(&rows, "method"), OURS.lines().filter(|line| line.trim().starts_with("rpc ")).count());
    assert_eq!(count(&rows, "oneof"), 6);
    assert_eq!(count(&rows, "extension"), 7);
    let secret = |row: &&String| row.contains("csi.v1.csi_secret=true");
    assert_eq!(rows.values().filter(secret).count(), 19);
}

/// Differences after `from`, found once or more, is replaced by `to` at its first place.
fn differences_after(from: &str, to: &str) -> Vec<String> {
    assert!(OURS.contains(from), "csi.proto no longer holds {from:?}");
    let changed = OURS.replacen(from, to, 1);
    let changed = compile(&changed).unwrap_or_else(|error| panic!("{from:?} -> {to:?}: {error}"));
    differences(&contract(&changed), &ours())
}

#[test]
fn each_kind_of_difference_is_reported_under_its_name() {
    let cases = [
        ("package csi.v1;", "package csi.v2;", "file"),
        ("bool csi_secret = 1059;", "bool csi_secret = 1061;", "extension csi_secret"),
        ("int64 required_bytes = 1;", "int32 required_bytes = 1;", "field CapacityRange.required_bytes"),
        ("int64 limit_bytes = 2;", "int64 limit_bytes = 3;", "field CapacityRange.limit_bytes"),
        ("int64 limit_bytes = 2;", "optional int64 limit_bytes = 2;", "field CapacityRange.limit_bytes"),
        ("int64 limit_bytes = 2;", "int64 limitBytes = 2;", "field CapacityRange.limit_bytes"),
        (
            "repeated string mount_flags",
            "string mount_flags",
            "field VolumeCapability.MountVolume.mount_flags",
        ),
        ("map<string, string> segments", "map<string, bytes> segments", "field Topology.SegmentsEntry.value"),
        (
            "string fs_type = 1;",
            "string fs_type = 1 [json_name = \"fs\"];",
            "field VolumeCapability.MountVolume.fs_type",
        ),
        ("secrets = 5 [(csi_secret) = true];", "secrets = 5;", "field CreateVolumeRequest.secrets"),
        ("MountVolume mount = 2;\n  }", "}\n  MountVolume mount = 2;", "oneof VolumeCapability.access_type"),
        (
            "MULTI_NODE_READER_ONLY = 3;",
            "MULTI_NODE_READER_ONLY = 9;",
            "value VolumeCapability.AccessMode.Mode.MULTI_NODE_READER_ONLY",
        ),
        (
            "MULTI_WRITER = 7 [(alpha_enum_value) = true]",
            "MULTI_WRITER = 7",
            "value VolumeCapability.AccessMode.Mode.SINGLE_NODE_MULTI_WRITER",
        ),
        ("(stream GetMetadataDelta", "(GetMetadataDelta", "method SnapshotMetadata.GetMetadataDelta"),
        ("Probe(ProbeRequest)", "Probe(stream ProbeRequest)", "method Identity.Probe"),
        ("Probe(ProbeRequest)", "Probe(ProbeResponse)", "method Identity.Probe"),
        ("returns (ProbeResponse)", "returns (ProbeRequest)", "method Identity.Probe"),
        ("option (alpha_service) = true;", "", "service SnapshotMetadata"),
        ("option (alpha_message) = true;", "", "message VolumeCondition"),
        ("option (alpha_method) = true;", "", "method Controller.GetSnapshot"),
        ("message ProbeRequest {}", "message ProbeRequest {}\nmessage Extra {}", "message Extra"),
        ("enum BlockMetadataType {", "enum Extra { NONE = 0; }\nenum BlockMetadataType {", "enum Extra"),
    ];
    for (from, to, key) in cases {
        let found = differences_after(from, to);
        let prefix = format!("{}: ", key.replace(' ', " csi.v1."));
        assert!(found.iter().any(|line| line.starts_with(&prefix)), "{from:?} -> {to:?} gave {found:#?}");
    }
}

/// Drops, then renumbers, each line that declares a field, a value or a method.
#[test]
fn no_declaration_can_be_lost_or_renumbered_unseen() {
    let ours = ours();
    let lines: Vec<&str> = OURS.lines().collect();
    let (mut seen, mut refused) = (0, 0);
    for (at, line) in lines.iter().enumerate() {
        for changed in changes(line) {
            let mut text = lines.clone();
            text[at] = &changed;
            match compile(&text.join("\n")) {
                Err(_) => refused += 1,
                Ok(file) => {
                    let found = differences(&contract(&file), &ours);
                    assert!(!found.is_empty(), "line {}: {line:?} -> {changed:?} went unseen", at + 1);
                    seen += 1;
                }
            }
        }
    }
    // What the compiler refuses: an enum without its zero, an empty oneof, half of an rpc, and the
    // options once nothing declares them.
    assert!(seen > 400 && refused < 60, "{seen} seen, {refused} refused by the compiler");
}

/// The line without its declaration, and with its number raised; nothing if it declares nothing.
fn changes(line: &str) -> Vec<String> {
    let code = line.trim();
    if code.starts_with("//") {
        return Vec::new();
    }
    if code.starts_with("rpc ") && code.ends_with(';') {
        return vec![String::new()];
    }
    let Some((head, tail)) = line.split_once(" = ") else { return Vec::new() };
    let digits = tail.chars().take_while(char::is_ascii_digit).count();
    let Ok(number) = tail[..digits].parse::<u32>() else { return Vec::new() };
    vec![String::new(), format!("{head} = {}{}", number + 50, &tail[digits..])]
}
