//! The sizes of files and folders.

use std::{
    collections::BTreeSet,
    fmt, fs, io,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{amount::Amount, demand::InPlace};

/// The depth of a measurement (RFC 4918, section 10.2).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Depth {
    /// The resource itself: for a collection, without its members.
    Zero,
    /// With all its members.
    Infinity,
}

/// The rules for one measurement of a tree: the paths that it leaves out, and when it stops.
///
/// ```
/// use std::{collections::BTreeSet, path::Path};
/// use tower_storage_guard::dav::Walk;
///
/// # fn main() -> std::io::Result<()> {
/// let except = BTreeSet::from(["photos/new".into()]);
/// let walk = Walk::whole().except(&except);
/// assert!(walk.counts(Path::new("photos/old"))?);
/// assert!(!walk.counts(Path::new("photos/new"))?);
///
/// let is_stopped = || true;
/// assert!(walk.until(&is_stopped).counts(Path::new("photos/old")).is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Default)]
pub struct Walk<'a> {
    except: Option<&'a BTreeSet<PathBuf>>,
    is_stopped: Option<&'a dyn Fn() -> bool>,
}

impl<'a> Walk<'a> {
    /// Leaves out nothing, and does not stop.
    pub fn whole() -> Self {
        Self::default()
    }

    /// Leaves out these paths, and everything under them.
    #[must_use]
    pub fn except(mut self, paths: &'a BTreeSet<PathBuf>) -> Self {
        self.except = Some(paths);
        self
    }

    /// Stops as soon as `is_stopped` returns true.
    #[must_use]
    pub fn until(mut self, is_stopped: &'a dyn Fn() -> bool) -> Self {
        self.is_stopped = Some(is_stopped);
        self
    }

    /// Returns whether the resource at a path is measured. If not, nothing under it is measured either. Call it for
    /// each resource before its size is read. It costs about as much as an atomic load, and a lookup if something is
    /// left out.
    ///
    /// # Errors
    ///
    /// [`Interrupted`](io::ErrorKind::Interrupted), if the measurement has to stop: all requests that have waited for it
    /// have ended.
    pub fn counts(&self, path: &Path) -> io::Result<bool> {
        match self.is_stopped {
            Some(is_stopped) if is_stopped() => Err(io::ErrorKind::Interrupted.into()),
            _ => Ok(!self.except.is_some_and(|except| except.contains(path))),
        }
    }
}

impl fmt::Debug for Walk<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Walk")
            .field("except", &self.except)
            .finish_non_exhaustive()
    }
}

/// The storage of a WebDAV service: which resources exist, and their sizes.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say how large files are",
    label = "not a `Tree`",
    note = "use `Folder` for files in a directory, or implement `Tree`"
)]
pub trait Tree: Send + Sync + 'static {
    /// Measures the resource at a path: bytes of files, and objects, which are files and collections. None if nothing
    /// exists there.
    ///
    /// Leave out the resources that the walk [does not count](Walk::counts), because other requests write there. `path`
    /// itself is never one of them.
    ///
    /// It may block: it is not called on the thread of a request. The next measurement begins when this one has ended,
    /// or has asked the walk for the first time.
    ///
    /// # Errors
    ///
    /// If the size cannot be determined. The request is then answered 503, or 400 if the error is
    /// [`InvalidInput`](io::ErrorKind::InvalidInput): the tree must not measure the resource at the path.
    fn measure(&self, path: &Path, depth: Depth, walk: &Walk<'_>) -> io::Result<Option<Amount>>;

    /// Returns which part of the file at a path is overwritten in place by a write to this range of bytes. None if there is no
    /// file, or it is not known where it lies.
    ///
    /// Only asked for [`WebDav::overwrites_in_place`](crate::dav::WebDav::overwrites_in_place). May block, as
    /// [`measure`](Self::measure).
    ///
    /// # Errors
    ///
    /// As for [`measure`](Self::measure).
    fn in_place(&self, path: &Path, range: Range<u64>) -> io::Result<Option<InPlace>> {
        let _ = (path, range);
        Ok(None)
    }
}

impl<T: Tree + ?Sized> Tree for Arc<T> {
    fn measure(&self, path: &Path, depth: Depth, walk: &Walk<'_>) -> io::Result<Option<Amount>> {
        T::measure(self, path, depth, walk)
    }

    fn in_place(&self, path: &Path, range: Range<u64>) -> io::Result<Option<InPlace>> {
        T::in_place(self, path, range)
    }
}

impl<T: Tree + ?Sized> Tree for Box<T> {
    fn measure(&self, path: &Path, depth: Depth, walk: &Walk<'_>) -> io::Result<Option<Amount>> {
        T::measure(self, path, depth, walk)
    }

    fn in_place(&self, path: &Path, range: Range<u64>) -> io::Result<Option<InPlace>> {
        T::in_place(self, path, range)
    }
}

/// A tree of files. A symbolic link in a folder is an object of its own, without content.
///
/// A service may follow links, which may lead to content outside of the tree. So a path that is a link, or leads
/// through one, is an [`InvalidInput`](io::ErrorKind::InvalidInput). If a service follows the links in a folder that is
/// copied, their content is not in the price. Keep links out of trees that are served by such a service.
#[derive(Clone, Debug)]
pub struct Folder {
    root: PathBuf,
}

impl Folder {
    /// Makes the tree under `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// What is at a path, without following any link below the root.
    fn find(&self, path: &Path) -> io::Result<Option<fs::Metadata>> {
        let mut at = self.root.clone();
        if path.as_os_str().is_empty() {
            return unless_gone(fs::metadata(&at));
        }
        let mut found = None;
        for name in path {
            at.push(name);
            found = unless_gone(fs::symlink_metadata(&at))?;
            match &found {
                None => break,
                Some(metadata) if metadata.is_symlink() => {
                    let error = format!("{} is a symbolic link", at.display());
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
                }
                Some(_) => {}
            }
        }
        Ok(found)
    }
}

impl Tree for Folder {
    fn measure(&self, path: &Path, depth: Depth, walk: &Walk<'_>) -> io::Result<Option<Amount>> {
        let Some(metadata) = self.find(path)? else {
            return Ok(None);
        };
        let mut amount = Amount::new(size(&metadata), 1);
        let mut folders = Vec::new();
        if metadata.is_dir() && depth == Depth::Infinity {
            folders.push(path.to_owned());
        }
        while let Some(folder) = folders.pop() {
            let Some(entries) = unless_gone(fs::read_dir(self.root.join(&folder)))? else {
                continue;
            };
            for entry in entries {
                let entry = entry?;
                let path = folder.join(entry.file_name());
                if !walk.counts(&path)? {
                    continue;
                }
                // Removed meanwhile by another writer.
                let Some(metadata) = unless_gone(entry.metadata())? else {
                    continue;
                };
                amount = amount + Amount::new(size(&metadata), 1);
                if metadata.is_dir() {
                    folders.push(path);
                }
            }
        }
        Ok(Some(amount))
    }

    fn in_place(&self, path: &Path, range: Range<u64>) -> io::Result<Option<InPlace>> {
        let file = self.find(path)?.filter(fs::Metadata::is_file);
        Ok(file.map(|file| match range {
            Range { start: 0, end } if end >= file.len() => InPlace::whole(&file),
            range => InPlace::range(&file, range),
        }))
    }
}

/// In bytes, without folders: their own size is not content.
fn size(metadata: &fs::Metadata) -> u64 {
    if metadata.is_file() {
        metadata.len()
    } else {
        0
    }
}

fn unless_gone<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        // A file instead of the expected folder: nothing is under it.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
