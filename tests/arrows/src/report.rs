//! The result of a check.

use std::{fmt, path::PathBuf};

/// One place at which a module refers to another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arrow {
    /// Relative to the folder of the crate.
    pub file: PathBuf,
    /// Counted from 1.
    pub line: usize,
    /// The path as written, without the braces of a nested import.
    pub path: String,
    /// The module that imports, without `crate`.
    pub from: String,
    /// The module that is imported, without `crate`.
    pub to: String,
}

/// The rule that a reference violates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Rule {
    /// It goes to a higher layer.
    Upward,
    /// It goes to the same layer, without an exception.
    Sideways,
    /// It imports a name through the crate root.
    ThroughRoot,
    /// It is part of a cycle of the files of one folder.
    FolderCycle,
    /// The module is in no layer.
    Unlisted,
    /// The module is in several layers.
    ListedTwice,
    /// No import needs the exception.
    UnusedException,
    /// The check cannot follow the code.
    Unreadable(&'static str),
}

/// A reference that violates a rule. If the list of layers itself is wrong, it has neither file nor line.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// The place, and the modules.
    pub arrow: Arrow,
    /// The reason.
    pub rule: Rule,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Arrow {
            file,
            line,
            path,
            from,
            to,
        } = &self.arrow;
        if *line > 0 {
            write!(f, "{}:{line}: ", file.display())?;
        }
        match self.rule {
            Rule::Upward => write!(f, "`{path}`: {from} imports {to} of a higher layer"),
            Rule::Sideways => write!(f, "`{path}`: {from} imports {to} of the same layer"),
            Rule::ThroughRoot => write!(f, "`{path}`: {from} imports {to} through the crate root"),
            Rule::FolderCycle => {
                write!(
                    f,
                    "`{path}`: {from} imports {to} in a cycle in their folder"
                )
            }
            Rule::Unlisted => write!(f, "`mod {path}`: {from} is in no layer"),
            Rule::ListedTwice => write!(f, "{from} is listed twice"),
            Rule::UnusedException => write!(f, "the exception {from} -> {to} is not used"),
            Rule::Unreadable(reason) => write!(f, "{from}: {reason}"),
        }
    }
}

/// Its `Display` lists all violations and cycles.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Report {
    /// All references between modules, including allowed ones, sorted by place.
    pub arrows: Vec<Arrow>,
    /// Sorted by place.
    pub violations: Vec<Violation>,
    /// The strongly connected components of modules, and of the files of a folder.
    pub cycles: Vec<Vec<String>>,
}

impl Report {
    /// Whether all imports go down.
    pub fn is_clean(&self) -> bool {
        self.violations.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for violation in &self.violations {
            writeln!(f, "{violation}")?;
        }
        for cycle in &self.cycles {
            writeln!(f, "cycle: {}", cycle.join(", "))?;
        }
        write!(f, "violations: {}", self.violations.len())
    }
}
