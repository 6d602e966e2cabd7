//! What a WebDAV request asks for, and its price.

use std::{io, path::PathBuf, sync::Arc};

use http::{
    HeaderMap,
    header::{CONTENT_RANGE, HeaderName},
    request,
};

use super::{
    WebDav,
    credit::{Credit, Credits},
    measures::Measures,
    path,
};
use crate::{
    amount::Amount,
    collection::After,
    demand::Demand,
    head::{Malformed, decimal, only},
    price::Price,
    scope::Scopes,
    tree::Depth,
};

const DEPTH: HeaderName = HeaderName::from_static("depth");
const DESTINATION: HeaderName = HeaderName::from_static("destination");
const OVERWRITE: HeaderName = HeaderName::from_static("overwrite");
/// Of PATCH, as SabreDAV defines it.
const UPDATE_RANGE: HeaderName = HeaderName::from_static("x-update-range");

/// What a request does, as far as its price depends on it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Verb {
    /// Replaces the target: PUT.
    Put,
    /// Writes from an offset on: PUT with `Content-Range`, and PATCH.
    Part(Part),
    Copy,
    Move,
    Delete,
    Lock,
    /// Costs what its head declares: MKCOL, PROPPATCH and others.
    Other,
}

/// A part of a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Part {
    /// Its first byte, in the file as it will be.
    first: u64,
    /// Whether the head says so. Otherwise it may be anywhere behind that, such as at the end.
    is_exact: bool,
}

impl Part {
    const ANYWHERE: Self = Self {
        first: 0,
        is_exact: false,
    };
}

/// A path, and the scopes that it is charged to.
struct Place {
    path: PathBuf,
    scopes: Scopes,
}

/// The parts of a request that its price depends on.
pub(super) struct Asked {
    verb: Verb,
    depth: Depth,
    /// Whether its body is stored, where that is not plain.
    stores_body: bool,
    overwrites_in_place: bool,
    target: Place,
    /// Of COPY and MOVE. None if it is outside of the tree.
    destination: Option<Place>,
}

/// A price, and the credit that it includes. As long as the request is in flight, no other request gets that.
pub(super) struct Priced {
    pub(super) price: Price,
    pub(super) credits: Vec<Credit>,
    /// How much the request may remove, move or replace.
    pub(super) removes: Amount,
}

impl Asked {
    /// None if the target is outside of the tree.
    pub(super) fn of(
        dav: &WebDav,
        head: &request::Parts,
        demand: Demand,
    ) -> Result<Option<Self>, Malformed> {
        if dav.prefix.is_plainly_outside(head.uri.path()) {
            return Ok(None);
        }
        let part = part(&head.headers)?;
        let verb = match head.method.as_str() {
            "PUT" => part.map_or(Verb::Put, Verb::Part),
            "PATCH" => Verb::Part(part.unwrap_or(Part::ANYWHERE)),
            "COPY" => Verb::Copy,
            "MOVE" => Verb::Move,
            "DELETE" => Verb::Delete,
            "LOCK" => Verb::Lock,
            _ => Verb::Other,
        };
        let depth = depth(&head.headers)?;
        // RFC 4918, section 10.6. The value does not change the price: where it forbids the request, the service refuses it,
        // and everything is released.
        if let Some(overwrite) = only(&head.headers, &OVERWRITE)?
            && !matches!(overwrite, b"T" | b"F" | b"t" | b"f")
        {
            return Err(Malformed);
        }
        let destination = only(&head.headers, &DESTINATION)?;
        let destination = destination.map(path::in_header).transpose()?;
        let place = |path: &str| -> Result<Option<Place>, Malformed> {
            let path = dav.prefix.strip(path)?;
            Ok(path.map(|path| Place {
                scopes: dav.scopes(head, &path),
                path,
            }))
        };
        let target = place(head.uri.path())?;
        // They have no content (RFC 9110, section 9.3.5; RFC 4918, section 8.4). A service that waits for it keeps the tree from
        // others: the client would decide when what it was priced by is removed or copied.
        if matches!(verb, Verb::Copy | Verb::Move | Verb::Delete) && demand.bytes() != Some(0) {
            return Err(Malformed);
        }
        let destination = match verb {
            Verb::Copy | Verb::Move => Some(place(&destination.ok_or(Malformed)?)?),
            _ => None,
        };
        match (target, destination) {
            (Some(target), destination) => Ok(Some(Self {
                verb,
                depth,
                stores_body: (dav.stores_body)(head),
                overwrites_in_place: dav.overwrites_in_place,
                target,
                destination: destination.flatten(),
            })),
            // What comes from outside of the tree has no price.
            (None, Some(Some(_))) => Err(Malformed),
            (None, _) => Ok(None),
        }
    }

