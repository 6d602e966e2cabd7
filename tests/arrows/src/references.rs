//! Collects the references of a module to other modules.

use syn::{
    Arm, Block, Expr, ExprCall, ExprPath, Field, FieldValue, ForeignItem, ImplItem, Item, ItemMod,
    ItemUse, Macro, Path, Stmt, TraitItem, Variant, Visibility,
    visit::{self, Visit},
};

use crate::{
    names::{Leaf, Names, leaves, to_names},
    resolve::{End, Route},
    test_only::{is_test_only, restrict_to_tests},
    tokens,
    tree::{Crate, ModuleId},
};

/// A path in a module that leads into this or another module.
pub(crate) struct Reference {
    pub(crate) line: usize,
    pub(crate) written: String,
    pub(crate) routes: Vec<Route>,
}

/// The references of a module, and the lines that cannot be followed.
pub(crate) struct Found {
    pub(crate) references: Vec<Reference>,
    pub(crate) unreadable: Vec<(usize, &'static str)>,
}

pub(crate) fn references(source: &Crate, module: ModuleId) -> Found {
    let mut collector = Collector {
        source,
        module,
        blocks: Vec::new(),
        references: Vec::new(),
        unreadable: source.module(module).unreadable.clone(),
    };
    for item in &source.module(module).items {
        collector.visit_item(item);
    }
    Found {
        references: collector.references,
        unreadable: collector.unreadable,
    }
}

struct Collector<'a> {
    source: &'a Crate,
    module: ModuleId,
    /// The names of the enclosing blocks, from the outside in.
    blocks: Vec<Names>,
    references: Vec<Reference>,
    unreadable: Vec<(usize, &'static str)>,
}

impl Collector<'_> {
    fn refer(&mut self, path: &[String], line: usize, written: String) {
        let mut routes = self.source.resolve(self.module, &self.blocks, path);
        routes.retain(|route| route.is_by_root || !route.through.is_empty());
        if !routes.is_empty() {
            self.references.push(Reference {
                line,
                written,
                routes,
            });
        }
    }

    fn import(&mut self, leaf: &Leaf) {
        self.refer(&leaf.names(), leaf.line, leaf.written());
    }

    /// A macro that is in scope by textual order, without a path.
    fn textual_macro(&mut self, path: &Path) {
        let Some(ident) = path.get_ident() else {
            return;
        };
        let name = ident.to_string();
        let Some(home) = self.source.textual_macro(&name) else {
            return;
        };
        let is_shadowed = self
            .source
            .resolve(self.module, &self.blocks, std::slice::from_ref(&name))
            .iter()
            .any(|route| route.end != End::Outside);
        if !is_shadowed {
            self.references.push(Reference {
                line: ident.span().start().line,
                written: format!("{name}!"),
                routes: vec![Route {
                    through: vec![home],
                    is_by_root: false,
                    end: End::Item {
                        home,
                        is_type: false,
                    },
                }],
            });
        }
    }
}

impl<'ast> Visit<'ast> for Collector<'_> {
    fn visit_path(&mut self, path: &'ast Path) {
        if path.leading_colon.is_none() {
            let idents: Vec<_> = path
                .segments
                .iter()
                .map(|segment| segment.ident.clone())
                .collect();
            let names = to_names(&idents);
            self.refer(&names, idents[0].span().start().line, names.join("::"));
        }
        visit::visit_path(self, path);
    }

    fn visit_expr_path(&mut self, expr: &'ast ExprPath) {
        // A lone lower-case name is a variable more often than a constant; neither needs a path to be imported.
        let is_variable = expr
            .path
            .get_ident()
            .is_some_and(|ident| ident.to_string().starts_with(char::is_lowercase));
        if !is_variable {
            visit::visit_expr_path(self, expr);
        }
    }

    fn visit_expr_call(&mut self, call: &'ast ExprCall) {
        match &*call.func {
            Expr::Path(function) => visit::visit_expr_path(self, function),
            function => self.visit_expr(function),
        }
        for argument in &call.args {
            self.visit_expr(argument);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        if item.leading_colon.is_none() {
            for leaf in leaves(&item.tree) {
                self.import(&leaf);
            }
        }
    }

    fn visit_macro(&mut self, invocation: &'ast Macro) {
        if invocation.path.is_ident("include") {
            let line = invocation.path.segments[0].ident.span().start().line;
            self.unreadable.push((line, "`include!` is not followed"));
        }
        self.textual_macro(&invocation.path);
        visit::visit_macro(self, invocation);
    }

    fn visit_token_stream(&mut self, stream: &'ast proc_macro2::TokenStream) {
        for found in tokens::paths(stream) {
            match found {
                tokens::Found::Path(idents) => {
                    let names = to_names(&idents);
                    self.refer(&names, idents[0].span().start().line, names.join("::"));
                }
                tokens::Found::Import(leaf) => self.import(&leaf),
            }
        }
    }

    fn visit_block(&mut self, block: &'ast Block) {
        let items = block.stmts.iter().filter_map(|statement| match statement {
            Stmt::Item(item) if !is_test_only(item) => Some(item),
            _ => None,
        });
        self.blocks.push(Names::of(items));
        visit::visit_block(self, block);
        self.blocks.pop();
    }

    // The modules of a module are visited on their own: this one is in a function.
    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        let line = item.ident.span().start().line;
        let reason = "a module inside a function is not followed";
        self.unreadable.push((line, reason));
    }

    // Attributes name derive macros and their helpers, and hold the docs.
    fn visit_attribute(&mut self, _: &'ast syn::Attribute) {}

    // `pub(in crate::a)` imports nothing.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}

    fn visit_item(&mut self, item: &'ast Item) {
        if !is_test_only(item) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        if !is_test_only(item) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_trait_item(&mut self, item: &'ast TraitItem) {
        if !is_test_only(item) {
            visit::visit_trait_item(self, item);
        }
    }

    fn visit_foreign_item(&mut self, item: &'ast ForeignItem) {
        if !is_test_only(item) {
            visit::visit_foreign_item(self, item);
        }
    }

    fn visit_stmt(&mut self, statement: &'ast Stmt) {
        if !is_test_only(statement) {
            visit::visit_stmt(self, statement);
        }
    }

    fn visit_field(&mut self, field: &'ast Field) {
        if !restrict_to_tests(&field.attrs) {
            visit::visit_field(self, field);
        }
    }

    fn visit_field_value(&mut self, field: &'ast FieldValue) {
        if !restrict_to_tests(&field.attrs) {
            visit::visit_field_value(self, field);
        }
    }

    fn visit_variant(&mut self, variant: &'ast Variant) {
        if !restrict_to_tests(&variant.attrs) {
            visit::visit_variant(self, variant);
        }
    }

    fn visit_arm(&mut self, arm: &'ast Arm) {
        if !restrict_to_tests(&arm.attrs) {
            visit::visit_arm(self, arm);
        }
    }
}
