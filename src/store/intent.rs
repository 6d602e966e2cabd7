//! Changes that are about to be made to what is stored.

use std::{fmt, future::poll_fn, mem, pin::pin, sync::Arc, task::Poll};

use super::{HoldId, Settled, Settlement, Store, StoredQuota, source::Shared};
use crate::{quota::Change, reservation::Reservation, scope::Scopes};

/// A change that is about to be made: a rename, or a removal.
///
/// What is stored and what is charged are in two places, and a process may be killed between the two steps. So the change is
/// noted in the [journal](super::StoredQuotaBuilder::journal) before it is made, and [settled](Self::settle) afterwards. What
/// was not settled is [resolved](super::Journal::resolve) by the next process, which looks at what is stored.
///
/// Made by [`StoredQuota::intend`]. A drop settles nothing, and leaves it to the next process.
///
/// ```
/// # #[cfg(feature = "store-sqlite")] {
/// use std::fs;
///
/// use tower_storage_guard::{
///     Amount,
///     quota::{Change, Limits},
///     store::{Journal, StoredQuota},
/// };
/// # use tower_storage_guard::store::SqliteStore;
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let (directory, file) = (folder.path().join("journal"), folder.path().join("file"));
/// # fs::write(&file, "content").unwrap();
/// # let store = SqliteStore::open(folder.path().join("quota.db")).unwrap();
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let mut journal = Journal::open(&directory)?;
/// journal.resolve(|note| {
///     // This program's notes are the size and the path of a file that is removed.
///     let (size, path) = str::from_utf8(note).ok().and_then(|note| note.split_once(' ')).unwrap();
///     Ok(match fs::exists(path)? {
///         true => Change::ZERO,
///         false => Change::between(Amount::ZERO, Amount::new(size.parse().unwrap(), 1)),
///     })
/// })?;
/// let quota = StoredQuota::builder(store, Limits::bytes(1 << 30)).journal(journal).build();
///
/// let size = fs::metadata(&file)?.len();
/// let intent = quota.intend("user:42", format!("{size} {}", file.display())).await;
/// // A process that is killed from here on gives back what it has removed.
/// fs::remove_file(&file)?;
/// intent.settle(Change::between(Amount::ZERO, Amount::new(size, 1))).await;
/// # Ok::<_, std::io::Error>(())
/// # }).unwrap();
/// # }
/// ```
#[must_use = "it has to be settled once the change was made"]
pub struct Intent<S: Store> {
    shared: Arc<Shared<S>>,
    id: HoldId,
    scopes: Scopes,
}

impl<S: Store> Intent<S> {
    /// Commits a reservation of this quota, whose change was made. In the journal its charge takes the place of the note, in
    /// one write.
    ///
    /// # Errors
    ///
    /// Returns the intent where the reservation has ended before, so that it can be [settled](Self::settle).
    pub async fn commit(self, reservation: &Reservation) -> Result<(), Self> {
        if reservation.has_ended() {
            return Err(self);
        }
        let mut commit = pin!(reservation.commit());
        let first = {
            let _together = self.shared.settler.together();
            self.shared.settler.forget_intent(self.id);
            // The charge is noted in here.
            poll_fn(|cx| Poll::Ready(commit.as_mut().poll(cx))).await
        };
        let is_committed = match first {
            Poll::Ready(is_committed) => is_committed,
            Poll::Pending => commit.await,
        };
        if is_committed { Ok(()) } else { Err(self) }
    }

    /// Charges the change that was made: zero if none was.
    ///
    /// The future resolves once the store has taken the charge. It is cancel-safe: the change is charged even if the future
    /// is dropped. Use it for a change without a reservation, such as a removal; otherwise [`commit`](Self::commit).
    pub fn settle(self, change: Change) -> Settled {
        let settler = &self.shared.settler;
        if change == Change::ZERO || self.scopes.is_empty() {
            settler.forget_intent(self.id);
            return Settled::nothing();
        }
        settler.settle(Settlement::new(self.id, self.scopes, change))
    }
}

