//! Servers that answer a client's first message with one error. Libraries whose errors have no constructor create
//! them from that.

use std::future;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// The port of a PostgreSQL server that refuses with this error ("Message Formats": `ErrorResponse`).
pub(crate) async fn postgres(code: &str, message: &str) -> u16 {
    let fields = format!("SERROR\0VERROR\0C{code}\0M{message}\0\0");
    let mut answer = vec![b'E'];
    answer.extend(u32::try_from(fields.len() + 4).unwrap().to_be_bytes());
    answer.extend(fields.as_bytes());
    serve(answer, true).await
}

/// The port of a MySQL server that refuses with this error ("Client/Server Protocol": `ERR_Packet`).
pub(crate) async fn mysql(number: u16, message: &str) -> u16 {
    let mut content = vec![0xFF];
    content.extend(number.to_le_bytes());
    content.extend(b"#HY000");
    content.extend(message.as_bytes());
    let mut answer = u32::try_from(content.len()).unwrap().to_le_bytes().to_vec();
    // The fourth byte counts packets.
    answer[3] = 0;
    answer.extend(content);
    serve(answer, false).await
}

async fn serve(answer: Vec<u8>, client_begins: bool) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        if client_begins {
            client.read_u8().await.unwrap();
        }
        client.write_all(&answer).await.unwrap();
        // Closing with unread data would discard the answer.
        future::pending::<()>().await;
    });
    port
}
