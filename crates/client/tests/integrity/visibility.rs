//! What a client does so that hosts see each other's bytes. The pool's only device begins at its start,
//! so an offset in the pool is one in the device.

use maru_client::{Client, ClientConfig, ClientError, Committed, ReservedPage};
use maru_protocol::{Location, Visibility};
use maru_testkit::{FaultProxy, TestPool};

use crate::plugin::Plugin;
use crate::{PAGE, acquire, content, key, reserve, store, wait_until};

fn pool() -> TestPool {
    TestPool::start_with(8 << 20, |config| config.visibility = Visibility::CacheLine)
}

/// An instance on a host with a library for visibility.
fn config(pool: &TestPool, host: &str, plugin: &Plugin) -> ClientConfig {
    ClientConfig {
        host: Some(host.to_owned()),
        visibility_plugin: Some(plugin.library()),
        ..pool.config(host)
    }
}

fn client(pool: &TestPool, host: &str, plugin: &Plugin) -> Client {
    Client::connect(config(pool, host, plugin)).unwrap()
}

fn call(operation: &str, location: Location) -> String {
    let (offset, generation) = (location.offset(), location.generation().0);
    format!("{operation} {offset}+{} of {generation}", location.length)
}

fn whole(page: &ReservedPage) -> Location {
    Location::new(page.location().handle, PAGE)
}

#[test]
fn what_was_written_is_published_before_its_commit_is_on_its_way() {
    let (pool, plugin) = (pool(), Plugin::new());
    let proxy = FaultProxy::start(pool.socket());
    let behind = ClientConfig { endpoint: proxy.endpoint(), ..config(&pool, "h1", &plugin) };
    let client = Client::connect(behind).unwrap();
    let mut pages = reserve(&client, &["copied", "stored", "short"]);
    pages[0].copy_from(&content("copied")).unwrap();
    pages[1].bytes_mut().copy_from_slice(&content("stored"));
    pages[2].copy_from(&content("short")).unwrap();
    pages[2].set_length(100).unwrap();
    let places: Vec<Location> = pages.iter().map(ReservedPage::location).collect();
    plugin.forget_calls();
    plugin.shut_gate();
    std::thread::scope(|scope| {
        let committed = scope.spawn(|| client.commit(pages).unwrap());
        wait_until(|| !plugin.calls().is_empty());
        assert_eq!(proxy.seen("commit"), 0, "before anybody is told");
        plugin.open_gate();
        let stored: Vec<Committed> = places.iter().copied().map(Committed::Stored).collect();
        assert_eq!(committed.join().unwrap(), stored);
    });
    let expected: Vec<String> = places.iter().map(|place| call("publish", *place)).collect();
    assert_eq!(plugin.calls(), expected);
    assert_eq!(proxy.seen("commit"), 1);
}

#[test]
fn what_another_host_wrote_is_acquired_before_it_is_handed_out() {
    let (pool, own, other) = (pool(), Plugin::new(), Plugin::new());
    let writer = client(&pool, "h1", &own);
    let (near, far) = (client(&pool, "h1", &own), client(&pool, "h2", &other));
    let location = store(&writer, "k");
    own.forget_calls();
    let page = acquire(&near, "k").unwrap();
    assert!(page.bytes() == content("k"));
    assert_eq!(own.calls(), [""; 0], "one host's caches are coherent");
    other.shut_gate();
    std::thread::scope(|scope| {
        let acquired = scope.spawn(|| acquire(&far, "k").unwrap());
        wait_until(|| !other.calls().is_empty());
        assert!(!acquired.is_finished());
        other.open_gate();
        assert!(acquired.join().unwrap().bytes() == content("k"));
    });
    assert_eq!(other.calls(), [call("acquire", location)]);
}

#[test]
fn who_was_second_acquires_what_the_first_wrote() {
    let (pool, own, other) = (pool(), Plugin::new(), Plugin::new());
    let (writer, second) = (client(&pool, "h1", &own), client(&pool, "h2", &other));
    let mut late = reserve(&second, &["k"]).remove(0);
    late.copy_from(&content("other")).unwrap();
    let location = store(&writer, "k");
    other.forget_calls();
    let promoted = second.commit_and_acquire([late]).unwrap().remove(0).unwrap();
    assert!(promoted.superseded && promoted.page.bytes() == content("k"));
    assert_eq!(other.calls()[1..], [call("acquire", location)]);
}

#[test]
fn a_page_is_written_back_before_it_is_given_back() {
    let (pool, plugin) = (pool(), Plugin::new());
    let proxy = FaultProxy::start(pool.socket());
    let behind = ClientConfig { endpoint: proxy.endpoint(), ..config(&pool, "h1", &plugin) };
    let client = Client::connect(behind).unwrap();
    let mut pages = reserve(&client, &["dropped", "private"]);
    for page in &mut pages {
        page.bytes_mut().fill(7);
    }
    let (private, dropped) = (pages.pop().unwrap(), pages.pop().unwrap());
    let written_back = call("publish", whole(&dropped));
    plugin.forget_calls();
    plugin.shut_gate();
    std::thread::scope(|scope| {
        let gone = scope.spawn(|| drop(dropped));
        wait_until(|| !plugin.calls().is_empty());
        assert!(!gone.is_finished());
        client.flush().unwrap();
        assert_eq!(proxy.seen("abort"), 0);
        plugin.open_gate();
    });
    assert_eq!(plugin.calls(), [written_back]);
    // A private page is written no more, and may be given back any time.
    plugin.forget_calls();
    let written_back = call("publish", whole(&private));
    let private = private.into_private().unwrap();
    assert_eq!(plugin.calls(), std::slice::from_ref(&written_back));
    drop(private);
    client.flush().unwrap();
    assert_eq!(plugin.calls(), [written_back]);
    pool.assert_nothing_left();
}

