//! Startup and shutdown of an example.

use std::{
    io::{self, Write},
    pin::{Pin, pin},
    process::{self, ExitCode},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{net::TcpListener, signal, sync::oneshot, time::timeout};
use tower_storage_guard::{BoxError, observer::Observer};

use crate::{
    created::Created,
    flags::{self, Flags, Program},
    log::chain,
    store::Store,
};

/// Serves the store that the command line describes.
pub async fn run(
    program: Program,
    serve: impl AsyncFnOnce(TcpListener, Store) -> Result<(), BoxError>,
) -> ExitCode {
    report(start(flags::read(program), None, serve).await)
}

/// Reports the error that ended it, if any.
pub fn report(result: Result<(), BoxError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

/// Opens the store that these flags describe, and serves it. The observer is told of a store of quotas.
///
/// # Errors
///
/// When it cannot start, or serving fails.
pub async fn start(
    flags: Flags,
    observer: Option<Arc<dyn Observer>>,
    serve: impl AsyncFnOnce(TcpListener, Store) -> Result<(), BoxError>,
) -> Result<(), BoxError> {
    // Before anything is created.
    let listener = flags.listen.bind().await?;
    let mut created = Created::default();
    let store = Store::open_observed(flags, &mut created, observer).await?;
    started(&listener, created)?;
    let served = serve(listener, store.clone()).await;
    store.close().await.and(served)
}

/// Prints the address, and keeps what the start has created: nothing can go wrong with it any more.
pub fn started(listener: &TcpListener, created: Created) -> Result<(), BoxError> {
    #[cfg(unix)]
    survive_limit_of_files()?;
    let mut out = io::stdout();
    writeln!(out, "listening on http://{}", listener.local_addr()?)?;
    out.flush()?;
    created.keep();
    Ok(())
}

/// A write beyond the process's limit on the size of a file (`ulimit -f`) raises SIGXFSZ, which ends a process that does not handle
/// it. With a handler the write fails, with EFBIG.
#[cfg(unix)]
fn survive_limit_of_files() -> io::Result<()> {
    let too_large = rustix::process::Signal::XFSZ.as_raw();
    // The handler stays when this is dropped.
    signal::unix::signal(signal::unix::SignalKind::from_raw(too_large)).map(drop)
}

/// Serves until the process is asked to stop, and then for as long as the requests under way take: ten seconds at most.
/// `serve` gets a future that resolves when it is to take no more. Asked once more, the process ends at once.
pub async fn until_stopped<S, E>(serve: impl FnOnce(Stop) -> S) -> Result<(), BoxError>
where
    S: Future<Output = Result<(), E>>,
    E: Into<BoxError>,
{
    let (stop, stopping) = oneshot::channel();
    let mut serving = pin!(serve(Stop(stopping)));
    tokio::select! {
        served = &mut serving => return served.map_err(Into::into),
        () = asked_to_stop() => {}
    }
    tokio::spawn(async {
        asked_to_stop().await;
        eprintln!("error: stopped before all was done");
        process::exit(1);
    });
    drop(stop);
    match timeout(DRAIN, serving).await {
        Ok(served) => served.map_err(Into::into),
        Err(_) => {
            eprintln!("requests are cut off that take longer than {DRAIN:?}");
            Ok(())
        }
    }
}

/// How long requests may take after the process was asked to stop.
const DRAIN: Duration = Duration::from_secs(10);

/// Resolves when a server is to take no more requests.
pub struct Stop(oneshot::Receiver<()>);

impl Future for Stop {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(cx).map(drop)
    }
}

/// Ctrl-C, or the signal of a service manager.
async fn asked_to_stop() {
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
