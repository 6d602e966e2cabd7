//! The names of what is charged.

use std::{
    cmp::Ordering,
    fmt,
    hash::{BuildHasher, Hash, Hasher, RandomState},
    slice, str,
    sync::{Arc, LazyLock},
};

/// The longest name, in bytes, that is kept without an allocation.
///
/// With it a [`Scope`] is 32 bytes.
const INLINE: usize = 21;

/// Keyed randomly once per process, so that clients that choose names cannot choose collisions.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// The name of an account that is charged, such as `user:42` or `collection:/photos`.
///
/// Two scopes are equal when their names are. Names of up to 21 bytes need no allocation, and a clone never does. The
/// name is hashed once, when the scope is made.
///
/// ```
/// use tower_storage_guard::Scope;
///
/// let id = 42;
/// let scope = Scope::from(format_args!("user:{id}"));
/// assert_eq!(scope, Scope::from("user:42"));
/// assert_eq!(scope.as_str(), "user:42");
/// ```
#[derive(Clone)]
pub struct Scope {
    hash: u64,
    name: Name,
}

// `disclosed` is in here and not in `Scope` because both variants have padding for it.
#[derive(Clone)]
enum Name {
    Inline {
        disclosed: bool,
        len: u8,
        bytes: [u8; INLINE],
    },
    Shared {
        disclosed: bool,
        text: Arc<str>,
    },
}

impl Scope {
    /// Returns the name.
    pub fn as_str(&self) -> &str {
        match &self.name {
            Name::Inline { .. } => {
                str::from_utf8(self.as_bytes()).expect("inline names are copied whole from a str")
            }
            Name::Shared { text, .. } => text,
        }
    }

    /// Hides the figures of this scope from the client: a refusal names neither its limit nor its usage.
    ///
    /// Use it if the scope is not the client's, such as that of the owner of the folder that the client writes to.
    ///
    /// ```
    /// use tower_storage_guard::Scope;
    ///
    /// let owner = Scope::from("user:1").undisclosed();
    /// assert!(!owner.is_disclosed());
    /// assert_eq!(owner, Scope::from("user:1"));
    /// ```
    #[must_use]
    pub fn undisclosed(mut self) -> Self {
        *self.disclosed_mut() = false;
        self
    }

    /// Returns whether a refusal may show the figures of this scope to the client. It may unless
    /// [`undisclosed`](Self::undisclosed) was called.
    pub fn is_disclosed(&self) -> bool {
        match self.name {
            Name::Inline { disclosed, .. } | Name::Shared { disclosed, .. } => disclosed,
        }
    }

    /// The value that [`Hash`] writes; keyed, so that it can also select a shard.
    pub(crate) fn hash_code(&self) -> u64 {
        self.hash
    }

    // Cheaper than `as_str`, which has to validate every byte as UTF-8.
    fn as_bytes(&self) -> &[u8] {
        match &self.name {
            Name::Inline { len, bytes, .. } => &bytes[..usize::from(*len)],
            Name::Shared { text, .. } => text.as_bytes(),
        }
    }

    fn disclosed_mut(&mut self) -> &mut bool {
        match &mut self.name {
            Name::Inline { disclosed, .. } | Name::Shared { disclosed, .. } => disclosed,
        }
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Scope").field(&self.as_str()).finish()
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.as_str(), f)
    }
}

impl AsRef<str> for Scope {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl Eq for Scope {}

impl PartialEq for Scope {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
            && match (&self.name, &other.name) {
                // The rest of both is zero.
                (
                    Name::Inline { len, bytes, .. },
                    Name::Inline {
                        len: l, bytes: b, ..
                    },
                ) => len == l && bytes == b,
                _ => self.as_bytes() == other.as_bytes(),
            }
    }
}

