//! The Notify payload (RFC 7296, 3.10).

use super::proposal::ProtocolId;
use crate::error::WireError;
use crate::numbers::numbers;
use crate::reader::Reader;

numbers! {
    /// The type of a Notify payload, by its name in the IANA registry. Numbers below 16384 are
    /// errors, the rest are status.
    NotifyType: u16 {
        UNSUPPORTED_CRITICAL_PAYLOAD = 1,
        INVALID_IKE_SPI = 4,
        INVALID_MAJOR_VERSION = 5,
        INVALID_SYNTAX = 7,
        INVALID_MESSAGE_ID = 9,
        INVALID_SPI = 11,
        NO_PROPOSAL_CHOSEN = 14,
        INVALID_KE_PAYLOAD = 17,
        AUTHENTICATION_FAILED = 24,
        SINGLE_PAIR_REQUIRED = 34,
        NO_ADDITIONAL_SAS = 35,
        INTERNAL_ADDRESS_FAILURE = 36,
        FAILED_CP_REQUIRED = 37,
        TS_UNACCEPTABLE = 38,
        INVALID_SELECTORS = 39,
        /// RFC 4555.
        UNACCEPTABLE_ADDRESSES = 40,
        /// RFC 4555.
        UNEXPECTED_NAT_DETECTED = 41,
        USE_ASSIGNED_HOA = 42,
        TEMPORARY_FAILURE = 43,
        CHILD_SA_NOT_FOUND = 44,
        INVALID_GROUP_ID = 45,
        AUTHORIZATION_FAILED = 46,
        /// RFC 9370.
        STATE_NOT_FOUND = 47,
        /// RFC 9611.
        TS_MAX_QUEUE = 48,
        INITIAL_CONTACT = 16384,
        SET_WINDOW_SIZE = 16385,
        ADDITIONAL_TS_POSSIBLE = 16386,
        IPCOMP_SUPPORTED = 16387,
        NAT_DETECTION_SOURCE_IP = 16388,
        NAT_DETECTION_DESTINATION_IP = 16389,
        COOKIE = 16390,
        USE_TRANSPORT_MODE = 16391,
        HTTP_CERT_LOOKUP_SUPPORTED = 16392,
        REKEY_SA = 16393,
        ESP_TFC_PADDING_NOT_SUPPORTED = 16394,
        NON_FIRST_FRAGMENTS_ALSO = 16395,
        /// RFC 4555, as are the next six.
        MOBIKE_SUPPORTED = 16396,
        ADDITIONAL_IP4_ADDRESS = 16397,
        ADDITIONAL_IP6_ADDRESS = 16398,
        NO_ADDITIONAL_ADDRESSES = 16399,
        UPDATE_SA_ADDRESSES = 16400,
        COOKIE2 = 16401,
        NO_NATS_ALLOWED = 16402,
        /// RFC 4478.
        AUTH_LIFETIME = 16403,
        /// RFC 4739.
        MULTIPLE_AUTH_SUPPORTED = 16404,
        ANOTHER_AUTH_FOLLOWS = 16405,
        /// RFC 5685.
        REDIRECT_SUPPORTED = 16406,
        REDIRECT = 16407,
        REDIRECTED_FROM = 16408,
        /// RFC 5723.
        TICKET_LT_OPAQUE = 16409,
        TICKET_REQUEST = 16410,
        TICKET_ACK = 16411,
        TICKET_NACK = 16412,
        TICKET_OPAQUE = 16413,
        LINK_ID = 16414,
        USE_WESP_MODE = 16415,
        ROHC_SUPPORTED = 16416,
        /// RFC 5998.
        EAP_ONLY_AUTHENTICATION = 16417,
        /// RFC 6023.
        CHILDLESS_IKEV2_SUPPORTED = 16418,
        /// RFC 6290.
        QUICK_CRASH_DETECTION = 16419,
        /// RFC 6311.
        IKEV2_MESSAGE_ID_SYNC_SUPPORTED = 16420,
        IPSEC_REPLAY_COUNTER_SYNC_SUPPORTED = 16421,
        IKEV2_MESSAGE_ID_SYNC = 16422,
        IPSEC_REPLAY_COUNTER_SYNC = 16423,
        /// RFC 6467.
        SECURE_PASSWORD_METHODS = 16424,
        PSK_PERSIST = 16425,
        PSK_CONFIRM = 16426,
        ERX_SUPPORTED = 16427,
        IFOM_CAPABILITY = 16428,
        SENDER_REQUEST_ID = 16429,
        /// RFC 7383.
        IKEV2_FRAGMENTATION_SUPPORTED = 16430,
        /// RFC 7427.
        SIGNATURE_HASH_ALGORITHMS = 16431,
        /// RFC 7791.
        CLONE_IKE_SA_SUPPORTED = 16432,
        CLONE_IKE_SA = 16433,
        /// RFC 8019.
        PUZZLE = 16434,
        /// RFC 8784.
        USE_PPK = 16435,
        /// RFC 8784.
        PPK_IDENTITY = 16436,
        /// RFC 8784.
        NO_PPK_AUTH = 16437,
        /// RFC 9242.
        INTERMEDIATE_EXCHANGE_SUPPORTED = 16438,
        IP4_ALLOWED = 16439,
        IP6_ALLOWED = 16440,
        /// RFC 9370.
        ADDITIONAL_KEY_EXCHANGE = 16441,
        /// RFC 9347.
        USE_AGGFRAG = 16442,
        /// RFC 9593.
        SUPPORTED_AUTH_METHODS = 16443,
        /// RFC 9611.
        SA_RESOURCE_INFO = 16444,
        /// RFC 9867.
        USE_PPK_INT = 16445,
        /// RFC 9867.
        PPK_IDENTITY_KEY = 16446,
        /// Ours, of the private range, as are the next two: which ESP packets have come in on this
        /// SA? A number of 4 bytes for the answer.
        TESTUDO_ESP_ASKED = 58864,
        /// That number; the highest sequence numbers received and sent on this SA, 8 bytes each.
        TESTUDO_ESP_COUNTS = 58865,
        /// ESP is filtered on the path; that is why UDP encapsulation is asked for.
        TESTUDO_ESP_FILTERED = 58866,
    }
}

