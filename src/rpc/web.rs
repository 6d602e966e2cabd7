//! gRPC-Web, where the trailers are the last frame of the content (PROTOCOL-WEB).

use std::mem;

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose},
};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::HeaderMap;

use super::{GRPC_STATUS, trailers};
use crate::protocol::{Last, Piece, Tail};

/// Marks the frame that holds the trailers.
const TRAILERS: u8 = 0x80;
/// A byte of flags, and the length.
const HEAD: usize = 5;
/// The maximum size of trailers that are kept, in bytes: no client or server accepts more.
const MOST: usize = 64 << 10;

/// gRPC-Web: the status is in the last frame of the content.
pub(super) struct InContent(WebReader);

impl InContent {
    pub(super) fn new(is_text: bool) -> Self {
        Self(WebReader::new(is_text))
    }
}

impl Tail for InContent {
    fn is_in_content(&self) -> bool {
        true
    }

    fn read(&mut self, frame: Piece<'_>) -> Option<bool> {
        match frame {
            Piece::Data(data) => Some(is_ok(&self.0.read(data)?)),
            Piece::Trailers(_) => None,
        }
    }

    fn refuse(&self, headers: HeaderMap) -> Option<Last> {
        if !self.0.is_between_frames() {
            return None;
        }
        let trailers = trailers(headers)?;
        Some(Last::Data(frame(&trailers, self.0.is_text())))
    }
}

/// Scans passing content for the trailers.
struct WebReader {
    text: Option<Base64>,
    /// The received part of a frame's head, or of the trailers.
    kept: Vec<u8>,
    /// Bytes of a message that have not arrived yet.
    skip: usize,
}

impl WebReader {
    fn new(is_text: bool) -> Self {
        Self {
            text: is_text.then(Base64::default),
            kept: Vec::new(),
            skip: 0,
        }
    }

    fn is_text(&self) -> bool {
        self.text.is_some()
    }

    /// Whether a frame may begin here. At any other position it would be read as the rest of a message.
    fn is_between_frames(&self) -> bool {
        let is_whole = self.text.as_ref().is_none_or(|text| text.kept.is_empty());
        self.skip == 0 && self.kept.is_empty() && is_whole
    }

    /// The trailers, once they have arrived completely.
    fn read(&mut self, content: &[u8]) -> Option<Vec<u8>> {
        match &mut self.text {
            None => self.read_frames(content),
            Some(text) => {
                let decoded = text.decode(content);
                self.read_frames(&decoded)
            }
        }
    }

    fn read_frames(&mut self, mut content: &[u8]) -> Option<Vec<u8>> {
        while !content.is_empty() {
            let skipped = self.skip.min(content.len());
            self.skip -= skipped;
            content.advance(skipped);

            // A head; and after the head of the trailers, the trailers.
            let wanted = self.kept.first_chunk().map_or(HEAD, whole);
            let taken = (wanted - self.kept.len()).min(content.len());
            self.kept.extend_from_slice(&content[..taken]);
            content.advance(taken);

            let Some(head) = self.kept.first_chunk() else {
                continue;
            };
            if head[0] & TRAILERS == 0 {
                self.skip = length(head);
                self.kept.clear();
            } else if self.kept.len() == whole(head) {
                return Some(self.kept.split_off(HEAD));
            }
        }
        None
    }
}

/// The length of a frame of trailers.
fn whole(head: &[u8; HEAD]) -> usize {
    HEAD + length(head).min(MOST)
}

fn length(head: &[u8; HEAD]) -> usize {
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    usize::try_from(length).unwrap_or(usize::MAX)
}

/// Whether trailers report success.
fn is_ok(trailers: &[u8]) -> bool {
    trailers.split(|byte| *byte == b'\n').any(|line| {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            return false;
        };
        let (name, value) = (line[..colon].trim_ascii(), line[colon + 1..].trim_ascii());
        name.eq_ignore_ascii_case(GRPC_STATUS.as_str().as_bytes()) && value == b"0"
    })
}

