//! Uploads of several requests. Each grows in a file of its own, and gets its place when it is whole.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    path::PathBuf,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use http::HeaderValue;
use tokio::{
    sync::{Mutex as AsyncMutex, OwnedMutexGuard, watch},
    task::{block_in_place, spawn_blocking},
    time::{Instant, sleep_until},
};
use tower_storage_guard::Reservation;

use example_support::store::{Folder, Name, Store, sync_dir};

/// Where uploads in progress are, in each folder: a rename must not leave the filesystem.
const UPLOADS: &str = ".uploads";

/// All of them. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Uploads {
    /// By where they grow, so that nobody comes upon those of another user. What is whole stays known for a while:
    /// clients may ask once more.
    known: Arc<Mutex<HashMap<PathBuf, Arc<Upload>>>>,
    /// How long one stays where nothing comes.
    time_to_live: Duration,
}

impl Uploads {
    /// Makes what is missing, and removes the uploads of the last run: nothing is set aside for them any more.
    /// Blocks.
    pub(crate) fn open(store: &Store, time_to_live: Duration) -> io::Result<Self> {
        for folder in store.folders() {
            let uploads = folder.dir.join(UPLOADS);
            fs::create_dir_all(&uploads)?;
            fs::remove_dir_all(&uploads)?;
            fs::create_dir(&uploads)?;
        }
        Ok(Self {
            known: Arc::default(),
            time_to_live,
        })
    }

