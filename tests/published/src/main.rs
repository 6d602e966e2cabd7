//! Compares the public interface of the crate with the list that is kept, one item a line:
//! `interface JSON KEPT` fails if they differ, and `interface JSON KEPT --accept` writes the list.
//!
//! JSON is what rustdoc writes with `--output-format json`.

use std::{collections::BTreeSet, env, fs, io, path::PathBuf, process::ExitCode};

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("usage: interface JSON KEPT [--accept]")]
    Usage,
    #[error("{path}: {error}")]
    File { path: PathBuf, error: io::Error },
    #[error(
        "{0}. If rustdoc is newer than public-api, raise its version in tests/published/Cargo.toml"
    )]
    Json(#[from] public_api::Error),
    #[error("no public item in {0}")]
    Empty(PathBuf),
    #[error("the public interface has changed, as shown. `make interface` accepts it")]
    Changed,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("interface: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Error> {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    let (json, kept, accept) = match arguments.as_slice() {
        [json, kept] => (json, kept, false),
        [json, kept, option] if option == "--accept" => (json, kept, true),
        _ => return Err(Error::Usage),
    };
    let (json, kept) = (PathBuf::from(json), PathBuf::from(kept));
    let now = items(&json)?;
    if now.is_empty() {
        return Err(Error::Empty(json));
    }
    if accept {
        let text: String = now.iter().map(|item| format!("{item}\n")).collect();
        return fs::write(&kept, text).map_err(|error| Error::File { path: kept, error });
    }
    let before = fs::read_to_string(&kept).map_err(|error| Error::File { path: kept, error })?;
    let before: Vec<_> = before.lines().map(str::to_owned).collect();
    if before == now {
        return Ok(());
    }
    let [old, new] = [&before, &now].map(|items| items.iter().collect::<BTreeSet<_>>());
    for gone in old.difference(&new) {
        println!("-{gone}");
    }
    for added in new.difference(&old) {
        println!("+{added}");
    }
    Err(Error::Changed)
}

/// Without what every type has or derives, and without the guides, which are documentation only.
fn items(json: &PathBuf) -> Result<Vec<String>, Error> {
    let interface = public_api::Builder::from_rustdoc_json(json)
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(true)
        .omit_auto_derived_impls(true)
        .build()?;
    let items = interface.items().map(ToString::to_string);
    Ok(items.filter(|item| !item.contains("::guide")).collect())
}
