//! ESP (RFC 4303) in place, with AES-GCM (RFC 4106) or, for old peers, AES-CBC and
//! HMAC-SHA2: seal, open, replay window, SPI table.
//!
//! A packet lives in the caller's buffer from first to last. To seal, the
//! caller leaves [`OutboundSa::head_room`] bytes before the payload, which are
//! [`HEAD_ROOM`] with AES-GCM, and [`TAIL_ROOM`] or [`MAX_TAIL_ROOM`] after it; to open, it hands over the packet from the SPI to the ICV. Nothing here
//! allocates or locks per packet, and the two directions share nothing.
//!
//! ```text
//! | SPI 4 | seq 4 | IV 8 | payload | TFC | pad 0-3 | pad len 1 | next 1 | ICV 16 |
//!  <---- head room ----->           <-------------- tail room ---------------->
//! ```
#![forbid(unsafe_code)]

mod cbc;
mod counters;
mod inbound;
mod outbound;
mod packet;
mod replay;
mod table;

pub use counters::{Counters, DropReason};
pub use inbound::{InboundParameters, InboundSa, Opened};
pub use outbound::{OutboundParameters, OutboundSa, Sealed, SoftLimit, SoftLimits};
pub use packet::{
    HEAD_ROOM, MAX_HEAD_ROOM, MAX_TAIL_ROOM, MIN_PACKET_LEN, TAIL_ROOM, max_payload, sealed_len,
    spi_of,
};
pub use replay::{DEFAULT_REPLAY_WINDOW, MAX_REPLAY_WINDOW, MIN_REPLAY_WINDOW, ReplayWindow};
pub use table::{SharedSpiTable, SpiReader, SpiTable};

/// Next header of a dummy packet (RFC 4303 2.6): "no next header".
pub const NEXT_HEADER_DUMMY: u8 = 59;

#[cfg(test)]
mod tests;
