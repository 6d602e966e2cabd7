//! The errors of tokio-postgres, by code.

use tokio::net::TcpStream;
use tokio_postgres::{Config, NoTls};

use tower_storage_guard::fault::{Cause, classify};

use crate::fake_servers;

async fn error(code: &str) -> tokio_postgres::Error {
    let port = fake_servers::postgres(code, "No space left on device").await;
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut config = Config::new();
    config
        .user("a")
        .ssl_mode(tokio_postgres::config::SslMode::Disable);
    let connected = config.connect_raw(stream, NoTls).await;
    connected.err().unwrap()
}

#[tokio::test]
async fn codes() {
    for (code, expected) in [
        ("53100", Some(Cause::DatabaseFull)),
        ("53000", None),
        ("53200", None),
        ("53400", None),
        ("54000", None),
        ("57014", None),
        ("23505", None),
    ] {
        let error = error(code).await;
        assert_eq!(
            classify(&error).map(|fault| fault.cause),
            expected,
            "{code}"
        );
        let wrapped = anyhow::Error::from(error).context("while storing");
        assert_eq!(
            classify(&*wrapped).map(|fault| fault.cause),
            expected,
            "{code}"
        );
    }
}
