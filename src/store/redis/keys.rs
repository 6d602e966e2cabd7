//! How keys are named.
//!
//! | key | type | what is in it |
//! |---|---|---|
//! | `quota:{acme}account:user:{acme}:42` | hash | a scope: see below |
//! | `quota:{acme}expiry:user:{acme}:42` | sorted set | its holds, by when they end: milliseconds since 1970, by Redis' clock |
//! | `quota:{acme}settled:<id>` | string | that this is settled; gone after a day |
//!
//! | field of the hash | what is in it |
//! |---|---|
//! | `used` | bytes and objects stored. Not there: none |
//! | `held` | bytes and objects set aside: the sum of its holds, some of which may have ended |
//! | `limits` | its own: hard bytes, hard objects, soft bytes, soft objects; `-` is no limit. Not there: it has none |
//! | `<id>` | bytes and objects of one hold |
//!
//! A figure is in plain decimal digits, two or four of them with a space between them. What is zero is not there, so
//! a scope that has nothing leaves nothing.

use crate::{scope::Scope, store::HoldId};

/// What a key is of.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Account,
    Expiry,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Account => "account:",
            Self::Expiry => "expiry:",
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Keys {
    pub(super) prefix: String,
}

impl Keys {
    pub(super) fn of(&self, kind: Kind, scope: &Scope) -> String {
        let (prefix, tag, kind) = (&self.prefix, tag(scope), kind.name());
        format!("{prefix}{{{tag}}}{kind}{}", scope.as_str())
    }

    /// Where it stands that something is settled, beside this scope.
    pub(super) fn settled(&self, id: HoldId, scope: &Scope) -> String {
        let (prefix, tag) = (&self.prefix, tag(scope));
        format!("{prefix}{{{tag}}}settled:{id}")
    }

    /// Whose key this is, if it is one of ours.
    pub(super) fn scope(&self, kind: Kind, key: &[u8]) -> Option<Scope> {
        let key = str::from_utf8(key).ok()?.strip_prefix(&self.prefix)?;
        let (found, name) = key.strip_prefix('{')?.split_once('}')?;
        let scope = Scope::from(name.strip_prefix(kind.name())?);
        (tag(&scope) == found).then_some(scope)
    }

    /// A pattern of Redis' that all keys of a kind match, and few others.
    pub(super) fn pattern(&self, kind: Kind) -> String {
        let mut pattern = String::new();
        for character in self.prefix.chars() {
            if matches!(character, '*' | '?' | '[' | ']' | '\\') {
                pattern.push('\\');
            }
            pattern.push(character);
        }
        pattern + "{*}" + kind.name() + "*"
    }

    /// Keys that nobody uses, in many slots; in one slot where all keys are.
    pub(super) fn unused(&self) -> impl Iterator<Item = String> {
        let count = match hash_tag(&self.prefix) {
            Some(_) => 1,
            None => 1 << 20,
        };
        (0..count).map(|number| format!("{}{{{number}}}", self.prefix))
    }
}

/// The part of a scope's name that says where it is kept in a cluster.
///
/// It contains no `}`: so no two scopes have the same key, and all keys of one have the same slot.
pub(super) fn tag(scope: &Scope) -> &str {
    let name = scope.as_str();
    match hash_tag(name) {
        Some(tag) => tag,
        None if name.is_empty() || name.contains(['{', '}']) => "-",
        None => name,
    }
}

/// As Redis finds it: between the first `{` and the first `}` after it, unless that is nothing.
fn hash_tag(name: &str) -> Option<&str> {
    let (_, rest) = name.split_once('{')?;
    let (tag, _) = rest.split_once('}')?;
    (!tag.is_empty()).then_some(tag)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use redis::cluster_routing::Slot;

    use super::*;

    fn slot(key: &str) -> Slot {
        Slot::for_key(key)
    }

    fn keys(prefix: &str) -> Keys {
        Keys {
            prefix: prefix.into(),
        }
    }

    #[test]
    fn slots_are_those_of_redis() {
        // By `CLUSTER KEYSLOT`.
        for (key, expected) in [
            ("", 0),
            ("123456789", 12_739),
            ("foo", 12_182),
            ("{foo}bar", 12_182),
            ("a{foo}{bar}", 12_182),
            ("foo{}{bar}", 8_363),
        ] {
            assert_eq!(Some(slot(key)), Slot::new(expected), "{key}");
        }
    }

    /// All names of up to six of the characters that matter.
    fn names() -> Vec<String> {
        let mut names = vec![String::new()];
        let mut last = names.clone();
        for _ in 0..6 {
            let longer = |name: &String| ["{", "}", "-", "a"].map(|next| format!("{name}{next}"));
            last = last.iter().flat_map(longer).collect();
            names.extend_from_slice(&last);
        }
        names
    }

    #[test]
    fn a_scope_has_keys_of_its_own_in_one_slot_and_is_found_by_them() {
        for prefix in ["quota:", "", "a{b", "a}b", "{all}:"] {
            let keys = keys(prefix);
            let mut all = HashSet::new();
            for name in names() {
                let scope = Scope::from(name);
                let account = keys.of(Kind::Account, &scope);
                let expiry = keys.of(Kind::Expiry, &scope);
                let settled = keys.settled(HoldId::unique(), &scope);
                assert_eq!(slot(&account), slot(&expiry), "{account}");
                assert_eq!(slot(&account), slot(&settled), "{account}");
                assert_eq!(
                    keys.scope(Kind::Account, account.as_bytes()),
                    Some(scope.clone())
                );
                assert_eq!(keys.scope(Kind::Expiry, account.as_bytes()), None);
                assert_eq!(keys.scope(Kind::Expiry, expiry.as_bytes()), Some(scope));
                assert!(all.insert(account) && all.insert(expiry));
            }
        }
    }

    #[test]
    fn scopes_that_share_a_hash_tag_share_a_slot() {
        let keys = keys("quota:");
        let slot = |name: &str| slot(&keys.of(Kind::Account, &name.into()));
        assert_eq!(slot("user:{acme}:42"), slot("tenant:{acme}"));
        assert_eq!(slot("acme"), slot("tenant:{acme}"));
        assert_ne!(slot("user:42"), slot("tenant:acme"));
    }

    #[test]
    fn what_others_keep_is_not_ours() {
        let keys = keys("quota:");
        for key in [
            &b"quota:{acme}account:tenant:{other}"[..],
            b"quota:account:acme",
            b"quota:{a}{acme}account:acme",
            b"other:{acme}account:acme",
            b"quota:{acme}account:\xff",
        ] {
            assert_eq!(keys.scope(Kind::Account, key), None);
        }
        let pattern = self::keys("a*b[c]?\\").pattern(Kind::Account);
        assert_eq!(pattern, "a\\*b\\[c\\]\\?\\\\{*}account:*");
    }
}
