//! Uploads of several requests. Each grows in a temporary file, which is renamed when it is complete.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    path::PathBuf,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use http::HeaderValue;
use tokio::{
    sync::{Mutex as AsyncMutex, OwnedMutexGuard, watch},
    task::{AbortHandle, block_in_place, spawn_blocking},
    time::{Instant, sleep_until},
};
use tower_storage_guard::{Amount, Reservation, quota::Change};

use example_support::{
    change::FileChange,
    created::Created,
    store::{Folder, Name, Store, sync_dir},
};

/// The folder of uploads in progress, inside each user's folder, because a rename must stay on one filesystem.
const UPLOADS: &str = ".uploads";

/// How many uploads may be open at once. As many complete ones are remembered.
pub(crate) const MOST: usize = 10_000;

/// All uploads. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Uploads {
    /// By the path where they grow, so that a user cannot reach another user's uploads. Complete uploads stay known
    /// for a while, because clients may ask again.
    known: Arc<Mutex<HashMap<PathBuf, Arc<Upload>>>>,
    /// How long an idle upload is kept.
    time_to_live: Duration,
}

impl Uploads {
    /// Creates missing folders, and removes the uploads of the last run, whose reservations are gone. Blocks.
    pub(crate) fn open(
        store: &Store,
        time_to_live: Duration,
        created: &mut Created,
    ) -> io::Result<Self> {
        for folder in store.folders() {
            created.emptied(&folder.dir.join(UPLOADS))?;
        }
        Ok(Self {
            known: Arc::default(),
            time_to_live,
        })
    }

    /// Begins an upload. It is removed on drop, unless it is kept.
    pub(crate) fn create(
        &self,
        folder: &Folder,
        length: Option<u64>,
        metadata: Option<HeaderValue>,
    ) -> io::Result<Turn> {
        let name = unguessable()?;
        let path = growing(folder, &name);
        block_in_place(|| File::create_new(&path))?;
        let progress = Progress {
            offset: 0,
            length,
            stage: Stage::Growing,
        };
        let upload = self.upload(folder, name, metadata, progress);
        let progress = Arc::clone(&upload.progress).try_lock_owned();
        let turn = Turn {
            number: upload.next_number(),
            progress: progress.expect("a new upload has no other user"),
            uploads: self.clone(),
            upload: Arc::clone(&upload),
            is_kept: false,
        };
        self.insert(path, Arc::clone(&upload));
        let expiring = tokio::spawn(self.clone().expire(Arc::clone(&upload)));
        let _ = upload.expiring.set(expiring.abort_handle());
        Ok(turn)
    }

    /// Forgets a complete upload, if there are too many: what is left of it is on the disk.
    fn insert(&self, path: PathBuf, upload: Arc<Upload>) {
        let mut known = self.known();
        let is_whole = |(path, upload): (&PathBuf, &Arc<Upload>)| {
            let progress = upload.progress.try_lock().ok()?;
            matches!(progress.stage, Stage::Whole).then(|| path.clone())
        };
        if known.len() >= 2 * MOST
            && let Some(whole) = known.iter().find_map(is_whole)
            && let Some(whole) = known.remove(&whole)
        {
            whole.stop_expiring();
        }
        known.insert(path, upload);
    }

    /// Removes what has been received of an upload whose reservation has expired. False if it is complete, and stays. None if
    /// no such upload is known.
    pub(crate) async fn remove_expired(&self, name: &Name) -> Option<bool> {
        let upload = self
            .known()
            .values()
            .find(|upload| upload.name == *name)
            .cloned();
        let mut turn = self.turn_at(upload?).await;
        if turn.is_growing() {
            turn.remove();
        }
        Some(matches!(turn.progress.stage, Stage::Gone))
    }

    /// Waits for exclusive access to an upload. The request that has access is told to stop: its connection may be
    /// dead, which the client knows and the server does not. None if there is no such upload.
    pub(crate) async fn turn(&self, folder: &Folder, name: &Name) -> io::Result<Option<Turn>> {
        let known = self.known().get(&growing(folder, name)).cloned();
        let upload = match known {
            Some(upload) => upload,
            // It may have been completed long ago.
            None => match folder.size(name).await? {
                Some(size) => {
                    let progress = Progress {
                        offset: size,
                        length: Some(size),
                        stage: Stage::Whole,
                    };
                    self.upload(folder, name.clone(), None, progress)
                }
                None => return Ok(None),
            },
        };
        let turn = self.turn_at(upload).await;
        let is_gone = matches!(turn.progress.stage, Stage::Gone);
        Ok((!is_gone).then_some(turn))
    }

