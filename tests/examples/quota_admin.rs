//! The quota admin, from the outside.

use std::{fs, process::Command};

use serde_json::{Value, json};
use tempfile::TempDir;
use test_support::example::path_of;
use tower_storage_guard::{
    Amount,
    quota::Limits,
    store::{HoldId, Reserve, SqliteStore, Store},
};

/// The output of the tool, and its exit code.
pub(crate) struct Said {
    pub(crate) out: String,
    pub(crate) error: String,
    pub(crate) code: Option<i32>,
}

/// Runs the tool on a store.
pub(crate) fn run(store: &str, args: &[&str]) -> Said {
    let output = Command::new(path_of("quota-admin"))
        .args(["--store", store])
        .args(args)
        .output()
        .unwrap();
    Said {
        out: String::from_utf8(output.stdout).unwrap(),
        error: String::from_utf8(output.stderr).unwrap(),
        code: output.status.code(),
    }
}

/// Its output on success.
pub(crate) fn answer(store: &str, args: &[&str]) -> String {
    let said = run(store, args);
    assert_eq!((said.error.as_str(), said.code), ("", Some(0)), "{args:?}");
    said.out
}

/// The same as JSON.
pub(crate) fn json(store: &str, args: &[&str]) -> Value {
    serde_json::from_str(&answer(store, &[args, &["--json"]].concat())).unwrap()
}

#[track_caller]
fn fails(store: &str, args: &[&str], code: i32, words: &str) {
    let said = run(store, args);
    assert_eq!((said.out.as_str(), said.code), ("", Some(code)), "{args:?}");
    let error = said.error;
    assert!(
        error.starts_with("error: ") && error.contains(words),
        "{error}"
    );
    assert!(!error.contains("secret"), "{error}");
}

/// A file of quotas, as a service creates it.
struct File {
    folder: TempDir,
    store: SqliteStore,
}

impl File {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(folder.path().join("quotas.db")).unwrap();
        let file = Self { folder, store };
        let said = run(&file.name(), &["show", "user:1"]);
        assert!(said.error.contains("the store is new or was emptied"));
        assert_eq!(answer(&file.name(), &["counted"]), "");
        file
    }

    fn name(&self) -> String {
        format!("sqlite:{}", self.folder.path().join("quotas.db").display())
    }
}

async fn hold(store: &impl Store, scopes: [&str; 2], bytes: u64) -> HoldId {
    let asked = Reserve::new(HoldId::unique(), scopes, Amount::new(bytes, 1))
        .with_time_to_live(std::time::Duration::from_secs(60));
    store.reserve(&asked).await.unwrap();
    asked.id
}

/// Every command that changes a scope, on any store.
pub(crate) fn corrects(store: &str) {
    assert_eq!(answer(store, &["counted"]), "");
    let account = |used: [i64; 2], limits: Value| {
        json!({
            "scope": "user:1",
            "used": { "bytes": used[0], "objects": used[1] },
            "held": { "bytes": 0, "objects": 0 },
            "unmatched": { "bytes": 0, "objects": 0 },
            "limits": limits,
            "over_ms": { "bytes": null, "objects": null },
        })
    };
    for (args, used) in [
        (&["show"][..], [0, 0]),
        (&["set", "--bytes", "10KiB", "--objects", "3"], [10_240, 3]),
        (&["set", "--bytes", "9KiB"], [9_216, 3]),
        (&["add", "--bytes", "1KiB"], [10_240, 3]),
        (&["add", "--objects", "2"], [10_240, 5]),
        (
            &["subtract", "--bytes", "240", "--objects", "5"],
            [10_000, 0],
        ),
    ] {
        let args = [&args[..1], &["user:1"], &args[1..]].concat();
        assert_eq!(json(store, &args), account(used, Value::Null), "{args:?}");
        assert_eq!(json(store, &["show", "user:1"]), account(used, Value::Null));
    }
    let limits = |bytes, objects, soft_bytes, soft_objects| {
        json!({
            "bytes": bytes,
            "objects": objects,
            "soft_bytes": soft_bytes,
            "soft_objects": soft_objects,
            "grace_ms": null,
        })
    };
    let mut week = limits(Value::Null, Value::Null, json!(9), Value::Null);
    week["grace_ms"] = json!(7 * 24 * 60 * 60 * 1_000_u64);
    let none = Value::Null;
    for (args, own) in [
        (
            &["--bytes", "1GiB", "--soft-objects", "7"][..],
            limits(json!(1 << 30), none.clone(), none.clone(), json!(7)),
        ),
        (
            &["--objects", "0", "--soft-bytes", "5"],
            limits(none.clone(), json!(0), json!(5), none.clone()),
        ),
        (&["--soft-bytes", "9", "--grace", "7days"], week),
        (
            &["--unlimited"],
            limits(none.clone(), none.clone(), none.clone(), none.clone()),
        ),
        (&["--default"], Value::Null),
    ] {
        let args = [&["limit", "user:1"], args].concat();
        assert_eq!(json(store, &args), account([10_000, 0], own), "{args:?}");
    }
    answer(store, &["limit", "user:1", "--bytes", "5"]);
    assert_eq!(json(store, &["remove", "user:1"]), account([0, 0], none));
    assert_eq!(json(store, &["largest"]), json!([]));
}

