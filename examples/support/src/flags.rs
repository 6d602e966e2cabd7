//! The command line.

use std::{collections::HashSet, num::NonZeroU32, path::PathBuf, str::FromStr};

use bytesize::ByteSize;
use clap::Parser;
use tower_storage_guard::{BoxError, Scope};

use crate::{
    address::Address,
    keep_free::KeepFree,
    place::{Place, PlaceParser},
    store::Name,
};

/// Stores files, and lets an upload in only when there is room for it.
#[derive(Clone, Debug, Parser)]
pub struct Flags {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT", required = false)]
    pub listen: Address,

    /// Where the files are; made if missing. Only one server may use it at a time
    #[arg(long, default_value = "./uploads")]
    pub dir: PathBuf,

    /// What stays free on the disk: a size, or a share such as 5%
    #[arg(long, value_name = "SIZE", default_value = "64MiB")]
    pub keep_free: KeepFree,

    /// What everyone may store together
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    pub quota: ByteSize,

    /// Where quotas are kept: `memory:`, `sqlite:PATH`, `postgres://USER@HOST/DATABASE` or `redis://HOST`. Memory is counted
    /// from the files at each start; the others outlive the process, and each is a feature to build with. `sqlite:` alone is a
    /// file beside the uploads, for which some of the disk must stay free. For PostgreSQL, PGPASSWORD and ~/.pgpass are read
    #[arg(long, value_name = "STORE", default_value = "memory:", value_parser = PlaceParser)]
    pub quota_store: Place,

    /// Leases budget of the quotas' store, and decides most uploads in memory
    #[arg(long)]
    pub quota_leases: bool,

    /// After how many seconds what a killed server had set aside in the quotas' store is free again
    #[arg(long, value_name = "SECONDS", default_value = "30")]
    pub quota_time_to_live: NonZeroU32,

    /// A user with a folder and a limit of their own. Repeatable; without any, everyone may do everything
    #[arg(long = "user", value_name = "NAME:TOKEN:LIMIT")]
    pub users: Vec<User>,
}

impl Flags {
    /// Checks what clap cannot: that users can be told apart.
    pub fn check(&self) -> Result<(), BoxError> {
        let (mut names, mut tokens) = (HashSet::new(), HashSet::new());
        for User { name, token, .. } in &self.users {
            if !names.insert(name) {
                return Err(format!("--user: there are two users {:?}", name.as_str()).into());
            }
            if !tokens.insert(token) {
                return Err("--user: two users have the same token".into());
            }
        }
        Ok(())
    }
}

/// What a program says of itself on its command line.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    pub name: &'static str,
    /// Where it listens by default: each has a port of its own.
    pub listen: &'static str,
    /// Its routes, one a line.
    pub routes: &'static str,
}

/// Reads the command line: [`Flags`], or those and more, with a flag `--listen`.
pub fn read<T: Parser>(program: Program) -> T {
    let command = T::command()
        .name(program.name)
        .version(env!("CARGO_PKG_VERSION"))
        .after_help(format!("Routes:\n{}", program.routes))
        .mut_arg("listen", |arg| arg.default_value(program.listen));
    T::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit())
}

#[derive(Clone, Debug)]
pub struct User {
    pub name: Name,
    pub token: String,
    pub limit: ByteSize,
}

impl User {
    /// The scope of what this user stores.
    pub fn scope(&self) -> Scope {
        Scope::from(format_args!("user:{}", self.name.as_str()))
    }
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
        // Characters that an Authorization header can carry.
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
