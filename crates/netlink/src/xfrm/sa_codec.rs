//! How the kernel writes SAs (`xfrm_usersa_info` and its attributes).

use std::time::Duration;

use super::algorithm::{self};
use super::sa::{
    XfrmEncapsulation, XfrmLimits, XfrmListedSa, XfrmReplay, XfrmSa, XfrmSaId, XfrmSaUse,
};
use super::selector::{self, XfrmDirection, XfrmMode, XfrmSelector};
use super::{abi, mark};
use crate::Family;
use crate::message::{Request, attributes, read_u16, read_u32, read_u64};

/// Words of the largest replay bitmap that is written: 4,096 packets.
const MOST_WORDS: u32 = 128;

impl XfrmSa {
    /// The request that installs (`abi::NEWSA`) or changes (`abi::UPDSA`) it.
    pub(super) fn request(&self, kind: u16, operation: String) -> Request {
        let family = Family::of(&self.id.destination);
        let mut fixed = [0; abi::SA_LEN];
        if let Some(selector) = &self.selector {
            fixed[..abi::SELECTOR_LEN].copy_from_slice(&selector.encode());
        }
        selector::put_address(&mut fixed[56..], self.id.destination);
        fixed[72..76].copy_from_slice(&self.id.spi.to_be_bytes());
        fixed[76] = abi::PROTO_ESP;
        selector::put_address(&mut fixed[80..], self.source);
        put_limits(&mut fixed[96..160], &self.limits);
        fixed[208..212].copy_from_slice(&self.reqid.to_ne_bytes());
        fixed[212..214].copy_from_slice(&u16::from(family.raw()).to_ne_bytes());
        fixed[214] = self.mode.raw();
        let mut flags = 0;
        if self.replay.esn {
            flags |= abi::STATE_ESN;
        }
        if self.selector.is_none() && self.mode == XfrmMode::Tunnel {
            flags |= abi::STATE_AF_UNSPEC;
        }
        fixed[216] = flags;
        let mut request = Request::new(kind, 0, &fixed, operation);
        self.algorithm.put(&mut request);
        request.attr(abi::REPLAY_ESN_VAL, &replay_bytes(&self.replay));
        if let Some(ports) = self.encapsulation {
            request.attr(abi::ENCAP, &encapsulation_bytes(ports));
        }
        put_mark(&mut request, self.id.mark);
        match self.direction {
            Some(XfrmDirection::In) => {
                request.u8(abi::SA_DIR, abi::SA_DIR_IN);
            }
            Some(XfrmDirection::Out) => {
                request.u8(abi::SA_DIR, abi::SA_DIR_OUT);
            }
            Some(XfrmDirection::Forward) | None => {}
        }
        if let Some((value, mask)) = self.output_mark {
            request.u32(abi::SET_MARK, value);
            request.u32(abi::SET_MARK_MASK, mask);
        }
        if self.if_id != 0 {
            request.u32(abi::IF_ID, self.if_id);
        }
        if let Some(cpu) = self.cpu {
            request.u32(abi::SA_PCPU, cpu);
        }
        if let Some(interval) = self.mapping_interval {
            let seconds = u32::try_from(seconds(Some(interval))).unwrap_or(u32::MAX);
            request.u32(abi::MTIMER_THRESH, seconds);
        }
        request
    }
}