/// What a lost session wrote is said to be let go of, once no page of it is out.
#[test]
fn a_page_of_a_lost_session_is_written_back_too() {
    let (mut pool, plugin) = (pool(), Plugin::new());
    let client = client(&pool, "h1", &plugin);
    let mut page = reserve(&client, &["k"]).remove(0);
    page.bytes_mut().fill(7);
    let written_back = call("publish", whole(&page));
    pool.restart();
    client.contains(&[key("k")]).unwrap();
    assert!(page.is_lost());
    plugin.forget_calls();
    drop(page);
    assert_eq!(plugin.calls(), [written_back]);
}

#[test]
fn a_page_that_cannot_be_published_is_nobodys_and_the_others_are_stored() {
    let (pool, plugin) = (pool(), Plugin::new());
    let client = client(&pool, "h1", &plugin);
    for pins in [false, true] {
        let names = if pins { ["1", "2", "3"] } else { ["4", "5", "6"] };
        let mut pages = reserve(&client, &names);
        for (page, name) in pages.iter_mut().zip(names) {
            page.copy_from(&content(name)).unwrap();
        }
        let places: Vec<Location> = pages.iter().map(ReservedPage::location).collect();
        plugin.fail_at(places[1].offset());
        if pins {
            let promoted = client.commit_and_acquire(pages).unwrap();
            let kept: Vec<bool> = promoted.iter().map(Option::is_some).collect();
            assert_eq!(kept, [true, false, true]);
        } else {
            let stored = Committed::Stored;
            let expected = [stored(places[0]), Committed::Unwritable, stored(places[2])];
            assert_eq!(client.commit(pages).unwrap(), expected);
        }
        plugin.fail_no_more();
    }
    client.flush().unwrap();
    let stats = client.stats().unwrap();
    assert_eq!((stats.pages_damaged, stats.pages_reserved, stats.pins), (2, 0, 0));
    assert_eq!((stats.pages_resident, stats.lost_bytes()), (4, 0));
    // The keys can be written, elsewhere.
    store(&client, "2");
}

#[test]
fn a_page_that_cannot_be_written_back_is_nobodys() {
    let (pool, plugin) = (pool(), Plugin::new());
    let client = client(&pool, "h1", &plugin);
    let mut pages = reserve(&client, &["1", "2"]);
    for page in &mut pages {
        page.bytes_mut().fill(7);
    }
    plugin.fail_at(pages[0].location().offset());
    drop(pages.remove(0));
    plugin.fail_at(pages[0].location().offset());
    let error = pages.remove(0).into_private().unwrap_err();
    assert!(error.to_string().contains("plugin.so"), "{error}");
    // The goodbye would say that nothing is left in the caches.
    drop(client);
    let stats = pool.stats();
    assert_eq!((stats.pages_damaged, stats.pages_reserved), (2, 0));
}

#[test]
fn what_cannot_be_acquired_is_a_miss_and_leaves_no_pin() {
    let (pool, own, other) = (pool(), Plugin::new(), Plugin::new());
    let (writer, reader) = (client(&pool, "h1", &own), client(&pool, "h2", &other));
    let location = store(&writer, "k");
    store(&writer, "l");
    other.fail_at(location.offset());
    assert!(acquire(&reader, "k").is_none() && acquire(&reader, "l").is_some());
    reader.flush().unwrap();
    assert_eq!(reader.stats().unwrap().pins, 0);
    other.fail_no_more();
    assert!(acquire(&reader, "k").is_some(), "it was not the chunk's fault");
}

#[test]
fn a_library_is_loaded_where_the_pool_needs_it() {
    let folder = tempfile::tempdir().unwrap();
    let missing = Some(folder.path().join("missing.so"));
    let with =
        |pool: &TestPool| ClientConfig { visibility_plugin: missing.clone(), ..pool.config("a") };
    let pool = pool();
    let error = Client::connect(with(&pool)).unwrap_err();
    assert!(matches!(error, ClientError::Plugin(_)), "{error}");
    assert!(error.to_string().contains("missing.so"), "{error}");
    let coherent = TestPool::start(8 << 20);
    Client::connect(with(&coherent)).unwrap();
}

#[test]
fn a_host_has_a_name_that_can_be_printed() {
    let pool = pool();
    let named = |host: &str| ClientConfig { host: Some(host.to_owned()), ..pool.config("a") };
    assert!(matches!(Client::connect(named("")), Err(ClientError::Refused(_))));
    let client = Client::connect(named("rack 7")).unwrap();
    let hosts = client.hosts().unwrap();
    assert_eq!((hosts[0].host.as_str(), hosts[0].sessions), ("rack 7", 1));
}
