//! The exact number of allocations for a request: a change here changes what BENCHMARKS.md says.

use http::Request;

use self::cases::Case;

#[path = "../../benches/guard/cases.rs"]
mod cases;
#[path = "../../benches/guard/floor.rs"]
mod floor;
#[path = "../../benches/guard/grpc.rs"]
mod grpc;
/// The service of the gRPC example.
#[allow(unreachable_pub)]
mod proto {
    include!("../../examples/tonic-upload/proto/upload.v1.rs");
}

/// The number of allocations for one request.
fn count<B: 'static>(case: &mut Case<B>, request: Request<B>) -> u64 {
    let mut requests = vec![request];
    allocation_counter::measure(|| case.serve(&mut requests)).count_total
}

/// Each case is compared with the first, which is bare and returned.
fn assert_allocations<B: 'static>(cases: impl IntoIterator<Item = Case<B>>) -> u64 {
    let mut bare = None;
    for mut case in cases {
        // One-time allocations of the process or thread happen now.
        let request = (case.request)();
        count(&mut case, request);

        let request = (case.request)();
        let counted = count(&mut case, request);
        let bare = *bare.get_or_insert(counted);
        assert_eq!(counted - bare, case.allocations, "{}", case.name);
    }
    bare.unwrap()
}

#[test]
fn a_request_that_is_not_guarded_allocates_nothing() {
    assert_eq!(assert_allocations(cases::downloads()), 0);
}

#[test]
fn an_upload_allocates_cell_body_and_handle() {
    assert_eq!(assert_allocations(cases::uploads()), 0);
}

#[test]
fn the_least_guard_allocates_cell_and_handle() {
    let [bare, ..] = cases::uploads();
    assert_allocations([bare].into_iter().chain(cases::floors()));
}

#[test]
fn a_frame_allocates_nothing() {
    assert_eq!(assert_allocations(cases::long_uploads()), 0);
}

#[test]
fn a_call_also_allocates_its_queue_places_and_its_end() {
    assert_allocations(grpc::unary_calls());
}

#[test]
fn a_message_allocates_nothing_unless_the_reservation_grows() {
    assert_allocations(grpc::client_streams());
    assert_allocations(grpc::server_streams());
}

#[test]
fn the_first_extension_of_a_request_allocates_the_map_too() {
    for (mut case, map) in cases::uploads().into_iter().zip([0, 0, 0, 2, 2]) {
        let mut request = (case.request)();
        *request.extensions_mut() = http::Extensions::new();
        assert_eq!(
            count(&mut case, request),
            case.allocations + map,
            "{}",
            case.name
        );
    }
}
