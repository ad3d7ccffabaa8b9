//! DER as a tree, so that a change to one element leaves the lengths around it right.

use crate::bytes::{Source, damage};

const DEEPEST: usize = 24;

/// An element: its tag and what it holds.
#[derive(Clone)]
pub(crate) struct Element {
    tag: u8,
    content: Content,
}

#[derive(Clone)]
enum Content {
    Bytes(Vec<u8>),
    /// Bytes in front (the unused bits of a BIT STRING) and elements.
    Elements(Vec<u8>, Vec<Element>),
}

/// Reads a row of elements; `None` if the bytes are not exactly that.
pub(crate) fn read(mut bytes: &[u8], depth: usize) -> Option<Vec<Element>> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let (element, rest) = read_one(bytes, depth)?;
        out.push(element);
        bytes = rest;
    }
    Some(out)
}

fn read_one(bytes: &[u8], depth: usize) -> Option<(Element, &[u8])> {
    let [tag, first, rest @ ..] = bytes else {
        return None;
    };
    let (len, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        0x81 => (usize::from(*rest.first()?), rest.get(1..)?),
        0x82 => (
            usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?])),
            rest.get(2..)?,
        ),
        _ => return None,
    };
    let (inside, rest) = rest.split_at_checked(len)?;
    let content = elements_of(*tag, inside, depth).unwrap_or(Content::Bytes(inside.to_vec()));
    Some((Element { tag: *tag, content }, rest))
}

/// What is constructed, and the strings in which X.509 wraps more DER.
fn elements_of(tag: u8, inside: &[u8], depth: usize) -> Option<Content> {
    if depth == DEEPEST || inside.is_empty() {
        return None;
    }
    let front = match tag {
        _ if tag & 0x20 != 0 => 0,
        0x04 => 0,
        0x03 => 1,
        _ => return None,
    };
    let (front, inside) = inside.split_at_checked(front)?;
    let elements = read(inside, depth + 1).filter(|list| !list.is_empty())?;
    Some(Content::Elements(front.to_vec(), elements))
}

impl Element {
    /// Appends it as DER.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let content = match &self.content {
            Content::Bytes(bytes) => bytes.clone(),
            Content::Elements(front, elements) => {
                let mut content = front.clone();
                for element in elements {
                    element.write(&mut content);
                }
                content
            }
        };
        out.push(self.tag);
        let len = content.len().to_be_bytes();
        match content.len() {
            0..0x80 => out.push(len[7]),
            0x80..0x100 => out.extend([0x81, len[7]]),
            _ => out.extend([0x82, len[6], len[7]]),
        }
        out.extend(content);
    }

    fn size(&self) -> usize {
        1 + match &self.content {
            Content::Bytes(_) => 0,
            Content::Elements(_, list) => list.iter().map(Self::size).sum(),
        }
    }
}

/// Changes one element anywhere in the list.
pub(crate) fn change(source: &mut Source<'_>, list: &mut Vec<Element>) {
    let all: usize = list.iter().map(Element::size).sum();
    if all > 0 {
        let mut at = source.below(all);
        change_at(source, list, &mut at);
    }
}

/// Walks to the element numbered `at`; true when it is done.
fn change_at(source: &mut Source<'_>, list: &mut Vec<Element>, at: &mut usize) -> bool {
    for n in 0..list.len() {
        if *at == 0 {
            change_element(source, list, n);
            return true;
        }
        *at -= 1;
        if let Content::Elements(_, inner) = &mut list[n].content
            && change_at(source, inner, at)
        {
            return true;
        }
    }
    false
}

fn change_element(source: &mut Source<'_>, list: &mut Vec<Element>, n: usize) {
    match source.u8() % 8 {
        0 => drop(list.remove(n)),
        1 => {
            let copy = list[n].clone();
            list.insert(n, copy);
        }
        2 => list[n].tag = source.u8(),
        3 => {
            // Nested, up to where no stack should follow.
            for _ in 0..=source.u8() % 200 {
                let inner = list[n].clone();
                list[n].content = Content::Elements(Vec::new(), vec![inner]);
            }
        }
        4 => {
            let len = usize::from(source.u8() % 64);
            list[n].content = Content::Bytes(source.take(len).to_vec());
        }
        5 => {
            let other = source.below(list.len());
            list.swap(n, other);
        }
        _ => match &mut list[n].content {
            Content::Bytes(bytes) => damage(source, bytes),
            Content::Elements(front, _) if !front.is_empty() => front[0] = source.u8(),
            Content::Elements(..) => list[n].tag ^= 1 << (source.u8() % 8),
        },
    }
}
