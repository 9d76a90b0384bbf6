//! HTTP/2 in raw frames (RFC 9113), for what no client library would send.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::PATIENCE;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// `:method: GET` and `:scheme: http` of HPACK's static table.
pub const GET: &[u8] = b"\x82\x86";

/// A field as HPACK's literal without indexing and without Huffman's code (RFC 7541, 6.2.2).
pub fn literal(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| -> Vec<u8> {
        let length = match text.len() {
            short @ ..127 => vec![short as u8],
            long => {
                let (mut rest, mut bytes) = (long - 127, vec![127]);
                while rest >= 128 {
                    bytes.push(rest as u8 | 128);
                    rest >>= 7;
                }
                bytes.push(rest as u8);
                bytes
            }
        };
        [&length, text.as_bytes()].concat()
    };
    [&[0][..], &text(name), &text(value)].concat()
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
    pub const END_STREAM: u8 = 1;
    pub const ACK: u8 = 1;
    pub const END_HEADERS: u8 = 4;

    pub fn bytes(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }
}

/// One connection.
pub struct Http2<S>(pub S);

impl<S: AsyncRead + AsyncWrite + Unpin> Http2<S> {
    /// Preface and SETTINGS: pairs of identifier and value.
    pub async fn open(stream: S, settings: &[(u16, u32)]) -> Self {
        let mut client = Self(stream);
        let payload: Vec<u8> =
            settings.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
        client.0.write_all(&[PREFACE, &Frame::bytes(Frame::SETTINGS, 0, 0, &payload)].concat()).await.unwrap();
        client
    }

    pub async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.0.write_all(&Frame::bytes(kind, flags, stream, payload)).await.unwrap();
    }

    /// A whole request without a body.
    pub async fn head(&mut self, stream: u32, block: &[u8]) {
        self.send(Frame::HEADERS, Frame::END_STREAM | Frame::END_HEADERS, stream, block).await;
    }

    /// GET of a path, from `host: test`.
    pub async fn get(&mut self, stream: u32, path: &str) {
        self.head(stream, &[GET, &literal(":path", path), &literal(":authority", "test")].concat()).await;
    }

    /// More window for a stream; 0 is the connection.
    pub async fn window(&mut self, stream: u32, bytes: u32) {
        self.send(Frame::WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes()).await;
    }

    /// The next frame; `None` at the connection's end. SETTINGS are acknowledged.
    pub async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & (u32::MAX >> 1);
        let frame = Frame { kind: head[3], flags: head[4], stream, payload };
        if frame.kind == Frame::SETTINGS && frame.flags & Frame::ACK == 0 {
            let _ = self.0.write_all(&Frame::bytes(Frame::SETTINGS, Frame::ACK, 0, &[])).await;
        }
        Some(frame)
    }

    /// The first frame that is wanted; fails the test when it does not come.
    pub async fn until(&mut self, mut is_wanted: impl FnMut(&Frame) -> bool) -> Frame {
        let wanted = async {
            loop {
                let frame = self.next().await.expect("the connection lives");
                if is_wanted(&frame) {
                    return frame;
                }
            }
        };
        tokio::time::timeout(PATIENCE, wanted).await.expect("the frame comes")
    }

    /// Every frame until the connection ends, at most for this long.
    pub async fn until_closed(&mut self, limit: Duration) -> Vec<Frame> {
        let mut frames = Vec::new();
        let read = async {
            while let Some(frame) = self.next().await {
                frames.push(frame);
            }
        };
        tokio::time::timeout(limit, read).await.expect("the connection ends");
        frames
    }

    /// Status and body of the answer on a stream.
    pub async fn answer(&mut self, stream: u32) -> (u16, String) {
        let head = self.until(|frame| frame.stream == stream && frame.kind != Frame::WINDOW_UPDATE).await;
        assert_eq!(head.kind, Frame::HEADERS, "{head:?}");
        let (mut body, mut last) = (Vec::new(), head.flags);
        while last & Frame::END_STREAM == 0 {
            let frame = self.until(|frame| frame.stream == stream).await;
            assert_eq!(frame.kind, Frame::DATA, "{frame:?}");
            (body, last) = ([body, frame.payload].concat(), frame.flags);
        }
        (status(&head.payload), String::from_utf8_lossy(&body).into_owned())
    }
}

/// The status of an answer's head, where it is one of HPACK's static table; else 0.
pub fn status(block: &[u8]) -> u16 {
    [200, 204, 206, 304, 400, 404, 500]
        .into_iter()
        .zip(0x88..)
        .find(|(_, index)| block.first() == Some(index))
        .map_or(0, |(status, _)| status)
}