/// The last frame of an answer with these trailers.
fn frame(trailers: &HeaderMap, is_text: bool) -> Bytes {
    let mut frame = BytesMut::from(&[TRAILERS, 0, 0, 0, 0][..]);
    for (name, value) in trailers {
        frame.put_slice(name.as_str().as_bytes());
        frame.put_slice(b":");
        frame.put_slice(value.as_bytes());
        frame.put_slice(b"\r\n");
    }
    let length = u32::try_from(frame.len() - HEAD).expect("headers are shorter than 4 GiB");
    frame[1..HEAD].copy_from_slice(&length.to_be_bytes());
    if is_text {
        general_purpose::STANDARD.encode(&frame).into()
    } else {
        frame.freeze()
    }
}

/// Decodes Base64 (RFC 4648, section 4) incrementally. Each separately encoded piece may end in padding.
#[derive(Default)]
struct Base64 {
    /// Characters that are not decoded yet.
    kept: Vec<u8>,
}

impl Base64 {
    fn decode(&mut self, text: &[u8]) -> Vec<u8> {
        const LENIENT: GeneralPurpose = GeneralPurpose::new(
            &STANDARD,
            GeneralPurposeConfig::new()
                .with_decode_allow_trailing_bits(true)
                .with_decode_padding_mode(DecodePaddingMode::RequireNone),
        );

        let mut bytes = Vec::new();
        let mut decode = |text| {
            LENIENT
                .decode_vec(text, &mut bytes)
                .expect("only characters of the alphabet are kept, and never one more than a multiple of four")
        };
        for char in text {
            match char {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+' | b'/' => self.kept.push(*char),
                b'=' if self.kept.len() % 4 > 1 => decode(mem::take(&mut self.kept)),
                // The second padding character, or an invalid one.
                _ => {}
            }
        }
        let whole = self.kept.len() / 4 * 4;
        decode(self.kept.drain(..whole).collect());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(content: &[u8]) -> Vec<u8> {
        let mut message = vec![0];
        message.extend((content.len() as u32).to_be_bytes());
        message.extend(content);
        message
    }

    fn trailers(status: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(GRPC_STATUS, http::HeaderValue::from_static(status))])
    }

    #[test]
    fn pieces_that_were_encoded_one_by_one() {
        assert_eq!(Base64::default().decode(b"Zg==Zm8=Zm9v"), b"ffofoo");
    }

    #[test]
    fn the_outcome_is_found_in_every_spelling() {
        for (text, ok) in [
            ("grpc-status:0\r\n", true),
            ("Grpc-Status: 0", true),
            ("grpc-message:\r\ngrpc-status: 0 \r\n", true),
            ("grpc-status:8\r\n", false),
            ("grpc-status:00\r\n", false),
            ("grpc-message:grpc-status:0\r\n", false),
            ("", false),
        ] {
            assert_eq!(is_ok(text.as_bytes()), ok, "{text:?}");
        }
    }

    #[test]
    fn a_wrong_length_is_bounded() {
        let mut reader = WebReader::new(false);
        assert_eq!(reader.read(&[TRAILERS, 0xFF, 0xFF, 0xFF, 0xFF]), None);
        let found = (0..100).find_map(|_| reader.read(&[0; 1024]));
        assert_eq!(found.map(|trailers| trailers.len()), Some(MOST));
    }

    proptest! {
        #[test]
        fn base64_round_trips(bytes: Vec<u8>) {
            let text = general_purpose::STANDARD.encode(&bytes);
            prop_assert_eq!(Base64::default().decode(text.as_bytes()), bytes);
        }

        #[test]
        fn trailers_are_found_however_the_content_is_cut(
            messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..4),
            sizes in proptest::collection::vec(1usize..20, 1..20),
            is_text: bool,
        ) {
            let mut content: Vec<u8> = messages.iter().flat_map(|content| message(content)).collect();
            if is_text {
                content = general_purpose::STANDARD.encode(&content).into();
            }
            let before = content.len();
            content.extend(frame(&trailers("8"), is_text));

            let mut reader = WebReader::new(is_text);
            let (mut rest, mut sizes) = (&content[..], sizes.iter().cycle());
            let mut found = None;
            while found.is_none() && !rest.is_empty() {
                let size = *sizes.next().unwrap();
                let (piece, behind) = rest.split_at(size.min(rest.len()));
                found = reader.read(piece);
                rest = behind;
                prop_assert!(found.is_none() || content.len() - rest.len() > before);
            }
            prop_assert_eq!(found.as_deref(), Some(&b"grpc-status:8\r\n"[..]));
            // Only padding may be left.
            prop_assert!(rest.iter().all(|byte| *byte == b'='));
        }
    }
}
