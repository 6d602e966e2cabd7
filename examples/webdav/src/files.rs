//! A folder of files for dav-server, in which a file exists completely or not at all.
//!
//! dav-server's own `LocalFs` truncates a file before it writes the new content. An upload that is cut in the middle
//! would leave a torn write, and lose the old content. So an upload is written to a temporary file first.

use std::{
    fmt, fs,
    io::{self, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use bytes::{Buf, Bytes};
use dav_server::{
    davpath::DavPath,
    fs::{
        DavDirEntry, DavFile, DavFileSystem, DavMetaData, FsError, FsFuture, FsResult, FsStream,
        OpenOptions, ReadDirMeta,
    },
    localfs::LocalFs,
};
use example_support::created::Created;
use futures_util::{FutureExt, TryStreamExt, future};
use tempfile::{NamedTempFile, TempDir};
use tokio::{sync::Mutex, task::block_in_place};
use tower_storage_guard::{Amount, BoxError, Reservation, dav::DavQuota, fault::Source};

/// The folder of uploads in progress, at the top of the tree, because a rename must stay on one filesystem. It is
/// invisible to clients and inaccessible.
const UPLOADS: &str = ".uploads";
/// The name of a copy in its own folder there.
const CONTENT: &str = "content";

/// The folder, as one request sees it.
#[derive(Clone)]
pub(crate) struct Files {
    local: LocalFs,
    root: Arc<Path>,
    /// The lock for renaming files to their final paths.
    places: Arc<Mutex<()>>,
    reservation: Option<Reservation>,
    /// The figures for PROPFIND, and the path that they belong to.
    quota: Option<(DavPath, DavQuota)>,
    /// What a COPY will store.
    staged: Option<Arc<Staged>>,
    /// Errors that dav-server cannot represent. Its own are little more than statuses.
    failure: Arc<OnceLock<Source>>,
}

impl Files {
    /// Creates missing folders, and removes leftovers. Blocks.
    pub(crate) fn open(root: &Path, created: &mut Created) -> io::Result<Self> {
        created.emptied(&root.join(UPLOADS))?;
        Ok(Self {
            local: *LocalFs::new(root, true, false, false),
            root: root.into(),
            places: Arc::default(),
            reservation: None,
            quota: None,
            staged: None,
            failure: Arc::default(),
        })
    }

    /// For a request with this reservation.
    pub(crate) fn for_request(&self, reservation: Option<Reservation>) -> Self {
        Self {
            reservation,
            failure: Arc::default(),
            ..self.clone()
        }
    }

    /// For a request that asks for these figures of this path.
    pub(crate) fn with_quota(self, path: DavPath, quota: DavQuota) -> Self {
        Self {
            quota: Some((path, quota)),
            ..self
        }
    }

    /// For a COPY of what is at this path, with all that is below it.
    ///
    /// dav-server removes the destination, and then copies. So the copy is made beside the tree first: when the disk is full,
    /// nothing was touched yet, and what comes later are renames.
    pub(crate) fn staging(self, source: &DavPath) -> Result<Self, FsError> {
        let source = source.as_rel_ospath();
        let staged = block_in_place(|| {
            let folder = tempfile::tempdir_in(self.root.join(UPLOADS))?;
            self.copy_all(&self.root.join(source), &folder.path().join(CONTENT))?;
            Ok(Staged {
                folder,
                source: source.into(),
            })
        });
        Ok(Self {
            staged: Some(Arc::new(
                staged.map_err(|error: io::Error| self.fail(error))?,
            )),
            ..self
        })
    }

    /// Whether a COPY of what is at this path stores files. dav-server refuses the others, and makes folders itself.
    pub(crate) fn has_to_copy(&self, source: &DavPath, is_alone: bool) -> bool {
        let found = block_in_place(|| self.root.join(source.as_rel_ospath()).metadata());
        let is_hidden = self.at(source).is_err();
        !is_hidden && found.is_ok_and(|found| found.is_file() || !is_alone)
    }

    fn copy_all(&self, from: &Path, to: &Path) -> io::Result<()> {
        if !from.symlink_metadata()?.is_dir() {
            let bytes = fs::copy(from, to)?;
            if let Some(reservation) = &self.reservation {
                reservation.written(bytes);
            }
            return fs::File::open(to)?.sync_all();
        }
        fs::create_dir(to)?;
        for entry in from.read_dir()? {
            let entry = entry?;
            if entry.path() != self.root.join(UPLOADS) {
                self.copy_all(&entry.path(), &to.join(entry.file_name()))?;
            }
        }
        Ok(())
    }

    /// Whether the collection exists that a resource is in.
    pub(crate) fn has_parent_of(&self, path: &DavPath) -> bool {
        let parent = path.as_rel_ospath().parent().unwrap_or(Path::new(""));
        block_in_place(|| self.root.join(parent).is_dir())
    }

    /// The place of an error.
    pub(crate) fn failure(&self) -> &Arc<OnceLock<Source>> {
        &self.failure
    }

    /// None if the path leads to the uploads.
    fn at(&self, path: &DavPath) -> Result<&LocalFs, FsError> {
        if path.as_rel_ospath().starts_with(UPLOADS) {
            return Err(FsError::Forbidden);
        }
        Ok(&self.local)
    }

    /// Keeps an error for the guard to classify.
    fn fail(&self, error: impl Into<BoxError>) -> FsError {
        let error = error.into();
        // dav-server treats other errors as something that is not implemented.
        let status = match error.downcast_ref::<io::Error>() {
            Some(error) if error.raw_os_error().is_some() => error.into(),
            _ => FsError::GeneralFailure,
        };
        // The first error causes the others.
        let _ = self.failure.set(Source::new(error));
        status
    }

    /// A file that will replace the existing one.
    async fn upload(&self, path: &DavPath, options: OpenOptions) -> Result<Upload, FsError> {
        let size = options.size;
        let untouched = OpenOptions {
            truncate: false,
            create: false,
            create_new: false,
            ..options
        };
        // Errors that are already certain need not wait for the content.
        match self.at(path)?.open(path, untouched).await {
            Ok(_) if options.create_new => return Err(FsError::Exists),
            Ok(_) => {}
            Err(FsError::NotFound) if options.create => {
                let parent = path.as_rel_ospath().parent().unwrap_or(Path::new(""));
                block_in_place(|| self.root.join(parent).metadata())?;
            }
            Err(error) => return Err(error),
        }
        let mut builder = tempfile::Builder::new();
        // With the permissions that `LocalFs` uses. Otherwise only this server's user could read them.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
        let made = block_in_place(|| builder.tempfile_in(self.root.join(UPLOADS)));
        Ok(Upload {
            files: self.clone(),
            to: path.clone(),
            file: Some(made.map_err(|error| self.fail(error))?),
            expected: size,
            received: 0,
        })
    }
}

impl DavFileSystem for Files {
    fn open<'a>(
        &'a self,
        path: &'a DavPath,
        options: OpenOptions,
    ) -> FsFuture<'a, Box<dyn DavFile>> {
        async move {
            if options.truncate {
                let upload = self.upload(path, options).await?;
                return Ok(Box::new(upload) as Box<dyn DavFile>);
            }
            // To read, or to create the empty file of a LOCK.
            self.at(path)?.open(path, options).await
        }
        .boxed()
    }

    fn read_dir<'a>(
        &'a self,
        path: &'a DavPath,
        meta: ReadDirMeta,
    ) -> FsFuture<'a, FsStream<Box<dyn DavDirEntry>>> {
        async move {
            let entries = self.at(path)?.read_dir(path, meta).await?;
            if path.as_rel_ospath() != "" {
                return Ok(entries);
            }
            let seen =
                entries.try_filter(|entry| future::ready(entry.name() != UPLOADS.as_bytes()));
            Ok(Box::pin(seen) as FsStream<_>)
        }
        .boxed()
    }

    fn metadata<'a>(&'a self, path: &'a DavPath) -> FsFuture<'a, Box<dyn DavMetaData>> {
        async move {
            let metadata = self.at(path)?.metadata(path).await?;
            Ok(match &self.quota {
                Some((of, quota)) if metadata.is_dir() && of == path => Box::new(Collection {
                    metadata,
                    used: quota.used.unwrap_or(0),
                }),
                _ => metadata,
            })
        }
        .boxed()
    }

    fn symlink_metadata<'a>(&'a self, path: &'a DavPath) -> FsFuture<'a, Box<dyn DavMetaData>> {
        async move { self.at(path)?.symlink_metadata(path).await }.boxed()
    }

    fn create_dir<'a>(&'a self, path: &'a DavPath) -> FsFuture<'a, ()> {
        async move { self.at(path)?.create_dir(path).await }.boxed()
    }

    fn remove_dir<'a>(&'a self, path: &'a DavPath) -> FsFuture<'a, ()> {
        async move { self.at(path)?.remove_dir(path).await }.boxed()
    }

    fn remove_file<'a>(&'a self, path: &'a DavPath) -> FsFuture<'a, ()> {
        async move { self.at(path)?.remove_file(path).await }.boxed()
    }

    fn rename<'a>(&'a self, from: &'a DavPath, to: &'a DavPath) -> FsFuture<'a, ()> {
        async move { self.at(from).and(self.at(to))?.rename(from, to).await }.boxed()
    }

    fn copy<'a>(&'a self, from: &'a DavPath, to: &'a DavPath) -> FsFuture<'a, ()> {
        async move {
            let local = self.at(from).and(self.at(to))?;
            let staged = self.staged.as_ref().and_then(|staged| staged.copy_of(from));
            let Some(staged) = staged else {
                return local.copy(from, to).await;
            };
            let to = self.root.join(to.as_rel_ospath());
            block_in_place(|| fs::rename(staged, to)).map_err(|error| self.fail(error))
        }
        .boxed()
    }

    /// dav-server reports the length of the resource as used, and subtracts that from the second figure.
    fn get_quota(&self) -> FsFuture<'_, (u64, Option<u64>)> {
        async move {
            let figures = self.quota.as_ref();
            // None of the two is shown while they are unknown.
            let figures = figures.filter(|(_, quota)| quota.used.is_some());
            let (path, quota) = figures.ok_or(FsError::NotImplemented)?;
            let used = self.metadata(path).await?.len();
            Ok((used, quota.available.map(|left| left.saturating_add(used))))
        }
        .boxed()
    }
}

