//! Folders of files. A file exists completely or not at all, and is charged for exactly as long as it exists.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs, io,
    path::{Component, Path, PathBuf},
    pin::pin,
    process,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt, future::join_all};
use http::request::Parts;
use serde::Serialize;
use tokio::{
    fs::File,
    io::AsyncWriteExt,
    sync::{Mutex, Semaphore},
    task::{JoinHandle, block_in_place, spawn_blocking},
    time::{sleep, timeout},
};
use tower_storage_guard::{
    Amount, AsyncReportingWriter, BoxError, Reservation, Scope, Scopes, Volume,
    observer::Observer,
    quota::{Change, Limits},
};

use crate::{
    change::{self, FileChange},
    claim::{self, Claim, named},
    created::Created,
    flags::Flags,
    keep_free::read_again,
    log::chain,
    quotas::{Intent, Quotas},
};

/// The prefix of uploads in progress. No file can have it, because names do not begin with a dot.
const TEMPORARY: &str = ".upload-";
/// The default file of quotas. SQLite adds two more files, whose names begin with this.
const QUOTAS: &str = ".quotas.db";
/// Charges that have not reached the quotas' store yet.
const JOURNAL: &str = ".quotas.journal";
/// How long the shutdown waits until requests in flight are charged.
const PATIENCE: Duration = Duration::from_secs(10);

/// One request at a time looks how large a file is. Otherwise each would take a thread while the disk hangs.
static LOOKING: Semaphore = Semaphore::const_new(1);

/// Everything that is stored, and its guard.
#[derive(Clone)]
pub struct Store {
    pub volume: Volume,
    pub quota: Quotas,
    folders: Arc<Folders>,
    _claim: Claim,
}

enum Folders {
    Shared(Folder),
    /// By token. The map hashes with a random key, so its timing reveals nothing about the tokens.
    OfUsers(HashMap<String, Folder>),
}

impl Store {
    /// The scope that all uploads are charged to.
    pub const EVERYONE: &str = "everyone";

    /// Creates missing folders, removes leftovers, and counts the existing files for quotas that do not know them.
    ///
    /// What can be wrong is found before the quotas' store is opened, which others may share, and before leftovers are removed.
    ///
    /// # Errors
    ///
    /// When the flags contradict each other, or the folders or the quotas' store cannot be used.
    ///
    /// # Panics
    ///
    /// In a runtime of one thread.
    pub async fn open(flags: Flags, created: &mut Created) -> Result<Self, BoxError> {
        Self::open_observed(flags, created, None).await
    }

    /// As [`open`](Self::open). The observer is told of the store of the quotas and of its journal, if there is one.
    pub(crate) async fn open_observed(
        flags: Flags,
        created: &mut Created,
        observer: Option<Arc<dyn Observer>>,
    ) -> Result<Self, BoxError> {
        flags.check()?;
        let (claim, volume) = block_in_place(|| prepare(&flags, created))?;
        let place = flags.quota_store.clone();
        let place = place.or_beside(|| flags.dir.join(QUOTAS));
        let lives = Duration::from_secs(flags.quota_time_to_live.get().into());
        let everyone = (Self::EVERYONE.into(), flags.quota);
        let users = flags.users.iter().map(|user| (user.scope(), user.limit));
        let limits: HashMap<Scope, Limits> = users
            .chain([everyone])
            .map(|(scope, limit)| (scope, Limits::bytes(limit.as_u64())))
            .collect();
        let (journal, leases) = (flags.dir.join(JOURNAL), flags.quota_leases);
        let dir = flags.dir.clone();
        // Before leftovers are removed, because they tell what was done with them.
        let made = move |note: &[u8]| change::made(&dir, note);
        let open = Quotas::open(
            &place,
            journal,
            lives,
            leases,
            limits.clone(),
            made,
            observer,
        );
        let quota = open.await?;
        let opened = move || Self::with_quota(&flags, quota, volume, claim);
        let store = spawn_blocking(opened).await??;
        if store.quota.is_counted() {
            for folder in store.folders() {
                folder.count_if_new().await?;
            }
        } else {
            store.charge(store.totals().await?).await;
        }
        store.declare_counted(&limits).await?;
        read_again(&store.volume).await;
        tokio::spawn(store.clone().count_when_emptied(limits));
        Ok(store)
    }