impl XfrmListedSa {
    /// `None` for what is no ESP, and for what is malformed.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        Self::parse_body(body, abi::SA_LEN, body)
    }

    /// `info` begins with `xfrm_usersa_info`; the attributes of `body` follow `skip` bytes.
    pub(super) fn parse_body(info: &[u8], skip: usize, body: &[u8]) -> Option<Self> {
        let info = info.get(..abi::SA_LEN)?;
        let family = selector::family(info, 212)?;
        if info[76] != abi::PROTO_ESP {
            return None;
        }
        let flags = info[216];
        let mut collected = algorithm::Collected::default();
        let mut output_mark: Option<(u32, u32)> = None;
        let mut used = parse_use(info)?;
        let mut sa = XfrmSa {
            id: XfrmSaId {
                destination: selector::address(info, 56, family)?,
                spi: u32::from_be_bytes(info[72..76].try_into().ok()?),
                mark: (0, 0),
            },
            source: selector::address(info, 80, family)?,
            reqid: read_u32(info, 208)?,
            mode: XfrmMode::from_raw(info[214]),
            selector: selector_of(info, family),
            algorithm: super::XfrmAlgorithm::None,
            encapsulation: None,
            replay: XfrmReplay {
                window: info[215].into(),
                esn: flags & abi::STATE_ESN != 0,
                ..XfrmReplay::default()
            },
            direction: None,
            limits: parse_limits(&info[96..160])?,
            output_mark: None,
            if_id: 0,
            cpu: None,
            mapping_interval: None,
        };
        for (kind, value) in attributes(body, skip) {
            match kind {
                abi::ENCAP => sa.encapsulation = parse_encapsulation(value),
                abi::MARK => sa.id.mark = mark(value)?,
                abi::REPLAY_ESN_VAL => sa.replay = parse_replay(value, sa.replay.esn)?,
                abi::REPLAY_VAL => {
                    sa.replay.sent = read_u32(value, 0)?.into();
                    sa.replay.received = read_u32(value, 4)?.into();
                }
                abi::SA_DIR => {
                    sa.direction = match *value.first()? {
                        abi::SA_DIR_IN => Some(XfrmDirection::In),
                        abi::SA_DIR_OUT => Some(XfrmDirection::Out),
                        _ => None,
                    }
                }
                abi::SET_MARK => {
                    output_mark.get_or_insert((0, u32::MAX)).0 = read_u32(value, 0)?;
                }
                abi::SET_MARK_MASK => {
                    output_mark.get_or_insert((0, u32::MAX)).1 = read_u32(value, 0)?;
                }
                abi::LASTUSED => used.last_used = read_u64(value, 0)?,
                abi::IF_ID => sa.if_id = read_u32(value, 0)?,
                abi::SA_PCPU => sa.cpu = Some(read_u32(value, 0)?),
                abi::MTIMER_THRESH => {
                    let seconds = read_u32(value, 0)?;
                    sa.mapping_interval = Some(Duration::from_secs(seconds.into()));
                }
                _ => collected.attribute(kind, value)?,
            }
        }
        sa.algorithm = collected.finish();
        sa.output_mark = output_mark;
        Some(Self { sa, used })
    }
}

impl XfrmSaId {
    /// A request about the SA of this name: `abi::GETSA`, `abi::DELSA`.
    pub(super) fn request(&self, kind: u16, operation: String) -> Request {
        let mut request = Request::new(kind, 0, &self.fixed(), operation);
        put_mark(&mut request, self.mark);
        request
    }

    fn fixed(&self) -> [u8; abi::SA_ID_LEN] {
        let mut fixed = [0; abi::SA_ID_LEN];
        selector::put_address(&mut fixed, self.destination);
        fixed[16..20].copy_from_slice(&self.spi.to_be_bytes());
        let family = Family::of(&self.destination).raw();
        fixed[20..22].copy_from_slice(&u16::from(family).to_ne_bytes());
        fixed[22] = abi::PROTO_ESP;
        fixed
    }

    /// A request that sets the sequence numbers of the SA of this name (`xfrm_aevent_id`).
    pub(super) fn replay_request(&self, replay: &XfrmReplay, operation: String) -> Request {
        let mut fixed = [0; abi::AEVENT_LEN];
        fixed[..abi::SA_ID_LEN].copy_from_slice(&self.fixed());
        let flags = crate::abi::NLM_F_REPLACE;
        let mut request = Request::new(abi::NEWAE, flags, &fixed, operation);
        request.attr(abi::REPLAY_ESN_VAL, &replay_bytes(replay));
        put_mark(&mut request, self.mark);
        request
    }

    /// `xfrm_usersa_id`; the mark is an attribute beside it.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let family = selector::family(bytes, 20)?;
        if *bytes.get(22)? != abi::PROTO_ESP {
            return None;
        }
        Some(Self {
            destination: selector::address(bytes, 0, family)?,
            spi: u32::from_be_bytes(bytes.get(16..20)?.try_into().ok()?),
            mark: (0, 0),
        })
    }
}

fn put_mark(request: &mut Request, (value, mask): (u32, u32)) {
    if (value, mask) == (0, 0) {
        return;
    }
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&value.to_ne_bytes());
    bytes[4..].copy_from_slice(&mask.to_ne_bytes());
    request.attr(abi::MARK, &bytes);
}