impl Hash for Scope {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl Ord for Scope {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl PartialOrd for Scope {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl From<&str> for Scope {
    fn from(text: &str) -> Self {
        let name = if text.len() <= INLINE {
            let mut bytes = [0; INLINE];
            bytes[..text.len()].copy_from_slice(text.as_bytes());
            Name::Inline {
                disclosed: true,
                len: text.len() as u8,
                bytes,
            }
        } else {
            Name::Shared {
                disclosed: true,
                text: text.into(),
            }
        };
        Self {
            hash: HASHER.hash_one(text),
            name,
        }
    }
}

impl From<String> for Scope {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl From<&Self> for Scope {
    fn from(scope: &Self) -> Self {
        scope.clone()
    }
}

/// Formats the name in place, without an allocation if it is short.
///
/// # Panics
///
/// If a `Display` in `args` fails, like [`format!`].
impl From<fmt::Arguments<'_>> for Scope {
    fn from(args: fmt::Arguments<'_>) -> Self {
        let mut text = Buffer::default();
        fmt::write(&mut text, args).expect("a Display of the name failed");
        Self::from(text.as_str())
    }
}

/// The hasher of maps that are keyed by [`Scope`]: returns the keyed hash that the scope carries.
#[derive(Default)]
pub(crate) struct PassThrough(u64);

impl Hasher for PassThrough {
    fn write(&mut self, _: &[u8]) {
        unreachable!("a scope hashes itself as one u64");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Collects formatted text, on the stack while it is short.
#[derive(Default)]
struct Buffer {
    bytes: [u8; INLINE],
    len: usize,
    /// Used for the whole text once it is longer than `bytes`.
    long: Option<String>,
}

impl Buffer {
    fn as_str(&self) -> &str {
        match &self.long {
            Some(long) => long,
            None => str::from_utf8(&self.bytes[..self.len]).expect("written to in whole strs only"),
        }
    }
}

impl fmt::Write for Buffer {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        let end = self.len + piece.len();
        if let Some(long) = &mut self.long {
            long.push_str(piece);
        } else if let Some(room) = self.bytes.get_mut(self.len..end) {
            room.copy_from_slice(piece.as_bytes());
            self.len = end;
        } else {
            self.long = Some([self.as_str(), piece].concat());
        }
        Ok(())
    }
}

/// The scopes that a request charges: none, one or several, each once.
///
/// A scope that is given twice is [disclosed](Scope::is_disclosed) if one of the two is. A client that is also the
/// owner may see its own figures.
///
/// ```
/// use tower_storage_guard::{Scope, Scopes};
///
/// let scopes = Scopes::from(["user:42", "tenant:acme", "user:42"]);
/// assert_eq!(scopes.len(), 2);
/// assert!(Scopes::from(None::<Scope>).is_empty());
/// ```
#[derive(Clone, Default)]
pub struct Scopes(Set);

// Most requests charge no scope or one: neither allocates.
#[derive(Clone, Default)]
enum Set {
    #[default]
    None,
    One(Scope),
    Several(Arc<[Scope]>),
}

impl Scopes {
    /// No scopes.
    pub const NONE: Self = Self(Set::None);

    /// Returns the scopes, in the order given.
    pub fn iter(&self) -> slice::Iter<'_, Scope> {
        self.as_slice().iter()
    }

    /// Returns the number of scopes.
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// Returns whether there are no scopes.
    pub fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }

    /// The scopes that are also in `others`.
    pub(crate) fn both(&self, others: &Self) -> Self {
        let both = self
            .iter()
            .filter(|scope| others.as_slice().contains(scope));
        both.cloned().collect()
    }

    /// The scopes that are not in `others`.
    pub(crate) fn without(&self, others: &Self) -> Self {
        let rest = self
            .iter()
            .filter(|scope| !others.as_slice().contains(scope));
        rest.cloned().collect()
    }

    pub(crate) fn as_slice(&self) -> &[Scope] {
        match &self.0 {
            Set::None => &[],
            Set::One(scope) => slice::from_ref(scope),
            Set::Several(scopes) => scopes,
        }
    }
}

/// In their order, as they were given.
impl PartialEq for Scopes {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for Scopes {}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self).finish()
    }
}

impl From<Scope> for Scopes {
    fn from(scope: Scope) -> Self {
        Self(Set::One(scope))
    }
}

impl From<&Scope> for Scopes {
    fn from(scope: &Scope) -> Self {
        scope.clone().into()
    }
}

impl From<&Self> for Scopes {
    fn from(scopes: &Self) -> Self {
        scopes.clone()
    }
}

impl From<fmt::Arguments<'_>> for Scopes {
    fn from(name: fmt::Arguments<'_>) -> Self {
        Scope::from(name).into()
    }
}

impl From<&str> for Scopes {
    fn from(name: &str) -> Self {
        Scope::from(name).into()
    }
}

impl From<String> for Scopes {
    fn from(name: String) -> Self {
        Scope::from(name).into()
    }
}

impl<S: Into<Scope>> From<Option<S>> for Scopes {
    fn from(scope: Option<S>) -> Self {
        scope.into_iter().collect()
    }
}

