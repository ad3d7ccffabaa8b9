//! Packets kept as files: each gives what its file says, and neither it nor anything near it makes
//! a parser panic. A packet that once broke something belongs in `corpus/`.
//!
//! A file has lines of `# why it is here`, `parser: NAME`, `expect: ok` or the reason of the
//! error, and else hexadecimal bytes, with a comment after `#` where it helps.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use testudo_wire::ike::{EncryptedLayout, Message, PayloadType, parse_chain, strip_padding};
use testudo_wire::ip::IpHeader;
use testudo_wire::{WireError, esp, udp};

struct Entry {
    name: String,
    parser: String,
    expect: String,
    bytes: Vec<u8>,
}

fn read(path: &Path) -> Entry {
    let name = path.display().to_string();
    let mut entry = Entry {
        name,
        parser: String::new(),
        expect: String::new(),
        bytes: Vec::new(),
    };
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let line = line.split('#').next().unwrap().trim();
        if let Some(parser) = line.strip_prefix("parser: ") {
            entry.parser = parser.into();
        } else if let Some(expect) = line.strip_prefix("expect: ") {
            entry.expect = expect.into();
        } else {
            let digits: String = line.split_whitespace().collect();
            assert!(
                digits.len().is_multiple_of(2),
                "{}: odd number of digits in {line:?}",
                entry.name
            );
            let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16);
            entry
                .bytes
                .extend((0..digits.len()).step_by(2).map(|at| byte(at).unwrap()));
        }
    }
    entry
}

fn corpus() -> Vec<Entry> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    paths.sort();
    paths.iter().map(|path| read(path)).collect()
}

fn ike(bytes: &[u8]) -> Result<(), WireError> {
    let message = Message::parse(bytes)?;
    match message.encrypted {
        Some(encrypted) => encrypted.ranges(EncryptedLayout::AES_GCM_16).map(drop),
        None => Ok(()),
    }
}

/// Payloads from an SA on, as they are after decryption, with padding.
fn inner(bytes: &[u8]) -> Result<(), WireError> {
    parse_chain(PayloadType::SA, strip_padding(bytes)?).map(drop)
}

fn esp_packet(bytes: &[u8]) -> Result<(), WireError> {
    esp::Header::parse(bytes).map(drop)
}

fn esp_trailer(bytes: &[u8]) -> Result<(), WireError> {
    esp::Trailer::parse(bytes).map(drop)
}

fn ip(bytes: &[u8]) -> Result<(), WireError> {
    IpHeader::parse(bytes).map(drop)
}

type Parser = fn(&[u8]) -> Result<(), WireError>;

const PARSERS: [(&str, Parser); 5] = [
    ("ike", ike),
    ("inner", inner),
    ("esp", esp_packet),
    ("esp-trailer", esp_trailer),
    ("ip", ip),
];

fn outcome(result: Result<(), WireError>) -> &'static str {
    result.err().map_or("ok", |error| error.reason())
}

#[test]
fn each_packet_gives_what_its_file_says() {
    let corpus = corpus();
    assert!(corpus.len() >= 20, "only {} files", corpus.len());
    for entry in corpus {
        let (_, parser) = PARSERS
            .iter()
            .find(|(name, _)| *name == entry.parser)
            .unwrap_or_else(|| panic!("{}: no parser {:?}", entry.name, entry.parser));
        let result = parser(&entry.bytes);
        assert_eq!(outcome(result), entry.expect, "{}: {result:?}", entry.name);
    }
}

#[test]
fn nothing_near_a_packet_breaks_a_parser() {
    for entry in corpus() {
        let try_all = |bytes: &[u8]| {
            for (_, parser) in PARSERS {
                let _ = parser(bytes);
            }
            let _ = udp::classify(bytes);
        };
        for length in 0..=entry.bytes.len() {
            try_all(&entry.bytes[..length]);
        }
        let mut bytes = entry.bytes;
        for place in 0..bytes.len() {
            let was = bytes[place];
            for value in [
                0,
                1,
                3,
                4,
                0x7f,
                0x80,
                0xff,
                was.wrapping_add(1),
                was.wrapping_sub(1),
                !was,
            ] {
                bytes[place] = value;
                try_all(&bytes);
            }
            bytes[place] = was;
        }
    }
}
