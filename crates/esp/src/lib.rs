//! ESP (RFC 4303) in place: seal, open, replay window, SPI table.
#![forbid(unsafe_code)]