    pub(super) fn is_removal(&self) -> bool {
        self.verb == Verb::Delete
    }

    /// The paths that the request writes to, and how it affects limited collections under them, which the price does
    /// not include.
    pub(super) fn touched(&self) -> Vec<(PathBuf, After)> {
        let (at_target, at_destination) = match self.verb {
            Verb::Put | Verb::Part(_) | Verb::Lock | Verb::Other => {
                (After::Nothing, After::Nothing)
            }
            Verb::Delete => (After::Rescan, After::Nothing),
            Verb::Copy => (After::Nothing, After::Forget),
            Verb::Move => (After::Rescan, After::Forget),
        };
        let mut touched = vec![(self.target.path.clone(), at_target)];
        // A COPY only reads its target.
        if self.verb == Verb::Copy {
            touched.clear();
        }
        if let Some(to) = &self.destination {
            touched.push((to.path.clone(), at_destination));
        }
        touched
    }

    /// Measures the tree, and prices the request as if the service will carry it out.
    pub(super) async fn price(
        self,
        tree: &Arc<Measures>,
        credits: &Arc<Credits>,
        demand: Demand,
    ) -> io::Result<Priced> {
        let Place { path, scopes } = &self.target;
        let by_body = match self.stores_body {
            true => demand,
            false => demand.without_body(),
        };
        let price = match self.verb {
            Verb::Other => {
                // What is there does not matter, unless the tree does not measure it.
                tree.measure(path, Depth::Zero).await?;
                Price::from(by_body).charged_to(scopes)
            }
            // Clients lock before they overwrite. This has to succeed on a full volume.
            Verb::Lock if tree.measure(path, Depth::Zero).await?.is_some() => Price::free(),
            // RFC 4918, section 9.10.4: it makes an empty resource.
            Verb::Lock => Price::from(by_body.with_objects(1)).charged_to(scopes),
            Verb::Part(part) => return self.price_of_part(tree, credits, demand, part).await,
            Verb::Put => {
                let credit = credits.take(path);
                let replaced = credit.measure(tree, Depth::Infinity).await?;
                if replaced.objects > 1 {
                    // A service refuses to replace a collection by a file, and may take its time.
                    let price = Price::from(demand).charged_to(scopes);
                    return Ok(Priced::new(price, [], Amount::ZERO));
                }
                let mut demand = demand.replacing(replaced);
                if self.overwrites_in_place
                    && credit.is_whole()
                    && let Some(old) = tree.in_place(path, 0..u64::MAX).await?
                {
                    demand = demand.in_place(old.truncated());
                }
                let price = Price::from(demand).charged_to(scopes);
                return Ok(Priced::new(price, [credit], replaced));
            }
            Verb::Delete => {
                let credit = credits.take_removed(path);
                let removed = credit.measure(tree, self.depth).await?;
                let price = Price::free().giving_back(scopes, removed);
                return Ok(Priced::new(price, [credit], removed));
            }
            Verb::Copy => return self.price_of_copy(tree, credits).await,
            Verb::Move => return self.price_of_move(tree, credits).await,
        };
        Ok(Priced::new(price, [], Amount::ZERO))
    }

    async fn price_of_part(
        self,
        tree: &Arc<Measures>,
        credits: &Arc<Credits>,
        demand: Demand,
        part: Part,
    ) -> io::Result<Priced> {
        let Place { path, scopes } = &self.target;
        // No other request gets the credit for the file while it changes.
        let credit = credits.take(path);
        let old = tree.measure(path, Depth::Zero).await?;
        let old = old.unwrap_or(Amount::ZERO);
        // What lies between the end of the file and the part becomes content too.
        let gap = Amount::bytes(part.first.saturating_sub(old.bytes));
        let made = 1u64.saturating_sub(old.objects);
        let mut price = demand;
        // What it replaces is known only if its place is, and the file stays where it is.
        if let Some(length) = demand.bytes()
            && part.is_exact
            && self.overwrites_in_place
            && credit.is_whole()
        {
            let range = part.first..part.first.saturating_add(length);
            if let Some(old) = tree.in_place(path, range).await? {
                price = price.in_place(old);
            }
        }
        let price = Price::from(price.with_objects(made).copying(gap)).charged_to(scopes);
        Ok(Priced::new(price, [credit], Amount::ZERO))
    }

    // The declared length of COPY and MOVE is ignored. Nextcloud's MOVE that ends an upload announces its length.

