use super::*;

fn err(text: &str) -> String {
    parse(Path::new("node.yaml"), text).expect_err("refused").to_string()
}

const WHOLE: &str = "\
node: n1
controller:
  endpoints: [http://10.0.2.2:9710]
  tls: {ca: /ca, cert: /cert, key: /key}
csi: {endpoint: 'unix:///run/weir/csi.sock'}
stateDir: /var/lib/weir
storage: {cidr: 10.77.0.0/16, port: 4421}
devices: ['/dev/vd[b-z]']
topology: {zone: z1, example.com/rack: r2}
maxVolumes: 20
logging: {level: debug, format: json}
";

#[test]
fn a_whole_file() {
    let c = Config::merge(parse(Path::new("f"), WHOLE).unwrap(), &Flags::default()).unwrap();
    assert_eq!(c.node.as_str(), "n1");
    assert_eq!(c.csi_socket, Path::new("/run/weir/csi.sock"));
    assert_eq!(c.topology["topology.weir.storage/zone"], "z1");
    assert_eq!(c.topology["topology.weir.storage/node"], "n1");
    assert_eq!(c.topology["example.com/rack"], "r2");
    assert_eq!((c.storage_port, c.max_volumes), (4421, 20));
    assert_eq!(c.storage, StorageNet::Network("10.77.0.0/16".parse().unwrap()));
    assert!(c.looks_at("/dev/vdb") && !c.looks_at("/dev/vda"));
    assert_eq!((c.log_level, c.log_format), (LogLevel::Debug, LogFormat::Json));
}

#[test]
fn flags_come_first() {
    use clap::Parser;
    let args = ["weir-node", "--node", "n9", "--controller", "https://c:1", "--storage-address", "::1"];
    let flags = Flags::try_parse_from(args).unwrap();
    let c = Config::merge(parse(Path::new("f"), WHOLE).unwrap(), &flags).unwrap();
    assert_eq!(c.node.as_str(), "n9");
    assert_eq!(c.controllers, ["https://c:1".parse().unwrap()]);
    assert_eq!(c.storage, StorageNet::Address("::1".parse().unwrap()));
}

#[test]
fn what_is_wrong_is_told_with_its_place_and_what_is_allowed() {
    for (text, parts) in [
        ("node: n1\nnodes: n2\n", &["node.yaml:2:1", "nodes", "expected one of", "`maxVolumes`"][..]),
        ("storage:\n  adress: 10.0.0.1\n", &["node.yaml:2:3", "adress", "`address`", "`cidr`"]),
        ("node: N_1\n", &["node.yaml:1", "N_1", "lower-case letters"]),
        ("controller:\n  endpoints: [ftp://x:1]\n", &["node.yaml:2", "ftp://x:1", "https://host:port"]),
        (
            "controller:\n  endpoints: ['https://x:1']\n  tls: {ca: /ca, cert: /c}\n",
            &["node.yaml:3:3", "go together"],
        ),
        ("controller:\n  endpoints: []\n", &["node.yaml:2:3", "at least one"]),
        ("storage:\n  address: 1.2.3.4\n  interface: eth1\n", &["node.yaml:1:1", "at most one"]),
        ("storage: {cidr: 10.0.0.0/33}\n", &["node.yaml:1", "10.0.0.0/33", "address/prefix"]),
        ("logging:\n  level: loud\n", &["node.yaml:2", "loud", "`debug`"]),
        ("devices: [sda]\n", &["node.yaml:1", "sda", "/dev/"]),
        ("maxVolumes: -1\n", &["node.yaml:1", "-1"]),
        ("maxVolumes: 0\n", &["node.yaml:1:1", "1 or more"]),
        ("topology: {node: x}\n", &["node.yaml:1", "set by the plugin"]),
        ("topology: {zone: 'a b'}\n", &["node.yaml:1", "letters, digits"]),
        ("stateDir: here\n", &["node.yaml:1:1", "absolute"]),
        ("csi:\n  endpoint: tcp://1.2.3.4:1\n", &["node.yaml:2", "unix:///"]),
        ("node: [\n", &["node.yaml:1", "sequence", "expected a string"]),
    ] {
        let got = err(text);
        for p in parts {
            assert!(got.contains(p), "{text:?}: {got:?} lacks {p:?}");
        }
        assert_eq!(got.matches("line").count(), 0, "the place is told once: {got}");
    }
}

#[test]
fn an_empty_file_says_nothing_and_a_controller_is_needed() {
    let f = parse(Path::new("f"), "# nothing\n\n").unwrap();
    let e = Config::merge(f, &Flags::default()).unwrap_err();
    assert!(e.to_string().contains("--controller"), "{e}");
}

#[test]
fn networks() {
    let c: Cidr = "10.77.3.0/24".parse().unwrap();
    assert!(c.contains("10.77.3.9".parse().unwrap()) && !c.contains("10.77.4.9".parse().unwrap()));
    assert!(!c.contains("::1".parse().unwrap()));
    let all: Cidr = "0.0.0.0/0".parse().unwrap();
    assert!(all.contains("255.1.2.3".parse().unwrap()));
    assert!("10.0.0.0".parse::<Cidr>().is_err());
}
