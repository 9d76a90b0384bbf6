//! Where in HTTP/2's frames a connection's input stands: whether a head or another frame has begun and is not whole.

/// The connection preface of HTTP/2 (RFC 9113, 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The length of a frame's header.
const HEADER: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Heads whose buffers an HPACK table of 4,096 bytes can keep alive: an entry counts at least 33 (RFC 7541, 4.1).
const TABLE_ENTRIES: usize = 128;
/// The most bytes that count for one head: a buffer of h2 is hardly larger than a frame.
const BUFFER: usize = 16 << 10;

/// The bytes of input that the peer's HPACK table may keep alive. `h2` stores a table's entries as slices of its input, so a few bytes
/// of an entry can hold the buffer that its whole frame came in.
#[derive(Debug)]
struct Pinned {
    /// What counts for each of the last heads, the oldest next.
    heads: [u16; TABLE_ENTRIES],
    next: usize,
    sum: usize,
    /// Bytes since the last head: they may stand in the same buffer as the next one.
    since: usize,
}

impl Pinned {
    fn frame(&mut self, kind: u8, length: usize) {
        self.since = (self.since + HEADER + length).min(BUFFER);
        if matches!(kind, HEADERS | CONTINUATION) {
            let bytes = std::mem::take(&mut self.since);
            self.sum += bytes;
            self.sum -= usize::from(std::mem::replace(&mut self.heads[self.next], bytes as u16));
            self.next = (self.next + 1) % TABLE_ENTRIES;
        }
    }
}

/// Counts through frames (RFC 9113, 4.1) without keeping their content.
#[derive(Debug)]
pub(crate) struct FrameReader {
    preface_left: usize,
    header: [u8; HEADER],
    header_length: usize,
    payload_left: usize,
    /// A HEADERS frame came, and not yet the one with END_HEADERS.
    in_head: bool,
    /// How many heads and other frames have begun.
    begun: u64,
    /// The largest stream that a head has named, and what came of the head of a new one.
    last_stream: u32,
    new_head: Option<usize>,
    requests: RequestHeads,
    pinned: Pinned,
}

/// Requests whose heads came whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RequestHeads {
    pub(crate) count: u64,
    /// The bytes of the last one.
    pub(crate) last: usize,
}

/// What has begun and is not whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unfinished {
    /// A request's head: HTTP/2 allows no other frame until it ends.
    Head,
    /// Another frame, or one of which too little is known.
    Frame,
}

impl FrameReader {
    pub(crate) fn new() -> Self {
        let pinned = Pinned { heads: [0; TABLE_ENTRIES], next: 0, sum: 0, since: 0 };
        Self {
            preface_left: PREFACE.len(),
            header: [0; HEADER],
            header_length: 0,
            payload_left: 0,
            in_head: false,
            begun: 0,
            last_stream: 0,
            new_head: None,
            requests: RequestHeads::default(),
            pinned,
        }
    }

    /// Bytes of input that the HPACK table may keep alive.
    pub(crate) fn pinned(&self) -> usize {
        self.pinned.sum
    }

    /// The last stream that was opened.
    pub(crate) fn last_stream(&self) -> u32 {
        self.last_stream
    }

    pub(crate) fn requests(&self) -> RequestHeads {
        self.requests
    }

    /// The header of a frame came: a stream's first head is a request's, a later one its trailers.
    fn begin(&mut self) {
        let [_, _, _, kind, _, stream @ ..] = self.header;
        let stream = u32::from_be_bytes(stream) & (u32::MAX >> 1);
        match kind {
            HEADERS if stream > self.last_stream => {
                self.last_stream = stream;
                self.new_head = Some(self.payload_left);
            }
            CONTINUATION => self.new_head = self.new_head.map(|bytes| bytes + self.payload_left),
            _ => self.new_head = None,
        }
    }

    /// What the bytes so far have begun, and its number.
    pub(crate) fn read(&mut self, mut bytes: &[u8]) -> Option<(Unfinished, u64)> {
        let preface = self.preface_left.min(bytes.len());
        self.preface_left -= preface;
        bytes = &bytes[preface..];
        while !bytes.is_empty() {
            if self.header_length < HEADER {
                self.begun += u64::from(self.header_length == 0 && !self.in_head);
                let length = (HEADER - self.header_length).min(bytes.len());
                self.header[self.header_length..][..length].copy_from_slice(&bytes[..length]);
                self.header_length += length;
                bytes = &bytes[length..];
                if self.header_length < HEADER {
                    break;
                }
                self.payload_left = u32::from_be_bytes([0, self.header[0], self.header[1], self.header[2]]) as usize;
                self.in_head |= matches!(self.header[3], HEADERS | CONTINUATION);
                self.begin();
                self.pinned.frame(self.header[3], self.payload_left);
            }
            let length = self.payload_left.min(bytes.len());
            self.payload_left -= length;
            bytes = &bytes[length..];
            if self.payload_left == 0 {
                self.header_length = 0;
                self.in_head &= self.header[4] & END_HEADERS == 0;
                if !self.in_head
                    && let Some(bytes) = self.new_head.take()
                {
                    self.requests = RequestHeads { count: self.requests.count + 1, last: bytes };
                }
            }
        }
        let is_unfinished = self.in_head || self.header_length > 0 || self.preface_left > 0;
        is_unfinished.then_some((if self.in_head { Unfinished::Head } else { Unfinished::Frame }, self.begun))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        [&[0, 0, payload.len() as u8, kind, flags, 0, 0, 0, 1][..], payload].concat()
    }

