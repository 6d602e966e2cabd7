//! `std::io`.

use std::{error::Error, io, sync::Arc};

use super::{
    Cause, Fault, Resource, Verdict,
    library::{Library, held, of_type},
};

pub(super) const LIBRARY: Library = Library {
    look,
    inside,
    types: &[of_type::<io::Error>, of_type::<Arc<io::Error>>],
};

/// `source()` skips the error inside.
fn inside<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    if let Some(error) = error.downcast_ref::<io::Error>() {
        error.get_ref().map(|inner| inner as _)
    } else {
        held::<io::Error>(error)
    }
}

fn look(error: &(dyn Error + 'static)) -> Option<Verdict> {
    let error = error.downcast_ref::<io::Error>()?;
    // Check the kind first: libraries keep it when they wrap an error, and drop the code. std also maps the codes of
    // every platform, so the table below only lists codes that std has no kind for.
    kind(error.kind()).or_else(|| code(Os::HERE, error.raw_os_error()?))
}

/// Neither kind nor code says whether bytes or inodes ran out: `ENOSPC` is both. Bytes are the likelier of the two.
fn kind(kind: io::ErrorKind) -> Option<Verdict> {
    match kind {
        io::ErrorKind::StorageFull => Some(DISK_FULL),
        io::ErrorKind::QuotaExceeded => Some(QUOTA_EXCEEDED),
        io::ErrorKind::FileTooLarge => Some(Verdict::TooLarge),
        // `Other` above all: the error inside decides.
        _ => None,
    }
}

const DISK_FULL: Verdict = Verdict::Fault(Fault::new(Cause::DiskFull, Resource::Bytes));
const QUOTA_EXCEEDED: Verdict = Verdict::Fault(Fault::new(Cause::QuotaExceeded, Resource::Bytes));

/// The system that the error codes belong to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Os {
    Linux,
    /// Includes macOS.
    Bsd,
    Windows,
    /// No known error codes, only kinds.
    Other,
}

impl Os {
    const HERE: Self = if cfg!(windows) {
        Self::Windows
    } else if cfg!(any(target_os = "linux", target_os = "android")) {
        Self::Linux
    } else if cfg!(any(
        target_vendor = "apple",
        target_os = "dragonfly",
        target_os = "freebsd",
        target_os = "netbsd",
        target_os = "openbsd"
    )) {
        Self::Bsd
    } else {
        Self::Other
    };
}

/// The verdict for an error code.
///
/// Linux: `errno(3)`, `asm-generic/errno.h`. BSD: `intro(2)`. Windows: "System Error Codes" in
/// `winerror.h`.
fn code(os: Os, raw: i32) -> Option<Verdict> {
    match (os, raw) {
        // ENOSPC
        (Os::Linux | Os::Bsd, 28) => Some(DISK_FULL),
        // EDQUOT
        (Os::Linux, 122) | (Os::Bsd, 69) => Some(QUOTA_EXCEEDED),
        // EFBIG
        (Os::Linux | Os::Bsd, 27) => Some(Verdict::TooLarge),
        (Os::Windows, raw) => match win32(raw) {
            // ERROR_HANDLE_DISK_FULL, ERROR_DISK_FULL, ERROR_DISK_RESOURCES_EXHAUSTED
            39 | 112 | 314 => Some(DISK_FULL),
            // ERROR_DISK_QUOTA_EXCEEDED
            1295 => Some(QUOTA_EXCEEDED),
            // ERROR_FILE_TOO_LARGE
            223 => Some(Verdict::TooLarge),
            _ => None,
        },
        _ => None,
    }
}

