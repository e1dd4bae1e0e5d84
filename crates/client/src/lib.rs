//! One instance's side of Maru.
//!
//! A [`Client`] is one session with a server: blocking, usable from many threads at once. It keeps
//! its lease, reconnects by itself and sends unanswered requests again, which the server applies
//! once. Chunks are read and written in place, in the mapped pool:
//!
//! - [`Client::acquire`] gives [`PinnedPage`]s: read-only, protected until they are released.
//! - [`Client::reserve`] gives [`ReservedPage`]s: writable, invisible until they are committed.
//!
//! There is no other way to a page, so writing to one that is not reserved does not compile.
//! Dropping a page gives it back.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use maru_client::{Acquire, Client, ClientConfig, Reserve, Reserved};
//! use maru_protocol::Key;
//!
//! let client = Client::connect(ClientConfig::default())?;
//! let key = Key::new(b"model@00000000@c0ffee@0")?;
//! for reserved in client.reserve(&[key], 64 << 10, Reserve::default())? {
//!     if let Reserved::Page(mut page) = reserved {
//!         page.bytes_mut().fill(7);
//!         client.commit(vec![page])?;
//!     }
//! }
//! let pages = client.acquire(&[key], Acquire::default())?;
//! let mut chunk = vec![0; 64 << 10];
//! for page in pages.iter().flatten() {
//!     page.copy_to(&mut chunk)?;
//! }
//! client.release(pages.into_iter().flatten())?;
//! # Ok(())
//! # }
//! ```

mod client;
mod config;
mod conversation;
mod error;
mod heartbeat;
mod link;
mod memory;
mod page;
mod stream;
mod suspicion;
#[cfg(test)]
mod test_server;
mod verify;
mod watch;

pub use client::{Acquire, Client, Committed, PoolMemory, Promoted, Reserve, Reserved};
pub use config::ClientConfig;
pub use conversation::{Asked, ConnectionError, Conversation, Return, Session, Writing};
pub use error::ClientError;
pub use page::{PinnedPage, PrivatePage, ReservedPage};
pub use verify::Verify;
pub use watch::{PoolEvent, Watch};