    #[test]
    fn what_the_table_may_pin_is_the_input_of_the_last_heads() {
        let mut reader = FrameReader::new();
        reader.read(PREFACE);
        let large = [&[0, 0x27, 0x10, HEADERS, END_HEADERS, 0, 0, 0, 1][..], &[0; 10_000]].concat();
        for n in 1..=TABLE_ENTRIES {
            reader.read(&large);
            assert_eq!(reader.pinned(), n * (HEADER + 10_000));
        }
        reader.read(&large);
        assert_eq!(reader.pinned(), TABLE_ENTRIES * (HEADER + 10_000), "the oldest has left the table");
        // What came between counts for the next head, and never more than a buffer.
        for _ in 0..10 {
            reader.read(&[&[0, 0x27, 0x10, 0, 0, 0, 0, 0, 1][..], &[0; 10_000]].concat());
        }
        reader.read(&frame(HEADERS, END_HEADERS, b"head"));
        assert_eq!(reader.pinned(), (TABLE_ENTRIES - 1) * (HEADER + 10_000) + BUFFER);
    }

    #[test]
    fn requests_are_the_first_heads_of_streams() {
        let (whole, on) = (END_HEADERS, |stream: u32, mut frame: Vec<u8>| {
            frame[5..9].copy_from_slice(&stream.to_be_bytes());
            frame
        });
        let mut reader = FrameReader::new();
        reader.read(PREFACE);
        for (bytes, count, last) in [
            (on(1, frame(HEADERS, whole, b"head")), 1, 4),
            (on(1, frame(0, 0, b"data")), 1, 4),
            (on(1, frame(HEADERS, whole, b"trailers")), 1, 4),
            (on(5, frame(HEADERS, 0, b"he")), 1, 4),
            (on(5, frame(CONTINUATION, 0, b"a")), 1, 4),
            (on(5, frame(CONTINUATION, whole, b"ding")), 2, 7),
            (on(3, frame(HEADERS, whole, b"of the past")), 2, 7),
            (on(7, frame(HEADERS, whole, b"")), 3, 0),
        ] {
            reader.read(&bytes);
            assert_eq!(reader.requests(), RequestHeads { count, last });
        }
    }

    #[test]
    fn what_has_begun_is_known_however_the_bytes_are_cut() {
        let all = [
            (PREFACE.to_vec(), Unfinished::Frame),
            (frame(4, 0, &[]), Unfinished::Frame),
            (frame(HEADERS, END_HEADERS, b"head"), Unfinished::Head),
            (frame(0, 0, b"data"), Unfinished::Frame),
            (frame(HEADERS, 0, b"he"), Unfinished::Head),
            (frame(CONTINUATION, 0, b""), Unfinished::Head),
            (frame(CONTINUATION, END_HEADERS, b"ad"), Unfinished::Head),
            (frame(6, 0, &[0; 8]), Unfinished::Frame),
        ];
        let mut reader = FrameReader::new();
        let mut is_open_head = false;
        for (bytes, unfinished) in &all {
            for (i, byte) in bytes.iter().enumerate() {
                let now = reader.read(&[*byte]).map(|(unfinished, _)| unfinished);
                let is_whole = i + 1 == bytes.len();
                // A frame's kind is its fourth byte.
                let is_head = is_open_head || (*unfinished == Unfinished::Head && i >= 8);
                is_open_head |= is_whole && bytes[3] == HEADERS && bytes[4] & END_HEADERS == 0;
                is_open_head &= !(is_whole && bytes[4] & END_HEADERS != 0);
                let expected = match is_whole {
                    true => is_open_head.then_some(Unfinished::Head),
                    false => Some(if is_head { Unfinished::Head } else { Unfinished::Frame }),
                };
                assert_eq!(now, expected, "byte {i} of {bytes:?}");
            }
        }
        let bytes: Vec<u8> = all.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
        assert_eq!(FrameReader::new().read(&bytes), None);
        assert_eq!(FrameReader::new().read(&bytes[..bytes.len() - 1]), Some((Unfinished::Frame, 5)));
    }
}