    /// Counts all files again whenever the quotas' store was emptied.
    async fn count_when_emptied(self, limits: HashMap<Scope, Limits>) {
        loop {
            self.quota.emptied().await;
            eprintln!(
                "the quotas' store was emptied: there are no uploads until the files are counted"
            );
            let totals = loop {
                match self.totals().await {
                    Ok(totals) => break totals,
                    Err(error) => will_try_again("count the files", error).await,
                }
            };
            // On top of what other servers have counted.
            self.charge(totals).await;
            while let Err(error) = self.declare_counted(&limits).await {
                will_try_again("declare the files counted", error).await;
            }
            eprintln!("the files are counted");
        }
    }

    /// How much is in each folder.
    async fn totals(&self) -> Result<Vec<(Folder, Amount)>, BoxError> {
        let mut totals = Vec::new();
        for folder in self.folders() {
            totals.push((folder.clone(), folder.total().await?));
        }
        Ok(totals)
    }

    async fn charge(&self, totals: Vec<(Folder, Amount)>) {
        for (folder, total) in totals {
            folder.charge(total.into()).await;
        }
    }

    async fn declare_counted(&self, limits: &HashMap<Scope, Limits>) -> Result<(), BoxError> {
        self.quota.are_settled().await;
        for (scope, limits) in limits {
            self.quota.set_limits(scope, *limits).await?;
        }
        self.quota.declare_counted().await
    }

    /// Opens the folders, and removes leftovers. Blocks.
    fn with_quota(flags: &Flags, quota: Quotas, volume: Volume, claim: Claim) -> io::Result<Self> {
        let everyone = Scope::from(Self::EVERYONE);
        let open =
            |name: &str, scopes: Scopes| Folder::open(&flags.dir, name, scopes, &volume, &quota);
        let folders = if flags.users.is_empty() {
            Folders::Shared(open("", everyone.into())?)
        } else {
            let opened = flags.users.iter().map(|user| {
                let folder = open(user.name.as_str(), [user.scope(), everyone.clone()].into())?;
                Ok((user.token.clone(), folder))
            });
            Folders::OfUsers(opened.collect::<io::Result<_>>()?)
        };
        Ok(Self {
            volume,
            quota,
            folders: Arc::new(folders),
            _claim: claim,
        })
    }

    /// Waits until all completed work is charged. Nothing changes from here on.
    pub async fn close(&self) -> Result<(), BoxError> {
        let closing = async {
            let folders = self.folders().into_iter();
            let closed = join_all(folders.map(|folder| folder.changing.lock())).await;
            self.quota.are_settled().await;
            drop(closed);
        };
        match timeout(PATIENCE, closing).await {
            Ok(()) => Ok(()),
            Err(_) => {
                let unsettled = self.quota.unsettled();
                Err(format!("{unsettled} charges or releases are not in the quotas' store").into())
            }
        }
    }

    /// The folder that all clients share.
    pub fn folders(&self) -> Vec<&Folder> {
        match &*self.folders {
            Folders::Shared(folder) => vec![folder],
            Folders::OfUsers(folders) => folders.values().collect(),
        }
    }

    /// The folder of the user with this Authorization, or the shared one if there are no users.
    pub fn folder(&self, authorization: Option<&str>) -> Option<&Folder> {
        match &*self.folders {
            Folders::Shared(folder) => Some(folder),
            Folders::OfUsers(folders) => {
                let (scheme, token) = authorization?.split_once(' ')?;
                let is_bearer = scheme.eq_ignore_ascii_case("bearer");
                folders.get(token.trim()).filter(|_| is_bearer)
            }
        }
    }
}

/// Finds out whether the folders can be used, and creates those that are missing. Blocks.
fn prepare(flags: &Flags, created: &mut Created) -> Result<(Claim, Volume), BoxError> {
    let dir = &flags.dir;
    let claim = Claim::of(dir, created)?;
    let volume = flags.keep_free.guard(dir)?;
    for user in &flags.users {
        let folder = dir.join(user.name.as_str());
        created
            .folder(&folder)
            .map_err(|error| named(&folder, &error))?;
        claim::is_writable(&folder)?;
        entries(&folder).map_err(|error| named(&folder, &error))?;
    }
    entries(dir).map_err(|error| named(dir, &error))?;
    created.will_be_own(dir.join(JOURNAL));
    created.will_be_database(&dir.join(QUOTAS));
    Ok((claim, volume))
}

async fn will_try_again(what: &str, error: BoxError) {
    eprintln!("cannot {what}, and will try again: {}", chain(&*error));
    sleep(Duration::from_secs(1)).await;
}

