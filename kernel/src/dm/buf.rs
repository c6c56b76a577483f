//! One ioctl's buffer: struct dm_ioctl with what follows it, put together and taken apart.

use super::{
    abi::{self, Cmd, HEADER, SPEC, flag},
    control::DeviceInfo,
    error::DmError,
    parse,
    table::Table,
};
use crate::DevNo;

/// No table of ours comes near this (64 MiB is some 500,000 lines).
pub(crate) const MAX_BUFFER: usize = 64 << 20;
/// One request and its answer.
pub(crate) struct Buf {
    pub(crate) bytes: Vec<u8>,
    pub(crate) cmd: Cmd,
    pub(crate) device: String,
}

impl Buf {
    /// A request about the device with this UUID (none when empty), with `room` bytes for the answer.
    pub(crate) fn new(cmd: Cmd, uuid: &str, room: usize) -> Result<Self, DmError> {
        let device = if uuid.is_empty() { "-".to_owned() } else { uuid.to_owned() };
        let mut b = Self { bytes: vec![0; HEADER + room], cmd, device };
        b.put_u32(abi::OFF_VERSION, 4);
        b.put_u32(abi::OFF_DATA_START, HEADER as u32);
        if !uuid.is_empty() {
            b.set_uuid(uuid)?;
        }
        Ok(b)
    }

    pub(crate) fn u32(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.bytes[at..at + 4].try_into().expect("four bytes"))
    }

    pub(crate) fn put_u32(&mut self, at: usize, v: u32) {
        self.bytes[at..at + 4].copy_from_slice(&v.to_ne_bytes());
    }

    pub(crate) fn or_flags(&mut self, f: u32) {
        let v = self.u32(abi::OFF_FLAGS) | f;
        self.put_u32(abi::OFF_FLAGS, v);
    }

    pub(crate) fn set_name(&mut self, name: &str) -> Result<(), DmError> {
        self.set_text("name", abi::OFF_NAME, abi::NAME_LEN, name)
    }

    pub(crate) fn set_uuid(&mut self, uuid: &str) -> Result<(), DmError> {
        self.set_text("UUID", abi::OFF_UUID, abi::UUID_LEN, uuid)
    }

    pub(crate) fn set_text(
        &mut self,
        what: &'static str,
        at: usize,
        len: usize,
        s: &str,
    ) -> Result<(), DmError> {
        if s.len() >= len || s.is_empty() || s.contains('\0') {
            return Err(DmError::TooLong { what, device: s.to_owned(), got: s.len(), max: len - 1 });
        }
        self.bytes[at..at + s.len()].copy_from_slice(s.as_bytes());
        Ok(())
    }

    pub(crate) fn put_payload(&mut self, p: &[u8]) {
        if self.bytes.len() < HEADER + p.len() {
            self.bytes.resize(HEADER + p.len(), 0);
        }
        self.bytes[HEADER..HEADER + p.len()].copy_from_slice(p);
    }

    pub(crate) fn push_table(&mut self, table: &Table) -> Result<(), DmError> {
        let mut payload = Vec::new();
        for line in table.lines() {
            let (kind, params) = (line.target.kind(), line.target.render());
            if kind.len() >= abi::MAX_TYPE_NAME {
                return Err(DmError::TooLong {
                    what: "target type",
                    device: self.device.clone(),
                    got: kind.len(),
                    max: abi::MAX_TYPE_NAME - 1,
                });
            }
            let next = (SPEC + params.len() + 1).next_multiple_of(8);
            let at = payload.len();
            payload.resize(at + next, 0);
            let spec = &mut payload[at..];
            spec[..8].copy_from_slice(&line.start.get().to_ne_bytes());
            spec[8..16].copy_from_slice(&line.len.get().to_ne_bytes());
            spec[20..24].copy_from_slice(&(next as u32).to_ne_bytes());
            spec[24..24 + kind.len()].copy_from_slice(kind.as_bytes());
            spec[SPEC..SPEC + params.len()].copy_from_slice(params.as_bytes());
        }
        if payload.len() > MAX_BUFFER {
            return Err(DmError::TooLong {
                what: "table",
                device: self.device.clone(),
                got: payload.len(),
                max: MAX_BUFFER,
            });
        }
        self.put_payload(&payload);
        self.put_u32(abi::OFF_TARGET_COUNT, table.lines().len() as u32);
        Ok(())
    }

    /// What follows the header, from where the kernel says it starts.
    pub(crate) fn payload(&self) -> &[u8] {
        let start = (self.u32(abi::OFF_DATA_START) as usize).max(HEADER);
        self.bytes.get(start..).unwrap_or(&[])
    }

    pub(crate) fn info(&self) -> Result<DeviceInfo, DmError> {
        let text = |at: usize, len: usize| {
            parse::c_string(&self.bytes[at..at + len]).map_err(|why| self.malformed(why))
        };
        let flags = self.u32(abi::OFF_FLAGS);
        let dev =
            u64::from_ne_bytes(self.bytes[abi::OFF_DEV..abi::OFF_DEV + 8].try_into().expect("eight bytes"));
        Ok(DeviceInfo {
            name: text(abi::OFF_NAME, abi::NAME_LEN)?,
            uuid: text(abi::OFF_UUID, abi::UUID_LEN)?,
            dev: DevNo::from_raw(dev),
            open_count: self.u32(abi::OFF_OPEN_COUNT) as i32,
            event_nr: self.u32(abi::OFF_EVENT_NR),
            target_count: self.u32(abi::OFF_TARGET_COUNT),
            suspended: flags & flag::SUSPEND != 0,
            active: flags & flag::ACTIVE_PRESENT != 0,
            inactive: flags & flag::INACTIVE_PRESENT != 0,
            read_only: flags & flag::READONLY != 0,
            deferred_remove: flags & flag::DEFERRED_REMOVE != 0,
        })
    }

    pub(crate) fn malformed(&self, why: String) -> DmError {
        DmError::Malformed { op: self.cmd.as_str(), device: self.device.clone(), why }
    }
}
