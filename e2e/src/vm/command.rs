//! QEMU's command line for a VM in a node: the volume's flags are those that libvirt gives QEMU for KubeVirt.

use super::{Settings, guest::Guest};

/// Id of the volume's device in QEMU.
pub(super) const VOLUME: &str = "volume";

/// A shell command; `dir` holds the sockets and what the guest boots.
pub(super) fn line(settings: &Settings<'_>, dir: &str, incoming: Option<&str>) -> String {
    // MiB of memory, and of translated code where there is no KVM.
    let (memory, cache, boot, part) = match settings.guest {
        Guest::Small(_) => (
            16,
            16,
            format!(
                "-blockdev driver=file,node-name=bootfile,filename={dir}/boot.img,read-only=on \
                 -blockdev driver=raw,node-name=boot,file=bootfile,read-only=on \
                 -device virtio-blk-pci,drive=boot,bootindex=0"
            ),
            String::new(),
        ),
        Guest::Linux(window, kernel) => (
            160,
            96,
            format!(
                "-cpu max -kernel {} -initrd {dir}/initrd -append 'console=ttyS0 quiet panic=-1'",
                kernel.vmlinuz.display()
            ),
            format!(",offset={},size={}", window.start, window.end - window.start),
        ),
    };
    // cache=none, io=native, error_policy=stop, discard=unmap: KubeVirt's defaults for a block volume.
    let volume = format!(
        "-blockdev driver=host_device,node-name=storage,filename={},aio=native,cache.direct=on,cache.no-flush=off,\
         discard=unmap -blockdev driver=raw,node-name=format,file=storage,cache.direct=on,cache.no-flush=off,\
         discard=unmap{part} -device virtio-blk-pci,id={VOLUME},drive=format,werror=stop,rerror=stop,write-cache=on,\
         bootindex=1",
        settings.device
    );
    let incoming = incoming.map_or(String::new(), |uri| format!(" -incoming {uri}"));
    format!(
        "qemu-system-x86_64 -name {} -accel kvm -accel tcg,tb-size={cache} -M pc -m {memory} -nodefaults -no-user-config \
         -display none -no-reboot -msg timestamp=on -qmp unix:{dir}/qmp.sock,server=on,wait=off \
         -chardev socket,id=serial,path={dir}/serial.sock,server=on,wait=off -serial chardev:serial {boot} {volume}\
         {incoming}",
        settings.name
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::guest::Window;

    #[test]
    fn the_volume_is_opened_as_kubevirt_does() {
        let guest = Guest::Small(Window { start: 0, end: 1 << 30 });
        let settings = Settings { name: "x", device: "/dev/vdz", guest: &guest, incoming: true };
        let line = line(&settings, "/run/x", Some("tcp:10.77.0.12:49152"));
        for part in [
            "filename=/dev/vdz,aio=native,cache.direct=on",
            "discard=unmap",
            "werror=stop,rerror=stop",
            "-incoming tcp:10.77.0.12:49152",
        ] {
            assert!(line.contains(part), "{part} is missing in {line}");
        }
    }
}
