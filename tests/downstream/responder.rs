//! Minimal servers, for products that cannot run here.

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

/// Runs `talk` for every connection to a new port of this machine, as long as the test runs.
pub(crate) async fn listen<Fut>(talk: impl Fn(BufReader<TcpStream>) -> Fut + Send + 'static) -> u16
where
    Fut: Future<Output = std::io::Result<()>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A client that disconnects in the middle is ignored.
            tokio::spawn(talk(BufReader::new(stream)));
        }
    });
    port
}

/// A mail server that accepts everything, except for lines that begin with `refused` ("RCPT", or "." for the
/// message), which it answers with `reply`.
pub(crate) async fn mail_server(refused: &'static str, reply: &'static str) -> u16 {
    listen(move |mut stream| async move {
        stream.write_all(b"220 mail.example ESMTP\r\n").await?;
        let (mut line, mut in_message) = (String::new(), false);
        while stream.read_line(&mut line).await? > 0 {
            let ends = line == ".\r\n";
            if !in_message || ends {
                in_message = line.starts_with("DATA");
                let answer = match &line[..] {
                    line if line.starts_with(refused) => reply,
                    line if line.starts_with("DATA") => "354 Go on",
                    _ => "250 OK",
                };
                stream.write_all(format!("{answer}\r\n").as_bytes()).await?;
            }
            line.clear();
        }
        Ok(())
    })
    .await
}

/// An SQL Server that accepts every login, and answers every batch with an error of this number (MS-TDS, section
/// 2.2.7.10).
pub(crate) async fn sql_server(number: u32) -> u16 {
    listen(move |mut stream| async move {
        const PRELOGIN: u8 = 0x12;
        const BATCH: u8 = 0x01;
        loop {
            let answer = match tds_message(&mut stream).await? {
                // The only option: no encryption.
                PRELOGIN => vec![1, 0, 6, 0, 1, 0xFF, 2],
                BATCH => [tds_error(number), tds_done(2)].concat(),
                _ => tds_done(0),
            };
            let length = u16::try_from(8 + answer.len()).unwrap().to_be_bytes();
            let header = [4, 1, length[0], length[1], 0, 0, 1, 0];
            stream.write_all(&[&header[..], &answer].concat()).await?;
        }
    })
    .await
}

/// Reads a message, and returns its kind.
async fn tds_message(stream: &mut BufReader<TcpStream>) -> std::io::Result<u8> {
    loop {
        let mut header = [0; 8];
        stream.read_exact(&mut header).await?;
        let length = u16::from_be_bytes([header[2], header[3]]);
        let mut content = vec![0; usize::from(length) - header.len()];
        stream.read_exact(&mut content).await?;
        let is_last = header[1] & 1 == 1;
        if is_last {
            return Ok(header[0]);
        }
    }
}

fn tds_error(number: u32) -> Vec<u8> {
    let text: Vec<u8> = "refused"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    let (state, class) = (2, 17);
    let mut content = number.to_le_bytes().to_vec();
    content.extend([state, class, 7, 0]);
    content.extend(text);
    // An empty server name, an empty procedure name, and the line.
    content.extend([0, 0, 1, 0, 0, 0]);
    let length = u16::try_from(content.len()).unwrap().to_le_bytes();
    [&[0xAA][..], &length, &content].concat()
}

fn tds_done(status: u8) -> Vec<u8> {
    let mut token = vec![0xFD, status];
    token.resize(13, 0);
    token
}