    async fn price_of_copy(
        self,
        tree: &Arc<Measures>,
        credits: &Arc<Credits>,
    ) -> io::Result<Priced> {
        let source = tree.measure(&self.target.path, self.depth).await?;
        let demand = Demand::nothing().copying(source.unwrap_or(Amount::ZERO));
        let Some(to) = &self.destination else {
            let price = Price::from(demand).charged_to(&self.target.scopes);
            return Ok(Priced::new(price, [], Amount::ZERO));
        };
        let credit = credits.take(&to.path);
        let removes = credit.measure(tree, Depth::Infinity).await?;
        let replaced = match self.depth {
            Depth::Infinity => removes,
            // The collection is copied without its members: some services replace those at the destination, and others keep
            // them.
            Depth::Zero => credit.measure(tree, Depth::Zero).await?,
        };
        let price = Price::from(demand.replacing(replaced)).charged_to(&to.scopes);
        Ok(Priced::new(price, [credit], removes))
    }

    async fn price_of_move(
        self,
        tree: &Arc<Measures>,
        credits: &Arc<Credits>,
    ) -> io::Result<Priced> {
        let Place { path, scopes } = &self.target;
        // Taken before anything is measured: what a request leaves that ends in between is not counted twice.
        let from_credit = credits.take_removed(path);
        let source = tree.measure(path, Depth::Infinity).await?;
        let source = source.unwrap_or(Amount::ZERO);
        let demand = Demand::nothing().moving(source);
        let Some(to) = &self.destination else {
            let price = Price::from(demand).charged_to(scopes);
            return Ok(Priced::new(price, [from_credit], source));
        };
        let to_credit = credits.take(&to.path);
        let replaced = to_credit.measure(tree, Depth::Infinity).await?;
        let removes = source + replaced;
        let left = match from_credit.is_whole() {
            true => source,
            false => from_credit.measure(tree, Depth::Infinity).await?,
        };
        if left != source {
            // Another request has credit for some of it, and may leave it where it is.
            let price = Price::from(demand.replacing(replaced)).charged_to(&to.scopes);
            let price = price.giving_back(scopes, left);
            return Ok(Priced::new(price, [from_credit, to_credit], removes));
        }
        let both = to.scopes.both(scopes);
        let (old, new) = (scopes.without(&to.scopes), to.scopes.without(scopes));
        let price = match new.is_empty() {
            true => Price::free(),
            false => Price::from(demand.replacing(replaced)).charged_to(new),
        };
        let price = price.giving_back(both, replaced).giving_back(old, source);
        Ok(Priced::new(price, [from_credit, to_credit], removes))
    }
}

impl Priced {
    fn new<const N: usize>(price: Price, credits: [Credit; N], removes: Amount) -> Self {
        credits.iter().for_each(Credit::set_priced);
        Self {
            price,
            credits: credits.into(),
            removes,
        }
    }
}

/// The part of a file that is written (RFC 9110, section 14.4). None if the request is about the whole file.
fn part(headers: &HeaderMap) -> Result<Option<Part>, Malformed> {
    let (content, update) = (
        only(headers, &CONTENT_RANGE)?,
        only(headers, &UPDATE_RANGE)?,
    );
    let part = |value: &[u8], unit: &[u8]| match value.split_at_checked(unit.len()) {
        // Names of units are case-insensitive (RFC 9110, section 14.1).
        Some((start, range)) if start.eq_ignore_ascii_case(unit) => {
            match range.split(|byte| *byte == b'-').next() {
                // The end of the file, or nothing that can be satisfied.
                None | Some(b"" | [b'*', ..]) => Ok(Part::ANYWHERE),
                Some(first) => Ok(Part {
                    first: decimal(first).ok_or(Malformed)?,
                    is_exact: true,
                }),
            }
        }
        _ => Err(Malformed),
    };
    let content = content.map(|value| part(value, b"bytes ")).transpose()?;
    let update = update.map(|value| match value {
        b"append" => Ok(Part::ANYWHERE),
        value => part(value, b"bytes="),
    });
    Ok(match (content, update.transpose()?) {
        // A service goes by one of them.
        (Some(one), Some(other)) if one != other => Some(Part {
            first: one.first.max(other.first),
            is_exact: false,
        }),
        (content, update) => content.or(update),
    })
}

/// RFC 4918, section 10.2. Whatever is not plainly zero may be read as infinity, which is the default.
fn depth(headers: &HeaderMap) -> Result<Depth, Malformed> {
    match only(headers, &DEPTH)? {
        None | Some(b"1") => Ok(Depth::Infinity),
        Some(b"0") => Ok(Depth::Zero),
        Some(value) if value.eq_ignore_ascii_case(b"infinity") => Ok(Depth::Infinity),
        Some(_) => Err(Malformed),
    }
}
