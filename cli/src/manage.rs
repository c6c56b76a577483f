//! Volumes by hand.

use csi_proto::operator as wire;

use crate::{
    Error,
    args::{Output, Volume},
    ask::tell,
    connect::Connection,
    figures::bytes,
};

fn made(v: &wire::Volume) -> String {
    format!("{} ({}): {} in pool {}", v.name, v.volume, bytes(v.size_bytes), v.pool)
}

/// Makes, grows, deletes, attaches or detaches a volume.
pub(crate) async fn volume(c: &mut Connection, to: Output, what: &Volume) -> Result<(), Error> {
    match what {
        Volume::Create { name, size, parameters, beside } => {
            let r = wire::CreateVolumeRequest {
                name: name.clone(),
                size_bytes: *size,
                parameters: parameters.iter().cloned().collect(),
                beside: beside.clone().unwrap_or_default(),
            };
            let v = c.client.create_volume(r).await?.into_inner();
            tell(to, &v, || made(&v))
        }
        Volume::Resize { volume, size } => {
            let r = wire::ResizeVolumeRequest { volume: volume.clone(), size_bytes: *size };
            let v = c.client.resize_volume(r).await?.into_inner();
            tell(to, &v, || made(&v))
        }
        Volume::Delete { volume } => {
            let r = wire::VolumeRequest { volume: volume.clone() };
            let done = c.client.delete_volume(r).await?.into_inner();
            tell(to, &done, || format!("{volume} is deleted; its data is being wiped"))
        }
        Volume::Attach { volume, node, read_only, shared } => {
            let (read_only, shared) = (*read_only, *shared);
            let r =
                wire::AttachVolumeRequest { volume: volume.clone(), node: node.clone(), read_only, shared };
            let a = c.client.attach_volume(r).await?.into_inner();
            tell(to, &a, || a.device.clone())
        }
        Volume::Detach { volume, node } => {
            let from = node.clone().unwrap_or_default();
            let r = wire::DetachVolumeRequest { volume: volume.clone(), node: from };
            let done = c.client.detach_volume(r).await?.into_inner();
            tell(to, &done, || {
                format!("{volume} is detached from {}", node.as_deref().unwrap_or("every node"))
            })
        }
    }
}