/// A copy beside the tree. What was not renamed into the tree is removed when it is dropped.
#[derive(Debug)]
struct Staged {
    folder: TempDir,
    source: PathBuf,
}

impl Staged {
    /// None if there is no copy of this file.
    fn copy_of(&self, file: &DavPath) -> Option<PathBuf> {
        let below = file.as_rel_ospath().strip_prefix(&self.source).ok()?;
        let mut copy = self.folder.path().join(CONTENT);
        // Joined with nothing, a path would end with a slash.
        copy.extend(below);
        copy.exists().then_some(copy)
    }
}

/// A collection whose length is its usage.
#[derive(Clone, Debug)]
struct Collection {
    metadata: Box<dyn DavMetaData>,
    used: u64,
}

impl DavMetaData for Collection {
    fn len(&self) -> u64 {
        self.used
    }

    fn is_dir(&self) -> bool {
        true
    }

    fn etag(&self) -> Option<String> {
        self.metadata.etag()
    }

    fn modified(&self) -> FsResult<SystemTime> {
        self.metadata.modified()
    }

    fn accessed(&self) -> FsResult<SystemTime> {
        self.metadata.accessed()
    }

    fn created(&self) -> FsResult<SystemTime> {
        self.metadata.created()
    }

    fn status_changed(&self) -> FsResult<SystemTime> {
        self.metadata.status_changed()
    }
}

