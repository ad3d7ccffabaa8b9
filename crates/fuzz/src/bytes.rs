//! The fuzzer's bytes as a stream of decisions, and what can be done to messages with them.

use testudo_wire::ike::{Chain, PayloadType};

/// Bytes read from the front; zeros once they are used up, so that each input means something.
pub(crate) struct Source<'a> {
    rest: &'a [u8],
}

impl<'a> Source<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn u8(&mut self) -> u8 {
        match self.rest.split_first() {
            Some((first, rest)) => {
                self.rest = rest;
                *first
            }
            None => 0,
        }
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_be_bytes([self.u8(), self.u8()])
    }

    /// A number below `limit`, which is not 0.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        let drawn = if limit <= 256 {
            usize::from(self.u8())
        } else {
            usize::from(self.u16())
        };
        drawn % limit.max(1)
    }

    /// The next `len` bytes, or as many as there are.
    pub(crate) fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    /// All that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }
}

/// Values that lengths, counts and identifiers break at.
const EDGES: [u8; 8] = [0, 1, 3, 4, 0x7f, 0x80, 0xfe, 0xff];

/// Changes one thing in `bytes`, as the source says.
pub(crate) fn damage(source: &mut Source<'_>, bytes: &mut Vec<u8>) {
    let kind = source.u8() % 8;
    if bytes.is_empty() {
        bytes.extend(source.take(8));
        return;
    }
    let at = source.below(bytes.len());
    match kind {
        0 => bytes[at] = source.u8(),
        1 => bytes[at] ^= 1 << (source.u8() % 8),
        2 => bytes[at] = EDGES[source.below(EDGES.len())],
        3 => bytes[at] = bytes[at].wrapping_add(1),
        4 => bytes.truncate(at),
        5 => {
            let len = usize::from(source.u8() % 32);
            let new = source.take(len).to_vec();
            bytes.splice(at..at, new);
        }
        6 => {
            let end = bytes.len().min(at + 1 + usize::from(source.u8() % 64));
            bytes.drain(at..end);
        }
        _ => {
            let end = bytes.len().min(at + 1 + usize::from(source.u8() % 64));
            let copy = bytes[at..end].to_vec();
            let to = source.below(bytes.len());
            bytes.splice(to..to, copy);
        }
    }
}

/// The payloads of a chain, as far as their generic headers can be followed.
fn split(first: u8, mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut out = Vec::new();
    let mut kind = first;
    while let [next, _, high, low, rest @ ..] = bytes {
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        let body = len.saturating_sub(4).min(rest.len());
        if kind == 0 {
            break;
        }
        out.push((kind, rest[..body].to_vec()));
        kind = *next;
        bytes = &rest[body..];
    }
    out
}

/// Changes a chain of payloads but keeps it a chain: payloads go, come twice, change places,
/// types and contents. Gives the type of the first, and the chain.
pub(crate) fn shuffle(source: &mut Source<'_>, first: u8, bytes: &[u8]) -> (u8, Vec<u8>) {
    let mut list = split(first, bytes);
    for _ in 0..=source.u8() % 4 {
        let at = source.below(list.len().max(1));
        let what = source.u8() % 8;
        match list.get_mut(at) {
            None => list.push((33 + source.u8() % 21, random_body(source))),
            Some((kind, body)) => match what {
                0 => drop(list.remove(at)),
                1 => {
                    let copy = list[at].clone();
                    list.push(copy);
                }
                2 => {
                    let other = source.below(list.len());
                    list.swap(at, other);
                }
                3 => *kind = source.u8(),
                4 => *body = random_body(source),
                5 => list.insert(at, (33 + source.u8() % 21, random_body(source))),
                _ => damage(source, body),
            },
        }
    }
    join(source, &list)
}

fn random_body(source: &mut Source<'_>) -> Vec<u8> {
    let len = usize::from(source.u8() % 48);
    source.take(len).to_vec()
}

fn join(source: &mut Source<'_>, list: &[(u8, Vec<u8>)]) -> (u8, Vec<u8>) {
    let critical = source.u8();
    let mut chain = Chain::new();
    for (n, (kind, body)) in list.iter().enumerate() {
        // What does not fit a chain is left out.
        let _ = chain.push_raw(PayloadType(*kind), critical == n as u8 + 1, body);
    }
    (chain.first().0, chain.bytes().to_vec())
}
