//! The program against a controller that runs, with TLS, on loopback, and a node that obeys it.
#![allow(clippy::unwrap_used, missing_docs)]

mod stand;

use serde_json::Value;

use stand::{MIB, Stand};

#[tokio::test(flavor = "multi_thread")]
async fn people_see_what_the_controller_knows() {
    let s = Stand::start().await;
    let status = s.json(&["status"]);
    assert_eq!(status["pools"][0]["pool"], "p");
    assert_eq!(status["pools"][0]["sizeBytes"], 2 * 10 * 4 * MIB);
    assert_eq!(status["nodes"].as_array().unwrap().len(), 2);
    assert!(s.table(&["status"]).contains("2 serving"));

    s.ok(&["volume", "create", "big", "60M", "--beside", "n1"]);
    let device = s.ok(&["volume", "attach", "big", "n1"]);
    assert!(device.starts_with("/dev/mapper/weir-"), "{device}");
    let loans = s.json(&["loans"]);
    let loan = &loans[0];
    assert_eq!(
        (&loan["lender"], &loan["borrower"], &loan["volumeName"]),
        (&"n2".into(), &"n1".into(), &"big".into())
    );
    assert_eq!(loan["bytes"], 5 * 4 * MIB);
    let volumes = s.table(&["volumes"]);
    assert!(volumes.contains("big") && volumes.contains("Attached"), "{volumes}");
    let why = s.table(&["explain", "big"]);
    for word in ["beside n1", "beside the consumer", "most room", "borrowed", "created", "attached to n1"] {
        assert!(why.contains(word), "{word}: {why}");
    }
    let id = volumes.lines().nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    assert_eq!(s.json(&["explain", &id])["volume"]["name"], "big");

    s.ok(&["volume", "resize", "big", "64M"]);
    s.ok(&["volume", "detach", "big", "n1"]);
    s.ok(&["volume", "delete", "big"]);
    let gone = |v: Value| v.as_array().unwrap().is_empty();
    stand::until("the volume is wiped and gone", || gone(s.json(&["volumes"]))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forecasts_and_offers_are_shown() {
    let s = Stand::start().await;
    s.record("n2", 30).await;
    let disks = s.json(&["disks"]);
    let of = |node: &str| disks.as_array().unwrap().iter().find(|d| d["node"] == node).unwrap().clone();
    assert!(of("n1")["activity"].is_null(), "n1 has recorded nothing");
    assert!((of("n2")["activity"]["load"].as_f64().unwrap() - 300.0).abs() < 1.0);
    stand::until("the offer is made", || {
        let disks = s.json(&["disks"]);
        disks.as_array().unwrap().iter().any(|d| d["offer"]["bytes"].as_u64().is_some_and(|n| n > 0))
    })
    .await;
    let table = s.table(&["disks"]);
    assert!(table.contains("nothing is recorded of it"), "{table}");
    let text = s.table(&["forecast", "n2:/dev/n2"]);
    for word in ["load 300", "OVER THE NEXT", "█", "its owner's growth", "the offer stands for"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let json = s.json(&["forecast", of("n2")["disk"].as_str().unwrap()]);
    // The offer's look ahead, and the hour that has begun since when it has.
    let len = |what: &str| json[what].as_array().unwrap().len();
    assert!(matches!((len("hours"), len("horizons")), (29 | 30, 4)), "{json}");
    let top = s.table(&["top", "--once"]);
    assert!(top.contains("n2") && !top.contains("n1"), "{top}");
    for line in s.narrow(&["disks"], 80).lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_drained_and_taken_back() {
    let s = Stand::start().await;
    s.ok(&["volume", "create", "used", "12M", "--beside", "n1"]);
    s.ok(&["volume", "attach", "used", "n1"]);
    s.ok(&["volume", "create", "idle", "8M", "--beside", "n1"]);

    let dry = s.json(&["drain", "n1", "--dry-run"]);
    let disk = &dry["disks"][0];
    assert_eq!((&disk["volumes"], &disk["leftBytes"]), (&2.into(), &(5 * 4 * MIB).into()));
    assert_eq!(disk["plan"]["bytes"], 5 * 4 * MIB);
    let text = s.table(&["drain", "n1", "--dry-run"]);
    for word in
        ["To drain node n1: 20Mi of 20Mi on 1 disk would move", "used", "idle", "n2", "Nothing was changed"]
    {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert!(s.fails(&["undrain", "n1"]).contains("node n1 is not being drained"));

    let text = s.table(&["drain", "n1", "--every", "1", "--timeout", "60s"]);
    assert!(text.contains("node n1: ") && text.contains("under way"), "{text}");
    assert!(text.contains("node n1 is drained") && text.contains("until `weir undrain n1`"), "{text}");
    // Again: there is nothing to wait for.
    let text = s.table(&["drain", "n1"]);
    assert!(text.starts_with("node n1 is drained") && text.lines().count() == 1, "{text}");
    let lines = s.ok(&["drain", "n1", "-o", "json"]);
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!((&last["node"], &last["disks"][0]["leftBytes"]), (&"n1".into(), &0.into()));

    let text = s.ok(&["undrain", "n1"]);
    assert!(text.contains("node n1 takes new extents again"), "{text}");
    assert!(s.table(&["status"]).contains("2 serving"));

    // Nobody has room for what lies on n2 and n1 together.
    s.ok(&["volume", "create", "full", "40M", "--beside", "n1"]);
    let id =
        s.json(&["disks"]).as_array().unwrap().iter().find(|d| d["node"] == "n2").unwrap()["disk"].clone();
    let said = s.fails(&["drain", id.as_str().unwrap(), "--timeout", "3s"]);
    assert!(said.contains("is not drained yet") && said.contains("the drain goes on"), "{said}");
    let (code, said) = s.interrupted(&["drain", "n2"]);
    assert_eq!(code, Some(130), "{said}");
    assert!(said.contains("the drain goes on: `weir drain n2` waits for it again"), "{said}");
    let text = s.ok(&["drain", "n2:/dev/n2", "--no-wait"]);
    assert!(text.contains("is being drained already"), "{text}");
    s.ok(&["undrain", "n2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_is_said() {
    let s = Stand::start().await;
    for (args, says) in [
        (&["explain", "nothing"][..], "nothing"),
        (&["forecast", "n9:/dev/x"], "n9:/dev/x"),
        (&["drain", "n9"], "neither a node (there are: n1, n2) nor a disk"),
        (&["undrain", "n1"], "not being drained"),
        (&["drain", "n1", "--timeout", "soon"], "no time"),
        (&["volume", "create", "v", "1M", "-p", "layout=round"], "layout"),
        (&["volume", "create", "v", "1M", "--beside", "n7"], "n1, n2"),
        (&["volume", "create", "v", "10T"], "p"),
        (&["volume", "create", "v", "10X"], "no size"),
        (&["--endpoint", "ftp://x", "status"], "no endpoint"),
        (&["--endpoint", "http://127.0.0.1:1", "status"], "127.0.0.1:1"),
        (&["--lab", "none-of-this-name", "status"], "none-of-this-name"),
    ] {
        let said = s.fails(args);
        assert!(said.contains(says), "{args:?}: {said}");
        assert!(said.lines().count() <= 6 && !said.contains("Status {"), "{said}");
    }
    let said = s.fails_as("n1", &["volume", "delete", "anything"]);
    assert!(said.contains("organization (O) must be weir:operators"), "{said}");
    let script = s.ok(&["completion", "bash"]);
    assert!(script.contains("_weir"), "{script}");
}