/// The files of one owner in one folder. Cheap to clone.
#[derive(Clone)]
pub struct Folder {
    pub dir: Arc<Path>,
    /// Its path in the folder of all files.
    name: Arc<Path>,
    /// The scopes that are charged.
    pub scopes: Scopes,
    quota: Quotas,
    volume: Volume,
    /// Held while a file is created, removed or replaced, so that the previous size can be counted.
    changing: Arc<Mutex<()>>,
}

#[derive(Debug, Serialize)]
pub struct Entry {
    pub name: String,
    pub size: u64,
}

impl Folder {
    fn open(
        root: &Path,
        name: &str,
        scopes: Scopes,
        volume: &Volume,
        quota: &Quotas,
    ) -> io::Result<Self> {
        let dir = root.join(name);
        remove_leftovers(&dir).map_err(|error| named(&dir, &error))?;
        Ok(Self {
            dir: dir.into(),
            name: Path::new(name).into(),
            scopes,
            quota: quota.clone(),
            volume: volume.clone(),
            changing: Arc::default(),
        })
    }

    /// Charges for the existing files, if the quotas do not know the owner yet. It is one step: an owner with charges
    /// is known, and an interrupted start is repeated by the next one.
    async fn count_if_new(&self) -> Result<(), BoxError> {
        // The owner comes first, and the shared scope last.
        let Some(owner) = self.scopes.iter().next() else {
            return Ok(());
        };
        if self.quota.is_new(owner).await? {
            self.charge(self.total().await?.into()).await;
        }
        Ok(())
    }

    async fn total(&self) -> Result<Amount, BoxError> {
        let files = self
            .list()
            .await
            .map_err(|error| named(&self.dir, &error))?;
        let sizes = files.iter().map(|file| Amount::new(file.size, 1));
        Ok(sizes.fold(Amount::ZERO, |total, file| total + file))
    }

    /// The scopes of a request: the shared one, and the user's if there are users.
    pub fn scopes_of(head: &Parts) -> Scopes {
        let folder = head.extensions.get::<Self>();
        folder.map_or_else(Scopes::default, |folder| folder.scopes.clone())
    }

    /// The files, by name.
    pub async fn list(&self) -> io::Result<Vec<Entry>> {
        let dir = Arc::clone(&self.dir);
        spawn_blocking(move || entries(&dir)).await?
    }

    /// The size of a file. None if it does not exist.
    pub async fn size(&self, name: &Name) -> io::Result<Option<u64>> {
        let path = self.path(name);
        let turn = LOOKING.acquire().await.map_err(io::Error::other)?;
        let look = move || {
            let _turn = turn;
            found(&path)
        };
        Ok(spawn_blocking(look).await??.file())
    }

    /// Opens a file to read, and returns its size. The opened file does not change if it is replaced meanwhile.
    pub async fn read(&self, name: &Name) -> io::Result<Option<(File, u64)>> {
        let path = self.path(name);
        spawn_blocking(move || {
            let Found::File(_) = found(&path)? else {
                return Ok(None);
            };
            match fs::File::open(&path) {
                Ok(file) => {
                    let size = file.metadata()?.len();
                    Ok(Some((File::from_std(file), size)))
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            }
        })
        .await?
    }

    /// Removes a file, and gives back its charge. False if it does not exist.
    pub async fn delete(&self, name: &Name) -> io::Result<bool> {
        let (folder, path) = (self.clone(), self.path(name));
        let changing = Arc::clone(&self.changing).lock_owned().await;
        // A task of its own: a client that disconnects cannot interrupt it halfway.
        tokio::spawn(async move {
            let _changing = changing;
            let at = path.clone();
            let Found::File(size) = spawn_blocking(move || found(&at)).await?? else {
                return Ok(false);
            };
            let changes = [FileChange::removal(folder.within(&path), size)];
            let intent = folder.intend(&changes).await;
            let dir = Arc::clone(&folder.dir);
            let removed = spawn_blocking(move || {
                fs::remove_file(&path)?;
                Ok::<_, io::Error>(sync_dir(&dir))
            });
            let removed = removed.await?;
            let change = match removed {
                Ok(_) => change::sum(&changes),
                Err(_) => Change::ZERO,
            };
            intent.settle(change).await;
            folder.volume.refresh();
            removed?.map(|()| true)
        })
        .await?
    }

    /// Receives an upload, and syncs it to the disk. It is invisible until it is published; dropped before, it leaves
    /// nothing. `fail` converts I/O errors into the caller's error.
    pub async fn receive<E>(
        &self,
        name: Name,
        reservation: &Reservation,
        content: impl Stream<Item = Result<Bytes, E>>,
        fail: impl Fn(io::Error) -> E,
    ) -> Result<Upload, E> {
        let mut uploading = self.begin(name, reservation).await.map_err(&fail)?;
        let mut content = pin!(content);
        let received = async {
            while let Some(chunk) = content.try_next().await? {
                uploading.write(&chunk).await.map_err(&fail)?;
            }
            Ok(())
        };
        if let Err(error) = received.await {
            // The room is free before the next request in the queue is notified.
            uploading.discard().await;
            return Err(error);
        }
        uploading.finish().await.map_err(&fail)
    }

    async fn begin(&self, name: Name, reservation: &Reservation) -> io::Result<Uploading> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = self
            .dir
            .join(format!("{TEMPORARY}{}-{number}", process::id()));
        let volume = self.volume.clone();
        // Created together, so that there is no file without its remover if the client disconnects meanwhile.
        let (file, temporary) = spawn_blocking(move || {
            let file = fs::File::create_new(&path)?;
            Ok::<_, io::Error>((
                file,
                Temporary {
                    path: Some(path),
                    volume,
                },
            ))
        })
        .await??;
        Ok(Uploading {
            // Tells the guard what is on the disk already, so that it is not counted twice.
            file: reservation.async_writer(file),
            upload: Upload {
                name,
                temporary,
                size: 0,
            },
        })
    }

