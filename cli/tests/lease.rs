//! In a cluster the program asks kubectl who reigns: by the Lease that it is told of.
#![allow(clippy::unwrap_used)]

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

/// A kubectl that says what it was asked, and fails.
const KUBECTL: &str = "#!/bin/sh\necho \"asked: $*\" >&2\nexit 1\n";
/// One that has a Lease whose holder is no pod.
const NO_POD: &str = "#!/bin/sh\necho nobody\n";

/// What `weir status` says beside such a kubectl.
fn said(kubectl: &str, flags: &[&str], lease: Option<&str>) -> String {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("kubectl");
    fs::write(&program, kubectl).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let mut weir = Command::new(env!("CARGO_BIN_EXE_weir"));
    weir.args(["--context", "c"]).args(flags).arg("status").env_clear();
    weir.env("PATH", dir.path()).envs(lease.map(|l| ("WEIR_LEASE", l)));
    let out = weir.output().unwrap();
    assert!(!out.status.success());
    String::from_utf8(out.stderr).unwrap()
}

#[test]
fn the_lease_is_that_of_the_release() {
    for (flags, lease, asked) in [
        (&[][..], None, "--namespace weir-system get lease weir-controller -o"),
        (&["--lease", "store-controller"], None, "get lease store-controller -o"),
        (&[], Some("s-weir-controller"), "get lease s-weir-controller -o"),
        (&["--lease", "a", "-n", "b"], Some("c"), "--namespace b get lease a -o"),
    ] {
        let said = said(KUBECTL, flags, lease);
        assert!(said.contains(asked), "{flags:?} {lease:?}: {said}");
    }
    let said = said(NO_POD, &["--lease", "x"], None);
    assert!(
        said.contains("no controller reigns in namespace weir-system: its Lease x has no holder"),
        "{said}"
    );
}
