use std::{
    error::Error,
    fmt, io,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{Probe, Volume, filesystem};

/// A builder that sets how a volume is probed, before it is opened. It is made by [`Volume::builder`].
///
/// ```
/// use std::time::Duration;
/// use tower_storage_guard::Volume;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let volume = Volume::builder()
///     .probe_every(Duration::from_millis(500))
///     .open(std::env::temp_dir())?;
/// # drop(volume);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct VolumeBuilder {
    every: Option<Duration>,
}

impl VolumeBuilder {
    /// Sets how often the filesystem is read: five milliseconds is the least. Volumes on one filesystem share one probe,
    /// and the shortest interval that any of them was opened with.
    ///
    /// A request about to be refused asks for a new reading, and does not wait for this.
    ///
    /// Defaults to one second.
    pub fn probe_every(mut self, every: Duration) -> Self {
        self.every = Some(every);
        self
    }

    /// Opens a volume like [`Volume::open`], with these settings.
    ///
    /// # Errors
    ///
    /// When the path cannot be read, or the first reading fails or takes too long.
    pub fn open(self, path: impl AsRef<Path>) -> Result<Volume, VolumeError> {
        let path = path.as_ref();
        match filesystem::open(path, self.every) {
            Ok(watched) => Ok(Volume::new(watched)),
            Err(source) => Err(VolumeError {
                path: Some(path.to_path_buf()),
                source,
            }),
        }
    }

    /// Makes a volume like [`Volume::from_probe`], with these settings.
    ///
    /// # Errors
    ///
    /// When the first reading fails, or takes longer than five seconds.
    pub fn from_probe(self, probe: impl Probe) -> Result<Volume, VolumeError> {
        match filesystem::custom(probe, self.every) {
            Ok(watched) => Ok(Volume::new(watched)),
            Err(source) => Err(VolumeError { path: None, source }),
        }
    }
}

/// A volume could not be opened.
#[derive(Debug)]
pub struct VolumeError {
    /// None for a probe of the user's own.
    path: Option<PathBuf>,
    source: io::Error,
}

impl VolumeError {
    /// Returns the error of the operating system or of the probe.
    pub fn io_error(&self) -> &io::Error {
        &self.source
    }
}

impl fmt::Display for VolumeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "cannot guard the filesystem of {}", path.display()),
            None => f.write_str("the first reading of the probe failed"),
        }
    }
}

impl Error for VolumeError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.source)
    }
}
