//! Refused mail, with the replies of a server.

use lettre::{
    AsyncSmtpTransport, AsyncTransport, Message, SmtpTransport, Tokio1Executor, Transport,
    transport::smtp::{Error, response::Response},
};
use tower_storage_guard::fault::Cause;

use crate::responder::mail_server;
use crate::support::{assert_not_refused, assert_refused};

fn message() -> Message {
    Message::builder()
        .from("a@example.org".parse().unwrap())
        .to("b@example.org".parse().unwrap())
        .body("content".to_owned())
        .unwrap()
}

async fn send(port: u16) -> Result<Response, Error> {
    AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous("127.0.0.1")
        .port(port)
        .build()
        .send(message())
        .await
}

async fn send_blocking(port: u16) -> Result<Response, Error> {
    let send = move || {
        SmtpTransport::builder_dangerous("127.0.0.1")
            .port(port)
            .build()
            .send(&message())
    };
    tokio::task::spawn_blocking(send).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_mail_system_or_mailbox_is_a_fault() {
    for (refused, reply, cause) in [
        (
            "MAIL",
            "452 4.3.1 Insufficient system storage",
            Cause::DiskFull,
        ),
        (
            ".",
            "452 Requested action not taken: insufficient system storage",
            Cause::DiskFull,
        ),
        ("RCPT", "552 5.2.2 Mailbox full", Cause::QuotaExceeded),
        (
            "RCPT",
            "452-4.2.2 The inbox of the recipient is\r\n452 4.2.2 out of storage space",
            Cause::QuotaExceeded,
        ),
    ] {
        let port = mail_server(refused, reply).await;
        assert_refused(cause, move || send(port)).await;
        assert_refused(cause, move || send_blocking(port)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_replies_are_no_fault() {
    for (refused, reply) in [
        ("RCPT", "452 4.5.3 Too many recipients"),
        ("RCPT", "452 Too many recipients"),
        ("RCPT", "550 5.1.1 User unknown"),
        ("MAIL", "552 5.3.4 Message too big for system"),
        ("MAIL", "421 4.3.2 Shutting down"),
        (".", "452 4.3.1 Insufficient system resources"),
    ] {
        let port = mail_server(refused, reply).await;
        assert_not_refused(move || send(port)).await;
    }
}
