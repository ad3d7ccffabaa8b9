//! Two engines in a live handshake or with SAs between them, and somebody in the middle: one
//! who has no keys and changes what is seen, or one who has gone mad with the keys.

use std::time::Duration;

use testudo_ike::Engine;
use testudo_ike::fuzzing;

use crate::bytes::{Source, damage, shuffle};
use crate::pair::{Datagram, Pair, Proof, peer_id};

/// Steps of one run.
const STEPS: usize = 48;

/// A seed and the proof, then steps.
pub(crate) fn run(data: &[u8]) {
    let mut source = Source::new(data);
    let seed = source.u8() % 4;
    let proof = Proof::chosen_by(source.u8());
    let mut middle = Middle {
        pair: Pair::new(seed, proof),
        keys_used: false,
    };
    middle.pair.fly(usize::from(source.u8() % 6));
    for _ in 0..STEPS {
        if source.is_empty() {
            break;
        }
        middle.step(&mut source);
    }
    let Middle {
        mut pair,
        keys_used,
    } = middle;
    if !keys_used {
        // Whoever has no keys delays at most: afterwards the two find each other.
        for n in [1, 0] {
            pair.configure(n, 1);
        }
        pair.run(Duration::from_secs(400));
        assert!(pair.connected(), "the two do not find each other");
    }
    pair.part();
}

struct Middle {
    pair: Pair,
    /// A message was made with the keys of one of the two: now anything may be believed.
    keys_used: bool,
}

impl Middle {
    fn step(&mut self, source: &mut Source<'_>) {
        match source.u8() % 16 {
            0..4 => self.pair.fly(1),
            4 => drop(self.pair.flying.pop_front()),
            5 => self.twice(),
            6 => {
                if let Some(last) = self.pair.flying.pop_back() {
                    self.pair.deliver(&last);
                }
            }
            7 => self.damaged(source),
            8 => self.resealed(source),
            9 => self.replayed(source),
            10 => self.forged(source),
            11 => self.noise(source),
            12 => self.pair.wait(),
            13 => {
                let span = Duration::from_millis(u64::from(source.u8()) * 50);
                self.pair.run(span);
            }
            _ => self.command(source),
        }
    }

    fn twice(&mut self) {
        if let Some(next) = self.pair.flying.front().cloned() {
            self.pair.deliver(&next);
        }
    }

    /// Changed by one who sees it.
    fn damaged(&mut self, source: &mut Source<'_>) {
        if let Some(mut next) = self.pair.flying.pop_front() {
            for _ in 0..=source.u8() % 3 {
                damage(source, &mut next.bytes);
            }
            if source.u8() & 1 != 0 {
                fit(&mut next.bytes);
            }
            self.pair.deliver(&next);
        }
    }

    /// Changed by one who has the sender's keys.
    fn resealed(&mut self, source: &mut Source<'_>) {
        let Some(mut next) = self.pair.flying.pop_front() else {
            return;
        };
        if self.reseal(source, &mut next, false) {
            self.pair.deliver(&next);
        } else {
            self.pair.flying.push_front(next);
            self.damaged(source);
        }
    }

    fn reseal(&mut self, source: &mut Source<'_>, datagram: &mut Datagram, renumber: bool) -> bool {
        let [a, b] = &mut self.pair.engines;
        let (sender, receiver): (&mut Engine, &Engine) = match datagram.from {
            0 => (a, b),
            _ => (b, a),
        };
        let sealed = fuzzing::reseal(sender, receiver, &datagram.bytes, |header, first, text| {
            if renumber {
                header.message_id = u32::from(source.u8() % 8);
                match source.u8() % 8 {
                    0 => header.exchange = source.u8().into(),
                    1 => header.flags.response = !header.flags.response,
                    _ => {}
                }
            }
            match source.u8() % 4 {
                0 => (first, text),
                1 => {
                    let mut text = text;
                    damage(source, &mut text);
                    (first, text)
                }
                _ => shuffle(source, first, &text),
            }
        });
        let Some(bytes) = sealed else { return false };
        self.keys_used = true;
        datagram.bytes = bytes;
        true
    }

    /// An old one: as it was, from elsewhere, or with another number and other content.
    fn replayed(&mut self, source: &mut Source<'_>) {
        if self.pair.sent.is_empty() {
            return;
        }
        let at = source.below(self.pair.sent.len());
        let mut old = self.pair.sent[at].clone();
        match source.u8() % 4 {
            0 => {}
            1 => old.local.set_port(u16::from(source.u8()) + 1),
            2 => old.local.set_ip([10, 9, 9, source.u8()].into()),
            _ => {
                if !self.reseal(source, &mut old, true) {
                    damage(source, &mut old.bytes);
                }
            }
        }
        self.pair.deliver(&old);
    }

    /// One that the sender never meant to send.
    fn forged(&mut self, source: &mut Source<'_>) {
        let from = source.below(2);
        let exchange = 34 + source.u8() % 6;
        let (message_id, response) = (u32::from(source.u8() % 8), source.u8() & 1 != 0);
        let (first, text) = shuffle(source, 0, &[]);
        let sender = &mut self.pair.engines[from];
        let sealed = fuzzing::seal(sender, exchange, message_id, response, first, &text);
        let path = self.pair.sent.iter().find(|d| d.from == from).cloned();
        if let (Some(bytes), Some(path)) = (sealed, path) {
            self.keys_used = true;
            self.pair.deliver(&Datagram { bytes, ..path });
        }
    }

    fn noise(&mut self, source: &mut Source<'_>) {
        let from = source.below(2);
        let len = usize::from(source.u8());
        let bytes = source.take(len).to_vec();
        if let Some(path) = self.pair.sent.iter().find(|d| d.from == from).cloned() {
            self.pair.deliver(&Datagram { bytes, ..path });
        }
    }

    fn command(&mut self, source: &mut Source<'_>) {
        let n = source.below(2);
        let peer = peer_id(1 - n);
        match source.u8() % 8 {
            0 => {
                let which = usize::from(source.u8() % 4);
                let status = self.pair.engines[n].status();
                let mut children = status.iter().flat_map(|s| s.children.iter());
                if let Some(child) = children.nth(which).map(|c| c.child) {
                    let _ = self.pair.act(n, |e, now| e.rekey_child(child, now));
                }
            }
            1 => {
                let _ = self.pair.act(n, |e, now| e.rekey_ike(&peer, now));
            }
            2 => {
                let _ = self.pair.act(n, |e, now| e.reauthenticate(&peer, now));
            }
            3 => {
                let _ = self.pair.act(n, |e, now| e.close(&peer, now));
            }
            4 => {
                let _ = self.pair.act(n, |e, now| e.probe(&peer, now));
            }
            5 => self.pair.act(n, |e, now| e.remove_peer(&peer, now)),
            6 => {
                let child = source.u8();
                let status = self.pair.engines[n].status();
                let mut children = status.iter().flat_map(|s| s.children.iter());
                if let Some(child) = children.nth(usize::from(child % 4)).map(|c| c.child) {
                    self.pair.act(n, |e, now| e.note_inbound(child, now));
                }
            }
            _ => {
                let children = 1 + usize::from(source.u8() % 3);
                self.pair.configure(n, children);
            }
        }
    }
}

/// Makes the header's length that of the datagram, so that what is damaged is read at all.
fn fit(bytes: &mut [u8]) {
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes();
    if let Some(field) = bytes.get_mut(24..28) {
        field.copy_from_slice(&len);
    }
}
