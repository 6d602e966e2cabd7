//! How full the disk and the quotas are, on the page.

use axum::{Extension, extract::State, response::Html};
use bytesize::ByteSize;
use tower_storage_guard::{Scope, Volume, axum::Failure, quota::Usage};

use example_support::store::{Folder, Store};

/// How full the disk and the quotas are. The script asks for it again and again.
pub(crate) async fn room(
    State(store): State<Store>,
    Extension(folder): Extension<Folder>,
) -> Result<Html<String>, Failure> {
    Ok(Html(html(&store, &folder).await?))
}

pub(crate) async fn html(store: &Store, folder: &Folder) -> Result<String, Failure> {
    let everyone = store.quota.usage(&Store::EVERYONE.into()).await?;
    let quotas = match user_of(folder) {
        None => vec![Gauge::of_quota("everyone", "Quota", "the quota", everyone)],
        Some(user) => {
            let own = store.quota.usage(user).await?;
            let own = Gauge::of_quota("user", "Your quota", "your quota", own);
            let all = "the quota of all users together";
            let all = Gauge::of_quota("everyone", "All users together", all, everyone);
            // Theirs together is of interest where it is the one that refuses.
            let is_tighter = all.left() < own.left();
            [own].into_iter().chain(is_tighter.then_some(all)).collect()
        }
    };
    let disk = Gauge::of_disk(&store.volume);
    let disk = disk.map_or(NO_DISK.to_owned(), |disk| disk.html());
    let quotas: String = quotas.iter().map(Gauge::html).collect();
    Ok(format!(
        include_str!("page/room.html"),
        disk = disk,
        quotas = quotas
    ))
}

/// The scope of the user whose folder it is, if there are users.
pub(crate) fn user_of(folder: &Folder) -> Option<&Scope> {
    let mut scopes = folder.scopes.iter();
    scopes.find(|scope| scope.as_str() != Store::EVERYONE)
}

/// Uploads are refused meanwhile.
const NO_DISK: &str = r#"<div class="gauge" id="disk"><h2>Disk</h2><p>does not answer</p></div>"#;

/// How full something is, in bytes.
struct Gauge {
    id: &'static str,
    title: &'static str,
    /// What it is called in a sentence.
    of: &'static str,
    limit: u64,
    used: u64,
    /// Reserved for uploads under way.
    held: u64,
}

impl Gauge {
    /// None while the disk does not answer.
    fn of_disk(volume: &Volume) -> Option<Self> {
        let status = volume.status();
        let limit = status.total.saturating_sub(status.headroom);
        let free = status.available.saturating_sub(status.headroom).min(limit);
        (!status.is_stale).then_some(Self {
            id: "disk",
            title: "Disk",
            of: "the disk",
            limit,
            used: limit - free,
            held: status.claimed.min(free),
        })
    }

    fn of_quota(id: &'static str, title: &'static str, of: &'static str, usage: Usage) -> Self {
        Self {
            id,
            title,
            of,
            // The command line has a limit for each.
            limit: usage.limits.bytes.unwrap_or(u64::MAX),
            used: usage.used.bytes,
            held: usage.held.bytes,
        }
    }

    fn taken(&self) -> u64 {
        self.used.saturating_add(self.held)
    }

    fn left(&self) -> u64 {
        self.limit.saturating_sub(self.taken())
    }

    fn html(&self) -> String {
        format!(
            include_str!("page/gauge.html"),
            id = self.id,
            title = self.title,
            of = self.of,
            limit = self.limit,
            left = self.left(),
            taken = self.taken(),
            used = self.used,
            high = self.limit / 10 * 9,
            left_size = ByteSize(self.left()),
            limit_size = ByteSize(self.limit),
            used_size = ByteSize(self.used),
            reserved = match self.held {
                0 => String::new(),
                held => format!("{} reserved", ByteSize(held)),
            },
        )
    }
}
