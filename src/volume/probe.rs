//! Reads how full a filesystem is.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

/// The error of a probe whose store is gone.
pub(super) const GONE: io::ErrorKind = io::ErrorKind::StaleNetworkFileHandle;

/// A reading of a probe.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Reading {
    /// Bytes that an unprivileged user can still write.
    pub available: u64,
    /// Total bytes.
    pub total: u64,
    /// Inodes that an unprivileged user can still create. Meaningless while `inodes_total` is 0.
    pub inodes_available: u64,
    /// Total inodes. 0 if the filesystem has no fixed number of them (btrfs), or does not report it.
    pub inodes_total: u64,
    /// When it was taken, by the clock of a test that has set it. None for now.
    pub(crate) at: Option<Instant>,
}

impl Reading {
    /// Makes a reading in bytes, of a store that has no inodes.
    pub const fn new(available: u64, total: u64) -> Self {
        Self {
            available,
            total,
            inodes_available: 0,
            inodes_total: 0,
            at: None,
        }
    }

    /// Adds the number of inodes that are available, and of inodes in total.
    #[must_use]
    pub const fn with_inodes(mut self, available: u64, total: u64) -> Self {
        self.inodes_available = available;
        self.inodes_total = total;
        self
    }
}

/// A source of readings. It is called on a thread of its own, and may block.
///
/// The example `sqlite` in the repository reads how much room an SQLite database has.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot say how full a store is",
    label = "not a `Probe`",
    note = "use `Volume::open` for a directory, or implement `Probe`"
)]
pub trait Probe: Send + 'static {
    /// Takes a reading now. It must include everything whose write had ended when this was called.
    ///
    /// # Errors
    ///
    /// If there is no reading. The last one is then used until it is too old. It is not used at all if the kind of the
    /// error is [`StaleNetworkFileHandle`](io::ErrorKind::StaleNetworkFileHandle), which says that the store is gone.
    fn read(&mut self) -> io::Result<Reading>;

    /// Updates the figures, if they do not follow writes by themselves. It is called before a reading if something was
    /// stored since the last one.
    ///
    /// # Errors
    ///
    /// Like [`Self::read`], which is then not called.
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<P: Probe + ?Sized> Probe for Box<P> {
    fn read(&mut self) -> io::Result<Reading> {
        P::read(self)
    }

    fn sync(&mut self) -> io::Result<()> {
        P::sync(self)
    }
}

/// Reads a filesystem through the operating system, by any of the paths on it that volumes were opened at: a folder
/// may be removed while the filesystem remains.
#[derive(Debug)]
pub(super) struct Statvfs {
    pub(super) device: Device,
    pub(super) paths: Arc<Mutex<Vec<PathBuf>>>,
    pub(super) counts_at_commit: bool,
}

impl Probe for Statvfs {
    fn read(&mut self) -> io::Result<Reading> {
        self.on_some_path(read_at)
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.counts_at_commit {
            self.on_some_path(commit)?;
        }
        Ok(())
    }
}

impl Statvfs {
    fn on_some_path<T>(&self, look: impl Fn(&Path) -> io::Result<T>) -> io::Result<T> {
        // Cloned, because the call may hang and a volume may be opened meanwhile.
        let paths = self
            .paths
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let mut result = Err(io::ErrorKind::NotFound.into());
        for path in paths {
            result = match Device::of(&path) {
                Ok(device) if device == self.device => look(&path),
                // After an unmount the path still exists, on the disk below.
                Ok(_) => Err(GONE.into()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Err(self.missing(&path)),
                Err(error) => Err(error),
            };
            if result.is_ok() {
                break;
            }
        }
        result
    }

    /// A path that is not there was removed from the filesystem, or was on it when it was still mounted.
    fn missing(&self, path: &Path) -> io::Error {
        let above = path.ancestors().find_map(|above| Device::of(above).ok());
        match above {
            Some(device) if device != self.device => GONE.into(),
            _ => io::ErrorKind::NotFound.into(),
        }
    }
}

fn read_at(path: &Path) -> io::Result<Reading> {
    let stats = fs4::statvfs(path)?;
    let reading = Reading::new(stats.available_space(), stats.total_space());
    // fs4 does not read inodes.
    #[cfg(all(unix, feature = "inodes"))]
    let reading = {
        let inodes = rustix::fs::statvfs(path)?;
        reading.with_inodes(inodes.f_favail, inodes.f_files)
    };
    Ok(reading)
}

/// How a filesystem writes, if that is known.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Writes {
    /// statvfs only follows writes when the filesystem commits: on btrfs up to half a minute later, even after an
    /// fsync.
    pub(super) counted_at_commit: bool,
    /// Overwritten content keeps its blocks.
    pub(super) in_place: bool,
}

impl Writes {
    pub(super) fn of(path: &Path) -> Self {
        #[cfg(all(target_os = "linux", feature = "inodes"))]
        {
            // From linux/magic.h. xfs is not among those that write in place, as a reflink shares blocks.
            const BTRFS_SUPER_MAGIC: u32 = 0x9123_683E;
            const EXT4_SUPER_MAGIC: u32 = 0xEF53;
            const TMPFS_MAGIC: u32 = 0x0102_1994;

            let kind = rustix::fs::statfs(path).map(|stats| stats.f_type as u32);
            Self {
                counted_at_commit: kind == Ok(BTRFS_SUPER_MAGIC),
                in_place: matches!(kind, Ok(EXT4_SUPER_MAGIC | TMPFS_MAGIC)),
            }
        }
        #[cfg(not(all(target_os = "linux", feature = "inodes")))]
        {
            let _ = path;
            Self::default()
        }
    }
}

/// Has the filesystem commit what was written.
fn commit(path: &Path) -> io::Result<()> {
    #[cfg(all(target_os = "linux", feature = "inodes"))]
    rustix::fs::syncfs(std::fs::File::open(path)?)?;
    #[cfg(not(all(target_os = "linux", feature = "inodes")))]
    let _ = path;
    Ok(())
}

/// The identity of a filesystem.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) enum Device {
    #[cfg(unix)]
    Number(u64),
    /// The drive or share that a path is on.
    #[cfg(not(unix))]
    Root(PathBuf),
}

impl Device {
    #[cfg(unix)]
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt;

        Ok(Self::Number(std::fs::metadata(path)?.dev()))
    }

    #[cfg(not(unix))]
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        // The path is canonical, so that its last ancestor is the drive or the share.
        let root = path.ancestors().last().unwrap_or(path);
        Ok(Self::Root(root.to_path_buf()))
    }
}