#[tokio::test]
async fn shows_and_corrects_a_scope() {
    let file = File::new();
    corrects(&file.name());
    // The tool's figures are the service's.
    answer(&file.name(), &["add", "user:1", "--bytes", "7"]);
    answer(&file.name(), &["limit", "user:1", "--soft-bytes", "9"]);
    let account = file.store.account(&"user:1".into()).await.unwrap();
    assert_eq!(account.used, Amount::bytes(7).into());
    assert_eq!(account.own, Some(Limits::UNLIMITED.soft_bytes(9)));
}

#[tokio::test]
async fn tells_people_in_lines_and_tables() {
    let file = File::new();
    let store = &file.name();
    answer(
        store,
        &["set", "everyone", "--bytes", "10GiB", "--objects", "12"],
    );
    answer(
        store,
        &["limit", "everyone", "--bytes", "20GiB", "--objects", "40"],
    );
    answer(store, &["set", "a\u{1b}[2J", "--bytes", "1023"]);
    answer(store, &["limit", "a\u{1b}[2J", "--unlimited"]);
    // Nothing was charged to it.
    let shown = json(store, &["subtract", "user:9", "--bytes", "7"]);
    assert_eq!(shown["used"]["bytes"], 0);
    assert_eq!(shown["unmatched"]["bytes"], 7);
    assert_eq!(
        answer(store, &["show", "everyone"]),
        "scope       everyone\n\
         used        10.0 GiB (10737418240 bytes), 12 objects\n\
         held        0 B (0 bytes), 0 objects\n\
         unmatched   0 B (0 bytes), 0 objects\n\
         limit       20.0 GiB (21474836480 bytes), 40 objects\n\
         soft limit  none\n\
         grace       for ever\n\
         above       no\n"
    );
    let soft = ["--soft-bytes", "1GiB", "--grace", "7days"];
    answer(store, &[&["limit", "everyone"], &soft[..]].concat());
    // The charge crosses it.
    let shown = answer(store, &["add", "everyone", "--objects", "1"]);
    assert!(shown.contains("grace       7days\n"), "{shown}");
    assert!(shown.contains("above       bytes for "), "{shown}");
    let over = &json(store, &["subtract", "everyone", "--objects", "1"])["over_ms"];
    assert!(
        over["bytes"].is_u64() && over["objects"].is_null(),
        "{over}"
    );
    let limits = ["--bytes", "20GiB", "--objects", "40"];
    answer(store, &[&["limit", "everyone"], &limits[..]].concat());
    let id = hold(&file.store, ["everyone", "user:é"], 2048).await;
    answer(store, &["subtract", "user:é", "--bytes", "300"]);
    assert_eq!(
        answer(store, &["largest"]),
        "SCOPE           USED        BYTES  OBJECTS     HELD      LIMIT\n\
         everyone    10.0 GiB  10737418240       12  2.0 KiB   20.0 GiB\n\
         a\\u{1b}[2J    1023 B         1023        0      0 B  unlimited\n\
         user:é        -300 B         -300        0  2.0 KiB    default\n"
    );
    let largest = answer(store, &["largest", "-n", "1"]);
    assert_eq!(largest.lines().count(), 2, "{largest}");
    let holds = answer(store, &["holds", "user:é"]);
    let (heads, row) = holds.trim_end().split_once('\n').unwrap();
    let cells = |line: &str| {
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        cells(heads),
        ["HOLD", "SCOPE", "HELD", "BYTES", "OBJECTS", "EXPIRES", "IN"]
    );
    let row = cells(row);
    assert_eq!(
        row[..6],
        [&id.to_string(), "user:é", "2.0", "KiB", "2048", "1"]
    );
    assert!(
        (30.0..=60.0).contains(&row[6].parse::<f64>().unwrap()),
        "{row:?}"
    );
}

