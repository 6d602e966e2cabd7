//! Small crates with one violation each, and clean ones that resemble violations.

use std::{fs, path::Path};

use test_arrows::{Crate, Exception, Order, ReadError, Report};

/// Checks a crate of `files`, whose names are below `src`.
fn check(files: &[(&str, &str)], order: Order<'_>) -> Report {
    read(files).unwrap().check(&order)
}

fn read(files: &[(&str, &str)]) -> Result<Crate, ReadError> {
    let folder = tempfile::tempdir().unwrap();
    for (name, source) in files {
        let file = folder.path().join("src").join(name);
        fs::create_dir_all(file.parent().unwrap_or(Path::new(""))).unwrap();
        fs::write(file, source).unwrap();
    }
    Crate::read(folder.path())
}

fn violations(files: &[(&str, &str)], layers: &[&[&str]]) -> Vec<String> {
    let order = Order {
        layers,
        exceptions: &[],
    };
    let report = check(files, order);
    report.violations.iter().map(ToString::to_string).collect()
}

const ROOT: &str = "mod a; mod b; pub use b::B; pub use tower::Layer;";
const B: &str = "
    pub(crate) use self::inner::Inner;
    use crate::a::A;
    pub(crate) mod inner { pub(crate) struct Inner; pub(crate) struct Other; }
    pub struct B;
    pub(crate) enum Kind { One, Two }
    pub(crate) trait Trait { type Of; }
    pub(crate) const C: u8 = 1;
    pub(crate) fn f() {}
    macro_rules! m { () => {} }
    pub(crate) use m;";

/// The violations in `a`, below `b`, which imports it.
fn in_a(a: &str) -> Vec<String> {
    let order = Order {
        layers: &[&["a"], &["b"]],
        exceptions: &[],
    };
    let report = check(&[("lib.rs", ROOT), ("a.rs", a), ("b/mod.rs", B)], order);
    let cycle = vec!["a".to_owned(), "b".to_owned()];
    let is_arrow = report.arrows.iter().any(|arrow| arrow.from == "a");
    assert_eq!(report.cycles.contains(&cycle), is_arrow, "{report}");
    report.violations.iter().map(ToString::to_string).collect()
}

/// The violations of `a` are these lines and paths, each an import of `b`.
#[track_caller]
fn upward(a: &str, expected: &[(usize, &str)]) {
    let expected: Vec<_> = expected
        .iter()
        .map(|(line, path)| format!("src/a.rs:{line}: `{path}`: a imports b of a higher layer"))
        .collect();
    assert_eq!(in_a(a), expected);
}

#[track_caller]
fn clean(a: &str) {
    assert_eq!(in_a(a), [""; 0]);
}

#[test]
fn nested_braces() {
    upward(
        "use {\n  std::fmt,\n  crate::{\n    a::A,\n    b::{\n      B,\n      Kind::{self, One},\n    },\n  },\n};",
        &[
            (6, "crate::b::B"),
            (7, "crate::b::Kind"),
            (7, "crate::b::Kind::One"),
        ],
    );
}

#[test]
fn super_super() {
    upward(
        "mod deep { mod er { use super::super::super::b::B; } }",
        &[(1, "super::super::super::b::B")],
    );
    upward(
        "mod deep { fn f() { super::super::b::f() } }",
        &[(1, "super::super::b::f")],
    );
    upward("use super::b;", &[(1, "super::b")]);
}

#[test]
fn self_and_renamed() {
    upward(
        "use self::super::b::B as Other;",
        &[(1, "self::super::b::B as Other")],
    );
    // Each use of the module under its new name counts too.
    upward(
        "use crate::b as other;\nfn f() { other::f() }\nuse other::B;\nuse self::other::Kind;",
        &[
            (1, "crate::b as other"),
            (2, "other::f"),
            (3, "other::B"),
            (4, "self::other::Kind"),
        ],
    );
    upward("use crate::b::Trait as _;", &[(1, "crate::b::Trait as _")]);
    upward(
        "use crate::b::{self as other};",
        &[(1, "crate::b as other")],
    );
    upward(
        "extern crate self as this;\nuse this::b::B;",
        &[(2, "this::b::B")],
    );
}

