//! The command line.

use std::{net::SocketAddr, num::NonZeroU32, path::PathBuf, str::FromStr};

use bytesize::ByteSize;
use clap::Parser;

use super::{
    quotas::{Place, PlaceParser},
    store::Name,
};

/// Stores files, and lets an upload in only when there is room for it.
#[derive(Clone, Debug, Parser)]
pub(crate) struct Flags {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDR", required = false)]
    pub(crate) listen: SocketAddr,

    /// Where the files are; made if missing. Only one server may use it at a time
    #[arg(long, default_value = "./uploads")]
    pub(crate) dir: PathBuf,

    /// What stays free on the disk
    #[arg(long, value_name = "SIZE", default_value = "64MiB")]
    pub(crate) keep_free: ByteSize,

    /// What everyone may store together
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    pub(crate) quota: ByteSize,

    /// Where quotas are kept: `memory:`, `sqlite:PATH`, `postgres://USER@HOST/DATABASE` or `redis://HOST`. `sqlite:` alone is
    /// a file beside the uploads, for which some of the disk must stay free. What outlives the process need not be counted
    /// by the next. For PostgreSQL, PGPASSWORD and ~/.pgpass are read
    #[arg(long, value_name = "STORE", required = false, value_parser = PlaceParser)]
    pub(crate) quota_store: Place,

    /// Leases budget of the quotas' store, and decides most uploads in memory
    #[arg(long)]
    pub(crate) quota_leases: bool,

    /// After how many seconds what a killed server had set aside in the quotas' store is free again
    #[arg(long, value_name = "SECONDS", default_value = "30")]
    pub(crate) quota_time_to_live: NonZeroU32,

    /// A user with a folder and a limit of their own. Repeatable; without any, everyone may do everything
    #[arg(long = "user", value_name = "NAME:TOKEN:LIMIT")]
    pub(crate) users: Vec<User>,
}

/// Reads the command line: [`Flags`], or those and more. Each example has its own defaults for where to listen, and for
/// where quotas are kept.
pub(crate) fn read<T: Parser>(listen: &'static str, quota_store: &'static str) -> T {
    let command = T::command()
        .mut_arg("listen", |arg| arg.default_value(listen))
        .mut_arg("quota_store", |arg| arg.default_value(quota_store));
    T::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit())
}

#[derive(Clone, Debug)]
pub(crate) struct User {
    pub(crate) name: Name,
    pub(crate) token: String,
    pub(crate) limit: ByteSize,
}

impl FromStr for User {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A token may have colons; a name and a limit have none.
        let parts = text.split_once(':').and_then(|(name, rest)| {
            let (token, limit) = rest.rsplit_once(':')?;
            Some((name, token, limit))
        });
        let (name, token, limit) = parts.ok_or("expected NAME:TOKEN:LIMIT")?;
        // What an Authorization header can carry.
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("the token must be printable ASCII, without spaces".to_owned());
        }
        Ok(Self {
            name: name.parse().map_err(|error| format!("{error}"))?,
            token: token.to_owned(),
            limit: limit
                .parse()
                .map_err(|error| format!("the limit: {error}"))?,
        })
    }
}