    async fn turn_at(&self, upload: Arc<Upload>) -> Turn {
        Turn {
            uploads: self.clone(),
            number: upload.next_number(),
            progress: Arc::clone(&upload.progress).lock_owned().await,
            upload,
            is_kept: true,
        }
    }

    /// Removes an upload that has been idle for too long. A complete one is forgotten, and its file stays.
    async fn expire(self, upload: Arc<Upload>) {
        loop {
            let expires = *upload.expires();
            sleep_until(expires).await;
            if *upload.expires() > expires {
                continue;
            }
            let mut turn = self.turn_at(Arc::clone(&upload)).await;
            match turn.progress.stage {
                // More content arrived in the last moment.
                _ if *upload.expires() > expires => continue,
                Stage::Growing => turn.remove(),
                Stage::Whole => turn.forget(),
                Stage::Gone => {}
            }
            return;
        }
    }

    fn upload(
        &self,
        folder: &Folder,
        name: Name,
        metadata: Option<HeaderValue>,
        progress: Progress,
    ) -> Arc<Upload> {
        Arc::new(Upload {
            folder: folder.clone(),
            name,
            metadata,
            progress: Arc::new(AsyncMutex::new(progress)),
            requests: watch::Sender::new(0),
            expiring: OnceLock::new(),
            expires: Mutex::new(Instant::now() + self.time_to_live),
        })
    }

    fn known(&self) -> MutexGuard<'_, HashMap<PathBuf, Arc<Upload>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// 128 random bits, like a key: a client that knows the name may continue the upload.
fn unguessable() -> io::Result<Name> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    let name = format!("{:032x}", u128::from_ne_bytes(bytes));
    Ok(name.parse().expect("digits are a name"))
}

fn growing(folder: &Folder, name: &Name) -> PathBuf {
    folder.dir.join(UPLOADS).join(name.as_str())
}

struct Upload {
    folder: Folder,
    name: Name,
    /// As the client sent it.
    metadata: Option<HeaderValue>,
    progress: Arc<AsyncMutex<Progress>>,
    /// The number of requests for access. The last one gets it next.
    requests: watch::Sender<u64>,
    expires: Mutex<Instant>,
    /// The task that waits for that.
    expiring: OnceLock<AbortHandle>,
}

struct Progress {
    offset: u64,
    /// None until the client has announced it.
    length: Option<u64>,
    stage: Stage,
}

enum Stage {
    Growing,
    /// Renamed to its final path, and synced.
    Whole,
    Gone,
}

impl Upload {
    /// A number for a new request for access. All earlier requests stop.
    fn next_number(&self) -> u64 {
        let mut number = 0;
        self.requests.send_modify(|requests| {
            *requests += 1;
            number = *requests;
        });
        number
    }

    fn stop_expiring(&self) {
        if let Some(expiring) = self.expiring.get() {
            expiring.abort();
        }
    }

    fn expires(&self) -> MutexGuard<'_, Instant> {
        self.expires.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An upload, in exclusive use by one request.
pub(crate) struct Turn {
    uploads: Uploads,
    upload: Arc<Upload>,
    progress: OwnedMutexGuard<Progress>,
    number: u64,
    is_kept: bool,
}

impl Turn {
    pub(crate) fn name(&self) -> &str {
        self.upload.name.as_str()
    }

    pub(crate) fn metadata(&self) -> Option<&HeaderValue> {
        self.upload.metadata.as_ref()
    }

    pub(crate) fn offset(&self) -> u64 {
        self.progress.offset
    }

    pub(crate) fn length(&self) -> Option<u64> {
        self.progress.length
    }

    /// The remaining length, if the client has announced the total.
    pub(crate) fn left(&self) -> Option<u64> {
        let length = self.progress.length?;
        Some(length - self.progress.offset)
    }

    /// When it expires without more content. None for a complete upload.
    pub(crate) fn expires(&self) -> Option<SystemTime> {
        let left = self.upload.expires().duration_since(Instant::now());
        self.is_growing().then(|| SystemTime::now() + left)
    }

    fn is_growing(&self) -> bool {
        matches!(self.progress.stage, Stage::Growing)
    }

    /// Sets the length, if it is not set yet. False if another length is set already, or if it is less than what was
    /// received.
    pub(crate) fn set_length(&mut self, length: u64) -> bool {
        let set = *self.progress.length.get_or_insert(length);
        if self.progress.offset > set {
            self.progress.length = None;
            return false;
        }
        set == length
    }

    /// From now on it is kept even if this request fails, because the client knows of it.
    pub(crate) fn keep(mut self) {
        self.is_kept = true;
    }

