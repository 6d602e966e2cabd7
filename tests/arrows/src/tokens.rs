//! Finds paths among the tokens of a macro, whose grammar is unknown.

use proc_macro2::{Delimiter, Ident, Spacing, TokenStream, TokenTree};
use syn::UseTree;

use crate::names::{Leaf, leaves};

pub(crate) enum Found {
    Path(Vec<Ident>),
    /// One path of `a::{b, c}` or `a::*`.
    Import(Leaf),
}

/// All paths of more than one name, and single names that begin with a capital. Strings and attributes are excluded.
pub(crate) fn paths(stream: &TokenStream) -> Vec<Found> {
    let mut found = Vec::new();
    collect(stream, &mut found);
    found
}

fn collect(stream: &TokenStream, found: &mut Vec<Found>) {
    let tokens: Vec<_> = stream.clone().into_iter().collect();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        match token {
            TokenTree::Ident(_) if begins_path(&tokens[..at], token) => {
                at = path(&tokens, at, found);
                continue;
            }
            TokenTree::Group(group) if !is_attribute(&tokens[..at], group.delimiter()) => {
                collect(&group.stream(), found);
            }
            _ => {}
        }
        at += 1;
    }
}

/// Whether an identifier after `before` begins a path of this crate: neither a metavariable nor the continuation of a
/// path.
fn begins_path(before: &[TokenTree], ident: &TokenTree) -> bool {
    match before {
        [.., TokenTree::Punct(last)] if last.as_char() == '$' => is_ident(ident, "crate"),
        _ => !ends_in_colons(before),
    }
}

/// Reads the path that begins at `at`. Returns the index after it.
fn path(tokens: &[TokenTree], mut at: usize, found: &mut Vec<Found>) -> usize {
    let begin = at;
    let mut idents = Vec::new();
    while let Some(TokenTree::Ident(ident)) = tokens.get(at) {
        idents.push(ident.clone());
        at += 1;
        if !ends_in_colons(&tokens[..tokens.len().min(at + 2)]) {
            break;
        }
        at += 2;
    }
    // After the last `::`, an import of several names, or generic arguments, may follow.
    let is_import = match tokens.get(at) {
        Some(TokenTree::Group(group)) => group.delimiter() == Delimiter::Brace,
        Some(TokenTree::Punct(punct)) => punct.as_char() == '*',
        _ => false,
    };
    if is_import && ends_in_colons(&tokens[..at]) {
        let tree = tokens[begin..=at].iter().cloned().collect();
        if let Ok(tree) = syn::parse2::<UseTree>(tree) {
            found.extend(leaves(&tree).into_iter().map(Found::Import));
            return at + 1;
        }
    }
    let is_type = idents[0].to_string().starts_with(char::is_uppercase);
    if idents.len() > 1 || is_type {
        found.push(Found::Path(idents));
    }
    at
}

fn ends_in_colons(tokens: &[TokenTree]) -> bool {
    matches!(
        tokens,
        [.., first, TokenTree::Punct(second)] if second.as_char() == ':' && is_joint(first, ':')
    )
}

fn is_attribute(before: &[TokenTree], delimiter: Delimiter) -> bool {
    let is =
        |token: &TokenTree, char| matches!(token, TokenTree::Punct(it) if it.as_char() == char);
    delimiter == Delimiter::Bracket
        && match before {
            [.., hash, bang] if is(bang, '!') => is(hash, '#'),
            [.., hash] => is(hash, '#'),
            [] => false,
        }
}

fn is_ident(token: &TokenTree, name: &str) -> bool {
    matches!(token, TokenTree::Ident(ident) if ident == name)
}

fn is_joint(token: &TokenTree, char: char) -> bool {
    matches!(token, TokenTree::Punct(it) if it.as_char() == char && it.spacing() == Spacing::Joint)
}