/// The code within an `HRESULT` of `FACILITY_WIN32` (0x8007xxxx), the form that COM and WinRT report.
fn win32(raw: i32) -> u32 {
    let raw = raw.cast_unsigned();
    if raw >> 16 == 0x8007 {
        raw & 0xFFFF
    } else {
        raw
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_decide() {
        assert_eq!(
            look(&io::Error::from(io::ErrorKind::StorageFull)),
            Some(DISK_FULL)
        );
        assert_eq!(
            look(&io::Error::from(io::ErrorKind::QuotaExceeded)),
            Some(QUOTA_EXCEEDED)
        );
        assert_eq!(
            look(&io::Error::from(io::ErrorKind::FileTooLarge)),
            Some(Verdict::TooLarge)
        );
        for kind in [
            io::ErrorKind::Other,
            io::ErrorKind::OutOfMemory,
            io::ErrorKind::PermissionDenied,
            io::ErrorKind::ReadOnlyFilesystem,
            io::ErrorKind::UnexpectedEof,
            io::ErrorKind::WriteZero,
        ] {
            assert_eq!(look(&io::Error::from(kind)), None, "{kind:?}");
        }
    }

    #[test]
    fn a_kind_outlives_its_code() {
        let full = io::Error::new(io::ErrorKind::StorageFull, "disk says no");
        assert_eq!(look(&full), Some(DISK_FULL));
        assert_eq!(look(&io::Error::other("No space left on device")), None);
    }

    #[test]
    fn only_io_errors_are_looked_at() {
        assert_eq!(look(&Fault::new(Cause::DiskFull, Resource::Bytes)), None);
    }

    #[test]
    fn unix_codes() {
        for os in [Os::Linux, Os::Bsd] {
            assert_eq!(code(os, 28), Some(DISK_FULL));
            assert_eq!(code(os, 27), Some(Verdict::TooLarge));
            // ENOMEM, EROFS, EIO, and those of Windows
            for raw in [12, 30, 5, 0, -1, 39, 112, 314, 1295, i32::MIN, i32::MAX] {
                assert_eq!(code(os, raw), None, "{os:?} {raw}");
            }
        }
        // EDQUOT has another meaning on these systems.
        assert_eq!(code(Os::Linux, 122), Some(QUOTA_EXCEEDED));
        assert_eq!(code(Os::Bsd, 122), None);
        assert_eq!(code(Os::Bsd, 69), Some(QUOTA_EXCEEDED));
        assert_eq!(code(Os::Linux, 69), None);
    }

    #[test]
    fn windows_codes_bare_and_as_hresult() {
        for (raw, verdict) in [
            (39, Some(DISK_FULL)),
            (112, Some(DISK_FULL)),
            (314, Some(DISK_FULL)),
            (1295, Some(QUOTA_EXCEEDED)),
            (223, Some(Verdict::TooLarge)),
            // ERROR_OUT_OF_PAPER, ERROR_INSUFFICIENT_BUFFER, ERROR_NOT_ENOUGH_MEMORY
            (28, None),
            (122, None),
            (8, None),
        ] {
            assert_eq!(code(Os::Windows, raw), verdict, "{raw}");
            let hresult = (0x8007_0000 | raw.cast_unsigned()).cast_signed();
            assert_eq!(code(Os::Windows, hresult), verdict, "{hresult:#x}");
            // The same number means something else in another facility.
            let other = (0x8004_0000 | raw.cast_unsigned()).cast_signed();
            assert_eq!(code(Os::Windows, other), None, "{other:#x}");
        }
    }

    #[test]
    fn a_system_without_a_table_has_kinds_only() {
        assert_eq!(code(Os::Other, 28), None);
        assert_eq!(code(Os::Other, 69), None);
    }

    #[test]
    #[cfg(unix)]
    fn std_and_the_table_agree_about_this_system() {
        for raw in 0..256 {
            if let Some(verdict) = code(Os::HERE, raw) {
                assert_eq!(
                    kind(io::Error::from_raw_os_error(raw).kind()),
                    Some(verdict),
                    "{raw}"
                );
            }
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_really_full_device() {
        use io::Write as _;

        let mut device = std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .expect("Linux has /dev/full");
        assert_eq!(look(&device.write_all(b"x").unwrap_err()), Some(DISK_FULL));
    }
}
