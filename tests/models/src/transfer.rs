//! Body and answer of one request, which end in either order.

use loom::{sync::Arc, thread};

use crate::ends::Ends;

/// Exactly one of the two settles, and it knows how the body has ended.
fn one_settles(body: u8) {
    loom::model(move || {
        let ends = Arc::new(Ends::default());
        let of_answer = Arc::clone(&ends);
        let answer = thread::spawn(move || {
            let before = of_answer.end(Ends::ANSWERED);
            before.has_body_ended().then(|| before.has(Ends::FAILED))
        });
        let by_body = ends.end(body).has(Ends::ANSWERED);
        let by_answer = answer.join().unwrap();
        assert!(by_body ^ by_answer.is_some());
        if let Some(has_failed) = by_answer {
            assert_eq!(has_failed, body == Ends::FAILED);
        }
        assert!(ends.now().has(Ends::ANSWERED) && ends.now().has(body));
    });
}

#[test]
fn a_body_that_was_read_or_its_answer_settles() {
    one_settles(Ends::READ);
}

#[test]
fn a_body_that_has_failed_or_its_answer_settles() {
    one_settles(Ends::FAILED);
}
