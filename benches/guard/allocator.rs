//! The allocator of the counted process, which counts, and takes as many instructions at each time.
//!
//! glibc takes and gives back up to a thousand bytes by a list for each size. Beyond that it looks for a place that fits, which
//! takes up to 700 instructions more or less in a call, depending on all that happened before in the process, even in
//! the order of hash maps. So larger sizes have lists of their own here.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::UnsafeCell,
    ptr::null_mut,
    sync::atomic::{
        AtomicBool, AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
};

/// What glibc has lists for, in bytes.
const SMALL: usize = 1 << 10;
/// What malloc aligns to.
const ALIGN: usize = 16;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting {
    is_locked: AtomicBool::new(false),
    free: UnsafeCell::new([null_mut(); usize::BITS as usize]),
};

/// The allocations of this process so far.
pub(crate) fn allocations() -> u64 {
    ALLOCATIONS.load(Relaxed)
}

struct Counting {
    is_locked: AtomicBool,
    /// For each power of two, the first free block, which begins with a pointer to the next one.
    free: UnsafeCell<[*mut u8; usize::BITS as usize]>,
}

// SAFETY: the lists are only touched under the lock, and the blocks in them belong to no thread.
unsafe impl Sync for Counting {}

impl Counting {
    /// The list for such blocks.
    fn list<R>(&self, size: usize, run: impl FnOnce(&mut *mut u8) -> R) -> R {
        while self.is_locked.swap(true, Acquire) {
            std::hint::spin_loop();
        }
        // SAFETY: the lock is held.
        let ran = run(unsafe { &mut (*self.free.get())[size.trailing_zeros() as usize] });
        self.is_locked.store(false, Release);
        ran
    }
}

/// The size of the block, if it is one of ours.
fn block(layout: Layout) -> Option<usize> {
    (layout.size() > SMALL && layout.align() <= ALIGN).then(|| layout.size().next_power_of_two())
}

// SAFETY: a block is the system's, is large enough, and is in a list only while it is free.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        let Some(size) = block(layout) else {
            return unsafe { System.alloc(layout) };
        };
        let taken = self.list(size, |first| {
            let taken = *first;
            if !taken.is_null() {
                *first = unsafe { taken.cast::<*mut u8>().read() };
            }
            taken
        });
        if !taken.is_null() {
            return taken;
        }
        let layout = unsafe { Layout::from_size_align_unchecked(size, ALIGN) };
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        let Some(size) = block(layout) else {
            return unsafe { System.dealloc(pointer, layout) };
        };
        self.list(size, |first| {
            unsafe { pointer.cast::<*mut u8>().write(*first) };
            *first = pointer;
        });
    }
}