    /// Appends the body. What was received is kept, however the request ends.
    pub(crate) async fn receive<E>(
        &mut self,
        reservation: &Reservation,
        content: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<(), Broken<E>> {
        let mut content = pin!(content);
        let mut file = None;
        self.touch();
        loop {
            let chunk = tokio::select! {
                biased;
                () = self.is_over() => return Err(Broken::Over),
                chunk = content.try_next() => chunk.map_err(Broken::Content)?,
            };
            let Some(chunk) = chunk else {
                break;
            };
            if self.left().is_some_and(|left| chunk.len() as u64 > left) {
                return Err(Broken::TooLong);
            }
            // No await point here: a client that disconnects cannot separate the write from its count.
            block_in_place(|| self.write(&mut file, &chunk)).map_err(Broken::Disk)?;
            self.progress.offset += chunk.len() as u64;
            // It is on the disk now, and would otherwise be counted twice, there and as reserved.
            reservation.written(chunk.len() as u64);
            self.touch();
        }
        Ok(())
    }

    /// Waits until a later request asks for access.
    async fn is_over(&self) {
        let mut requests = self.upload.requests.subscribe();
        // `self` holds the sender, so it is not closed.
        let _ = requests.wait_for(|number| *number > self.number).await;
    }

    fn write(&self, file: &mut Option<File>, chunk: &[u8]) -> io::Result<()> {
        let file = match file {
            Some(file) => file,
            none => {
                let mut opened = OpenOptions::new().write(true).open(self.path())?;
                opened.seek(SeekFrom::Start(self.progress.offset))?;
                none.insert(opened)
            }
        };
        file.write_all(chunk).inspect_err(|_| {
            // A partial chunk is not counted, and is truncated.
            let _ = file.set_len(self.progress.offset);
        })
    }

    /// If it is complete, syncs it, renames it to its final path, and charges it.
    ///
    /// # Errors
    ///
    /// On failure the upload is removed, because it is unknown how much of it is on the disk.
    pub(crate) async fn finish_if_whole(&mut self, reservation: &Reservation) -> io::Result<()> {
        if self.left() != Some(0) || !self.is_growing() {
            return Ok(());
        }
        let (from, to) = (self.path(), self.place());
        let folder = self.upload.folder.clone();
        let change = FileChange {
            from: Some(folder.within(&from)),
            path: folder.within(&to),
            size: self.progress.offset,
            replaced: Amount::ZERO,
        };
        let file = block_in_place(|| OpenOptions::new().write(true).open(&from))?;
        let synced = spawn_blocking(move || file.sync_all()).await?;
        let intent = folder.intend(&[change]).await;
        // No await point from here to the charge: the file is not renamed if the client has disconnected before.
        let placed = synced.and_then(|()| {
            block_in_place(|| {
                fs::rename(from, &to)?;
                sync_dir(&folder.dir)
            })
        });
        if placed.is_err() {
            self.remove();
            intent.settle(Change::ZERO).await;
            return placed;
        }
        self.progress.stage = Stage::Whole;
        self.touch();
        if let Some(intent) = intent.commit(reservation).await {
            // The guard charges it when the reservation of the whole upload ends.
            intent.settle(Change::ZERO).await;
        }
        Ok(())
    }

    /// Removes it, when its client asks for that.
    pub(crate) async fn delete(mut self) -> io::Result<()> {
        match self.progress.stage {
            Stage::Whole => {
                self.forget();
                // A complete file is charged, unlike one that grows.
                self.upload.folder.delete(&self.upload.name).await?;
            }
            Stage::Growing | Stage::Gone => self.remove(),
        }
        Ok(())
    }

    /// Removes files that are not charged. Blocks.
    fn remove(&mut self) {
        self.forget();
        for path in [self.path(), self.place()] {
            // A missing file is fine. If it fails otherwise, the next start removes it.
            let _ = block_in_place(|| fs::remove_file(path));
        }
    }

    fn forget(&mut self) {
        self.progress.stage = Stage::Gone;
        self.uploads.known().remove(&self.path());
        self.upload.stop_expiring();
    }

    fn touch(&self) {
        *self.upload.expires() = Instant::now() + self.uploads.time_to_live;
    }

    /// The path where it grows.
    fn path(&self) -> PathBuf {
        growing(&self.upload.folder, &self.upload.name)
    }

    /// Its final path.
    fn place(&self) -> PathBuf {
        self.upload.folder.path(&self.upload.name)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.is_kept {
            self.remove();
        } else if self.is_growing() && self.left() == Some(0) {
            // Interrupted just before its end. A client that is told the full length would not send another request,
            // and the file would never be renamed: so the last byte has to be sent again.
            self.progress.offset = self.progress.offset.saturating_sub(1);
        }
    }
}

/// Why less content arrived than announced.
pub(crate) enum Broken<E> {
    Content(E),
    Disk(io::Error),
    TooLong,
    /// Another request has access now.
    Over,
}
