//! A limit is not yet a source of limits.

use tower_storage_guard::{StorageGuardLayer, Volume};

fn main() {
    let volume = Volume::open("/srv/uploads").unwrap();
    let _layer = StorageGuardLayer::new(volume).quota(42);
}