#[tokio::test]
async fn lists_and_drops_holds() {
    let file = File::new();
    let store = &file.name();
    assert_eq!(json(store, &["holds"]), json!([]));
    let id = hold(&file.store, ["user:1", "everyone"], 70).await;
    let other = hold(&file.store, ["user:2", "everyone"], 5).await;
    let mut holds = json(store, &["holds"]);
    let holds = holds.as_array_mut().unwrap();
    assert_eq!(holds.len(), 4);
    for hold in holds {
        let lives = hold["expires_in_ms"].take().as_u64().unwrap();
        assert!((30_000..=60_000).contains(&lives), "{lives}");
    }
    let of_user = json(store, &["holds", "user:2"]);
    assert_eq!(of_user.as_array().unwrap().len(), 1);
    assert_eq!(of_user[0]["id"], other.to_string());
    assert_eq!(of_user[0]["scope"], "user:2");
    assert_eq!(of_user[0]["held"], json!({ "bytes": 5, "objects": 1 }));
    // A shortened list says that there may be more.
    let some = run(store, &["holds", "-n", "1", "--json"]);
    assert!(some.error.contains("there may be more"), "{}", some.error);
    assert_eq!(some.code, Some(0));
    let some: Value = serde_json::from_str(&some.out).unwrap();
    assert_eq!(some.as_array().unwrap().len(), 1);

    let dropped = json(store, &["drop", &id.to_string()]);
    let mut scopes = [0, 1].map(|which| dropped[which]["scope"].as_str().unwrap());
    scopes.sort();
    assert_eq!(scopes, ["everyone", "user:1"]);
    let held = json(store, &["show", "everyone"])["held"].take();
    assert_eq!(held, json!({ "bytes": 5, "objects": 1 }));
    fails(
        store,
        &["drop", &id.to_string()],
        1,
        &format!("there is no hold {id}"),
    );
}

#[tokio::test]
async fn rescans_a_directory() {
    let file = File::new();
    let store = &file.name();
    let dir = file.folder.path().join("files");
    fs::create_dir_all(dir.join("below/far")).unwrap();
    fs::create_dir(dir.join(".hidden")).unwrap();
    for (name, size) in [
        ("a", 100),
        ("below/b", 20),
        ("below/far/c", 3),
        ("below/far/empty", 0),
        (".secret", 7_000),
        (".hidden/d", 50_000),
    ] {
        fs::write(dir.join(name), vec![0; size]).unwrap();
    }
    #[cfg(unix)]
    for (to, link) in [("a", "link"), ("..", "loop"), ("nowhere", "dangling")] {
        std::os::unix::fs::symlink(to, dir.join(link)).unwrap();
    }
    let path = dir.to_str().unwrap();
    answer(store, &["set", "user:1", "--bytes", "1000"]);
    let rescan = |args: &[&str]| {
        json(
            store,
            &[&["rescan", "user:1", "--directory", path], args].concat(),
        )
    };
    let amount = |bytes: i64, objects: i64| json!({ "bytes": bytes, "objects": objects });
    let expected = |before, counted, corrected| {
        json!({
            "scope": "user:1",
            "before": before,
            "counted": counted,
            "corrected": corrected,
            "certain": true,
        })
    };
    assert_eq!(
        rescan(&[]),
        expected(amount(1000, 0), amount(123, 4), amount(-877, 4))
    );
    assert_eq!(
        rescan(&["--hidden"]),
        expected(amount(123, 4), amount(57_123, 6), amount(57_000, 2))
    );
    // During an upload, the figures are consistent as far as the tool can see.
    let id = hold(&file.store, ["user:1", "everyone"], 60_000).await;
    let held = rescan(&[]);
    assert_eq!(held["certain"], false);
    assert_eq!(held["corrected"]["bytes"], 123 - 57_123);
    answer(store, &["drop", &id.to_string()]);
    assert_eq!(
        answer(store, &["rescan", "user:1", "--directory", path]),
        "scope         user:1\n\
         before        123 B (123 bytes), 4 objects\n\
         counted       123 B (123 bytes), 4 objects\n\
         corrected by  0 B (0 bytes), 0 objects\n\
         certain       yes: nothing moved meanwhile\n"
    );
    // An uncountable directory corrects nothing.
    let nowhere = dir.join("nowhere");
    let nowhere = nowhere.to_str().unwrap();
    fails(
        store,
        &["rescan", "user:1", "--directory", nowhere],
        1,
        nowhere,
    );
    assert_eq!(json(store, &["show", "user:1"])["used"], amount(123, 4));
}