    /// Begins an upload. It is removed when it is dropped, unless it is kept.
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
            progress: progress.expect("nobody else knows of it"),
            uploads: self.clone(),
            upload: Arc::clone(&upload),
            is_kept: false,
        };
        self.known().insert(path, Arc::clone(&upload));
        tokio::spawn(self.clone().expire(upload));
        Ok(turn)
    }

    /// Waits for one's turn at an upload. Whoever has it is told to stop: that may be a connection of which the
    /// client knows that it is dead, and we do not. None where there is no such upload.
    pub(crate) async fn turn(&self, folder: &Folder, name: &Name) -> io::Result<Option<Turn>> {
        let known = self.known().get(&growing(folder, name)).cloned();
        let upload = match known {
            Some(upload) => upload,
            // Perhaps one that was whole long ago.
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

    /// Removes an upload for which nothing comes any more. One that is whole is forgotten, and stays.
    async fn expire(self, upload: Arc<Upload>) {
        loop {
            let expires = *upload.expires();
            sleep_until(expires).await;
            if *upload.expires() > expires {
                continue;
            }
            let mut turn = self.turn_at(Arc::clone(&upload)).await;
            match turn.progress.stage {
                // Something came at the last moment.
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
            expires: Mutex::new(Instant::now() + self.time_to_live),
        })
    }

    fn known(&self) -> MutexGuard<'_, HashMap<PathBuf, Arc<Upload>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// 128 bits, random as a key is: whoever knows the name may go on with the upload.
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
    /// How many have asked for their turn. The last of them has it next.
    requests: watch::Sender<u64>,
    expires: Mutex<Instant>,
}

struct Progress {
    offset: u64,
    /// None while the client has not said.
    length: Option<u64>,
    stage: Stage,
}

enum Stage {
    Growing,
    /// In its place, and on the disk.
    Whole,
    Gone,
}

impl Upload {
    /// A number for whoever asks now. All before stop.
    fn next_number(&self) -> u64 {
        let mut number = 0;
        self.requests.send_modify(|requests| {
            *requests += 1;
            number = *requests;
        });
        number
    }

    fn expires(&self) -> MutexGuard<'_, Instant> {
        self.expires.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An upload, in the hands of one request.
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

    /// What is still to come, if the client has said.
    pub(crate) fn left(&self) -> Option<u64> {
        let length = self.progress.length?;
        Some(length - self.progress.offset)
    }

    /// Until when there has to come more of it. None for one that is whole.
    pub(crate) fn expires(&self) -> Option<SystemTime> {
        let left = self.upload.expires().duration_since(Instant::now());
        self.is_growing().then(|| SystemTime::now() + left)
    }

    fn is_growing(&self) -> bool {
        matches!(self.progress.stage, Stage::Growing)
    }

    /// Sets the length, if that is still open. False where it is another one already, or less than there is.
    pub(crate) fn set_length(&mut self, length: u64) -> bool {
        let set = *self.progress.length.get_or_insert(length);
        if self.progress.offset > set {
            self.progress.length = None;
            return false;
        }
        set == length
    }

    /// From now on it stays, whatever becomes of this request: the client is told of it.
    pub(crate) fn keep(mut self) {
        self.is_kept = true;
    }

    /// Takes what comes. It stays however that ends.
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
            // Nothing waits here: a client who leaves does not come between what is written and its count.
            block_in_place(|| self.write(&mut file, &chunk)).map_err(Broken::Disk)?;
            self.progress.offset += chunk.len() as u64;
            // It is on the disk now, and would be counted twice, there and as promised.
            reservation.written(chunk.len() as u64);
            self.touch();
        }
        Ok(())
    }

    /// Waits until there is a request that came later.
    async fn is_over(&self) {
        let mut requests = self.upload.requests.subscribe();
        // The sender is in our hands.
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
            // Half a chunk does not count, and takes no room.
            let _ = file.set_len(self.progress.offset);
        })
    }

    /// If all of it is there: has it on the disk, and puts it in its place.
    ///
    /// # Errors
    ///
    /// The upload is gone then: nobody knows what of it the disk has.
    pub(crate) async fn finish_if_whole(&mut self) -> io::Result<()> {
        if self.left() != Some(0) || !self.is_growing() {
            return Ok(());
        }
        let (from, to) = (self.path(), self.place());
        let file = block_in_place(|| OpenOptions::new().write(true).open(&from))?;
        let synced = spawn_blocking(move || file.sync_all()).await?;
        // Nothing waits from here until it is answered: it is not in its place where the client has left before.
        let placed = synced.and_then(|()| {
            block_in_place(|| {
                fs::rename(from, &to)?;
                sync_dir(&self.upload.folder.dir)
            })
        });
        if placed.is_err() {
            self.remove();
            return placed;
        }
        self.progress.stage = Stage::Whole;
        self.touch();
        Ok(())
    }

    /// Removes it, at the wish of its client.
    pub(crate) async fn delete(mut self) -> io::Result<()> {
        match self.progress.stage {
            Stage::Whole => {
                self.forget();
                // It is charged for, other than one that grows.
                self.upload.folder.delete(&self.upload.name).await?;
            }
            Stage::Growing | Stage::Gone => self.remove(),
        }
        Ok(())
    }

    /// Removes what nobody is charged for. Blocks.
    fn remove(&mut self) {
        self.forget();
        for path in [self.path(), self.place()] {
            // One of them is missing. If it fails otherwise, the next start removes it.
            let _ = block_in_place(|| fs::remove_file(path));
        }
    }

    fn forget(&mut self) {
        self.progress.stage = Stage::Gone;
        self.uploads.known().remove(&self.path());
    }

    fn touch(&self) {
        *self.upload.expires() = Instant::now() + self.uploads.time_to_live;
    }

    /// Where it grows.
    fn path(&self) -> PathBuf {
        growing(&self.upload.folder, &self.upload.name)
    }

    /// Where it will be.
    fn place(&self) -> PathBuf {
        self.upload.folder.path(&self.upload.name)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.is_kept {
            self.remove();
        } else if self.is_growing() && self.left() == Some(0) {
            // Broken off just before its end. A client that was told so much would not come again, and nothing would
            // put it in its place: the last byte has to come once more.
            self.progress.offset = self.progress.offset.saturating_sub(1);
        }
    }
}

/// Why less has come than was to come.
pub(crate) enum Broken<E> {
    Content(E),
    Disk(io::Error),
    TooLong,
    /// It is another request's turn.
    Over,
}
