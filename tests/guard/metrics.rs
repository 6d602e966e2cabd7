//! What an exporter shows of a guard.

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use test_support::eventually;
use tower_storage_guard::{
    Demand, Guard,
    metrics::Metrics,
    quota::{Limits, MemoryQuota},
    test_util::FakeVolume,
};

fn exporter() -> (Metrics, PrometheusHandle) {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    (Metrics::with_recorder(recorder), handle)
}

/// Waits for a line.
async fn shows(handle: &PrometheusHandle, line: &str) {
    let line = format!("storage_guard_{line}");
    let is_there = || handle.render().lines().any(|it| it == line);
    eventually(&line, is_there).await;
}

/// How many series there are once so many users have each stored something, and were refused.
async fn series_of(users: u32) -> usize {
    let (metrics, handle) = exporter();
    let disk = FakeVolume::new(1 << 40);
    let guard = Guard::new(disk.volume())
        .quota(MemoryQuota::new(Limits::bytes(10)))
        .observer(metrics);
    for user in 0..users {
        let user = format!("user:{user}");
        let reservation = guard.try_reserve(&*user, Demand::known(8)).unwrap();
        reservation.commit().await;
        assert!(guard.try_reserve(&*user, Demand::known(8)).is_err());
    }
    shows(&handle, "volume_full{volume=\"volume\"} 0").await;
    let text = handle.render();
    for name in ["admissions", "settlements"] {
        let line = format!("storage_guard_{name}_total{{volume=\"volume\"}} {users}\n");
        assert!(text.contains(&line), "{text}");
    }
    let series = text.lines();
    series
        .filter(|line| line.starts_with("storage_guard_"))
        .count()
}

#[tokio::test]
async fn a_hundred_thousand_scopes_have_as_many_series_as_ten() {
    let of_ten = series_of(10).await;
    assert!(of_ten > 50);
    assert_eq!(series_of(100_000).await, of_ten);
}

#[tokio::test]
async fn the_edges_of_a_volume_are_shown() {
    let (metrics, handle) = exporter();
    let disk = FakeVolume::new(1_000);
    let volume = disk.volume().named("files").keep_free(100);
    let _guard = Guard::new(volume).observer(metrics);
    shows(&handle, "volume_headroom_bytes{volume=\"files\"} 100").await;
    disk.set_available(100);
    shows(&handle, "volume_full{volume=\"files\"} 1").await;
    shows(&handle, "volume_available_bytes{volume=\"files\"} 100").await;
    disk.set_available(900);
    shows(&handle, "volume_full{volume=\"files\"} 0").await;
    disk.lose();
    shows(&handle, "volume_moved{volume=\"files\"} 1").await;
    shows(&handle, "volume_stale{volume=\"files\"} 1").await;
    shows(&handle, "volume_time_to_full_seconds{volume=\"files\"} NaN").await;
    disk.set_available(800);
    shows(&handle, "volume_stale{volume=\"files\"} 0").await;
    shows(&handle, "volume_moved{volume=\"files\"} 0").await;
}
