use std::{
    collections::{BTreeMap, VecDeque},
    fs, iter,
    path::Path,
};

use proptest::{collection::vec, prelude::*, sample::Index};
use tempfile::{TempDir, tempdir};

use super::{segment::Segment, *};

const FILES: [&str; 2] = ["journal.0", "journal.1"];

/// What can be compared: scopes, and a change or the note of an intent.
type Content = BTreeMap<HoldId, (Vec<String>, Result<Change, Vec<u8>>)>;

fn content(outstanding: &Outstanding) -> Content {
    let entries = outstanding.iter().map(|(id, entry)| {
        let (scopes, what) = match entry {
            Entry::Charge(Charge { scopes, change }) => (scopes, Ok(*change)),
            Entry::Intent(Intended { scopes, note }) => (scopes, Err(note.to_vec())),
        };
        (
            *id,
            (scopes.iter().map(ToString::to_string).collect(), what),
        )
    });
    entries.collect()
}

fn read(directory: &Path, size: u64) -> Content {
    content(&Segments::open(directory, size).unwrap().1)
}

fn bytes(bytes: i64) -> Change {
    Change { bytes, objects: 0 }
}

/// Records of a few ids, so that they add up and are done.
fn records() -> impl Strategy<Value = Vec<Record>> {
    let ids: [HoldId; 4] = std::array::from_fn(|_| HoldId::unique());
    let scopes = || vec(any::<String>(), 0..3);
    let intent =
        (0..4usize, scopes(), vec(any::<u8>(), 0..20)).prop_map(move |(id, scopes, note)| {
            let (scopes, note) = (scopes.into(), note.into());
            Record::Intent(ids[id], Intended { scopes, note })
        });
    let charge =
        (0..4usize, scopes(), any::<(i64, i64)>()).prop_map(move |(id, scopes, change)| {
            let (bytes, objects) = change;
            let charge = Charge {
                scopes: scopes.into(),
                change: Change { bytes, objects },
            };
            Record::Charge(ids[id], charge)
        });
    let done = (0..4usize).prop_map(move |id| Record::Done(ids[id]));
    vec(prop_oneof![1 => intent, 2 => charge, 1 => done], 1..6)
}