#[test]
fn glob() {
    upward("use crate::b::*;", &[(1, "crate::b::*")]);
    upward("use crate::b::Kind::*;", &[(1, "crate::b::Kind::*")]);
}

#[test]
fn expressions() {
    upward(
        "fn f() {\n  let x = 1 + crate::b::C;\n}",
        &[(2, "crate::b::C")],
    );
    upward("fn f() { crate::b::B {} }", &[(1, "crate::b::B")]);
    upward(
        "fn f() { g(|| async { crate::b::f::<u8>() }) }",
        &[(1, "crate::b::f")],
    );
    upward(
        "const X: [u8; crate::b::C] = [0; super::b::C];",
        &[(1, "crate::b::C"), (1, "super::b::C")],
    );
}

#[test]
fn patterns() {
    upward(
        "fn f(x: u8) { match x { crate::b::C => {} crate::b::Kind::One(y) => {} crate::b::B { .. } => {} } }",
        &[
            (1, "crate::b::B"),
            (1, "crate::b::C"),
            (1, "crate::b::Kind::One"),
        ],
    );
}

#[test]
fn types_and_bounds() {
    for a in [
        "struct A { b: Option<Box<crate::b::B>> }",
        "fn f(b: &crate::b::B) {}",
        "fn f() -> impl Iterator<Item = crate::b::B> {}",
        "impl From<crate::b::B> for u8 {}",
        "impl std::ops::Deref for A { type Target = crate::b::B; }",
        "static X: fn(crate::b::B) = f;",
        "fn f(x: dyn Fn(crate::b::B)) {}",
        "fn f() { let x: crate::b::B = y as u8; }",
        "fn f() { Vec::<crate::b::B>::new() }",
        "enum A { X(crate::b::B) }",
    ] {
        upward(a, &[(1, "crate::b::B")]);
    }
    for a in [
        "struct A<T: crate::b::Trait>(T);",
        "fn f<T>() where T: crate::b::Trait {}",
        "impl crate::b::Trait for A {}",
        "trait A: crate::b::Trait {}",
        "type X<T> = <T as crate::b::Trait>::Of;",
    ] {
        let path = if a.contains("Of") {
            "crate::b::Trait::Of"
        } else {
            "crate::b::Trait"
        };
        upward(a, &[(1, path)]);
    }
}

#[test]
fn macros() {
    upward(
        "pin_project! {\n  struct A {\n    #[pin] b: Option<crate::b::B>,\n  }\n}",
        &[(3, "crate::b::B")],
    );
    upward(
        "fn f() { write!(f, \"{}\", super::b::C) }",
        &[(1, "super::b::C")],
    );
    upward(
        "fn f() { tokio::select! { x = y => { if x { crate::b::f() } } } }",
        &[(1, "crate::b::f")],
    );
    upward(
        "fn f() { matches!(x, 0..crate::b::C) }",
        &[(1, "crate::b::C")],
    );
    upward(
        "fn f() { g!(Vec::<crate::b::B>::new()) }",
        &[(1, "crate::b::B")],
    );
    upward("fn f() { crate::b::m!() }", &[(1, "crate::b::m")]);
    upward(
        "macro_rules! n { ($x:ident) => { $crate::b::f($x::y) } }",
        &[(1, "crate::b::f")],
    );
    upward(
        "g! { use crate::{b::{B as X, Kind}, a}; }",
        &[(1, "crate::b::B as X"), (1, "crate::b::Kind")],
    );
    upward("g! { use super::b::*; }", &[(1, "super::b::*")]);
    upward(
        "use crate::b;\nfn f() { vec![b::C] }",
        &[(1, "crate::b"), (2, "b::C")],
    );
}

