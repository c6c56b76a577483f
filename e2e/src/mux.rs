//! Many streams over one: between the relay on the host and the agent in a node lies one virtio-serial port.
//!
//! QEMU's user network was tried first and loses connections when several come and go at once. A channel is a pair of
//! byte streams with an end of its own on each, as a socket has. Invariant: nothing waits for a slow channel but that
//! channel: a side sends at most [`WINDOW`] bytes that the other has not passed on, so whatever arrives has room.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Bytes on their way, a channel and direction.
const WINDOW: usize = 256 << 10;
/// Bytes of one frame at most, so that channels take turns.
const PIECE: usize = 32 << 10;
/// Every thread here only copies.
const STACK: usize = 128 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    /// A new channel.
    Open = 0,
    /// Bytes.
    Data = 1,
    /// No more bytes from this side.
    Eof = 2,
    /// So many bytes were passed on, as a big-endian u32.
    Ack = 3,
}

fn bad(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn write_frame(to: &mut impl Write, id: u32, kind: Kind, payload: &[u8]) -> io::Result<()> {
    let len = u32::try_from(payload.len()).map_err(|_| bad("frame too long".into()))?;
    let mut frame = Vec::with_capacity(9 + payload.len());
    frame.extend_from_slice(&id.to_be_bytes());
    frame.push(kind as u8);
    frame.extend_from_slice(&len.to_be_bytes());
    frame.extend_from_slice(payload);
    to.write_all(&frame)
}

/// The next frame; `None` at the end of the stream.
fn read_frame(from: &mut impl Read) -> io::Result<Option<(u32, Kind, Vec<u8>)>> {
    let mut head = [0; 9];
    if from.read(&mut head[..1])? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut head[1..])?;
    let id = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
    let kind = [Kind::Open, Kind::Data, Kind::Eof, Kind::Ack].into_iter().find(|kind| *kind as u8 == head[4]);
    let kind = kind.ok_or_else(|| bad(format!("unknown frame kind {}", head[4])))?;
    let len = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) as usize;
    if len > PIECE {
        return Err(bad(format!("frame of {len} bytes")));
    }
    let mut payload = vec![0; len];
    from.read_exact(&mut payload)?;
    Ok(Some((id, kind, payload)))
}

/// One side of the stream that carries the others.
pub struct Mux {
    out: Mutex<Box<dyn Write + Send>>,
    channels: Mutex<HashMap<u32, Arc<Channel>>>,
}