fn whole(bytes: &[u8]) -> Option<Content> {
    match Segment::read(bytes) {
        Segment::Whole(_, outstanding) => Some(content(&outstanding)),
        Segment::Empty => None,
        Segment::OtherFormat(other) => panic!("it is of this format, and not of {other}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(test_support::times(128)))]

    /// Killed while it writes: the kernel has taken some of it, and behind that anything may stand.
    #[test]
    fn what_was_written_before_a_kill_is_read_after_it(
        batches in vec(records(), 1..20),
        cut: Index,
        tail: Vec<u8>,
        size in 300..2_000u64,
    ) {
        let directory = tempdir().unwrap();
        let (mut segments, mut all) = Segments::open(directory.path(), size).unwrap();
        let last = batches.len() - 1;
        for (number, batch) in batches.into_iter().enumerate() {
            let files = FILES.map(|name| fs::read(directory.path().join(name)).unwrap());
            // Whatever a prefix of the batch leads to may be found.
            let mut found = vec![content(&all)];
            for record in &batch {
                record.clone().apply(&mut all);
                found.push(content(&all));
            }
            if !segments.append(&batch) {
                segments.begin(&all).unwrap();
                // All or nothing.
                found.drain(1..found.len() - 1);
            }
            if number < last {
                continue;
            }
            let written = iter::zip(FILES, &files).find_map(|(name, before)| {
                let after = fs::read(directory.path().join(name)).unwrap();
                (after != *before).then_some((name, before, after))
            });
            let (name, before, after) = written.expect("only one is written");
            let first = iter::zip(&after, before).position(|(new, old)| new != old);
            let first = first.unwrap_or_else(|| after.len().min(before.len()));
            drop(segments);
            prop_assert_eq!(&read(directory.path(), size), &content(&all));

            let cut = first + cut.index(after.len() - first + 1);
            let mut torn = after[..cut].to_vec();
            torn.extend(before.get(cut..).unwrap_or_default());
            for (byte, other) in torn[cut..].iter_mut().zip(tail) {
                *byte = other;
            }
            fs::write(directory.path().join(name), torn).unwrap();
            let read = read(directory.path(), size);
            prop_assert!(found.contains(&read), "{:?} in place of {:?}", read, found);
            break;
        }
    }

    #[test]
    fn no_name_and_no_figure_is_changed(records in records(), tail: Vec<u8>) {
        let mut all = Outstanding::new();
        records.iter().cloned().for_each(|record| record.apply(&mut all));
        let head = segment::Head { generation: 1, salt: HoldId::unique() };
        // As written one by one, and as carried over to another segment.
        let mut one_by_one = head.begin(&Outstanding::new());
        one_by_one.extend(head.append(&records));
        for mut written in [one_by_one, head.begin(&all)] {
            written.extend(&tail);
            prop_assert_eq!(whole(&written), Some(content(&all)));
        }
    }

    #[test]
    fn no_bytes_are_too_odd(bytes: Vec<u8>) {
        prop_assert_eq!(whole(&bytes), None);
    }
}

/// Of the same length as the new one, so that its records stand where the new ones would.
#[test]
fn what_an_older_generation_has_left_is_not_read() {
    let [one, other] = [1, 2].map(|generation| segment::Head {
        generation,
        salt: HoldId::unique(),
    });
    let charge = |bytes| {
        let charge = Charge {
            scopes: "user".into(),
            change: self::bytes(bytes),
        };
        Record::Charge(HoldId::unique(), charge)
    };
    let mut old = one.begin(&Outstanding::new());
    old.extend(one.append(&[charge(1), charge(2)]));
    let mut new = other.begin(&Outstanding::new());
    new.extend(other.append(&[charge(3)]));
    new.extend(&old[new.len()..]);
    assert_eq!(new.len(), old.len());
    assert_eq!(whole(&new).unwrap().len(), 1);
    assert_eq!(whole(&old).unwrap().len(), 2);
}

#[test]
fn another_format_is_left_alone() {
    for format in ["1", "2", "10"] {
        let directory = tempdir().unwrap();
        let written =
            format!("tower-storage-guard journal {format}\nwhatever it says").into_bytes();
        fs::write(directory.path().join(FILES[1]), &written).unwrap();
        let error = Journal::open(directory.path()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let text = error.to_string();
        assert!(text.contains("another version"), "{text}");
        assert!(text.contains(&format!("its format is {format}")), "{text}");
        assert_eq!(fs::read(directory.path().join(FILES[1])).unwrap(), written);
    }
}

/// The first write to a new file may be cut anywhere, and is not taken for another format then.
#[test]
fn a_first_line_that_was_cut_is_no_other_format() {
    let head = segment::Head {
        generation: 1,
        salt: HoldId::unique(),
    };
    let begun = head.begin(&Outstanding::new());
    for length in 0..begun.len() {
        let mut cut = begun[..length].to_vec();
        assert_eq!(whole(&cut), None);
        cut.resize(begun.len() + 100, 0);
        assert_eq!(whole(&cut), None);
    }
    assert!(whole(&begun).is_some());
}

#[test]
fn only_one_has_it_open() {
    let directory = tempdir().unwrap();
    let journal = Journal::open(directory.path()).unwrap();
    let error = Journal::open(directory.path()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
    assert!(
        error.to_string().contains("another process or another"),
        "{error}"
    );
    drop(journal);
    Journal::open(directory.path()).unwrap();
}

/// A directory, and a journal in it that writes.
fn started(size: u64) -> (TempDir, Journal) {
    let directory = tempdir().unwrap();
    let mut journal = Journal::with_size(directory.path(), size).unwrap();
    journal.start();
    (directory, journal)
}

/// Waits until all is written, and opens it again.
async fn reopened(directory: &Path, journal: Journal) -> Journal {
    drop(journal);
    loop {
        match Journal::open(directory) {
            Ok(journal) => return journal,
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ResourceBusy),
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn sum(left: &[Settlement]) -> i64 {
    left.iter().map(|one| one.change.bytes).sum()
}

#[tokio::test]
async fn what_is_noted_under_one_id_adds_up_until_it_is_done() {
    let (directory, journal) = started(SIZE);
    let (lease, other, user) = (HoldId::unique(), HoldId::unique(), Scopes::from("user"));
    for change in [5, -2, 4] {
        journal.note(lease, &user, bytes(change)).await;
    }
    journal.note(other, &user, bytes(100)).await;
    assert!(journal.is_written());
    journal.done([other]);
    let mut journal = reopened(directory.path(), journal).await;
    let [left] = &journal.left()[..] else {
        panic!("{:?}", journal.left())
    };
    assert_eq!((left.id, left.change), (lease, bytes(7)));
    // Noted now, and not left.
    journal.start();
    journal.note(HoldId::unique(), &user, bytes(1)).await;
    assert_eq!(journal.left().len(), 1);
    journal.done([lease]);
    assert_eq!(journal.left().len(), 0);
    let journal = reopened(directory.path(), journal).await;
    assert_eq!(sum(&journal.left()), 1);
}

#[tokio::test]
async fn what_is_discarded_is_not_left_to_the_next_process() {
    let (directory, journal) = started(SIZE);
    let user = Scopes::from("user");
    journal.note(HoldId::unique(), &user, bytes(5)).await;
    let mut journal = reopened(directory.path(), journal).await;
    assert_eq!(sum(&journal.left()), 5);
    journal.discard().unwrap();
    assert!(journal.left().is_empty() && journal.is_written());
    // Killed right after it.
    let mut journal = reopened(directory.path(), journal).await;
    assert!(journal.left().is_empty());
    journal.start();
    journal.note(HoldId::unique(), &user, bytes(1)).await;
    let journal = reopened(directory.path(), journal).await;
    assert_eq!(sum(&journal.left()), 1);
}

#[tokio::test]
async fn files_stay_as_large_as_they_are() {
    let (directory, journal) = started(SIZE);
    let sizes = || FILES.map(|name| fs::metadata(directory.path().join(name)).unwrap().len());
    let user = Scopes::from(["user:42", "collection:/photos/2026"]);
    let mut open = VecDeque::new();
    for number in 0..10_000 {
        let id = HoldId::unique();
        let noted = journal.note(id, &user, bytes(1));
        open.push_back(id);
        if open.len() > 1_000 {
            journal.done(open.pop_front());
        }
        // Some writes have one charge, and some have several.
        if number % 10 == 0 {
            noted.await;
        }
    }
    assert_eq!(sizes(), [SIZE; 2]);
    let journal = reopened(directory.path(), journal).await;
    assert_eq!(sum(&journal.left()), 1_000);
    for name in FILES {
        assert!(whole(&fs::read(directory.path().join(name)).unwrap()).is_some());
    }
}

/// More than a segment takes: it grows, and is not copied with every write.
#[tokio::test]
async fn a_segment_grows_and_shrinks_again() {
    const SMALL: u64 = 4_096;
    let (directory, journal) = started(SMALL);
    let sizes = || FILES.map(|name| fs::metadata(directory.path().join(name)).unwrap().len());
    let user = Scopes::from("user");
    let ids: Vec<_> = (0..1_000).map(|_| HoldId::unique()).collect();
    for id in &ids {
        journal.note(*id, &user, bytes(1)).await;
    }
    assert!(
        sizes().into_iter().max() > Some(10 * SMALL),
        "{:?}",
        sizes()
    );
    assert!(
        Segments::open(directory.path(), SMALL).is_err(),
        "it is locked"
    );
    journal.done(ids);
    // Enough for both to be begun anew.
    for _ in 0..2_000 {
        let id = HoldId::unique();
        journal.note(id, &user, bytes(1)).await;
        journal.done([id]);
    }
    assert_eq!(sizes(), [SMALL; 2]);
    assert_eq!(sum(&reopened(directory.path(), journal).await.left()), 0);
}

/// A segment is begun with it, and it is not written behind that once more.
#[test]
fn what_is_noted_while_a_segment_is_begun_counts_once() {
    let directory = tempdir().unwrap();
    let mut journal = Journal::open(directory.path()).unwrap();
    let mut segments = journal.segments.take().unwrap();
    let (lease, user) = (HoldId::unique(), Scopes::from("user"));
    let noted = |change| drop(journal.note(lease, &user, bytes(change)));
    noted(1);
    journal.queue.write(&mut segments);
    noted(10);
    segments.begin(&journal.queue.all()).unwrap();
    assert!(journal.queue.state().next.told.is_empty());
    noted(100);
    journal.queue.write(&mut segments);
    drop(segments);
    let journal = Journal::open(directory.path()).unwrap();
    assert_eq!(sum(&journal.left()), 111);
}

#[tokio::test]
async fn what_was_intended_is_resolved_once() {
    let (directory, journal) = started(1_000);
    let user = Scopes::from("user");
    let [charged, unmade, made, left] = std::array::from_fn(|_| HoldId::unique());
    for (id, note) in [
        (charged, "charged"),
        (unmade, "unmade"),
        (made, "made"),
        (left, "left"),
    ] {
        journal.intend(id, &user, note.as_bytes()).await;
    }
    journal.note(charged, &user, bytes(1)).await;
    journal.done([unmade]);
    let mut journal = reopened(directory.path(), journal).await;
    assert_eq!(sum(&journal.left()), 1);

    // Nothing is resolved unless all is.
    let failed = journal.resolve(|note| match note {
        b"made" => Ok(bytes(10)),
        _ => Err(io::ErrorKind::PermissionDenied.into()),
    });
    assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    assert_eq!(sum(&journal.left()), 1);
    let mut asked = Vec::new();
    let resolved = journal.resolve(|note| {
        asked.push(note.to_vec());
        Ok(if note == b"made" {
            bytes(10)
        } else {
            Change::ZERO
        })
    });
    resolved.unwrap();
    asked.sort();
    assert_eq!(asked, [b"left", b"made"]);
    let of = |journal: &Journal, id| {
        let left = journal.left();
        let found = left.iter().find(|settlement| settlement.id == id);
        found.map(|settlement| (settlement.scopes.clone(), settlement.change))
    };
    assert_eq!(of(&journal, made), Some((user.clone(), bytes(10))));

    // It is written, even if nothing was started.
    drop(journal);
    let mut journal = Journal::open(directory.path()).unwrap();
    journal
        .resolve(|note| panic!("{note:?} was resolved"))
        .unwrap();
    assert_eq!(sum(&journal.left()), 11);
    assert_eq!(of(&journal, made), Some((user, bytes(10))));
}

/// Segments that are full all the time, and many at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_note_at_once_and_each_counts_once() {
    let (directory, journal) = started(1_000);
    let journal = Arc::new(journal);
    let tasks = (0..8).map(|_| {
        let journal = Arc::clone(&journal);
        tokio::spawn(async move {
            let (lease, user) = (HoldId::unique(), Scopes::from("user"));
            for number in 0..500 {
                drop(journal.note(lease, &user, bytes(1)));
                let id = HoldId::unique();
                let noted = journal.note(id, &user, bytes(1_000_000));
                if number % 4 == 0 {
                    noted.await;
                }
                journal.done([id]);
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let journal = Arc::into_inner(journal).unwrap();
    let journal = reopened(directory.path(), journal).await;
    assert_eq!((journal.left().len(), sum(&journal.left())), (8, 4_000));
}

/// A pipe without a reader stands for a disk that hangs.
#[cfg(unix)]
#[tokio::test]
async fn a_disk_that_hangs_is_not_waited_for() {
    use std::{io::Read, os::fd::OwnedFd};

    let directory = tempdir().unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let log = told.clone();
    let journal = Journal::open(directory.path()).unwrap();
    let mut journal = journal.observer(move |event: &Event<'_>| {
        let is_back = match event {
            Event::JournalAway => false,
            Event::JournalBack { .. } => true,
            other => panic!("{other:?} is not of a journal"),
        };
        log.lock().unwrap().push(is_back);
    });
    let (mut reader, writer) = io::pipe().unwrap();
    let hangs = fs::File::from(OwnedFd::from(writer));
    let segments = journal.segments.take().unwrap();
    journal.segments = Some(segments.that_go_on_in(hangs));
    journal.queue.state().records = Some(Vec::new());
    journal.start();
    let (id, large) = (HoldId::unique(), Scopes::from("user".repeat(100_000)));
    let began = Instant::now();
    journal.note(id, &large, bytes(1)).await;
    assert!(began.elapsed() >= PATIENCE, "the pipe has taken it");
    assert!(!journal.is_written());
    assert_eq!(*told.lock().unwrap(), [false]);
    // Later charges are not waited for.
    let began = Instant::now();
    journal.note(HoldId::unique(), &large, bytes(2)).await;
    journal.note(id, &large, bytes(4)).await;
    assert!(began.elapsed() < PATIENCE / 2);

    // It goes on, and all is written that was missed.
    std::thread::spawn(move || reader.read_to_end(&mut Vec::new()));
    let began = Instant::now();
    while !journal.is_written() {
        assert!(began.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let journal = reopened(directory.path(), journal).await;
    assert_eq!((journal.left().len(), sum(&journal.left())), (2, 7));
    assert_eq!(*told.lock().unwrap(), [false, true], "each once");
}

#[test]
fn a_journal_without_its_runtime_is_not_waited_for() {
    let directory = tempdir().unwrap();
    let mut journal = Journal::open(directory.path()).unwrap();
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let first = runtime();
    let entered = first.enter();
    journal.start();
    let noted = journal.note(HoldId::unique(), &"user".into(), bytes(1));
    drop(entered);
    drop(first);
    let second = runtime();
    second.block_on(async {
        noted.await;
        journal
            .note(HoldId::unique(), &"user".into(), bytes(1))
            .await;
    });
    assert!(!journal.is_written());
}
