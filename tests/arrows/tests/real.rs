//! The crate itself.

use test_arrows::{Crate, EXCEPTIONS, LAYERS, Order};

#[test]
fn imports_go_down_only() {
    let order = Order {
        layers: LAYERS,
        exceptions: EXCEPTIONS,
    };
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let report = Crate::read(folder).unwrap().check(&order);
    assert!(report.is_clean(), "\n{report}");
}