struct Channel {
    /// Arrived and not yet passed on; an empty piece ends it.
    arrived: Mutex<Sender<Vec<u8>>>,
    /// How many bytes the other side has room for.
    room: Mutex<usize>,
    refilled: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mux {
    /// A side that writes to `out`.
    pub fn new(out: impl Write + Send + 'static) -> Arc<Mux> {
        Arc::new(Mux { out: Mutex::new(Box::new(out)), channels: Mutex::default() })
    }

    fn send(&self, id: u32, kind: Kind, payload: &[u8]) -> io::Result<()> {
        write_frame(&mut *lock(&self.out), id, kind, payload)
    }

    /// Opens channel `id`, never used before, and connects `socket` to it.
    ///
    /// # Errors
    /// The carrying stream's, or no thread could be started.
    pub fn open(self: &Arc<Self>, id: u32, socket: &UnixStream) -> io::Result<()> {
        // Known here before the other side can answer; opened there before the first byte goes out.
        let (channel, arrived) = self.register(id);
        self.send(id, Kind::Open, b"")?;
        self.attach(id, channel, arrived, socket)
    }

    fn register(&self, id: u32) -> (Arc<Channel>, Receiver<Vec<u8>>) {
        let (sender, arrived) = channel();
        let channel =
            Channel { arrived: Mutex::new(sender), room: Mutex::new(WINDOW), refilled: Condvar::new() };
        let channel = Arc::new(channel);
        lock(&self.channels).insert(id, Arc::clone(&channel));
        (channel, arrived)
    }

    fn attach(
        self: &Arc<Self>,
        id: u32,
        channel: Arc<Channel>,
        arrived: Receiver<Vec<u8>>,
        socket: &UnixStream,
    ) -> io::Result<()> {
        let (mux, into) = (Arc::clone(self), socket.try_clone()?);
        let deliver = thread(move || mux.deliver(id, &arrived, into))?;
        let (mux, from) = (Arc::clone(self), socket.try_clone()?);
        // When the carrying stream fails, its reader finds out as well and ends it all: nothing is lost here.
        drop(thread(move || {
            drop(mux.collect(id, &channel, from));
            drop(deliver.join());
            lock(&mux.channels).remove(&id);
        })?);
        Ok(())
    }

    /// Passes on what arrived. Once nobody takes it any more the rest is swallowed, so that the sender comes to its end.
    fn deliver(&self, id: u32, arrived: &Receiver<Vec<u8>>, mut into: UnixStream) {
        let mut taken = true;
        while let Some(piece) = arrived.recv().ok().filter(|piece| !piece.is_empty()) {
            taken = taken && into.write_all(&piece).is_ok();
            let count = u32::try_from(piece.len()).unwrap_or(u32::MAX);
            if self.send(id, Kind::Ack, &count.to_be_bytes()).is_err() {
                break;
            }
        }
        // It fails only if that end is closed, and then it is what was wanted.
        drop(into.shutdown(Shutdown::Write));
    }

    /// Sends what the socket gives, as far as there is room, and its end.
    fn collect(&self, id: u32, channel: &Channel, mut from: UnixStream) -> io::Result<()> {
        let mut piece = vec![0; PIECE];
        loop {
            let mut room = lock(&channel.room);
            while *room == 0 {
                room = channel.refilled.wait(room).unwrap_or_else(PoisonError::into_inner);
            }
            let limit = (*room).min(PIECE);
            drop(room);
            // A socket that fails has ended, as far as the other side is concerned.
            let count = from.read(&mut piece[..limit]).unwrap_or(0);
            if count == 0 {
                return self.send(id, Kind::Eof, b"");
            }
            *lock(&channel.room) -= count;
            self.send(id, Kind::Data, &piece[..count])?;
        }
    }

    /// Carries everything that comes from the other side until that ends. For each channel opened there, `accept` gets
    /// this end of it.
    ///
    /// # Errors
    /// The stream's, or what came was no frame.
    pub fn carry(
        self: &Arc<Self>,
        mut input: impl Read,
        mut accept: impl FnMut(UnixStream) -> io::Result<()>,
    ) -> io::Result<()> {
        while let Some((id, kind, payload)) = read_frame(&mut input)? {
            if kind == Kind::Open {
                let (ours, theirs) = UnixStream::pair()?;
                let (channel, arrived) = self.register(id);
                self.attach(id, channel, arrived, &ours)?;
                accept(theirs)?;
                continue;
            }
            // A channel whose both ends are gone may still be acknowledged.
            let Some(channel) = lock(&self.channels).get(&id).cloned() else { continue };
            match kind {
                Kind::Ack => {
                    let count = payload.first_chunk().copied().map(u32::from_be_bytes);
                    *lock(&channel.room) +=
                        count.ok_or_else(|| bad("short acknowledgement".into()))? as usize;
                    channel.refilled.notify_one();
                }
                // The receiver is gone only after an end: nothing may follow one.
                _ if lock(&channel.arrived).send(payload).is_err() => {
                    return Err(bad("bytes after the end".into()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn thread(work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().stack_size(STACK).spawn(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two sides over a socket pair; the far one sends back what it gets.
    fn echoing() -> Arc<Mux> {
        let (here, there) = UnixStream::pair().unwrap();
        let far = Mux::new(there.try_clone().unwrap());
        std::thread::spawn(move || {
            far.carry(there, |mut socket| {
                std::thread::spawn(move || {
                    let mut back = socket.try_clone().unwrap();
                    io::copy(&mut socket, &mut back).unwrap();
                });
                Ok(())
            })
        });
        let near = Mux::new(here.try_clone().unwrap());
        let carrier = Arc::clone(&near);
        std::thread::spawn(move || carrier.carry(here, |_| Err(io::Error::other("unexpected"))));
        near
    }

    #[test]
    fn channels_carry_more_than_a_window_each_and_end() {
        let mux = echoing();
        // A channel that nobody reads must not stand in the others' way.
        let (mut stuck, end) = UnixStream::pair().unwrap();
        mux.open(0, &end).unwrap();
        drop(end);
        stuck.set_nonblocking(true).unwrap();
        while stuck.write(&[7; PIECE]).is_ok() {}
        std::thread::scope(|scope| {
            for id in 1..8_u32 {
                let mux = &mux;
                scope.spawn(move || {
                    let (mut socket, end) = UnixStream::pair().unwrap();
                    mux.open(id, &end).unwrap();
                    drop(end);
                    let bytes: Vec<u8> =
                        (0..5 * WINDOW as u32).map(|i| (i.wrapping_mul(id) >> 3) as u8).collect();
                    let mut writer = socket.try_clone().unwrap();
                    let sent = bytes.clone();
                    let sending = std::thread::spawn(move || {
                        writer.write_all(&sent).unwrap();
                        writer.shutdown(Shutdown::Write).unwrap();
                    });
                    let mut got = Vec::new();
                    socket.read_to_end(&mut got).unwrap();
                    sending.join().unwrap();
                    assert!(got == bytes);
                });
            }
        });
        drop(stuck);
    }

    #[test]
    fn many_short_channels_lose_nothing() {
        let mux = echoing();
        let next = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..40 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let id = next.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        let (mut socket, end) = UnixStream::pair().unwrap();
                        socket.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
                        socket.write_all(&id.to_be_bytes()).unwrap();
                        mux.open(id, &end).unwrap();
                        drop(end);
                        let mut back = [0; 4];
                        socket.read_exact(&mut back).unwrap();
                        assert_eq!(back, id.to_be_bytes());
                    }
                });
            }
        });
    }

    #[test]
    fn garbage_is_refused() {
        let mux = Mux::new(io::sink());
        let carried = mux.carry(&b"\0\0\0\x01\x09\0\0\0\0"[..], |_| Ok(()));
        assert_eq!(carried.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
