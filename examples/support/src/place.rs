//! Where quotas are kept, as given on the command line.

#[cfg(feature = "stored")]
use std::sync::Arc;
use std::{ffi::OsStr, fmt, path::PathBuf, str::FromStr};

use clap::{Arg, Command, builder::TypedValueParser, error::ErrorKind};
#[cfg(feature = "postgres")]
use sqlx::{
    Connection,
    postgres::{PgConnectOptions, PgPoolOptions},
};
#[cfg(feature = "stored")]
use tower_storage_guard::{BoxError, store::Store};

#[cfg(feature = "postgres")]
use crate::database::{self, connect};
#[cfg(feature = "stored")]
use crate::log::chain;

/// Where quotas are kept.
#[derive(Clone)]
pub enum Place {
    /// In memory: counted from the files at each start.
    Memory,
    /// In a file. Without a name, the default file beside the uploads.
    #[cfg(feature = "sqlite")]
    Sqlite(PathBuf),
    #[cfg(feature = "postgres")]
    Postgres(Box<PgConnectOptions>),
    /// On a server or a cluster, by its URL.
    #[cfg(feature = "redis")]
    Redis(String),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::read(text, &BUILDERS)
    }
}

/// Parses a place from its text, and from the part after the scheme.
type Builder = fn(&str, &str) -> Result<Place, String>;

/// The parser of each store. None without its feature.
struct Builders {
    sqlite: Option<Builder>,
    postgres: Option<Builder>,
    redis: Option<Builder>,
}

const BUILDERS: Builders = Builders {
    #[cfg(feature = "sqlite")]
    sqlite: Some(sqlite),
    #[cfg(not(feature = "sqlite"))]
    sqlite: None,
    #[cfg(feature = "postgres")]
    postgres: Some(postgres),
    #[cfg(not(feature = "postgres"))]
    postgres: None,
    #[cfg(feature = "redis")]
    redis: Some(redis),
    #[cfg(not(feature = "redis"))]
    redis: None,
};

impl Place {
    fn read(text: &str, builders: &Builders) -> Result<Self, String> {
        let (scheme, rest) = text.split_once(':').unwrap_or((text, ""));
        let (builder, store, feature) = match scheme {
            "memory" if rest.is_empty() => return Ok(Self::Memory),
            "sqlite" => (builders.sqlite, "SQLite", "sqlite"),
            "postgres" | "postgresql" => (builders.postgres, "PostgreSQL", "postgres"),
            "redis" | "rediss" | "redis+unix" | "redis+cluster" | "rediss+cluster"
                if rest.starts_with("//") =>
            {
                (builders.redis, "Redis", "redis")
            }
            _ => {
                let places = "memory:, sqlite:PATH, postgres://USER@HOST/DATABASE or redis://HOST";
                return Err(format!("expected {places}"));
            }
        };
        match builder {
            Some(builder) => builder(text, rest),
            None => Err(format!(
                "this program was built without {store}: build it with `--features {feature}`, or use `memory:`"
            )),
        }
    }
}

#[cfg(feature = "sqlite")]
fn sqlite(_: &str, rest: &str) -> Result<Place, String> {
    // Both `sqlite:a/b` and `sqlite:///a/b` are common.
    let path = rest.strip_prefix("//").unwrap_or(rest);
    Ok(Place::Sqlite(path.into()))
}

#[cfg(feature = "postgres")]
fn postgres(text: &str, _: &str) -> Result<Place, String> {
    database::parse(text).map(|options| Place::Postgres(Box::new(options)))
}

#[cfg(feature = "redis")]
fn redis(text: &str, _: &str) -> Result<Place, String> {
    Ok(Place::Redis(text.to_owned()))
}

/// Without secrets.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory:"),
            #[cfg(feature = "sqlite")]
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            #[cfg(feature = "postgres")]
            Self::Postgres(options) => f.write_str(&database::name(options)),
            #[cfg(feature = "redis")]
            Self::Redis(url) => {
                let (scheme, rest) = url.split_once("://").unwrap_or(("redis", url));
                let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
                write!(f, "{scheme}://{host}")
            }
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Parses a place from the command line. Unlike clap, it does not repeat an invalid value, because it may contain a
/// password.
#[derive(Clone)]
pub struct PlaceParser;

