//! Changes to files, noted before they are made: a process that is killed in between is charged for what it has made.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use tower_storage_guard::{Amount, quota::Change};

/// A file that gets its final name, or that is removed. Paths are relative to the folder of all files.
#[derive(Clone, Debug)]
#[cfg_attr(test, derive(Eq, PartialEq))]
pub struct FileChange {
    /// Its temporary name. None if it is removed.
    pub from: Option<PathBuf>,
    pub path: PathBuf,
    pub size: u64,
    /// What it replaces.
    pub replaced: Amount,
}

/// No name has it.
const SEPARATOR: char = '\0';

impl FileChange {
    pub fn removal(path: PathBuf, size: u64) -> Self {
        Self {
            from: None,
            path,
            size,
            replaced: Amount::ZERO,
        }
    }

    /// What it adds and what it removes, once it is made.
    fn amounts(&self) -> (Amount, Amount) {
        let file = Amount::new(self.size, 1);
        match self.from {
            Some(_) => (file, self.replaced),
            None => (Amount::ZERO, file),
        }
    }

    /// Whether it was made. Nothing else changes these files in between.
    fn is_made(&self, root: &Path) -> io::Result<bool> {
        let size = |path: &Path| match fs::symlink_metadata(root.join(path)) {
            Ok(found) => Ok(Some(found.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        let at_path = size(&self.path)?;
        Ok(match &self.from {
            Some(from) => size(from)?.is_none() && at_path == Some(self.size),
            None => at_path.is_none(),
        })
    }
}

/// The change to what is stored, by these changes to files.
pub fn sum<'a>(changes: impl IntoIterator<Item = &'a FileChange>) -> Change {
    let (mut added, mut removed) = (Amount::ZERO, Amount::ZERO);
    for change in changes {
        let (adds, removes) = change.amounts();
        (added, removed) = (added + adds, removed + removes);
    }
    Change::between(added, removed)
}

/// The note of changes, for [`made`].
pub fn note(changes: &[FileChange]) -> String {
    let fields = changes.iter().flat_map(|change| {
        let from = change.from.as_deref().unwrap_or(Path::new(""));
        [
            from.to_string_lossy().into_owned(),
            change.path.to_string_lossy().into_owned(),
            change.size.to_string(),
            change.replaced.bytes.to_string(),
            change.replaced.objects.to_string(),
        ]
    });
    let fields: Vec<_> = fields.collect();
    fields.join(SEPARATOR.encode_utf8(&mut [0; 4]))
}

/// Looks which of the noted changes were made to the files in this folder. Blocks.
pub fn made(root: &Path, note: &[u8]) -> io::Result<Change> {
    let changes = read(note).ok_or_else(|| {
        let what = "there is a note in the quotas' journal that this program did not write";
        io::Error::new(io::ErrorKind::InvalidData, what)
    })?;
    let is_made: Vec<_> = changes
        .iter()
        .map(|change| change.is_made(root))
        .collect::<Result<_, _>>()?;
    let made = changes.iter().enumerate().filter(|(place, change)| {
        // A later file of the same request may have replaced it.
        let mut those_after = changes.iter().zip(&is_made).skip(*place);
        those_after.any(|(later, is_made)| *is_made && later.path == change.path)
    });
    let made = made.map(|(_, change)| change);
    Ok(sum(made))
}

fn read(note: &[u8]) -> Option<Vec<FileChange>> {
    let mut fields = str::from_utf8(note).ok()?.split(SEPARATOR);
    let mut changes = Vec::new();
    while let Some(from) = fields.next() {
        let path = fields.next()?.into();
        let mut number = || fields.next()?.parse().ok();
        changes.push(FileChange {
            from: (!from.is_empty()).then(|| from.into()),
            path,
            size: number()?,
            replaced: Amount::new(number()?, number()?),
        });
    }
    Some(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(from: &str, path: &str, size: u64, replaced: Amount) -> FileChange {
        FileChange {
            from: Some(from.into()),
            path: path.into(),
            size,
            replaced,
        }
    }

    #[test]
    fn a_note_says_what_it_was_made_of() {
        let changes = [
            file(".upload-1-1", "a\n\"b\" 🦀", 7, Amount::ZERO),
            FileChange::removal("user/c".into(), 0),
            file(
                "user/.upload-1-2",
                "user/d",
                u64::MAX,
                Amount::new(u64::MAX, 1),
            ),
        ];
        assert_eq!(read(note(&changes).as_bytes()).unwrap(), changes);
        for wrong in ["", "a", "a\0b\0c\0d\0e", "a\0b\x001\x002"] {
            assert!(made(Path::new("/"), wrong.as_bytes()).is_err(), "{wrong:?}");
        }
    }

    /// Made one after the other, and killed after any of them.
    #[test]
    fn what_was_made_is_found() {
        let old = Amount::new(3, 1);
        let changes = [
            file("1", "a", 10, old),
            file("2", "b", 20, Amount::ZERO),
            // The name of another file of the request.
            file("3", "a", 40, Amount::new(10, 1)),
            FileChange::removal("gone".into(), 5),
        ];
        let note = note(&changes);
        for count in 0..=changes.len() {
            let root = tempfile::tempdir().unwrap();
            let write =
                |name: &str, size| fs::write(root.path().join(name), vec![b'x'; size]).unwrap();
            for (name, size) in [("1", 10), ("2", 20), ("3", 40), ("a", 3), ("gone", 5)] {
                write(name, size);
            }
            for change in &changes[..count] {
                let path = root.path().join(&change.path);
                match &change.from {
                    Some(from) => fs::rename(root.path().join(from), path).unwrap(),
                    None => fs::remove_file(path).unwrap(),
                }
            }
            let found = made(root.path(), note.as_bytes()).unwrap();
            assert_eq!(found, sum(&changes[..count]), "after {count}");
        }
    }
}
