//! What documents say of features and files, against what there is.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Documents that are written by a command, and need not be there.
const MADE: &[&str] = &["BENCHMARKS.md"];

fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.join("../..").canonicalize().unwrap()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// What is between two marks, the first of each.
fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    let (_, text) = text
        .split_once(start)
        .unwrap_or_else(|| panic!("no {start:?}"));
    text.split_once(end).map_or(text, |(inside, _)| inside)
}

/// The features in Cargo.toml, without `default`.
fn features() -> BTreeSet<String> {
    let manifest = read("Cargo.toml");
    between(&manifest, "\n[features]\n", "\n[")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(" = "))
        .map(|(name, _)| name.to_owned())
        .filter(|name| name != "default")
        .collect()
}

/// Each text between backquotes.
fn quoted(text: &str) -> impl Iterator<Item = String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned)
}

/// The features in a column of a table: what is between backquotes there.
fn column(table: &str, column: usize) -> BTreeSet<String> {
    table
        .lines()
        .filter_map(|line| line.split('|').nth(column))
        .flat_map(quoted)
        .collect()
}

/// Those of integrations, in the crate docs, and those of libraries, in the docs of `fault`.
fn documented() -> [BTreeSet<String>; 2] {
    let integrations = read("src/lib.rs");
    let integrations = between(&integrations, "//! | feature |", "\n#!");
    let libraries = read("src/fault/libraries.md");
    let libraries = between(&libraries, "| library | features |", "\n\n");
    let mut libraries = column(libraries, 2);
    // The row of the first table ends in a few of the second.
    let integrations = &column(integrations, 1) - &libraries;
    libraries = &libraries - &integrations;
    [integrations, libraries]
}

#[test]
fn each_feature_is_documented() {
    let [integrations, libraries] = documented();
    assert_eq!(&integrations | &libraries, features());
}

#[test]
fn the_readme_names_the_integrations() {
    let [integrations, libraries] = documented();
    let readme = read("README.md");
    let named: BTreeSet<_> = quoted(between(&readme, "**Features.**", "\n\n")).collect();
    assert_eq!(&named - &libraries, integrations);
    assert!(named.is_subset(&features()));
}

#[test]
fn each_integration_is_on_docs_rs() {
    let manifest = read("Cargo.toml");
    let list = between(&manifest, "[package.metadata.docs.rs]\nfeatures = [", "]");
    let built: BTreeSet<_> = list
        .split('"')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect();
    let [mut integrations, _] = documented();
    // It comes with each of the stores.
    integrations.remove("store");
    assert_eq!(built, integrations);
}

/// The targets of links in Markdown, but those to other sites and within the page.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next());
    targets
        .map(|target| target.split('#').next().unwrap_or_default())
        .filter(|target| !target.is_empty() && !target.contains(':'))
}

#[test]
fn links_lead_to_files() {
    let root = root();
    let mut broken = Vec::new();
    for entry in fs::read_dir(&root).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let lost = links(&text).filter(|link| !root.join(link).exists() && !MADE.contains(link));
        broken.extend(lost.map(|link| format!("{}: {link}", path.display())));
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn each_guide_is_in_the_index() {
    let index = read("src/guide/mod.rs");
    let (table, modules) = index.split_once("\n\n").unwrap();
    for entry in fs::read_dir(root().join("src/guide")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let Some(page) = name.strip_suffix(".md") else {
            continue;
        };
        assert!(table.contains(&format!("[`{page}`]")), "{page}");
        assert!(
            modules.contains(&format!("include_str!(\"{name}\")")),
            "{page}"
        );
        assert!(
            modules.contains(&format!("\npub mod {page} {{}}")),
            "{page}"
        );
    }
}
