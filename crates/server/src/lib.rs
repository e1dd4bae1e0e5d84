//! The shell around one [`maru_directory::Directory`]: sockets, timers, memory.
//!
//! One thread owns the directory and waits for all sockets at once; nothing is locked. Measured
//! against threads and tokio (`benches/echo.rs`, `docs/performance.md`): as fast as blocking
//! threads, and nobody can see the directory between two steps.

mod config;
mod connection;
mod embedded;
mod events;
pub mod fsck;
mod listener;
mod pool;
mod process;
mod scrub;
mod server;
pub mod service;
pub mod store;

pub use config::{PoolConfig, ServerConfig, StartError};
pub use embedded::Embedded;
pub use server::{Server, Stopper};
