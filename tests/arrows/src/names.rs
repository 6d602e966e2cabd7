//! The names that a module or a block declares and imports.

use std::collections::HashMap;

use proc_macro2::Ident;
use syn::{Item, ItemUse, UseTree, Visibility, ext::IdentExt};

use crate::tree::ModuleId;

/// The kind of item that a name refers to.
#[derive(Debug)]
pub(crate) enum Binding {
    Module(ModuleId),
    /// A type or a trait, after which a path may go on.
    Type,
    /// A function, a constant, a static or a macro.
    Value,
    /// A macro that another module exports to the crate root.
    Exported(ModuleId),
    Import(Vec<String>),
    /// A name of another crate.
    Outside,
}

#[derive(Debug)]
pub(crate) struct Named {
    pub(crate) binding: Binding,
    /// Whether it has any `pub`. Without one it is only visible below its module.
    pub(crate) is_open: bool,
}

#[derive(Debug)]
pub(crate) struct Glob {
    pub(crate) path: Vec<String>,
    pub(crate) is_open: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Names {
    named: HashMap<String, Vec<Named>>,
    pub(crate) globs: Vec<Glob>,
}

impl Names {
    /// The names of `items`, except those of modules: the caller knows their ids.
    pub(crate) fn of<'a>(items: impl IntoIterator<Item = &'a Item>) -> Self {
        let mut names = Self::default();
        for item in items {
            names.declare(item);
        }
        names
    }

    pub(crate) fn get(&self, name: &str) -> &[Named] {
        self.named.get(name).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn add(&mut self, name: String, vis: &Visibility, binding: Binding) {
        let is_open = is_open(vis);
        self.named
            .entry(name)
            .or_default()
            .push(Named { binding, is_open });
    }

    fn declare(&mut self, item: &Item) {
        let (ident, vis, binding) = match item {
            Item::Enum(it) => (&it.ident, &it.vis, Binding::Type),
            Item::Struct(it) => (&it.ident, &it.vis, Binding::Type),
            Item::Trait(it) => (&it.ident, &it.vis, Binding::Type),
            Item::TraitAlias(it) => (&it.ident, &it.vis, Binding::Type),
            Item::Type(it) => (&it.ident, &it.vis, Binding::Type),
            Item::Union(it) => (&it.ident, &it.vis, Binding::Type),
            Item::Const(it) => (&it.ident, &it.vis, Binding::Value),
            Item::Static(it) => (&it.ident, &it.vis, Binding::Value),
            Item::Fn(it) => (&it.sig.ident, &it.vis, Binding::Value),
            Item::Macro(it) => match &it.ident {
                Some(ident) => (ident, &Visibility::Inherited, Binding::Value),
                None => return,
            },
            Item::ExternCrate(it) => {
                let ident = it.rename.as_ref().map_or(&it.ident, |(_, ident)| ident);
                let binding = if it.ident == "self" {
                    Binding::Import(vec!["crate".into()])
                } else {
                    Binding::Outside
                };
                (ident, &it.vis, binding)
            }
            Item::Use(it) => return self.import(it),
            _ => return,
        };
        self.add(ident.unraw().to_string(), vis, binding);
    }

    fn import(&mut self, item: &ItemUse) {
        for leaf in leaves(&item.tree) {
            let path = leaf.names();
            let is_outside = item.leading_colon.is_some();
            match leaf.name {
                None if !is_outside => self.globs.push(Glob {
                    path,
                    is_open: is_open(&item.vis),
                }),
                None => {}
                Some(name) => {
                    let binding = if is_outside {
                        Binding::Outside
                    } else {
                        Binding::Import(path)
                    };
                    self.add(name, &item.vis, binding);
                }
            }
        }
    }
}

fn is_open(vis: &Visibility) -> bool {
    match vis {
        Visibility::Public(_) => true,
        Visibility::Restricted(restricted) => !restricted.path.is_ident("self"),
        Visibility::Inherited => false,
    }
}

/// One path of a `use` item.
pub(crate) struct Leaf {
    pub(crate) path: Vec<Ident>,
    /// The name that it binds, `_` too; None for a glob.
    pub(crate) name: Option<String>,
    /// The position of its last part.
    pub(crate) line: usize,
}

impl Leaf {
    pub(crate) fn names(&self) -> Vec<String> {
        to_names(&self.path)
    }

    /// The complete path, without the braces around it.
    pub(crate) fn written(&self) -> String {
        let names = self.names();
        let path = names.join("::");
        match &self.name {
            None => path + "::*",
            Some(name) if names.last() == Some(name) => path,
            Some(name) => format!("{path} as {name}"),
        }
    }
}

pub(crate) fn to_names(path: &[Ident]) -> Vec<String> {
    path.iter().map(|ident| ident.unraw().to_string()).collect()
}

/// All paths of a `use` item.
pub(crate) fn leaves(tree: &UseTree) -> Vec<Leaf> {
    let mut leaves = Vec::new();
    collect(tree, &[], &mut leaves);
    leaves
}

fn collect(tree: &UseTree, prefix: &[Ident], leaves: &mut Vec<Leaf>) {
    let mut leaf = |last: &Ident, name: Option<&Ident>| {
        let mut path = prefix.to_vec();
        // `a::{self}` is `a`.
        if last != "self" || path.is_empty() {
            path.push(last.clone());
        }
        let name = name.or(path.last()).map(|ident| ident.unraw().to_string());
        leaves.push(Leaf {
            path,
            name,
            line: last.span().start().line,
        });
    };
    match tree {
        UseTree::Name(it) => leaf(&it.ident, None),
        UseTree::Rename(it) => leaf(&it.ident, Some(&it.rename)),
        UseTree::Glob(it) => leaves.push(Leaf {
            path: prefix.to_vec(),
            name: None,
            line: it.star_token.spans[0].start().line,
        }),
        UseTree::Path(it) => {
            let prefix = [prefix, std::slice::from_ref(&it.ident)].concat();
            collect(&it.tree, &prefix, leaves);
        }
        UseTree::Group(it) => {
            for tree in &it.items {
                collect(tree, prefix, leaves);
            }
        }
    }
}