#[test]
fn body_of_a_function() {
    upward(
        "impl A { fn f() { if x {\n use crate::b::B;\n } } }",
        &[(2, "crate::b::B")],
    );
    // The name is only in scope in its block; elsewhere it is a crate.
    upward(
        "fn f() {\n  {\n    use crate::b;\n    b::f();\n  }\n  b::f();\n}",
        &[(3, "crate::b"), (4, "b::f")],
    );
    // One import of the block is by another.
    upward(
        "fn f() { use crate::b as x;\n use x::inner as y;\n y::Other }",
        &[(1, "crate::b as x"), (2, "x::inner as y"), (3, "y::Other")],
    );
}

#[test]
fn reexport_of_the_room_itself() {
    upward("use crate::b::Inner;", &[(1, "crate::b::Inner")]);
    upward(
        "use crate::b::inner::Other;",
        &[(1, "crate::b::inner::Other")],
    );
}

#[test]
fn reexport_of_another_room() {
    let files = [
        ("lib.rs", "mod a; mod b; mod c;"),
        ("a.rs", "use crate::c::B; pub struct A;"),
        ("b.rs", "use crate::a::A; pub struct B;"),
        ("c.rs", "pub use crate::b::B;"),
    ];
    // `a` imports `c` and not `b`: it is `c` that imports `b`.
    assert_eq!(
        violations(&files, &[&["c"], &["a"], &["b"]]),
        ["src/c.rs:1: `crate::b::B`: c imports b of a higher layer"]
    );
    assert_eq!(check(&files, Order::default()).cycles, [["a", "b", "c"]]);
}

#[test]
fn crate_root() {
    let through = |line, path, to| {
        format!("src/a.rs:{line}: `{path}`: a imports {to} through the crate root")
    };
    let upward = |line, path| format!("src/a.rs:{line}: `{path}`: a imports b of a higher layer");
    for path in ["crate::B", "super::B"] {
        let expected = [upward(1, path), through(1, path, "b")];
        assert_eq!(in_a(&format!("use {path};")), expected);
        assert_eq!(in_a(&format!("fn f(x: {path}) {{}}")), expected);
        assert_eq!(in_a(&format!("fn f() {{ matches!(x, {path}) }}")), expected);
    }
    assert_eq!(
        in_a("use crate::Layer;"),
        [through(1, "crate::Layer", "another crate")]
    );
    assert_eq!(in_a("use crate::*;"), [through(1, "crate::*", "a name")]);
    assert_eq!(in_a("use super::*;"), [through(1, "super::*", "a name")]);
    // It does not matter whether the import would go down.
    let files = [
        ("lib.rs", "mod a; mod b; pub use a::A;"),
        ("a.rs", "pub struct A;"),
        ("b.rs", "use crate::A;"),
    ];
    assert_eq!(
        violations(&files, &[&["a"], &["b"]]),
        ["src/b.rs:1: `crate::A`: b imports a through the crate root"]
    );
    // A module that the root re-exports is not one of its own.
    let files = [
        ("lib.rs", "mod a; mod b; pub use a::deep;"),
        ("a.rs", "pub mod deep { pub struct A; }"),
        ("b.rs", "use crate::deep::A;"),
    ];
    assert_eq!(
        violations(&files, &[&["a"], &["b"]]),
        ["src/b.rs:1: `crate::deep::A`: b imports a through the crate root"]
    );
}

#[test]
fn macros_without_a_path() {
    let files = [
        ("lib.rs", "#[macro_use] mod b; mod a; mod c;"),
        (
            "a.rs",
            "fn f() { textual!(); crate::exported!(); println!(); }",
        ),
        (
            "b.rs",
            "macro_rules! textual { () => {} } #[macro_export] macro_rules! exported { () => {} }",
        ),
        (
            "c.rs",
            "macro_rules! textual { () => {} } fn f() { textual!() }",
        ),
    ];
    assert_eq!(
        violations(&files, &[&["a", "c"], &["b"]]),
        [
            "src/a.rs:1: `crate::exported`: a imports b of a higher layer",
            "src/a.rs:1: `textual!`: a imports b of a higher layer",
        ]
    );
}