impl<S: Store> StoredQuota<S> {
    /// Notes in the [journal](super::StoredQuotaBuilder::journal) that a change is about to be made to what `scopes` store.
    /// `note` says for [`Journal::resolve`](super::Journal::resolve) where to look, in a form of your own.
    ///
    /// Resolves once it is written, and is cancel-safe: dropped before, it leaves no note. While the disk of the journal takes
    /// no writes, and without a journal, it resolves all the same, and a kill may separate the change from its charge.
    pub async fn intend(&self, scopes: impl Into<Scopes>, note: impl AsRef<[u8]>) -> Intent<S> {
        let intent = Intent {
            shared: Arc::clone(&self.shared),
            id: HoldId::unique(),
            scopes: scopes.into(),
        };
        let settler = &self.shared.settler;
        if let Some(noted) = settler.intend(intent.id, &intent.scopes, note.as_ref()) {
            let unmade = Unmade(&intent);
            noted.await;
            mem::forget(unmade);
        }
        intent
    }
}

/// Withdraws an intent whose caller has left before it was told.
struct Unmade<'a, S: Store>(&'a Intent<S>);

impl<S: Store> Drop for Unmade<'_, S> {
    fn drop(&mut self) {
        self.0.shared.settler.forget_intent(self.0.id);
    }
}

impl<S: Store> fmt::Debug for Intent<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Intent")
            .field("id", &self.id)
            .field("scopes", &self.scopes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use tokio::time::sleep;

    use super::*;
    use crate::{
        amount::Amount,
        quota::Limits,
        store::{Journal, conformance::ReferenceStore},
    };

    type Quota = StoredQuota<Arc<ReferenceStore>>;

    /// What a process finds that begins now: the notes of what was intended.
    async fn left(directory: &Path) -> Vec<Vec<u8>> {
        let mut journal = loop {
            match Journal::open(directory) {
                Ok(journal) => break journal,
                Err(_) => sleep(Duration::from_millis(2)).await,
            }
        };
        let mut notes = Vec::new();
        let resolved = journal.resolve(|note| {
            notes.push(note.to_vec());
            Ok(Change::ZERO)
        });
        resolved.unwrap();
        notes
    }

    #[tokio::test]
    async fn what_is_settled_is_not_resolved_again() {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(ReferenceStore::default());
        let open = || -> Quota {
            let journal = Journal::open(directory.path()).unwrap();
            StoredQuota::builder(Arc::clone(&store), Limits::UNLIMITED)
                .journal(journal)
                .build()
        };
        let quota = open();
        let change = Change::from(Amount::new(7, 1));
        quota.intend("user", "made").await.settle(change).await;
        quota
            .intend("user", "not made")
            .await
            .settle(Change::ZERO)
            .await;
        quota
            .intend(Scopes::NONE, "charged to no scope")
            .await
            .settle(change)
            .await;
        // Its caller leaves before it is told.
        tokio::select! {
            biased;
            _ = quota.intend("user", "left early") => panic!("it is not written yet"),
            () = std::future::ready(()) => {}
        }
        drop(quota);
        assert_eq!(left(directory.path()).await, Vec::<Vec<u8>>::new());

        let quota = open();
        assert_eq!(quota.usage("user").await.unwrap().used, Amount::new(7, 1));
        drop(quota.intend("user", "unknown").await);
        drop(quota);
        assert_eq!(left(directory.path()).await, [b"unknown"]);
    }

    #[tokio::test]
    async fn without_a_journal_it_is_settled_all_the_same() {
        let quota = StoredQuota::new(Arc::new(ReferenceStore::default()), Limits::UNLIMITED);
        let intent = quota.intend("user", "").await;
        intent.settle(Amount::bytes(7).into()).await;
        assert_eq!(quota.usage("user").await.unwrap().used, Amount::bytes(7));
    }
}
