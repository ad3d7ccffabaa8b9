//! Real ESP between the nodes: what a node sends is sealed by `testudo-esp` with the keys that
//! its engine gave out, and opened by the same crate at the other end.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use testudo_esp::{
    DropReason, HEAD_ROOM, InboundParameters, InboundSa, OutboundParameters, OutboundSa,
    SoftLimits, sealed_len, spi_of,
};
use testudo_model::ChildId;

use crate::node::{Half, Node};

/// An ESP packet.
pub struct Packet {
    /// The receiving node.
    pub to: usize,
    bytes: Vec<u8>,
}

/// What became of a packet.
pub enum Opened {
    /// It was opened on this child.
    On(ChildId),
    /// No SA has its SPI.
    Unknown(u32),
    /// It does not open.
    Broken(DropReason),
}

/// The SAs of one node's datapath.
#[derive(Default)]
pub struct Datapath {
    inbound: BTreeMap<u32, InboundSa>,
    outbound: BTreeMap<ChildId, OutboundSa>,
}

/// What is the same in every packet: only that it opens matters.
const PAYLOAD: [u8; 16] = *b"a datagram or so";

impl Datapath {
    /// Removes what the node has no longer.
    pub fn sync(&mut self, node: &Node) {
        self.inbound
            .retain(|spi, _| node.twin.inbound.contains_key(spi));
        self.outbound
            .retain(|child, _| node.twin.outbound.contains_key(child));
    }

    /// A packet for each child that the node sends on. `keys` are all that ever sealed: none
    /// may come again, because its sequence numbers would.
    pub fn seal(
        &mut self,
        node: &Node,
        keys: &mut BTreeSet<Vec<u8>>,
    ) -> Result<Vec<Packet>, String> {
        self.sync(node);
        let mut all = Vec::new();
        for child in node.twin.sending.values() {
            let Some(out) = node.twin.outbound.get(child) else {
                continue;
            };
            if !self.outbound.contains_key(child) {
                if !keys.insert(out.half.key.clone()) {
                    return Err(format!("seals with the key of child {} twice", child.0));
                }
                self.outbound.insert(*child, outbound(&out.half)?);
            }
            let mut bytes = vec![0; HEAD_ROOM + sealed_len(PAYLOAD.len())];
            bytes[HEAD_ROOM..HEAD_ROOM + PAYLOAD.len()].copy_from_slice(&PAYLOAD);
            let sealed = self.outbound[child].seal(&mut bytes, PAYLOAD.len(), 17);
            let sealed = sealed.map_err(|e| format!("cannot seal: {}", e.as_str()))?;
            bytes.truncate(sealed.len);
            let to = out.purpose.0;
            all.push(Packet { to, bytes });
        }
        Ok(all)
    }

    /// A packet comes in.
    pub fn open(&mut self, node: &Node, packet: &Packet) -> Result<Opened, String> {
        self.sync(node);
        let spi = spi_of(&packet.bytes).ok_or("a packet without SPI")?;
        let Some(half) = node.twin.inbound.get(&spi) else {
            return Ok(Opened::Unknown(spi));
        };
        let sa = match self.inbound.entry(spi) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(inbound(half)?),
        };
        let mut bytes = packet.bytes.clone();
        Ok(match sa.open(&mut bytes) {
            Ok(_) => Opened::On(half.child),
            Err(reason) => Opened::Broken(reason),
        })
    }
}

fn outbound(half: &Half) -> Result<OutboundSa, String> {
    OutboundSa::new(&OutboundParameters {
        spi: half.spi,
        cipher: half.cipher,
        keymat: &half.key,
        esn: half.esn,
        limits: SoftLimits::NONE,
    })
    .map_err(|e| e.to_string())
}

fn inbound(half: &Half) -> Result<InboundSa, String> {
    InboundSa::new(&InboundParameters {
        spi: half.spi,
        cipher: half.cipher,
        keymat: &half.key,
        esn: half.esn,
        replay_window: 64,
    })
    .map_err(|e| e.to_string())
}