#[test]
fn files_by_path_and_below_blocks() {
    let files = [
        (
            "lib.rs",
            "#[path = \"other/name.rs\"] mod a; mod b; mod c { mod d; #[path = \"f.rs\"] mod e; }",
        ),
        (
            "other/name.rs",
            "mod below; #[path = \"x.rs\"] mod renamed;",
        ),
        ("other/below.rs", "use crate::b::B;"),
        ("other/x.rs", "\nuse crate::b::B;"),
        ("b.rs", "mod deep; pub struct B;"),
        ("b/deep.rs", ""),
        ("c/d.rs", "use crate::b::B;"),
        ("c/f.rs", "use crate::b::B;"),
    ];
    assert_eq!(
        violations(&files, &[&["a", "c"], &["b"]]),
        [
            "src/c/d.rs:1: `crate::b::B`: c imports b of a higher layer",
            "src/c/f.rs:1: `crate::b::B`: c imports b of a higher layer",
            "src/other/below.rs:1: `crate::b::B`: a imports b of a higher layer",
            "src/other/x.rs:2: `crate::b::B`: a imports b of a higher layer",
        ]
    );
}

#[test]
fn layers_and_exceptions() {
    let files = [
        ("lib.rs", "mod a;\nmod b;\nmod c;"),
        ("a.rs", "use crate::b::B;"),
        ("b.rs", "use crate::a::A; use crate::c::C;"),
        ("c.rs", "use crate::c::own::X; mod own {}"),
    ];
    let layers: &[&[&str]] = &[&["c", "not_yet"], &["a", "b"]];
    assert_eq!(
        violations(&files, layers),
        [
            "src/a.rs:1: `crate::b::B`: a imports b of the same layer",
            "src/b.rs:1: `crate::a::A`: b imports a of the same layer",
        ]
    );
    let exception = |from, to| Exception {
        from,
        to,
        reason: "they are one",
    };
    let report = check(
        &files,
        Order {
            layers,
            exceptions: &[exception("a", "b"), exception("a", "c")],
        },
    );
    assert_eq!(
        report.to_string(),
        "the exception a -> c is not used\n\
         src/b.rs:1: `crate::a::A`: b imports a of the same layer\n\
         cycle: a, b\n\
         violations: 2"
    );
    assert_eq!(
        violations(&files, &[&["a"], &["a"], &["c"]]),
        [
            "a is listed twice",
            "src/lib.rs:2: `mod b`: b is in no layer"
        ]
    );
}

#[test]
fn room_inside_of_a_room() {
    let files = [
        ("lib.rs", "mod a; mod b;"),
        ("a.rs", "use crate::b::{Low, High};"),
        ("b/mod.rs", "mod low; pub use low::Low; pub struct High;"),
        ("b/low.rs", "use super::High; pub struct Low;"),
    ];
    assert_eq!(
        violations(&files, &[&["b::low"], &["a"], &["b"]]),
        [
            "src/a.rs:1: `crate::b::High`: a imports b of a higher layer",
            "src/b/low.rs:1: `super::High`: b::low imports b of a higher layer",
        ]
    );
}

