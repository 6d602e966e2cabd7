//! What a request allocates, exactly: a change here is a change of what the README promises.

use http::Request;

#[path = "../../benches/guard/cases.rs"]
mod cases;

use self::cases::Case;

/// How many allocations serving one request makes.
fn count<B: 'static>(case: &mut Case<B>, request: Request<B>) -> u64 {
    let mut requests = vec![request];
    allocation_counter::measure(|| case.serve(&mut requests)).count_total
}

fn assert_allocations<B: 'static>(cases: impl IntoIterator<Item = Case<B>>) {
    for mut case in cases {
        // Whatever is made once per process or thread is made now.
        let request = (case.request)();
        count(&mut case, request);

        let request = (case.request)();
        assert_eq!(count(&mut case, request), case.allocations, "{}", case.name);
    }
}

#[test]
fn a_request_that_is_not_guarded_allocates_nothing() {
    assert_allocations(cases::downloads());
}

#[test]
fn an_upload_allocates_cell_body_and_handle() {
    assert_allocations(cases::uploads());
}

#[test]
fn a_frame_allocates_nothing() {
    assert_allocations(cases::long_uploads());
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