impl<S: Into<Scope>> From<Vec<S>> for Scopes {
    fn from(scopes: Vec<S>) -> Self {
        scopes.into_iter().collect()
    }
}

impl<S: Into<Scope>, const N: usize> From<[S; N]> for Scopes {
    fn from(scopes: [S; N]) -> Self {
        scopes.into_iter().collect()
    }
}

impl<S: Into<Scope>> FromIterator<S> for Scopes {
    fn from_iter<I: IntoIterator<Item = S>>(scopes: I) -> Self {
        let mut scopes = scopes.into_iter().map(Into::into);
        let Some(first) = scopes.next() else {
            return Self::NONE;
        };
        let Some(second) = scopes.next() else {
            return first.into();
        };

        let mut distinct: Vec<Scope> = vec![first];
        for scope in std::iter::once(second).chain(scopes) {
            // A request charges few scopes: a linear search is faster than a set.
            match distinct.iter_mut().find(|known| **known == scope) {
                Some(known) => *known.disclosed_mut() |= scope.is_disclosed(),
                None => distinct.push(scope),
            }
        }
        match distinct.len() {
            1 => distinct.remove(0).into(),
            _ => Self(Set::Several(distinct.into())),
        }
    }
}

impl<'a> IntoIterator for &'a Scopes {
    type IntoIter = slice::Iter<'a, Scope>;
    type Item = &'a Scope;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, hint::black_box};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size_of::<Scope>(), 32);
        assert_eq!(size_of::<Scopes>(), 32);
    }

    #[test]
    fn short_names_do_not_allocate() {
        drop(Scope::from("the hasher is made now"));
        let name = "n".repeat(INLINE);
        let counted = allocation_counter::measure(|| {
            let scope = black_box(Scope::from(name.as_str()));
            black_box(Scopes::from(scope.clone()).clone());
            black_box(Scopes::from(Some(scope)));
            black_box(Scopes::from(None::<&str>));
            black_box(Scope::from(format_args!("user:{}", black_box(42))));
        });
        assert_eq!(counted.count_total, 0);
    }

    #[test]
    fn clones_of_long_names_do_not_allocate() {
        let scope = Scope::from("n".repeat(INLINE + 1));
        let scopes = Scopes::from(["a", "b"]);
        let counted = allocation_counter::measure(|| {
            black_box(scope.clone());
            black_box(scopes.clone());
        });
        assert_eq!(counted.count_total, 0);
    }

    #[test]
    fn disclosure_is_no_part_of_identity() {
        for name in ["short", "a name that is too long to be kept inline"] {
            let (shown, hidden) = (Scope::from(name), Scope::from(name).undisclosed());
            assert!(shown.is_disclosed() && !hidden.is_disclosed());
            assert_eq!(shown, hidden);
            assert_eq!(shown.cmp(&hidden), Ordering::Equal);
            assert_eq!(HashSet::from([shown, hidden]).len(), 1);
        }
    }

    #[test]
    fn duplicates_go_and_the_order_stays() {
        let scopes = Scopes::from(vec!["b", "a", "b", "c", "a"]);
        assert_eq!(
            scopes.iter().map(Scope::as_str).collect::<Vec<_>>(),
            ["b", "a", "c"]
        );
        assert!(matches!(Scopes::from(["a", "a"]).0, Set::One(_)));
    }

    #[test]
    fn a_duplicate_is_disclosed_if_one_of_the_two_is() {
        let (shown, hidden) = (Scope::from("a"), Scope::from("a").undisclosed());
        for pair in [[&shown, &hidden], [&hidden, &shown]] {
            assert!(Scopes::from(pair).as_slice()[0].is_disclosed());
        }
        assert!(!Scopes::from([&hidden, &hidden]).as_slice()[0].is_disclosed());
    }

    proptest! {
        #[test]
        fn behaves_like_its_name(a in ".{0,8}", b in ".{0,30}") {
            let (x, y) = (Scope::from(a.as_str()), Scope::from(b.clone()));
            prop_assert_eq!(x.as_str(), &a);
            prop_assert_eq!(y.to_string(), b.clone());
            prop_assert_eq!(x.cmp(&y), a.cmp(&b));
            prop_assert_eq!(x == y, a == b);

            let joined = Scope::from(format_args!("{a}{b}"));
            prop_assert_eq!(&joined, &Scope::from(format!("{a}{b}")));
            prop_assert_eq!(joined.hash_code(), Scope::from(format!("{a}{b}")).hash_code());
        }
    }
}
