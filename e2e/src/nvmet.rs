//! A disk of one node exported to another with nvmet by hand: what plain NVMe over TCP does, without Weir.
//!
//! The settings that matter for speed are those that Weir uses, so that its own layers are the only difference. Names
//! are its own; the node plugins take no notice of them. One at a time between any nodes.

use anyhow::{Context, Result};

use crate::{cluster::PATIENCE, lab::Node, wait};

const NQN: &str = "nqn.2014-08.org.example:weir-bench";
const PORT: u16 = 4430;

/// Exports `devices` of `lender`, connects `consumer`, and returns the names they have there, in the same order.
pub(crate) fn share(lender: &Node, consumer: &Node, devices: &[String]) -> Result<Vec<String>> {
    // Whoever failed before has not ended it.
    end(lender, consumer)?;
    let uuids: Vec<String> = (0..devices.len()).map(|n| format!("be4c0000-0000-4000-8000-{n:012}")).collect();
    export(lender, devices, &uuids)?;
    let options = format!(
        "transport=tcp,traddr={},trsvcid={PORT},nqn={NQN},hostnqn={NQN}-host,\
         hostid=be4c0000-0000-4000-9000-000000000000,nr_io_queues=1,ctrl_loss_tmo=-1",
        lender.storage_ip()
    );
    consumer.run_ok(&format!("echo '{options}' >/dev/nvme-fabrics")).context("connect by hand")?;
    uuids
        .iter()
        .map(|uuid| {
            wait::until(&format!("namespace {uuid}"), PATIENCE, || {
                let found = consumer.run_ok(&format!(
                    "for d in /sys/block/nvme*; do \
                     if [ \"$(cat $d/uuid 2>/dev/null)\" = {uuid} ] && [ \"$(cat $d/hidden)\" = 0 ]; \
                     then basename $d; fi; done"
                ))?;
                Ok((!found.is_empty()).then(|| format!("/dev/{found}")))
            })
        })
        .collect()
}

/// Ends what [`share`] began, if it did.
pub(crate) fn end(lender: &Node, consumer: &Node) -> Result<()> {
    consumer
        .run_ok(&format!(
            "for c in /sys/class/nvme/nvme*; do \
             if [ \"$(cat $c/subsysnqn)\" = {NQN} ]; then echo 1 >$c/delete_controller; fi; done"
        ))
        .context("disconnect by hand")?;
    let script = format!(
        "set -e; cd /sys/kernel/config/nvmet; [ -d ports/{PORT} ] || exit 0; rm ports/{PORT}/subsystems/{NQN}; rmdir ports/{PORT}; \
         for ns in subsystems/{NQN}/namespaces/*; do echo 0 >$ns/enable; rmdir $ns; done; rmdir subsystems/{NQN}"
    );
    lender.run_ok(&script).context("end the export by hand").map(drop)
}

fn export(lender: &Node, devices: &[String], uuids: &[String]) -> Result<()> {
    let mut script = format!(
        "set -e; cd /sys/kernel/config/nvmet; s=subsystems/{NQN}; mkdir $s; echo 1 >$s/attr_allow_any_host\n"
    );
    for (n, (device, uuid)) in devices.iter().zip(uuids).enumerate() {
        let nsid = n + 1;
        script += &format!(
            "ns=$s/namespaces/{nsid}; mkdir $ns; echo -n {device} >$ns/device_path; echo {uuid} >$ns/device_uuid; \
             echo 1 >$ns/enable\n"
        );
    }
    // The link comes last: a port that is linked before its namespaces are enabled makes initiators drop them.
    script += &format!(
        "p=ports/{PORT}; mkdir $p; echo tcp >$p/addr_trtype; echo ipv4 >$p/addr_adrfam; \
         echo {} >$p/addr_traddr; echo {PORT} >$p/addr_trsvcid; ln -s $PWD/$s $p/subsystems/{NQN}",
        lender.storage_ip()
    );
    lender.run_ok(&script).context("export by hand").map(drop)
}
