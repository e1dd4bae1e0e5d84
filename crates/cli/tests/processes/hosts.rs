//! What an operator sees of hosts, and of memory that went bad.

use std::fs::File;
use std::os::unix::fs::FileExt;

use maru_client::{Client, ClientConfig, Reserve, Reserved};
use maru_protocol::{Endpoint, Key};
use maru_testkit::{text, wait_until};

use super::common::{json, run, serve, stderr};

#[test]
fn a_host_that_is_gone_is_declared_so() {
    let flags = ["--visibility", "cache-line", "--quarantine-ms", "1000"];
    let serving = serve("16MiB", &flags);
    let socket = serving.socket();
    let server = text(&socket);
    let (endpoint, host) = (Endpoint::Unix(socket.clone()), Some("rack 7".to_owned()));
    let client =
        Client::connect(ClientConfig { endpoint, host, ..ClientConfig::default() }).unwrap();
    let key = Key::new(b"k").unwrap();
    let mut reserved = client.reserve(&[key], 65_536, Reserve::default()).unwrap();
    let Reserved::Page(mut page) = reserved.remove(0) else { panic!("it is not granted") };
    page.bytes_mut().fill(7);
    // It is never let go of, as if its process had been cut off.
    std::mem::forget(page);
    drop(client);
    let stained = || {
        let hosts = json(&["hosts", "--server", server, "--json"]);
        let rack = hosts.as_array().unwrap().iter().find(|one| one["host"] == "rack 7");
        rack.map_or(0, |rack| rack["pages_stained"].as_u64().unwrap())
    };
    wait_until("its page is stained", || stained() == 1);
    let table = run(&["hosts", "--server", server]).stdout;
    assert!(String::from_utf8_lossy(&table).contains("rack 7"));
    let told = run(&["stat", "--server", server]).stdout;
    assert!(String::from_utf8_lossy(&told).contains("! 1 page stained"));

    let refused = run(&["hosts", "--server", server, "--gone", "rack 8"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("maru hosts"), "{}", stderr(&refused));
    assert_eq!(stained(), 1);
    assert!(run(&["hosts", "--server", server, "--gone", "rack 7"]).status.success());
    wait_until("its page is free", || stained() == 0);
}

#[test]
fn a_chunk_that_went_bad_is_told() {
    let serving = serve("16MiB", &["--checksums", "--scrub", "1GiB"]);
    let client = serving.client();
    let key = Key::new(b"k\x1b[31m").unwrap();
    let reserved = client.reserve(&[key], 65_536, Reserve::default()).unwrap().remove(0);
    let Reserved::Page(mut page) = reserved else { panic!("{reserved:?}") };
    page.copy_from(&vec![7; 65_536]).unwrap();
    let offset = page.location().offset();
    client.commit([page]).unwrap();
    let pool = File::options().write(true).open(serving.pool()).unwrap();
    pool.write_all_at(&[8], offset + 5).unwrap();
    let socket = serving.socket();
    let stat = || json(&["stat", "--server", text(&socket), "--json"]);
    wait_until("it is found", || stat()["pages_damaged"] == 1);
    let told = run(&["stat", "--server", text(&socket)]).stdout;
    let told = String::from_utf8_lossy(&told);
    assert!(told.contains("! 1 page damaged"), "{told}");
    let log = serving.log();
    assert!(log.contains("a chunk is damaged") && log.contains(&offset.to_string()), "{log}");
    assert!(!log.contains('\x1b'), "a key cannot send codes to the terminal");
}