#[test]
fn files_of_a_folder() {
    let of = |one, two| {
        let files = [
            ("lib.rs", "mod a;"),
            (
                "a/mod.rs",
                "mod one; mod two; pub struct Own; use one::One; pub(crate) use two::{Two, helper};",
            ),
            ("a/one.rs", one),
            ("a/two.rs", two),
        ];
        violations(&files, &[&["a"]])
    };
    let two = "use crate::a::one::One; pub struct Two; pub fn helper() {}";
    let cycle = |path| {
        [
            format!("src/a/one.rs:1: `{path}`: a::one imports a::two in a cycle in their folder"),
            "src/a/two.rs:1: `crate::a::one::One`: a::two imports a::one in a cycle in their folder".into(),
        ]
    };
    assert_eq!(of("use super::two::Two;", two), cycle("super::two::Two"));
    // `mod.rs` re-exports it, by a name or for a glob.
    assert_eq!(of("use super::Two;", two), cycle("super::Two"));
    assert_eq!(
        of("fn f() { super::helper() }", two),
        cycle("super::helper")
    );
    assert_eq!(of("use super::*; fn f(x: Two) {}", two), cycle("Two"));
    assert_eq!(
        of("use super::*; fn f() { helper() }", two),
        cycle("helper")
    );
    assert_eq!(of("use super::*; fn f() { g!(Two) }", two), cycle("Two"));
    // Items that `mod.rs` defines itself are for all files of the folder.
    assert_eq!(of("use super::Own;", two), [""; 0]);
    assert_eq!(
        of("use super::*; fn f(x: Own) { let helper = 1; helper }", two),
        [""; 0]
    );
    assert_eq!(of("use super::Two;", "use super::Own;"), [""; 0]);
    // Both names are of one file, and an import counts once.
    assert_eq!(
        of("use super::Two; fn f() { Two::new() }", two),
        cycle("super::Two")
    );
    assert_eq!(
        of(
            "mod x { use super::{super::Own, y::Y}; } mod y { use super::x; pub struct Y; }",
            two
        ),
        [""; 0]
    );
}

#[test]
fn folders_of_a_folder() {
    let files = [
        ("lib.rs", "mod a;"),
        ("a.rs", "mod one; mod two;"),
        ("a/one.rs", "mod deep;"),
        ("a/one/deep.rs", "use crate::a::two::Two;"),
        ("a/two.rs", "pub struct Two; use super::one::One;"),
    ];
    let report = check(
        &files,
        Order {
            layers: &[&["a"]],
            exceptions: &[],
        },
    );
    assert_eq!(report.violations.len(), 2, "{report}");
    assert_eq!(report.cycles, [["a::one", "a::two"]]);
}

#[test]
fn what_cannot_be_followed() {
    let files = [
        ("lib.rs", "mod a;"),
        (
            "a.rs",
            "fn f() { mod inner {} }\ninclude!(\"x.rs\");\n#[cfg_attr(unix, path = \"y.rs\")] mod z;",
        ),
        ("a/z.rs", ""),
    ];
    assert_eq!(
        violations(&files, &[&["a"]]),
        [
            "src/a.rs:1: a: a module inside a function is not followed",
            "src/a.rs:2: a: `include!` is not followed",
            "src/a.rs:3: a: a `path` inside `cfg_attr` is not followed",
        ]
    );
    let message = |files: &[_]| read(files).err().unwrap().to_string();
    assert_eq!(
        message(&[("lib.rs", "mod a;")]),
        "module `a`, declared in src/lib.rs, has no file src/a/mod.rs"
    );
    assert_eq!(
        message(&[("lib.rs", "mod a;"), ("a.rs", "\nfn;")]),
        "src/a.rs:2: expected identifier"
    );
}

#[test]
fn tests_do_not_count() {
    for a in [
        "#[cfg(test)] mod tests { use crate::b::B; }",
        "#[cfg(test)] mod tests;",
        "mod tests { #![cfg(test)] use crate::b::B; }",
        "#[cfg(all(test, unix))] use crate::b::B;",
        "#[cfg(any(test, all(unix, test)))] fn f() { crate::b::f() }",
        "#[test] fn f() { crate::b::f() }",
        "#[tokio::test] async fn f() { crate::b::f() }",
        "#![cfg(test)] use crate::b::B;",
        "impl A { #[cfg(test)] fn f(b: crate::b::B) {} }",
        "trait A { #[cfg(test)] fn f(b: crate::b::B) {} }",
        "fn f() { #[cfg(test)] crate::b::f(); #[cfg(test)] let x = crate::b::C; #[cfg(test)] m!(crate::b::C); }",
        "struct A { #[cfg(test)] b: crate::b::B }",
        "enum A { #[cfg(test)] B(crate::b::B) }",
        "fn f() { match x { #[cfg(test)] crate::b::C => {} _ => {} } }",
        "fn f() { A { #[cfg(test)] b: crate::b::C } }",
        "fn f() { #[cfg(test)] use crate::b; b::f(); }",
        "#[cfg(test)] use crate::b; fn f() { b::f(); }",
    ] {
        clean(a);
    }
    for a in [
        "#[cfg(not(test))] use crate::b::B;",
        "#[cfg(any(test, unix))] use crate::b::B;",
        "#[cfg(feature = \"test\")] use crate::b::B;",
        "#[cfg_attr(test, derive(Debug))] struct A(crate::b::B);",
    ] {
        upward(a, &[(1, "crate::b::B")]);
    }
}

