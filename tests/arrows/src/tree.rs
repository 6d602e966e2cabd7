//! The modules of a crate, read from its files.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};

use syn::{Attribute, Expr, ExprLit, Item, ItemMod, Lit, Meta, Visibility, ext::IdentExt};

use crate::{
    names::{Binding, Names},
    test_only::{is_test_only, restrict_to_tests},
};

/// The index of a module in its crate.
pub(crate) type ModuleId = usize;

/// The crate root: `lib.rs`.
pub(crate) const ROOT: ModuleId = 0;

/// A crate whose source has been parsed.
pub struct Crate {
    modules: Vec<Module>,
    /// The macros of modules that are declared with `#[macro_use]`, by name.
    textual_macros: HashMap<String, ModuleId>,
}

impl Crate {
    /// Reads the crate whose manifest is in `folder`, from its `src/lib.rs`.
    ///
    /// # Errors
    ///
    /// A file of a module cannot be found, read or parsed.
    pub fn read(folder: impl AsRef<Path>) -> Result<Self, ReadError> {
        let mut reader = Reader {
            folder: folder.as_ref(),
            modules: Vec::new(),
            textual_macros: HashMap::new(),
        };
        let place = Place {
            file: "src/lib.rs".into(),
            children: "src".into(),
            is_inline: false,
        };
        let items = reader.parse(&place.file)?;
        let root = Module::new(String::new(), None, &place, 1);
        reader.module(root, items, &place, false)?;
        Ok(Self {
            modules: reader.modules,
            textual_macros: reader.textual_macros,
        })
    }

    pub(crate) fn module(&self, id: ModuleId) -> &Module {
        &self.modules[id]
    }

    pub(crate) fn ids(&self) -> std::ops::Range<ModuleId> {
        0..self.modules.len()
    }

    pub(crate) fn textual_macro(&self, name: &str) -> Option<ModuleId> {
        self.textual_macros.get(name).copied()
    }

    /// `id` and the modules around it, from the inside out. The last is the root.
    pub(crate) fn ancestors(&self, id: ModuleId) -> impl Iterator<Item = ModuleId> {
        std::iter::successors(Some(id), |id| self.modules[*id].parent)
    }

    pub(crate) fn is_within(&self, id: ModuleId, outer: ModuleId) -> bool {
        self.ancestors(id).any(|ancestor| ancestor == outer)
    }

    /// The path of a module without `crate`, such as `quota::stored`.
    pub(crate) fn path(&self, id: ModuleId) -> String {
        let mut names: Vec<_> = self
            .ancestors(id)
            .filter(|id| *id != ROOT)
            .map(|id| self.modules[id].name.as_str())
            .collect();
        names.reverse();
        names.join("::")
    }
}

pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) parent: Option<ModuleId>,
    /// Its source file, relative to the folder of the crate.
    pub(crate) file: PathBuf,
    /// Whether it is a block of another module's file.
    pub(crate) is_inline: bool,
    /// The file and line of its declaration.
    pub(crate) declared: (PathBuf, usize),
    /// Its items outside of tests, without its modules.
    pub(crate) items: Vec<Item>,
    pub(crate) names: Names,
    /// Lines that the reader cannot follow, and why.
    pub(crate) unreadable: Vec<(usize, &'static str)>,
}

impl Module {
    fn new(name: String, parent: Option<ModuleId>, place: &Place, line: usize) -> Self {
        Self {
            name,
            parent,
            file: place.file.clone(),
            is_inline: place.is_inline,
            declared: (place.file.clone(), line),
            items: Vec::new(),
            names: Names::default(),
            unreadable: Vec::new(),
        }
    }
}

/// Why a crate cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// A declared module has no file.
    #[error("module `{module}`, declared in {}, has no file {}", declared_in.display(), tried.display())]
    NoFile {
        module: String,
        declared_in: PathBuf,
        tried: PathBuf,
    },
    /// A file cannot be read.
    #[error("{}", .0.display())]
    Io(PathBuf, #[source] io::Error),
    /// A file cannot be parsed.
    #[error("{}:{}: {}", .0.display(), .1.span().start().line, .1)]
    Syntax(PathBuf, syn::Error),
}

/// The location of a module's content.
struct Place {
    file: PathBuf,
    /// The folder in which its child modules are searched.
    children: PathBuf,
    is_inline: bool,
}

struct Reader<'a> {
    folder: &'a Path,
    modules: Vec<Module>,
    textual_macros: HashMap<String, ModuleId>,
}