impl NotifyType {
    /// The number is in the range of errors.
    pub fn is_error(self) -> bool {
        self.0 < 16384
    }
}

/// A Notify payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notify {
    /// The protocol of the SA it is about, else [`ProtocolId::NONE`].
    pub protocol: ProtocolId,
    /// The SPI of that SA; empty when about the IKE SA it came in or about none.
    pub spi: Vec<u8>,
    /// The type.
    pub kind: NotifyType,
    /// Its data.
    pub data: Vec<u8>,
}

impl Notify {
    /// A notification about no SA in particular, with data.
    pub fn new(kind: NotifyType, data: impl Into<Vec<u8>>) -> Self {
        Self {
            protocol: ProtocolId::NONE,
            spi: Vec::new(),
            kind,
            data: data.into(),
        }
    }

    /// A notification about the ESP SA with this SPI, for example REKEY_SA.
    pub fn about_esp(kind: NotifyType, spi: u32) -> Self {
        Self {
            protocol: ProtocolId::ESP,
            spi: spi.to_be_bytes().to_vec(),
            kind,
            data: Vec::new(),
        }
    }

    /// The SPI when it has 4 bytes, as those of ESP and AH have.
    pub fn spi_u32(&self) -> Option<u32> {
        self.spi.as_slice().try_into().ok().map(u32::from_be_bytes)
    }

    /// The data as one 16-bit number, as INVALID_KE_PAYLOAD has it.
    pub fn data_u16(&self) -> Option<u16> {
        self.data.as_slice().try_into().ok().map(u16::from_be_bytes)
    }

    /// The data as 16-bit numbers, as SIGNATURE_HASH_ALGORITHMS has them; an odd last byte is
    /// left out.
    pub fn data_u16s(&self) -> impl Iterator<Item = u16> {
        self.data
            .as_chunks::<2>()
            .0
            .iter()
            .map(|pair| u16::from_be_bytes(*pair))
    }

    pub(super) fn decode(r: &mut Reader<'_>) -> Result<Self, WireError> {
        let protocol = ProtocolId(r.u8()?);
        let spi_len = usize::from(r.u8()?);
        let kind = NotifyType(r.u16()?);
        Ok(Self {
            protocol,
            spi: r.take(spi_len)?.to_vec(),
            kind,
            data: r.rest().to_vec(),
        })
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend([self.protocol.0, self.spi.len() as u8]);
        out.extend(self.kind.0.to_be_bytes());
        out.extend(&self.spi);
        out.extend(&self.data);
    }
}
