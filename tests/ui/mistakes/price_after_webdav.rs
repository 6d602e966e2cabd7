//! A price that `webdav` would replace, and one that would replace its prices.

use tower_storage_guard::{
    Demand, StorageGuardLayer, Volume,
    dav::{Folder, WebDav},
};

fn main() {
    let layer = StorageGuardLayer::new(Volume::open("/srv/files").unwrap());
    let dav = WebDav::new(Folder::new("/srv/files"));
    let _after = layer.clone().webdav(dav.clone()).price_by(|_, _| Demand::nothing());
    let _before = layer.price_by(|_, _| Demand::nothing()).webdav(dav);
}
