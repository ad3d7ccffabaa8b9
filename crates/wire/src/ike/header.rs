//! The IKE header (RFC 7296, 3.1).

use super::payload::PayloadType;
use crate::error::{Problem, WireError};
use crate::numbers::numbers;
use crate::reader::Reader;

/// Bytes of the header.
pub const HEADER_LEN: usize = 28;

numbers! {
    /// The exchange a message belongs to (RFC 7296, 3.1).
    ExchangeType: u8 {
        IKE_SA_INIT = 34,
        IKE_AUTH = 35,
        CREATE_CHILD_SA = 36,
        INFORMATIONAL = 37,
        IKE_SESSION_RESUME = 38,
        /// RFC 9242.
        IKE_INTERMEDIATE = 43,
        /// RFC 9370.
        IKE_FOLLOWUP_KE = 44,
    }
}

/// The flags byte of the header (RFC 7296, 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags {
    /// I: the sender is the original initiator of the IKE SA.
    pub initiator: bool,
    /// V: the sender can speak a higher major version.
    pub version: bool,
    /// R: the message is a response.
    pub response: bool,
}

impl Flags {
    const INITIATOR: u8 = 0x08;
    const VERSION: u8 = 0x10;
    const RESPONSE: u8 = 0x20;

    /// Reads the byte; the other bits are ignored, as the RFC asks.
    pub fn from_byte(byte: u8) -> Self {
        Self {
            initiator: byte & Self::INITIATOR != 0,
            version: byte & Self::VERSION != 0,
            response: byte & Self::RESPONSE != 0,
        }
    }

    /// The byte on the wire.
    pub fn to_byte(self) -> u8 {
        let bit = |set: bool, value: u8| if set { value } else { 0 };
        bit(self.initiator, Self::INITIATOR)
            | bit(self.version, Self::VERSION)
            | bit(self.response, Self::RESPONSE)
    }
}

/// The fixed header of every IKE message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// SPI of the original initiator; never 0 in a valid message.
    pub initiator_spi: u64,
    /// SPI of the original responder; 0 in the first request.
    pub responder_spi: u64,
    /// Type of the first payload. Builders fill it in.
    pub next_payload: PayloadType,
    /// Major version; 2.
    pub major: u8,
    /// Minor version; sent as 0, ignored when read.
    pub minor: u8,
    /// The exchange.
    pub exchange: ExchangeType,
    /// The flags.
    pub flags: Flags,
    /// The message ID.
    pub message_id: u32,
    /// Bytes of the whole message. Builders fill it in.
    pub length: u32,
}

impl Header {
    /// A header for a builder, which fills in `next_payload` and `length`.
    pub fn new(
        initiator_spi: u64,
        responder_spi: u64,
        exchange: ExchangeType,
        initiator: bool,
        response: bool,
        message_id: u32,
    ) -> Self {
        Self {
            initiator_spi,
            responder_spi,
            next_payload: PayloadType::NONE,
            major: 2,
            minor: 0,
            exchange,
            flags: Flags {
                initiator,
                version: false,
                response,
            },
            message_id,
            length: 0,
        }
    }

    /// Reads the header and judges nothing but that 28 bytes are there: an answer to a message of
    /// another version, or with a bad length, needs the SPIs and the message ID too.
    pub fn parse(datagram: &[u8]) -> Result<Self, WireError> {
        if datagram.len() < HEADER_LEN {
            return Err(WireError::truncated(
                "IKE header",
                0,
                HEADER_LEN,
                datagram.len(),
            ));
        }
        let mut r = Reader::new(datagram, 0, "IKE header");
        let initiator_spi = r.u64()?;
        let responder_spi = r.u64()?;
        let next_payload = PayloadType(r.u8()?);
        let version = r.u8()?;
        Ok(Self {
            initiator_spi,
            responder_spi,
            next_payload,
            major: version >> 4,
            minor: version & 0x0f,
            exchange: ExchangeType(r.u8()?),
            flags: Flags::from_byte(r.u8()?),
            message_id: r.u32()?,
            length: r.u32()?,
        })
    }

    /// Checks version, initiator SPI and length against the datagram the header came in.
    pub fn check(&self, datagram_len: usize) -> Result<(), WireError> {
        if self.major != 2 {
            return Err(WireError::new(
                "IKE version",
                17,
                Problem::MajorVersion(self.major),
            ));
        }
        if self.initiator_spi == 0 {
            return Err(WireError::new("IKE initiator SPI", 0, Problem::BadValue(0)));
        }
        if self.length as usize != datagram_len {
            let said = self.length as usize;
            let problem = Problem::BadLength {
                said,
                min: datagram_len,
                max: datagram_len,
            };
            return Err(WireError::new("IKE message length", 24, problem));
        }
        Ok(())
    }

    /// The 28 bytes.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[0..8].copy_from_slice(&self.initiator_spi.to_be_bytes());
        out[8..16].copy_from_slice(&self.responder_spi.to_be_bytes());
        out[16] = self.next_payload.0;
        out[17] = (self.major << 4) | (self.minor & 0x0f);
        out[18] = self.exchange.0;
        out[19] = self.flags.to_byte();
        out[20..24].copy_from_slice(&self.message_id.to_be_bytes());
        out[24..28].copy_from_slice(&self.length.to_be_bytes());
        out
    }
}
