//! A snapshot as JSON.

use std::{fmt, time::Duration};

use super::snapshot::{GuardView, QuotaView, Snapshot, UploadsView, VolumeView};
use crate::{
    quota::Usage,
    refusal::json::{Object, array},
    scope::Scope,
    upload::OpenUpload,
    volume::Forecast,
};

/// Raised when a member is renamed, removed, or means something else.
const VERSION: u32 = 1;

impl Snapshot {
    /// Returns the snapshot as JSON, by the [schema](super#schema).
    pub fn to_json(&self) -> String {
        let json = || {
            let mut object = Object::default();
            object.value("schema_version", VERSION)?;
            object.value("volumes", array(each(&self.volumes, volume)?))?;
            object.value("guards", array(each(&self.guards, guard)?))?;
            object.value("quotas", array(each(&self.quotas, quota)?))?;
            object.value("uploads", array(each(&self.uploads, uploads)?))?;
            Ok::<_, fmt::Error>(object.end())
        };
        json().expect("a string takes all that is written to it")
    }
}

fn each<T>(
    all: &[T],
    json: impl Fn(&T) -> Result<String, fmt::Error>,
) -> Result<Vec<String>, fmt::Error> {
    all.iter().map(json).collect()
}

fn volume(view: &VolumeView) -> Result<String, fmt::Error> {
    let (status, forecast) = (&view.status, view.forecast);
    let word = match forecast {
        Forecast::Unknown => "unknown",
        Forecast::NotFilling => "not_filling",
        Forecast::FullIn(_) => "filling",
        Forecast::Full => "full",
    };
    let mut object = Object::default();
    object.text("name", &view.name)?;
    object.text("state", view.state.as_str())?;
    object.value("total_bytes", status.total)?;
    object.value("available_bytes", status.available)?;
    object.value("claimed_bytes", status.claimed)?;
    object.value("settling_bytes", status.settling)?;
    object.value("headroom_bytes", status.headroom)?;
    object.optional("total_inodes", status.inodes_total)?;
    object.optional("available_inodes", status.inodes_available)?;
    object.value("claimed_inodes", status.objects_claimed)?;
    object.value("reading_age_seconds", seconds(status.age))?;
    object.text("forecast", word)?;
    object.optional("full_in_seconds", forecast.time_to_full().map(seconds))?;
    object.value("waiting", status.waiting)?;
    object.value("waiting_growths", view.waiting_growths)?;
    Ok(object.end())
}

fn guard(view: &GuardView) -> Result<String, fmt::Error> {
    let mut object = Object::default();
    object.text("name", &view.name)?;
    match &view.volume {
        Some(volume) => object.text("volume", volume)?,
        None => object.value("volume", "null")?,
    }
    object.value("waiting_growths", view.waiting_growths)?;
    Ok(object.end())
}

fn quota(view: &QuotaView) -> Result<String, fmt::Error> {
    let state = match &view.busiest {
        Ok(_) => "up",
        Err(_) => "away",
    };
    let mut object = Object::default();
    object.text("name", &view.name)?;
    object.text("state", state)?;
    match &view.busiest {
        Ok(_) => object.value("error", "null")?,
        Err(error) => object.text("error", error)?,
    }
    object.value("latency_seconds", seconds(view.latency))?;
    let scopes = view
        .busiest
        .as_ref()
        .ok()
        .map(|busiest| each(busiest, scope));
    object.optional("busiest_scopes", scopes.transpose()?.map(array))?;
    let backlog = view.backlog.as_ref().map(|backlog| {
        let mut object = Object::default();
        object.value("unsettled", backlog.unsettled)?;
        object.value("is_journaled", backlog.is_journaled)?;
        object.value("is_emptied", backlog.is_emptied)?;
        object.optional("leases", backlog.leases)?;
        Ok(object.end())
    });
    object.optional("store", backlog.transpose()?)?;
    Ok(object.end())
}

fn scope((scope, usage): &(Scope, Usage)) -> Result<String, fmt::Error> {
    let mut object = Object::default();
    object.text("scope", scope.as_str())?;
    object.value("used_bytes", usage.used.bytes)?;
    object.value("used_objects", usage.used.objects)?;
    object.value("held_bytes", usage.held.bytes)?;
    object.value("held_objects", usage.held.objects)?;
    object.optional("limit_bytes", usage.limits.bytes)?;
    object.optional("limit_objects", usage.limits.objects)?;
    object.optional("soft_limit_bytes", usage.limits.soft_bytes)?;
    object.optional("soft_limit_objects", usage.limits.soft_objects)?;
    object.optional("grace_seconds", usage.limits.grace.map(seconds))?;
    object.optional("over_bytes_seconds", usage.over.bytes.map(seconds))?;
    object.optional("over_objects_seconds", usage.over.objects.map(seconds))?;
    Ok(object.end())
}

fn uploads(view: &UploadsView) -> Result<String, fmt::Error> {
    let mut object = Object::default();
    object.text("name", &view.name)?;
    object.value("open", view.open)?;
    object.value("max_open", view.max_open)?;
    object.value("largest", array(each(&view.largest, upload)?))?;
    Ok(object.end())
}

fn upload(open: &OpenUpload) -> Result<String, fmt::Error> {
    let mut object = Object::default();
    object.text("key", &open.key)?;
    object.optional("whole_bytes", open.progress.whole)?;
    object.value("reserved_bytes", open.progress.reserved)?;
    object.value("received_bytes", open.progress.received)?;
    object.value("idle_seconds", seconds(open.idle))?;
    Ok(object.end())
}

/// In seconds, as JSON has numbers.
fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}
