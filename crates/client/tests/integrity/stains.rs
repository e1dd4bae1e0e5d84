//! What an instance leaves in its host's caches that goes without a word.

use maru_client::{Client, ClientConfig};
use maru_directory::Config;
use maru_protocol::{Refusal, Visibility};
use maru_testkit::{FaultProxy, TestPool};

use crate::plugin::Plugin;
use crate::{PAGE, reserve, wait_until};

/// A pool with a page that an instance on host `h1` was writing when it was cut off for good. The page
/// is stained; where it lies.
fn stained() -> (TestPool, Client, u64) {
    let pool = TestPool::start_with(8 << 20, |config| {
        config.visibility = Visibility::CacheLine;
        config.directory = Config { lease_ms: 1500, quarantine_ms: 1000, ..Config::default() };
    });
    let on = |host: &str| ClientConfig { host: Some(host.to_owned()), ..pool.config(host) };
    let proxy = FaultProxy::start(pool.socket());
    let cut_off = ClientConfig { endpoint: proxy.endpoint(), ..on("h1") };
    let cut_off = Client::connect(cut_off).unwrap();
    let elsewhere = Client::connect(on("h2")).unwrap();
    let mut page = reserve(&cut_off, &["k"]).remove(0);
    page.bytes_mut().fill(7);
    let offset = page.location().offset();
    proxy.set_upstream(None);
    wait_until(|| elsewhere.stats().unwrap().pages_stained == 1);
    (pool, elsewhere, offset)
}

#[test]
fn another_instance_of_the_host_writes_it_back() {
    let (pool, elsewhere, offset) = stained();
    let plugin = Plugin::new();
    let same_host = ClientConfig {
        host: Some("h1".to_owned()),
        visibility_plugin: Some(plugin.library()),
        ..pool.config("same host")
    };
    let same_host = Client::connect(same_host).unwrap();
    wait_until(|| elsewhere.stats().unwrap().pages_stained == 0);
    let calls = plugin.calls();
    assert!(calls[0].starts_with(&format!("publish {offset}+{PAGE} of ")), "{calls:?}");
    // So it is nobody's, and anybody's.
    let mut pages = reserve(&elsewhere, &["k"]);
    pages[0].bytes_mut().fill(1);
    elsewhere.commit(pages).unwrap();
    drop(same_host);
}

#[test]
fn a_host_that_is_gone_has_nothing_left() {
    let (_pool, elsewhere, _) = stained();
    let hosts = elsewhere.hosts().unwrap();
    let stained: Vec<(&str, u64, u64)> =
        hosts.iter().map(|one| (one.host.as_str(), one.sessions, one.pages_stained)).collect();
    assert_eq!(stained, [("h1", 0, 1), ("h2", 1, 0)]);
    let error = elsewhere.host_gone("h2").unwrap_err();
    assert!(error.to_string().contains(&Refusal::HostInUse.to_string()), "{error}");
    elsewhere.host_gone("h1").unwrap();
    wait_until(|| elsewhere.stats().unwrap().pages_stained == 0);
}