impl Reader<'_> {
    /// The items of a file outside of tests.
    fn parse(&self, file: &Path) -> Result<Vec<Item>, ReadError> {
        let source = fs::read_to_string(self.folder.join(file))
            .map_err(|e| ReadError::Io(file.into(), e))?;
        let parsed = syn::parse_file(&source).map_err(|e| ReadError::Syntax(file.into(), e))?;
        if restrict_to_tests(&parsed.attrs) {
            return Ok(Vec::new());
        }
        Ok(parsed.items)
    }

    /// Adds `module` with `items`, and all modules below it.
    fn module(
        &mut self,
        module: Module,
        mut items: Vec<Item>,
        place: &Place,
        macros_leave: bool,
    ) -> Result<ModuleId, ReadError> {
        items.retain(|item| !is_test_only(item));
        let id = self.modules.len();
        self.modules.push(module);
        self.modules[id].names = Names::of(&items);
        let mut children = Vec::new();
        for item in items {
            match item {
                Item::Mod(child) => children.push(child),
                item => {
                    self.keep_macro(id, &item, macros_leave);
                    self.modules[id].items.push(item);
                }
            }
        }
        for child in children {
            if !restrict_to_tests(&child.attrs) {
                self.child(id, child, place, macros_leave)?;
            }
        }
        Ok(id)
    }

    /// Records the names by which other modules can invoke a macro.
    fn keep_macro(&mut self, id: ModuleId, item: &Item, leaves: bool) {
        let Item::Macro(item) = item else {
            return;
        };
        let Some(ident) = &item.ident else {
            return;
        };
        let name = ident.unraw().to_string();
        if leaves {
            self.textual_macros.insert(name.clone(), id);
        }
        if id != ROOT && has(&item.attrs, "macro_export") {
            let vis = Visibility::Public(Default::default());
            self.modules[ROOT]
                .names
                .add(name, &vis, Binding::Exported(id));
        }
    }

    fn child(
        &mut self,
        parent: ModuleId,
        mut item: ItemMod,
        around: &Place,
        macros_leave: bool,
    ) -> Result<(), ReadError> {
        let name = item.ident.unraw().to_string();
        let line = item.ident.span().start().line;
        let macros_leave = has(&item.attrs, "macro_use") && (parent == ROOT || macros_leave);
        if item.attrs.iter().any(sets_path_by_cfg) {
            let reason = "a `path` inside `cfg_attr` is not followed";
            self.modules[parent].unreadable.push((line, reason));
        }
        let (place, items) = match item.content.take() {
            Some((_, items)) => (around.inline(&name, &item.attrs), items),
            None => {
                let place = self.find(&name, &item.attrs, around)?;
                let items = self.parse(&place.file)?;
                (place, items)
            }
        };
        let mut module = Module::new(name.clone(), Some(parent), &place, line);
        module.declared.0.clone_from(&around.file);
        let id = self.module(module, items, &place, macros_leave)?;
        self.modules[parent]
            .names
            .add(name, &item.vis, Binding::Module(id));
        Ok(())
    }

    /// The file of `mod name;`.
    fn find(&self, name: &str, attrs: &[Attribute], around: &Place) -> Result<Place, ReadError> {
        let (file, children) = if let Some(path) = path_attribute(attrs) {
            let file = around.base().join(path);
            let children = file.parent().unwrap_or(Path::new("")).to_owned();
            (file, children)
        } else {
            let children = around.children.join(name);
            let folded = children.join("mod.rs");
            let flat = around.children.join(format!("{name}.rs"));
            let is_flat = self.folder.join(&flat).exists();
            (if is_flat { flat } else { folded }, children)
        };
        if !self.folder.join(&file).exists() {
            return Err(ReadError::NoFile {
                module: name.into(),
                declared_in: around.file.clone(),
                tried: file,
            });
        }
        Ok(Place {
            file,
            children,
            is_inline: false,
        })
    }
}

impl Place {
    /// The place of `mod name { … }` in this one.
    fn inline(&self, name: &str, attrs: &[Attribute]) -> Self {
        Self {
            file: self.file.clone(),
            children: match path_attribute(attrs) {
                Some(path) => self.base().join(path),
                None => self.children.join(name),
            },
            is_inline: true,
        }
    }

    /// The folder that a `path` attribute is relative to.
    fn base(&self) -> &Path {
        if self.is_inline {
            &self.children
        } else {
            self.file.parent().unwrap_or(Path::new(""))
        }
    }
}

fn has(attrs: &[Attribute], name: &str) -> bool {
    attrs.iter().any(|attr| attr.path().is_ident(name))
}

fn path_attribute(attrs: &[Attribute]) -> Option<String> {
    attrs.iter().find_map(|attr| match &attr.meta {
        Meta::NameValue(meta) if meta.path.is_ident("path") => match &meta.value {
            Expr::Lit(ExprLit {
                lit: Lit::Str(path),
                ..
            }) => Some(path.value()),
            _ => None,
        },
        _ => None,
    })
}

fn sets_path_by_cfg(attr: &Attribute) -> bool {
    let Meta::List(list) = &attr.meta else {
        return false;
    };
    list.path.is_ident("cfg_attr")
        && list
            .tokens
            .clone()
            .into_iter()
            .any(|token| matches!(token, proc_macro2::TokenTree::Ident(ident) if ident == "path"))
}
