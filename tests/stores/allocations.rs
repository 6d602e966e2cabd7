//! The exact allocations of a lease.

#[path = "../../benches/stores/src/memory.rs"]
mod memory;

#[tokio::test]
async fn a_lease_allocates_no_more_than_a_memory_quota() {
    let folder = tempfile::tempdir().unwrap();
    let (memory, leased) = (memory::memory(), memory::leased(folder.path()).await);
    let scope = memory::scope();
    // The runtime has one thread, which does nothing else meanwhile.
    let mut is_in_memory = true;
    let of_memory = allocation_counter::measure(|| is_in_memory &= memory::once(&memory, &scope));
    let of_leased = allocation_counter::measure(|| is_in_memory &= memory::once(&leased, &scope));
    assert!(is_in_memory);
    assert_eq!(of_memory.count_total, memory::ALLOCATIONS_OF_MEMORY);
    assert_eq!(of_leased.count_total, memory::ALLOCATIONS_OF_LEASED);
}
