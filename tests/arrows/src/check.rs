//! Compares the references of a crate with an order.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    cycles::cycles,
    order::Order,
    references::{Reference, references},
    report::{Arrow, Report, Rule, Violation},
    resolve::Route,
    tree::{Crate, ModuleId, ROOT},
};

impl Crate {
    /// Finds the violations of `order` in this crate.
    pub fn check(&self, order: &Order<'_>) -> Report {
        let mut check = Check {
            source: self,
            order,
            report: Report::default(),
            folders: BTreeMap::new(),
        };
        for module in self.ids() {
            check.module(module);
        }
        check.list();
        check.layers();
        check.cycles();
        let mut report = check.report;
        report.violations.sort();
        report.violations.dedup();
        report
    }
}

/// A reference between two files of a folder, or between modules below them.
struct Inner {
    from: ModuleId,
    to: ModuleId,
    arrow: Arrow,
}

struct Check<'a> {
    source: &'a Crate,
    order: &'a Order<'a>,
    report: Report,
    /// Grouped by the parent module.
    folders: BTreeMap<ModuleId, Vec<Inner>>,
}

impl Check<'_> {
    fn module(&mut self, module: ModuleId) {
        let found = references(self.source, module);
        for (line, reason) in found.unreadable {
            let arrow = self.arrow(module, line, String::new(), String::new());
            self.violate(arrow, Rule::Unreadable(reason));
        }
        // The crate root is above all.
        if module != ROOT {
            for reference in found.references {
                self.reference(module, &reference);
            }
        }
    }

    fn reference(&mut self, from: ModuleId, reference: &Reference) {
        let mut rooms = BTreeSet::new();
        let mut files = BTreeSet::new();
        for route in &reference.routes {
            let home = route.end.home();
            if route.is_by_root {
                self.through_root(from, reference, route);
            }
            for &through in &route.through {
                // A name that the crate root or a room re-exports from an inner room belongs to the inner room.
                let inside = home.filter(|home| self.source.is_within(*home, through));
                rooms.insert(inside.unwrap_or(through));
                files.insert(through);
            }
            files.extend(home);
        }
        let own = self.room(from);
        let rooms: BTreeSet<_> = rooms
            .into_iter()
            .filter(|module| *module != ROOT)
            .map(|module| self.room(module))
            .filter(|room| *room != own)
            .collect();
        for room in rooms {
            let path = reference.written.clone();
            let arrow = self.arrow(from, reference.line, path, self.source.path(room));
            self.report.arrows.push(Arrow {
                from: self.source.path(own),
                ..arrow
            });
        }
        for file in files {
            self.inner(from, file, reference);
        }
    }

    fn through_root(&mut self, from: ModuleId, reference: &Reference, route: &Route) {
        let to = match route.end.home() {
            Some(ROOT) => "a name".into(),
            Some(home) => self.source.path(self.room(home)),
            None => "another crate".into(),
        };
        let arrow = Arrow {
            from: self.source.path(self.room(from)),
            ..self.arrow(from, reference.line, reference.written.clone(), to)
        };
        self.violate(arrow, Rule::ThroughRoot);
    }

    /// Records a reference between two files of one room.
    fn inner(&mut self, from: ModuleId, to: ModuleId, reference: &Reference) {
        let source = self.source;
        if to == ROOT || self.room(from) != self.room(to) {
            return;
        }
        let (from_file, to_file) = (self.file(from), self.file(to));
        // A folder and its files may use each other.
        if source.is_within(from_file, to_file) || source.is_within(to_file, from_file) {
            return;
        }
        let folder = source
            .ancestors(from_file)
            .find(|ancestor| source.is_within(to_file, *ancestor))
            .expect("the root is around all modules");
        let child = |file| {
            source
                .ancestors(file)
                .take_while(|ancestor| *ancestor != folder)
                .last()
                .expect("neither file is the folder, for neither is within the other")
        };
        let (child_from, child_to) = (child(from_file), child(to_file));
        let path = reference.written.clone();
        let arrow = self.arrow(from, reference.line, path, source.path(child_to));
        self.folders.entry(folder).or_default().push(Inner {
            from: child_from,
            to: child_to,
            arrow: Arrow {
                from: source.path(child_from),
                ..arrow
            },
        });
    }

    /// Checks the list of layers itself.
    fn list(&mut self) {
        for module in self.source.ids() {
            let path = self.source.path(module);
            let is_top = self.source.module(module).parent == Some(ROOT);
            if is_top && self.order.layer(&path).is_none() {
                let (file, line) = self.source.module(module).declared.clone();
                let arrow = Arrow {
                    file,
                    line,
                    path: path.clone(),
                    from: path,
                    to: String::new(),
                };
                self.violate(arrow, Rule::Unlisted);
            }
        }
        let mut listed = BTreeSet::new();
        for name in self.order.layers.concat() {
            if !listed.insert(name) {
                self.violate(of_the_list(name, ""), Rule::ListedTwice);
            }
        }
    }

    /// Checks each arrow between rooms.
    fn layers(&mut self) {
        self.report.arrows.sort();
        self.report.arrows.dedup();
        let mut used = BTreeSet::new();
        for arrow in self.report.arrows.clone() {
            let layers = (self.order.layer(&arrow.from), self.order.layer(&arrow.to));
            let (Some(from), Some(to)) = layers else {
                continue;
            };
            if to > from {
                self.violate(arrow, Rule::Upward);
            } else if to == from {
                match self.order.exception(&arrow.from, &arrow.to) {
                    Some(exception) => {
                        used.insert(exception);
                    }
                    None => self.violate(arrow, Rule::Sideways),
                }
            }
        }
        for (index, exception) in self.order.exceptions.iter().enumerate() {
            if !used.contains(&index) {
                let arrow = of_the_list(exception.from, exception.to);
                self.violate(arrow, Rule::UnusedException);
            }
        }
    }

    fn cycles(&mut self) {
        let edges = self.report.arrows.iter();
        let edges = edges.map(|arrow| (arrow.from.clone(), arrow.to.clone()));
        self.report.cycles = cycles(&edges.collect());
        for inner in std::mem::take(&mut self.folders).into_values() {
            let edges = inner.iter().map(|inner| (inner.from, inner.to)).collect();
            for cycle in cycles(&edges) {
                let is_in =
                    |inner: &&Inner| cycle.contains(&inner.from) && cycle.contains(&inner.to);
                for inner in inner.iter().filter(is_in) {
                    self.violate(inner.arrow.clone(), Rule::FolderCycle);
                }
                let paths = cycle.iter().map(|module| self.source.path(*module));
                self.report.cycles.push(paths.collect());
            }
        }
    }

    /// The listed module around `module`, or else the top-level one.
    fn room(&self, module: ModuleId) -> ModuleId {
        let mut ancestors = self.source.ancestors(module);
        let room = ancestors.find(|ancestor| {
            let is_top = self.source.module(*ancestor).parent == Some(ROOT);
            is_top || self.order.layer(&self.source.path(*ancestor)).is_some()
        });
        room.unwrap_or(ROOT)
    }

    /// The module whose file `module` is in.
    fn file(&self, module: ModuleId) -> ModuleId {
        let mut ancestors = self.source.ancestors(module);
        let file = ancestors.find(|ancestor| !self.source.module(*ancestor).is_inline);
        file.unwrap_or(ROOT)
    }

    fn arrow(&self, from: ModuleId, line: usize, path: String, to: String) -> Arrow {
        Arrow {
            file: self.source.module(from).file.clone(),
            line,
            path,
            from: self.source.path(from),
            to,
        }
    }

    fn violate(&mut self, arrow: Arrow, rule: Rule) {
        self.report.violations.push(Violation { arrow, rule });
    }
}

/// An error in the list, which belongs to no line of the crate.
fn of_the_list(from: &str, to: &str) -> Arrow {
    Arrow {
        file: "".into(),
        line: 0,
        path: String::new(),
        from: from.into(),
        to: to.into(),
    }
}
