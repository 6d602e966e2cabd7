//! Startup and shutdown of an example.

use std::{
    io::{self, Write},
    net::SocketAddr,
    process::ExitCode,
};

use tokio::{net::TcpListener, signal};
use tower_storage_guard::BoxError;

use crate::{
    flags::{self, Flags},
    store::Store,
};

/// Serves the store that the command line describes. `listen` is the default address.
pub async fn run(
    listen: &'static str,
    serve: impl AsyncFnOnce(TcpListener, Store) -> Result<(), BoxError>,
) -> ExitCode {
    report(start(flags::read(listen), serve).await)
}

/// Reports the error that ended it, if any.
pub fn report(result: Result<(), BoxError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("error: {error}");
            let mut source = error.source();
            while let Some(error) = source {
                eprint!(": {error}");
                source = error.source();
            }
            eprintln!();
            ExitCode::FAILURE
        }
    }
}

async fn start(
    flags: Flags,
    serve: impl AsyncFnOnce(TcpListener, Store) -> Result<(), BoxError>,
) -> Result<(), BoxError> {
    let at = flags.listen;
    let store = Store::open(flags).await?;
    let served = serve(listen(at).await?, store.clone()).await;
    store.close().await.and(served)
}

/// Listens, and prints the address.
pub async fn listen(at: SocketAddr) -> Result<TcpListener, BoxError> {
    let listener = TcpListener::bind(at)
        .await
        .map_err(|error| format!("cannot listen on {at}: {error}"))?;
    let mut out = io::stdout();
    writeln!(out, "listening on http://{}", listener.local_addr()?)?;
    out.flush()?;
    Ok(listener)
}

/// Ctrl-C, or the signal of a service manager.
pub async fn asked_to_stop() {
    let interrupted = async { signal::ctrl_c().await.expect("Ctrl-C can be handled") };
    #[cfg(unix)]
    let terminated = async {
        let mut signals = signal::unix::signal(signal::unix::SignalKind::terminate())
            .expect("SIGTERM can be handled");
        signals.recv().await;
    };
    #[cfg(not(unix))]
    let terminated = std::future::pending::<()>();
    tokio::select! {
        () = interrupted => {}
        () = terminated => {}
    }
}