    /// Renames uploads of one request to their final names, and charges for them.
    pub async fn publish(
        &self,
        mut uploads: Vec<Upload>,
        reservation: &Reservation,
    ) -> Result<Stored, BoxError> {
        let (folder, reservation) = (self.clone(), reservation.clone());
        let changing = Arc::clone(&self.changing).lock_owned().await;
        // A task of its own: a client that disconnects cannot interrupt it between the rename and the charge.
        tokio::spawn(async move {
            let _changing = changing;
            if reservation.has_ended() {
                return Err("the client has left, and nothing is set aside any more".into());
            }
            let changes = folder.changes(&uploads).await?;
            let replaced = changes.iter().map(|change| change.replaced);
            // The file that the request was priced by may have been replaced or deleted since.
            reservation
                .replaces(replaced.fold(Amount::ZERO, |sum, one| sum + one))
                .await?;
            let intent = folder.intend(&changes).await;
            let (count, published) = folder.rename(&mut uploads).await;
            let made = &changes[..count];
            reservation.stored(made.iter().map(|change| change.size).sum());
            reservation.made(made.len() as u64);
            // The files exist, whatever is answered, and even if the client has disconnected.
            let left = match published {
                Ok(()) => intent.commit(&reservation).await,
                Err(_) => Some(intent),
            };
            if let Some(intent) = left {
                intent.settle(change::sum(made)).await;
            }
            // Now that it is charged, what was not renamed may go.
            published.map(|()| Stored {
                has_replaced: changes.iter().any(|change| !change.replaced.is_zero()),
                files: uploads.iter().map(Upload::entry).collect(),
            })
        })
        .await?
    }

    /// What publishing these uploads changes.
    async fn changes(&self, uploads: &[Upload]) -> Result<Vec<FileChange>, BoxError> {
        let mut changes: Vec<FileChange> = Vec::new();
        for upload in uploads {
            let path = self.path(&upload.name);
            let to = self.within(&path);
            let replaced = match changes.iter().rfind(|earlier| earlier.path == to) {
                // Two files of one request have one name.
                Some(earlier) => Amount::new(earlier.size, 1),
                None => match spawn_blocking(move || found(&path)).await?? {
                    Found::Nothing => Amount::ZERO,
                    Found::File(size) => Amount::new(size, 1),
                    Found::Other => return Err(NotAFile.into()),
                },
            };
            changes.push(FileChange {
                from: upload
                    .temporary
                    .path
                    .as_deref()
                    .map(|from| self.within(from)),
                path: to,
                size: upload.size,
                replaced,
            });
        }
        Ok(changes)
    }

    /// Renames uploads, and returns how many of them it could.
    async fn rename(&self, uploads: &mut [Upload]) -> (usize, Result<(), BoxError>) {
        let mut count = 0;
        let renaming = async {
            for upload in uploads {
                let to = self.path(&upload.name);
                let from = upload.temporary.path.clone();
                spawn_blocking(move || from.map(|from| fs::rename(from, to)).transpose()).await??;
                upload.temporary.path = None;
                count += 1;
            }
            let dir = Arc::clone(&self.dir);
            spawn_blocking(move || sync_dir(&dir)).await??;
            Ok(())
        };
        let renamed = renaming.await;
        (count, renamed)
    }

