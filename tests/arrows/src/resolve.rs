//! Resolves a path to the modules that it names, and to the module that defines its last name.

use crate::{
    names::{Binding, Names},
    tree::{Crate, ModuleId, ROOT},
};

/// The end of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Module(ModuleId),
    /// A type, a function or another item of the module `home`.
    Item {
        home: ModuleId,
        is_type: bool,
    },
    /// Another crate, or a name of the compiler's prelude.
    Outside,
}

impl End {
    /// The module that defines what the path names.
    pub(crate) fn home(self) -> Option<ModuleId> {
        match self {
            Self::Module(home) | Self::Item { home, .. } => Some(home),
            Self::Outside => None,
        }
    }
}

/// One meaning of a path. There are several if `cfg` declares a name twice, or if a function and a module share it.
#[derive(Debug)]
pub(crate) struct Route {
    /// The modules from which the path as written takes a name. A module that is only passed on the way to a child is
    /// not included. Empty if the first name is already in scope, because then its `use` counts.
    pub(crate) through: Vec<ModuleId>,
    /// Whether it takes a name from the crate root that is not one of the root's own modules.
    pub(crate) is_by_root: bool,
    pub(crate) end: End,
}

/// How a name came into a scope.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    Declared,
    Exported,
    Imported,
    /// By the glob of this module.
    Globbed(ModuleId),
}

#[derive(Clone, Copy)]
struct Step {
    end: End,
    origin: Origin,
}

/// The bindings that are being resolved: their scope, name and index. They stop a cycle of imports.
type Busy = Vec<(*const Names, String, usize)>;

/// The path continues after the name that is looked up, so functions are excluded.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Goes {
    On,
    NoFurther,
}

/// The names of a module or of a block in it.
#[derive(Clone, Copy)]
struct Scope<'a> {
    names: &'a Names,
    module: ModuleId,
    /// The enclosing blocks, from the outside in.
    blocks: &'a [Names],
}

impl Crate {
    /// Resolves `path` in the innermost of `blocks` in the module `from`.
    pub(crate) fn resolve(&self, from: ModuleId, blocks: &[Names], path: &[String]) -> Vec<Route> {
        self.walk(from, blocks, path, &mut Vec::new())
    }

    fn walk(
        &self,
        from: ModuleId,
        blocks: &[Names],
        path: &[String],
        busy: &mut Busy,
    ) -> Vec<Route> {
        let Some((first, mut rest)) = path.split_first() else {
            return Vec::new();
        };
        let start = match first.as_str() {
            "crate" => Some(ROOT),
            "self" => Some(from),
            "super" => self.module(from).parent,
            _ => return self.lexical(from, blocks, first, rest, busy),
        };
        let Some(mut module) = start else {
            return Vec::new();
        };
        while let Some(("super", further)) = rest
            .split_first()
            .map(|(name, further)| (name.as_str(), further))
        {
            let Some(parent) = self.module(module).parent else {
                return Vec::new();
            };
            (module, rest) = (parent, further);
        }
        self.descend(module, rest, from, Vec::new(), busy)
    }

    /// A path whose first name is in one of the enclosing scopes.
    fn lexical(
        &self,
        from: ModuleId,
        blocks: &[Names],
        first: &str,
        rest: &[String],
        busy: &mut Busy,
    ) -> Vec<Route> {
        let goes = if rest.is_empty() {
            Goes::NoFurther
        } else {
            Goes::On
        };
        let scopes = (0..blocks.len()).rev().map(|at| Scope {
            names: &blocks[at],
            module: from,
            blocks: &blocks[..=at],
        });
        let steps = scopes
            .chain([self.scope(from)])
            .map(|scope| self.look_up(scope, first, from, goes, busy))
            .find(|steps| !steps.is_empty())
            .unwrap_or_default();
        let mut routes = Vec::new();
        for step in steps {
            let through = match step.origin {
                Origin::Globbed(module) => vec![module],
                _ => Vec::new(),
            };
            match step.end {
                End::Module(module) if !rest.is_empty() => {
                    routes.extend(self.descend(module, rest, from, through, busy));
                }
                end => routes.push(Route {
                    through,
                    is_by_root: false,
                    end,
                }),
            }
        }
        routes
    }