/// What the kernel fills in for no selector (any of the SA's family) is read as none.
fn selector_of(info: &[u8], family: Family) -> Option<XfrmSelector> {
    let selector = XfrmSelector::parse(info)?;
    let any = selector.source.prefix_len() == 0
        && selector.destination.prefix_len() == 0
        && selector.protocol == 0
        && selector.source_port.mask == 0
        && selector.destination_port.mask == 0
        && selector.family() == family;
    (!any).then_some(selector)
}

fn seconds(time: Option<Duration>) -> u64 {
    // Rounded up, and never to 0, which says never.
    time.map_or(0, |t| {
        (t.as_secs() + u64::from(t.subsec_nanos() > 0)).max(1)
    })
}

/// `xfrm_lifetime_cfg`.
fn put_limits(out: &mut [u8], limits: &XfrmLimits) {
    let values = [
        limits.soft_bytes.unwrap_or(abi::INFINITE),
        limits.hard_bytes.unwrap_or(abi::INFINITE),
        limits.soft_packets.unwrap_or(abi::INFINITE),
        limits.hard_packets.unwrap_or(abi::INFINITE),
        seconds(limits.soft_time),
        seconds(limits.hard_time),
        0,
        0,
    ];
    for (slot, value) in out.chunks_exact_mut(8).zip(values) {
        slot.copy_from_slice(&value.to_ne_bytes());
    }
}

fn parse_limits(bytes: &[u8]) -> Option<XfrmLimits> {
    let count = |at| Some(Some(read_u64(bytes, at)?).filter(|v| *v != abi::INFINITE));
    let time = |at| {
        let seconds = Some(read_u64(bytes, at)?).filter(|v| *v != 0);
        Some(seconds.map(Duration::from_secs))
    };
    Some(XfrmLimits {
        soft_bytes: count(0)?,
        hard_bytes: count(8)?,
        soft_packets: count(16)?,
        hard_packets: count(24)?,
        soft_time: time(32)?,
        hard_time: time(40)?,
    })
}

fn parse_use(info: &[u8]) -> Option<XfrmSaUse> {
    Some(XfrmSaUse {
        bytes: read_u64(info, 160)?,
        packets: read_u64(info, 168)?,
        added: read_u64(info, 176)?,
        first_used: read_u64(info, 184)?,
        last_used: 0,
        outside_window: read_u32(info, 192)?,
        replayed: read_u32(info, 196)?,
        integrity_failed: read_u32(info, 200)?,
    })
}

/// `xfrm_replay_state_esn` with an empty bitmap.
fn replay_bytes(replay: &XfrmReplay) -> Vec<u8> {
    let words = replay.window.div_ceil(32).min(MOST_WORDS);
    let (sent, received) = (replay.sent.halves(), replay.received.halves());
    let mut out = Vec::with_capacity(24 + 4 * words as usize);
    for value in [
        words,
        sent.0,
        received.0,
        sent.1,
        received.1,
        replay.window.min(32 * MOST_WORDS),
    ] {
        out.extend_from_slice(&value.to_ne_bytes());
    }
    out.resize(24 + 4 * words as usize, 0);
    out
}

fn parse_replay(value: &[u8], esn: bool) -> Option<XfrmReplay> {
    let word = |at| read_u32(value, at).map(u64::from);
    Some(XfrmReplay {
        window: read_u32(value, 20)?,
        esn,
        sent: word(12)? << 32 | word(4)?,
        received: word(16)? << 32 | word(8)?,
    })
}

trait Halves {
    /// The low and the high half.
    fn halves(self) -> (u32, u32);
}

impl Halves for u64 {
    fn halves(self) -> (u32, u32) {
        (self as u32, (self >> 32) as u32)
    }
}

/// `xfrm_encap_tmpl`.
fn encapsulation_bytes(ports: XfrmEncapsulation) -> [u8; 24] {
    let mut out = [0; 24];
    out[..2].copy_from_slice(&abi::UDP_ENCAP_ESPINUDP.to_ne_bytes());
    out[2..4].copy_from_slice(&ports.source_port.to_be_bytes());
    out[4..6].copy_from_slice(&ports.destination_port.to_be_bytes());
    out
}

fn parse_encapsulation(value: &[u8]) -> Option<XfrmEncapsulation> {
    (read_u16(value, 0)? == abi::UDP_ENCAP_ESPINUDP).then_some(())?;
    Some(XfrmEncapsulation {
        source_port: selector::port(value, 2)?,
        destination_port: selector::port(value, 4)?,
    })
}