    /// Notes that files are about to change.
    pub async fn intend(&self, changes: &[FileChange]) -> Intent {
        self.quota
            .intend(&self.scopes, &change::note(changes))
            .await
    }

    async fn charge(&self, change: Change) {
        self.quota.charge(&self.scopes, change).await;
    }

    /// A path in this folder, as seen from the folder of all files.
    pub fn within(&self, path: &Path) -> PathBuf {
        let own = path.strip_prefix(&self.dir).unwrap_or(path);
        self.name.join(own)
    }

    /// The path of a file with this name, whether it exists or not.
    pub fn path(&self, name: &Name) -> PathBuf {
        self.dir.join(name.as_str())
    }
}

/// A file that was uploaded.
pub struct Upload {
    name: Name,
    temporary: Temporary,
    size: u64,
}

impl Upload {
    fn entry(&self) -> Entry {
        Entry {
            name: self.name.0.clone(),
            size: self.size,
        }
    }
}

/// A file that is being uploaded.
struct Uploading {
    file: AsyncReportingWriter<fs::File>,
    upload: Upload,
}

impl Uploading {
    async fn write(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.file.write_all(chunk).await?;
        self.upload.size += chunk.len() as u64;
        Ok(())
    }

    /// Syncs everything to the disk.
    async fn finish(self) -> io::Result<Upload> {
        let file = self.file.into_inner().await?;
        spawn_blocking(move || file.sync_all()).await??;
        Ok(self.upload)
    }

    /// Removes the partial file, and waits until it is gone. A drop does the same, but does not wait.
    async fn discard(mut self) {
        // What is still being written would keep its room. An error changes nothing.
        let _ = self.file.into_inner().await;
        if let Some(removed) = self.upload.temporary.remove() {
            // It neither panics nor is cancelled.
            let _ = removed.await;
        }
    }
}

/// Removes a temporary file, however the upload ends.
struct Temporary {
    path: Option<PathBuf>,
    volume: Volume,
}

impl Temporary {
    fn remove(&mut self) -> Option<JoinHandle<()>> {
        let (path, volume) = (self.path.take()?, self.volume.clone());
        Some(spawn_blocking(move || {
            // The error cannot be handled here. If the removal fails, the next start removes the file.
            let _ = fs::remove_file(path);
            volume.refresh();
        }))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Files that have just got their final names.
pub struct Stored {
    pub has_replaced: bool,
    pub files: Vec<Entry>,
}

/// The name is taken by a folder, or by a link.
#[derive(Debug, thiserror::Error)]
#[error("there is something of this name that is not a file")]
pub struct NotAFile;

/// The name of a file, or of a user: one that cannot lead out of a folder.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Name(String);

#[derive(Debug, thiserror::Error)]
#[error("a name must have 1 to 255 bytes and no slash, and not begin with a dot")]
pub struct InvalidName;

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(name: &str) -> Result<Self, InvalidName> {
        // As the operating system parses it: Windows has more names that lead out of the folder.
        let mut parts = Path::new(name).components();
        let is_plain = parts.next() == Some(Component::Normal(OsStr::new(name)));
        if is_plain
            && parts.next().is_none()
            && name.len() <= 255
            && !name.starts_with('.')
            && !name.contains('\0')
        {
            Ok(Self(name.to_owned()))
        } else {
            Err(InvalidName)
        }
    }
}

/// What a name refers to. Symbolic links are not followed.
enum Found {
    Nothing,
    File(u64),
    Other,
}

impl Found {
    fn file(self) -> Option<u64> {
        match self {
            Self::File(size) => Some(size),
            Self::Nothing | Self::Other => None,
        }
    }
}

fn found(path: &Path) -> io::Result<Found> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(Found::File(metadata.len())),
        Ok(_) => Ok(Found::Other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Found::Nothing),
        Err(error) => Err(error),
    }
}

fn entries(dir: &Path) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        // Files whose names are invalid here are not this server's.
        let Some(Ok(name)) = entry.file_name().to_str().map(Name::from_str) else {
            continue;
        };
        if let Found::File(size) = found(&entry.path())? {
            entries.push(Entry { name: name.0, size });
        }
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

fn remove_leftovers(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(TEMPORARY.as_bytes())
        {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// A rename is durable once its directory is synced. Windows has no such operation.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    if cfg!(unix) {
        fs::File::open(dir)?.sync_all()?;
    }
    Ok(())
}
