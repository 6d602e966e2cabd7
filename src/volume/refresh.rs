//! A reading that is asked for, and awaited.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use super::{Volume, VolumeStatus};
use crate::wait_queue::Listener;

/// Resolves to the state of the volume once the reading that [`Volume::refresh`] has asked for has ended.
///
/// The reading is taken whether this is awaited or not. Cancel-safe, and needs no runtime.
#[derive(Debug)]
pub struct Refresh {
    volume: Volume,
    /// The number of probes begun before. A later reading includes everything that was stored when this began.
    begun: u64,
    /// Of the followers, because each request has to check a queue of requests that has listeners. Made at the first poll: most
    /// refreshes are not awaited.
    listener: Option<Listener>,
}

impl Volume {
    /// Asks for a new reading, for instance after files were deleted.
    ///
    /// The volume reads by itself [once a second](super::VolumeBuilder::probe_every), and when a request is about to be refused. Ask
    /// for a reading where [`Self::status`] or [`Self::takes_writes`] should follow sooner. The reading is taken on the volume's
    /// thread, within five milliseconds, whether the returned future is awaited or not.
    ///
    /// Awaited, it resolves to the [status](Self::status) after a reading that began after this call, so that it includes every
    /// write that had ended by then. If that reading fails, the status is still that of the reading before. A filesystem that hangs
    /// lets it wait for as long as it hangs: where that matters, bound it with `tokio::time::timeout`.
    ///
    /// ```
    /// use tower_storage_guard::Volume;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = std::env::temp_dir().join("tower-storage-guard-refresh");
    /// # std::fs::write(&file, "content")?;
    /// let volume = Volume::open(std::env::temp_dir())?;
    /// std::fs::remove_file(file)?;
    /// let status = volume.refresh().await;
    /// assert!(status.available <= status.total);
    /// # Ok(())
    /// # }
    /// ```
    pub fn refresh(&self) -> Refresh {
        let begun = self.filesystem().begun();
        self.filesystem().want_reading();
        Refresh {
            volume: self.clone(),
            begun,
            listener: None,
        }
    }
}

impl Future for Refresh {
    type Output = VolumeStatus;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<VolumeStatus> {
        let this = &mut *self;
        let filesystem = this.volume.filesystem();
        // Register before the check, so that no reading between the two is missed.
        let listener = this
            .listener
            .get_or_insert_with(|| filesystem.followers.listener());
        listener.listen(cx);
        if filesystem.ended() > this.begun {
            return Poll::Ready(this.volume.status());
        }
        Poll::Pending
    }
}
