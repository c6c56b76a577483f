//! The command line. A flag overrides the file.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use clap::Parser;
use pool::ids::NodeName;

use super::{Cidr, Endpoint, Glob, LogFormat, LogLevel, SocketPath, StorageNet};

/// Weir's node plugin: claims disks, serves and uses volumes, answers the container orchestrator.
#[derive(Clone, Debug, Default, Parser)]
#[command(name = "weir-node", version)]
pub struct Flags {
    /// Configuration file (YAML); /etc/weir/node.yaml is read if it is there.
    #[arg(long, value_name = "FILE", env = "WEIR_CONFIG")]
    pub config: Option<PathBuf>,
    /// Reads the configuration, says what is wrong with it, and ends.
    #[arg(long)]
    pub check_config: bool,
    /// Name of this node; the host's name by default.
    #[arg(long, value_name = "NAME", env = "WEIR_NODE")]
    pub node: Option<NodeName>,
    /// A controller's endpoint, http://host:port or https://host:port; may be given several times.
    #[arg(long, value_name = "URI", env = "WEIR_CONTROLLER", value_delimiter = ',')]
    pub controller: Vec<Endpoint>,
    /// Socket on which CSI is served, unix:///path.
    #[arg(long, value_name = "SOCKET", env = "CSI_ENDPOINT")]
    pub csi_endpoint: Option<SocketPath>,
    /// Where the plugin keeps what must outlive it.
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Address under which other nodes reach this node's disks.
    #[arg(long, value_name = "IP", env = "WEIR_STORAGE_ADDRESS", group = "storage_net")]
    pub storage_address: Option<IpAddr>,
    /// Or the interface that has it.
    #[arg(long, value_name = "NAME", group = "storage_net")]
    pub storage_interface: Option<String>,
    /// Or the network that it lies in.
    #[arg(long, value_name = "CIDR", group = "storage_net")]
    pub storage_cidr: Option<Cidr>,
    /// Port of the exports.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub storage_port: Option<u16>,
    /// Devices that are looked at (/dev/disk/by-id/nvme-*); may be given several times; all whole disks by default.
    #[arg(long, value_name = "GLOB")]
    pub device: Vec<Glob>,
    /// Volumes that this node can hold at once.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_volumes: Option<u32>,
    /// The kubelet's registry folder (/var/lib/kubelet/plugins_registry); without it the plugin does not register itself.
    #[arg(long, value_name = "DIR")]
    pub kubelet_registry: Option<PathBuf>,
    /// Where health and metrics are served over HTTP; nowhere by default.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub http: Option<SocketAddr>,
    /// What is logged.
    #[arg(long, value_enum)]
    pub log_level: Option<LogLevel>,
    /// How it is logged.
    #[arg(long, value_enum)]
    pub log_format: Option<LogFormat>,
}

impl Flags {
    /// The storage network, where a flag says it.
    pub(super) fn storage(&self) -> Option<StorageNet> {
        self.storage_address
            .map(StorageNet::Address)
            .or_else(|| self.storage_interface.clone().map(StorageNet::Interface))
            .or_else(|| self.storage_cidr.map(StorageNet::Network))
    }
}
