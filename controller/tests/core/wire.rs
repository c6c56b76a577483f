//! The node session over real gRPC on loopback.

use std::{sync::Arc, time::Duration};

use controller::{
    api::Api,
    core::CoreConfig,
    flow::sweep,
    session::{Identify, Service},
};
use csi_proto::node as wire;
use pool::ids::NodeName;
use tokio_stream::{StreamExt, wrappers::TcpListenerStream};
use tonic::{Code, Extensions, Request, Status, metadata::MetadataMap};
use wire::node_session_client::NodeSessionClient;

use crate::{
    node::{EXTENT, quick},
    rig::{extents, request, start},
    stores::Memory,
    world::until,
};

/// Believes a header: enough to show that what is proven is held against what is claimed.
struct Header;

#[async_trait::async_trait]
impl Identify for Header {
    async fn node(&self, _: &Extensions, metadata: &MetadataMap) -> Result<Option<NodeName>, Status> {
        let name = metadata.get("node").and_then(|v| v.to_str().ok());
        Ok(name.and_then(|n| n.parse().ok()))
    }
}

fn say(m: wire::node_message::Message) -> wire::NodeMessage {
    wire::NodeMessage { message: Some(m) }
}

fn hello() -> wire::NodeMessage {
    say(wire::node_message::Message::Hello(wire::Hello {
        node: "n1".into(),
        boot_id: "b".into(),
        storage_address: "127.0.0.1".into(),
        storage_port: 4420,
        ..wire::Hello::default()
    }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_attaches_a_volume_over_grpc() {
    // Its node sends no heartbeats.
    let config = CoreConfig { lease: Duration::from_secs(60), ..quick() };
    let (core, _task) = start(config, Arc::new(Memory::default())).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = format!("http://{}", listener.local_addr().unwrap());
    let service = Service::new(core.clone(), Arc::new(Header)).into_server();
    let serve = tonic::transport::Server::builder().add_service(service);
    let server = tokio::spawn(serve.serve_with_incoming(TcpListenerStream::new(listener)));
    let mut client = NodeSessionClient::connect(to).await.unwrap();

    let (say_it, words) = tokio::sync::mpsc::channel(8);
    say_it.send(hello()).await.unwrap();
    let stream = tokio_stream::wrappers::ReceiverStream::new(words);
    let mut heard = client.session(stream).await.unwrap().into_inner();
    let Some(wire::controller_message::Message::Welcome(w)) = heard.next().await.unwrap().unwrap().message
    else {
        panic!("the first message is a welcome");
    };
    assert_eq!((w.term, w.heartbeat_ms, w.lease_ms), (1, 100, 60_000));

    let device = wire::Device {
        device_id: "d".into(),
        path: "/dev/d".into(),
        size_bytes: 11 * EXTENT.bytes().get(),
        logical_block: 512,
        physical_block: 512,
        content: wire::DeviceContent::Blank.into(),
        ..wire::Device::default()
    };
    let report = wire::Report { full: true, devices: vec![device], ..wire::Report::default() };
    say_it.send(say(wire::node_message::Message::Report(report))).await.unwrap();
    let (keep, mut kept) = tokio::sync::mpsc::unbounded_channel();
    let recorder = say_it.clone();
    let node = tokio::spawn(async move {
        while let Some(Ok(m)) = heard.next().await {
            let g = match m.message {
                Some(wire::controller_message::Message::Goals(g)) => g,
                Some(wire::controller_message::Message::Keep(k)) => {
                    keep.send(k).unwrap();
                    continue;
                }
                _ => continue,
            };
            say_it.send(say(wire::node_message::Message::Report(obey(g)))).await.unwrap();
        }
        say_it
    });
    until("the disk is wiped", || async {
        core.survey().await.disks.iter().any(|d| d.free == extents(10)).then_some(())
    })
    .await;

    // What it records stands in the histories, and makes an offer that comes back into its keeping.
    let disk = core.survey().await.disks[0].disk;
    let sampled = wire::DiskSample {
        disk: disk.to_string(),
        disk_class: wire::DiskClass::Ssd.into(),
        load: 30.0,
        lent: 10.0,
        ..wire::DiskSample::default()
    };
    let now = sweep::unix_s();
    let recording =
        wire::Recording { sequence: 1, at_s: now, disks: vec![sampled], ..wire::Recording::default() };
    recorder.send(say(wire::node_message::Message::Recording(recording))).await.unwrap();
    let flow = core.flow().clone();
    until("the sample has arrived", || async { (flow.heard().recordings == 1).then_some(()) }).await;
    assert_eq!(sweep::sweep(&flow, &core, now).await.unwrap(), 1);
    until("the offer stands", || async {
        core.disk_facts(None, 9).await.unwrap()[0].offer.filter(|o| !o.lendable.is_zero())
    })
    .await;
    let kept = kept.recv().await.unwrap();
    assert_eq!((kept.disks.len(), &kept.disks[0].disk), (1, &disk.to_string()));
    forecast::Growth::decode(&kept.disks[0].state).unwrap();

    let v = core.create_volume(request("v", 5, None)).await.unwrap();
    let attach = |volume: String| wire::AttachRequest {
        node: "n1".into(),
        volume,
        block: true,
        ..wire::AttachRequest::default()
    };
    let mut foreign = Request::new(attach(v.id.to_string()));
    foreign.metadata_mut().insert("node", "n2".parse().unwrap());
    assert_eq!(client.attach(foreign).await.unwrap_err().code(), Code::PermissionDenied);
    let unknown = client.attach(attach("rubbish".into())).await.unwrap_err();
    assert_eq!(unknown.code(), Code::InvalidArgument);
    let answer = client.attach(attach(v.id.to_string())).await.unwrap().into_inner();
    assert_eq!(answer.size_bytes, extents(5).get());
    let detach = wire::DetachRequest { node: "n1".into(), volume: v.id.to_string() };
    client.detach(detach).await.unwrap();

    // A second session of the node ends the first.
    let again = client.session(tokio_stream::iter([hello()])).await.unwrap();
    let say_it = tokio::time::timeout(Duration::from_secs(10), node).await.unwrap().unwrap();
    drop((again, say_it));
    let late = wire::Hello { node: "n1".into(), term_seen: 9, ..wire::Hello::default() };
    let late = tokio_stream::iter([say(wire::node_message::Message::Hello(late))]);
    let refused = client.session(late).await.unwrap().into_inner().next().await.unwrap().unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    server.abort();
}

fn obey(g: wire::Goals) -> wire::Report {
    let mut r = wire::Report::default();
    for d in g.disks {
        r.disks.push(wire::ObservedDisk {
            disk: d.disk,
            epoch: d.epoch,
            condition: wire::DiskCondition::Serving.into(),
            extents: 10,
            device_id: d.device_id,
            path: "/dev/d".into(),
            ..wire::ObservedDisk::default()
        });
    }
    for w in g.wipes {
        r.wipes.push(wire::ObservedWipe {
            disk: w.disk,
            wipe: w.wipe,
            done: true,
            ..wire::ObservedWipe::default()
        });
    }
    for a in g.attachments {
        let open = match a.role() {
            wire::AttachmentRole::RoleWriter => wire::AttachmentState::AttachmentOpen,
            _ => wire::AttachmentState::AttachmentAbsent,
        };
        let map = a.map.unwrap();
        r.attachments.push(wire::ObservedAttachment {
            volume: a.volume,
            epoch: a.epoch,
            state: open.into(),
            size_bytes: map.segments.iter().map(|s| s.count).sum::<u64>() * map.extent_size,
            ..wire::ObservedAttachment::default()
        });
    }
    r
}
