//! Codecs for what is on the wire: IKEv2 messages, ESP, UDP encapsulation, IP headers.
#![forbid(unsafe_code)]
