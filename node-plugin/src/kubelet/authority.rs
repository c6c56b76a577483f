//! A connection of the kubelet's plugin watcher, made readable for the HTTP library.
//!
//! The watcher dials by the socket's path and sends that, percent-encoded, as `:authority` (grpc-go's default; the kubelet's CSI
//! client and the sidecars say "localhost"). A percent sign is not allowed there, and h2 resets such a stream with
//! PROTOCOL_ERROR. So the header blocks that the kubelet sends are written anew with another authority; all else passes
//! as it is. Must not know: what is called.

use std::io;

use fluke_hpack::Decoder;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream},
    net::UnixStream,
};

/// Bytes under way in one direction.
const ROOM: usize = 64 << 10;
/// What a frame may hold as long as nobody allows more, and we do not (RFC 9113, 4.2).
const FRAME: usize = 16_384;
/// What a header block may come to; the kubelet's are below 300 bytes.
const BLOCK: usize = FRAME;
const PREFACE: usize = 24;
const HEAD: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// The other side of `kubelet`, with an authority that can be parsed.
pub(super) fn mend(kubelet: UnixStream) -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(ROOM);
    tokio::spawn(async move {
        let (from_kubelet, mut to_kubelet) = kubelet.into_split();
        let (mut from_server, to_server) = tokio::io::split(theirs);
        let up = forward(from_kubelet, to_server);
        let down = async {
            tokio::io::copy(&mut from_server, &mut to_kubelet).await?;
            to_kubelet.shutdown().await
        };
        // Whoever ends first ends both: a call that is cut short is made again by the kubelet.
        let ended = tokio::select! { r = up => r, r = down => r };
        if let Err(e) = ended {
            tracing::debug!("a connection of the kubelet ended: {e}");
        }
    });
    ours
}

struct Frame {
    kind: u8,
    flags: u8,
    stream: [u8; 4],
    payload: Vec<u8>,
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// The next frame; `None` where the connection ends between two.
async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let mut head = [0; HEAD];
    match from.read_exact(&mut head).await {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        r => r?,
    };
    let [a, b, c, kind, flags, stream @ ..] = head;
    let len = u32::from_be_bytes([0, a, b, c]) as usize;
    if len > FRAME {
        return Err(bad("a frame is larger than was allowed"));
    }
    let mut payload = vec![0; len];
    from.read_exact(&mut payload).await?;
    Ok(Some(Frame { kind, flags, stream, payload }))
}

async fn write(to: &mut (impl AsyncWrite + Unpin), f: &Frame) -> io::Result<()> {
    let len = u32::try_from(f.payload.len()).map_err(|_| bad("a frame is too large"))?.to_be_bytes();
    let mut out = vec![len[1], len[2], len[3], f.kind, f.flags];
    out.extend_from_slice(&f.stream);
    out.extend_from_slice(&f.payload);
    to.write_all(&out).await
}

async fn forward(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    let mut preface = [0; PREFACE];
    from.read_exact(&mut preface).await?;
    to.write_all(&preface).await?;
    let mut decoder = Decoder::new();
    while let Some(mut frame) = read(&mut from).await? {
        if frame.kind == HEADERS {
            let mut block = fragment(&frame)?.to_vec();
            let mut last = frame.flags;
            while last & END_HEADERS == 0 {
                let more = read(&mut from).await?.ok_or_else(|| bad("a header block without an end"))?;
                if more.kind != CONTINUATION || more.stream != frame.stream {
                    return Err(bad("something else within a header block"));
                }
                block.extend_from_slice(&more.payload);
                last = more.flags;
                if block.len() > BLOCK {
                    return Err(bad("a header block is too large"));
                }
            }
            frame.payload = rewrite(&mut decoder, &block)?;
            frame.flags = frame.flags & END_STREAM | END_HEADERS;
        }
        write(&mut to, &frame).await?;
    }
    to.shutdown().await
}

/// A HEADERS frame's part of the block, without padding and priority.
fn fragment(f: &Frame) -> io::Result<&[u8]> {
    let mut rest = f.payload.as_slice();
    let mut padding = 0;
    if f.flags & PADDED != 0 {
        let (first, after) = rest.split_first().ok_or_else(|| bad("no length of the padding"))?;
        (padding, rest) = (usize::from(*first), after);
    }
    let begin = if f.flags & PRIORITY == 0 { 0 } else { 5 };
    let end = rest.len().checked_sub(padding).ok_or_else(|| bad("more padding than there is"))?;
    rest.get(begin..end).ok_or_else(|| bad("a HEADERS frame that is too short"))
}

/// The same headers as literals that no table remembers, with an authority of ours.
fn rewrite(decoder: &mut Decoder<'_>, block: &[u8]) -> io::Result<Vec<u8>> {
    let headers = decoder.decode(block).map_err(|_| bad("a header block that cannot be decoded"))?;
    let mut out = Vec::with_capacity(block.len() * 2);
    for (name, value) in &headers {
        let value: &[u8] = if name == b":authority" { b"localhost" } else { value };
        out.push(0);
        for text in [name, value] {
            length(&mut out, text.len());
            out.extend_from_slice(text);
        }
    }
    if out.len() > BLOCK { Err(bad("a header block is too large")) } else { Ok(out) }
}

/// An integer with a prefix of 7 bits (RFC 7541, 5.1); the eighth says that Huffman's code is not used.
fn length(out: &mut Vec<u8>, len: usize) {
    const PREFIX: usize = 127;
    let Some(mut rest) = len.checked_sub(PREFIX) else {
        out.push((len & 0x7f) as u8);
        return;
    };
    out.push(PREFIX as u8);
    while rest >= 128 {
        out.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.push((rest & 0x7f) as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_authority_changes() {
        let long = "x".repeat(400);
        let sent = [(":method", "POST"), (":authority", "%2Fvar%2Flib"), ("a", &long), ("te", "trailers")];
        let mut encoder = fluke_hpack::Encoder::new();
        let block = encoder.encode(sent.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())));
        let again = rewrite(&mut Decoder::new(), &block).unwrap();
        let got = Decoder::new().decode(&again).unwrap();
        for ((name, value), got) in sent.iter().zip(&got) {
            let value = if *name == ":authority" { "localhost" } else { value };
            assert_eq!((name.as_bytes(), value.as_bytes()), (&got.0[..], &got.1[..]));
        }
        assert_eq!(got.len(), sent.len());
        assert!(rewrite(&mut Decoder::new(), &[0xff; 9]).is_err());
    }

    #[test]
    fn frames_that_lie_about_themselves_are_refused() {
        let frame = |flags, payload: &[u8]| Frame {
            kind: HEADERS,
            flags,
            stream: [0, 0, 0, 1],
            payload: payload.to_vec(),
        };
        assert_eq!(fragment(&frame(PADDED | PRIORITY, &[2, 0, 0, 0, 0, 0, 7, 8, 0, 0])).unwrap(), [7, 8]);
        for (flags, payload) in [
            (PADDED, &[][..]),
            (PADDED, &[3, 0]),
            (PRIORITY, &[0; 4]),
            (PADDED | PRIORITY, &[1, 0, 0, 0, 0, 0]),
        ] {
            assert!(fragment(&frame(flags, payload)).is_err());
        }
    }
}
