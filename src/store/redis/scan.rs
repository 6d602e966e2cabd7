//! Walks over all scopes.
//!
//! There is no index: it would have to be in one slot with every scope that it lists. So a walk scans all keys of every
//! node. A plain `SCAN` does not do it, because the connection of a cluster sends it to any node. So the `SCAN` is in a
//! script, whose key selects the node.

use std::{
    collections::{HashMap, HashSet},
    ops::RangeInclusive,
};

use redis::{
    ErrorKind, Pipeline, ServerErrorKind, Value, aio::ConnectionLike, cluster_routing::Slot, cmd,
    pipe,
};

use super::{
    keys::{KeyKind, Keys},
    script::{Call, Failure, SCAN, all, ask, in_time, not_ours},
    text,
};
use crate::{quota::Change, scope::Scope};

/// How many keys a node scans in one step. The node serves no other client meanwhile, for less than a millisecond.
const STEP: usize = 1_000;

/// A walk over the scopes that have a key of one kind. It may return a scope twice.
pub(super) struct Walk<'a, C> {
    connection: C,
    keys: &'a Keys,
    kind: KeyKind,
    /// A key of each node that is still to be scanned, the current one last.
    nodes: Vec<String>,
    /// Where to go on in the current node.
    cursor: String,
    /// How many scopes fit in one pipeline: in a cluster each is on another node.
    together: usize,
}

impl<'a, C: ConnectionLike + Clone> Walk<'a, C> {
    pub(super) async fn start(
        mut connection: C,
        keys: &'a Keys,
        kind: KeyKind,
    ) -> Result<Self, Failure> {
        let nodes = nodes(&mut connection, keys).await?;
        Ok(Self {
            together: if nodes.is_some() { 1 } else { STEP },
            nodes: nodes.unwrap_or_else(|| keys.unused().take(1).collect()),
            connection,
            keys,
            kind,
            cursor: "0".into(),
        })
    }

    /// The scopes of the next step, which may be none. `None` at the end of the walk.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Scope>>, Failure> {
        let Some(node) = self.nodes.last() else {
            return Ok(None);
        };
        let call = Call {
            function: &SCAN,
            keys: vec![node.clone()],
            args: vec![
                self.cursor.clone(),
                self.keys.pattern(self.kind),
                STEP.to_string(),
            ],
        };
        let (cursor, found): (String, Vec<Vec<u8>>) = call.run(self.connection.clone()).await?;
        if cursor == "0" {
            self.nodes.pop();
        }
        self.cursor = cursor;
        let scopes = found
            .iter()
            .filter_map(|key| self.keys.scope(self.kind, key));
        Ok(Some(scopes.collect()))
    }

    /// The usage of each of these scopes, without those that use nothing.
    pub(super) async fn used(&self, scopes: &[Scope]) -> Result<Vec<(Scope, Change)>, Failure>
    where
        C: Send + 'static,
    {
        let mut work = Vec::new();
        for scopes in scopes.chunks(self.together) {
            let mut asked = pipe();
            for scope in scopes {
                let account = self.keys.of(KeyKind::Account, scope);
                asked.cmd("HGET").arg(account).arg("used");
            }
            work.push(used(self.connection.clone(), asked, scopes.to_vec()));
        }
        let found: Result<Vec<_>, _> = all(work).await.into_iter().collect();
        Ok(found?.concat())
    }
}

async fn used(
    mut connection: impl ConnectionLike,
    asked: Pipeline,
    scopes: Vec<Scope>,
) -> Result<Vec<(Scope, Change)>, Failure> {
    let found: Vec<Option<String>> = in_time(asked.query_async(&mut connection)).await?;
    let found = scopes.into_iter().zip(found);
    found
        .filter_map(|(scope, used)| Some((scope, used?)))
        .map(|(scope, used)| Ok((scope, text::change(&used)?)))
        .collect()
}

/// Which node has which slots, as rows. `None` without a cluster.
pub(super) async fn slots(
    connection: &mut impl ConnectionLike,
) -> Result<Option<Vec<Vec<Value>>>, Failure> {
    match ask(cmd("CLUSTER").arg("SLOTS"), connection).await {
        Ok(rows) => Ok(Some(rows)),
        // "This instance has cluster support disabled", or the command is unknown.
        Err(Failure::Redis(error))
            if error.kind() == ErrorKind::Server(ServerErrorKind::ResponseError) =>
        {
            Ok(None)
        }
        Err(failure) => Err(failure),
    }
}

/// A key of each node. `None` without a cluster.
async fn nodes(
    connection: &mut impl ConnectionLike,
    keys: &Keys,
) -> Result<Option<Vec<String>>, Failure> {
    let Some(rows) = slots(connection).await? else {
        return Ok(None);
    };
    let ranges: Option<Vec<_>> = rows.iter().map(|row| range(row)).collect();
    let ranges = ranges.ok_or_else(|| not_ours(&format!("{rows:?}")))?;
    let mut owners = HashMap::new();
    for (slots, id) in ranges {
        owners.extend(slots.filter_map(Slot::new).map(|slot| (slot, id)));
    }
    let count = owners.values().collect::<HashSet<_>>().len();
    let mut found = HashMap::new();
    for key in keys.unused() {
        if found.len() == count {
            break;
        }
        if let Some(id) = owners.get(&Slot::for_key(&key)) {
            found.entry(id).or_insert(key);
        }
    }
    Ok(Some(found.into_values().collect()))
}

/// The slots in a row, and the id of their node. A row is the first slot, the last slot, the primary and its replicas. A
/// node is its address, its port, its id, and more.
fn range(row: &[Value]) -> Option<(RangeInclusive<u16>, &[u8])> {
    let [
        Value::Int(first),
        Value::Int(last),
        Value::Array(primary),
        ..,
    ] = row
    else {
        return None;
    };
    let Some(Value::BulkString(id)) = primary.get(2) else {
        return None;
    };
    let slot = |number: &i64| u16::try_from(*number).ok();
    Some((slot(first)?..=slot(last)?, id))
}
