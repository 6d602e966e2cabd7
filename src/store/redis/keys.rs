//! The names and contents of keys.
//!
//! | key | type | what is in it |
//! |---|---|---|
//! | `quota:{acme}account:user:{acme}:42` | hash | the account of a scope: see below |
//! | `quota:{acme}expiry:user:{acme}:42` | sorted set | the holds of the scope, by when they expire: milliseconds since 1970, by the clock of Redis less what it was set ahead |
//! | `quota:{acme}settled` | sorted set | the tombstones of settlements, by when they were made: of the last day, and no more than the last 100,000. Expires a day after the last |
//! | `quota:{-}ahead` | string | how far the clock of Redis was set ahead, in milliseconds. Missing if it was not. In a cluster `quota:{acme}ahead` |
//! | `quota:{-}baseline` | string | the baseline of the store: a number |
//!
//! | field of the hash | what is in it |
//! |---|---|
//! | `used` | bytes and objects stored. Missing if zero |
//! | `held` | bytes and objects reserved: the sum of the holds, some of which may have expired |
//! | `limits` | the limits of its own: hard bytes, hard objects, soft bytes, soft objects, and the grace in milliseconds; `-` is none. Missing if it has none |
//! | `unmatched` | bytes and objects that were given back without having been charged. Missing if zero |
//! | `over` | since when usage of bytes and of objects has been above the soft limit, by the same clock as holds; `-` if it is not. Missing if neither is |
//! | `<id>` | bytes and objects of one hold |
//!
//! Figures are plain decimal digits, two or five of them with spaces between. A field that is zero is deleted, so a scope
//! that has nothing leaves no key.

use crate::scope::Scope;

/// What a key holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum KeyKind {
    Account,
    Expiry,
}

impl KeyKind {
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
    pub(super) fn of(&self, kind: KeyKind, scope: &Scope) -> String {
        let (prefix, tag, kind) = (&self.prefix, tag(scope), kind.name());
        format!("{prefix}{{{tag}}}{kind}{}", scope.as_str())
    }

    /// The key of the ids that were settled, in the slot of this scope.
    pub(super) fn settled(&self, scope: &Scope) -> String {
        format!("{}{{{}}}settled", self.prefix, tag(scope))
    }

    /// The key of what a clock was set ahead, in the slot of this hash tag.
    pub(super) fn ahead(&self, tag: &str) -> String {
        format!("{}{{{tag}}}ahead", self.prefix)
    }

    /// The key of the baseline. No other key of ours ends like this.
    pub(super) fn baseline(&self) -> String {
        format!("{}{{-}}baseline", self.prefix)
    }

    /// The scope of a key, if the key is one of ours.
    pub(super) fn scope(&self, kind: KeyKind, key: &[u8]) -> Option<Scope> {
        let key = str::from_utf8(key).ok()?.strip_prefix(&self.prefix)?;
        let (found, name) = key.strip_prefix('{')?.split_once('}')?;
        let scope = Scope::from(name.strip_prefix(kind.name())?);
        (tag(&scope) == found).then_some(scope)
    }

    /// A glob pattern that all keys of a kind match, and few others.
    pub(super) fn pattern(&self, kind: KeyKind) -> String {
        let mut pattern = String::new();
        for character in self.prefix.chars() {
            if matches!(character, '*' | '?' | '[' | ']' | '\\') {
                pattern.push('\\');
            }
            pattern.push(character);
        }
        pattern + "{*}" + kind.name() + "*"
    }

    /// Whether the prefix puts all keys into one slot.
    pub(super) fn have_one_slot(&self) -> bool {
        hash_tag(&self.prefix).is_some()
    }

    /// Unused keys in many slots, or in the one slot that the prefix puts all keys into.
    pub(super) fn unused(&self) -> impl Iterator<Item = String> {
        let count = if self.have_one_slot() { 1 } else { 1 << 20 };
        (0..count).map(|number| format!("{}{{{number}}}", self.prefix))
    }
}

/// The hash tag of a scope's keys.
///
/// It contains no `}`, so no two scopes have the same key, and all keys of a scope have the same slot.
pub(super) fn tag(scope: &Scope) -> &str {
    let name = scope.as_str();
    match hash_tag(name) {
        Some(tag) => tag,
        None if name.is_empty() || name.contains(['{', '}']) => "-",
        None => name,
    }
}

/// The hash tag in a name: the text between the first `{` and the first `}` after it, unless it is empty.
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
                let account = keys.of(KeyKind::Account, &scope);
                let expiry = keys.of(KeyKind::Expiry, &scope);
                let settled = keys.settled(&scope);
                assert_eq!(slot(&account), slot(&expiry), "{account}");
                assert_eq!(slot(&account), slot(&settled), "{account}");
                let ahead = keys.ahead(tag(&scope));
                assert_eq!(slot(&account), slot(&ahead), "{account}");
                assert_eq!(keys.scope(KeyKind::Account, ahead.as_bytes()), None);
                assert_eq!(
                    keys.scope(KeyKind::Account, account.as_bytes()),
                    Some(scope.clone())
                );
                assert_eq!(keys.scope(KeyKind::Expiry, account.as_bytes()), None);
                assert_eq!(keys.scope(KeyKind::Expiry, expiry.as_bytes()), Some(scope));
                assert!(all.insert(account) && all.insert(expiry));
            }
        }
    }

    #[test]
    fn scopes_that_share_a_hash_tag_share_a_slot() {
        let keys = keys("quota:");
        let slot = |name: &str| slot(&keys.of(KeyKind::Account, &name.into()));
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
            assert_eq!(keys.scope(KeyKind::Account, key), None);
        }
        let pattern = self::keys("a*b[c]?\\").pattern(KeyKind::Account);
        assert_eq!(pattern, "a\\*b\\[c\\]\\?\\\\{*}account:*");
    }
}
