//! What a start creates, and a failed one removes again.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::claim::named;

/// Removes, when it is dropped, what was created: a start that fails leaves nothing behind.
///
/// Once the server has started, [`Self::keep`] it. Folders are removed only if nothing is in them: another program may have put
/// something there meanwhile.
#[derive(Debug, Default)]
#[must_use = "dropped, it removes what was created"]
pub struct Created(Vec<Made>);

#[derive(Debug)]
enum Made {
    /// A folder that may contain what others have made.
    Folder(PathBuf),
    /// A folder with files of this server only.
    Own(PathBuf),
    File(PathBuf),
}

impl Created {
    /// Creates a folder, and those above it, if they are missing. Blocks.
    pub fn folder(&mut self, path: &Path) -> io::Result<()> {
        let missing = path.ancestors().take_while(|path| {
            // The last ancestor of a relative path is empty.
            !path.as_os_str().is_empty() && !path.exists()
        });
        let missing: Vec<_> = missing.map(Path::to_owned).collect();
        // Noted first: the second of two may fail.
        self.0.extend(missing.into_iter().rev().map(Made::Folder));
        fs::create_dir_all(path)
    }

    /// Creates a folder for what only this server writes, or removes all that is in it. Blocks.
    pub fn emptied(&mut self, path: &Path) -> io::Result<()> {
        self.will_be_own(path.to_owned());
        let emptied = fs::create_dir_all(path)
            .and_then(|()| fs::remove_dir_all(path))
            .and_then(|()| fs::create_dir(path));
        emptied.map_err(|error| named(path, &error))
    }

    /// Notes a folder that will be created, with files that only this server writes.
    pub fn will_be_own(&mut self, path: PathBuf) {
        if !path.exists() {
            self.0.push(Made::Own(path));
        }
    }

    /// Notes a database of SQLite that will be created, for this server alone.
    pub fn will_be_database(&mut self, path: &Path) {
        if !path.exists() {
            for suffix in ["", "-wal", "-shm", "-journal"] {
                let mut path = path.as_os_str().to_owned();
                path.push(suffix);
                self.0.push(Made::File(path.into()));
            }
        }
    }

    /// Leaves everything where it is.
    pub fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        // The last first. An error changes nothing: what cannot be removed stays.
        for made in self.0.iter().rev() {
            let _ = match made {
                Made::Folder(path) => fs::remove_dir(path),
                Made::Own(path) => fs::remove_dir_all(path),
                Made::File(path) => fs::remove_file(path),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_created_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        let begin = || {
            let mut created = Created::default();
            created.folder(&path("a/b/c")).unwrap();
            created.will_be_own(path("a/b/c/own"));
            created.will_be_database(&path("a/b/c/data"));
            fs::create_dir_all(path("a/b/c/own/inside")).unwrap();
            for name in ["data", "data-wal"] {
                fs::write(path("a/b/c").join(name), "x").unwrap();
            }
            created
        };
        drop(begin());
        assert!(!path("a").exists());

        let created = begin();
        fs::write(path("a/b/theirs"), "x").unwrap();
        drop(created);
        assert!(path("a/b/theirs").exists() && !path("a/b/c").exists());

        begin().keep();
        drop(begin());
        assert!(path("a/b/c/own/inside").exists() && path("a/b/c/data").exists());
    }
}