#[test]
fn docs_strings_and_attributes_do_not_count() {
    clean("//! [`crate::b::B`] and [x](super::b::B)\n\n/// use crate::b::B;\nstruct A;");
    clean("/** crate::b::B */ struct A; // crate::b::B");
    clean("fn f() { println!(\"crate::b::B\"); g(r#\"super::b::B\"#, b\"crate::b::B\"); }");
    clean(
        "#[derive(crate::b::Derive)] #[serde(with = \"crate::b\")] struct A { #[x(crate::b::B)] y: u8 }",
    );
    clean(
        "pin_project! { /// crate::b::B\n #[doc = crate::b::B] #[project(crate::b::B)] struct A; #![x(crate::b::B)] }",
    );
    clean("pub(in crate::b) struct A; pub(super) fn f() {}");
}

#[test]
fn crates_of_the_same_name_do_not_count() {
    clean(
        "use b::B; use ::b::C; fn f(x: b::X, y: ::b::Y) { b::f(); g!(b::h(), ::b::i, x.b::<u8>(), x::b::c, 'b) }",
    );
    clean("use ::b; fn f() { b::f() }");
    clean("use b; fn f() { b::f() }");
    clean("use b::{self, b as c}; fn f() { b::f(); c::b::f() }");
    clean("extern crate b; fn f() { b::f() }");
    // Even where our own is in scope, `::b` is the crate.
    for a in [
        "use ::b::B as C;",
        "fn f(x: ::b::B) {}",
        "fn f() { g!(::b::B) }",
        "macro_rules! n { ($b:path) => { $b::f() } }",
    ] {
        upward(&format!("use crate::b;\n{a}"), &[(1, "crate::b")]);
    }
    clean("fn f(b: u8) { b + self.b + b(); b.b() } struct X { b: u8 } mod c { use b::X; }");
    clean("fn f<'b>(x: &'b u8) { T::b(); Self::b::c() } use a::b::C;");
    // A child of that name is a module of this crate, in the same room.
    clean("mod b { pub fn f() {} } fn f() { b::f() } use b::f as g; use self::b::f as h;");
    // The file that the crate's own name is in means the library.
    let files = [
        ("lib.rs", "mod axum; mod tonic;"),
        (
            "axum.rs",
            "use tonic::Status; use axum::Router; fn f(x: axum::Y) { tonic::f(); ::tonic::g() }",
        ),
        (
            "tonic/mod.rs",
            "mod health; use tonic::{Code, transport}; fn f() { transport::x(); }",
        ),
        ("tonic/health.rs", "use tonic::Status; use super::tonic;"),
    ];
    assert_eq!(violations(&files, &[&["axum"], &["tonic"]]), [""; 0]);
    // A child of that name is in scope, and it is a file.
    let files = [
        ("lib.rs", "mod a;"),
        (
            "a/mod.rs",
            "mod tonic; mod other; pub fn f() { tonic::f() }",
        ),
        ("a/tonic.rs", "use super::other::X; pub fn f() {}"),
        (
            "a/other.rs",
            "use super::tonic::f; use tonic::f as g; pub struct X;",
        ),
    ];
    assert_eq!(
        violations(&files, &[&["a"]]),
        [
            "src/a/other.rs:1: `super::tonic::f`: a::other imports a::tonic in a cycle in their folder",
            "src/a/tonic.rs:1: `super::other::X`: a::tonic imports a::other in a cycle in their folder",
        ]
    );
}

