//! The list of secret fields that the build derives from the options in `proto/`.

use csi_proto::SECRET_FIELDS;

fn csi_rows() -> Vec<(&'static str, &'static str)> {
    SECRET_FIELDS.iter().copied().filter(|(message, _)| message.starts_with("csi.v1.")).collect()
}

#[test]
fn nineteen_csi_requests_carry_secrets() {
    assert_eq!(csi_rows().len(), 19, "{:#?}", csi_rows());
    for (message, field) in csi_rows() {
        assert!(message.ends_with("Request"), "{message} is not a request");
        assert_eq!(field, "secrets", "in {message}");
    }
}

#[test]
fn requests_with_and_without_secrets_are_told_apart() {
    assert!(SECRET_FIELDS.contains(&("csi.v1.NodeExpandVolumeRequest", "secrets")));
    assert!(!SECRET_FIELDS.iter().any(|(message, _)| *message == "csi.v1.NodeUnstageVolumeRequest"));
}

#[test]
fn the_list_is_sorted_and_without_duplicates() {
    assert!(SECRET_FIELDS.is_sorted_by(|a, b| a < b), "{SECRET_FIELDS:#?}");
}
