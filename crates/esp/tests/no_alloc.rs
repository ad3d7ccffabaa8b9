//! Sealing and opening allocate nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use testudo_crypto::Cipher;
use testudo_esp::{
    InboundParameters, InboundSa, MAX_HEAD_ROOM, MAX_TAIL_ROOM, OutboundParameters, OutboundSa,
    SoftLimits,
};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // The counter is gone while the thread ends; nothing is measured then.
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `alloc` above with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_packet_costs_no_allocation() {
    for cipher in Cipher::all() {
        let keymat = vec![1; cipher.keymat_len()];
        let out = OutboundSa::new(&OutboundParameters {
            spi: 256,
            cipher,
            keymat: &keymat,
            esn: true,
            limits: SoftLimits::NONE,
        })
        .unwrap();
        let inbound = InboundSa::new(&InboundParameters {
            spi: 256,
            cipher,
            keymat: &keymat,
            esn: true,
            replay_window: 4096,
        })
        .unwrap();
        let mut buffer = vec![0; MAX_HEAD_ROOM + 1400 + MAX_TAIL_ROOM];
        let before = ALLOCATIONS.get();
        for _ in 0..100 {
            let sealed = out.seal(&mut buffer, 1400, 4).unwrap();
            inbound.open(&mut buffer[..sealed.len]).unwrap();
            assert!(inbound.open(&mut buffer[..sealed.len]).is_err());
        }
        assert_eq!(ALLOCATIONS.get(), before);
    }
}
