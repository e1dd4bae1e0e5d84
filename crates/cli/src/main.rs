//! The `maru` program.
fn main() {}
