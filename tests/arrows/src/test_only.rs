//! Recognises code that only exists in tests.

use proc_macro2::TokenStream;
use quote::ToTokens;
use syn::{
    Attribute, Meta, Token,
    parse::{ParseStream, Parser},
    punctuated::Punctuated,
};

/// Whether `node` begins with an attribute that restricts it to tests.
pub(crate) fn is_test_only(node: &impl ToTokens) -> bool {
    let leading = |input: ParseStream<'_>| {
        let attributes = input.call(Attribute::parse_outer)?;
        input.parse::<TokenStream>()?;
        Ok(attributes)
    };
    leading
        .parse2(node.to_token_stream())
        .is_ok_and(|attributes| restrict_to_tests(&attributes))
}

/// Whether one of `attributes` restricts what they are on to tests.
pub(crate) fn restrict_to_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let path = attribute.path();
        // `#[test]`, `#[tokio::test]`.
        let is_test = path
            .segments
            .last()
            .is_some_and(|last| last.ident == "test");
        is_test || path.is_ident("cfg") && conditions(&attribute.meta).iter().any(implies_test)
    })
}

fn implies_test(condition: &Meta) -> bool {
    let inner = conditions(condition);
    match condition
        .path()
        .get_ident()
        .map(ToString::to_string)
        .as_deref()
    {
        Some("test") => true,
        Some("all") => inner.iter().any(implies_test),
        Some("any") => !inner.is_empty() && inner.iter().all(implies_test),
        _ => false,
    }
}

/// The conditions in the parentheses of `meta`; empty if that is not a list of conditions.
fn conditions(meta: &Meta) -> Vec<Meta> {
    let Meta::List(list) = meta else {
        return Vec::new();
    };
    list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated)
        .map(|parsed| parsed.into_iter().collect())
        .unwrap_or_default()
}