#[test]
fn globs_bring_what_is_open() {
    let of = |c| {
        let files = [
            ("lib.rs", "mod a; mod b; mod c; mod d;"),
            ("a.rs", "use crate::c::*; fn f() { b::f() }"),
            ("b.rs", "pub fn f() {}"),
            ("c.rs", c),
            ("d.rs", "pub use crate::b;"),
        ];
        let mut found = violations(&files, &[&["a", "c", "d"], &["b"]]);
        found.retain(|violation| violation.contains("a imports b"));
        found
    };
    for private in [
        "use crate::b;",
        "pub(self) use crate::b;",
        "use crate::d::*;",
    ] {
        assert_eq!(of(private), [""; 0]);
    }
    for open in [
        "pub use crate::b;",
        "pub(super) use crate::b;",
        "pub use crate::d::*;",
    ] {
        assert_eq!(
            of(open),
            ["src/a.rs:1: `b::f`: a imports b of a higher layer"]
        );
    }
}

#[test]
fn function_and_module_of_one_name() {
    // `b::b` is a function that the root re-exports; `crate::b` stays a module.
    let files = [
        ("lib.rs", "mod a; mod b; pub use b::b;"),
        ("a.rs", "use crate::b::X; use crate::b;"),
        ("b.rs", "pub fn b() {} pub struct X;"),
    ];
    assert_eq!(violations(&files, &[&["b"], &["a"]]), [""; 0]);
    // Only a module's path can continue.
    let files = [
        ("lib.rs", "mod a; mod b; mod c;"),
        ("a.rs", "use crate::c::*; fn b() {} fn f() { b::f() }"),
        ("b.rs", "pub fn f() {}"),
        ("c.rs", "pub use crate::b;"),
    ];
    assert_eq!(
        violations(&files, &[&["c"], &["a"], &["b"]]),
        [
            "src/a.rs:1: `b::f`: a imports b of a higher layer",
            "src/c.rs:1: `crate::b`: c imports b of a higher layer",
        ]
    );
}

#[test]
fn imports_in_a_circle_end() {
    let files = [
        ("lib.rs", "mod a; mod b;"),
        (
            "a.rs",
            "pub use crate::b::X; pub use crate::b::*; fn f() { X::new(); y::z() }",
        ),
        ("b.rs", "pub use crate::a::X; pub use crate::a::*;"),
    ];
    let report = check(&files, Order::default());
    assert_eq!(report.cycles, [["a", "b"]]);
}

#[test]
fn imports_that_go_down_are_clean() {
    let files = [
        (
            "lib.rs",
            "mod a; pub mod b; mod c; pub use self::{a::A, c::*};",
        ),
        ("a.rs", "pub struct A;"),
        (
            "b/mod.rs",
            "mod inner; pub use self::inner::B; use crate::a::A;",
        ),
        (
            "b/inner.rs",
            "use crate::{a::A, b}; pub struct B(A); impl b::Sealed for B {}",
        ),
        (
            "c.rs",
            "use crate::{a::A, b::{self, B}}; pub fn c(a: A) -> b::B {}",
        ),
    ];
    assert_eq!(violations(&files, &[&["a"], &["b"], &["c"]]), [""; 0]);
    let report = check(&files, Order::default());
    assert_eq!(report.cycles, [[""; 0]; 0]);
    let arrows: Vec<_> = report
        .arrows
        .iter()
        .map(|arrow| {
            format!(
                "{}:{} {} -> {}",
                arrow.path, arrow.line, arrow.from, arrow.to
            )
        })
        .collect();
    assert_eq!(
        arrows,
        [
            "crate::a::A:1 b -> a",
            "crate::a::A:1 b -> a",
            "b::B:1 c -> b",
            "crate::a::A:1 c -> a",
            "crate::b:1 c -> b",
            "crate::b::B:1 c -> b",
        ]
    );
}