    /// A path whose `rest` is looked up in `module`.
    fn descend(
        &self,
        module: ModuleId,
        rest: &[String],
        from: ModuleId,
        mut through: Vec<ModuleId>,
        busy: &mut Busy,
    ) -> Vec<Route> {
        let Some((name, rest)) = rest.split_first() else {
            through.push(module);
            return vec![Route {
                through,
                is_by_root: module == ROOT,
                end: End::Module(module),
            }];
        };
        let goes = if rest.is_empty() {
            Goes::NoFurther
        } else {
            Goes::On
        };
        let mut steps = self.look_up(self.scope(module), name, from, goes, busy);
        if steps.is_empty() {
            // A macro has generated it, or it does not exist.
            let end = End::Item {
                home: module,
                is_type: true,
            };
            let origin = Origin::Declared;
            steps.push(Step { end, origin });
        }
        let mut routes = Vec::new();
        for Step { end, origin } in steps {
            let mut through = through.clone();
            let is_declared_module = matches!(end, End::Module(_)) && origin == Origin::Declared;
            if !is_declared_module {
                through.push(module);
            }
            let is_by_root = module == ROOT && !is_declared_module && origin != Origin::Exported;
            match end {
                End::Module(next) if !rest.is_empty() || is_declared_module => {
                    for mut route in self.descend(next, rest, from, through, busy) {
                        route.is_by_root |= is_by_root;
                        routes.push(route);
                    }
                }
                end => routes.push(Route {
                    through,
                    is_by_root,
                    end,
                }),
            }
        }
        routes
    }

    fn scope(&self, module: ModuleId) -> Scope<'_> {
        Scope {
            names: &self.module(module).names,
            module,
            blocks: &[],
        }
    }

    /// Looks up `name` in `scope`, for `viewer`.
    fn look_up(
        &self,
        scope: Scope<'_>,
        name: &str,
        viewer: ModuleId,
        goes: Goes,
        busy: &mut Busy,
    ) -> Vec<Step> {
        let sees_private = self.is_within(viewer, scope.module);
        let mut steps = Vec::new();
        for (index, named) in scope.names.get(name).iter().enumerate() {
            if named.is_open || sees_private {
                self.bind(scope, name, index, busy, &mut steps);
            }
        }
        if goes == Goes::On {
            steps.retain(|step| !matches!(step.end, End::Item { is_type: false, .. }));
        }
        let is_module =
            |step: &Step| step.origin == Origin::Declared && matches!(step.end, End::Module(_));
        if steps.iter().any(is_module) {
            steps.retain(is_module);
        }
        if steps.is_empty() {
            for (index, glob) in scope.names.globs.iter().enumerate() {
                if glob.is_open || sees_private {
                    self.expand(scope, index, name, goes, busy, &mut steps);
                }
            }
        }
        steps
    }

    /// One binding of a name.
    fn bind(
        &self,
        scope: Scope<'_>,
        name: &str,
        index: usize,
        busy: &mut Busy,
        steps: &mut Vec<Step>,
    ) {
        let home = scope.module;
        let (end, origin) = match &scope.names.get(name)[index].binding {
            Binding::Module(module) => (End::Module(*module), Origin::Declared),
            Binding::Type => (
                End::Item {
                    home,
                    is_type: true,
                },
                Origin::Declared,
            ),
            Binding::Value => (
                End::Item {
                    home,
                    is_type: false,
                },
                Origin::Declared,
            ),
            Binding::Exported(home) => (
                End::Item {
                    home: *home,
                    is_type: false,
                },
                Origin::Exported,
            ),
            Binding::Outside => (End::Outside, Origin::Imported),
            Binding::Import(path) => {
                let key = (std::ptr::from_ref(scope.names), name.to_owned(), index);
                if busy.contains(&key) {
                    return;
                }
                busy.push(key);
                let routes = self.walk(home, scope.blocks, path, busy);
                busy.pop();
                if routes.is_empty() {
                    let origin = Origin::Imported;
                    steps.push(Step {
                        end: End::Outside,
                        origin,
                    });
                }
                steps.extend(routes.into_iter().map(|route| Step {
                    end: route.end,
                    origin: Origin::Imported,
                }));
                return;
            }
        };
        steps.push(Step { end, origin });
    }

    /// The items that a glob imports by `name`.
    fn expand(
        &self,
        scope: Scope<'_>,
        index: usize,
        name: &str,
        goes: Goes,
        busy: &mut Busy,
        steps: &mut Vec<Step>,
    ) {
        let key = (
            std::ptr::from_ref(scope.names),
            format!("{name} in *"),
            index,
        );
        if busy.contains(&key) {
            return;
        }
        busy.push(key);
        for route in self.walk(
            scope.module,
            scope.blocks,
            &scope.names.globs[index].path,
            busy,
        ) {
            let End::Module(source) = route.end else {
                continue;
            };
            let found = self.look_up(self.scope(source), name, scope.module, goes, busy);
            steps.extend(found.into_iter().map(|step| Step {
                end: step.end,
                origin: Origin::Globbed(source),
            }));
        }
        busy.pop();
    }
}
