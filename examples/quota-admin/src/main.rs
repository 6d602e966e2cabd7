//! Looks at quotas that are kept in a store, and corrects them, while services go on.
//!
//! ```sh
//! cargo run --release -p quota-admin -- --store sqlite:uploads/.quotas.db largest
//! cargo run --release -p quota-admin -- --store sqlite:uploads/.quotas.db rescan everyone --directory uploads
//! ```
//!
//! `--help` lists what it can do. It ends with 0 when that is done, 1 when it cannot be done, and 2 when the command line
//! is wrong.

use std::{
    fmt::Write as _,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use bytesize::ByteSize;
use clap::{Args, CommandFactory, Parser, Subcommand, error::ErrorKind};
use serde_json::{Value, json};
use tokio::task::spawn_blocking;
use tower_storage_guard::{
    Amount, BoxError, Scope,
    quota::{Change, Limits},
    store::{Account, Admin, HoldEntry, HoldId, Rescan, Store},
};

use example_support::{
    place::{Place, PlaceParser},
    run::report,
};

/// Looks at quotas that are kept in a store, and corrects them, while services go on
#[derive(Debug, Parser)]
#[command(name = "quota-admin", version)]
struct Cli {
    /// Where they are: `sqlite:PATH`, `postgres://USER@HOST/DATABASE` or `redis://HOST`. For PostgreSQL, PGPASSWORD and
    /// ~/.pgpass are read
    #[arg(long, value_name = "STORE", value_parser = PlaceParser)]
    store: Place,

    /// Answers in JSON
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows where a scope stands
    Show { scope: String },
    /// Says what a scope uses, whatever was counted so far. Where uploads go on, rescan, add or subtract
    Set {
        scope: String,
        #[arg(long, value_name = "SIZE")]
        bytes: ByteSize,
        /// Stays as it is by default
        #[arg(long, value_name = "NUMBER")]
        objects: Option<u64>,
    },
    /// Declares that what all scopes use was counted, after the store was emptied: services admit requests again
    Counted,
    /// Charges a scope for more
    Add {
        scope: String,
        #[command(flatten)]
        more: Quantity,
    },
    /// Gives back to a scope
    Subtract {
        scope: String,
        #[command(flatten)]
        less: Quantity,
    },
    /// Gives a scope limits of its own. What is not named is unlimited
    Limit {
        scope: String,
        #[command(flatten)]
        limits: OwnLimits,
    },
    /// Lists the scopes that use most bytes
    Largest {
        /// How many
        #[arg(short = 'n', value_name = "NUMBER", default_value_t = 10)]
        count: usize,
    },
    /// Lists what is set aside, in a scope or anywhere
    Holds {
        scope: Option<String>,
        /// How many
        #[arg(short = 'n', value_name = "NUMBER", default_value_t = 100)]
        count: usize,
    },
    /// Takes a hold away. If its request lives on, what it stores is charged all the same
    Drop { id: HoldId },
    /// Counts what is below a directory, and corrects what a scope uses. Links are not followed
    Rescan {
        scope: String,
        #[arg(long, value_name = "PATH")]
        directory: PathBuf,
        /// Counts names that begin with a dot, too. The upload examples keep there what is not charged
        #[arg(long)]
        hidden: bool,
    },
    /// Forgets what a scope uses, and its own limits. What is held stays held
    Remove { scope: String },
}

#[derive(Args, Debug)]
#[group(required = true, multiple = true)]
struct Quantity {
    #[arg(long, value_name = "SIZE")]
    bytes: Option<ByteSize>,
    #[arg(long, value_name = "NUMBER")]
    objects: Option<u64>,
}

impl From<Quantity> for Amount {
    fn from(Quantity { bytes, objects }: Quantity) -> Self {
        let bytes = bytes.unwrap_or_default();
        Self::new(bytes.as_u64(), objects.unwrap_or(0))
    }
}

#[derive(Args, Debug)]
#[group(required = true, multiple = true)]
struct OwnLimits {
    #[arg(long, value_name = "SIZE")]
    bytes: Option<ByteSize>,
    #[arg(long, value_name = "NUMBER")]
    objects: Option<u64>,
    /// The service tells when this is passed
    #[arg(long, value_name = "SIZE")]
    soft_bytes: Option<ByteSize>,
    #[arg(long, value_name = "NUMBER")]
    soft_objects: Option<u64>,
    /// How long a soft limit may be passed before it is enforced, such as 7days. Without it, a soft limit only warns
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    grace: Option<Duration>,
    /// No limit on anything
    #[arg(long, conflicts_with_all = ["bytes", "objects", "soft_bytes", "soft_objects", "grace", "default"])]
    unlimited: bool,
    /// None of its own: the service's own default is in force
    #[arg(long, conflicts_with_all = ["bytes", "objects", "soft_bytes", "soft_objects", "grace"])]
    default: bool,
}

impl From<OwnLimits> for Option<Limits> {
    fn from(own: OwnLimits) -> Self {
        let size = |bytes: Option<ByteSize>| bytes.map(|bytes| bytes.as_u64());
        let mut limits = Limits::new(size(own.bytes), own.objects);
        limits.soft_bytes = size(own.soft_bytes);
        limits.soft_objects = own.soft_objects;
        limits.grace = own.grace;
        (!own.default).then_some(limits)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let wrong = match &cli.store {
        Place::Memory => Some("a tool cannot look into the memory of another process"),
        Place::Sqlite(path) if path.as_os_str().is_empty() => Some("sqlite: needs a path here"),
        _ => None,
    };
    if let Some(wrong) = wrong {
        Cli::command()
            .error(ErrorKind::ValueValidation, wrong)
            .exit();
    }
    report(run(cli).await)
}

async fn run(cli: Cli) -> Result<(), BoxError> {
    let admin = Admin::new(cli.store.look_into().await?);
    let done = async {
        let output = execute(&admin, cli.command, cli.json).await?;
        if !admin.is_counted().await? {
            eprintln!("the store is new or was emptied: `counted` says that all is counted");
        }
        Ok::<_, BoxError>(output)
    };
    let output = done.await.map_err(|error| cli.store.error(&*error))?;
    match io::stdout().write_all(output.as_bytes()) {
        // The reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

async fn execute(
    admin: &Admin<Arc<dyn Store>>,
    command: Command,
    json: bool,
) -> Result<String, BoxError> {
    let scope = match command {
        Command::Show { scope } => scope,
        Command::Set {
            scope,
            bytes,
            objects,
        } => {
            let objects = match objects {
                Some(objects) => objects,
                None => {
                    let used = admin.account(scope.as_str()).await?.used;
                    used.objects.max(0).unsigned_abs()
                }
            };
            let used = Amount::new(bytes.as_u64(), objects);
            admin.set_used(scope.as_str(), used).await?;
            scope
        }
        Command::Counted => {
            admin.declare_counted().await?;
            return Ok(String::new());
        }
        Command::Add { scope, more } => {
            admin.add(scope.as_str(), more.into()).await?;
            scope
        }
        Command::Subtract { scope, less } => {
            admin.subtract(scope.as_str(), less.into()).await?;
            scope
        }
        Command::Limit { scope, limits } => {
            match Option::<Limits>::from(limits) {
                Some(limits) => admin.set_limits(scope.as_str(), limits).await?,
                None => admin.clear_limits(scope.as_str()).await?,
            }
            scope
        }
        Command::Remove { scope } => {
            admin.remove(scope.as_str()).await?;
            scope
        }
        Command::Largest { count } => {
            let accounts = admin.largest(count).await?;
            return Ok(print(json, &*accounts, accounts_json, accounts_table));
        }
        Command::Holds { scope, count } => {
            let holds = admin.holds(scope.map(Scope::from), count).await?;
            if holds.len() == count {
                eprintln!("there may be more: -n says how many are listed");
            }
            return Ok(print(json, &*holds, holds_json, holds_table));
        }
        Command::Drop { id } => {
            let holds = admin.drop_hold(id).await?;
            if holds.is_empty() {
                return Err(format!("there is no hold {id}").into());
            }
            return Ok(print(json, &*holds, holds_json, holds_table));
        }
        Command::Rescan {
            scope,
            directory,
            hidden,
        } => {
            let count = || {
                let directory = directory.clone();
                async move { spawn_blocking(move || stored_in(&directory, hidden)).await? }
            };
            let rescan = admin.rescan(scope.as_str(), count).await?;
            return Ok(print(json, &(scope, rescan), rescan_json, rescan_text));
        }
    };
    let account = admin.account(scope.as_str()).await?;
    Ok(print(
        json,
        &(scope.into(), account),
        account_json,
        account_text,
    ))
}

/// Measures what is below a directory.
fn stored_in(directory: &Path, hidden: bool) -> Result<Amount, BoxError> {
    let named = |error| format!("{}: {error}", directory.display());
    let mut total = Amount::ZERO;
    for entry in fs::read_dir(directory).map_err(named)? {
        let entry = entry.map_err(named)?;
        if !hidden && entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        // Of the link itself, if it is one.
        let found = entry.metadata();
        total = total
            + match found {
                Ok(found) if found.is_dir() => stored_in(&entry.path(), hidden)?,
                Ok(found) if found.is_file() => Amount::new(found.len(), 1),
                Ok(_) => Amount::ZERO,
                // Removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Amount::ZERO,
                Err(error) => return Err(format!("{}: {error}", entry.path().display()).into()),
            };
    }
    Ok(total)
}

fn print<T: ?Sized>(
    json: bool,
    answer: &T,
    as_json: fn(&T) -> Value,
    as_text: fn(&T) -> String,
) -> String {
    if json {
        format!("{:#}\n", as_json(answer))
    } else {
        as_text(answer)
    }
}

fn account_json((scope, account): &(Scope, Account)) -> Value {
    let milliseconds = |time: Option<Duration>| time.map(|time| time.as_millis() as u64);
    let limits = account.own.map(|limits| {
        json!({
            "bytes": limits.bytes,
            "objects": limits.objects,
            "soft_bytes": limits.soft_bytes,
            "soft_objects": limits.soft_objects,
            "grace_ms": milliseconds(limits.grace),
        })
    });
    let over = [account.over.bytes, account.over.objects].map(milliseconds);
    json!({
        "scope": scope.as_str(),
        "used": change_json(account.used),
        "held": amount_json(account.held),
        "unmatched": amount_json(account.unmatched),
        "limits": limits,
        "over_ms": { "bytes": over[0], "objects": over[1] },
    })
}

fn accounts_json(accounts: &[(Scope, Account)]) -> Value {
    accounts.iter().map(account_json).collect()
}

fn holds_json(holds: &[HoldEntry]) -> Value {
    let holds = holds.iter().map(|hold| {
        json!({
            "id": hold.id.to_string(),
            "scope": hold.scope.as_str(),
            "held": amount_json(hold.amount),
            "expires_in_ms": hold.expires_in.as_millis() as u64,
        })
    });
    holds.collect()
}

fn rescan_json((scope, rescan): &(String, Rescan)) -> Value {
    json!({
        "scope": scope,
        "before": change_json(rescan.before),
        "counted": amount_json(rescan.counted),
        "corrected": change_json(rescan.corrected),
        "certain": rescan.is_certain,
    })
}

fn amount_json(amount: Amount) -> Value {
    json!({ "bytes": amount.bytes, "objects": amount.objects })
}

fn change_json(change: Change) -> Value {
    json!({ "bytes": change.bytes, "objects": change.objects })
}

fn account_text((scope, account): &(Scope, Account)) -> String {
    let default = || "the service's default".to_owned();
    let (limit, soft, grace) = match account.own {
        Some(own) => (
            limits_text(own.bytes, own.objects, "unlimited"),
            limits_text(own.soft_bytes, own.soft_objects, "none"),
            own.grace.map_or("for ever".to_owned(), time_text),
        ),
        None => (default(), default(), default()),
    };
    let over =
        |name: &str, over: Option<Duration>| Some(format!("{name} for {}", time_text(over?)));
    let over = [
        over("bytes", account.over.bytes),
        over("objects", account.over.objects),
    ];
    let over = over.into_iter().flatten().collect::<Vec<_>>().join(", ");
    lines([
        ("scope", printable(scope.as_str())),
        ("used", change_text(account.used)),
        ("held", amount_text(account.held)),
        ("unmatched", amount_text(account.unmatched)),
        ("limit", limit),
        ("soft limit", soft),
        ("grace", grace),
        (
            "above",
            if over.is_empty() {
                "no".to_owned()
            } else {
                over
            },
        ),
    ])
}

fn rescan_text((scope, rescan): &(String, Rescan)) -> String {
    let certain = match rescan.is_certain {
        true => "yes: nothing moved meanwhile",
        false => "no: something moved meanwhile, and only what that cannot explain was corrected",
    };
    lines([
        ("scope", printable(scope)),
        ("before", change_text(rescan.before)),
        ("counted", amount_text(rescan.counted)),
        ("corrected by", change_text(rescan.corrected)),
        ("certain", certain.to_owned()),
    ])
}

fn accounts_table(accounts: &[(Scope, Account)]) -> String {
    let rows = accounts.iter().map(|(scope, account)| {
        let limit = match account.own {
            Some(own) => own.bytes.map_or("unlimited".to_owned(), size),
            None => "default".to_owned(),
        };
        [
            printable(scope.as_str()),
            signed_size(account.used.bytes),
            account.used.bytes.to_string(),
            account.used.objects.to_string(),
            size(account.held.bytes),
            limit,
        ]
    });
    let heads = ["SCOPE", "USED", "BYTES", "OBJECTS", "HELD", "LIMIT"];
    table(heads, 1, rows)
}

fn holds_table(holds: &[HoldEntry]) -> String {
    let rows = holds.iter().map(|hold| {
        [
            hold.id.to_string(),
            printable(hold.scope.as_str()),
            size(hold.amount.bytes),
            hold.amount.bytes.to_string(),
            hold.amount.objects.to_string(),
            seconds(hold.expires_in),
        ]
    });
    let heads = ["HOLD", "SCOPE", "HELD", "BYTES", "OBJECTS", "EXPIRES IN"];
    table(heads, 2, rows)
}

/// Prints a name and its values in each line.
fn lines<const N: usize>(lines: [(&str, String); N]) -> String {
    let lines = lines.map(|(name, value)| [name.to_owned(), value]);
    let width = lines.iter().map(|[name, _]| name.len()).max().unwrap_or(0);
    let lines = lines.map(|[name, value]| format!("{name:width$}  {value}\n"));
    lines.concat()
}

/// The first `text` columns are text, and the rest are figures.
fn table<const N: usize>(
    heads: [&str; N],
    text: usize,
    rows: impl Iterator<Item = [String; N]>,
) -> String {
    let mut all = vec![heads.map(str::to_owned)];
    all.extend(rows);
    let width = |column: usize| {
        let cells = all.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut table = String::new();
    for row in &all {
        let cells = row.iter().zip(widths).enumerate();
        let cells = cells.map(|(column, (cell, width))| match column < text {
            true => format!("{cell:width$}"),
            false => format!("{cell:>width$}"),
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        let _ = writeln!(table, "{}", line.trim_end());
    }
    table
}

fn amount_text(Amount { bytes, objects }: Amount) -> String {
    format!("{} ({bytes} bytes), {objects} objects", size(bytes))
}

fn change_text(Change { bytes, objects }: Change) -> String {
    format!("{} ({bytes} bytes), {objects} objects", signed_size(bytes))
}

fn limits_text(bytes: Option<u64>, objects: Option<u64>, none: &str) -> String {
    match (bytes, objects) {
        (None, None) => none.to_owned(),
        (Some(bytes), Some(objects)) => amount_text(Amount::new(bytes, objects)),
        (Some(bytes), None) => format!("{} ({bytes} bytes)", size(bytes)),
        (None, Some(objects)) => format!("{objects} objects"),
    }
}

fn size(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

fn signed_size(bytes: i64) -> String {
    let sign = if bytes < 0 { "-" } else { "" };
    format!("{sign}{}", size(bytes.unsigned_abs()))
}

/// In whole seconds, such as `6days 23h`.
fn time_text(time: Duration) -> String {
    humantime::format_duration(Duration::from_secs(time.as_secs())).to_string()
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// A name without characters that a terminal would interpret.
fn printable(name: &str) -> String {
    let mut printable = String::with_capacity(name.len());
    for c in name.chars() {
        if c.is_control() {
            printable.extend(c.escape_default());
        } else {
            printable.push(c);
        }
    }
    printable
}
