//! The kernel's numbers (linux/xfrm.h, linux/udp.h), without their XFRM prefixes.

pub(super) const NEWSA: u16 = 0x10;
pub(super) const DELSA: u16 = 0x11;
pub(super) const GETSA: u16 = 0x12;
pub(super) const NEWPOLICY: u16 = 0x13;
pub(super) const DELPOLICY: u16 = 0x14;
pub(super) const GETPOLICY: u16 = 0x15;
pub(super) const ACQUIRE: u16 = 0x17;
pub(super) const EXPIRE: u16 = 0x18;
pub(super) const UPDPOLICY: u16 = 0x19;
pub(super) const UPDSA: u16 = 0x1a;
pub(super) const POLEXPIRE: u16 = 0x1b;
pub(super) const FLUSHSA: u16 = 0x1c;
pub(super) const FLUSHPOLICY: u16 = 0x1d;
pub(super) const NEWAE: u16 = 0x1e;
pub(super) const MAPPING: u16 = 0x26;

/// Groups of notifications as bits of an address of netlink.
pub(super) const GROUP_ACQUIRE: u32 = 1;
pub(super) const GROUP_EXPIRE: u32 = 1 << 1;
pub(super) const GROUP_SA: u32 = 1 << 2;
pub(super) const GROUP_POLICY: u32 = 1 << 3;
pub(super) const GROUP_MAPPING: u32 = 1 << 7;

pub(super) const ALG_AUTH: u16 = 1;
pub(super) const ALG_CRYPT: u16 = 2;
pub(super) const ENCAP: u16 = 4;
pub(super) const TMPL: u16 = 5;
pub(super) const SA: u16 = 6;
pub(super) const POLICY: u16 = 7;
pub(super) const REPLAY_VAL: u16 = 10;
pub(super) const LASTUSED: u16 = 15;
pub(super) const POLICY_TYPE: u16 = 16;
pub(super) const ALG_AEAD: u16 = 18;
pub(super) const ALG_AUTH_TRUNC: u16 = 20;
pub(super) const MARK: u16 = 21;
pub(super) const REPLAY_ESN_VAL: u16 = 23;
pub(super) const SET_MARK: u16 = 29;
pub(super) const SET_MARK_MASK: u16 = 30;
pub(super) const IF_ID: u16 = 31;
pub(super) const MTIMER_THRESH: u16 = 32;
pub(super) const SA_DIR: u16 = 33;
pub(super) const SA_PCPU: u16 = 35;

pub(super) const SELECTOR_LEN: usize = 56;
pub(super) const POLICY_LEN: usize = 168;
pub(super) const POLICY_ID_LEN: usize = 64;
pub(super) const TMPL_LEN: usize = 64;
pub(super) const SA_LEN: usize = 224;
pub(super) const SA_ID_LEN: usize = 24;
pub(super) const AEVENT_LEN: usize = 48;
pub(super) const EXPIRE_LEN: usize = 232;
pub(super) const ACQUIRE_LEN: usize = 280;
pub(super) const MAPPING_LEN: usize = 64;
pub(super) const POLEXPIRE_LEN: usize = 176;
pub(super) const ALG_NAME_LEN: usize = 64;
/// XFRM_MAX_DEPTH.
pub(super) const MAX_TEMPLATES: usize = 6;

pub(super) const PROTO_ESP: u8 = 50;
pub(super) const POLICY_TYPE_MAIN: u8 = 0;
pub(super) const POLICY_IN: u8 = 0;
pub(super) const POLICY_OUT: u8 = 1;
pub(super) const POLICY_FWD: u8 = 2;
pub(super) const POLICY_ALLOW: u8 = 0;
pub(super) const POLICY_BLOCK: u8 = 1;
pub(super) const MODE_TRANSPORT: u8 = 0;
pub(super) const MODE_TUNNEL: u8 = 1;
pub(super) const STATE_AF_UNSPEC: u8 = 32;
pub(super) const STATE_ESN: u8 = 128;
pub(super) const SA_DIR_IN: u8 = 1;
pub(super) const SA_DIR_OUT: u8 = 2;
pub(super) const UDP_ENCAP_ESPINUDP: u16 = 2;
pub(super) const INFINITE: u64 = u64::MAX;
