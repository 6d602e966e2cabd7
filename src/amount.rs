//! Bytes and objects.

use std::ops::{Add, Sub};

/// Bytes and objects (files): demanded, held, stored or given back.
///
/// Arithmetic on it saturates.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Amount {
    /// Bytes of content.
    pub bytes: u64,
    /// Objects: files, collections, rows; the unit that the scope counts.
    pub objects: u64,
}

impl Amount {
    /// Zero bytes and zero objects.
    pub const ZERO: Self = Self {
        bytes: 0,
        objects: 0,
    };

    /// Makes an amount of both.
    pub const fn new(bytes: u64, objects: u64) -> Self {
        Self { bytes, objects }
    }

    /// Makes an amount of bytes only.
    pub const fn bytes(bytes: u64) -> Self {
        Self::new(bytes, 0)
    }

    /// Makes an amount of objects only.
    pub const fn objects(objects: u64) -> Self {
        Self::new(0, objects)
    }

    /// Returns the larger number of bytes, and the larger number of objects.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self::new(self.bytes.max(other.bytes), self.objects.max(other.objects))
    }

    /// Returns whether both are zero.
    pub const fn is_zero(self) -> bool {
        self.bytes == 0 && self.objects == 0
    }
}

impl Add for Amount {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            objects: self.objects.saturating_add(other.objects),
        }
    }
}

impl Sub for Amount {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(other.bytes),
            objects: self.objects.saturating_sub(other.objects),
        }
    }
}
