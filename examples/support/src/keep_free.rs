//! What stays free on a disk.

use std::{fmt, path::Path, str::FromStr, time::Duration};

use bytesize::ByteSize;
use tokio::time::timeout;
use tower_storage_guard::{BoxError, Headroom, Volume};

/// A size such as `64MiB`, or a share of the disk such as `5%`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KeepFree {
    Size(ByteSize),
    Percent(u8),
}

impl KeepFree {
    /// Guards the disk that `dir` is on. Blocks.
    ///
    /// # Errors
    ///
    /// When the disk cannot be read, or is smaller than what is to stay free: each upload would be refused.
    pub fn guard(self, dir: &Path) -> Result<Volume, BoxError> {
        let headroom = match self {
            Self::Size(size) => Headroom::bytes(size.as_u64()),
            Self::Percent(percent) => Headroom::percent(percent),
        };
        let volume = Volume::open(dir)?.keep_free(headroom);
        let status = volume.status();
        if status.headroom > status.total {
            let (dir, total) = (dir.display(), ByteSize(status.total));
            return Err(format!("--keep-free is {self}, and the disk of {dir} has {total}").into());
        }
        Ok(volume)
    }
}

/// Reads the disk again, on which the start has made files of its own. A disk that hangs is not waited for.
pub async fn read_again(volume: &Volume) {
    let _ = timeout(Duration::from_secs(5), volume.refresh()).await;
}

impl FromStr for KeepFree {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_suffix('%') {
            Some(share) => match share.trim_end().parse() {
                Ok(percent) if percent <= 100 => Ok(Self::Percent(percent)),
                _ => Err("a share is from 0% to 100%, in whole percent".to_owned()),
            },
            None => text.parse().map(Self::Size),
        }
    }
}

impl fmt::Display for KeepFree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size(size) => size.fmt(f),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_sizes_and_shares() {
        for (text, expected) in [
            ("0", KeepFree::Size(ByteSize(0))),
            ("64MiB", KeepFree::Size(ByteSize::mib(64))),
            ("0%", KeepFree::Percent(0)),
            ("5 %", KeepFree::Percent(5)),
            ("100%", KeepFree::Percent(100)),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in ["", "%", "101%", "-1%", "0.5%", "300%", "much"] {
            assert!(text.parse::<KeepFree>().is_err(), "{text}");
        }
    }

    #[test]
    fn more_than_the_disk_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let guard = |text: &str| text.parse::<KeepFree>().unwrap().guard(dir.path());
        assert!(guard("100%").is_ok());
        let error = guard("1000PiB").unwrap_err().to_string();
        assert!(
            error.starts_with("--keep-free is 1000.0 PiB, and the disk of "),
            "{error}"
        );
    }
}