impl TypedValueParser for PlaceParser {
    type Value = Place;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
    ) -> Result<Place, clap::Error> {
        let text = value.to_str().ok_or("it is not text".to_owned());
        text.and_then(str::parse).map_err(|error| {
            let arg = arg.map(Arg::to_string).unwrap_or_default();
            let message = format!("invalid value for '{arg}': {error}\n");
            clap::Error::raw(ErrorKind::ValueValidation, message).with_cmd(command)
        })
    }
}

impl Place {
    /// With the name of the default file beside a server's uploads.
    pub fn or_beside(self, file: impl FnOnce() -> PathBuf) -> Self {
        match self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite(path) if path.as_os_str().is_empty() => Self::Sqlite(file()),
            place => {
                drop(file);
                place
            }
        }
    }
}

#[cfg(feature = "stored")]
impl Place {
    /// Opens the store, and creates it if it is missing. None for memory.
    pub(crate) async fn open(&self) -> Result<Option<Arc<dyn Store>>, BoxError> {
        Ok(Some(match self {
            Self::Memory => return Ok(None),
            #[cfg(feature = "sqlite")]
            Self::Sqlite(path) => {
                let path = path.clone();
                let open = || tower_storage_guard::store::SqliteStore::open(path);
                Arc::new(tokio::task::spawn_blocking(open).await??)
            }
            #[cfg(feature = "postgres")]
            Self::Postgres(options) => {
                connect(options).await?.close().await?;
                Arc::new(pool(options))
            }
            #[cfg(feature = "redis")]
            Self::Redis(url) => {
                Arc::new(tower_storage_guard::store::RedisStore::connect(url).await?)
            }
        }))
    }

    /// Opens an existing store, for a tool to inspect.
    pub async fn look_into(&self) -> Result<Arc<dyn Store>, BoxError> {
        let store = self.open_existing().await;
        store.map_err(|error| self.error(&*error))
    }

    /// The store that has failed, and the reason.
    pub fn error(&self, error: &(dyn std::error::Error + 'static)) -> BoxError {
        format!("{self}: {}", chain(error)).into()
    }

    async fn open_existing(&self) -> Result<Arc<dyn Store>, BoxError> {
        Ok(match self {
            Self::Memory => return Err("no process can look into the memory of another".into()),
            #[cfg(feature = "sqlite")]
            Self::Sqlite(path) => {
                let path = path.clone();
                let open = || tower_storage_guard::store::SqliteStore::open_existing(path);
                Arc::new(tokio::task::spawn_blocking(open).await??)
            }
            #[cfg(feature = "postgres")]
            Self::Postgres(options) => {
                let mut connection = connect(options).await?;
                let look = "SELECT to_regclass('storage_guard_accounts') IS NOT NULL";
                let is_there: bool = sqlx::query_scalar(look).fetch_one(&mut connection).await?;
                connection.close().await?;
                if !is_there {
                    return Err("there are no quotas in the database".into());
                }
                Arc::new(pool(options))
            }
            // Nothing is created before it is used.
            #[cfg(feature = "redis")]
            Self::Redis(url) => {
                Arc::new(tower_storage_guard::store::RedisStore::connect(url).await?)
            }
        })
    }
}

#[cfg(feature = "postgres")]
fn pool(options: &PgConnectOptions) -> tower_storage_guard::store::PostgresStore {
    let pool = PgPoolOptions::new().max_connections(8);
    tower_storage_guard::store::PostgresStore::new(pool.connect_lazy_with(options.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_was_not_built_in_is_named_with_its_feature() {
        let none = Builders {
            sqlite: None,
            postgres: None,
            redis: None,
        };
        for (place, feature, is_built) in [
            ("sqlite:", "sqlite", BUILDERS.sqlite.is_some()),
            (
                "postgres://guard@localhost/quotas",
                "postgres",
                BUILDERS.postgres.is_some(),
            ),
            ("redis://localhost", "redis", BUILDERS.redis.is_some()),
        ] {
            assert_eq!(place.parse::<Place>().is_ok(), is_built, "{place}");
            let Err(error) = Place::read(place, &none) else {
                panic!("{place} was not built");
            };
            assert!(error.contains(&format!("--features {feature}")), "{error}");
        }
        assert!(matches!("memory:".parse(), Ok(Place::Memory)));
        assert!("oracle:".parse::<Place>().is_err());
    }
}
