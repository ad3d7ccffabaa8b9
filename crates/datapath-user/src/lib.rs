//! The userspace datapath: ESP between a TUN and sockets.
