//! Every package that the workspace builds is one that `deny.toml` allows: its licence, its name and where it comes from.

use std::{fs, path::Path, process::Command};

use serde::Deserialize;
use spdx::{Expression, Licensee, ParseMode};

/// How Cargo names the only source that is allowed.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// What `deny.toml` may say. A setting that is not checked here is an error, and so is not overlooked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Deny {
    graph: Graph,
    licenses: Licenses,
    bans: Bans,
    sources: Sources,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Graph {
    all_features: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Licenses {
    allow: Vec<String>,
    private: Private,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Private {
    ignore: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Bans {
    multiple_versions: String,
    wildcards: String,
    deny: Vec<Banned>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Banned {
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Sources {
    unknown_registry: String,
    unknown_git: String,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    /// `None` is a path.
    source: Option<String>,
    /// Empty in a package that is not published.
    publish: Option<Vec<String>>,
}

/// What is wrong with one package.
fn faults(package: &Package, deny: &Deny, allowed: &[Licensee]) -> Vec<String> {
    let of = |fault: String| format!("{} {}: {fault}", package.name, package.version);
    let mut faults = Vec::new();
    let private = package.source.is_none() && package.publish.as_ref().is_some_and(Vec::is_empty);
    if !private {
        let text = package.license.as_deref().unwrap_or_default();
        match Expression::parse_mode(text, ParseMode::LAX) {
            Ok(expression) => {
                let allows =
                    |needed: &spdx::LicenseReq| allowed.iter().any(|one| one.satisfies(needed));
                if !expression.evaluate(allows) {
                    faults.push(of(format!("`{text}` is not allowed")));
                }
            }
            Err(error) => faults.push(of(format!("no licence in `{text}`: {error}"))),
        }
    }
    if deny
        .bans
        .deny
        .iter()
        .any(|banned| banned.name == package.name)
    {
        faults.push(of("is banned".to_owned()));
    }
    if let Some(source) = &package.source
        && source != REGISTRY
    {
        faults.push(of(format!("comes from {source}")));
    }
    faults
}

fn deny() -> (Deny, Vec<Licensee>) {
    let text = fs::read_to_string(root().join("deny.toml")).unwrap();
    let deny: Deny = toml::from_str(&text).unwrap();
    let allowed = deny
        .licenses
        .allow
        .iter()
        .map(|one| Licensee::parse(one).unwrap())
        .collect();
    (deny, allowed)
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

#[test]
fn each_package_is_allowed() {
    let (deny, allowed) = deny();
    assert!(deny.graph.all_features && deny.licenses.private.ignore);
    assert_eq!(
        [&deny.bans.multiple_versions, &deny.bans.wildcards],
        ["allow"; 2]
    );
    assert_eq!(
        [&deny.sources.unknown_registry, &deny.sources.unknown_git],
        ["deny"; 2]
    );

    let cargo = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version=1",
            "--all-features",
            "--locked",
        ])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        cargo.status.success(),
        "{}",
        String::from_utf8_lossy(&cargo.stderr)
    );
    let metadata: Metadata = serde_json::from_slice(&cargo.stdout).unwrap();
    // The classified libraries alone bring hundreds.
    assert!(metadata.packages.len() > 100);
    let faults: Vec<_> = metadata
        .packages
        .iter()
        .flat_map(|package| faults(package, &deny, &allowed))
        .collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));

    let used: Vec<_> = metadata
        .packages
        .iter()
        .filter_map(|package| package.license.as_deref())
        .collect();
    for licence in &deny.licenses.allow {
        assert!(
            used.iter().any(|text| text.contains(licence)),
            "no package needs `{licence}`"
        );
    }
}

#[test]
fn what_is_not_allowed_is_found() {
    let (deny, allowed) = deny();
    let count = |name: &str, license: Option<&str>, source: Option<&str>, publish| {
        let package = Package {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            license: license.map(str::to_owned),
            source: source.map(str::to_owned),
            publish,
        };
        faults(&package, &deny, &allowed).len()
    };
    let licence = |text| count("one", text, Some(REGISTRY), None);
    assert_eq!(licence(Some("MIT/GPL-3.0-only")), 0);
    assert_eq!(licence(Some("MIT AND GPL-3.0-only")), 1);
    assert_eq!(licence(Some("GPL-3.0-only")), 1);
    assert_eq!(licence(None), 1);
    let mit = Some("MIT");
    assert_eq!(count("openssl-sys", mit, Some(REGISTRY), None), 1);
    let git = Some("git+https://example.org/one");
    assert_eq!(count("one", mit, git, None), 1);
    // A member of the workspace, and one that would be published.
    assert_eq!(count("one", None, None, Some(Vec::new())), 0);
    assert_eq!(count("one", None, None, None), 1);
}