#[test]
fn says_what_is_wrong_with_the_command_line() {
    let file = File::new();
    let store = &file.name();
    for (args, words) in [
        (&[][..], "requires a subcommand"),
        (&["look"], "unrecognized subcommand 'look'"),
        (&["show"], "<SCOPE>"),
        (&["set", "user:1"], "--bytes <SIZE>"),
        (
            &["set", "user:1", "--bytes", "much"],
            "'much' for '--bytes <SIZE>'",
        ),
        (&["add", "user:1"], "--bytes <SIZE>"),
        (&["subtract", "user:1", "--objects", "-1"], "--objects"),
        (&["limit", "user:1"], "--unlimited"),
        (
            &["limit", "user:1", "--unlimited", "--bytes", "1"],
            "cannot be used with",
        ),
        (
            &["limit", "user:1", "--default", "--unlimited"],
            "cannot be used with",
        ),
        (&["largest", "-n", "x"], "'x' for '-n <NUMBER>'"),
        (&["drop", "xyz"], "'xyz' for '<ID>'"),
        (&["rescan", "user:1"], "--directory <PATH>"),
    ] {
        fails(store, args, 2, words);
    }
    for (store, words) in [
        ("memory:", "the memory of another process"),
        ("sqlite:", "sqlite: needs a path here"),
        (
            "mysql://u:secret@h/d",
            "invalid value for '--store <STORE>': expected",
        ),
        ("secret", "expected memory:, sqlite:PATH"),
        (
            "postgres://u:secret@h:port/d",
            "that is no address of PostgreSQL",
        ),
    ] {
        fails(store, &["show", "user:1"], 2, words);
    }
}

#[test]
fn says_when_there_is_no_such_store() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wrong.db");
    let name = format!("sqlite:{}", path.display());
    fails(&name, &["show", "user:1"], 1, &format!("error: {name}: "));
    assert!(!path.exists());
    // A file of another program.
    let raw = rusqlite::Connection::open(&path).unwrap();
    raw.execute_batch("CREATE TABLE users (id)").unwrap();
    fails(
        &name,
        &["show", "user:1"],
        1,
        "there are no quotas in the file",
    );
    let tables = "SELECT count(*) FROM sqlite_master";
    let tables: i64 = raw.query_row(tables, [], |row| row.get(0)).unwrap();
    assert_eq!(tables, 1);
    // No server listens there.
    fails(
        "postgres://user:secret@127.0.0.1:1/quotas",
        &["show", "user:1"],
        1,
        "error: postgres://127.0.0.1:1/quotas: ",
    );
}

#[test]
fn says_when_the_store_is_away_in_the_middle() {
    let file = File::new();
    let path = file.folder.path().join("quotas.db");
    let raw = rusqlite::Connection::open(path).unwrap();
    raw.execute_batch("BEGIN IMMEDIATE").unwrap();
    fails(
        &file.name(),
        &["set", "user:1", "--bytes", "1"],
        1,
        "database is locked",
    );
}

#[cfg(target_os = "linux")]
#[tokio::test]
#[ignore = "needs postgresql"]
async fn it_does_the_same_in_postgresql() {
    use test_support::postgres::Server;

    let server = Server::new();
    let store = &server.url();
    fails(
        store,
        &["show", "user:1"],
        1,
        "there are no quotas in the database",
    );
    fails(
        store,
        &["show", "user:1"],
        1,
        "error: postgres://127.0.0.1:",
    );
    server.store().migrate().await.unwrap();
    works_on(store, &server.store()).await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
#[ignore = "needs redis-server"]
async fn it_does_the_same_in_redis() {
    use test_support::redis::Server;

    let server = Server::start();
    works_on(&server.url(), &server.store().await).await;
    let unreachable = "redis://user:secret@127.0.0.1:1";
    fails(
        unreachable,
        &["show", "user:1"],
        1,
        "error: redis://127.0.0.1:1: ",
    );
}

#[cfg(target_os = "linux")]
async fn works_on(name: &str, store: &impl Store) {
    corrects(name);
    let id = hold(store, ["{1}user", "{1}tenant"], 70).await;
    let dropped = json(name, &["drop", &id.to_string()]);
    assert_eq!(dropped.as_array().unwrap().len(), 2);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), [0; 50]).unwrap();
    let path = dir.path().to_str().unwrap();
    let rescan = json(name, &["rescan", "{1}user", "--directory", path]);
    assert_eq!(rescan["certain"], true);
    assert_eq!(rescan["corrected"], json!({ "bytes": 50, "objects": 1 }));
    let largest = json(name, &["largest"]);
    assert_eq!(largest[0]["scope"], "{1}user");
}