/// A file that is being uploaded. Removed when dropped, unless it was renamed to its final path.
struct Upload {
    files: Files,
    to: DavPath,
    /// None once it is renamed.
    file: Option<NamedTempFile>,
    /// The announced length.
    expected: Option<u64>,
    received: u64,
}

impl Upload {
    fn write(&mut self, content: &[u8]) -> Result<(), FsError> {
        let file = self.file.as_mut().ok_or(FsError::GeneralFailure)?;
        block_in_place(|| file.write_all(content)).map_err(|error| self.files.fail(error))?;
        self.received += content.len() as u64;
        if let Some(reservation) = &self.files.reservation {
            // It is on the disk now, and would otherwise be counted twice, there and as reserved.
            reservation.written(content.len() as u64);
        }
        Ok(())
    }

    /// Syncs everything to the disk, and then renames it.
    async fn publish(&mut self) -> Result<(), BoxError> {
        let Some(file) = self.file.take() else {
            return Ok(());
        };
        block_in_place(|| file.as_file().sync_all())?;
        let to = self.files.root.join(self.to.as_rel_ospath());
        let _places = self.files.places.lock().await;
        if let Some(reservation) = &self.files.reservation {
            // The file that the request was priced by may have been replaced or deleted since.
            let replaced = match block_in_place(|| to.symlink_metadata()) {
                Ok(old) => Amount::new(old.len(), 1),
                Err(_) => Amount::ZERO,
            };
            reservation.replaces(replaced).await?;
        }
        block_in_place(|| file.persist(&to)).map_err(io::Error::from)?;
        if let Some(reservation) = &self.files.reservation {
            // The file exists, whatever is answered, and even if the client has disconnected.
            reservation.commit().await;
        }
        Ok(())
    }
}

impl DavFile for Upload {
    fn write_bytes(&mut self, content: Bytes) -> FsFuture<'_, ()> {
        future::ready(self.write(&content)).boxed()
    }

    fn write_buf(&mut self, mut content: Box<dyn Buf + Send>) -> FsFuture<'_, ()> {
        let content = content.copy_to_bytes(content.remaining());
        self.write_bytes(content)
    }

    /// dav-server flushes when it has read the content to its end, and at no other time.
    fn flush(&mut self) -> FsFuture<'_, ()> {
        async move {
            if self.expected.is_some_and(|size| size != self.received) {
                // dav-server answers this itself, after the flush.
                return Ok(());
            }
            let published = self.publish().await;
            published.map_err(|error| self.files.fail(error))
        }
        .boxed()
    }

    /// Called when the file is renamed.
    fn metadata(&mut self) -> FsFuture<'_, Box<dyn DavMetaData>> {
        self.files.local.metadata(&self.to)
    }

    fn read_bytes(&mut self, _: usize) -> FsFuture<'_, Bytes> {
        future::ready(Err(FsError::NotImplemented)).boxed()
    }

    fn seek(&mut self, _: SeekFrom) -> FsFuture<'_, u64> {
        future::ready(Err(FsError::NotImplemented)).boxed()
    }
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload")
            .field("to", &self.to)
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}
